"""What every gateway does alike: settings, connecting, stopping, exit statuses. A stand-in, by hand, on a
real daemon."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

import towpath
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath_broker.gateways import _common
from towpath_broker.gateways._common import GatewayContext

GATEWAY = Path(__file__).parent / "stand_ins" / "hand_gateway.py"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon"), LOCAL_ONLY) as running:
        with towpath.connect(str(running.socket)) as client:
            client.declare("seen")
        yield running


def start(daemon: DaemonHandle, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(GATEWAY), *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**daemon.environment, **(env or {})},
    )


def run(daemon: DaemonHandle, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run it, end it with SIGTERM once it waits for that, and return its exit status and log."""
    with start(daemon, *arguments, env=env) as gateway:
        assert gateway.stderr is not None
        lines = []
        for line in gateway.stderr:
            lines.append(line)
            if "hand.waits" in line:
                gateway.terminate()
        return gateway.wait(DEADLINE_S), "".join(lines)


def test_by_hand_it_is_an_ordinary_client_that_logs_where_it_listens(daemon: DaemonHandle) -> None:
    status, log = run(daemon)
    assert status == 0
    assert 'gateway.listening gateway=hand endpoints="in=number 1"' in log
    assert "hand.channels names=seen" in log
    assert "gateway.stopped gateway=hand" in log


def test_flag_over_environment_over_default(daemon: DaemonHandle) -> None:
    assert "number 2" in run(daemon, env={"TOWPATH_HAND_NUMBER": "2"})[1]
    assert "number 3" in run(daemon, "--number", "3", env={"TOWPATH_HAND_NUMBER": "2"})[1]


def test_under_the_supervisor_its_table_is_all_that_counts(daemon: DaemonHandle) -> None:
    env = {"TOWPATH_GATEWAY_SETTINGS": '{"number": 4}', "TOWPATH_HAND_NUMBER": "2"}
    assert "number 4" in run(daemon, env=env)[1]


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (["--number", "10"], {}, "command line: number: 10 is not allowed; allowed: a whole number, 0 to 9"),
        (["--act", "impossible"], {}, "[hand] act: it is impossible"),
        ([], {"TOWPATH_HAND_NUMBR": "1"}, "unknown key (did you mean 'TOWPATH_HAND_NUMBER'?)"),
        ([], {"TOWPATH_GATEWAY_SETTINGS": '{"x":1}'}, "[hand] x: unknown key"),
        ([], {"TOWPATH_GATEWAY_SETTINGS": "{"}, "is not JSON"),
    ],
)
def test_a_configuration_that_can_never_work_is_78(
    daemon: DaemonHandle, arguments: list[str], env: dict[str, str], said: str
) -> None:
    status, log = run(daemon, *arguments, env=env)
    assert status == 78
    assert said in log
    assert "Traceback" not in log


def test_an_error_has_its_own_status_and_a_bug_its_traceback(daemon: DaemonHandle) -> None:
    status, log = run(daemon, "--act", "fail")
    assert status == 124
    assert "gateway.failed gateway=hand code=TIMEOUT" in log
    status, log = run(daemon, "--act", "crash")
    assert status == 1
    assert "RuntimeError: a bug" in log
    assert "ExceptionGroup" not in log


def test_without_a_daemon_it_says_so(daemon: DaemonHandle, tmp_path: Path) -> None:
    status, log = run(daemon, "--socket", str(tmp_path / "none.sock"))
    assert status == 69
    assert "code=UNAVAILABLE" in log


def test_one_that_does_not_drain_is_cut_short(daemon: DaemonHandle) -> None:
    status, log = run(daemon, "--act", "never drain")
    assert status == 0
    assert "gateway.drain_timeout" in log


def test_one_that_is_stuck_is_ended_by_the_kernel(daemon: DaemonHandle) -> None:
    status, _ = run(daemon, "--act", "hang")
    assert status == -signal.SIGALRM


def test_interrupted_while_it_waits_for_the_daemon_it_ends(daemon: DaemonHandle) -> None:
    """A stopped core accepts nobody: the gateway's connection waits in the backlog."""
    core = daemon.core_pid
    os.kill(core, signal.SIGSTOP)
    try:
        with start(daemon) as gateway:
            wait_until(lambda: catches(gateway.pid, signal.SIGTERM))
            gateway.send_signal(signal.SIGINT)
            assert gateway.wait(DEADLINE_S) == 0
    finally:
        os.kill(core, signal.SIGCONT)


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) & 1 << (number - 1))


def test_a_restarted_core_is_told_everything_again(tmp_path: Path) -> None:
    zmq = pytest.importorskip("zmq")
    with running_daemon(tmp_path, '[zeromq]\nsub = "tcp://127.0.0.1:0"\n') as daemon:
        before = daemon.gateway("zeromq")
        with zmq.Context() as context, context.socket(zmq.PUSH) as push:
            push.connect(before.endpoints["push"])
            push.send_multipart([b"no.such.channel", b"x"])
            mark = daemon.mark()
            counted = wait_for_counters(daemon)
            daemon.kill_core()
            daemon.wait_log(r" gateway\.reconnected gateway=zeromq", after=mark)
            assert wait_for_counters(daemon) == counted
        after = daemon.gateway("zeromq")
        assert (after.pid, after.endpoints, after.state) == (before.pid, before.endpoints, "running")


def wait_for_counters(daemon: DaemonHandle) -> dict[str, int]:
    """Return what the zeromq gateway has counted, once it has reported that."""
    wait_until(lambda: bool(daemon.gateway("zeromq").counters))
    return dict(daemon.gateway("zeromq").counters)


class Recorder:
    """Stands for the client where only the reports matter."""

    def __init__(self) -> None:
        self.reports: list[dict[str, int]] = []
        self.reported = asyncio.Event()

    async def until(self, counters: dict[str, int]) -> None:
        while self.reports[-1:] != [counters]:
            self.reported.clear()
            await self.reported.wait()

    async def report_gateway(
        self, endpoints: Mapping[str, str], counters: Mapping[str, int], detail: str = ""
    ) -> None:
        await asyncio.sleep(0)
        self.reports.append(dict(counters))
        self.reported.set()


def test_counts_are_reported_rarely_and_none_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_common, "REPORT_INTERVAL_S", 0.05)
    recorder = Recorder()

    async def scenario() -> float:
        context = GatewayContext("hand", None, cast(Any, recorder), is_child=True)
        context._endpoints = {}
        reporting = asyncio.ensure_future(context._report_changes())
        began_at_s = time.monotonic()
        for _ in range(10_000):
            context.count("messages_in")
            await asyncio.sleep(0)
        async with asyncio.timeout(DEADLINE_S):
            await recorder.until({"messages_in": 10_000})
        reporting.cancel()
        return time.monotonic() - began_at_s

    took_s = asyncio.run(scenario())
    # One at once, then one for each interval that has passed.
    assert len(recorder.reports) <= 1 + took_s / 0.05
