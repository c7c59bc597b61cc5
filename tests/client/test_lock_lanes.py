"""Locks that are asked for in a lane: that it is so, and that all that locks do holds there as ever."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import towpath
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.locks.lane import LaneHold
from towpath.locks.model import Mode

PAIRS = """
import sys, towpath
client = towpath.connect(sys.argv[1])
one = client.semaphore(sys.argv[2], 1)
last = 0
while True:
    with one.acquire() as guard:
        assert guard.token > last
        last = guard.token
        print(type(guard._hold).__name__, flush=True)
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("lanes"), LOCAL_ONLY) as handle:
        yield handle


@pytest.fixture
def own_daemon(tmp_path: Path) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path, LOCAL_ONLY) as handle:
        yield handle


@pytest.fixture
def client(daemon: DaemonHandle) -> Iterator[Any]:
    with towpath.connect(str(daemon.socket)) as made:
        yield made


def in_lane(take: Callable[[], Any]) -> Any:
    """Take, and give back, until something was granted in the lane: its guard."""
    deadline = time.monotonic() + DEADLINE_S
    while not isinstance((guard := take())._hold, LaneHold):
        guard.release()
        assert time.monotonic() < deadline, "nothing was ever granted in the lane"
    return guard


def until(condition: Callable[[], bool], why: Callable[[], str]) -> None:
    """As ``wait_until``, without a pause in which the core would fall asleep."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, why()


class Heard:
    """What a client was told in its lane: so many grants, and so many times to ask elsewhere."""

    def __init__(self, client: Any) -> None:
        in_lane(client.semaphore("lane.heard", 1).acquire).release()
        self.grants = self.elsewhere = 0
        self._lane = client._locks._session.lane
        self._ask = self._lane._ask
        self._lane._ask = self._count
        self._lane._skips = 0

    def _count(self, *asked: Any) -> Any:
        told = self._ask(*asked)
        self.elsewhere += told is True
        self.grants += isinstance(told, tuple)
        self._lane._skips = self._lane._left_out = 0  # it is never passed by
        return told


def holders(client: Any, name: str) -> list[towpath.Grant]:
    return [grant for lock in client.list_locks(name).locks for grant in lock.holders]


def test_what_is_asked_again_and_again_goes_by_the_lane(client: Any) -> None:
    one, last = client.semaphore("lane.plain", 1), 0
    for _ in range(50):
        guard = in_lane(one.acquire)
        assert guard.token > last
        last = guard.token
        assert guard.is_valid
        guard.check()
        assert (guard.name, guard.mode, guard.fence) == (
            "lane.plain",
            Mode.PERMITS,
            ("lane.plain", last),
        )
        assert list(guard.grants) == holders(client, "lane.plain")
        guard.release()
        with pytest.raises(errors.NotHeld):
            guard.release()
        assert not guard.is_valid
        assert holders(client, "lane.plain") == []


@pytest.mark.parametrize(
    ("name", "make", "taken"),
    [
        ("weight", lambda client: client.semaphore("lane.way", 5), lambda lock: lock.acquire(3)),
        (
            "shared",
            lambda client: client.lock("lane.way", fast=False),
            lambda lock: lock.acquire(shared=True),
        ),
        ("asked", lambda client: client.lock("lane.way", fast=False), lambda lock: lock.acquire()),
        ("note", lambda client: client.lock("lane.way", note="why"), lambda lock: lock.acquire(5)),
        ("reentrant", lambda client: client.lock("lane.way", reentrant=True), lambda lock: lock.acquire()),
    ],
)
def test_every_way_of_taking_one_lock(client: Any, name: str, make: Any, taken: Any) -> None:
    lock = make(client)
    guard = in_lane(lambda: taken(lock))
    (grant,) = guard.grants
    (known,) = holders(client, "lane.way")
    assert (grant.token, grant.mode, grant.weight, grant.owner) == (
        known.token,
        known.mode,
        known.weight,
        known.owner,
    )
    guard.release()
    assert holders(client, "lane.way") == []


def test_what_was_taken_in_the_lane_is_used_as_ever(client: Any) -> None:
    lock = client.lock("lane.used", fast=False)
    guard = in_lane(lambda: lock.acquire(shared=True))
    guard.upgrade()
    assert guard.mode is Mode.EXCLUSIVE
    assert guard.notify() == 0
    assert not guard.wait(timeout=0.001)
    guard.downgrade()
    assert [grant.mode for grant in guard.grants] == [Mode.SHARED]
    guard.release()
    assert holders(client, "lane.used") == []


def test_what_is_not_free_is_told_by_the_socket(daemon: DaemonHandle, client: Any) -> None:
    with towpath.connect(str(daemon.socket)) as other:
        heard = Heard(client)
        one = client.semaphore("lane.held", 1)
        in_lane(one.acquire).release()
        with other.semaphore("lane.held", 1).acquire():

            def refused() -> bool:
                assert one.acquire_nowait() is None
                with pytest.raises(errors.LockHeld) as held:
                    one.acquire(timeout=0)
                assert held.value.blocker is not None
                with pytest.raises(errors.Timeout):
                    one.acquire(timeout=0.002)
                client.semaphore("lane.heard", 1).acquire().release()  # the daemon looks here
                return heard.elsewhere >= 5

            until(refused, lambda: f"told elsewhere {heard.elsewhere} times")
        one.acquire(timeout=DEADLINE_S).release()
    assert holders(client, "lane.held") == []


def test_who_waits_is_granted_in_turn(daemon: DaemonHandle, client: Any) -> None:
    """However it was asked; and it waits once."""
    with towpath.connect(str(daemon.socket)) as other, ThreadPoolExecutor(1) as threads:
        heard = Heard(client)
        one, theirs = client.semaphore("lane.turn", 1), other.semaphore("lane.turn", 1)
        for _ in range(300):
            guard = theirs.acquire()
            client.semaphore("lane.heard", 1).acquire().release()
            waits = threads.submit(one.acquire, timeout=DEADLINE_S)
            wait_until(
                lambda: sum(len(lock.waiters) for lock in client.list_locks("lane.turn").locks) == 1,
                lambda: "nobody waits",
            )
            guard.release()
            waits.result(DEADLINE_S).release()
            if heard.elsewhere:
                break
        assert heard.elsewhere


def hold_and_wait(client: Any) -> None:
    with client.semaphore("lane.a", 1).acquire():
        client.semaphore("lane.b", 1).acquire(timeout=DEADLINE_S).release()


def test_a_deadlock_is_found_once(own_daemon: DaemonHandle) -> None:
    with (
        towpath.connect(str(own_daemon.socket)) as one,
        towpath.connect(str(own_daemon.socket)) as two,
        ThreadPoolExecutor(1) as threads,
    ):
        heard, found = Heard(two), 0
        while heard.elsewhere < 2:
            theirs = two.semaphore("lane.b", 1).acquire()
            waits = threads.submit(hold_and_wait, one)
            wait_until(
                lambda: sum(len(lock.waiters) for lock in one.list_locks("lane.").locks) == 1,
                lambda: "nobody waits",
            )
            two.semaphore("lane.heard", 1).acquire().release()
            with pytest.raises(errors.Deadlock) as deadlock:
                two.semaphore("lane.a", 1).acquire(timeout=DEADLINE_S)
            assert len(deadlock.value.cycle) == 2
            found += 1
            theirs.release()
            waits.result(DEADLINE_S)
        assert one.status().counters["lock_deadlocks"] == found


def test_threads_have_one_lane_and_each_its_own_owner(client: Any) -> None:
    inside = most = 0
    mutex = threading.Lock()
    lanes = 0

    def work() -> None:
        nonlocal inside, most, lanes
        two = client.semaphore("lane.threads", 2)
        for _ in range(150):
            with two.acquire(timeout=DEADLINE_S) as guard:
                with mutex:
                    inside += 1
                    most = max(most, inside)
                    lanes += isinstance(guard._hold, LaneHold)
                with mutex:
                    inside -= 1

    in_lane(client.semaphore("lane.threads", 2).acquire).release()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert most <= 2
    assert holders(client, "lane.threads") == []


def test_a_handler_that_raises_leaves_nothing_held(daemon: DaemonHandle, client: Any) -> None:
    """At whatever moment of an acquire: what was asked is given up."""

    class Interrupted(Exception):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    def give_back(session: Any) -> None:
        for hold in session._holds.copy().values():  # the handler came when it had just been granted
            session.release(hold)

    def interrupted(one: Any, after_s: float) -> None:
        try:
            signal.setitimer(signal.ITIMER_REAL, after_s)
            one.acquire(timeout=DEADLINE_S)
            while True:  # it comes in a moment, if it has not come
                pass
        except Interrupted:
            pass

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(10):
            with towpath.connect(str(daemon.socket)) as other:
                one: Any = other.semaphore("lane.signals", 1)
                session = in_lane(one.acquire).session
                for turn in range(30):
                    give_back(session)
                    if other._protocol.said < 0:  # type: ignore[attr-defined]
                        break  # it came while something was sent: this client uses its lane no more
                    in_lane(one.acquire).release()
                    interrupted(one, 10e-6 + turn * 5e-6)
                give_back(session)
                wait_until(lambda: not holders(client, "lane.signals"), lambda: "nobody's will holds it")
                one.acquire(timeout=DEADLINE_S).release()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_forked_child_has_no_lane(client: Any) -> None:
    one = client.semaphore("lane.fork", 1)
    guard = in_lane(one.acquire)
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            with contextlib.suppress(errors.TowpathError):
                guard.release()
            try:
                one.acquire(timeout=0)
            except errors.ConnectionLost:
                status = 0
        os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    guard.check()
    assert len(holders(client, "lane.fork")) == 1
    guard.release()


def pairs(daemon: DaemonHandle, name: str) -> subprocess.Popen[str]:
    """A process that takes and gives back, as fast as it can; it does so in its lane when this returns."""
    process = subprocess.Popen(
        [sys.executable, "-c", PAIRS, str(daemon.socket), name], stdout=subprocess.PIPE, text=True
    )
    while line(process) != "LaneHold":
        assert process.poll() is None
    return process


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_who_is_killed_has_nothing(daemon: DaemonHandle, client: Any) -> None:
    """At whatever step of its pairs that is."""
    one, last = client.semaphore("lane.killed", 1), 0
    for count in range(12):
        process = pairs(daemon, "lane.killed")
        for _ in range(count * 7):
            line(process)
        process.kill()
        process.communicate()
        with one.acquire(timeout=DEADLINE_S) as guard:
            assert guard.token > last
            last = guard.token
    assert holders(client, "lane.killed") == []


def _grown(count: Callable[[], int], before: int, working: Future[None]) -> None:
    wait_until(lambda: count() > before + 20 or working.done(), lambda: f"{count()} grants in lanes")


def test_the_core_is_killed_in_the_midst(own_daemon: DaemonHandle) -> None:
    """What was held is held; what was given back in a lane that is gone is; no token comes twice."""
    stop = threading.Event()
    tokens: list[int] = []
    lanes = 0
    with towpath.connect(str(own_daemon.socket)) as client:

        def work() -> None:
            nonlocal lanes
            one = client.semaphore("lane.core", 1)
            while not stop.is_set():
                with one.acquire(timeout=DEADLINE_S) as guard:
                    tokens.append(guard.token)
                    lanes += isinstance(guard._hold, LaneHold)

        held = client.semaphore("lane.kept", 1).acquire()
        with ThreadPoolExecutor(1) as threads:
            working = threads.submit(work)
            try:
                for _ in range(5):
                    before = lanes
                    _grown(lambda: lanes, before, working)
                    own_daemon.kill_core()
            finally:
                stop.set()
            working.result(2 * DEADLINE_S)
        assert tokens == sorted(set(tokens))
        held.check()
        held.release()
        wait_until(lambda: holders(client, "lane.") == [], lambda: str(holders(client, "lane.")))


def test_a_broken_connection_takes_its_lane_along(daemon: DaemonHandle, client: Any) -> None:
    one = client.semaphore("lane.cut", 1)
    guard = in_lane(one.acquire)
    client._connection.sock.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: not guard.is_valid, lambda: "it is held still")
    with pytest.raises((errors.SessionLost, errors.LockRevoked)):
        guard.release()
    in_lane(lambda: one.acquire(timeout=DEADLINE_S)).release()  # in another
    wait_until(lambda: holders(client, "lane.cut") == [], lambda: "it is held")
