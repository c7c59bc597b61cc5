"""Locks that are taken in shared memory: that it is so, and that all else that locks do still holds."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import towpath
from tests.support.daemon import DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors

HOLDER = """
import sys, towpath
client = towpath.connect(sys.argv[1])
lock = client.lock(sys.argv[2])
while not hasattr(guard := lock.acquire(), "look") or not guard.look()[0]:
    guard.release()
print(guard.token, flush=True)
sys.stdin.readline()
guard.release()
print("released", flush=True)
sys.stdin.read()
"""
WAITER = """
import sys, towpath
client = towpath.connect(sys.argv[1])
lock = client.lock(sys.argv[2])
for _ in range(2):
    lock.acquire_nowait()
print("waits", flush=True)
with lock as guard:
    print(guard.token, flush=True)
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("pages"), "zeromq = false\ngrpc = false\n") as handle:
        yield handle


@pytest.fixture
def client(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    with towpath.connect(str(daemon.socket)) as made:
        yield made


def is_out(lock: Any) -> bool:
    """Use a lock until it is taken in the page, and say whether it came to that."""

    def taken() -> bool:
        guard = lock.acquire(timeout=DEADLINE_S)
        found = guard.look()[0] if hasattr(guard, "look") else False
        guard.release()
        return bool(found)

    wait_until(taken, lambda: f"{lock} was never taken in shared memory")
    return True


def spawn(program: str, daemon: DaemonHandle, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, str(daemon.socket), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def holder(daemon: DaemonHandle, name: str) -> tuple[subprocess.Popen[str], int]:
    """A process that holds a lock in the page; and its token."""
    process = spawn(HOLDER, daemon, name)
    return process, int(line(process))


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_a_lock_that_is_used_again_is_taken_in_shared_memory(client: towpath.Client) -> None:
    lock = client.lock("page.plain")
    assert is_out(lock)
    tokens = []
    for _ in range(100):
        with lock as guard:
            tokens.append(guard.token)
            assert guard.is_valid and guard.name == "page.plain"
            guard.check()
        assert not guard.is_valid
        with pytest.raises(errors.NotHeld):
            guard.release()
    assert tokens == sorted(set(tokens))
    with pytest.raises(errors.InvalidArgument):
        lock.acquire(-1)


def test_what_the_daemon_is_asked_is_always_answered_by_it(client: towpath.Client) -> None:
    """Without the fast path, or what only the daemon does: it takes the lock back for that."""
    lock = client.lock("page.mixed")
    slow = client.lock("page.mixed", fast=False)
    last = 0
    for _ in range(20):
        is_out(lock)
        ways: list[Callable[[], towpath.Guard]] = [lock.acquire, slow.acquire, lock.acquire]
        ways.append(lambda: client.acquire_all("page.mixed"))
        for acquire in ways:
            guard = acquire()
            assert guard.token > last
            last = guard.token
            guard.release()
        with lock.acquire(shared=True) as one, slow.acquire(shared=True) as two:
            assert two.token > one.token > last
            last = two.token


def test_who_holds_it_there_is_seen_and_excludes_others(daemon: DaemonHandle, client: towpath.Client) -> None:
    process, token = holder(daemon, "page.seen")
    (lock,) = client.list_locks("page.seen").locks
    (grant,) = lock.holders
    assert grant.token == token
    sessions = {each.id: each for each in client.list_locks("page.seen").sessions}
    assert sessions[grant.owner.session].pid == process.pid
    assert client.lock("page.seen").acquire_nowait() is None
    with pytest.raises(errors.Timeout):
        client.lock("page.seen", fast=False).acquire(0.01)
    assert process.stdin is not None
    print(file=process.stdin, flush=True)
    assert line(process) == "released"
    with client.lock("page.seen").acquire(DEADLINE_S) as guard:
        assert guard.token > token
    end(process)


@pytest.mark.parametrize("is_known", [True, False], ids=["waiters-in-the-page", "waiter-at-the-daemon"])
def test_a_killed_holder_has_nothing(daemon: DaemonHandle, is_known: bool) -> None:
    name = f"page.killed{is_known}"
    process, token = holder(daemon, name)
    others = [spawn(WAITER, daemon, name) for _ in range(3 if is_known else 1)]
    for other in others:
        assert line(other) == "waits"
    process.kill()
    tokens = sorted(int(line(other)) for other in others)
    assert tokens[0] > token and len(set(tokens)) == len(tokens)
    for other in (*others, process):
        end(other)


def test_a_killed_waiter_is_in_nobodys_way(daemon: DaemonHandle, client: towpath.Client) -> None:
    lock = client.lock("page.waiter")
    is_out(lock)
    guard = lock.acquire()
    dead, alive = spawn(WAITER, daemon, "page.waiter"), spawn(WAITER, daemon, "page.waiter")
    assert line(dead) == line(alive) == "waits"
    end(dead)
    guard.release()
    assert int(line(alive)) > guard.token
    end(alive)


def test_a_wait_there_ends_in_time(client: towpath.Client) -> None:
    lock = client.lock("page.timeout")
    is_out(lock)
    with ThreadPoolExecutor(1) as threads, lock:
        with pytest.raises(errors.Timeout):
            threads.submit(lock.acquire, 0.02).result(DEADLINE_S)
        assert threads.submit(lock.acquire_nowait).result(DEADLINE_S) is None
        with pytest.raises(errors.Deadlock):
            lock.acquire(DEADLINE_S)


def test_threads_and_processes_exclude_each_other(daemon: DaemonHandle, client: towpath.Client) -> None:
    lock = client.lock("page.threads")
    is_out(lock)
    inside = threading.Semaphore(1)
    tokens: list[int] = []

    def use() -> None:
        for _ in range(300):
            with lock as guard:
                assert inside.acquire(blocking=False)
                tokens.append(guard.token)
                inside.release()

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(use) for _ in range(4)]:
            done.result(DEADLINE_S)
    assert len(tokens) == 1200 and tokens == sorted(set(tokens))


def test_a_circle_through_the_page_is_found(client: towpath.Client, daemon: DaemonHandle) -> None:
    """Each has one of two locks by the page, and wants the other's."""
    names = ("page.one", "page.two")
    with towpath.connect(str(daemon.socket)) as other, ThreadPoolExecutor(2) as threads:
        meet = threading.Barrier(2)

        def cross(by: Any, first: str, second: str) -> tuple[str, ...]:
            one, two = by.lock(first), by.lock(second)
            is_out(one)
            with one as guard:
                assert guard.look()[0]
                meet.wait(DEADLINE_S)
                try:
                    two.acquire(DEADLINE_S).release()
                except errors.Deadlock as error:
                    return tuple(sorted(member.holds.lock for member in error.cycle))
            return ()

        crossing = [
            threads.submit(cross, client, *names),
            threads.submit(cross, other, *reversed(names)),
        ]
        assert sorted(each.result(DEADLINE_S) for each in crossing) == [(), names]


def test_an_operator_takes_it_and_the_holder_is_told(client: towpath.Client) -> None:
    told: list[errors.TowpathError] = []
    client.on_lock_lost(told.append)
    lock = client.lock("page.forced")
    is_out(lock)
    guard = lock.acquire()
    (taken,) = client.force_release("page.forced", reason="stuck")
    assert taken.token == guard.token
    wait_until(lambda: bool(told), lambda: "nobody was told")
    assert not guard.is_valid
    with pytest.raises(errors.LockRevoked, match="stuck"):
        guard.check()
    with pytest.raises(errors.LockRevoked):
        guard.release()
    lock.acquire(DEADLINE_S).release()


def test_what_is_written_on_its_behalf_is_judged_by_its_token(client: towpath.Client) -> None:
    client.declare("page.value", kind="state")
    lock = client.lock("page.fence")
    is_out(lock)
    with lock as guard:
        client.state("page.value").set(b"mine", fence=guard.fence)
    with pytest.raises(errors.Fenced):
        client.state("page.value").set(b"late", fence=guard.fence)
    with client.lock("page.fence", fast=False).acquire() as other:
        client.state("page.value").set(b"other", fence=other.fence)
        with pytest.raises(errors.Fenced):
            client.state("page.value").set(b"late", fence=guard.fence)
    client.undeclare("page.value")


def test_the_daemons_own_calls_work_on_what_was_taken_there(client: towpath.Client) -> None:
    lock = client.lock("page.calls")
    is_out(lock)
    with lock as guard:
        assert guard.notify() == 0
        assert guard.is_valid
    is_out(lock)
    guard = lock.acquire()
    token = guard.token
    guard.downgrade()
    with client.lock("page.calls").acquire(DEADLINE_S, shared=True):
        assert guard.is_valid
    guard.upgrade(DEADLINE_S)
    assert guard.token > token
    assert not guard.wait(timeout=0.001)
    guard.release()


def test_who_waits_for_a_condition_with_what_was_taken_there_waits(client: towpath.Client) -> None:
    """That the daemon finds who has it, as it takes the lock back, is no answer to what is asked."""
    lock = client.lock("page.condition")
    is_out(lock)
    with lock as guard:
        token = guard.token
        assert not guard.wait(timeout=0.05)
        assert guard.token > token
    is_out(lock)
    with ThreadPoolExecutor(1) as threads, lock as guard:

        def notify() -> int:
            with client.lock("page.condition").acquire(DEADLINE_S) as other:
                return int(other.notify())

        notifies = threads.submit(notify)
        assert guard.wait(timeout=DEADLINE_S)
        assert notifies.result(DEADLINE_S) == 1


def test_a_child_does_not_have_its_parents_page(client: towpath.Client) -> None:
    lock = client.lock("page.fork")
    is_out(lock)
    guard = lock.acquire()
    child = os.fork()
    if not child:
        code = 1
        try:
            lock.acquire(1)
        except errors.ConnectionLost:
            code = 0 if not guard.is_valid else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert guard.is_valid
    guard.release()


def test_a_core_that_is_killed_leaves_holders_and_waiters(tmp_path: Path) -> None:
    with (
        running_daemon(tmp_path, "zeromq = false\ngrpc = false\n") as daemon,
        towpath.connect(str(daemon.socket)) as client,
    ):
        lock = client.lock("page.core")
        is_out(lock)
        process, token = holder(daemon, "page.core")
        waiter = spawn(WAITER, daemon, "page.core")
        assert line(waiter) == "waits"
        daemon.kill_core()
        (listed,) = client.list_locks("page.core").locks
        assert [grant.token for grant in listed.holders] == [token]
        assert process.stdin is not None
        print(file=process.stdin, flush=True)
        assert line(process) == "released"
        assert int(line(waiter)) > token
        is_out(lock)
        end(process)
        end(waiter)


def test_tokens_grow_over_restarts_of_the_daemon(tmp_path: Path) -> None:
    last = 0
    for _ in range(2):
        with (
            running_daemon(tmp_path, "zeromq = false\ngrpc = false\n") as daemon,
            towpath.connect(str(daemon.socket)) as client,
        ):
            lock = client.lock("page.tokens")
            is_out(lock)
            with lock as guard:
                assert guard.token > last
                last = guard.token
