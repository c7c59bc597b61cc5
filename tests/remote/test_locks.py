"""Locks from afar over connections that break, stop and come back, gateways and cores that are killed."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import towpath
from tests.remote.relay import Relay
from tests.support.daemon import DaemonHandle, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.locks import aio, blocking

_numbers = itertools.count(1)

GATEWAYS = {"grpc": "grpc", "zmq": "zeromq"}

HOLDER = """
import sys, towpath
url, name = sys.argv[1:]
client = towpath.connect(url)
client.set_lock_lease(1)
guard = client.lock(name).acquire()
print(guard.token, flush=True)
sys.stdin.readline()
try:
    client.state(name).set(b"old", fence=guard.fence)
    print("written", flush=True)
except towpath.Fenced:
    print("fenced", flush=True)
try:
    guard.check()
    print("held", flush=True)
except towpath.SessionLost:
    print("lost", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def name() -> str:
    """A lock of this test's own."""
    return f"remote.lock{next(_numbers)}"


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(8)
    yield executor
    executor.shutdown(wait=False)  # after a failure some may wait until their clients are closed


@pytest.fixture(params=["cut", "gateway killed", "core killed"])
def disturb(
    request: pytest.FixtureRequest, daemon: DaemonHandle, carrier: str, relay: Relay
) -> Callable[[], None]:
    """Breaks every connection of the test, in one way or another, and lets them be made again."""

    def cut() -> None:
        relay.cut()
        relay.mend()

    ways = {
        "cut": cut,
        "gateway killed": lambda: daemon.kill_gateway(GATEWAYS[carrier]),
        "core killed": daemon.kill_core,
    }
    return ways[request.param]


def lock_of(local: towpath.Client, name: str) -> Any:
    """What the daemon says of a lock; None: nobody uses it."""
    return next((lock for lock in local.list_locks(name).locks if lock.name == name), None)


def waiters(local: towpath.Client, name: str) -> list[int]:
    """The sessions that wait for a lock, in their order."""
    lock = lock_of(local, name)
    return [] if lock is None else [wait.owner.session for wait in lock.waiters]


def wait_waiting(local: towpath.Client, name: str, count: int) -> None:
    wait_until(lambda: len(waiters(local, name)) == count, lambda: f"{count} wait for {name}")


def wait_taken_up(local: towpath.Client, name: str) -> None:
    """Wait until all who have or want a lock are connected."""

    def are_connected() -> bool:
        locks, sessions = local.list_locks(name)
        return bool(locks) and all(session.is_connected for session in sessions)

    wait_until(are_connected)


# ---- connections that break --------------------------------------------------------------------------------


def test_a_holder_keeps_its_lock_and_a_waiter_its_place(
    connect: Any, local: towpath.Client, name: str, disturb: Callable[[], None], threads: ThreadPoolExecutor
) -> None:
    one, two, three = connect(), connect(), connect()
    for client in (one, two, three):
        client.set_lock_lease(60)
    guard = one.lock(name).acquire()
    second = threads.submit(two.lock(name).acquire)
    wait_waiting(local, name, 1)
    third = threads.submit(three.lock(name).acquire)
    wait_waiting(local, name, 2)
    before = waiters(local, name)
    for _ in range(2):
        disturb()
        wait_taken_up(local, name)
        assert waiters(local, name) == before
        assert lock_of(local, name).holders[0].token == guard.token
        wait_until(lambda: guard.is_valid)
    assert not second.done() and not third.done()
    assert local.lock(name).acquire_nowait() is None
    guard.release()
    got = second.result(DEADLINE_S)
    assert got.token > guard.token and not third.done()
    got.release()
    assert third.result(DEADLINE_S).token > got.token


def test_what_is_granted_or_released_while_nobody_can_be_heard(
    connect: Any, relay: Relay, local: towpath.Client, name: str, threads: ThreadPoolExecutor
) -> None:
    client = connect()
    client.set_lock_lease(60)
    held = client.lock(f"{name}.held").acquire()
    ours = local.lock(name).acquire()
    waiting = threads.submit(client.lock(name).acquire)
    wait_waiting(local, name, 1)
    relay.cut()
    wait_until(lambda: not client.is_connected)
    held.release()  # said to nobody
    ours.release()
    wait_until(lambda: not waiters(local, name))  # granted, and nobody can be told
    assert not waiting.done()
    relay.mend()
    assert waiting.result(DEADLINE_S).token > ours.token
    assert local.lock(f"{name}.held").acquire(DEADLINE_S).token > held.token


def test_who_gives_up_while_nobody_can_be_heard_is_in_nobodys_way(
    connect: Any,
    relay: Relay,
    local: towpath.Client,
    name: str,
    threads: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (blocking, aio):
        monkeypatch.setattr(module, "LATE_S", 0.1)
    client = connect()
    client.set_lock_lease(60)
    ours = local.lock(name).acquire()
    waiting = threads.submit(client.lock(name).acquire, 0.2)
    wait_waiting(local, name, 1)
    relay.cut()
    with pytest.raises(errors.Timeout):
        waiting.result(DEADLINE_S)
    relay.mend()
    ours.release()
    assert local.lock(name).acquire(DEADLINE_S).is_valid


def test_a_barrier_that_opened_and_a_notice_that_came_while_nobody_could_be_heard(
    connect: Any, relay: Relay, local: towpath.Client, name: str, threads: ThreadPoolExecutor
) -> None:
    client = connect()
    client.set_lock_lease(60)
    arrived = threads.submit(client.barrier(f"{name}.barrier", 2).wait)
    guard = client.lock(name).acquire()
    notified = threads.submit(guard.wait, "full")
    ours = local.lock(name).acquire(DEADLINE_S)
    session = guard.session
    wait_until(lambda: len([pending for pending in session._pending if pending.waits]) == 2)
    relay.cut()
    wait_until(lambda: not session.is_connected)
    assert local.barrier(f"{name}.barrier", 2).wait(DEADLINE_S) == 1
    assert ours.notify("full") == 1
    ours.release()
    wait_until(lambda: lock_of(local, name).holders[0].owner.session == session.id)
    relay.mend()
    assert arrived.result(DEADLINE_S) == 0
    assert notified.result(DEADLINE_S) is True
    assert guard.is_valid and guard.token > ours.token
    assert guard.wait("full", timeout=0.01) is False  # and not the answer of before
    guard.release()


def test_nothing_is_granted_twice_while_connections_break_again_and_again(
    connect: Any, relay: Relay, local: towpath.Client, name: str, threads: ThreadPoolExecutor
) -> None:
    """Four programs take turns; at each moment some call is on its way when the connection is cut."""
    clients = [connect() for _ in range(4)]
    is_over = threading.Event()
    inside: list[int] = []
    tokens: list[int] = []

    def work(client: Any) -> int:
        client.set_lock_lease(60)
        rounds = 0
        while not is_over.is_set():
            guard = client.lock(name).acquire()
            inside.append(guard.token)
            assert inside == [guard.token], "two hold it"
            tokens.append(guard.token)
            inside.remove(guard.token)
            guard.release()
            rounds += 1
        return rounds

    works = [threads.submit(work, client) for client in clients]
    for _ in range(12):
        before = len(tokens)
        wait_until(lambda before=before: len(tokens) > before + 3)  # type: ignore[misc]
        relay.cut()
        relay.mend()
    is_over.set()
    assert sum(work.result(DEADLINE_S) for work in works) == len(tokens)
    assert tokens == sorted(set(tokens))
    assert local.lock(name).acquire(DEADLINE_S).is_valid  # and nothing is left held by nobody


# ---- leases ------------------------------------------------------------------------------------------------


def test_a_holder_that_is_cut_off_knows_before_another_has_the_lock(
    connect: Any, relay: Relay, local: towpath.Client, name: str, threads: ThreadPoolExecutor
) -> None:
    client = connect()
    client.set_lock_lease(2)
    told: list[towpath.TowpathError] = []
    heard = threading.Event()

    def lost(error: towpath.TowpathError) -> None:
        told.append(error)
        heard.set()

    client.on_lock_lost(lost)
    guard = client.lock(name).acquire()
    session = guard.session

    def acquire() -> float:
        with local.lock(name):
            return time.clock_gettime(time.CLOCK_BOOTTIME)

    granted_at = threads.submit(acquire)
    wait_waiting(local, name, 1)
    relay.stop()  # no end of any connection tells
    assert heard.wait(DEADLINE_S)
    assert not guard.is_valid and isinstance(told[0], errors.SessionLost)
    with pytest.raises(errors.SessionLost):
        guard.check()
    with pytest.raises(errors.SessionLost):
        guard.release()
    lost_at = time.clock_gettime(time.CLOCK_BOOTTIME) + session.left_s
    assert granted_at.result(DEADLINE_S) - lost_at > 0.1  # a tenth of the lease is 0.2 s
    relay.cut()
    relay.mend()
    again = client.lock(name).acquire(DEADLINE_S)  # in a session of its own
    assert again.is_valid and again.session is not session


def test_a_session_that_is_there_does_not_run_out(
    connect: Any, local: towpath.Client, name: str, threads: ThreadPoolExecutor
) -> None:
    client = connect()
    client.set_lock_lease(1)
    guard = client.lock(name).acquire()
    with pytest.raises(errors.Timeout):
        local.lock(name).acquire(2.5)
    assert guard.is_valid
    guard.release()


def test_a_stopped_holder_loses_its_lock_and_what_it_writes_is_refused(
    carrier: str, relay: Relay, local: towpath.Client, name: str
) -> None:
    local.declare(name, kind="state")
    scheme = {"grpc": "grpc+unix", "zmq": "zmq+ipc"}[carrier]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, f"{scheme}://{relay.path}", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        token = int(process.stdout.readline())
        process.send_signal(signal.SIGSTOP)
        newer = local.lock(name).acquire(DEADLINE_S)
        assert newer.token > token
        local.state(name).set(b"new", fence=newer.fence)
        process.send_signal(signal.SIGCONT)
        print("go on", file=process.stdin, flush=True)
        assert process.stdout.readline() == "fenced\n"
        assert process.stdout.readline() == "lost\n"
    value = local.state(name).get()
    assert value is not None and value.payload == b"new"


def test_a_holder_that_is_killed_holds_it_for_its_lease_and_no_longer(
    carrier: str, relay: Relay, local: towpath.Client, name: str
) -> None:
    scheme = {"grpc": "grpc+unix", "zmq": "zmq+ipc"}[carrier]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, f"{scheme}://{relay.path}", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        token = int(process.stdout.readline())
        process.kill()
        assert local.lock(name).acquire_nowait() is None
        assert local.lock(name).acquire(DEADLINE_S).token > token


@pytest.mark.parametrize("seconds", [0.5, 4000, float("nan")])
def test_leases_that_are_none(connect: Any, seconds: float, local: towpath.Client) -> None:
    client = connect()
    with pytest.raises(errors.InvalidArgument):
        client.set_lock_lease(seconds)
    with pytest.raises(errors.NotSupported):
        local.set_lock_lease(5)


def test_a_lease_is_said_before_the_first_lock(connect: Any, name: str) -> None:
    client = connect()
    client.set_lock_lease(5)
    with client.lock(name).acquire() as guard:
        assert guard.session.lease_s == 5
        with pytest.raises(errors.InvalidArgument):
            client.set_lock_lease(6)


def test_what_was_granted_is_held(
    connect: Callable[..., Any], local: towpath.Client, name: str, threads: ThreadPoolExecutor
) -> None:
    """Also when the client has read the grant, and ends the call, before the gateway knows it written."""
    client = connect()
    names = {f"{name}.{number}" for number in range(400)}
    guards = list(threads.map(lambda each: client.lock(each).acquire(), sorted(names)))
    assert all(guard.is_valid for guard in guards)
    held = {lock.name for lock in local.list_locks(f"{name}.").locks if lock.holders}
    assert held == names
