"""What is done about a circle of waits: reorder a queue, or refuse a victim.

Theory of operation
    When a request begins to wait and a circle may lead through it, the state is *reduced*: who does not wait
    may release all it has; so may, then, whoever could be granted with that; and so on, in whatever order the
    queues stand. If the requester gets its turn, nobody need be refused. If it does not, it is in a deadlock,
    and only refusing somebody helps. That is exact for permits, too, where a circle proves nothing. Since
    there was no deadlock before, all that are stuck with it are on circles, or behind circles, through it.

    *Nobody need be refused*: then somebody may be stuck all the same, by the order of queues. The state is
    reduced once more, this time in order. Of those that are stuck then, take the one that was the first to
    finish before: what others hold is not in its way, since they all finish; only some that stand before it
    in a queue are. It is moved before the first of these. So it is stuck no more, and nobody else becomes so;
    after at most as many moves as owners were stuck nobody is. What was not stuck keeps its place.
    (PostgreSQL searches such a rearrangement by trying; the reduction shows one.)

    *A victim*: one of the circle, by the lock space's policy. Its request is refused with the whole circle;
    it keeps what it holds, and should give it back. If another circle is left, that is dealt with likewise.

    Where a lock space has no detection (timeout only), circles may be there before. A search from a request
    finds only those through itself, so they do not trouble others.

Sources: R. C. Holt, "Some Deadlock Properties of Computer Systems", Computing Surveys 4 (3), 1972
(reduction); PostgreSQL, src/backend/storage/lmgr/README (soft edges, the scenarios rebuilt in the tests).
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from heapq import heappop, heappush

from towpath.errors import Deadlock

from . import waits
from .avoidance.banker import waits_elsewhere
from .commands import Policy, Victim
from .effects import Member
from .grants import Claim, Lock, Owner, Request, Session
from .modes import EXCLUSIVE, NAMES, SHARED
from .queue import advance, waiters_before
from .table import Table, rearrange
from .waits import Edge, waiting_of


def resolve(table: Table, request: Request) -> None:
    """See that a request which has just begun to wait is in no deadlock; it may be granted, or refused."""
    space = request.claims[0].lock.space
    if all(claim.lock.space.policy is Policy.TIMEOUT_ONLY for claim in request.claims):
        return
    if space.policy is Policy.BANKER and not waits_elsewhere(space):
        return
    while waiting_of(request.owner) is request and waits.may_close_circle(request):
        reduction = Reduction(request)
        if request.owner in reduction.finished:
            _untangle(table, request)
            return
        cycle = waits.circle(request, reduction.stuck)
        if not cycle:
            return  # it only waits for a deadlock of a lock space that does not look for them
        table.deadlocks += 1
        refuse_victim(table, _victim(request, cycle), cycle)


# ---- reduction ---------------------------------------------------------------------------------------------


class Reduction:
    """Who, of those that a request may have to wait for, can finish, whatever the order of queues.

    Only owners that hold something matter to that.

    Args:
        start: one that waits.
        with_queues: take in those who stand in the queues, too, and what they wait for.

    Attributes:
        finished: the owners that can, in an order in which they can.
        stuck: those that cannot.
        locks: those that were reached.
    """

    def __init__(self, start: Request, *, with_queues: bool = False) -> None:
        self.finished: dict[Owner, None] = {}
        self.stuck: dict[Owner, None] = {}
        self.locks: dict[Lock, None] = {}
        self._room = Room()
        self._waiters: dict[Lock, list[Request]] = {}
        self._ready: list[tuple[int, Request]] = []
        for owner in self._reach(start, with_queues):
            self._finish(owner)
        for owner in tuple(self.stuck):
            waits = waiting_of(owner)
            assert waits is not None
            self._look(waits)
        while self._ready:
            _, request = heappop(self._ready)
            if request.owner in self.stuck:
                self._finish(request.owner)

    def _reach(self, start: Request, with_queues: bool) -> dict[Owner, None]:
        """Find those that wait, and return those that do not."""
        free: dict[Owner, None] = {}
        known: dict[Request, None] = {start: None}
        line = [start]
        for request in line:  # grows while it is walked
            if request.owner.grants:
                self.stuck[request.owner] = None
            for claim in request.claims:
                lock = claim.lock
                if request.owner.grants:
                    self._waiters.setdefault(lock, []).append(request)
                if lock in self.locks:
                    continue
                self.locks[lock] = None
                self._room.add(lock)
                others = [*lock.holders, *lock.queue] if with_queues and lock.queue else [*lock.holders]
                for other in others:
                    waits = waiting_of(other.owner)
                    if waits is None:
                        free[other.owner] = None
                    elif waits not in known:
                        known[waits] = None
                        line.append(waits)
        return free

    def _finish(self, owner: Owner) -> None:
        """An owner gives back all it has."""
        self.stuck.pop(owner, None)
        self.finished[owner] = None
        for claim in owner.grants:
            if self._room.give_back(claim):
                for request in self._waiters.get(claim.lock, ()):
                    self._look(request)

    def _look(self, request: Request) -> None:
        if request.owner in self.stuck and all(map(self._room.is_free, request.claims)):
            heappush(self._ready, (request.seq, request))


class Room:
    """What locks would have room for, if some grants had been given back."""

    def __init__(self) -> None:
        self._used: dict[Lock, int] = {}
        self._exclusive: dict[Lock, Claim | None] = {}

    def add(self, lock: Lock) -> None:
        """Take in a lock, as it is."""
        self._used[lock] = lock.used
        self._exclusive[lock] = lock.exclusive

    def give_back(self, claim: Claim) -> bool:
        """Suppose that a grant has ended; whether it is of one of the locks."""
        lock = claim.lock
        if lock not in self._used:
            return False
        self._used[lock] -= claim.weight
        if self._exclusive[lock] is claim:
            self._exclusive[lock] = None
        return True

    def is_free(self, claim: Claim) -> bool:
        """As ``grants.is_free``."""
        lock = claim.lock
        if lock.capacity:
            return self._used[lock] + claim.weight <= lock.capacity
        if claim.mode == EXCLUSIVE:
            return self._used[lock] == (0 if claim.converts is None else 1)
        return self._exclusive[lock] is None


class InOrder:
    """Who can finish if queues are as they are.

    Args:
        locks: with each lock, those that its holders and waiters wait for.

    Attributes:
        stuck: the owners that cannot.
    """

    def __init__(self, locks: Iterable[Lock]) -> None:
        self.stuck: dict[Owner, None] = {}
        self._room = Room()
        self._lines: dict[Lock, list[Claim]] = {}
        self._heads: dict[Lock, int] = {}
        self._woken: list[Lock] = []
        free: dict[Owner, None] = {}
        for lock in locks:
            self._room.add(lock)
            self._lines[lock] = list(lock.queue or ())
            self._heads[lock] = 0
            self._woken.append(lock)
            for claim in (*lock.holders, *self._lines[lock]):
                (free if waiting_of(claim.owner) is None else self.stuck)[claim.owner] = None
        for owner in free:
            self._finish(owner)
        while self._woken:
            for claim in self._firsts(self._woken.pop()):
                if claim.owner in self.stuck and all(map(self._is_its_turn, claim.request.claims)):
                    self._finish(claim.owner)

    def _finish(self, owner: Owner) -> None:
        self.stuck.pop(owner, None)
        for claim in owner.grants:
            if self._room.give_back(claim):
                self._woken.append(claim.lock)
        waits = waiting_of(owner)
        if waits is not None:
            self._woken.extend(claim.lock for claim in waits.claims)

    def _firsts(self, lock: Lock) -> list[Claim]:
        """Return the claims of a queue that no other before them holds up."""
        line = self._lines[lock]
        if lock.space.policy is Policy.BANKER:
            return [claim for claim in line if claim.owner in self.stuck]
        head = self._heads[lock]
        while head < len(line) and line[head].owner not in self.stuck:
            head += 1
        self._heads[lock] = head
        found: list[Claim] = []
        for at in range(head, len(line)):
            claim = line[at]
            if claim.owner not in self.stuck:
                continue
            if claim.mode != SHARED:
                if not found or claim.converts is not None:
                    found.append(claim)
                break
            found.append(claim)
        return found

    def _is_its_turn(self, claim: Claim) -> bool:
        return self._room.is_free(claim) and claim in self._firsts(claim.lock)


# ---- reordering --------------------------------------------------------------------------------------------


def _untangle(table: Table, start: Request) -> None:
    """Move waiters forward until nobody is stuck by the order of queues alone, and grant what that allows."""
    reduction = Reduction(start, with_queues=True)
    touched: dict[Lock, None] = {}
    while True:
        in_order = InOrder(reduction.locks)
        first = next((owner for owner in reduction.finished if owner in in_order.stuck), None)
        if first is None:
            break
        request = waiting_of(first)
        assert request is not None
        for claim in request.claims:
            if _move_forward(claim, in_order.stuck):
                touched[claim.lock] = None
    for lock in touched:
        table.revision += 1
        advance(table, lock)


def _move_forward(claim: Claim, stuck: Container[Owner]) -> bool:
    """Move a claim before the first that is stuck and in its way, and with it those between that are not
    stuck: they were before it and stay so."""
    before = waiters_before(claim)
    first = next((other for other in before if other.owner in stuck), None)
    if first is None:
        return False
    queue = claim.lock.queue
    assert queue is not None
    order = [other for other in queue if other.place < first.place]
    between = [other for other in queue if first.place <= other.place <= claim.place]
    order.extend(other for other in between if other is claim or other.owner not in stuck)
    order.extend(other for other in between if other is not claim and other.owner in stuck)
    order.extend(other for other in queue if other.place > claim.place)
    rearrange(claim.lock, order)
    return True


# ---- victims -----------------------------------------------------------------------------------------------


def _victim(request: Request, cycle: list[Edge]) -> Request:
    """Choose who of a circle is refused, by the policy of the lock space in which it was closed."""
    members = [edge.waiter.request for edge in cycle]
    match request.claims[0].lock.space.victim:
        case Victim.YOUNGEST:
            return max(members, key=lambda each: each.owner.age)
        case Victim.FEWEST_LOCKS:
            return min(members, key=lambda each: (len(each.owner.grants), _youth(each)))
        case Victim.LOWEST_PRIORITY:
            return min(members, key=lambda each: (each.session.priority, _youth(each)))
        case _:
            return request


def _youth(request: Request) -> tuple[int, int]:
    session, owner = request.owner.age
    return -session, -owner


def refuse_victim(table: Table, victim: Request, cycle: list[Edge]) -> None:
    """Refuse one of a circle, and grant what that allows."""
    at = next(index for index, edge in enumerate(cycle) if edge.waiter.request is victim)
    cycle = cycle[at:] + cycle[:at]
    members = tuple(
        _member(edge, before.holder) for edge, before in zip(cycle, [cycle[-1], *cycle[:-1]], strict=True)
    )
    locks = [claim.lock for claim in victim.claims]
    table.leave_queues(victim)
    table.refuse(victim, Deadlock(_told(cycle)), members)
    for lock in locks:
        advance(table, lock)


def _member(edge: Edge, holds: Claim) -> Member:
    waiter = edge.waiter
    session = waiter.request.session
    return Member(
        session=session.id,
        owner=waiter.owner.number,
        pid=session.pid,
        holds=holds.told(),
        waits_for=waiter.lock.name,
        waits_mode=waiter.mode,
        waits_weight=waiter.weight,
        waits_since_ns=waiter.request.since_ns,
        request=waiter.request.number if waiter.request.upgrades is None else waiter.request.upgrades.number,
    )


def _told(cycle: list[Edge]) -> str:
    """Say a circle in words; of a long one the beginning."""
    first = cycle[0].waiter
    parts = [f"{name_of(first.request.session)} waits for {first.lock.name} ({NAMES[first.mode]})"]
    for edge in cycle[1:4]:
        parts.append(
            f"held by {name_of(edge.waiter.request.session)}, which waits for {edge.waiter.lock.name}"
        )
    if len(cycle) > 4:
        parts.append(f"and so on through {len(cycle) - 4} more")
    parts.append(f"held by {name_of(first.request.session)}" if len(cycle) > 1 else "which it holds itself")
    return ", ".join(parts)


def name_of(session: Session) -> str:
    """Return what people know a session by."""
    pid = f", pid {session.pid}" if session.pid else ""
    return f"session {session.id} ({session.name or session.principal}{pid})"
