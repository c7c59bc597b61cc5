"""Conditions, barriers, latches, values that locks own, and operators."""

from __future__ import annotations

import pytest

from tests.core.locks.rig import Rig, shared
from towpath.errors import (
    BarrierBroken,
    Cancelled,
    InvalidArgument,
    LockConflict,
    LockHeld,
    MessageTooLarge,
    NotHeld,
    Poisoned,
    Timeout,
    TowpathError,
)
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks.commands import EndReason, Policy
from towpath_broker.core.locks.limits import LockLimits

# ---- conditions --------------------------------------------------------------------------------------------


def test_a_waiter_gives_up_the_lock_and_has_it_again_after_the_notifier() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    held = rig.acquire(one, "a")
    before = rig.token(one, held)
    rig.do(c.WaitCondition(one, held, "full"))
    assert [type(each) for each in rig.effects] == [e.Released, e.Waiting]
    other = rig.acquire(two, "a")
    assert rig.granted() == [(two, other)]
    rig.do(c.NotifyCondition(two, other, "empty", reference=1))
    assert rig.effects == [e.Done(1, 0)]
    rig.do(c.NotifyCondition(two, other, "full", reference=2))
    assert rig.effects == [e.Done(2, 1)]
    rig.release(two, other)
    assert rig.granted() == [(one, held)]
    assert rig.token(one, held) > before
    assert not any(each.is_timed_out for each in rig.effects if isinstance(each, e.Granted))


def test_notified_in_order_one_or_all() -> None:
    rig = Rig()
    waiters = [rig.open() for _ in range(4)]
    requests = []
    for session in waiters:
        requests.append(rig.acquire(session, "a"))
        rig.do(c.WaitCondition(session, requests[-1]))
    boss = rig.open()
    held = rig.acquire(boss, "a")
    rig.do(c.NotifyCondition(boss, held, count=1))
    rig.do(c.NotifyCondition(boss, held, count=0, reference=1))
    assert rig.effects == [e.Done(1, 3)]
    rig.release(boss, held)
    for session, request in zip(waiters, requests, strict=True):
        assert rig.granted() == [(session, request)]
        rig.release(session, request)


def test_nobody_notified_in_time() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    held = rig.acquire(one, "a")
    rig.do(c.WaitCondition(one, held, timeout_ms=10))
    other = rig.acquire(two, "a")
    rig.at(11)
    assert rig.granted() == [], "its time is over, but two has the lock"
    rig.release(two, other)
    assert rig.granted() == [(one, held)]
    (granted,) = (each for each in rig.effects if isinstance(each, e.Granted))
    assert granted.is_timed_out


def test_one_that_waits_for_a_condition_dies_or_does_not_want_to_any_more() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    for session in (one, two):
        request = rig.acquire(session, "a")
        rig.do(c.WaitCondition(session, request))
    rig.end(one)
    assert isinstance(rig.refused(one).error, Cancelled)
    rig.do(c.Cancel(two, request))
    assert rig.granted() == [(two, request)], "the lock comes back first"
    rig.release(two, request)
    assert rig.machine.statistics().locks == 0


@pytest.mark.parametrize("policy", [Policy.NO_WAIT, Policy.WAIT_DIE, Policy.WOUND_WAIT, Policy.ORDERED])
def test_who_comes_back_waits_whatever_the_lock_space_says(policy: Policy) -> None:
    rig = Rig()
    rig.space("", policy)
    old, young = rig.open(), rig.open()
    held = rig.acquire(young, "a")
    for _ in range(3):
        rig.do(c.WaitCondition(young, held))
        notifier = rig.acquire(old, "a")
        rig.do(c.NotifyCondition(old, notifier, reference=1))
        assert rig.effects == [e.Done(1, 1)]
        rig.release(old, notifier)
        assert rig.granted() == [(young, held)]
    assert rig.machine.table.claims_by_principal == {"uid:1": 1}
    rig.release(young, held)
    assert rig.machine.table.claims_by_principal == {}


def test_conditions_are_for_exclusive_holders() -> None:
    rig = Rig()
    session = rig.open()
    held = rig.acquire(session, shared("a"))
    rig.do(c.WaitCondition(session, held))
    assert isinstance(rig.error(), NotHeld)
    rig.do(c.NotifyCondition(session, held, reference=1))
    assert isinstance(rig.error(), NotHeld)
    rig.do(c.WaitCondition(session, 99))
    assert isinstance(rig.error(), NotHeld)


# ---- barriers ----------------------------------------------------------------------------------------------


def arrive(rig: Rig, session: int, request: int, parties: int = 3, timeout_ms: int = -1, **how: bool) -> None:
    rig.do(c.ArriveBarrier(session, 0, request, "gate", parties, timeout_ms, **how))


def opened(rig: Rig) -> list[tuple[int, int]]:
    """Return who was let through by the last command, with its index."""
    return [(each.session, each.index) for each in rig.effects if isinstance(each, e.BarrierOpened)]


def test_a_barrier_opens_for_all_and_is_as_new() -> None:
    rig = Rig()
    sessions = [rig.open() for _ in range(3)]
    for number in (1, 2):
        for session in sessions[:2]:
            arrive(rig, session, number)
            assert rig.effects == [e.Waiting(session, number)]
        arrive(rig, sessions[2], number)
        assert sorted(opened(rig)) == [(session, at) for at, session in enumerate(sessions)]
    assert rig.machine.statistics().barriers == 0


def test_one_that_leaves_breaks_a_barrier() -> None:
    rig = Rig()
    sessions = [rig.open() for _ in range(3)]
    arrive(rig, sessions[0], 1)
    arrive(rig, sessions[1], 1, timeout_ms=10)
    rig.at(11)
    assert isinstance(rig.refused(sessions[1]).error, Timeout)
    assert isinstance(rig.refused(sessions[0]).error, BarrierBroken)
    arrive(rig, sessions[0], 2)
    arrive(rig, sessions[1], 2)
    rig.end(sessions[0])
    assert isinstance(rig.refused(sessions[1]).error, BarrierBroken)
    assert rig.machine.statistics().waits == 0


def test_a_latch_opens_once_and_counts_those_who_do_not_wait() -> None:
    rig = Rig()
    one, two, watcher = (rig.open() for _ in range(3))
    arrive(rig, watcher, 1, 2, is_latch=True, is_observer=True)
    assert rig.effects == [e.Waiting(watcher, 1)]
    arrive(rig, one, 1, 2, is_latch=True, is_passing=True)
    assert rig.effects == [e.BarrierOpened(one, 1, 0, False)]
    rig.end(one)
    assert rig.effects[-1] == e.SessionEnded(one, EndReason.SESSION_DIED)
    arrive(rig, two, 1, 2, is_latch=True)
    assert sorted(opened(rig)) == [(two, 1), (watcher, 0)]
    arrive(rig, watcher, 2, 2, timeout_ms=0, is_latch=True, is_observer=True)
    assert opened(rig) == [(watcher, 0)], "it stays open"
    rig.end(two)
    rig.end(watcher)
    assert rig.machine.statistics().barriers == 0


def test_what_barriers_refuse() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    arrive(rig, one, 1, is_observer=True)
    assert isinstance(rig.error(), InvalidArgument)
    arrive(rig, one, 1, parties=0)
    assert isinstance(rig.error(), InvalidArgument)
    arrive(rig, one, 1, timeout_ms=0)
    assert isinstance(rig.error(), LockHeld)
    arrive(rig, one, 1)
    arrive(rig, two, 1, parties=4)
    assert isinstance(rig.error(), LockConflict)
    rig.acquire(one, "a")
    assert isinstance(rig.error(), InvalidArgument), "the number is the barrier's"
    rig.acquire(one, "a")
    assert isinstance(rig.error(), InvalidArgument), "the owner waits at the barrier"
    rig.do(c.Cancel(one, 1))
    assert isinstance(rig.refused(one).error, Cancelled)
    assert rig.machine.statistics().barriers == 0


# ---- values ------------------------------------------------------------------------------------------------


def value(rig: Rig) -> tuple[bytes, bool, bool]:
    """Return the value that came with the last grant: payload, whether it is set, whether it is poisoned."""
    (granted,) = (each for each in rig.effects if isinstance(each, e.Granted))
    told = granted.grants[0].value
    assert told is not None
    return told.payload, told.is_set, told.is_poisoned


def test_a_value_goes_from_holder_to_holder() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    first = rig.acquire(one, "a", is_guarded=True)
    assert value(rig) == (b"", False, False)
    second = rig.acquire(two, "a", is_guarded=True)
    rig.release(one, first, value=b"1")
    assert value(rig) == (b"1", True, False)
    rig.do(c.WriteGuarded(two, second, b"2", reference=9))
    assert rig.effects == [e.Done(9)]
    rig.release(two, second)
    third = rig.acquire(one, shared("a"), is_guarded=True)
    assert value(rig) == (b"2", True, False)
    rig.release(one, third, value=b"3")
    assert isinstance(rig.error(), NotHeld), "a reader does not write"
    assert rig.machine.statistics().guarded_bytes == 1


@pytest.mark.parametrize("is_forced", [False, True])
def test_a_holder_that_dies_inside_poisons(is_forced: bool) -> None:
    rig = Rig()
    one, two, three = (rig.open() for _ in range(3))
    held = rig.acquire(one, "a", is_guarded=True)
    rig.release(one, held, value=b"good")
    held = rig.acquire(one, "a", is_guarded=True)
    waiting = rig.acquire(two, "a", is_guarded=True)
    if is_forced:
        rig.do(c.ForceRelease("uid:0", "a"))
    else:
        rig.end(one)
    assert rig.granted() == [(two, waiting)]
    assert value(rig) == (b"good", True, True)
    rig.release(two, waiting, value=b"hasty")
    assert isinstance(rig.error(), Poisoned)
    rig.release(two, waiting)
    waiting = rig.acquire(three, "a", is_guarded=True)
    assert value(rig) == (b"good", True, True), "nobody has said that it is in order"
    rig.release(three, waiting, value=b"better", is_recovered=True)
    last = rig.acquire(two, "a", is_guarded=True)
    assert value(rig) == (b"better", True, False)
    rig.release(two, last)


def test_what_poisons_not() -> None:
    """A reader's death; a holder's that did not ask for the value; an orderly return, to wait for a condition
    too."""
    rig = Rig()
    one, two, three, four = (rig.open() for _ in range(4))
    rig.acquire(one, shared("a"), is_guarded=True)
    rig.end(one)
    rig.acquire(two, "a")
    rig.end(two)
    held = rig.acquire(three, "a", is_guarded=True)
    rig.do(c.WaitCondition(three, held))
    rig.end(three)
    rig.acquire(four, "a", is_guarded=True)
    assert value(rig) == (b"", False, False)


def test_a_poisoned_value_that_is_in_order_as_it_is() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    rig.acquire(one, "a", is_guarded=True)
    rig.end(one)
    held = rig.acquire(two, "a", is_guarded=True)
    assert value(rig) == (b"", False, True)
    rig.release(two, held, is_recovered=True)
    rig.acquire(two, "a", is_guarded=True)
    assert value(rig) == (b"", False, False)


def test_values_are_bounded() -> None:
    rig = Rig(LockLimits(guarded_bytes_max=10, guarded_bytes_total_max=15))
    session = rig.open()
    first, second = rig.acquire(session, "a", is_guarded=True), rig.acquire(session, "b", is_guarded=True)
    rig.release(session, first, value=b"x" * 11)
    assert isinstance(rig.error(), MessageTooLarge)
    rig.do(c.WriteGuarded(session, first, b"x" * 10, reference=1))
    rig.do(c.WriteGuarded(session, second, b"x" * 6, reference=1))
    assert isinstance(rig.error(), TowpathError)
    rig.do(c.WriteGuarded(session, first, b"x" * 9, reference=1))
    rig.do(c.WriteGuarded(session, second, b"x" * 6, reference=1))
    assert rig.effects == [e.Done(1)]
    assert rig.machine.statistics().guarded_bytes == 15


# ---- operators ---------------------------------------------------------------------------------------------


def test_a_lock_is_taken_away_and_its_holder_told() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    held = rig.acquire(one, "a")
    token = rig.token(one, held)
    waiting = rig.acquire(two, "a")
    rig.do(c.ForceRelease("uid:0", "a", reason="stuck since monday", reference=5))
    (revoked,) = (each for each in rig.effects if isinstance(each, e.Revoked))
    assert (revoked.session, revoked.request, revoked.grant.token) == (one, held, token)
    assert revoked.message == "taken by uid:0: stuck since monday"
    (released,) = (each for each in rig.effects if isinstance(each, e.Released))
    assert released.reason is EndReason.FORCED
    assert rig.granted() == [(two, waiting)]
    done = rig.effects[-1]
    assert isinstance(done, e.Done)
    assert [(session, grant.token) for session, grant in done.taken] == [(one, token)]
    rig.release(one, held)
    assert isinstance(rig.error(), NotHeld)


def test_one_of_several_grants_is_taken_away() -> None:
    rig = Rig()
    one, two, writer = (rig.open() for _ in range(3))
    first = rig.acquire(one, shared("a"), "b")
    second = rig.acquire(two, shared("a"))
    token = rig.token(one, first) if rig.granted() == [(one, first)] else 0
    waiting = rig.acquire(writer, "a")
    lock = rig.machine.table.locks["a"]
    tokens = {claim.owner.session.id: claim.token for claim in lock.holders}
    assert token in (0, tokens[one])
    rig.do(c.ForceRelease("uid:0", "a", tokens[one], reference=5))
    assert rig.granted() == []
    rig.release(two, second)
    assert rig.granted() == [(writer, waiting)]
    (released,) = (each for each in rig.release(one, first) if isinstance(each, e.Released))
    assert [grant.lock for grant in released.grants] == ["b"], "the other lock stayed"


def test_what_nobody_has_is_not_taken_away() -> None:
    rig = Rig()
    session = rig.open()
    rig.acquire(session, "a")
    for name, token in (("b", 0), ("a", 99_999)):
        rig.do(c.ForceRelease("uid:0", name, token, reference=5))
        assert isinstance(rig.error(), NotHeld)
