"""What is told about locks: values of the client library."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final, NamedTuple

from towpath.v1 import locks_pb2


class Mode(IntEnum):
    """How a lock is held."""

    EXCLUSIVE = 1
    SHARED = 2
    PERMITS = 3


class Fence(NamedTuple):
    """A lock, and the token of the grant by which something is written."""

    lock: str
    token: int


@dataclass(frozen=True, slots=True)
class Owner:
    """One thread or task of a lock session; 0: a session that has but one."""

    session: int
    number: int


@dataclass(frozen=True, slots=True)
class Value:
    """What a lock owns.

    Attributes:
        payload: as it was written last; empty when it never was.
        is_set: whether it ever was.
        written_by: the token of the grant that wrote it.
        is_poisoned: whether a holder ended in the middle.
    """

    payload: bytes
    is_set: bool
    written_by: int
    is_poisoned: bool


@dataclass(frozen=True, slots=True)
class Grant:
    """A held lock.

    Attributes:
        token: above that of every grant before, for ever.
        weight: permits of a semaphore; 1 of others.
        since_ns: nanoseconds since the epoch.
        request: its session's number for it.
    """

    lock: str
    mode: Mode
    token: int
    weight: int
    since_ns: int
    owner: Owner
    request: int
    note: str = ""
    value: Value | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """A request that waits.

    Attributes:
        deadline_ns: 0: it waits for ever.
        place: how many are before it.
        reason: ``held``, ``queued``, ``unsafe``, ``settling``, ``condition``, ``barrier``.
    """

    lock: str
    mode: Mode
    weight: int
    since_ns: int
    deadline_ns: int
    owner: Owner
    request: int
    place: int
    reason: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Session:
    """Who has lock sessions: for people.

    Attributes:
        pid: 0 where it is not known.
        place: the command line, or the peer's address.
        lease_ms: how long it survives a broken connection; 0: not at all.
    """

    id: int
    principal: str
    name: str
    pid: int
    place: str
    lease_ms: int
    priority: int
    opened_at_ns: int
    is_connected: bool
    held: int
    waiting: int


@dataclass(frozen=True, slots=True)
class DeadlockMember:
    """One owner of a deadlock: it holds what the one before waits for; the next holds what it waits for."""

    session: Session
    owner: Owner
    holds: Grant | None
    waits: Wait


@dataclass(frozen=True, slots=True)
class LockInfo:
    """A lock that is held, waited for, or owns a value.

    Attributes:
        capacity: of a semaphore, how many permits there are; else 0.
        token: its newest grant's.
    """

    name: str
    space: str
    capacity: int
    held: int
    holders: tuple[Grant, ...]
    waiters: tuple[Wait, ...]
    token: int
    is_guarded: bool
    is_poisoned: bool


@dataclass(frozen=True, slots=True)
class LocksPage:
    """Some of the locks, by name; ``next_token`` is empty with the last."""

    locks: tuple[LockInfo, ...]
    sessions: tuple[Session, ...]
    next_token: str


class Listing(NamedTuple):
    """The locks that are in use, by name, and the sessions that are named there."""

    locks: list[LockInfo]
    sessions: list[Session]


@dataclass(frozen=True, slots=True)
class Edge:
    """Who waits for whom. ``is_soft``: the blocker is only before it in the queue."""

    waiter: Owner
    blocker: Owner
    lock: str
    is_soft: bool


@dataclass(frozen=True, slots=True)
class BankerProcess:
    """What one owner has of each resource, and claimed."""

    owner: Owner
    allocation: tuple[int, ...]
    maximum: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BankerRefusal:
    """A request that waits although there is enough.

    Attributes:
        stuck: those who could not finish if it were granted.
        remedies: owners whose release of all that they hold would make it safe.
    """

    owner: Owner
    request: int
    stuck: tuple[Owner, ...]
    remedies: tuple[Owner, ...]


@dataclass(frozen=True, slots=True)
class BankerState:
    """A lock space with the banker's algorithm, as numbers: columns are ``resources``.

    Attributes:
        safe_sequence: an order in which everybody can get all that they claimed, and finish.
    """

    space: str
    resources: tuple[str, ...]
    total: tuple[int, ...]
    available: tuple[int, ...]
    processes: tuple[BankerProcess, ...]
    safe_sequence: tuple[Owner, ...]
    refusals: tuple[BankerRefusal, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why something waits.

    Attributes:
        is_cut: there is more than could be told.
        bankers: of lock spaces with the banker's algorithm that are concerned.
    """

    sessions: tuple[Session, ...]
    locks: tuple[LockInfo, ...]
    edges: tuple[Edge, ...]
    is_cut: bool
    bankers: tuple[BankerState, ...] = ()


def _owner(owner: locks_pb2.LockOwner) -> Owner:
    return Owner(owner.session, owner.owner)


_MODES: Final = {int(mode): mode for mode in Mode}


def _mode(mode: int) -> Mode:
    return _MODES.get(mode, Mode.EXCLUSIVE)


def grant_from_proto(grant: locks_pb2.LockGrant) -> Grant:
    """A grant as programs see it."""
    value = None
    if grant.HasField("value"):
        told = grant.value
        value = Value(told.payload, told.is_set, told.written_by, told.is_poisoned)
    return Grant(
        grant.lock,
        _mode(grant.mode),
        grant.token,
        grant.weight,
        grant.since_ns,
        _owner(grant.owner),
        grant.request,
        grant.note,
        value,
    )


def wait_from_proto(wait: locks_pb2.LockWait) -> Wait:
    """A waiting request as programs see it."""
    reason = locks_pb2.WaitReason.Name(wait.reason) if wait.reason in locks_pb2.WaitReason.values() else ""
    return Wait(
        wait.lock,
        _mode(wait.mode),
        wait.weight,
        wait.since_ns,
        wait.deadline_ns,
        _owner(wait.owner),
        wait.request,
        wait.place,
        reason.removeprefix("WAIT_REASON_").lower(),
        wait.note,
    )


def session_from_proto(session: locks_pb2.LockSession) -> Session:
    """A lock session as programs see it."""
    return Session(
        session.id,
        session.principal,
        session.name,
        session.pid,
        session.place,
        session.lease_ms,
        session.priority,
        session.opened_at_ns,
        session.is_connected,
        session.held,
        session.waiting,
    )


def member_from_proto(member: locks_pb2.DeadlockMember) -> DeadlockMember:
    """One owner of a deadlock as programs see it."""
    return DeadlockMember(
        session_from_proto(member.session),
        _owner(member.owner),
        grant_from_proto(member.holds) if member.HasField("holds") else None,
        wait_from_proto(member.waits),
    )


def _lock(lock: locks_pb2.Lock) -> LockInfo:
    return LockInfo(
        lock.name,
        lock.space,
        lock.capacity,
        lock.held,
        tuple(map(grant_from_proto, lock.holders)),
        tuple(map(wait_from_proto, lock.waiters)),
        lock.token,
        lock.is_guarded,
        lock.is_poisoned,
    )


def page_from_proto(response: locks_pb2.ListLocksResponse) -> LocksPage:
    """A page of locks as programs see it."""
    return LocksPage(
        tuple(map(_lock, response.locks)),
        tuple(map(session_from_proto, response.sessions)),
        response.next_page_token,
    )


def explanation_from_proto(response: locks_pb2.ExplainLocksResponse) -> Explanation:
    """An explanation as programs see it."""
    return Explanation(
        tuple(map(session_from_proto, response.sessions)),
        tuple(map(_lock, response.locks)),
        tuple(
            Edge(_owner(each.waiter), _owner(each.blocker), each.lock, each.is_soft)
            for each in response.edges
        ),
        response.is_cut,
        tuple(map(_banker, response.bankers)),
    )


def _banker(state: locks_pb2.BankerState) -> BankerState:
    return BankerState(
        state.space,
        tuple(state.resources),
        tuple(state.total),
        tuple(state.available),
        tuple(
            BankerProcess(_owner(each.owner), tuple(each.allocation), tuple(each.maximum))
            for each in state.processes
        ),
        tuple(map(_owner, state.safe_sequence)),
        tuple(
            BankerRefusal(
                _owner(each.owner),
                each.request,
                tuple(map(_owner, each.stuck)),
                tuple(map(_owner, each.remedies)),
            )
            for each in state.refusals
        ),
    )


def in_mode(grant: Grant, mode: Mode) -> Grant:
    """Return the grant, held in another way."""
    return replace(grant, mode=mode)
