"""Locks as one asks for them: modes, order, several at once, timeouts, reentrance, deaths."""

from __future__ import annotations

import pytest

from tests.core.locks.rig import Rig, permits, shared
from towpath.errors import (
    Cancelled,
    InvalidArgument,
    InvalidName,
    LimitExceeded,
    LockConflict,
    LockHeld,
    NotHeld,
    QuotaExceeded,
    SessionLost,
    Timeout,
)
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks.commands import EndReason, Wanted
from towpath_broker.core.locks.limits import LockLimits


def test_a_mutex_goes_round_in_order_of_arrival_with_rising_tokens() -> None:
    rig = Rig()
    sessions = [rig.open() for _ in range(4)]
    requests = [rig.acquire(sessions[0], "a")]
    tokens = [rig.token(sessions[0], requests[0])]
    for session in sessions[1:]:
        requests.append(rig.acquire(session, "a"))
        assert rig.effects == [e.Waiting(session, requests[-1])]
    for at in range(3):
        rig.release(sessions[at], requests[at])
        assert rig.granted() == [(sessions[at + 1], requests[at + 1])]
        tokens.append(rig.token(sessions[at + 1], requests[at + 1]))
    rig.release(sessions[3], requests[3])
    assert rig.granted() == []
    assert tokens == sorted(set(tokens))
    assert rig.machine.statistics().locks == 0


def test_readers_share_and_a_waiting_writer_is_not_passed() -> None:
    rig = Rig()
    one, two, writer, late = (rig.open() for _ in range(4))
    first = rig.acquire(one, shared("a"))
    second = rig.acquire(two, shared("a"))
    assert rig.granted() == [(two, second)]
    write = rig.acquire(writer, "a")
    assert rig.waits(writer, write)
    third = rig.acquire(late, shared("a"))
    assert rig.waits(late, third)
    rig.release(one, first)
    assert rig.granted() == []
    rig.release(two, second)
    assert rig.granted() == [(writer, write)]
    rig.release(writer, write)
    assert rig.granted() == [(late, third)]


def test_readers_behind_a_writer_come_in_together() -> None:
    rig = Rig()
    writer, one, two = (rig.open() for _ in range(3))
    write = rig.acquire(writer, "a")
    first, second = rig.acquire(one, shared("a")), rig.acquire(two, shared("a"))
    rig.release(writer, write)
    assert rig.granted() == [(one, first), (two, second)]


def test_a_semaphore_counts_permits_and_nobody_passes_one_who_needs_many() -> None:
    rig = Rig()
    one, many, few = (rig.open() for _ in range(3))
    first = rig.acquire(one, permits("a", 3, 5))
    heavy = rig.acquire(many, permits("a", 4))
    assert rig.waits(many, heavy)
    light = rig.acquire(few, permits("a", 1))
    assert rig.waits(few, light)
    rig.release(one, first)
    assert rig.granted() == [(many, heavy), (few, light)]


def test_what_a_name_is_used_as_it_stays_until_nobody_uses_it() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    held = rig.acquire(one, permits("a", 1, 2))
    rig.acquire(two, "a")
    assert isinstance(rig.error(), LockConflict)
    rig.acquire(two, permits("a", 1, 3))
    assert isinstance(rig.error(), LockConflict)
    rig.release(one, held)
    held = rig.acquire(two, "a")
    assert rig.granted() == [(two, held)]
    rig.acquire(one, permits("a", 1, 2))
    assert isinstance(rig.error(), LockConflict)


def test_several_locks_are_taken_at_one_moment_or_not_at_all() -> None:
    rig = Rig()
    one, two, both, late = (rig.open() for _ in range(4))
    first, second = rig.acquire(one, "a"), rig.acquire(two, "b")
    joint = rig.acquire(both, "a", "b", shared("c"))
    assert rig.waits(both, joint)
    rig.release(one, first)
    assert rig.granted() == []
    behind = rig.acquire(late, "a")
    assert rig.waits(late, behind), "a is free, but the joint request was first"
    rig.release(two, second)
    assert rig.granted() == [(both, joint)]
    (granted,) = (each for each in rig.effects if isinstance(each, e.Granted))
    assert [grant.lock for grant in granted.grants] == ["a", "b", "c"]
    rig.release(both, joint)
    assert rig.granted() == [(late, behind)]


def test_a_joint_request_that_leaves_lets_those_behind_it_in_everywhere() -> None:
    rig = Rig()
    holder, both, one, two = (rig.open() for _ in range(4))
    rig.acquire(holder, "c")
    joint = rig.acquire(both, "a", "b", "c")
    first, second = rig.acquire(one, "a"), rig.acquire(two, "b")
    assert rig.waits(two, second)
    rig.do(c.Cancel(both, joint))
    assert isinstance(rig.refused(both).error, Cancelled)
    assert rig.granted() == [(one, first), (two, second)]


def test_who_does_not_want_to_wait_is_told_who_is_in_the_way() -> None:
    rig = Rig()
    one, two = rig.open(name="first", pid=17), rig.open()
    held = rig.acquire(one, "a")
    token = rig.token(one, held)
    rig.acquire(two, "a", timeout_ms=0)
    refused = rig.refused()
    assert isinstance(refused.error, LockHeld)
    assert "first, pid 17" in refused.error.message
    assert refused.blocker is not None
    assert (refused.blocker[0], refused.blocker[1].token) == (one, token)
    assert rig.machine.statistics().waits == 0


def test_a_wait_ends_with_its_time_and_strands_nobody() -> None:
    rig = Rig()
    reader, writer, late = (rig.open() for _ in range(3))
    rig.acquire(reader, shared("a"))
    write = rig.acquire(writer, "a", timeout_ms=100)
    third = rig.acquire(late, shared("a"))
    deadline = rig.machine.next_deadline_ns()
    assert deadline is not None
    assert rig.at(99) == []
    rig.now_ns = deadline
    rig.do(c.Tick())
    assert isinstance(rig.refused(writer).error, Timeout)
    assert rig.refused(writer).request == write
    assert rig.granted() == [(late, third)]
    assert rig.machine.next_deadline_ns() is None


def test_a_death_releases_at_once_and_withdraws_what_waited() -> None:
    rig = Rig()
    dying, one, two = (rig.open() for _ in range(3))
    rig.acquire(dying, "a")
    rig.acquire(dying, "b")
    first = rig.acquire(one, "a")
    rig.acquire(dying, "c", owner=7)
    second = rig.acquire(two, "b")
    rig.end(dying, EndReason.SESSION_DIED)
    assert sorted(rig.granted()) == [(one, first), (two, second)]
    assert rig.effects[-1] == e.SessionEnded(dying, EndReason.SESSION_DIED)
    freed = [grant.lock for each in rig.effects if isinstance(each, e.Released) for grant in each.grants]
    assert sorted(freed) == ["a", "b", "c"]
    rig.acquire(dying, "d")
    assert isinstance(rig.error(), SessionLost)


def test_a_waiter_that_dies_is_not_granted() -> None:
    rig = Rig()
    one, dying, two = (rig.open() for _ in range(3))
    held = rig.acquire(one, "a")
    rig.acquire(dying, "a")
    last = rig.acquire(two, "a")
    rig.end(dying)
    rig.release(one, held)
    assert rig.granted() == [(two, last)]


def test_reentrance_counts_and_keeps_the_token() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    outer = rig.acquire(one, "a")
    token = rig.token(one, outer)
    inner = rig.acquire(one, "a", is_reentrant=True)
    assert rig.token(one, inner) == token
    reading = rig.acquire(one, shared("a"), is_reentrant=True)
    assert rig.token(one, reading) == token
    waiting = rig.acquire(two, "a")
    rig.release(one, outer)
    rig.release(one, reading)
    assert rig.granted() == []
    rig.release(one, inner)
    assert rig.granted() == [(two, waiting)]


def test_the_same_request_again_is_told_how_it_stands() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    held = rig.acquire(one, "a")
    granted = list(rig.effects)
    waiting = rig.acquire(two, "a")
    journaled = len(rig.journal)
    assert rig.do(c.Acquire(one, 0, held, (Wanted("a"),))) == granted
    assert rig.do(c.Acquire(two, 0, waiting, (Wanted("a"),))) == [e.Waiting(two, waiting)]
    assert len(rig.journal) == journaled
    rig.do(c.Cancel(one, held))
    assert rig.granted() == [(two, waiting)]


def test_an_owner_waits_for_one_thing_and_owners_of_a_session_for_each_other() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    held = rig.acquire(one, "a", owner=1)
    other = rig.acquire(one, "a", owner=2)
    assert rig.waits(one, other), "two threads of one program: no deadlock, but a wait"
    rig.acquire(two, "b")
    rig.acquire(one, "b", owner=2)
    assert isinstance(rig.error(), InvalidArgument)
    rig.release(one, held)
    assert rig.granted() == [(one, other)]


@pytest.mark.parametrize(
    ("wants", "error"),
    [
        ((), InvalidArgument),
        (("a", "a"), InvalidArgument),
        (("",), InvalidName),
        (("a b",), InvalidName),
        ((Wanted("a", 9),), InvalidArgument),
        ((permits("a"),), InvalidArgument),
        ((permits("a", 3, 2),), InvalidArgument),
        ((permits("a", 0, 2),), InvalidArgument),
        ((permits("a", 1, 1 << 40),), InvalidArgument),
        (tuple(f"n{number}" for number in range(65)), InvalidArgument),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_no_trace(
    wants: tuple[str | Wanted, ...], error: type[Exception]
) -> None:
    rig = Rig()
    session = rig.open()
    revision = rig.machine.revision
    rig.acquire(session, *wants)
    assert isinstance(rig.error(), error)
    assert rig.machine.revision == revision
    assert rig.machine.statistics().locks == 0


def test_what_is_not_held_is_not_released() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    rig.acquire(one, "a")
    waiting = rig.acquire(two, "a")
    for request in (waiting, 99):
        rig.release(two, request)
        assert isinstance(rig.error(), NotHeld)


def test_bounds() -> None:
    rig = Rig(
        LockLimits(sessions_max=3, sessions_per_principal_max=2, locks_max=2, waits_per_principal_max=1)
    )
    one, _ = rig.open("uid:1"), rig.open("uid:1")
    rig.do(c.OpenSession("uid:1", reference=9))
    assert isinstance(rig.error(), QuotaExceeded)
    two = rig.open("uid:2")
    rig.do(c.OpenSession("uid:3", reference=9))
    assert isinstance(rig.error(), LimitExceeded)
    rig.acquire(one, "a")
    rig.acquire(one, "b")
    rig.acquire(one, "c")
    assert isinstance(rig.error(), LimitExceeded)
    first = rig.acquire(two, "a")
    assert rig.waits(two, first)
    rig.acquire(two, "b", owner=1)
    assert isinstance(rig.error(), QuotaExceeded)


def test_a_principal_cannot_take_all_locks() -> None:
    rig = Rig(LockLimits(claims_per_principal_max=3, values_per_principal_max=1))
    one, two, other = rig.open("uid:1"), rig.open("uid:1"), rig.open("uid:2")
    both = rig.acquire(one, "a", "b")
    waiting = rig.acquire(two, "a")
    assert rig.waits(two, waiting)
    rig.acquire(one, "c", owner=5)
    assert isinstance(rig.error(), QuotaExceeded)
    held = rig.acquire(other, "c", is_guarded=True)
    assert rig.granted() == [(other, held)]
    rig.do(c.ForceRelease("uid:0", "b"))
    third = rig.acquire(one, "d", owner=5)
    assert rig.granted() == [(one, third)]
    rig.release(one, both)
    rig.do(c.Cancel(two, waiting))
    rig.release(one, third, value=b"1")
    fourth = rig.acquire(one, "e")
    rig.release(one, fourth, value=b"2")
    assert isinstance(rig.error(), QuotaExceeded)
    rig.release(one, fourth)
    rig.release(other, held, value=b"3")
    assert rig.machine.table.claims_by_principal == {}


def test_upgrade_waits_for_the_other_readers_and_comes_before_those_who_wait() -> None:
    rig = Rig()
    one, two, writer = (rig.open() for _ in range(3))
    first, second = rig.acquire(one, shared("a")), rig.acquire(two, shared("a"))
    before = rig.token(two, second)
    write = rig.acquire(writer, "a")
    rig.upgrade(two, second)
    assert rig.waits(two, second)
    rig.release(one, first)
    assert rig.granted() == [(two, second)]
    assert rig.token(two, second) > before
    rig.release(two, second)
    assert rig.granted() == [(writer, write)]


def test_an_upgrade_that_times_out_leaves_the_lock_shared() -> None:
    rig = Rig()
    one, two, three = (rig.open() for _ in range(3))
    rig.acquire(one, shared("a"))
    second = rig.acquire(two, shared("a"))
    rig.upgrade(two, second, timeout_ms=10)
    third = rig.acquire(three, shared("a"))
    assert rig.waits(three, third), "an upgrade is not passed"
    rig.at(11)
    assert isinstance(rig.refused(two).error, Timeout)
    assert rig.granted() == [(three, third)]
    assert isinstance(rig.release(two, second)[0], e.Released)


def test_downgrade_lets_readers_in_and_keeps_writers_out() -> None:
    rig = Rig()
    one, two, three = (rig.open() for _ in range(3))
    held = rig.acquire(one, "a")
    token = rig.token(one, held)
    reading, writing = rig.acquire(two, shared("a")), rig.acquire(three, "a")
    rig.do(c.Downgrade(one, held, 1))
    assert rig.granted() == [(two, reading)]
    rig.do(c.Downgrade(one, held, 1))
    assert isinstance(rig.error(), NotHeld)
    (released,) = (each for each in rig.release(one, held) if isinstance(each, e.Released))
    assert released.grants[0].token == token
    rig.release(two, reading)
    assert rig.granted() == [(three, writing)]
