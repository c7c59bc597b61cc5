"""The banker's algorithm: textbook cases number by number, small states exhaustively, and its lock spaces."""

from __future__ import annotations

from itertools import permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.locks.rig import Rig, permits, shared
from towpath.errors import Cancelled, ClaimExceeded, InvalidArgument, LockHeld, LockInUse
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import reports
from towpath_broker.core.locks.avoidance.banker import finish_order
from towpath_broker.core.locks.commands import Policy
from towpath_broker.core.locks.reports import WaitReason

TOTAL = (10, 5, 7)
ALLOCATION = ((0, 1, 0), (2, 0, 0), (3, 0, 2), (2, 1, 1), (0, 0, 2))
MAXIMUM = ((7, 5, 3), (3, 2, 2), (9, 0, 2), (2, 2, 2), (4, 3, 3))
NEED = ((7, 4, 3), (1, 2, 2), (6, 0, 0), (0, 1, 1), (4, 3, 1))


def bank(**resources: int) -> Rig:
    rig = Rig()
    rig.space("bank", Policy.BANKER, resources={f"bank.{name}": units for name, units in resources.items()})
    return rig


def ask(rig: Rig, session: int, timeout_ms: int = -1, **units: int) -> int:
    wants = [permits(f"bank.{name}", count) for name, count in units.items() if count]
    return rig.acquire(session, *wants, timeout_ms=timeout_ms, owner=0)


# ---- the algorithm -----------------------------------------------------------------------------------------


def lists(rows: tuple[tuple[int, ...], ...]) -> list[list[int]]:
    return [list(row) for row in rows]


def test_silberschatz_the_state_is_safe() -> None:
    """Operating System Concepts, "Banker's Algorithm": five processes, A = 10, B = 5, C = 7; <P1, P3, P4, P2,
    P0> is one safe sequence, and this finds another."""
    need = [
        [most - has for most, has in zip(*rows, strict=True)]
        for rows in zip(MAXIMUM, ALLOCATION, strict=True)
    ]
    assert need == lists(NEED)
    order = finish_order([3, 3, 2], lists(ALLOCATION), need)
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert order[:2] == [1, 3]
    check_order([3, 3, 2], ALLOCATION, NEED, order)
    check_order([3, 3, 2], ALLOCATION, NEED, [1, 3, 4, 2, 0])


def check_order(
    available: list[int],
    allocation: tuple[tuple[int, ...], ...],
    need: tuple[tuple[int, ...], ...],
    order: list[int],
) -> None:
    """Each can get what it needs from what is free and what those before it gave back."""
    free = list(available)
    for process in order:
        assert all(wants <= units for wants, units in zip(need[process], free, strict=True))
        free = [units + back for units, back in zip(free, allocation[process], strict=True)]


def five() -> tuple[Rig, list[int]]:
    """Return a machine in the textbook's state, and its five sessions."""
    rig = bank(a=10, b=5, c=7)
    sessions = [rig.open(name=f"P{at}") for at in range(5)]
    for session, (a, b, c_) in zip(sessions, MAXIMUM, strict=True):
        rig.claim(session, a=a, b=b, c=c_)
    for session, (a, b, c_) in zip(sessions, ALLOCATION, strict=True):
        request = ask(rig, session, a=a, b=b, c=c_)
        assert rig.granted() == [(session, request)]
    return rig, sessions


def test_silberschatz_requests() -> None:
    """P1 asks for (1, 0, 2) and gets it: <P1, P3, P4, P0, P2>. Then P4's (3, 3, 0) is not there, and P0's (0,
    2, 0) is there and not safe."""
    rig, sessions = five()
    space = rig.machine.table.spaces.get("bank")
    assert space is not None
    before = reports.banker_view(space)
    assert (before.available, before.allocation, before.maximum) == ((3, 3, 2), ALLOCATION, MAXIMUM)
    first = ask(rig, sessions[1], a=1, c=2)
    assert rig.granted() == [(sessions[1], first)]
    view = reports.banker_view(space)
    assert view.available == (2, 3, 0)
    assert view.allocation[1] == (3, 0, 2)
    safe = [owner.session for owner in view.safe_sequence]
    assert safe[:2] == [sessions[1], sessions[3]]
    assert sorted(safe) == sessions

    fourth = ask(rig, sessions[4], a=3, b=3)
    assert rig.waits(sessions[4], fourth)
    table = rig.machine.table
    (wait, _) = reports.wait_views(table, table.sessions[sessions[4]].requests[fourth])
    assert wait.reason is WaitReason.HELD
    rig.do(c.Cancel(sessions[4], fourth))
    assert isinstance(rig.refused().error, Cancelled)

    zeroth = ask(rig, sessions[0], b=2)
    assert rig.waits(sessions[0], zeroth)
    (wait,) = reports.wait_views(table, table.sessions[sessions[0]].requests[zeroth])
    assert wait.reason is WaitReason.UNSAFE
    (refusal,) = reports.banker_view(space).refusals
    assert refusal.owner.session == sessions[0]
    assert {owner.session for owner in refusal.stuck} == set(sessions), "2, 1, 0 is enough for nobody"
    assert {owner.session for owner in refusal.remedies} <= set(sessions[1:])
    assert refusal.remedies

    rig.end(sessions[2])
    assert rig.granted() == [(sessions[0], zeroth)], "what P2 had is enough"


@pytest.mark.parametrize(("has", "is_safe"), [((5, 2, 2), True), ((5, 2, 3), False)])
def test_silberschatz_twelve_tape_drives(has: tuple[int, ...], is_safe: bool) -> None:
    """P0, P1, P2 may need 10, 4, 9 of twelve. With 5, 2, 2 taken <P1, P0, P2> is safe; one more for P2 is
    not."""
    need = [[10 - has[0]], [4 - has[1]], [9 - has[2]]]
    order = finish_order([12 - sum(has)], [[units] for units in has], need)
    assert order == ([1, 0, 2] if is_safe else [1])


def test_habermanns_condition_for_one_resource() -> None:
    """With one resource a state is safe exactly if, for each k, those that may still ask for k or more leave
    k when all others are done. All states of three processes and up to six units."""
    checked = unsafe = 0
    for total in range(1, 7):
        for maximum in product(range(1, total + 1), repeat=3):
            for has in product(*(range(most + 1) for most in maximum)):
                if sum(has) > total:
                    continue
                need = [most - units for most, units in zip(maximum, has, strict=True)]
                expected = all(
                    total - sum(units for units, wants in zip(has, need, strict=True) if wants >= k) >= k
                    for k in range(1, max(need) + 1)
                )
                order = finish_order(
                    [total - sum(has)], [[units] for units in has], [[wants] for wants in need]
                )
                assert (len(order) == 3) == expected, (total, maximum, has)
                checked += 1
                unsafe += not expected
    assert checked > 5_000
    assert unsafe > 500


vectors = st.lists(st.integers(0, 3), min_size=2, max_size=2)


@given(
    available=vectors,
    processes=st.lists(st.tuples(vectors, vectors), min_size=1, max_size=4),
)
def test_against_all_orders(available: list[int], processes: list[tuple[list[int], list[int]]]) -> None:
    allocation, need = [list(rows) for rows in zip(*processes, strict=True)]

    def goes(order: tuple[int, ...]) -> bool:
        free = list(available)
        for process in order:
            if any(wants > units for wants, units in zip(need[process], free, strict=True)):
                return False
            free = [units + back for units, back in zip(free, allocation[process], strict=True)]
        return True

    found = finish_order(available, allocation, need)
    assert (len(found) == len(processes)) == any(map(goes, permutations(range(len(processes)))))
    assert len(set(found)) == len(found)
    assert goes(tuple(found))


# ---- the lock space ----------------------------------------------------------------------------------------


def test_two_who_could_block_each_other_are_kept_apart() -> None:
    """With detection this ends in a deadlock; here the second waits before it takes anything."""
    rig = bank(x=1, y=1)
    one, two = rig.open(), rig.open()
    for session in (one, two):
        rig.claim(session, x=1, y=1)
    first = ask(rig, one, x=1)
    second = ask(rig, two, y=1)
    assert rig.waits(two, second)
    third = ask(rig, one, y=1)
    assert rig.granted() == [(one, third)]
    rig.release(one, first)
    assert rig.granted() == []
    rig.release(one, third)
    assert rig.granted() == [(two, second)]


def test_who_must_finish_first_passes_who_is_unsafe() -> None:
    rig = bank(x=3)
    one, two = rig.open(), rig.open()
    rig.claim(one, x=3)
    rig.claim(two, x=3)
    held = ask(rig, one, x=2)
    waiting = ask(rig, two, x=1)
    assert rig.waits(two, waiting)
    more = ask(rig, one, x=1)
    assert rig.granted() == [(one, more)]
    rig.release(one, held)
    rig.release(one, more)
    assert rig.granted() == [(two, waiting)]


def test_lowering_a_claim_makes_room() -> None:
    rig = bank(x=1, y=1)
    one, two = rig.open(), rig.open()
    rig.claim(one, x=1, y=1)
    rig.claim(two, x=1, y=1)
    ask(rig, one, x=1)
    waiting = ask(rig, two, y=1)
    assert rig.waits(two, waiting)
    rig.claim(one, x=1)
    assert rig.granted() == [(two, waiting)]


def test_what_the_bank_refuses() -> None:
    rig = bank(x=2)
    one, two = rig.open(), rig.open()
    ask(rig, one, x=1)
    assert isinstance(rig.error(), ClaimExceeded)
    rig.claim(one, x=3)
    assert isinstance(rig.error(), ClaimExceeded)
    rig.claim(one, z=1)
    assert isinstance(rig.error(), InvalidArgument)
    rig.claim(one, x=1)
    ask(rig, one, x=2)
    assert isinstance(rig.error(), ClaimExceeded)
    held = ask(rig, one, x=1)
    rig.claim(one, x=2)
    assert isinstance(rig.error(), InvalidArgument), "not raised while something is held"
    rig.do(c.DeclareClaims(one, 0, {}, 7))
    assert isinstance(rig.error(), InvalidArgument)
    rig.acquire(one, shared("bank.x"))
    assert isinstance(rig.error(), InvalidArgument)
    rig.acquire(two, "bank.other")
    assert isinstance(rig.error(), InvalidArgument)
    rig.claim(two, x=2)
    ask(rig, two, timeout_ms=0, x=2)
    assert isinstance(rig.error(), LockHeld)
    rig.space("bank", Policy.DETECT)
    assert isinstance(rig.error(), LockInUse)
    rig.release(one, held)
    rig.do(c.DeclareClaims(one, 0, {}, 7))
    assert rig.acquire(two, "bank.x")
    assert len(rig.granted()) == 1, "exclusively: all of it"
