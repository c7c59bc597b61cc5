"""Lock spaces and claims through the client library."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import towpath
import towpath.aio
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.cli.verbs import locks as verbs
from towpath.locks.model import Explanation, Owner
from towpath.locks.spaces import POLICIES, VICTIMS, LockSpace, Policy
from towpath.v1 import locks_pb2

Clients = Callable[[], towpath.Client]


@pytest.fixture
def clients(daemon: DaemonHandle) -> Iterator[Clients]:
    """Makes clients; each test's thread is one owner in each."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(towpath.connect(str(daemon.socket)))


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(8)
    yield executor
    executor.shutdown(wait=False)


def wait_waiting(client: towpath.Client, name: str, count: int = 1) -> None:
    def waiting() -> int:
        return sum(len(lock.waiters) for lock in client.list_locks(name).locks)

    wait_until(lambda: waiting() == count, lambda: f"{count} wait for {name}")


def test_the_words_are_those_of_the_wire_in_its_order() -> None:
    for words, enum, prefix in (
        (POLICIES, locks_pb2.LockPolicy, "LOCK_POLICY_"),
        (VICTIMS, locks_pb2.DeadlockVictim, "DEADLOCK_VICTIM_"),
    ):
        told = [name.removeprefix(prefix).lower().replace("_", "-") for name in enum.keys()[1:]]
        assert list(words) == told
    assert (verbs.POLICIES, verbs.VICTIMS) == (POLICIES, VICTIMS)


def test_spaces_are_declared_listed_and_removed(client: Any, name: str) -> None:
    client.declare_lock_space(name, policy="ordered", ranks={f"{name}.a": 1, f"{name}.b": 2})
    client.declare_lock_space(f"{name}.x", policy="banker", units={f"{name}.x.cpu": 4})
    mine = [space for space in client.lock_spaces() if space.name.startswith(name)]
    assert mine == [
        LockSpace(name, "ordered", ranks={f"{name}.a": 1, f"{name}.b": 2}),
        LockSpace(f"{name}.x", "banker", units={f"{name}.x.cpu": 4}),
    ]
    client.remove_lock_space(name)
    client.remove_lock_space(f"{name}.x")
    assert not [space for space in client.lock_spaces() if space.name.startswith(name)]
    with pytest.raises(errors.InvalidArgument):
        client.remove_lock_space(name)


def test_spaces_that_cannot_be(client: Any, name: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="no policy"):
        client.declare_lock_space(name, policy="luck")
    with pytest.raises(errors.InvalidArgument, match="no victim"):
        client.declare_lock_space(name, victim="nobody")
    with pytest.raises(errors.InvalidName):
        client.declare_lock_space("a b", policy="ordered")
    with pytest.raises(errors.InvalidArgument, match="resources"):
        client.declare_lock_space(name, policy="banker")
    with pytest.raises(errors.InvalidArgument):
        client.declare_lock_space(name, policy="ordered", ranks={f"{name}.a": -1})
    with client.lock(f"{name}.a").acquire(), pytest.raises(errors.LockInUse):
        client.declare_lock_space(name, policy="ordered")
    assert not [space for space in client.lock_spaces() if space.name == name]


def test_out_of_order_is_refused_with_both_locks_named(clients: Clients, name: str) -> None:
    client = clients()
    client.declare_lock_space(name, policy="ordered", ranks={f"{name}.first": 1, f"{name}.second": 2})
    with client.lock(f"{name}.second") as second:
        with pytest.raises(errors.LockOrder) as caught:
            client.lock(f"{name}.first").acquire()
        assert f"{name}.first" in str(caught.value) and f"{name}.second" in str(caught.value)
        assert caught.value.blocker.lock == f"{name}.second"
        assert caught.value.blocker.token == second.token
        with pytest.raises(errors.InvalidArgument, match="no rank"):
            client.lock(f"{name}.third").acquire()
    with client.lock(f"{name}.first"), client.lock(f"{name}.second"):
        pass


def test_by_name_level_by_level_where_there_are_no_ranks(clients: Clients, name: str) -> None:
    client = clients()
    client.declare_lock_space(name, policy="ordered")
    with client.lock(f"{name}.b"), pytest.raises(errors.LockOrder):
        client.lock(f"{name}.a.z").acquire()
    with client.lock(f"{name}.a"), client.lock(f"{name}.a.z"), client.lock(f"{name}.b"):
        pass


def crossed(
    clients: Clients, name: str, policy: Policy, threads: ThreadPoolExecutor
) -> tuple[towpath.Client, towpath.Client, towpath.Guard, towpath.Guard]:
    """An older and a younger client in a space; the older has ``a``, the younger ``b``."""
    older, younger = clients(), clients()
    older.declare_lock_space(name, policy=policy)
    first = older.lock(f"{name}.a").acquire()
    second = younger.lock(f"{name}.b").acquire()
    return older, younger, first, second


def test_wait_die(clients: Clients, name: str, threads: ThreadPoolExecutor) -> None:
    older, younger, first, second = crossed(clients, name, "wait-die", threads)
    with pytest.raises(errors.WaitRefused) as caught:
        younger.lock(f"{name}.a").acquire()
    assert caught.value.blocker.token == first.token
    waits = threads.submit(older.lock(f"{name}.b").acquire)
    wait_waiting(older, f"{name}.b")  # who is older waits
    second.release()
    waits.result(DEADLINE_S).release()


def test_wound_wait(clients: Clients, name: str, threads: ThreadPoolExecutor) -> None:
    older, younger, _, second = crossed(clients, name, "wound-wait", threads)
    told: Future[errors.TowpathError] = Future()
    younger.on_lock_wounded(told.set_result)
    assert not second.is_wounded
    waits = threads.submit(older.lock(f"{name}.b").acquire)
    assert f"{name}.b" in str(told.result(DEADLINE_S))
    assert second.is_wounded and second.is_valid
    with pytest.raises(errors.Wounded):
        younger.lock(f"{name}.c").acquire()
    second.release()
    waits.result(DEADLINE_S).release()
    younger.lock(f"{name}.c").acquire(DEADLINE_S).release()


def test_no_wait(clients: Clients, name: str, threads: ThreadPoolExecutor) -> None:
    _, younger, first, _ = crossed(clients, name, "no-wait", threads)
    with pytest.raises(errors.LockHeld) as caught:
        younger.lock(f"{name}.a").acquire()
    assert caught.value.blocker.token == first.token


def test_timeout_only(clients: Clients, name: str) -> None:
    one, other = clients(), clients()
    one.declare_lock_space(name, policy="timeout-only")
    with pytest.raises(errors.InvalidArgument, match="timeout"):
        one.lock(f"{name}.a").acquire()
    with one.lock(f"{name}.a").acquire(DEADLINE_S), pytest.raises(errors.Timeout):
        other.lock(f"{name}.a").acquire(0.01)


# ---- the banker --------------------------------------------------------------------------------------------

TOTAL = {"a": 10, "b": 5, "c": 7}
ALLOCATION = ((0, 1, 0), (2, 0, 0), (3, 0, 2), (2, 1, 1), (0, 0, 2))
MAXIMUM = ((7, 5, 3), (3, 2, 2), (9, 0, 2), (2, 2, 2), (4, 3, 3))


def shares(name: str, row: tuple[int, ...]) -> dict[str, int]:
    return {f"{name}.{letter}": units for letter, units in zip(TOTAL, row, strict=True) if units}


def take(client: towpath.Client, wanted: dict[str, int], timeout: float | None = 0) -> list[towpath.Guard]:
    return [client.semaphore(resource).acquire(units, timeout) for resource, units in wanted.items()]


def test_silberschatz_from_five_programs(clients: Clients, name: str, threads: ThreadPoolExecutor) -> None:
    """Operating System Concepts, "Banker's Algorithm": five processes, three resources."""
    processes = [clients() for _ in ALLOCATION]
    processes[0].declare_lock_space(
        name, policy="banker", units={f"{name}.{letter}": units for letter, units in TOTAL.items()}
    )
    for client, most in zip(processes, MAXIMUM, strict=True):
        client.claim(shares(name, most))
    held = [take(client, shares(name, has)) for client, has in zip(processes, ALLOCATION, strict=True)]
    with pytest.raises(errors.ClaimExceeded):
        processes[1].semaphore(f"{name}.a").acquire(9, 0)
    held[1] += take(processes[1], shares(name, (1, 0, 2)))  # granted: safe by <P1, P3, P4, P0, P2>
    with pytest.raises(errors.LockHeld):
        take(processes[4], shares(name, (3, 3, 0)))  # there are not as many
    with pytest.raises(errors.LockHeld):
        take(processes[0], shares(name, (0, 2, 0)))  # there are, but it would be unsafe
    waits = threads.submit(claimed_and_taken, processes[0], name, MAXIMUM[0])
    wait_waiting(processes[0], f"{name}.b")
    found = processes[0].explain_locks(f"{name}.b")
    remedy = checked_remedy(found, name)
    (helper,) = [
        number for number, client in enumerate(processes) if client._locks.session().id == remedy.session
    ]
    for guard in held[helper]:
        guard.release()
    for guard in waits.result(DEADLINE_S):
        guard.release()


def claimed_and_taken(client: towpath.Client, name: str, most: tuple[int, ...]) -> list[towpath.Guard]:
    """In a thread of its own, which is an owner of its own: it takes more than leaves a way out."""
    client.claim(shares(name, most))
    return take(client, {f"{name}.b": 2}, timeout=None)


def checked_remedy(found: Explanation, name: str) -> Owner:
    """Whom the banker lets wait, and in what order all could finish; returns who could make it safe."""
    (state,) = found.bankers
    assert state.space == name and state.total == tuple(TOTAL.values())
    assert len(state.safe_sequence) == len(state.processes) == 6
    free = list(state.available)
    rows = {process.owner: process for process in state.processes}
    for owner in state.safe_sequence:  # it is one, indeed
        process = rows[owner]
        need = [most - has for most, has in zip(process.maximum, process.allocation, strict=True)]
        assert all(units <= left for units, left in zip(need, free, strict=True))
        free = [left + has for left, has in zip(free, process.allocation, strict=True)]
    (refusal,) = state.refusals
    assert refusal.stuck
    return refusal.remedies[0]


def test_claims_of_tasks(daemon: DaemonHandle, name: str) -> None:
    async def lend() -> None:
        async with await towpath.aio.connect(str(daemon.socket)) as client:
            await client.declare_lock_space(name, policy="banker", units={f"{name}.cpu": 4})
            with pytest.raises(errors.ClaimExceeded):
                await client.semaphore(f"{name}.cpu").acquire(1, 0)
            await client.claim({f"{name}.cpu": 3})
            with pytest.raises(errors.ClaimExceeded):
                await client.claim({f"{name}.cpu": 5})
            async with await client.semaphore(f"{name}.cpu").acquire(3, 0):
                with pytest.raises(errors.InvalidArgument):
                    await client.claim({})
            await client.claim({})
            await client.remove_lock_space(name)

    asyncio.run(asyncio.wait_for(lend(), DEADLINE_S))


def test_bounds_are_the_operators_and_the_status_counts(tmp_path: Path) -> None:
    with (
        running_daemon(tmp_path, f"{LOCAL_ONLY}[lock_limits]\nspaces_max = 1\n") as own,
        towpath.connect(str(own.socket)) as client,
    ):
        client.declare_lock_space("a", policy="ordered")
        with pytest.raises(errors.LimitExceeded, match="spaces_max"):
            client.declare_lock_space("b", policy="ordered")
        with client.lock("a.b"):
            counters = client.status().counters
        assert (counters["lock_spaces"], counters["locks"], counters["lock_sessions"]) == (1, 1, 1)
