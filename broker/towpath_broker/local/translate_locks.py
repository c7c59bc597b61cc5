"""Between frames and the lock machine: a command from a request, a frame from an effect. Pure.

Requests come in two sorts. Those in ``WAITS`` are answered, maybe after others have done something, by
``Granted``, ``Refused`` or ``BarrierOpened`` for their session and number; those in ``PLAIN``, by ``Done`` or
``Failed`` with the reference that was given to their command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from towpath import convert
from towpath.errors import InvalidArgument, SessionLost
from towpath.v1 import locks_pb2
from towpath.v1.frame_pb2 import Frame
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks.modes import EXCLUSIVE, PERMITS

KEEP: Final = "keep_lock_session_request"
LIST: Final = "list_locks_request"
LIST_SPACES: Final = "list_lock_spaces_request"
EXPLAIN: Final = "explain_locks_request"
WATCH: Final = "watch_locks_request"
RELEASE: Final = "release_request"
DELEGATE: Final = "delegate_lock_request"
OPEN_LANE: Final = "open_lock_lane_request"
FORCE_RELEASE: Final = "force_release_request"
DECLARE_CLAIMS: Final = "declare_claims_request"
LOOKING: Final = frozenset({LIST, LIST_SPACES, EXPLAIN, WATCH})
STREAMS: Final = frozenset({KEEP, WATCH})
"""Those that are answered until they are cancelled, or what they follow has ended."""


# ---- from requests -----------------------------------------------------------------------------------------


def _timeout_ms(body: Any) -> int:
    return int(body.timeout_ms) if body.HasField("timeout_ms") else c.NO_TIMEOUT


def _wanted(wanted: locks_pb2.WantedLock) -> c.Wanted:
    mode = wanted.mode or EXCLUSIVE
    if mode not in (1, 2, 3):
        raise InvalidArgument(f"there is no lock mode {mode}")
    if mode != PERMITS and (wanted.weight > 1 or wanted.capacity):
        raise InvalidArgument("only a semaphore has permits", hint="ask with LOCK_MODE_PERMITS")
    return c.Wanted(wanted.name, mode, wanted.weight or 1, wanted.capacity)


def acquire(body: locks_pb2.AcquireRequest) -> c.Acquire:
    """Return the command of a request for locks.

    Raises:
        InvalidArgument: there is no such command.
    """
    return c.Acquire(
        body.owner.session,
        body.owner.owner,
        body.request,
        tuple([_wanted(each) for each in body.locks]),
        _timeout_ms(body),
        body.is_reentrant,
        body.is_guarded,
        body.note,
    )


def _arrive(body: locks_pb2.ArriveBarrierRequest) -> c.LockCommand:
    return c.ArriveBarrier(
        body.owner.session,
        body.owner.owner,
        body.request,
        body.name,
        body.parties,
        _timeout_ms(body),
        body.is_latch,
        body.is_observer,
        body.is_passing,
        body.ask,
    )


WAITS: Final[Mapping[str, Callable[[Any], c.LockCommand]]] = {
    "acquire_request": acquire,
    "upgrade_lock_request": lambda body: c.Upgrade(body.session, body.request, _timeout_ms(body)),
    "wait_condition_request": lambda body: c.WaitCondition(
        body.session, body.request, body.condition, _timeout_ms(body), body.ask
    ),
    "arrive_barrier_request": _arrive,
}

REMEMBERED: Final = frozenset({"wait_condition_request", "arrive_barrier_request"})
"""Those of which the machine remembers how they ended: asked again, they would begin anew."""

PLAIN: Final[Mapping[str, Callable[[Any, str, int], c.LockCommand]]] = {
    RELEASE: lambda body, principal, reference: c.Release(
        body.session,
        body.request,
        body.value if body.HasField("value") else None,
        body.is_durable,
        body.is_recovered,
        reference,
    ),
    "downgrade_lock_request": lambda body, principal, reference: c.Downgrade(
        body.session, body.request, reference
    ),
    "write_guarded_request": lambda body, principal, reference: c.WriteGuarded(
        body.session, body.request, body.value, body.is_durable, body.is_recovered, reference
    ),
    "notify_condition_request": lambda body, principal, reference: c.NotifyCondition(
        body.session, body.request, body.condition, body.count, reference
    ),
    FORCE_RELEASE: lambda body, principal, reference: c.ForceRelease(
        principal, body.name, body.token, body.reason, reference
    ),
    DECLARE_CLAIMS: lambda body, principal, reference: c.DeclareClaims(
        body.owner.session, body.owner.owner, dict(body.claims), reference
    ),
    "define_lock_space_request": lambda body, principal, reference: _define(body, reference),
}

OF_OPERATORS: Final = frozenset({FORCE_RELEASE, "define_lock_space_request"})
"""Those that act for no session. Who may is the door's to judge."""
REQUESTS: Final = frozenset({KEEP, DELEGATE, OPEN_LANE, *LOOKING, *WAITS, *PLAIN})


def _define(body: locks_pb2.DefineLockSpaceRequest, reference: int) -> c.LockCommand:
    space = body.space
    try:
        policy = c.Policy(space.policy or c.Policy.DETECT)
        victim = c.Victim(space.victim or c.Victim.REQUESTER)
    except ValueError as error:
        raise InvalidArgument(f"a lock space cannot be so: {error}") from None
    return c.DefineSpace(
        space.prefix, policy, victim, dict(space.ranks), dict(space.resources), body.is_removed, reference
    )


def session_of(request: str, body: Any) -> int:
    """Return the lock session that a request acts for."""
    owned = request in ("acquire_request", "arrive_barrier_request", DECLARE_CLAIMS)
    return int(body.owner.session if owned else body.session)


# ---- from effects ------------------------------------------------------------------------------------------


def grant_to_proto(grant: e.Grant, session: int = 0, request: int = 0, owner: int = 0) -> locks_pb2.LockGrant:
    """Return a grant as it is told."""
    told = locks_pb2.LockGrant()
    _tell_grant(told, grant, session, request, owner)
    return told


def _tell_grant(
    told: locks_pb2.LockGrant, grant: e.Grant, session: int, request: int = 0, owner: int = 0
) -> None:
    told.lock = grant.lock
    told.mode = grant.mode  # type: ignore[assignment]
    told.token = grant.token
    told.weight = grant.weight
    told.since_ns = grant.since_ns
    told.request = request
    if session:
        told.owner.session = session
        told.owner.owner = owner
    if grant.value is not None:
        told.value.CopyFrom(
            locks_pb2.GuardedValue(
                is_set=grant.value.is_set,
                payload=grant.value.payload,
                written_by=grant.value.written_by,
                is_poisoned=grant.value.is_poisoned,
            )
        )


def refusal_to_proto(effect: e.Refused) -> locks_pb2.LockRefusal:
    """Return why a request was refused."""
    refusal = locks_pb2.LockRefusal(error=convert.error_to_proto(effect.error))
    for member in effect.cycle:
        refusal.deadlock.cycle.append(_member(member))
    if effect.blocker is not None:
        session, grant = effect.blocker
        refusal.blocker.CopyFrom(grant_to_proto(grant, session))
    return refusal


def _member(member: e.Member) -> locks_pb2.DeadlockMember:
    told = locks_pb2.DeadlockMember()
    told.session.id = member.session
    told.session.pid = member.pid
    told.owner.session = member.session
    told.owner.owner = member.owner
    if member.holds is not None:
        told.holds.CopyFrom(grant_to_proto(member.holds, member.session, owner=member.owner))
    told.waits.lock = member.waits_for
    told.waits.mode = locks_pb2.LockMode.ValueType(member.waits_mode)
    told.waits.weight = member.waits_weight
    told.waits.since_ns = member.waits_since_ns
    told.waits.request = member.request
    return told


def _answer(call: int, request: str) -> tuple[Frame, Any]:
    """Return a frame for a call, and the response in it that belongs to the request."""
    frame = Frame()
    frame.id = call
    response = getattr(frame, request[: -len("request")] + "response")
    response.SetInParent()
    return frame, response


def waiting_frame(call: int, request: str, waits: Iterable[locks_pb2.LockWait]) -> Frame:
    """Return how a wait stands."""
    frame, response = _answer(call, request)
    response.waiting.SetInParent()
    response.waiting.waits.extend(waits)
    return frame


def granted_frame(call: int, request: str, effect: e.Granted) -> Frame:
    """Return the end of a wait: it has the lock."""
    frame, response = _answer(call, request)
    granted = response.granted
    for each in effect.grants:
        _tell_grant(granted.grants.add(), each, effect.session, effect.request, effect.owner)
    if effect.is_timed_out:
        granted.is_timed_out = True
    return frame


def refused_frame(call: int, request: str, effect: e.Refused) -> Frame:
    """Return the end of a wait: it gets nothing."""
    frame, response = _answer(call, request)
    response.refused.CopyFrom(refusal_to_proto(effect))
    return frame


def opened_frame(call: int, effect: e.BarrierOpened) -> Frame:
    """Return the end of a wait at a barrier."""
    frame, response = _answer(call, "arrive_barrier_request")
    response.opened.index = effect.index
    response.opened.is_open = effect.is_open
    return frame


def done_frame(call: int, request: str, effect: e.Done) -> Frame:
    """Return the answer to a plain request."""
    frame, response = _answer(call, request)
    if request == "notify_condition_request":
        response.notified = effect.count
    elif request == "force_release_request":
        response.grants.extend(grant_to_proto(grant, session) for session, grant in effect.taken)
    return frame


def session_frame(
    call: int,
    session: int,
    lease_ms: int,
    token: bytes,
    grants: Iterable[locks_pb2.LockGrant] = (),
    waits: Iterable[locks_pb2.LockWait] = (),
) -> Frame:
    """Return the first item of a session's stream."""
    frame, response = _answer(call, KEEP)
    opened = response.opened
    opened.session = session
    opened.lease_ms = lease_ms
    opened.resume_token = token
    opened.grants.extend(grants)
    opened.waits.extend(waits)
    return frame


def alive_frame(call: int) -> Frame:
    """Return the answer to a client that says that it is there."""
    frame, response = _answer(call, KEEP)
    response.alive.SetInParent()
    return frame


def delegated_frame(call: int, page: int, member: int, slot: int) -> Frame:
    """Return where a lock is given out."""
    frame = Frame(id=call)
    answer = frame.delegate_lock_response
    answer.page, answer.member, answer.slot = page, member, slot
    return frame


def lane_frame(call: int) -> Frame:
    """Say that a lane is open; its descriptor goes with this."""
    frame = Frame(id=call)
    frame.open_lock_lane_response.SetInParent()
    return frame


def revoked_frame(call: int, effect: e.Revoked) -> Frame:
    """Return the notice that a lock was taken away."""
    frame, response = _answer(call, KEEP)
    response.revoked.grant.CopyFrom(grant_to_proto(effect.grant, effect.session, effect.request))
    response.revoked.reason = effect.message
    return frame


def wounded_frame(call: int, effect: e.Wounded) -> Frame:
    """Return the notice that an older owner wants what this one has."""
    frame, response = _answer(call, KEEP)
    response.wounded.owner.session = effect.session
    response.wounded.owner.owner = effect.owner
    response.wounded.grant.CopyFrom(grant_to_proto(effect.grant, effect.session))
    response.wounded.by.session = effect.by_session
    response.wounded.by.owner = effect.by_owner
    return frame


_WHY: Final[Mapping[c.EndReason, str]] = {
    c.EndReason.SESSION_CLOSED: "it was closed",
    c.EndReason.SESSION_DIED: "its connection ended",
    c.EndReason.LEASE_EXPIRED: "its lease has run out",
    c.EndReason.REBOOT: "the host was started anew",
}


def lost_frame(call: int, session: int, reason: c.EndReason) -> Frame:
    """Return the end of a session's stream."""
    frame, response = _answer(call, KEEP)
    error = SessionLost(f"lock session {session} is gone: {_WHY.get(reason, 'it ended')}")
    response.lost.error.CopyFrom(convert.error_to_proto(error))
    return frame
