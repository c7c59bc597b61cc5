"""Locks that are given out to a lock page, and taken back: what the machine makes of what was found there."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.core.locks.rig import Rig, tallies
from towpath.errors import Fenced, LockConflict, LockInUse, SessionLost
from towpath_broker.core.locks import codec, snapshot
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks.commands import Policy
from towpath_broker.core.locks.delegating import TOKENS, is_page_request, page_request
from towpath_broker.core.locks.fencing import check_fence
from towpath_broker.core.locks.machine import LockMachine
from towpath_broker.core.locks.modes import SHARED


def delegate(rig: Rig, session: int, name: str = "a", slot: int = 3) -> e.Delegated:
    """Give a lock out."""
    effects = rig.do(c.Delegate(session, name, slot, rig.reference()))
    (given,) = (each for each in effects if isinstance(each, e.Delegated))
    return given


def holders(rig: Rig, name: str = "a") -> list[tuple[int, int, int]]:
    """Session, request and token of those that hold a lock."""
    lock = rig.machine.table.locks.get(name)
    return (
        []
        if lock is None
        else [(claim.owner.session.id, claim.request.number, claim.token) for claim in lock.holders]
    )


def replayed(rig: Rig) -> LockMachine:
    machine = LockMachine()
    for record in rig.journal:
        machine.apply(*codec.decode_command(record))
    return machine


def test_who_had_it_in_the_page_has_it_and_releases_it_by_a_number_that_follows_from_the_token() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    given = delegate(rig, one)
    assert (given.slot, given.is_busy) == (3, False)
    rig.do(c.Recall("a", 7, c.PageHolder(two, 4, since_ns=5)))
    token = given.base + 7
    assert holders(rig) == [(two, page_request(token), token)]
    check_fence(rig.machine.table, "a", token)
    wait = rig.acquire(one, "a")
    assert rig.waits(one, wait)
    rig.release(two, page_request(token))
    assert rig.granted() == [(one, wait)]
    assert rig.token(one, wait) > given.base + TOKENS - 1
    with pytest.raises(Fenced):
        check_fence(rig.machine.table, "a", token)


def test_who_read_there_reads_here_by_the_same_tokens_and_who_waits_comes_after_all() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    given = delegate(rig, one)
    readers = (c.PageReader(one, 1, 3, 5), c.PageReader(two, 1, 5, 6))
    rig.do(c.Recall("a", 7, None, (c.PageWaiter(one, 2, 9, -1),), readers))
    assert rig.waits(one, 9)
    tokens = [given.base + 3, given.base + 5]
    assert holders(rig) == [
        (session, page_request(token), token) for session, token in zip((one, two), tokens, strict=True)
    ]
    for token in tokens:
        check_fence(rig.machine.table, "a", token)
    assert replayed(rig).table.locks["a"].token == rig.machine.table.locks["a"].token == given.base + 7
    rig.do(c.Delegate(one, "a", 3, rig.reference()))
    assert isinstance(rig.error(), LockInUse)  # they look there for whether they have it
    rig.release(two, page_request(tokens[1]))
    assert rig.granted() == []
    rig.release(one, page_request(tokens[0]))
    assert rig.granted() == [(one, 9)]
    assert rig.token(one, 9) > given.base + 7


def test_what_the_core_has_granted_shared_is_beside_who_reads_in_the_page() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    first = rig.acquire(one, c.Wanted("a", SHARED))
    given = delegate(rig, two)
    assert given.is_busy and given.is_shared
    rig.do(c.Recall("a", 2, None, (), (c.PageReader(two, 1, 2, 5),)))
    assert len(holders(rig)) == 2
    rig.release(one, first)
    rig.release(two, page_request(given.base + 2))
    assert holders(rig) == []


def test_who_waited_there_waits_here_in_the_same_order_and_as_long() -> None:
    rig = Rig()
    one, two, three = rig.open(), rig.open(), rig.open()
    given = delegate(rig, one)
    waiters = (c.PageWaiter(two, 1, 11, -1), c.PageWaiter(three, 1, 12, 50))
    rig.do(c.Recall("a", 1, c.PageHolder(one, 1, 1), waiters))
    assert rig.waits(two, 11) and rig.waits(three, 12)
    rig.at(60)
    assert rig.refused(three).request == 12
    rig.release(one, page_request(given.base + 1))
    assert rig.granted() == [(two, 11)]


def test_the_first_who_waited_gets_it_when_nobody_had_it() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    delegate(rig, one)
    rig.do(c.Recall("a", 4, None, (c.PageWaiter(two, 0, 9, -1),)))
    assert rig.granted() == [(two, 9)]


def test_what_the_core_has_granted_or_queued_comes_first_with_lower_tokens() -> None:
    rig = Rig()
    one, two, three = rig.open(), rig.open(), rig.open()
    first = rig.acquire(one, "a")
    second = rig.acquire(two, "a")
    given = delegate(rig, three)
    assert given.is_busy
    rig.release(one, first)
    assert rig.granted() == [(two, second)]
    assert rig.token(two, second) <= given.base
    rig.release(two, second)
    assert e.Drained("a") in rig.effects
    assert rig.machine.table.locks["a"].page is not None


def test_taken_back_before_it_is_drained_the_core_goes_on_as_if_nothing_had_been() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    first = rig.acquire(one, "a")
    delegate(rig, two)
    rig.do(c.Recall("a", 1, None, (c.PageWaiter(two, 0, 5, -1),)))
    assert rig.waits(two, 5)
    rig.release(one, first)
    assert rig.granted() == [(two, 5)]


def test_an_upgrade_of_what_was_held_there_is_a_deadlock_as_ever() -> None:
    """Who has one lock from the page and wants another's, who wants that one, is found."""
    rig = Rig()
    one, two = rig.open(), rig.open()
    given = delegate(rig, one, "a")
    other = rig.acquire(two, "b")
    rig.do(c.Recall("a", 1, c.PageHolder(one, 0, 1)))
    wait = rig.acquire(two, "a")
    rig.acquire(one, "b")
    assert rig.refused(one).cycle
    rig.release(one, page_request(given.base + 1))
    assert rig.granted() == [(two, wait)]
    rig.release(two, other)


@pytest.mark.parametrize("reason", ["policy", "semaphore", "value", "twice", "session"])
def test_what_is_not_given_out(reason: str) -> None:
    rig = Rig()
    one = rig.open()
    delegate(rig, one, "another")  # so that tokens are reserved
    expected: type[Exception] = LockConflict
    session = one
    match reason:
        case "policy":
            rig.space("a", Policy.ORDERED)
        case "semaphore":
            rig.do(c.Acquire(one, 0, 1, (c.Wanted("a", 3, 1, 2),)))
        case "value":
            number = rig.acquire(one, "a", is_guarded=True)
            rig.do(c.WriteGuarded(one, number, b"x", reference=rig.reference()))
        case "twice":
            delegate(rig, one)
            expected = LockInUse
        case _:
            session, expected = 99, SessionLost
    before = rig.machine.revision
    effects = rig.do(c.Delegate(session, "a", 0, rig.reference()))
    (failed,) = (each for each in effects if isinstance(each, e.Failed))
    assert isinstance(failed.error, expected)
    assert rig.machine.revision == before


def test_it_is_not_given_out_again_while_who_took_it_there_has_it() -> None:
    """That one looks into the page for whether it still has it."""
    rig = Rig()
    one = rig.open()
    given = delegate(rig, one)
    rig.do(c.Recall("a", 1, c.PageHolder(one, 0, 1)))
    rig.do(c.Delegate(one, "a", 3, rig.reference()))
    assert isinstance(rig.error(), LockInUse)
    rig.release(one, page_request(given.base + 1))
    delegate(rig, one)


def test_a_lock_that_is_given_out_is_not_granted_here() -> None:
    rig = Rig()
    one, two = rig.open(), rig.open()
    delegate(rig, one)
    rig.acquire(two, "a")
    assert isinstance(rig.error(), LockInUse)


@pytest.mark.parametrize(
    "found",
    [
        {"used": -5},
        {"used": TOKENS * 7, "holder": c.PageHolder(1, 0, 1)},
        {"used": 1, "holder": c.PageHolder(77, 0, 1)},
        {"used": 1, "holder": c.PageHolder(1, -3, 1)},
        {"used": 0, "holder": c.PageHolder(1, 0, 1)},
        {"used": 1, "holder": c.PageHolder(1, 0, 1 << 80)},
        {"used": 1, "waiters": (c.PageWaiter(1, 0, 0, -1), c.PageWaiter(1, 0, 1 << 62, -1))},
        {"used": 1, "waiters": (c.PageWaiter(1, 0, 5, -1), c.PageWaiter(1, 0, 6, -1))},
        {"used": 1, "holder": c.PageHolder(1, 0, 1), "waiters": (c.PageWaiter(1, 0, 5, -1),)},
        {"used": 1, "waiters": (c.PageWaiter(2, 0, 5, -1),)},
        {
            "used": 4,
            "readers": (c.PageReader(1, 0, 2, 1), c.PageReader(1, 0, 2, 1), c.PageReader(2, 0, 3, 1)),
        },
        {
            "used": 4,
            "readers": (c.PageReader(1, 0, 9, 1), c.PageReader(1, 0, 0, 1), c.PageReader(9, 0, 1, 1)),
        },
        {"used": 4, "holder": c.PageHolder(1, 0, 1), "readers": (c.PageReader(1, 0, 2, 1),)},
    ],
)
def test_nonsense_from_a_page_harms_nobody(found: dict[str, Any]) -> None:
    """Somebody has scribbled in it: what cannot be is as if it were not there, and the lock goes on."""
    rig = Rig()
    one, other = rig.open(), rig.open("uid:2")
    assert (one, other) == (1, 2)
    delegate(rig, one)
    rig.do(c.Recall("a", **found))
    assert all(session == one for session, _, _ in holders(rig))
    rig.end(one)
    assert holders(rig) == []
    number = rig.acquire(other, "a")
    assert rig.granted() == [(other, number)]
    assert snapshot.encode(replayed(rig)) == snapshot.encode(rig.machine)


def test_who_still_has_something_here_is_not_taken_over() -> None:
    """Its release is on the way: by the socket it comes later than what it does in the page."""
    rig = Rig()
    one, two = rig.open(), rig.open()
    had = rig.acquire(one, "a")
    delegate(rig, two)
    rig.do(c.Recall("a", 1, None, (c.PageWaiter(one, 0, 50, -1),)))
    assert not any(isinstance(each, e.Refused) for each in rig.effects)
    rig.release(one, had)
    rig.do(c.Acquire(one, 0, 50, (c.Wanted("a"),)))
    assert rig.granted() == [(one, 50)]


def test_a_reboot_takes_the_page_and_all_that_was_held_there() -> None:
    rig = Rig()
    one = rig.open()
    given = delegate(rig, one)
    rig.do(c.Begin("boot-2"))
    assert not rig.machine.table.locks
    two = rig.open()
    number = rig.acquire(two, "a")
    assert rig.token(two, number) > given.base + TOKENS - 1


def test_a_page_s_request_numbers_are_told_apart() -> None:
    assert is_page_request(page_request(5)) and not is_page_request(5)


class Walk(RuleBasedStateMachine):
    """One lock, given out, taken back, asked for; against what must be: at most one has it, whoever waited is
    served, tokens grow, and the journal and a snapshot lead to the same."""

    @initialize()
    def begin(self) -> None:
        self.rig = Rig()
        self.sessions = [self.rig.open() for _ in range(3)]
        self.last_token = 0
        self.number = 0
        self.base = 0  # 0: it is not given out
        self.has: dict[int, int] = {}  # session: request, of the one that holds
        self.waiting: dict[int, int] = {}

    def told(self) -> None:
        for each in self.rig.effects:
            if isinstance(each, e.Granted):
                (grant,) = each.grants
                assert grant.token > self.last_token
                self.last_token = grant.token
                assert not self.has
                self.has[each.session] = each.request
                self.waiting.pop(each.session, None)
            elif isinstance(each, e.Released):
                assert self.has.pop(each.session) == each.request

    def free(self) -> list[int]:
        return [each for each in self.sessions if each not in self.has and each not in self.waiting]

    @rule(which=st.integers(0, 2))
    def ask(self, which: int) -> None:
        session = self.sessions[which]
        if self.base or session not in self.free():
            return
        self.number += 1
        self.waiting[session] = self.number
        self.rig.do(c.Acquire(session, 0, self.number, (c.Wanted("a"),)))
        self.told()

    @rule()
    def release(self) -> None:
        for session, request in tuple(self.has.items()):
            self.rig.release(session, request)
            self.told()

    @rule(which=st.integers(0, 2))
    def give_out(self, which: int) -> None:
        if not self.base and not any(is_page_request(request) for request in self.has.values()):
            self.base = delegate(self.rig, self.sessions[which]).base

    @rule(used=st.integers(1, 100), holder=st.booleans(), waiters=st.integers(0, 3))
    def take_back(self, used: int, holder: bool, waiters: int) -> None:
        if not self.base:
            return
        free = self.free()
        is_busy = bool(self.has or self.waiting)
        by = c.PageHolder(free.pop(), 0, 1) if holder and free and not is_busy else None
        queue = []
        for session in free[:waiters]:
            self.number += 1
            self.waiting[session] = self.number
            queue.append(c.PageWaiter(session, 0, self.number, -1))
        if not is_busy:
            self.last_token = max(self.last_token, self.base + used - (by is not None))
        self.rig.do(c.Recall("a", 1 if is_busy else used, by, tuple(queue)))
        self.base = 0
        self.told()

    @rule(which=st.integers(0, 2))
    def die(self, which: int) -> None:
        if self.base:
            return
        session = self.sessions[which]
        self.waiting.pop(session, None)
        self.rig.end(session)
        self.told()
        self.sessions[which] = self.rig.open()

    @invariant()
    def nobody_is_stranded(self) -> None:
        assert self.has or not self.waiting

    def teardown(self) -> None:
        state = snapshot.encode(self.rig.machine)
        again = replayed(self.rig)
        assert snapshot.encode(again) == state
        assert tallies(again) == tallies(self.rig.machine)
        restored = LockMachine()
        snapshot.restore(restored, state)
        assert snapshot.encode(restored) == state


TestWalk = Walk.TestCase
TestWalk.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
