"""The quick way for what nearly all commands are comes to what the long way comes to, whatever is asked."""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import pytest

from tests.core.locks.rig import MS, Rig, tallies
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks import machine, quick, snapshot
from towpath_broker.core.locks.commands import EndReason, LockCommand, Policy, Wanted
from towpath_broker.core.locks.grants import Claim, Request
from towpath_broker.core.locks.limits import NUMBER_MAX, WEIGHT_MAX, LockLimits
from towpath_broker.core.locks.modes import EXCLUSIVE, PERMITS, SHARED

SEEDS = range(60)
STEPS = 250
LIMITS = LockLimits(locks_max=4, claims_per_principal_max=5, grants_per_session_max=3)
NAMES = ("a", "a", "a", "b", "b", "one.a", "one.b", "two.a", "bank.r", "given")
NONSENSE = ("no..name", "x" * 300)
NUMBERS = (1, 2, 3, 4)
WRONG_NUMBERS = (0, -1, NUMBER_MAX, NUMBER_MAX + 1)
MODES = (EXCLUSIVE, EXCLUSIVE, EXCLUSIVE, SHARED, PERMITS)
WRONG_WEIGHTS = (0, -1, 3, WEIGHT_MAX + 1)


class Asking:
    """Commands of a few sessions, at random; some make no sense."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def one_of(self, right: Sequence[Any], wrong: Sequence[Any]) -> Any:
        """Seldom of those that are wrong."""
        return self.random.choice(wrong if self.random.random() < 0.03 else right)

    def wanted(self) -> Wanted:
        return Wanted(
            self.one_of(NAMES, NONSENSE),
            self.one_of(MODES, (0, 7)),
            self.one_of((1, 1, 2), WRONG_WEIGHTS),
            self.one_of((2,), WRONG_WEIGHTS),
        )

    def acquire(self) -> c.Acquire:
        pick = self.random
        return c.Acquire(
            self.one_of((1, 2), (3, 9)),
            self.one_of((0, 0, 1), (-1, NUMBER_MAX + 1)),
            self.one_of(NUMBERS, WRONG_NUMBERS),
            (self.wanted(),),
            pick.choice((-1, 0, 3)),
            pick.random() < 0.2,
            pick.random() < 0.1,
            pick.choice(("", "", "", "why")),
        )

    def command(self) -> LockCommand:
        """Return any."""
        pick = self.random
        session, request = self.one_of((1, 2), (3, 9)), self.one_of(NUMBERS, WRONG_NUMBERS)
        match pick.randrange(40):
            case 0:
                return c.Cancel(session, request, pick.choice((0, 5)))
            case 1 | 2:
                return c.Upgrade(session, request, pick.choice((-1, -1, 0, 3)))
            case 3:
                return c.Downgrade(session, request, 5)
            case 4:
                return c.Release(session, request, b"value", False, bool(pick.randrange(2)), 5)
            case 5:
                return c.Release(session, request, None, False, True, 5)
            case 6:
                asked = self.acquire()
                asked.locks += (Wanted("b"),)
                return asked
            case 7:
                return c.WaitCondition(session, request, "full", pick.choice((-1, 3)))
            case 8 | 9:
                return c.Tick()
            case 10:
                return c.EndSession(session, EndReason.SESSION_DIED) if pick.random() < 0.1 else c.Tick()
            case 11:
                return c.OpenSession("uid:1", reference=1)
            case 12:
                return c.Delegate(session, "given", 0, 5)
            case 13:
                return c.Recall("given", 1, c.PageHolder(session, 1, 5))
            case 14:
                return c.ArriveBarrier(session, 1, request, "meet", 2)
            case at if at < 28:
                return self.acquire()
            case _:
                return c.Release(session, request, reference=pick.choice((0, 5)))


def begun() -> Rig:
    rig = Rig(LIMITS)
    for prefix, policy in (("one", Policy.ORDERED), ("two", Policy.WOUND_WAIT)):
        rig.do(c.DefineSpace(prefix, policy, reference=1))
    rig.do(c.DefineSpace("bank", Policy.BANKER, resources={"bank.r": 3}, reference=1))
    for _ in range(2):
        rig.do(c.OpenSession("uid:1", reference=1))
    return rig


@pytest.mark.parametrize("seed", SEEDS)
def test_both_ways_come_to_the_same(seed: int) -> None:
    asking = Asking(seed)
    one, other = begun(), begun()
    for _ in range(STEPS):
        asked = asking.command()
        told = one.do(asked)
        with patch.object(machine, "_QUICK", {}):
            expected = other.do(asked)
        assert repr(told) == repr(expected), asked
        assert snapshot.encode(one.machine) == snapshot.encode(other.machine), asked
        assert tallies(one.machine) == tallies(other.machine), asked
        assert one.journal == other.journal, asked
        one.now_ns = other.now_ns = one.now_ns + asking.random.choice((0, 0, MS))


def test_nothing_is_granted_while_the_host_settles() -> None:
    rig = Rig()
    rig.open(lease_ms=5_000)
    rig.do(c.Begin("boot-2", LockLimits()))
    session = rig.open()
    (waiting,) = rig.do(c.Acquire(session, 0, 1, (Wanted("a"),)))
    assert isinstance(waiting, e.Waiting)


def test_what_is_plain_goes_the_quick_way() -> None:
    """The test of the test: plain commands go that way, and what is not plain does not."""
    rig = begun()
    table = rig.machine.table
    table.effects = []
    assert quick.acquire(table, c.Acquire(1, 0, 1, (Wanted("a"),)))
    assert not quick.acquire(table, c.Acquire(1, 0, 2, (Wanted("a"),)))
    assert not quick.acquire(table, c.Acquire(1, 0, 2, (Wanted("one.a"),)))
    assert quick.acquire(table, c.Acquire(1, 3, 2, (Wanted("b", PERMITS, 1, 2),)))
    assert not quick.release(table, c.Release(1, 1, b"value"))
    assert quick.release(table, c.Release(1, 1))
    assert not quick.release(table, c.Release(1, 1))
    assert quick.release(table, c.Release(1, 2, reference=5))
    kinds = [type(effect) for effect in table.effects]
    assert kinds == [e.Granted, e.Granted, e.Released, e.Released, e.Done]
    assert not table.locks


def counted() -> int:
    return sum(isinstance(each, Request | Claim) for each in gc.get_objects())


def test_what_was_given_back_needs_no_collector() -> None:
    rig = begun()
    gc.collect()
    gc.disable()
    before = counted()
    try:
        for number in range(1, 50):
            rig.do(c.Acquire(1, number % 2, number, (Wanted("a"),)))
            rig.do(c.Release(1, number))
        rig.effects.clear()
        assert counted() == before
    finally:
        gc.enable()
