"""Locks through the client library on the daemon's host: processes, their ends, the core's.

Not here: what locks are on every carrier (``tests/conformance/clients/test_locks.py``).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import towpath
import towpath.aio
from tests.support.daemon import LOCAL_ONLY, SERVE, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors

ROOT = Path(__file__).parents[2]
PATIENT = {"PYTHONPATH": str(ROOT), "TOWPATH_TEST_CORE": "tests.client.programs.patient_core"}
HOLDER = """
import sys, towpath
client = towpath.connect(sys.argv[1])
guard = client.lock(sys.argv[2]).acquire()
print(guard.token, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def own_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DaemonHandle]:
    """One whose core waits for those who had locks as long as a busy machine needs; and so do clients."""
    monkeypatch.setattr("towpath.locks.session.LOCAL_GRACE_S", DEADLINE_S)
    with running_daemon(tmp_path, LOCAL_ONLY, env=PATIENT) as handle:
        yield handle


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a name that is short enough for a socket."""
    directory = Path(tempfile.mkdtemp(prefix="towpath-test-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(8)
    yield executor
    executor.shutdown(wait=False)  # after a failure some may wait until their clients are closed


def waiting(client: Any, name: str) -> int:
    """How many wait for a lock."""
    locks, _ = client.list_locks(name)
    return sum(len(lock.waiters) for lock in locks if lock.name == name)


def wait_waiting(client: Any, name: str, count: int) -> None:
    wait_until(lambda: waiting(client, name) == count, lambda: f"{count} wait for {name}")


def holder(daemon: DaemonHandle, name: str) -> tuple[subprocess.Popen[str], int]:
    """A process that holds a lock; and its token."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(daemon.socket), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_tasks_of_one_program_are_owners_of_their_own(daemon: DaemonHandle, name: str) -> None:
    a, b = f"{name}.a", f"{name}.b"

    async def crossed(client: towpath.aio.AsyncClient, first: str, second: str, met: asyncio.Barrier) -> int:
        async with client.lock(first):
            await met.wait()
            try:
                async with client.lock(second):
                    return 0
            except errors.Deadlock:
                return 1

    async def both() -> list[int]:
        met = asyncio.Barrier(2)
        async with await towpath.aio.connect(str(daemon.socket)) as client:
            return list(await asyncio.gather(crossed(client, a, b, met), crossed(client, b, a, met)))

    assert sorted(asyncio.run(both())) == [0, 1]


# ---- ends --------------------------------------------------------------------------------------------------


def test_a_killed_holder_has_nothing_and_a_stopped_one_still_has_it(
    client: Any, daemon: DaemonHandle, name: str, threads: ThreadPoolExecutor
) -> None:
    process, token = holder(daemon, name)
    with process:
        process.send_signal(signal.SIGSTOP)
        assert client.lock(name).acquire_nowait() is None
        waiter = threads.submit(client.lock(name).acquire)
        wait_waiting(client, name, 1)
        process.kill()
        assert waiter.result(DEADLINE_S).token > token


def test_a_waiter_that_is_killed_is_in_nobodys_way(
    client: Any, daemon: DaemonHandle, name: str, threads: ThreadPoolExecutor
) -> None:
    guard = client.lock(name).acquire()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(daemon.socket), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        wait_waiting(client, name, 1)
        process.kill()
        wait_waiting(client, name, 0)
    guard.release()
    client.lock(name).acquire(DEADLINE_S).release()


def test_a_core_that_is_killed_takes_nobodys_lock_and_nobodys_place(
    own_daemon: DaemonHandle, threads: ThreadPoolExecutor
) -> None:
    with towpath.connect(str(own_daemon.socket)) as one, towpath.connect(str(own_daemon.socket)) as two:
        guard = one.lock("a").acquire()
        second = threads.submit(two.lock("a").acquire)
        wait_waiting(one, "a", 1)
        with towpath.connect(str(own_daemon.socket)) as three:
            third = threads.submit(three.lock("a").acquire)
            wait_waiting(one, "a", 2)
            own_daemon.kill_core()
            wait_until(lambda: one.is_connected and two.is_connected and three.is_connected)
            wait_waiting(one, "a", 2)
            assert guard.is_valid
            assert not second.done() and not third.done()
            guard.release()
            got = second.result(DEADLINE_S)
            assert got.token > guard.token
            assert not third.done()
            got.release()
            assert third.result(DEADLINE_S).token > got.token


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_daemon_that_is_started_anew_takes_nobodys_lock(
    tmp_path: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    monkeypatch.setattr("towpath.locks.session.LOCAL_GRACE_S", DEADLINE_S)
    (tmp_path / "towpath.toml").write_text(LOCAL_ONLY)
    command = [sys.executable, str(SERVE), "serve", "--config", str(tmp_path / "towpath.toml")]
    command += ["--runtime-dir", str(short_path), "--state-dir", str(tmp_path / "state")]
    url = str(short_path / "towpath.sock")

    def start(stack: ExitStack) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, env={**os.environ, **PATIENT})
        stack.callback(process.wait)
        stack.callback(process.terminate)
        wait_until(lambda: answers(url))
        return process

    with ExitStack() as stack:
        first = start(stack)
        one, two = (stack.enter_context(towpath.connect(url, timeout=DEADLINE_S)) for _ in range(2))
        guard = one.lock("a").acquire()
        waiting = stack.enter_context(ThreadPoolExecutor(1)).submit(two.lock("a").acquire)
        wait_waiting(one, "a", 1)
        first.send_signal(how)
        first.wait(DEADLINE_S)
        start(stack)
        wait_until(lambda: one.is_connected and two.is_connected)
        wait_waiting(one, "a", 1)
        assert guard.is_valid and not waiting.done()
        guard.release()
        assert waiting.result(DEADLINE_S).token > guard.token


def answers(url: str) -> bool:
    try:
        towpath.connect(url).close()
    except (errors.Unavailable, errors.ConnectionLost):
        return False
    return True


def test_what_is_released_while_the_core_is_away_is_free_when_it_is_back(own_daemon: DaemonHandle) -> None:
    with towpath.connect(str(own_daemon.socket)) as one, towpath.connect(str(own_daemon.socket)) as two:
        guards = [one.lock(f"a{number}").acquire() for number in range(20)]
        with own_daemon.without_core():
            wait_until(lambda: not one.is_connected)
            for guard in guards:
                guard.release()
        for number in range(20):
            assert two.lock(f"a{number}").acquire(DEADLINE_S).is_valid


def test_who_died_with_the_core_is_found_dead_by_the_next(own_daemon: DaemonHandle) -> None:
    process, token = holder(own_daemon, "a")
    with process, towpath.connect(str(own_daemon.socket)) as client:
        core = own_daemon.core_pid
        os.kill(core, signal.SIGSTOP)
        process.kill()
        process.wait()
        os.kill(core, signal.SIGKILL)
        assert client.lock("a").acquire(DEADLINE_S).token > token


def test_tokens_grow_over_restarts_of_the_daemon(tmp_path: Path) -> None:
    tokens = []
    for _ in range(3):
        with (
            running_daemon(tmp_path, "zeromq = false\ngrpc = false\n") as daemon,
            towpath.connect(str(daemon.socket)) as client,
        ):
            for _ in range(3):
                with client.lock("a") as guard:
                    tokens.append(guard.token)
    assert tokens == sorted(set(tokens))


def test_a_forked_child_has_no_locks(daemon: DaemonHandle, name: str) -> None:
    program = """
import os, sys, towpath
client = towpath.connect(sys.argv[1])
guard = client.lock(sys.argv[2]).acquire()
if os.fork() == 0:
    try:
        client.lock("other").acquire()
    except towpath.ConnectionLost:
        os._exit(7)
    os._exit(1)
_, status = os.wait()
assert os.waitstatus_to_exitcode(status) == 7
assert guard.is_valid
guard.release()
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(daemon.socket), name],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr


# ---- fences ------------------------------------------------------------------------------------------------


def test_a_stopped_holder_that_goes_on_writes_nothing(
    own_daemon: DaemonHandle, threads: ThreadPoolExecutor
) -> None:
    program = """
import sys, towpath
client = towpath.connect(sys.argv[1])
guard = client.lock("a").acquire()
print("held", flush=True)
sys.stdin.readline()
try:
    client.state("v").set(b"old", fence=guard.fence)
except towpath.Fenced:
    print("fenced", flush=True)
"""
    with towpath.connect(str(own_daemon.socket)) as client:
        client.declare("v", kind="state")
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(own_daemon.socket)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdin is not None and process.stdout is not None
            assert process.stdout.readline() == "held\n"
            process.send_signal(signal.SIGSTOP)
            client.force_release("a", reason="it does not answer")
            with client.lock("a") as guard:
                client.state("v").set(b"new", fence=guard.fence)
            process.stdin.write("go on\n")
            process.stdin.flush()
            process.send_signal(signal.SIGCONT)
            assert process.stdout.readline() == "fenced\n"
        value = client.state("v").get()
        assert value is not None and value.payload == b"new"


def test_what_may_have_been_lost_and_was_not_is_given_back(
    own_daemon: DaemonHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock that is released while the daemon is away for too long: nobody would give it back later."""
    monkeypatch.setattr("towpath.locks.session.LOCAL_GRACE_S", 0.0)
    with towpath.connect(str(own_daemon.socket)) as one, towpath.connect(str(own_daemon.socket)) as two:
        guard = one.lock("may.be.lost").acquire()
        with own_daemon.without_core():
            wait_until(lambda: not guard.is_valid)
            with pytest.raises(errors.SessionLost):
                guard.release()
        two.lock("may.be.lost").acquire(DEADLINE_S).release()


def test_a_grant_says_which_thread_has_it(daemon: DaemonHandle, threads: ThreadPoolExecutor) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        mine = client.lock("whose.mine", fast=False).acquire()
        other = threads.submit(client.lock("whose.other", fast=False).acquire).result(DEADLINE_S)
        numbers = [guard.grants[0].owner.number for guard in (mine, other)]
        assert len(set(numbers)) == 2
        assert all(map(mine.session.has_holds, numbers))
        other.release()
        assert [mine.session.has_holds(number) for number in numbers] == [True, False]
