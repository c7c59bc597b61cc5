"""What is told of the lock service to people and programs: lists, and why somebody waits.

Nothing here is a command: it reads the table between two of them, and changes nothing. Lists are bounded, and
say when they are cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import Final, NamedTuple

from towpath.errors import NotHeld

from .avoidance import banker
from .commands import Policy
from .effects import Grant
from .grants import AT_BARRIER, HELD, ON_CONDITION, WAITING, Claim, Lock, Owner, Request, Session, is_free
from .queue import holders_before, waiters_before
from .spaces import Space
from .table import Table, data_of

LOCKS_PER_PAGE: Final = 100
CLAIMS_PER_LOCK: Final = 100
"""Holders, and waiters, that are told of one lock."""
EDGES_MAX: Final = 10_000
"""Of one explanation."""
IsSeen = Callable[[str], bool]
"""Whether whoever asks may know of a lock."""


def all_seen(name: str) -> bool:
    """Everything may be told."""
    return True


class WaitReason(IntEnum):
    """What a request waits for; numbers as in locks.proto."""

    HELD = 1
    QUEUED = 2
    UNSAFE = 3
    SETTLING = 4
    CONDITION = 5
    BARRIER = 6


class OwnerId(NamedTuple):
    session: int
    owner: int


@dataclass(frozen=True, slots=True)
class SessionView:
    """A lock session. ``held`` and ``waiting`` count requests."""

    id: int
    principal: str
    name: str
    pid: int
    place: str
    lease_ms: int
    priority: int
    opened_at_ns: int
    held: int
    waiting: int


@dataclass(frozen=True, slots=True)
class GrantView:
    grant: Grant
    owner: OwnerId
    request: int
    note: str


@dataclass(frozen=True, slots=True)
class WaitView:
    """Attributes: lock: or the barrier. place: how many are before it in the queue. deadline_ns: 0: none."""

    lock: str
    mode: int
    weight: int
    since_ns: int
    deadline_ns: int
    owner: OwnerId
    request: int
    place: int
    reason: WaitReason
    note: str


@dataclass(frozen=True, slots=True)
class LockView:
    """Attributes: held: holders, or permits. waiting: how many; ``waiters`` may be fewer."""

    name: str
    space: str
    capacity: int
    held: int
    waiting: int
    holders: tuple[GrantView, ...]
    waiters: tuple[WaitView, ...]
    token: int
    is_guarded: bool
    is_poisoned: bool


class EdgeView(NamedTuple):
    """``waiter`` waits for ``blocker``, which holds the lock or (``is_soft``) only stands before it."""

    waiter: OwnerId
    blocker: OwnerId
    lock: str
    is_soft: bool


@dataclass(frozen=True, slots=True)
class BankerRefusal:
    """A request that waits although there is enough.

    Attributes:
        stuck: who could not finish if it were granted.
        remedies: who could make it safe, by giving back all that it has.
    """

    owner: OwnerId
    request: int
    stuck: tuple[OwnerId, ...]
    remedies: tuple[OwnerId, ...]


@dataclass(frozen=True, slots=True)
class BankerView:
    """A lock space with the banker's algorithm, as numbers: rows are owners, columns are resources.

    Attributes:
        safe_sequence: an order in which everybody can finish.
    """

    space: str
    resources: tuple[str, ...]
    total: tuple[int, ...]
    available: tuple[int, ...]
    owners: tuple[OwnerId, ...]
    allocation: tuple[tuple[int, ...], ...]
    maximum: tuple[tuple[int, ...], ...]
    safe_sequence: tuple[OwnerId, ...]
    refusals: tuple[BankerRefusal, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Who waits for whom, and all that takes part. ``is_cut``: there is more than is told."""

    sessions: tuple[SessionView, ...]
    locks: tuple[LockView, ...]
    edges: tuple[EdgeView, ...]
    bankers: tuple[BankerView, ...]
    is_cut: bool


# ---- lists -------------------------------------------------------------------------------------------------


def sessions(table: Table) -> tuple[SessionView, ...]:
    """Return all sessions, the oldest first."""
    return tuple(map(session_view, table.sessions.values()))


def session_view(session: Session) -> SessionView:
    """Return one session."""
    held = sum(request.state == HELD for request in session.requests.values())
    return SessionView(
        id=session.id,
        principal=session.principal,
        name=session.name,
        pid=session.pid,
        place=session.place,
        lease_ms=session.lease_ms,
        priority=session.priority,
        opened_at_ns=session.opened_at_ns,
        held=held,
        waiting=len(session.requests) - held,
    )


def holdings(table: Table, session: int) -> tuple[tuple[GrantView, ...], tuple[WaitView, ...]]:
    """Return what a session holds and waits for: what it is told when it is taken up again.

    Raises:
        SessionLost: there is none.
    """
    grants: list[GrantView] = []
    waits: list[WaitView] = []
    for request in table.session(session).requests.values():
        if request.state == HELD:
            told = table.grants_of(request)
            grants.extend(
                GrantView(grant, _id(request.owner), request.number, request.note) for grant in told
            )
        else:
            waits.extend(wait_views(table, request))
    return tuple(grants), tuple(waits)


def list_locks(
    table: Table,
    prefix: str = "",
    after: str = "",
    count: int = LOCKS_PER_PAGE,
    is_seen: IsSeen = all_seen,
) -> tuple[tuple[LockView, ...], bool]:
    """Return the locks whose names begin with a prefix, by name, and whether there are more.

    Args:
        after: only names behind this one.
        count: 1 to ``LOCKS_PER_PAGE``.
        is_seen: whether a name may be told.
    """
    names = sorted(name for name in table.locks if name.startswith(prefix) and name > after and is_seen(name))
    views = tuple(lock_view(table, table.locks[name]) for name in names[:count])
    return views, len(names) > count


def lock_view(table: Table, lock: Lock) -> LockView:
    """Return one lock, with its first holders and waiters."""
    data = lock.data
    return LockView(
        name=lock.name,
        space=lock.space.prefix,
        capacity=lock.capacity,
        held=lock.used,
        waiting=len(lock.queue) if lock.queue else 0,
        holders=tuple(
            GrantView(claim.told(), _id(claim.owner), claim.request.number, claim.request.note)
            for claim in islice(lock.holders, CLAIMS_PER_LOCK)
        ),
        waiters=tuple(
            _wait_view(table, claim, place)
            for place, claim in enumerate(islice(lock.queue or (), CLAIMS_PER_LOCK))
        ),
        token=lock.token,
        is_guarded=data is not None,
        is_poisoned=data is not None and data_of(lock).poisoned_by > 0,
    )


def wait_views(table: Table, request: Request) -> tuple[WaitView, ...]:
    """Return what a request waits for, one entry for each lock. O(those before it in the queues)."""
    if request.conversion is not None:
        request = request.conversion
    if request.state == WAITING:
        return tuple(_wait_view(table, claim, _place(claim)) for claim in request.claims)
    if request.state not in (ON_CONDITION, AT_BARRIER):
        return ()
    is_condition = request.state == ON_CONDITION
    claim = request.claims[0] if is_condition else None
    return (
        WaitView(
            lock=claim.lock.name if claim is not None else request.place,
            mode=claim.mode if claim is not None else 0,
            weight=1,
            since_ns=request.since_ns,
            deadline_ns=request.deadline_ns,
            owner=_id(request.owner),
            request=request.number,
            place=0,
            reason=WaitReason.CONDITION if is_condition else WaitReason.BARRIER,
            note=request.note,
        ),
    )


def _wait_view(table: Table, claim: Claim, place: int) -> WaitView:
    request = claim.request
    if table.settled_at_ns:
        reason = WaitReason.SETTLING
    elif not is_free(claim):
        reason = WaitReason.HELD
    elif claim.lock.space.policy is Policy.BANKER:
        reason = WaitReason.UNSAFE
    else:
        reason = WaitReason.QUEUED
    return WaitView(
        lock=claim.lock.name,
        mode=claim.mode,
        weight=claim.weight,
        since_ns=request.since_ns,
        deadline_ns=request.deadline_ns,
        owner=_id(request.owner),
        request=request.number,
        place=place,
        reason=reason,
        note=request.note,
    )


def _place(claim: Claim) -> int:
    return next(place for place, other in enumerate(claim.lock.queue or ()) if other is claim)


def _id(owner: Owner) -> OwnerId:
    return OwnerId(owner.session.id, owner.number)


# ---- why ---------------------------------------------------------------------------------------------------


def explain_lock(table: Table, name: str, is_seen: IsSeen = all_seen) -> Explanation:
    """Say who has a lock, who waits for it, and whom those wait for that have it; of locks that are seen.

    Raises:
        NotHeld: nobody uses it.
    """
    lock = table.locks.get(name)
    if lock is None:
        raise NotHeld(f"nobody holds, or waits for, {name!r}", hint="towpath locks lists those in use")
    return _explain(table, [lock], is_seen)


def explain_session(table: Table, session: int, is_seen: IsSeen = all_seen) -> Explanation:
    """Say what a session waits for, and what those wait for that have it; of locks that are seen.

    Raises:
        SessionLost: there is none.
    """
    requests = table.session(session).requests.values()
    locks = dict.fromkeys(claim.lock for request in requests for claim in request.claims)
    return _explain(table, locks, is_seen)


def explain_all(table: Table, is_seen: IsSeen = all_seen) -> Explanation:
    """Say who waits for whom, at all locks that are seen."""
    return _explain(table, [lock for lock in table.locks.values() if lock.holders or lock.queue], is_seen)


def _explain(table: Table, first: Iterable[Lock], is_seen: IsSeen) -> Explanation:
    """Tell of some locks, and of all that their holders wait for."""
    reached = dict.fromkeys(lock for lock in first if is_seen(lock.name))
    line = list(reached)
    concerned: dict[Session, None] = {}
    edges: list[EdgeView] = []
    is_cut = False
    for lock in line:  # grows while it is walked
        if len(edges) >= EDGES_MAX or len(concerned) >= EDGES_MAX:
            is_cut = True
            break
        for claim in lock.holders:
            concerned[claim.owner.session] = None
            for other in _waited_for(claim.owner):
                if other not in reached and is_seen(other.name):
                    reached[other] = None
                    line.append(other)
        for claim in lock.queue or ():
            concerned[claim.owner.session] = None
        edges.extend(islice(_edges(lock), EDGES_MAX - len(edges)))
    spaces = dict.fromkeys(lock.space for lock in reached if lock.space.policy is Policy.BANKER)
    return Explanation(
        sessions=tuple(map(session_view, concerned)),
        locks=tuple(lock_view(table, lock) for lock in reached),
        edges=tuple(edges),
        bankers=tuple(map(banker_view, spaces)),
        is_cut=is_cut or len(edges) >= EDGES_MAX,
    )


def _waited_for(owner: Owner) -> list[Lock]:
    busy = owner.busy
    return [claim.lock for claim in busy.claims] if busy is not None and busy.state == WAITING else []


def _edges(lock: Lock) -> Iterator[EdgeView]:
    """Yield who waits for whom at a lock; of those before it in the queue only the nearest that one may not
    pass, since the others follow from that."""
    for claim in lock.queue or ():
        waiter = _id(claim.owner)
        for holder in holders_before(claim):
            yield EdgeView(waiter, _id(holder.owner), lock.name, False)
        before = waiters_before(claim)
        if before:
            yield EdgeView(waiter, _id(before[-1].owner), lock.name, True)


# ---- the banker --------------------------------------------------------------------------------------------


def banker_view(space: Space) -> BankerView:
    """Return a lock space with the banker's algorithm as numbers. O(waiting requests * owners**2)."""
    state = banker.state_of(space)
    return BankerView(
        space=space.prefix,
        resources=tuple(state.resources),
        total=tuple(state.total),
        available=tuple(state.available),
        owners=tuple(map(_id, state.owners)),
        allocation=tuple(map(tuple, state.allocation)),
        maximum=tuple(
            tuple(has + may for has, may in zip(*rows, strict=True))
            for rows in zip(state.allocation, state.need, strict=True)
        ),
        safe_sequence=tuple(map(_id, state.order())),
        refusals=tuple(_refusal(state, request) for request in space.waiting if _is_enough(request)),
    )


def _is_enough(request: Request) -> bool:
    return all(map(is_free, request.claims))


def _refusal(state: banker.State, request: Request) -> BankerRefusal:
    state.take(request)
    order = state.order()
    stuck = [owner for owner in state.owners if owner not in order]
    remedies = [
        owner
        for owner in state.owners
        if owner is not request.owner and len(state.order_without(owner)) == len(state.owners)
    ]
    state.take(request, -1)
    return BankerRefusal(
        _id(request.owner), request.number, tuple(map(_id, stuck)), tuple(map(_id, remedies))
    )
