"""Locks that are held shared in shared memory: beside other readers, never beside who has them alone."""

from __future__ import annotations

import asyncio
import mmap
import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import towpath
import towpath.aio
from tests.client.test_lock_pages import end, line, spawn
from tests.support.daemon import DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import _ring, errors

LOCAL = "zeromq = false\ngrpc = false\n"
READER = """
import sys, towpath
client = towpath.connect(sys.argv[1])
lock = client.lock(sys.argv[2])
while not hasattr(guard := lock.acquire(shared=True), "look") or not guard.look()[0]:
    guard.release()
guard.release()
print("ready", flush=True)
sys.stdin.readline()
guard = lock.acquire(shared=True)
print(guard.token, guard.look()[0], flush=True)
sys.stdin.readline()
guard.release()
print("released", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("shared"), LOCAL) as handle:
        yield handle


@pytest.fixture
def client(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    with towpath.connect(str(daemon.socket)) as made:
        yield made


def read_in_page(lock: Any) -> Any:
    """Take a lock shared until that is in the page; return its guard."""
    found: list[Any] = []

    def taken() -> bool:
        guard = lock.acquire(DEADLINE_S, shared=True)
        if hasattr(guard, "look") and guard.look()[0]:
            found.append(guard)
            return True
        guard.release()
        return False

    wait_until(taken, lambda: f"{lock} was never read in shared memory")
    return found[0]


def tell(process: Any) -> str:
    """Have a reader go on; return what it says then."""
    print(file=process.stdin, flush=True)
    return line(process)


def readers(daemon: DaemonHandle, lock: Any, count: int) -> Iterator[tuple[Any, int]]:
    """Processes that read in the page, all at once, and their tokens."""
    processes = [spawn(READER, daemon, lock.name) for _ in range(count)]
    for process in processes:
        assert line(process) == "ready"
    read_in_page(lock).release()  # whoever came last had it taken back
    for process in processes:
        token, is_in_page = tell(process).split()
        assert is_in_page == "True"
        yield process, int(token)


def held_by(client: towpath.Client, name: str) -> list[tuple[int, str]]:
    """Token and mode of each that holds a lock."""
    return sorted(
        (grant.token, grant.mode.name) for info in client.list_locks(name).locks for grant in info.holders
    )


def test_it_is_taken_and_given_back_without_the_daemon(daemon: DaemonHandle, client: towpath.Client) -> None:
    """Which is stopped meanwhile; alone too, by turns."""
    lock = client.lock("shared.plain")
    read_in_page(lock).release()
    tokens = []
    os.kill(daemon.core_pid, signal.SIGSTOP)
    try:
        for turn in range(100):
            with lock.acquire(shared=True) as guard, lock.acquire(shared=True) as other:
                tokens += [guard.token, other.token]
                assert guard.is_valid and other.is_valid and guard.mode.name == "SHARED"
            assert not guard.is_valid and not other.is_valid
            with pytest.raises(errors.NotHeld):
                guard.release()
            if turn % 2:
                with lock as guard:
                    tokens.append(guard.token)
                    assert guard.mode.name == "EXCLUSIVE"
                    assert lock.acquire_nowait(shared=True) is None
    finally:
        os.kill(daemon.core_pid, signal.SIGCONT)
    assert tokens == sorted(set(tokens)) and len(tokens) == 250


def test_readers_of_many_processes_are_listed_and_keep_a_writer_out(
    daemon: DaemonHandle, client: towpath.Client
) -> None:
    lock = client.lock("shared.many")
    processes, tokens = zip(*readers(daemon, lock, 3), strict=True)
    assert held_by(client, "shared.many") == [(token, "SHARED") for token in sorted(tokens)]
    pids = {each.pid for each in client.list_locks("shared.many").sessions}
    assert pids >= {process.pid for process in processes}
    assert lock.acquire_nowait() is None
    with ThreadPoolExecutor(1) as threads:
        writes = threads.submit(lock.acquire, DEADLINE_S)
        wait_until(
            lambda: len(client.list_locks("shared.many").locks[0].waiters) == 1, lambda: "it does not wait"
        )
        assert lock.acquire_nowait(shared=True) is None  # behind who waits
        end(processes[0])  # by SIGKILL
        for process in processes[1:]:
            assert not writes.done()
            assert tell(process) == "released"
        guard = writes.result(DEADLINE_S)
    assert guard.token > max(tokens)
    guard.release()
    for process in processes[1:]:
        end(process)


def test_a_writer_is_not_passed_by_for_ever(client: towpath.Client, daemon: DaemonHandle) -> None:
    """While readers overlap all the time."""
    lock = client.lock("shared.fair")
    read_in_page(lock).release()
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            with lock.acquire(DEADLINE_S, shared=True):
                is_over.wait(0.001)  # the others read meanwhile, too

    with ThreadPoolExecutor(3) as threads:
        reading = [threads.submit(read) for _ in range(3)]
        try:
            with towpath.connect(str(daemon.socket)) as other:
                for _ in range(5):
                    other.lock("shared.fair").acquire(DEADLINE_S).release()
        finally:
            is_over.set()
        for each in reading:
            each.result(DEADLINE_S)


def test_who_reads_through_the_daemon_is_no_hindrance(client: towpath.Client) -> None:
    slow = client.lock("shared.core", fast=False).acquire(shared=True)
    lock = client.lock("shared.core")
    guard = read_in_page(lock)
    assert slow.is_valid and guard.token > slow.token
    with ThreadPoolExecutor(1) as threads:
        writes = threads.submit(lock.acquire, DEADLINE_S)
        wait_until(lambda: len(held_by(client, "shared.core")) == 2, lambda: "two have it")
        guard.release()
        assert not writes.done()
        slow.release()
        writes.result(DEADLINE_S).release()
    guard = read_in_page(lock)
    guard.release()
    with lock as alone:
        assert alone.token > guard.token


def test_the_daemons_own_calls_work_on_what_is_read_there(client: towpath.Client) -> None:
    lock = client.lock("shared.calls")
    guard = read_in_page(lock)
    token = guard.token
    guard.upgrade(DEADLINE_S)
    assert guard.token > token and guard.mode.name == "EXCLUSIVE"
    guard.downgrade()
    with client.lock("shared.calls").acquire(DEADLINE_S, shared=True):
        assert guard.is_valid
    guard.release()
    guard = read_in_page(lock)
    with pytest.raises(errors.Deadlock):
        lock.acquire(DEADLINE_S)  # while it reads itself
    assert guard.is_valid
    guard.release()


def test_an_operator_takes_it_from_one_reader(client: towpath.Client) -> None:
    lock = client.lock("shared.forced")
    kept, taken = read_in_page(lock), lock.acquire(shared=True)
    assert client.force_release("shared.forced", token=taken.token, reason="stuck")[0].token == taken.token
    wait_until(lambda: not taken.is_valid, lambda: "it was not told")
    with pytest.raises(errors.LockRevoked, match="stuck"):
        taken.release()
    assert kept.is_valid
    kept.release()
    lock.acquire(DEADLINE_S).release()


def test_what_is_written_on_a_readers_behalf_is_judged_by_its_token(client: towpath.Client) -> None:
    client.declare("shared.value", kind="state")
    lock = client.lock("shared.fence")
    one, two = read_in_page(lock), lock.acquire(shared=True)
    for guard in (two, one):
        client.state("shared.value").set(b"mine", fence=guard.fence)
    one.release()
    with pytest.raises(errors.Fenced):
        client.state("shared.value").set(b"late", fence=one.fence)
    client.state("shared.value").set(b"mine", fence=two.fence)
    two.release()
    client.undeclare("shared.value")


def test_a_child_does_not_have_what_its_parent_reads(client: towpath.Client) -> None:
    lock = client.lock("shared.fork")
    guard = read_in_page(lock)
    child = os.fork()
    if not child:
        code = 1
        try:
            lock.acquire(1, shared=True)
        except errors.ConnectionLost:
            code = 0 if not guard.is_valid else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert guard.is_valid
    guard.release()


def test_more_than_have_room_there_read_all_the_same(client: towpath.Client) -> None:
    lock = client.lock("shared.room")
    guards = [read_in_page(lock)]
    guards += [lock.acquire(DEADLINE_S, shared=True) for _ in range(_ring.LOCK_READERS + 3)]
    assert all(guard.is_valid for guard in guards)
    assert len({guard.token for guard in guards}) == len(guards)
    for guard in guards:
        guard.release()
    lock.acquire(DEADLINE_S).release()


def test_threads_and_processes_exclude_each_other(daemon: DaemonHandle, client: towpath.Client) -> None:
    with towpath.connect(str(daemon.socket)) as second:
        read_in_page(client.lock("shared.threads")).release()
        readers, writers, newest = [0], [0], [0]
        mutex = threading.Lock()

        def use(by: Any, is_writer: bool) -> None:
            lock, mine = by.lock("shared.threads"), writers if is_writer else readers
            for _ in range(150):
                with lock.acquire(DEADLINE_S, shared=not is_writer) as guard:
                    with mutex:
                        mine[0] += 1
                        assert not writers[0] or (writers[0] == 1 and not readers[0])
                        assert guard.token > newest[0]
                        newest[0] = guard.token if is_writer else newest[0]
                    with mutex:
                        mine[0] -= 1

        with ThreadPoolExecutor(4) as threads:
            ways = [(client, False), (second, False), (client, True), (second, True)]
            for done in [threads.submit(use, *way) for way in ways]:
                done.result(DEADLINE_S)


def test_a_core_that_is_killed_leaves_readers(tmp_path: Path) -> None:
    with (
        running_daemon(tmp_path, LOCAL) as daemon,
        towpath.connect(str(daemon.socket)) as client,
    ):
        lock = client.lock("shared.killed")
        ((process, token),) = readers(daemon, lock, 1)
        guard = read_in_page(lock)
        daemon.kill_core()
        expected = sorted([(token, "SHARED"), (guard.token, "SHARED")])
        assert held_by(client, "shared.killed") == expected
        assert guard.is_valid
        guard.release()
        end(process)
        client.lock("shared.killed").acquire(DEADLINE_S).release()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_scribbles_in_the_cells_harm_nobody_else(tmp_path: Path, seed: int) -> None:
    """A process of the uid writes nonsense where readers are: the core goes on, and the lock, too."""
    chance = random.Random(seed)
    with (
        running_daemon(tmp_path, LOCAL) as daemon,
        towpath.connect(str(daemon.socket)) as client,
    ):
        lock: Any = client.lock("shared.scribbled")
        guard = read_in_page(lock)
        guard.release()
        descriptor = lock.page.share()
        with mmap.mmap(descriptor, 0) as memory:
            for _ in range(20):
                read_in_page(lock).release()
                start = (
                    len(memory) - 2048 * _ring.LOCK_READERS * 16 + guard.page_slot * _ring.LOCK_READERS * 16
                )
                for cell in range(_ring.LOCK_READERS):
                    value = chance.choice([0, 1, 2 | 1 << 12, chance.getrandbits(16), chance.getrandbits(64)])
                    memory[start + 16 * cell : start + 16 * cell + 8] = value.to_bytes(8, "little")
                for each in client.list_locks("shared.scribbled").locks:
                    for grant in each.holders:
                        client.force_release("shared.scribbled", token=grant.token)
                client.lock("shared.scribbled", fast=False).acquire(DEADLINE_S).release()
        os.close(descriptor)
        with client.lock("shared.other").acquire(DEADLINE_S):
            pass


def test_tasks_read_there_too(daemon: DaemonHandle) -> None:
    async def use() -> None:
        async with await towpath.aio.connect(str(daemon.socket)) as client:
            lock: Any = client.lock("shared.tasks")
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    first = await lock.acquire(shared=True)
                    if hasattr(first, "look") and first.look()[0]:
                        break
                    first.release()
                    await asyncio.sleep(0.01)  # the daemon is asked again after a pause

            async def read() -> int:
                async with await lock.acquire(shared=True) as guard:
                    assert guard.look()[0] and guard.mode.name == "SHARED"
                    await asyncio.sleep(0)
                    return int(guard.token)

            tokens = await asyncio.gather(*(read() for _ in range(20)))
            assert len({*tokens, first.token}) == 21
            writes = asyncio.create_task(lock.acquire(DEADLINE_S))
            await asyncio.sleep(0)
            assert not writes.done()
            first.release()
            guard = await writes
            assert guard.token > max(tokens)
            guard.release()

    asyncio.run(use())
