"""The core is killed when the end of a wait is in its journal, and nobody has heard of it: its successor
tells it, to clients on its host and from afar, and nothing is waited for, or counted, twice."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import towpath
from tests.support.blocking import BlockingClient
from tests.support.daemon import DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors

CORE = "tests.client.programs.mute_core"
ROOT = Path(__file__).parents[2]
KINDS = ("local-sync", "local-aio", "grpc-aio", "zmq-sync")


class Mute:
    """A daemon whose core is killed as soon as it should tell a certain thing."""

    def __init__(self, daemon: DaemonHandle, order: Path, sockets: Path) -> None:
        self.daemon = daemon
        self._order = order
        self._urls = {
            "local": str(daemon.socket),
            "grpc": f"grpc+unix://{sockets}/grpc",
            "zmq": f"zmq+ipc://{sockets}/zmq",
        }

    def connect(self, kind: str) -> Any:
        """Make a client: of a carrier, and of a shell."""
        carrier, _, shell = kind.partition("-")
        make = BlockingClient if shell == "aio" else towpath.connect
        return make(self._urls[carrier], timeout=DEADLINE_S)

    def order(self, effect: str) -> None:
        """Have the core killed instead of telling this."""
        self._order.write_text(effect)

    def wait_killed(self, mark: int) -> None:
        """Wait until that has happened, and the next core is there."""
        self.daemon.wait_log(r" core\.exited ", after=mark)
        self.daemon.wait_log(r" core\.ready ", after=mark)
        assert not self._order.exists()


@pytest.fixture(scope="module")
def mute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mute]:
    directory = tmp_path_factory.mktemp("mute")
    sockets = Path(tempfile.mkdtemp(prefix="towpath-mute-"))
    config = f'[grpc]\nlisten = "unix:{sockets}/grpc"\n[zeromq]\nrpc = "ipc://{sockets}/zmq"\n'
    environment = {
        "PYTHONPATH": str(ROOT),
        "TOWPATH_TEST_CORE": CORE,
        "TOWPATH_MUTE": str(directory / "order"),
    }
    with running_daemon(directory, config, env=environment) as daemon:
        yield Mute(daemon, directory / "order", sockets)
    shutil.rmtree(sockets)


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, mute: Mute) -> Iterator[Any]:
    with mute.connect(request.param) as connected:
        yield connected


@pytest.fixture
def local(mute: Mute) -> Iterator[towpath.Client]:
    with mute.connect("local") as connected:
        yield connected


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(4)
    yield executor
    executor.shutdown(wait=False)  # after a failure some may wait until their clients are closed


def is_waited_at(client: towpath.Client, barrier: str) -> bool:
    """Whether somebody waits at a barrier for two."""
    try:
        client.barrier(barrier, 3).wait(0)
    except errors.LockConflict:
        return True
    except errors.LockHeld:
        return False
    raise AssertionError("nobody else comes")


def test_a_barrier_that_opened(
    client: Any, local: towpath.Client, mute: Mute, threads: ThreadPoolExecutor
) -> None:
    mark = mute.daemon.mark()
    for kill in (True, False):
        first = threads.submit(client.barrier("mute.gate", 2).wait)
        wait_until(partial(is_waited_at, local, "mute.gate"))
        if kill:
            mute.order("BarrierOpened")
        second = threads.submit(local.barrier("mute.gate", 2).wait)
        assert (first.result(DEADLINE_S), second.result(DEADLINE_S)) == (0, 1)
        if kill:
            mute.wait_killed(mark)


def test_a_latch_counts_once(client: Any, mute: Mute) -> None:
    mark = mute.daemon.mark()
    latch = client.latch("mute.latch", 2)
    mute.order("BarrierOpened")
    assert latch.count_down() is False
    mute.wait_killed(mark)
    assert latch.count_down() is True
    latch.wait(0)


def test_a_condition_was_notified_and_the_lock_is_had_again(
    client: Any, local: towpath.Client, mute: Mute, threads: ThreadPoolExecutor
) -> None:
    mark = mute.daemon.mark()
    guard = client.lock("mute.lock").acquire()
    notified = threads.submit(guard.wait, "full")
    ours = local.lock("mute.lock").acquire(DEADLINE_S)
    assert ours.notify("full") == 1
    mute.order("Granted")
    ours.release()
    assert notified.result(DEADLINE_S) is True
    mute.wait_killed(mark)
    assert guard.is_valid and guard.token > ours.token
    assert guard.wait("full", timeout=0.01) is False
    guard.release()


def test_a_condition_was_notified_and_the_lock_is_still_held(
    client: Any, local: towpath.Client, mute: Mute, threads: ThreadPoolExecutor
) -> None:
    guard = client.lock("mute.lock").acquire()
    notified = threads.submit(guard.wait, "full")
    ours = local.lock("mute.lock").acquire(DEADLINE_S)
    assert ours.notify("full") == 1
    mute.daemon.kill_core()
    ours.release()
    assert notified.result(DEADLINE_S) is True
    guard.release()
