"""What is told of locks: lists, why somebody waits, who waits for whom."""

from __future__ import annotations

import pytest

from tests.core.locks.rig import EXCLUSIVE, Rig, permits, shared
from towpath.errors import NotHeld, SessionLost
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import reports
from towpath_broker.core.locks.commands import Policy
from towpath_broker.core.locks.reports import EdgeView, OwnerId, WaitReason


def test_locks_by_name_page_by_page() -> None:
    rig = Rig()
    session = rig.open()
    for name in ("b", "a.y", "a.x", "c"):
        rig.acquire(session, name)
    table = rig.machine.table
    views, has_more = reports.list_locks(table, count=3)
    assert ([view.name for view in views], has_more) == (["a.x", "a.y", "b"], True)
    views, has_more = reports.list_locks(table, after="b")
    assert ([view.name for view in views], has_more) == (["c"], False)
    views, _ = reports.list_locks(table, prefix="a.")
    assert [view.name for view in views] == ["a.x", "a.y"]


def test_a_lock_with_its_holders_and_waiters() -> None:
    rig = Rig()
    one, two, three = rig.open(name="n", pid=7, place="prog --x"), rig.open(), rig.open()
    held = rig.acquire(one, shared("a"), note="why not")
    since_ns = rig.now_ns
    second = rig.acquire(two, "a", timeout_ms=500, owner=4)
    rig.acquire(three, shared("a"))
    ((view,), _) = reports.list_locks(rig.machine.table)
    assert (view.capacity, view.held, view.waiting, view.is_guarded) == (0, 1, 2, False)
    (holder,) = view.holders
    assert (holder.owner, holder.request, holder.note) == (OwnerId(one, 0), held, "why not")
    assert (holder.grant.token, holder.grant.since_ns) == (view.token, since_ns)
    first, last = view.waiters
    assert (first.owner, first.request, first.place, first.reason) == (
        OwnerId(two, 4),
        second,
        0,
        WaitReason.HELD,
    )
    assert first.mode == EXCLUSIVE
    assert first.deadline_ns == first.since_ns + 500_000_000
    assert (last.place, last.reason, last.deadline_ns) == (1, WaitReason.QUEUED, 0)
    told = reports.sessions(rig.machine.table)[0]
    assert (told.id, told.name, told.pid, told.place, told.held, told.waiting) == (
        one,
        "n",
        7,
        "prog --x",
        1,
        0,
    )


def test_what_a_session_is_told_when_it_comes_back() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    rig.acquire(one, "a", "b", is_guarded=True)
    rig.acquire(two, "c")
    rig.acquire(one, "c")
    cond = rig.acquire(one, "m", owner=1)
    rig.do(c.WaitCondition(one, cond, "go"))
    rig.do(c.ArriveBarrier(one, 2, 77, "gate", 2))
    grants, waits = reports.holdings(rig.machine.table, one)
    assert [(each.grant.lock, each.grant.value is not None) for each in grants] == [("a", True), ("b", True)]
    assert [(each.lock, each.reason) for each in waits] == [
        ("c", WaitReason.HELD),
        ("m", WaitReason.CONDITION),
        ("gate", WaitReason.BARRIER),
    ]
    with pytest.raises(SessionLost):
        reports.holdings(rig.machine.table, 99)


def test_why_follows_the_holders() -> None:
    """three waits for b, whose holder two waits for a, which one has; four's lock has nothing to do with
    it."""
    rig = Rig()
    one, two, three, four = (rig.open() for _ in range(4))
    rig.acquire(one, "a")
    rig.acquire(two, "b")
    rig.acquire(two, "a")
    rig.acquire(three, "b")
    rig.acquire(four, "other")
    table = rig.machine.table
    for explanation in (reports.explain_session(table, three), reports.explain_lock(table, "b")):
        assert {lock.name for lock in explanation.locks} >= {"a", "b"}
        assert "other" not in {lock.name for lock in explanation.locks}
        assert set(explanation.edges) == {
            EdgeView(OwnerId(three, 0), OwnerId(two, 0), "b", False),
            EdgeView(OwnerId(two, 0), OwnerId(one, 0), "a", False),
        }
        assert {session.id for session in explanation.sessions} == {one, two, three}
        assert not explanation.is_cut
    assert {lock.name for lock in reports.explain_all(table).locks} == {"a", "b", "other"}
    with pytest.raises(NotHeld):
        reports.explain_lock(table, "nobody")


def test_who_only_stands_before_is_a_soft_edge() -> None:
    rig = Rig()
    one, two, three = (rig.open() for _ in range(3))
    rig.acquire(one, shared("a"))
    rig.acquire(two, "a")
    rig.acquire(three, shared("a"))
    edges = reports.explain_lock(rig.machine.table, "a").edges
    assert set(edges) == {
        EdgeView(OwnerId(two, 0), OwnerId(one, 0), "a", False),
        EdgeView(OwnerId(three, 0), OwnerId(two, 0), "a", True),
    }


def test_the_bank_is_explained_with_those_who_wait_for_it() -> None:
    rig = Rig()
    rig.space("bank", Policy.BANKER, resources={"bank.x": 1, "bank.y": 1})
    one, two = rig.open(), rig.open()
    for session in (one, two):
        rig.claim(session, x=1, y=1)
    rig.acquire(one, permits("bank.x"))
    rig.acquire(two, permits("bank.y"))
    (view,) = reports.explain_session(rig.machine.table, two).bankers
    assert (view.space, view.resources, view.total) == ("bank", ("bank.x", "bank.y"), (1, 1))
    (refusal,) = view.refusals
    assert refusal.stuck == (OwnerId(one, 0), OwnerId(two, 0))
    assert refusal.remedies == (OwnerId(one, 0),)


def test_lists_are_cut() -> None:
    rig = Rig()
    holder = rig.open()
    rig.acquire(holder, "a")
    for _ in range(reports.CLAIMS_PER_LOCK + 5):
        rig.acquire(rig.open(), "a")
    ((view,), _) = reports.list_locks(rig.machine.table)
    assert (view.waiting, len(view.waiters)) == (reports.CLAIMS_PER_LOCK + 5, reports.CLAIMS_PER_LOCK)
