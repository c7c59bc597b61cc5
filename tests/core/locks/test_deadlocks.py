"""Deadlocks: found when they come about, with the whole circle; and no alarm where there is none.

The names of PostgreSQL's scenarios are those of its isolation tests (src/test/isolation/specs:
deadlock-simple, deadlock-hard, deadlock-soft, deadlock-soft-2, deadlock-parallel), rebuilt with the modes
that locks have here.
"""

from __future__ import annotations

import pytest

from tests.core.locks.rig import EXCLUSIVE, Rig, permits, shared
from towpath.errors import Deadlock, LockInUse
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks.commands import Policy, Victim


def ring(rig: Rig, count: int) -> tuple[list[int], list[int]]:
    """Let ``count`` sessions each hold a lock and all but the last wait for the next one's."""
    sessions = [rig.open(name=f"s{at}", pid=100 + at) for at in range(count)]
    held = [rig.acquire(session, f"l{at}") for at, session in enumerate(sessions)]
    for at, session in enumerate(sessions[:-1]):
        request = rig.acquire(session, f"l{at + 1}")
        assert rig.waits(session, request)
    return sessions, held


@pytest.mark.parametrize("count", [2, 3, 8, 100])
def test_a_hard_deadlock_is_found_by_the_request_that_closes_it(count: int) -> None:
    rig = Rig()
    sessions, _ = ring(rig, count)
    since_ns = rig.now_ns
    rig.acquire(sessions[-1], "l0")
    refused = rig.refused()
    assert isinstance(refused.error, Deadlock)
    assert refused.session == sessions[-1]
    assert len(rig.effects) == 1, "nobody else notices"
    cycle = refused.cycle
    assert [member.session for member in cycle] == [sessions[-1], *sessions[:-1]]
    assert [member.pid for member in cycle] == [99 + count, *range(100, 99 + count)]
    assert [member.waits_for for member in cycle] == [f"l{at}" for at in range(count)]
    assert [member.holds.lock for member in cycle] == [
        f"l{count - 1}",
        *(f"l{at}" for at in range(count - 1)),
    ]
    assert all(member.waits_mode == member.holds.mode == EXCLUSIVE for member in cycle)
    assert cycle[0].waits_since_ns == since_ns + 1
    assert "waits for l0" in refused.error.message


def test_the_victim_gives_up_and_the_others_go_on() -> None:
    rig = Rig()
    sessions, held = ring(rig, 2)
    rig.acquire(sessions[1], "l0")
    rig.release(sessions[1], held[1])
    assert [session for session, _ in rig.granted()] == [sessions[0]]


def test_an_owner_that_waits_for_itself() -> None:
    rig = Rig()
    session = rig.open()
    rig.acquire(session, "a")
    rig.acquire(session, "a")
    assert isinstance(rig.error(), Deadlock)
    rig.acquire(session, shared("b"))
    rig.acquire(session, "b")
    assert isinstance(rig.error(), Deadlock)


def test_two_who_upgrade() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    first, second = rig.acquire(one, shared("a")), rig.acquire(two, shared("a"))
    rig.upgrade(one, first)
    assert rig.waits(one, first)
    rig.upgrade(two, second)
    assert isinstance(rig.refused(two).error, Deadlock)
    rig.release(two, second)
    assert rig.granted() == [(one, first)]


def test_a_circle_through_readers() -> None:
    rig = Rig()
    one, two, three = (rig.open() for _ in range(3))
    for session in (one, two):
        rig.acquire(session, shared("a"))
    rig.acquire(three, "b")
    writing = rig.acquire(three, "a")
    assert rig.waits(three, writing)
    rig.acquire(two, "b")
    assert isinstance(rig.refused(two).error, Deadlock)


def test_a_circle_through_a_joint_request() -> None:
    rig = Rig()
    one, both = rig.open(), rig.open()
    rig.acquire(both, "x")
    rig.acquire(one, "b")
    joint = rig.acquire(both, "a", "b")
    assert rig.waits(both, joint)
    rig.acquire(one, "x")
    assert isinstance(rig.refused(one).error, Deadlock)


@pytest.mark.parametrize("count", [2, 50])
def test_converging_waits_are_no_deadlock(count: int) -> None:
    """Many wait for one who waits for nobody; and one waits for all."""
    rig = Rig()
    center = rig.open()
    rig.acquire(center, "center")
    for at in range(count):
        session = rig.open()
        rig.acquire(session, shared("all"))
        rig.acquire(session, f"own{at}")
        request = rig.acquire(session, "center")
        assert rig.waits(session, request)
    last = rig.open()
    assert rig.waits(last, rig.acquire(last, "all"))


def test_postgresql_deadlock_simple() -> None:
    """Two sessions with the same shared lock ask for it exclusively."""
    rig = Rig()
    one, two = rig.open(), rig.open()
    first = rig.acquire(one, shared("a1"))
    second = rig.acquire(two, shared("a1"))
    rig.upgrade(one, first)
    rig.upgrade(two, second)
    assert isinstance(rig.refused(two).error, Deadlock)


def test_postgresql_deadlock_soft() -> None:
    """d1 has a1, d2 has a2 (shared); e1 waits to write a1, e2 to write a2; d1 asks to read a2 behind e2, d2
    to read a1 behind e1. Nobody need be refused: d1, or d2, is let by."""
    rig = Rig()
    d1, d2, e1, e2 = (rig.open() for _ in range(4))
    d1a1 = rig.acquire(d1, shared("a1"))
    d2a2 = rig.acquire(d2, shared("a2"))
    e1a1, e2a2 = rig.acquire(e1, "a1"), rig.acquire(e2, "a2")
    d1a2 = rig.acquire(d1, shared("a2"))
    assert rig.waits(d1, d1a2), "no circle yet: e2 comes first"
    d2a1 = rig.acquire(d2, shared("a1"))
    assert rig.granted() in ([(d1, d1a2)], [(d2, d2a1)])
    granted = list(rig.granted())
    if granted == [(d1, d1a2)]:
        rig.release(d1, d1a1)
        assert rig.granted() == [(e1, e1a1)]
        rig.release(d1, d1a2)
    else:
        rig.release(d2, d2a2)
        assert rig.granted() == [(e2, e2a2)]
        rig.release(d2, d2a1)
    assert not [each for each in rig.effects if isinstance(each, e.Refused)]


def test_postgresql_deadlock_soft_2() -> None:
    """A circle of which one edge is soft: s1 reads behind s3, which waits to write what s1 and s2 have."""
    rig = Rig()
    s1, s2, s3, s4 = (rig.open() for _ in range(4))
    rig.acquire(s1, "a1")
    rig.acquire(s2, shared("a2"))
    rig.acquire(s4, shared("a2"))
    s3a2 = rig.acquire(s3, "a2")
    s2a1 = rig.acquire(s2, "a1")
    assert rig.waits(s2, s2a1)
    s1a2 = rig.acquire(s1, shared("a2"))
    assert rig.granted() == [(s1, s1a2)], "let by: s3 must wait for s2 anyway, which waits for s1"
    assert rig.machine.statistics().deadlocks == 0
    assert rig.machine.statistics().waits == 2
    assert s3a2


def test_a_reader_that_reads_again_behind_a_writer_is_let_by() -> None:
    rig = Rig()
    one, writer = rig.open(), rig.open()
    first = rig.acquire(one, shared("a"))
    write = rig.acquire(writer, "a")
    second = rig.acquire(one, shared("a"))
    assert rig.granted() == [(one, second)]
    rig.release(one, first)
    rig.release(one, second)
    assert rig.granted() == [(writer, write)]


def test_postgresql_deadlock_parallel() -> None:
    """Several circles through one request, closed at once: every one of them is broken."""
    rig = Rig()
    center, one, two, three = (rig.open() for _ in range(4))
    rig.acquire(center, "a")
    waiting = []
    for session in (one, two, three):
        rig.acquire(session, shared("b"))
        waiting.append(rig.acquire(session, "a", owner=0))
        assert rig.waits(session, waiting[-1])
    rig.acquire(center, "b")
    assert isinstance(rig.refused(center).error, Deadlock)
    rig.space("", Policy.DETECT)
    assert isinstance(rig.error(), LockInUse)


def test_several_victims_where_several_circles_are_closed() -> None:
    rig = Rig()
    rig.space("", Policy.DETECT, victim=Victim.YOUNGEST)
    center, one, two = (rig.open() for _ in range(3))
    rig.acquire(center, "a")
    held = [rig.acquire(session, shared("b")) for session in (one, two)]
    waiting = [rig.acquire(session, "a") for session in (one, two)]
    last = rig.acquire(center, "b")
    victims = [each for each in rig.effects if isinstance(each, e.Refused)]
    assert sorted((each.session, each.request) for each in victims) == sorted(
        zip((one, two), waiting, strict=True)
    )
    assert rig.waits(center, last)
    for session, request in zip((one, two), held, strict=True):
        rig.release(session, request)
    assert rig.granted() == [(center, last)]


@pytest.mark.parametrize(
    ("victim", "expected"),
    [(Victim.REQUESTER, 1), (Victim.YOUNGEST, 2), (Victim.FEWEST_LOCKS, 1), (Victim.LOWEST_PRIORITY, 0)],
)
def test_who_is_the_victim(victim: Victim, expected: int) -> None:
    """Three sessions; the second closes the circle."""
    rig = Rig()
    rig.space("", Policy.DETECT, victim=victim)
    sessions = [rig.open(priority=priority) for priority in (-1, 0, 5)]
    for at, session in enumerate(sessions):
        rig.acquire(session, f"l{at}")
    rig.acquire(sessions[0], "more")
    rig.acquire(sessions[2], "still.more")
    rig.acquire(sessions[2], "l0")
    rig.acquire(sessions[0], "l1")
    rig.acquire(sessions[1], "l2")
    refused = [each for each in rig.effects if isinstance(each, e.Refused)]
    assert [each.session for each in refused] == [sessions[expected]]
    assert refused[0].cycle[0].session == sessions[expected]
    assert len(refused[0].cycle) == 3


def test_a_circle_through_permits_need_not_be_a_deadlock() -> None:
    """One of two permits is with somebody who waits for nobody."""
    rig = Rig()
    one, two, free = (rig.open() for _ in range(3))
    rig.acquire(one, permits("s", 1, 2))
    other = rig.acquire(free, permits("s", 1))
    rig.acquire(two, "a")
    waiting = rig.acquire(two, permits("s", 1))
    assert rig.waits(two, waiting)
    circle = rig.acquire(one, "a")
    assert rig.waits(one, circle)
    rig.release(free, other)
    assert rig.granted() == [(two, waiting)]


def test_all_permits_with_those_who_wait_is_a_deadlock() -> None:
    rig = Rig()
    one, two, three = (rig.open() for _ in range(3))
    rig.acquire(one, permits("s", 1, 2))
    rig.acquire(three, permits("s", 1))
    rig.acquire(two, "a")
    rig.acquire(two, permits("s", 1))
    assert rig.waits(one, rig.acquire(one, "a"))
    rig.acquire(three, "a")
    refused = rig.refused()
    assert isinstance(refused.error, Deadlock)
    assert refused.session == three
    assert [member.session for member in refused.cycle] == [three, two]


def test_more_permits_than_the_others_can_give_back() -> None:
    rig = Rig()
    session = rig.open()
    rig.acquire(session, permits("s", 2, 3))
    rig.acquire(session, permits("s", 2))
    assert isinstance(rig.refused(session).error, Deadlock)


def test_timeout_only_looks_for_nothing() -> None:
    rig = Rig()
    rig.space("t", Policy.TIMEOUT_ONLY)
    one, two = rig.open(), rig.open()
    rig.acquire(one, "t.a", timeout_ms=50)
    rig.acquire(two, "t.b", timeout_ms=50)
    assert rig.waits(one, rig.acquire(one, "t.b", timeout_ms=50))
    second = rig.acquire(two, "t.a", timeout_ms=60)
    assert rig.waits(two, second)
    rig.at(55)
    assert rig.refused().session == one


def test_a_deadlock_where_a_condition_is_left() -> None:
    """Who is notified waits for the lock again, and may close a circle by that."""
    rig = Rig()
    one, two = rig.open(), rig.open()
    held = rig.acquire(one, "a")
    rig.acquire(one, "b")
    rig.do(c.WaitCondition(one, held, "go"))
    notifier = rig.acquire(two, "a")
    rig.do(c.NotifyCondition(two, notifier, "go"))
    rig.acquire(two, "b")
    assert isinstance(rig.refused(two).error, Deadlock)
