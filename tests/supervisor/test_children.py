"""Child processes: what they inherit, how they end, and that none is left behind."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from towpath_broker.host.children import (
    BACKOFF_FIRST_S,
    BACKOFF_LAST_S,
    STABLE_S,
    Backoff,
    Child,
    describe_exit,
)

# Starts `stand_in_sleeper` as the supervisor starts children, says its pid, and waits to be killed.
PARENT = """
import asyncio, signal, sys
from towpath_broker.host.children import Child
async def main():
    number = signal.Signals[sys.argv[1]]
    child = Child("stand_in_sleeper", environment={}, descriptors=[], death_signal=number)
    print(child.pid, flush=True)
    await child.wait()
asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stand_in_sleeper.py").write_text("import signal\nwhile True: signal.pause()\n")
    return tmp_path


def wait_for_end(pidfd: int, seconds: float = 10) -> bool:
    return bool(select.select([pidfd], [], [], seconds)[0])


def test_the_pause_doubles_up_to_its_bound_and_starts_anew_after_health() -> None:
    now_s = 1000.0
    backoff = Backoff(lambda: now_s)

    def delay_after(*, starting_s: float, working_s: float | None) -> float:
        nonlocal now_s
        now_s += starting_s
        if working_s is not None:
            backoff.works()
            now_s += working_s
            backoff.works()  # told again, of the same run
        return backoff.next_delay_s()

    delays = [delay_after(starting_s=2 * STABLE_S, working_s=None) for _ in range(5)]
    delays += [delay_after(starting_s=0.5, working_s=STABLE_S - 0.1) for _ in range(5)]
    assert delays[0] == BACKOFF_FIRST_S
    assert delays[-1] == BACKOFF_LAST_S
    assert all(later in (2 * earlier, BACKOFF_LAST_S) for earlier, later in itertools.pairwise(delays))
    for _ in range(3):
        assert delay_after(starting_s=0.5, working_s=STABLE_S) == BACKOFF_FIRST_S
    assert delay_after(starting_s=2 * STABLE_S, working_s=None) == 2 * BACKOFF_FIRST_S


def test_a_child_has_what_it_was_given_and_no_more(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (modules / "stand_in_reporter.py").write_text(
        "import json, os, sys\n"
        "report = {'fds': sorted(int(n) for n in os.listdir('/proc/self/fd')), 'env': dict(os.environ),"
        " 'group': os.getpgid(0) == os.getpid(), 'path': sys.path}\n"
        "os.write(int(os.environ['OUT']), json.dumps(report).encode())\n"
    )
    # A daemon started in a directory with a module of that name must not run it.
    (modules / "json.py").write_text("raise SystemExit(99)\n")
    monkeypatch.setenv("PYTHONPATH", str(modules / "elsewhere"))
    (modules / "elsewhere").mkdir()
    (modules / "stand_in_reporter.py").rename(modules / "elsewhere" / "stand_in_reporter.py")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("LISTEN_FDS", "1")
    readable, writable = os.pipe()
    leaked = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(leaked, True)

    async def scenario() -> int:
        child = Child(
            "stand_in_reporter",
            environment={"OUT": str(writable), "GIVEN": "yes"},
            descriptors=[writable],
            death_signal=signal.SIGKILL,
        )
        return await child.wait()

    assert asyncio.run(asyncio.wait_for(scenario(), 20)) == 0
    report = json.loads(os.read(readable, 65_536))
    for descriptor in (readable, writable, leaked):
        os.close(descriptor)
    assert report["env"]["GIVEN"] == "yes"
    assert "NOTIFY_SOCKET" not in report["env"]
    assert "LISTEN_FDS" not in report["env"]
    assert report["group"] is True
    # 0, 1, 2, what it was given, and the directory being listed.
    assert len(report["fds"]) == 5
    assert writable in report["fds"]


def test_stop_is_sigterm_then_sigkill(modules: Path) -> None:
    (modules / "stand_in_stubborn.py").write_text(
        "import os, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.write(int(os.environ['OUT']), b'x')\n"
        "while True: signal.pause()\n"
    )
    readable, writable = os.pipe()

    async def scenario() -> None:
        child = Child("stand_in_sleeper", environment={}, descriptors=[], death_signal=signal.SIGKILL)
        assert await child.stop(20)
        assert await child.wait() == -signal.SIGTERM
        child.signal(signal.SIGKILL)
        stubborn = Child(
            "stand_in_stubborn",
            environment={"OUT": str(writable)},
            descriptors=[writable],
            death_signal=signal.SIGKILL,
        )
        await asyncio.to_thread(os.read, readable, 1)
        assert not await stubborn.stop(0.1)
        assert await stubborn.wait() == -signal.SIGKILL

    asyncio.run(asyncio.wait_for(scenario(), 30))
    os.close(readable)
    os.close(writable)


@pytest.mark.parametrize("death_signal", ["SIGTERM", "SIGKILL"])
def test_no_child_outlives_a_parent_that_is_killed(death_signal: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, death_signal], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        assert not wait_for_end(pidfd, 0)
        parent.kill()
        assert wait_for_end(pidfd)
        os.close(pidfd)


def test_ends_in_words() -> None:
    assert describe_exit(3) == "exited with 3"
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(-200) == "killed by signal 200"
