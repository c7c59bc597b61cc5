"""Latches, elections, and watching locks, through the client library, in both ways of waiting."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import towpath
import towpath.aio
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.locks import watching
from towpath.locks.watching import LockEvent, WatchedLocks
from towpath.v1 import locks_pb2

Connect = Callable[[], Any]

LEADS = """
import sys, towpath
guard = towpath.connect(sys.argv[1]).election(sys.argv[2]).campaign("the other program")
print(guard.token, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    executor = ThreadPoolExecutor(8)
    yield executor
    executor.shutdown(wait=False)


# ---- latches -----------------------------------------------------------------------------------------------


# ---- elections ---------------------------------------------------------------------------------------------


def test_who_leads_and_who_follows(
    connect: Connect, daemon: DaemonHandle, name: str, threads: ThreadPoolExecutor
) -> None:
    one, two = connect(), connect()
    assert one.election(name).leader() is None
    first = one.election(name).campaign("one at 10.0.0.5:80")
    leader = two.election(name).leader()
    assert (leader.term, leader.note, leader.session.pid) == (first.token, "one at 10.0.0.5:80", os.getpid())
    with pytest.raises(errors.LockHeld):
        two.election(name).campaign(timeout=0)
    second = threads.submit(two.election(name).campaign, "two")
    terms = iter(connect().election(name).watch())
    assert next(terms).term == first.token
    first.release()
    elected = second.result(DEADLINE_S)
    assert elected.token > first.token
    told = next(terms)
    told = next(terms) if told is None else told  # between the two there may have been nobody
    assert (told.term, told.note) == (elected.token, "two")
    elected.release()
    assert next(terms) is None
    with subprocess.Popen(
        [sys.executable, "-c", LEADS, str(daemon.socket), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as program:
        assert program.stdout is not None
        term = int(program.stdout.readline())
        assert next(terms).term == term
        program.kill()
        assert next(terms) is None  # who dies resigns
    terms.close()


def test_a_leader_of_old_writes_nothing(connect: Connect, name: str) -> None:
    one, two = connect(), connect()
    state = f"{name}.state"
    one.declare(state, kind="state")
    first = one.election(name).campaign()
    one.state(state).set(b"by the first", fence=first.fence)
    two.force_release(name)
    second = two.election(name).campaign(timeout=DEADLINE_S)
    two.state(state).set(b"by the second", fence=second.fence)
    with pytest.raises(errors.Fenced):
        one.state(state).set(b"too late", fence=first.fence)
    assert one.state(state).get().payload == b"by the second"


# ---- watches -----------------------------------------------------------------------------------------------


def test_a_watch_goes_on_when_the_core_is_back_and_says_so(tmp_path: Path) -> None:
    with running_daemon(tmp_path, LOCAL_ONLY) as own, towpath.connect(str(own.socket)) as client:
        watch = client.watch_locks()
        guard = client.lock("a").acquire()
        assert watch.receive(DEADLINE_S).kind == "granted"
        own.kill_core()
        assert watch.receive(DEADLINE_S).kind == "reset"
        event = watch.receive(DEADLINE_S)
        assert event.grant is not None
        assert (event.kind, event.grant.token) == ("held", guard.token)


def test_who_lets_too_many_wait_is_told_and_begins_anew(
    daemon: DaemonHandle, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "EVENTS_MAX", 4)
    with towpath.connect(str(daemon.socket)) as client:
        watch = client.watch_locks(name)
        guards = [client.lock(f"{name}.l{number}").acquire() for number in range(4)]
        wait_until(lambda: len(watch._heard._events) == 4)
        guards[0].release()
        guards[1].release()
        wait_until(lambda: watch._heard._left_out == 2)
        kinds = [watch.receive(DEADLINE_S).kind for _ in range(4)]
        assert kinds == ["granted"] * 4
        assert watch.receive(DEADLINE_S) == LockEvent("reset", missed=2)
        again = [watch.receive(DEADLINE_S) for _ in range(2)]
        assert [event.kind for event in again] == ["held"] * 2
        assert {event.grant.token for event in again if event.grant} == {each.token for each in guards[2:]}


def test_what_the_daemon_left_out_is_told() -> None:
    heard = WatchedLocks(lambda: None)
    heard.came(locks_pb2.WatchLocksResponse(missed=7))
    assert heard.take() == LockEvent("reset", missed=7)
    assert heard.take() is None


def test_watches_of_tasks_are_iterated(daemon: DaemonHandle, name: str) -> None:
    async def watched() -> list[str]:
        kinds: list[str] = []
        async with await towpath.aio.connect(str(daemon.socket)) as client:
            async with client.watch_locks(name) as watch:
                async with client.lock(name):
                    pass
                async for event in watch:
                    kinds.append(event.kind)
                    if event.kind == "released":
                        break
            async for leader in client.election(name).watch():
                kinds.append("nobody" if leader is None else "leader")
                break
        return kinds

    assert asyncio.run(asyncio.wait_for(watched(), DEADLINE_S))[-2:] == ["released", "nobody"]
