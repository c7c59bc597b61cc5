"""Waits that are asked for again: who lost its connection is told what it missed, and none begins anew."""

from __future__ import annotations

import pytest

from tests.core.locks.rig import MS, Rig
from towpath.errors import BarrierBroken, Deadlock, NotHeld, Timeout
from towpath_broker.core.locks import codec, snapshot
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks.limits import ENDS_MAX
from towpath_broker.core.locks.machine import LockMachine


def arrival(session: int, request: int, ask: int, *, owner: int = 0, **how: bool) -> c.ArriveBarrier:
    return c.ArriveBarrier(session, owner, request, "gate", 2, 50, ask=ask, **how)


def successors(rig: Rig) -> list[LockMachine]:
    """The machines that a core would go on with: from the journal, and from a snapshot."""
    replayed, restored = LockMachine(), LockMachine()
    for record in rig.journal:
        replayed.apply(*codec.decode_command(record))
    snapshot.restore(restored, snapshot.encode(rig.machine))
    assert snapshot.encode(replayed) == snapshot.encode(restored) == snapshot.encode(rig.machine)
    return [replayed, restored]


def again(rig: Rig, command: c.LockCommand) -> e.LockEffect:
    """Ask again, here and of every successor; return what all say, having changed nothing."""
    told: list[e.LockEffect] = []
    for machine in (rig.machine, *successors(rig)):
        revision = machine.revision
        (effect,) = machine.apply(command, rig.now_ns)
        assert machine.revision == revision
        told.append(effect)
    refusals = [str(each.error) for each in told if isinstance(each, e.Refused)]
    assert refusals == 3 * refusals[:1] if refusals else told == 3 * told[:1]
    return told[0]


def test_a_barrier_that_opened_is_not_arrived_at_anew() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    first, second = arrival(one, 1, 7), arrival(two, 1, 7)
    rig.do(first)
    assert again(rig, first) == e.Waiting(one, 1)
    rig.do(second)
    assert again(rig, first) == e.BarrierOpened(one, 1, 0, True)
    assert again(rig, second) == e.BarrierOpened(two, 1, 1, True), "who opened it has not waited, and may ask"
    assert rig.machine.statistics().barriers == 0
    rig.do(arrival(one, 2, 8))
    assert rig.effects == [e.Waiting(one, 2)], "another round"


def test_one_that_was_left_or_did_not_open_in_time() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    rig.do(first := arrival(one, 1, 1))
    rig.at(51)
    told = again(rig, first)
    assert isinstance(told, e.Refused) and isinstance(told.error, Timeout)
    rig.do(first := c.ArriveBarrier(one, 0, 2, "gate", 3, ask=2))
    rig.do(c.ArriveBarrier(two, 0, 1, "gate", 3, ask=1))
    rig.end(two)
    told = again(rig, first)
    assert isinstance(told, e.Refused) and isinstance(told.error, BarrierBroken)


def test_a_latch_counts_who_asks_again_once() -> None:
    rig = Rig()
    session = rig.open()
    rig.do(passing := arrival(session, 1, 1, is_latch=True, is_passing=True))
    assert again(rig, passing) == e.BarrierOpened(session, 1, 0, False)
    rig.do(arrival(session, 2, 2, is_latch=True, is_passing=True))
    assert rig.effects == [e.BarrierOpened(session, 2, 1, True)]


def test_without_a_number_it_begins_anew() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    rig.do(arrival(one, 1, 0))
    rig.do(arrival(two, 1, 0))
    rig.do(arrival(one, 1, 0))
    assert rig.effects == [e.Waiting(one, 1)]


def test_a_notice_is_not_waited_for_anew() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    held = rig.acquire(one, "a")
    rig.do(waiting := c.WaitCondition(one, held, "full", 50, 1))
    assert again(rig, waiting) == e.Waiting(one, held)
    other = rig.acquire(two, "a")
    rig.do(c.NotifyCondition(two, other, "full", reference=1))
    assert again(rig, waiting) == e.Waiting(one, held), "for the lock"
    rig.release(two, other)
    told = again(rig, waiting)
    assert isinstance(told, e.Granted) and told.grants[0].token == rig.token(one, held)
    assert not told.is_timed_out
    rig.do(c.WaitCondition(one, held, "full", 50, 2))
    assert isinstance(rig.effects[-1], e.Waiting), "another wait"
    assert rig.machine.table.locks["a"].exclusive is None


def test_a_condition_of_which_nobody_notified() -> None:
    rig = Rig()
    one = rig.open()
    held = rig.acquire(one, "a")
    rig.do(waiting := c.WaitCondition(one, held, "full", 50, 1))
    rig.now_ns += 60 * MS
    rig.do(c.Tick())
    told = again(rig, waiting)
    assert isinstance(told, e.Granted) and told.is_timed_out
    rig.release(one, held)
    told = again(rig, waiting)
    assert isinstance(told, e.Refused) and isinstance(told.error, NotHeld), "it was heard of and given back"


def test_who_is_refused_the_lock_that_it_gave_up() -> None:
    """Coming back closes a circle, and who comes back is the victim."""
    rig = Rig()
    one, two = rig.open(), rig.open()
    rig.acquire(one, "b")
    held = rig.acquire(one, "a")
    rig.do(waiting := c.WaitCondition(one, held, "full", 50, 1))
    rig.acquire(two, "a")
    rig.acquire(two, "b")
    rig.now_ns += 60 * MS
    rig.do(c.Tick())
    assert isinstance(rig.refused(one).error, Deadlock)
    told = again(rig, waiting)
    assert isinstance(told, e.Refused) and isinstance(told.error, Deadlock)


def test_one_end_for_each_owner_and_so_many_for_a_session() -> None:
    rig = Rig()
    session = rig.open()
    how = {"is_latch": True, "is_passing": True}
    for number in range(1, 10):
        rig.do(arrival(session, number, number, owner=1, **how))
    ends = rig.machine.table.sessions[session].ends
    assert [end.request for end in ends.values()] == [9]
    for owner in range(2, 2 + ENDS_MAX):
        rig.do(arrival(session, 100 + owner, 100 + owner, owner=owner, **how))
    assert list(ends) == list(range(2, 2 + ENDS_MAX)), "the oldest is forgotten"
    rig.end(session)
    assert b'"ends"' not in snapshot.encode(rig.machine)


@pytest.mark.parametrize("ask", [0, 1])
def test_a_snapshot_of_before(ask: int) -> None:
    """One that says nothing of ends can be read."""
    rig = Rig()
    session = rig.open()
    rig.do(arrival(session, 1, ask))
    written = snapshot.encode(rig.machine).replace(b',"ask":1', b"")
    machine = LockMachine()
    snapshot.restore(machine, written)
    assert machine.apply(arrival(session, 1, ask), rig.now_ns) == [e.Waiting(session, 1)]
