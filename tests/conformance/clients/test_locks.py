"""Locks, over each carrier and with both clients."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import pytest

import towpath
import towpath.aio
from tests.conformance.clients.carriers import SHELLS, Carrier
from tests.support.daemon import DaemonHandle, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.locks.model import Mode
from towpath.result import Err, Ok


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(8)
    yield executor
    executor.shutdown(wait=False)  # after a failure some may wait until their clients are closed


@pytest.fixture
def operator(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    """The daemon's own user, on its host."""
    with towpath.connect(str(daemon.socket)) as client:
        yield client


def waiting(client: Any, name: str) -> int:
    """How many wait for a lock."""
    locks, _ = client.list_locks(name)
    return sum(len(lock.waiters) for lock in locks if lock.name == name)


def wait_waiting(client: Any, name: str, count: int) -> None:
    wait_until(lambda: waiting(client, name) == count, lambda: f"{count} wait for {name}")


# ---- one lock ----------------------------------------------------------------------------------------------


def test_one_holds_it_and_the_next_gets_it_with_a_higher_token(
    connect: Callable[[], Any], name: str, threads: ThreadPoolExecutor
) -> None:
    one, two = connect(), connect()
    guard = one.lock(name).acquire()
    assert guard.is_valid and guard.mode is Mode.EXCLUSIVE and guard.name == name
    assert two.lock(name).acquire_nowait() is None
    with pytest.raises(errors.LockHeld):
        two.lock(name).acquire(0)
    with pytest.raises(errors.Timeout):
        two.lock(name).acquire(0.01)
    next_guard = threads.submit(two.lock(name).acquire)
    wait_waiting(one, name, 1)
    guard.release()
    got = next_guard.result(DEADLINE_S)
    assert got.token > guard.token
    assert not guard.is_valid
    with pytest.raises(errors.NotHeld):
        guard.release()
    got.release()


def test_who_came_first_is_first(connect: Callable[[], Any], name: str, threads: ThreadPoolExecutor) -> None:
    first = connect()
    guard = first.lock(name).acquire()
    others: list[Future[Any]] = []
    for count in range(1, 5):
        others.append(threads.submit(connect().lock(name).acquire))
        wait_waiting(first, name, count)
    guard.release()
    tokens = []
    for other in others:
        got = other.result(DEADLINE_S)
        tokens.append(got.token)
        got.release()
    assert tokens == sorted(tokens)


def test_readers_together_and_a_writer_is_not_passed_by(
    connect: Callable[[], Any], name: str, threads: ThreadPoolExecutor
) -> None:
    one, two, three = connect(), connect(), connect()
    first, second = one.lock(name).acquire(shared=True), two.lock(name).acquire(shared=True)
    writer = threads.submit(three.lock(name).acquire)
    wait_waiting(one, name, 1)
    assert one.lock(name).acquire_nowait(shared=True) is None  # it stands behind the writer
    first.release()
    second.release()
    writer.result(DEADLINE_S).release()


def test_up_and_down(connect: Callable[[], Any], name: str) -> None:
    one, two = connect(), connect()
    guard = one.lock(name).acquire(shared=True)
    other = two.lock(name).acquire(shared=True)
    with pytest.raises(errors.Timeout):
        guard.upgrade(0.01)
    assert guard.is_valid and guard.mode is Mode.SHARED
    other.release()
    before = guard.token
    guard.upgrade(DEADLINE_S)
    assert (guard.mode, guard.token > before) == (Mode.EXCLUSIVE, True)
    guard.downgrade()
    assert [grant.mode for grant in guard.grants] == [Mode.SHARED]
    two.lock(name).acquire(DEADLINE_S, shared=True).release()


def test_errors_as_values(client: Any, connect: Callable[[], Any], name: str) -> None:
    match client.lock(name).try_acquire():
        case Ok(guard):
            assert guard.is_valid
        case Err(error):
            raise error
    match connect().lock(name).try_acquire(0):
        case Err(errors.LockHeld()):
            pass
        case other:
            raise AssertionError(other)


@pytest.mark.parametrize("bad", ["", "a b", "a.*", "x" * 300])
def test_names_that_are_none(client: Any, bad: str) -> None:
    with pytest.raises(errors.InvalidName):
        client.lock(bad)


def test_timeouts_that_are_none(client: Any, name: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        client.lock(name).acquire(-1)
    assert not client.list_locks(name).locks


def test_all_at_one_moment_or_none(
    connect: Callable[[], Any], name: str, threads: ThreadPoolExecutor
) -> None:
    one, two = connect(), connect()
    held = one.lock(f"{name}.b").acquire()
    both = threads.submit(two.acquire_all, f"{name}.a", f"{name}.b")
    wait_waiting(one, f"{name}.b", 1)
    free = next(lock for lock in one.list_locks(name).locks if lock.name == f"{name}.a")
    assert not free.holders and len(free.waiters) == 1  # it has not been taken meanwhile
    held.release()
    guard = both.result(DEADLINE_S)
    assert [grant.lock for grant in guard.grants] == [f"{name}.a", f"{name}.b"]
    assert one.lock(f"{name}.a").acquire_nowait() is None
    guard.release()
    wait_until(lambda: not one.list_locks(name).locks)


def test_permits(connect: Callable[[], Any], name: str, threads: ThreadPoolExecutor) -> None:
    one, two = connect(), connect()
    guard = one.semaphore(name, 3).acquire(2)
    assert two.semaphore(name, 3).acquire_nowait(2) is None
    small = two.semaphore(name, 3).acquire(1)
    with pytest.raises(errors.LockConflict):
        two.semaphore(name, 4).acquire(1, 0)
    with pytest.raises(errors.LockConflict):
        two.lock(name).acquire(0)
    large = threads.submit(two.semaphore(name, 3).acquire, 3)
    wait_waiting(one, name, 1)
    small.release()
    assert one.semaphore(name, 3).acquire_nowait(1) is None  # who needs many is not passed by
    guard.release()
    large.result(DEADLINE_S).release()


def test_a_barrier(connect: Callable[[], Any], name: str, threads: ThreadPoolExecutor) -> None:
    waits = [threads.submit(connect().barrier(name, 3).wait) for _ in range(3)]
    assert sorted(wait.result(DEADLINE_S) for wait in waits) == [0, 1, 2]
    with pytest.raises(errors.Timeout):
        connect().barrier(name, 2).wait(0.01)


def test_a_condition(connect: Callable[[], Any], name: str, threads: ThreadPoolExecutor) -> None:
    one, two = connect(), connect()
    guard = one.lock(name).acquire()
    notified = threads.submit(guard.wait, "full")
    other = two.lock(name).acquire(DEADLINE_S)  # it was given up meanwhile
    assert other.notify("empty") == 0
    assert other.notify("full") == 1
    assert not notified.done()
    other.release()
    assert notified.result(DEADLINE_S) is True
    assert guard.is_valid and guard.token > other.token
    assert guard.wait("full", timeout=0.01) is False
    assert guard.is_valid
    guard.release()


def test_closing_a_client_releases_what_it_holds_at_once(
    connect: Callable[[], Any], operator: towpath.Client, name: str
) -> None:
    with connect() as other:
        other.lock(name).acquire()
    assert operator.lock(name).acquire(0).is_valid


def test_an_operator_takes_a_lock_away_and_the_holder_is_told(
    connect: Callable[[], Any], carrier: Carrier, operator: towpath.Client, name: str
) -> None:
    one, two = connect(), connect()
    guard = one.lock(name).acquire()
    told: list[towpath.TowpathError] = []
    heard = threading.Event()

    def lost(error: towpath.TowpathError) -> None:
        told.append(error)
        heard.set()

    one.on_lock_lost(lost)
    if carrier.deviates("no operators"):
        with pytest.raises(errors.PermissionDenied):
            two.force_release(name, reason="stuck since monday")
    taken = operator.force_release(name, reason="stuck since monday")
    assert [grant.token for grant in taken] == [guard.token]
    assert heard.wait(DEADLINE_S)
    assert not guard.is_valid and "stuck since monday" in str(told[0])
    with pytest.raises(errors.LockRevoked):
        guard.release()
    with pytest.raises(errors.LockRevoked):
        guard.check()
    assert two.lock(name).acquire(DEADLINE_S).is_valid
    with pytest.raises(errors.NotHeld):
        operator.force_release(f"{name}.other")


@pytest.mark.parametrize("durable", [False, True])
def test_what_is_written_by_who_has_lost_the_lock_is_refused(
    connect: Callable[[], Any], operator: towpath.Client, name: str, durable: bool
) -> None:
    one, two = connect(), connect()
    one.declare(name, kind="state", durable=durable)
    guard = one.lock(name).acquire()
    assert one.state(name).set(b"first", fence=guard.fence) == 1
    operator.force_release(name)
    newer = two.lock(name).acquire(DEADLINE_S)
    with pytest.raises(errors.Fenced):
        one.state(name).set(b"late", fence=guard.fence)
    with pytest.raises(errors.Fenced):
        one.state(name).delete(fence=guard.fence)
    assert two.state(name).set(b"second", fence=newer.fence) == 2
    newer.release()
    two.lock(name).acquire(DEADLINE_S).release()  # it comes after the release
    with pytest.raises(errors.Fenced):
        two.state(name).set(b"third", fence=newer.fence)
    value = one.state(name).get()
    assert (value.payload, value.version) == (b"second", 2)


@pytest.mark.parametrize("kind", ["queue", "topic"])
def test_what_is_published_by_who_has_lost_the_lock_is_refused(
    connect: Callable[[], Any], operator: towpath.Client, name: str, kind: Literal["queue", "topic"]
) -> None:
    one, two = connect(), connect()
    one.declare(name, kind=kind, durable=kind == "topic")
    ended = one.lock(name).acquire()
    first = one.channel(name).publish(b"first", fence=ended.fence, key=b"k")
    operator.force_release(name)
    with two.lock(name).acquire(DEADLINE_S) as guard:
        with pytest.raises(errors.Fenced):
            one.channel(name).publish(b"late", fence=ended.fence)
        assert two.channel(name).publish(b"second", fence=guard.fence) == first + 1
        with pytest.raises(errors.MessageTooLarge):
            two.channel(name).publish(bytes(1 << 20), fence=guard.fence)
    receiver = one.consume(name) if kind == "queue" else one.subscribe(name, start="all")
    taken = [receiver.receive(DEADLINE_S) for _ in range(2)]
    assert [(each.payload, each.headers.key) for each in taken] == [(b"first", b"k"), (b"second", b"")]
    receiver.close()


def test_a_fence_where_nobody_looks_at_it_is_refused(connect: Callable[[], Any], name: str) -> None:
    client = connect()
    client.declare(name)
    with client.lock(name).acquire() as guard, pytest.raises(errors.NotSupported):
        client.channel(name).publish(b"x", fence=guard.fence)


def test_a_transaction_of_who_has_lost_the_lock_does_nothing(
    connect: Callable[[], Any], operator: towpath.Client, name: str
) -> None:
    one = connect()
    one.declare(name, kind="queue", durable=True)
    guard = one.lock(name).acquire()
    for is_refused in (False, True):
        transaction = one.transaction()
        transaction.publish(name, b"job")
        transaction.fence(guard.fence)
        if not is_refused:
            transaction.commit()
            operator.force_release(name)
            continue
        with pytest.raises(errors.Fenced):
            transaction.commit()
    assert one.channel_info(name).contents.messages == 1


def test_what_was_released_is_free_for_what_is_asked_next(client: Any, name: str) -> None:
    """Not just for a moment, or by luck: also where calls travel side by side."""
    for _ in range(50):
        guard = client.lock(name).acquire(0)
        guard.release()


# ---- deadlocks and giving up -------------------------------------------------------------------------------


def crossed(url: str, a: str, b: str) -> tuple[errors.Deadlock, bool]:
    """Two clients take two locks crosswise: the error of one, and whether the other got both."""
    with towpath.connect(url) as one, towpath.connect(url) as two, ThreadPoolExecutor(1) as thread:
        first = one.lock(a).acquire()

        def crosswise() -> bool:
            with two.lock(b), two.lock(a):
                return True

        other = thread.submit(crosswise)
        wait_waiting(one, a, 1)
        with pytest.raises(errors.Deadlock) as caught:
            one.lock(b).acquire()
        first.release()
        return caught.value, other.result(DEADLINE_S)


async def async_crossed(url: str, a: str, b: str) -> tuple[errors.Deadlock, bool]:
    """The same with the asyncio client."""
    async with await towpath.aio.connect(url) as one, await towpath.aio.connect(url) as two:
        first = await one.lock(a).acquire()

        async def crosswise() -> bool:
            async with two.lock(b), two.lock(a):
                return True

        other = asyncio.create_task(crosswise())
        while not any(lock.waiters for lock in (await one.list_locks(a)).locks):
            pass
        with pytest.raises(errors.Deadlock) as caught:
            await one.lock(b).acquire()
        first.release()
        return caught.value, await other


@pytest.mark.parametrize("shell", SHELLS)
def test_who_would_close_a_circle_is_refused_and_told_all_of_it(
    shell: str, carrier: Carrier, urls: dict[str, str], name: str
) -> None:
    a, b = f"{name}.a", f"{name}.b"
    if shell == "sync":
        error, got_both = crossed(urls[carrier.name], a, b)
    else:
        waited = asyncio.wait_for(async_crossed(urls[carrier.name], a, b), DEADLINE_S)
        error, got_both = asyncio.run(waited)
    assert got_both
    assert [member.waits.lock for member in error.cycle] == [b, a]
    assert [member.holds.lock for member in error.cycle] == [a, b]
    assert len({member.session.id for member in error.cycle}) == 2


def test_two_that_upgrade_are_a_deadlock(
    connect: Callable[[], Any], name: str, threads: ThreadPoolExecutor
) -> None:
    one, two = connect(), connect()
    first, second = one.lock(name).acquire(shared=True), two.lock(name).acquire(shared=True)
    other = threads.submit(second.upgrade)
    wait_waiting(one, name, 1)
    with pytest.raises(errors.Deadlock):
        first.upgrade()
    assert first.is_valid
    first.release()
    other.result(DEADLINE_S)
    assert second.mode is Mode.EXCLUSIVE


async def cancelled(url: str, name: str) -> None:
    async with await towpath.aio.connect(url) as client:
        guard = await client.lock(name).acquire()
        task = asyncio.create_task(client.lock(name).acquire())
        while not (await client.list_locks(name)).locks[0].waiters:
            pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while (await client.list_locks(name)).locks[0].waiters:
            pass
        guard.release()
        assert (await client.lock(name).acquire(DEADLINE_S)).is_valid


def timed_out(url: str, name: str) -> None:
    with towpath.connect(url) as client, ThreadPoolExecutor(1) as thread:
        guard = client.lock(name).acquire()
        with pytest.raises(errors.Timeout):
            thread.submit(client.lock(name).acquire, 0.01).result(DEADLINE_S)
        assert not client.list_locks(name).locks[0].waiters
        guard.release()
        assert client.lock(name).acquire(DEADLINE_S).is_valid


@pytest.mark.parametrize("shell", SHELLS)
def test_who_gives_up_waits_no_more(shell: str, carrier: Carrier, urls: dict[str, str], name: str) -> None:
    if shell == "sync":
        timed_out(urls[carrier.name], name)
    else:
        asyncio.run(asyncio.wait_for(cancelled(urls[carrier.name], name), DEADLINE_S))


def reentered(url: str, name: str) -> bool:
    with towpath.connect(url) as client, ThreadPoolExecutor(1) as other:
        lock = client.lock(name, reentrant=True)
        with lock, lock:
            is_free = other.submit(lock.acquire_nowait).result(DEADLINE_S) is not None
        return not is_free and lock.acquire_nowait() is not None


async def async_reentered(url: str, name: str) -> bool:
    async with await towpath.aio.connect(url) as client:
        lock = client.lock(name, reentrant=True)
        async with lock, lock:
            is_free = await asyncio.create_task(lock.acquire_nowait()) is not None
        return not is_free and await lock.acquire_nowait() is not None


@pytest.mark.parametrize("shell", SHELLS)
def test_an_owner_may_take_its_own_lock_again_if_it_says_so(
    shell: str, carrier: Carrier, urls: dict[str, str], name: str
) -> None:
    """And it is free when it was released as often."""
    url = urls[carrier.name]
    assert reentered(url, name) if shell == "sync" else asyncio.run(async_reentered(url, name))


# ---- looking -----------------------------------------------------------------------------------------------


def test_who_has_what_from_where_and_who_waits_for_whom(
    connect: Callable[[], Any], carrier: Carrier, name: str, threads: ThreadPoolExecutor
) -> None:
    one, two = connect(), connect()
    guard = one.lock(name, note="the nightly run").acquire()
    second = threads.submit(two.lock(name).acquire)
    wait_waiting(one, name, 1)
    (lock,), sessions = one.list_locks(name)
    assert lock.holders[0].note == "the nightly run" and lock.holders[0].token == guard.token
    assert lock.waiters[0].reason == "held"
    assert len(sessions) == 2 and all(session.is_connected for session in sessions)
    for session in sessions:
        if carrier.deviates("leases"):
            assert session.principal == {"grpc": "grpc:anonymous", "zmq": "zeromq:anonymous"}[carrier.name]
            assert session.pid == 0 and "127.0.0.1:" in session.place
            assert session.lease_ms == 10_000
        else:
            assert (session.principal, session.pid) == (f"uid:{os.getuid()}", os.getpid())
            assert "python" in session.place and session.lease_ms == 0
    found = one.explain_locks(name)
    assert [(edge.lock, edge.is_soft) for edge in found.edges] == [(name, False)]
    waiter = found.edges[0].waiter.session
    assert one.explain_locks(session=waiter).edges == found.edges
    guard.release()
    second.result(DEADLINE_S).release()
    wait_until(lambda: not one.list_locks(name).locks)
    with pytest.raises(errors.NotHeld):
        one.explain_locks(name)
