"""The other ways to avoid deadlocks: ordering, wait-die, wound-wait, no-wait, timeout only; and lock
spaces."""

from __future__ import annotations

import pytest

from tests.core.locks.rig import Rig, shared
from towpath.errors import (
    InvalidArgument,
    InvalidName,
    LimitExceeded,
    LockHeld,
    LockInUse,
    LockOrder,
    WaitRefused,
    Wounded,
)
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks.commands import Policy
from towpath_broker.core.locks.limits import LockLimits


def test_by_name_a_lock_comes_before_those_below_it() -> None:
    rig = Rig()
    rig.space("db", Policy.ORDERED)
    session = rig.open()
    rig.acquire(session, "db")
    rig.acquire(session, "db.orders")
    last = rig.acquire(session, "db.orders.7")
    rig.acquire(session, "db.customers", timeout_ms=0)
    refused = rig.refused()
    assert isinstance(refused.error, LockOrder)
    assert "db.customers" in refused.error.message
    assert "db.orders" in refused.error.message
    assert refused.blocker is not None
    assert refused.blocker[1].lock == "db.orders"
    rig.acquire(session, "elsewhere")
    assert len(rig.granted()) == 1, "another lock space has no order"
    rig.release(session, last)
    rig.acquire(session, "db.orders.8", "db.orders.6")
    assert len(rig.granted()) == 1, "at one moment in any order"


def test_declared_ranks() -> None:
    rig = Rig()
    rig.space("", Policy.ORDERED, ranks={"z": 1, "a": 2, "m": 2})
    session = rig.open()
    rig.acquire(session, "z")
    rig.acquire(session, "a")
    rig.acquire(session, "m")
    assert isinstance(rig.error(), LockOrder), "not above, but alike"
    rig.acquire(session, "unknown")
    assert isinstance(rig.error(), InvalidArgument)


def test_wait_die_lets_only_the_older_wait() -> None:
    rig = Rig()
    rig.space("", Policy.WAIT_DIE)
    old, middle, young = (rig.open(name=name) for name in ("old", "middle", "young"))
    held = rig.acquire(middle, "a")
    rig.acquire(young, "a")
    refused = rig.refused(young)
    assert isinstance(refused.error, WaitRefused)
    assert "middle" in refused.error.message
    waiting = rig.acquire(old, "a")
    assert rig.waits(old, waiting)
    rig.release(middle, held)
    assert rig.granted() == [(old, waiting)]


def test_wait_die_looks_at_those_in_the_queue_too() -> None:
    rig = Rig()
    rig.space("", Policy.WAIT_DIE)
    old, middle, young = (rig.open() for _ in range(3))
    rig.acquire(young, shared("a"))
    assert rig.waits(old, rig.acquire(old, "a"))
    rig.acquire(middle, shared("a"))
    assert isinstance(rig.error(), WaitRefused), "behind the older one's wait"


def test_wound_wait_wounds_the_younger_holder_which_gets_nothing_more_there() -> None:
    rig = Rig()
    rig.space("w", Policy.WOUND_WAIT)
    old, young = rig.open(), rig.open()
    held = rig.acquire(young, "w.a")
    token = rig.token(young, held)
    waiting = rig.acquire(old, "w.a")
    assert rig.waits(old, waiting)
    (wounded,) = (each for each in rig.effects if isinstance(each, e.Wounded))
    assert (wounded.session, wounded.grant.token, wounded.by_session) == (young, token, old)
    rig.acquire(young, "w.b")
    assert isinstance(rig.error(), Wounded)
    rig.acquire(young, "x")
    assert len(rig.granted()) == 1, "elsewhere it may go on"
    rig.release(young, held)
    assert rig.granted() == [(old, waiting)]
    rig.acquire(young, "w.b")
    assert len(rig.granted()) == 1, "it begins anew"


def test_wound_wait_ends_the_wait_of_a_younger_one() -> None:
    """The classical circle: young has b and waits for a, which old has; then old asks for b."""
    rig = Rig()
    rig.space("", Policy.WOUND_WAIT)
    old, young = rig.open(), rig.open()
    rig.acquire(old, "a")
    held = rig.acquire(young, "b")
    assert rig.waits(young, rig.acquire(young, "a"))
    waiting = rig.acquire(old, "b")
    assert isinstance(rig.refused(young).error, Wounded)
    assert rig.waits(old, waiting)
    rig.release(young, held)
    assert rig.granted() == [(old, waiting)]


def test_wound_wait_lets_the_younger_wait_for_the_older() -> None:
    rig = Rig()
    rig.space("", Policy.WOUND_WAIT)
    old, young = rig.open(), rig.open()
    held = rig.acquire(old, "a")
    waiting = rig.acquire(young, "a")
    assert rig.effects == [e.Waiting(young, waiting)]
    rig.release(old, held)
    assert rig.granted() == [(young, waiting)]


def test_an_older_one_is_put_before_younger_ones_that_wait() -> None:
    rig = Rig()
    rig.space("", Policy.WOUND_WAIT)
    old, middle, young = (rig.open() for _ in range(3))
    rig.acquire(middle, "a")
    assert rig.waits(young, rig.acquire(young, "a"))
    waiting = rig.acquire(old, "a")
    assert rig.refused().session == young
    assert rig.waits(old, waiting)


def test_no_wait() -> None:
    rig = Rig()
    rig.space("", Policy.NO_WAIT)
    one, two = rig.open(), rig.open()
    rig.acquire(one, "a")
    rig.acquire(two, "a", timeout_ms=1_000)
    assert isinstance(rig.error(), LockHeld)


def test_timeout_only_needs_timeouts() -> None:
    rig = Rig()
    rig.space("", Policy.TIMEOUT_ONLY)
    rig.acquire(rig.open(), "a")
    assert isinstance(rig.error(), InvalidArgument)


def test_the_longest_prefix_counts() -> None:
    rig = Rig()
    rig.space("", Policy.NO_WAIT)
    rig.space("plant", Policy.DETECT)
    rig.space("plant.line1", Policy.TIMEOUT_ONLY)
    spaces = rig.machine.table.spaces
    found = {
        name: spaces.of(name).prefix
        for name in ("a", "plants", "plant", "plant.x", "plant.line1.a", "plant.line10")
    }
    assert found == {
        "a": "",
        "plants": "",
        "plant": "plant",
        "plant.x": "plant",
        "plant.line1.a": "plant.line1",
        "plant.line10": "plant",
    }
    rig.do(c.DefineSpace("plant", is_removed=True, reference=1))
    assert spaces.of("plant.x").prefix == ""


@pytest.mark.parametrize(
    ("prefix", "options", "error"),
    [
        ("a b", {}, InvalidName),
        ("a", {"ranks": {"a.x": 1}}, InvalidArgument),
        ("a", {"policy": Policy.ORDERED, "ranks": {"b": 1}}, InvalidArgument),
        ("a", {"policy": Policy.ORDERED, "ranks": {"a.x": 0}}, InvalidArgument),
        ("a", {"policy": Policy.BANKER}, InvalidArgument),
        ("a", {"policy": Policy.ORDERED, "ranks": {f"a.{n}": 1 for n in range(5_000)}}, LimitExceeded),
        ("a", {"is_removed": True}, InvalidArgument),
    ],
)
def test_spaces_that_cannot_be(prefix: str, options: dict[str, object], error: type[Exception]) -> None:
    rig = Rig()
    revision = rig.machine.revision
    rig.do(c.DefineSpace(prefix, reference=1, **options))  # type: ignore[arg-type]
    assert isinstance(rig.error(), error)
    assert rig.machine.revision == revision


def test_a_space_is_not_changed_under_those_who_use_it() -> None:
    rig = Rig(LockLimits(spaces_max=1))
    session = rig.open()
    held = rig.acquire(session, "a.x")
    for prefix in ("", "a", "a.x"):
        rig.space(prefix, Policy.NO_WAIT)
        assert isinstance(rig.error(), LockInUse)
    rig.space("b", Policy.NO_WAIT)
    rig.space("c", Policy.NO_WAIT)
    assert isinstance(rig.error(), LimitExceeded)
    rig.do(c.DefineSpace("b", is_removed=True, reference=1))
    rig.release(session, held)
    rig.space("a", Policy.NO_WAIT)
    assert rig.effects == [e.Done(rig.references)]
