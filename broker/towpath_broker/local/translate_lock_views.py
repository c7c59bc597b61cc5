"""Between the lock machine's reports and frames: lists, and why somebody waits. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from towpath.v1 import locks_pb2
from towpath.v1.frame_pb2 import Frame
from towpath_broker.core.locks import reports
from towpath_broker.core.locks.machine import LockMachine
from towpath_broker.core.locks.reports import IsSeen
from towpath_broker.core.locks.spaces import Space
from towpath_broker.core.locks.table import Table

from .translate_locks import LIST, LIST_SPACES, grant_to_proto

IsKept = Callable[[int], bool]
"""Whether a session's stream is open."""


def _owner(owner: reports.OwnerId) -> locks_pb2.LockOwner:
    return locks_pb2.LockOwner(session=owner.session, owner=owner.owner)


def grant_view(view: reports.GrantView) -> locks_pb2.LockGrant:
    """Return a grant as it is told."""
    told = grant_to_proto(view.grant, view.owner.session, view.request, view.owner.owner)
    told.note = view.note
    return told


def wait_view(view: reports.WaitView) -> locks_pb2.LockWait:
    """Return a wait as it is told."""
    return locks_pb2.LockWait(
        lock=view.lock,
        mode=locks_pb2.LockMode.ValueType(view.mode),
        weight=view.weight,
        since_ns=view.since_ns,
        deadline_ns=view.deadline_ns,
        owner=_owner(view.owner),
        request=view.request,
        place=view.place,
        reason=locks_pb2.WaitReason.ValueType(view.reason),
        note=view.note,
    )


def session_view(view: reports.SessionView, is_connected: bool) -> locks_pb2.LockSession:
    """Return a session as it is told."""
    return locks_pb2.LockSession(
        id=view.id,
        principal=view.principal,
        name=view.name,
        pid=view.pid,
        place=view.place,
        lease_ms=view.lease_ms,
        priority=view.priority,
        opened_at_ns=view.opened_at_ns,
        is_connected=is_connected,
        held=view.held,
        waiting=view.waiting,
    )


def lock_view(view: reports.LockView) -> locks_pb2.Lock:
    """Return a lock as it is told."""
    return locks_pb2.Lock(
        name=view.name,
        space=view.space,
        capacity=view.capacity,
        held=view.held,
        holders=map(grant_view, view.holders),
        waiters=map(wait_view, view.waiters),
        token=view.token,
        is_guarded=view.is_guarded,
        is_poisoned=view.is_poisoned,
    )


def holdings(table: Table, session: int) -> tuple[list[locks_pb2.LockGrant], list[locks_pb2.LockWait]]:
    """Return what a session has and waits for.

    Raises:
        SessionLost: there is none.
    """
    grants, waits = reports.holdings(table, session)
    return list(map(grant_view, grants)), list(map(wait_view, waits))


def waits_of(table: Table, session: int, number: int) -> list[locks_pb2.LockWait]:
    """Return what a request waits for; empty when it does not."""
    found = table.sessions.get(session)
    request = found.requests.get(number) if found is not None else None
    return [] if request is None else list(map(wait_view, reports.wait_views(table, request)))


def looked_frame(
    call: int, request: str, body: Any, machine: LockMachine, is_kept: IsKept, is_seen: IsSeen
) -> Frame:
    """Return the answer to a request that only looks, of locks that are seen.

    Raises:
        NotHeld, SessionLost: there is nothing to explain.
    """
    frame = Frame(id=call)
    if request == LIST:
        frame.list_locks_response.CopyFrom(
            listed(machine.table, body.prefix, body.page_token, body.page_size, is_kept, is_seen)
        )
    elif request == LIST_SPACES:
        frame.list_lock_spaces_response.SetInParent()
        frame.list_lock_spaces_response.spaces.extend(map(_space, machine.table.spaces))
    else:
        frame.explain_locks_response.CopyFrom(_explained(machine.table, body, is_kept, is_seen))
    return frame


def listed(
    table: Table, prefix: str, after: str, count: int, is_kept: IsKept, is_seen: IsSeen
) -> locks_pb2.ListLocksResponse:
    """Return a page of the locks that are in use, and the sessions that are named there."""
    count = min(count or reports.LOCKS_PER_PAGE, reports.LOCKS_PER_PAGE)
    views, is_more = reports.list_locks(table, prefix, after, count, is_seen)
    named = {each.owner.session for view in views for each in view.holders}
    named |= {each.owner.session for view in views for each in view.waiters}
    return locks_pb2.ListLocksResponse(
        locks=map(lock_view, views),
        next_page_token=views[-1].name if is_more else "",
        sessions=_sessions(table, named, is_kept),
    )


def _sessions(table: Table, named: Iterable[int], is_kept: IsKept) -> list[locks_pb2.LockSession]:
    return [
        session_view(reports.session_view(table.sessions[number]), is_kept(number))
        for number in sorted(named)
        if number in table.sessions
    ]


def _explained(
    table: Table, body: locks_pb2.ExplainLocksRequest, is_kept: IsKept, is_seen: IsSeen
) -> locks_pb2.ExplainLocksResponse:
    match body.WhichOneof("what"):
        case "lock":
            found = reports.explain_lock(table, body.lock, is_seen)
        case "session":
            found = reports.explain_session(table, body.session, is_seen)
        case _:
            found = reports.explain_all(table, is_seen)
    return locks_pb2.ExplainLocksResponse(
        sessions=[session_view(each, is_kept(each.id)) for each in found.sessions],
        locks=map(lock_view, found.locks),
        edges=[
            locks_pb2.LockEdge(
                waiter=_owner(edge.waiter), blocker=_owner(edge.blocker), lock=edge.lock, is_soft=edge.is_soft
            )
            for edge in found.edges
        ],
        bankers=map(_banker, found.bankers),
        is_cut=found.is_cut,
    )


def _banker(view: reports.BankerView) -> locks_pb2.BankerState:
    return locks_pb2.BankerState(
        space=view.space,
        resources=view.resources,
        total=view.total,
        available=view.available,
        processes=[
            locks_pb2.BankerProcess(owner=_owner(owner), allocation=allocation, maximum=maximum)
            for owner, allocation, maximum in zip(view.owners, view.allocation, view.maximum, strict=True)
        ],
        safe_sequence=map(_owner, view.safe_sequence),
        refusals=[
            locks_pb2.BankerRefusal(
                owner=_owner(each.owner),
                request=each.request,
                stuck=map(_owner, each.stuck),
                remedies=map(_owner, each.remedies),
            )
            for each in view.refusals
        ],
    )


def _space(space: Space) -> locks_pb2.LockSpace:
    return locks_pb2.LockSpace(
        prefix=space.prefix,
        policy=locks_pb2.LockPolicy.ValueType(space.policy),
        victim=locks_pb2.DeadlockVictim.ValueType(space.victim),
        ranks=space.ranks,
        resources=space.resources,
    )
