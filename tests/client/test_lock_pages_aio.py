"""Locks that tasks of an event loop take in shared memory."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

import towpath
import towpath.aio
from tests.client.test_lock_pages import is_out
from tests.support.daemon import DaemonHandle, running_daemon
from tests.support.deadlines import DEADLINE_S
from towpath import errors

OPEN = 1


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("aio"), "zeromq = false\ngrpc = false\n") as handle:
        yield handle


def connect(daemon: DaemonHandle) -> Any:
    return towpath.aio.connect(str(daemon.socket))


async def come_out(lock: Any) -> Any:
    """Use a lock until it is taken in the page; return its guard."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            guard = await lock.acquire()
            if hasattr(guard, "look") and guard.look()[0]:
                return guard
            guard.release()
            await asyncio.sleep(0.01)  # the daemon is asked again after a pause


def test_what_is_free_is_taken_without_the_daemon(daemon: DaemonHandle) -> None:
    """Which is stopped meanwhile."""

    async def use() -> list[int]:
        async with await connect(daemon) as client:
            lock = client.lock("aio.free")
            (await come_out(lock)).release()
            tokens = []
            os.kill(daemon.core_pid, signal.SIGSTOP)
            try:
                for _ in range(100):
                    async with lock as guard:
                        assert guard.is_valid and guard.name == "aio.free"
                        tokens.append(guard.token)
                        assert await lock.acquire_nowait() is None
                    assert not guard.is_valid
            finally:
                os.kill(daemon.core_pid, signal.SIGCONT)
            with pytest.raises(errors.NotHeld):
                guard.release()
            return tokens

    tokens = asyncio.run(use())
    assert tokens == sorted(set(tokens))


def test_who_waits_does_not_block_the_loop_and_nobody_is_inside_with_another(daemon: DaemonHandle) -> None:
    async def use() -> None:
        async with await connect(daemon) as client, await connect(daemon) as other:
            inside, tokens = 0, []

            async def pairs(lock: Any) -> None:
                nonlocal inside
                for _ in range(50):
                    async with lock as guard:
                        inside += 1
                        assert inside == 1
                        tokens.append(guard.token)
                        await asyncio.sleep(0)  # others run, and want it
                        inside -= 1

            locks = [each.lock("aio.contended") for each in (client, client, other, other)]
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.gather(*map(pairs, locks))
            assert tokens == sorted(set(tokens)) and len(tokens) == 200
            (await come_out(locks[0])).release()

    asyncio.run(use())


def test_threads_and_tasks_exclude_each_other(daemon: DaemonHandle) -> None:
    async def use() -> None:
        async with await connect(daemon) as client:
            guard = await come_out(client.lock("aio.both"))
            with towpath.connect(str(daemon.socket)) as threads:
                lock = threads.lock("aio.both")
                assert await asyncio.to_thread(lock.acquire_nowait) is None
                waits = asyncio.create_task(asyncio.to_thread(lock.acquire, DEADLINE_S))
                guard.release()
                theirs = await waits
                assert theirs.token > guard.token
                with pytest.raises((errors.Timeout, errors.LockHeld)):
                    await client.lock("aio.both").acquire(0.01)
                theirs.release()
                assert await asyncio.to_thread(is_out, lock)

    asyncio.run(use())


def test_thousands_of_tasks_are_few_members(daemon: DaemonHandle) -> None:
    """An owner's number is used again when its task has ended, but not while something is held by it."""

    async def use() -> tuple[int, list[int]]:
        async with await connect(daemon) as client:
            lock, kept = client.lock("aio.many"), client.lock("aio.kept")
            (await come_out(kept)).release()
            guard = await asyncio.create_task(come_out(kept))  # by a task that ends

            async def pair() -> None:
                (await lock.acquire()).release()

            for _ in range(1500):
                await asyncio.create_task(pair())
            held = await asyncio.create_task(come_out(lock))
            memory = held.page_context.memory
            members = sum(memory.member(number)[0] == OPEN for number in range(2, 1024))
            listed = (await client.list_locks("aio.kept")).locks + (await client.list_locks("aio.many")).locks
            owners = [grant.owner.number for info in listed for grant in info.holders]
            held.release()
            guard.release()
            return members, owners

    members, owners = asyncio.run(use())
    assert members < 20
    assert len(owners) == 2 and owners[0] != owners[1]


def test_a_circle_of_tasks_is_found(daemon: DaemonHandle) -> None:
    async def use() -> list[bool]:
        async with await connect(daemon) as client:
            met = asyncio.Barrier(2)

            async def cross(first: str, second: str) -> bool:
                guard = await come_out(client.lock(first))
                await met.wait()
                try:
                    (await client.lock(second).acquire(DEADLINE_S)).release()
                except errors.Deadlock:
                    return True
                finally:
                    guard.release()
                return False

            names = "aio.one", "aio.two"
            return list(await asyncio.gather(cross(*names), cross(*reversed(names))))

    assert sorted(asyncio.run(use())) == [False, True]


def test_what_only_the_daemon_does_works_on_what_was_taken_there(daemon: DaemonHandle) -> None:
    async def use() -> None:
        async with await connect(daemon) as client:
            lock = client.lock("aio.calls")
            guard = await come_out(lock)
            token = guard.token
            assert await guard.notify() == 0
            await guard.downgrade()
            async with await lock.acquire(DEADLINE_S, shared=True):
                assert guard.is_valid
            await guard.upgrade(DEADLINE_S)
            assert guard.token > token
            assert not await guard.wait(timeout=0.001)
            guard.release()

    asyncio.run(use())


def test_a_task_that_is_cancelled_has_asked_for_nothing(daemon: DaemonHandle) -> None:
    async def use() -> None:
        async with await connect(daemon) as client:
            lock = client.lock("aio.cancelled")
            guard = await come_out(lock)
            waits = asyncio.create_task(lock.acquire())
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    if (await client.list_locks("aio.cancelled")).locks[0].waiters:
                        break
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
            guard.release()
            (await come_out(lock)).release()

    asyncio.run(use())
