"""The core killed around each of its stores to shared memory, in a whole daemon: in full flow, while
publishers come and go, and while it takes up what another has left. Each message arrives exactly once.

The ring's own test of this (tests/ring/c/pump_test.c) has every moment several times; this one has what is
around it: what is kept, what is attached again in which order, and clients that go on meanwhile.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import towpath
from tests.door.total_load import Load
from tests.ring.ring_sources import steps_listed
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import PROGRAM_S

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAM = HERE / "programs" / "serve_dying.py"
BEFORE, MIDDLE, AFTER = range(3)
"""As in ``enum tpr_phase``."""

COPIED = ("PADDING", "RECORD_HEADER", "RECORD_ORIGIN", "RECORD_HEADERS", "RECORD_PAYLOAD")
"""Steps that are copies, and are cut in the middle."""
SELDOM = (
    *("SLOT_RESET", "SLOT_TAKEN", "SLOT_SOURCE", "SLOT_START", "SLOT_LEFT"),
    *("WAITS_DOORBELL", "SLEEP_DOORBELL", "SLEEP_AWAKE"),
)
"""Steps that a busy core may not come to many times."""
STEPS = (
    *COPIED,
    *SELDOM,
    *("OLDEST", "ANCHOR", "LAST_SEQ", "TAIL", "HISTORY", "CURSOR", "WAITS_CLEAR"),
)
"""What the core stores on a channel in total order."""
OFTEN = ("ANCHOR", "TAIL", "CURSOR")
"""Between these the danger is; tried more often."""


@pytest.fixture(scope="session")
def dying_ring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The extension, built so that it can kill its process at any step."""
    return build_ring(tmp_path_factory.mktemp("dying"))


def build_ring(folder: Path, *flags: str) -> Path:
    built = folder / f"_ring{sysconfig.get_config_var('EXT_SUFFIX')}"
    package = ROOT / "clients" / "python" / "towpath"
    command = [
        *("gcc", "-shared", "-fPIC", "-std=c11", "-O1", "-D_GNU_SOURCE", "-pthread", *flags),
        *("-include", str(HERE / "c" / "kill_at_step.h"), f"-I{HERE / 'c'}"),
        *(f"-I{ROOT / 'clients' / 'c'}", f"-I{package}", f"-I{sysconfig.get_path('include')}"),
        *(str(source) for source in (package / "_ringmodule.c", *sorted(package.glob("_ring_*.c")))),
        *(str(HERE / "c" / "kill_at_step.c"), "-o", str(built)),
    ]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PROGRAM_S)
    assert compiled.returncode == 0, compiled.stderr
    return built


def moments(seed: int) -> list[tuple[str, int, int]]:
    """Step, phase and hit of each core's death, in an order of chance."""
    rng = random.Random(seed)
    chosen = []
    for step in STEPS:
        phases = (MIDDLE,) if step in COPIED else (AFTER,) if step in SELDOM else (BEFORE, AFTER)
        for phase in phases:
            for _ in range(2 if step in OFTEN else 1):
                chosen.append((step, phase, 1 if step in SELDOM else rng.choice([1, 1, 2, 3, 5, 20])))
    rng.shuffle(chosen)
    return chosen


def die_at(ring: Path, tmp_path: Path, chosen: list[tuple[str, int, int]]) -> None:
    steps = steps_listed()
    file = tmp_path / "moments"
    # The first core lives until everybody is there; it is killed from outside.
    lines = ["", *(f"{steps.index(step)} {phase} {hit}" for step, phase, hit in chosen)]
    file.write_text("\n".join(lines) + "\n")
    env = {
        "TOWPATH_RING_BUILD": str(ring),
        "TOWPATH_MOMENTS": str(file),
        "PYTHONPATH": os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH")) if path),
    }
    with running_daemon(tmp_path, LOCAL_ONLY, env=env, program=(str(PROGRAM),)) as daemon:
        with towpath.connect(str(daemon.socket)) as client:
            client.declare("total", order="total", ring_bytes=1 << 14, history=5)
        load = Load(daemon, "total", reopens=True)
        with load:
            load.wait_progress(500)
            os.kill(daemon.core_pid, signal.SIGKILL)
            wait_deaths(daemon, load, 1, "the signal")
            for deaths, moment in enumerate(chosen, 2):
                wait_deaths(daemon, load, deaths, moment)
            load.wait_progress(1000)
            load.stop()
        load.check()


def wait_deaths(daemon: DaemonHandle, load: Load, count: int, why: object) -> None:
    """Wait until so many cores have died, each by the signal that it gives itself."""

    def deaths() -> list[str]:
        return [line for line in daemon.log().splitlines() if " core.exited " in line]

    wait_until(
        lambda: len(deaths()) >= count or bool(load.failures),
        lambda: f"the core did not come to {why}",
    )
    assert not load.failures, load.failures
    assert "SIGKILL" in deaths()[-1]


def test_each_message_once_whichever_store_was_the_last(dying_ring: Path, tmp_path: Path) -> None:
    die_at(dying_ring, tmp_path, moments(seed=1))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 12))
def test_and_in_other_orders(dying_ring: Path, tmp_path: Path, seed: int) -> None:
    die_at(dying_ring, tmp_path, moments(seed))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    die_at(build_ring(folder, *sys.argv[3:]), folder, moments(int(sys.argv[2])))
