"""What is asked about locks, as calls. Sans-I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeVar

from google.protobuf.message import Message

from towpath import convert
from towpath.calls import Call
from towpath.errors import Deadlock, InvalidArgument, LockHeld, LockOrder, TowpathError, WaitRefused
from towpath.locks import model
from towpath.names import check_name
from towpath.v1 import locks_pb2
from towpath.v1.frame_pb2 import Frame

M = TypeVar("M", bound=Message)

TIMEOUT_MS_MAX: Final = (1 << 32) - 1
PAGE: Final = 100


class Wanted(NamedTuple):
    """One lock of a request. ``weight``, ``capacity``: of a semaphore."""

    name: str
    mode: model.Mode = model.Mode.EXCLUSIVE
    weight: int = 1
    capacity: int = 0


def make(kind: type[M], **fields: Any) -> M:
    """Make a request.

    Raises:
        InvalidArgument: a field is of the wrong type or out of its range.
    """
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{kind.__name__.removesuffix('Request')}: {error}") from None


def timeout_ms(timeout_s: float | None) -> int | None:
    """A timeout as it is told: whole milliseconds, rounded up; None for never.

    Raises:
        InvalidArgument: it is negative or not a number.
    """
    if timeout_s is None:
        return None
    if not timeout_s >= 0:
        raise InvalidArgument(
            f"a timeout of {timeout_s} seconds", hint="None waits for ever, 0 does not wait"
        )
    return min(TIMEOUT_MS_MAX, -int(-timeout_s * 1000 // 1))


# ---- sessions ----------------------------------------------------------------------------------------------


def keep(
    *, name: str, lease_ms: int, priority: int, resumed: int, resume_token: bytes
) -> Call[locks_pb2.KeepLockSessionResponse]:
    """Open a lock session, or take one up again; answered by notices for as long as it lives."""
    opening = make(
        locks_pb2.OpenLockSession,
        name=name,
        lease_ms=lease_ms,
        priority=priority,
        resumed=resumed,
        resume_token=resume_token,
    )
    request = locks_pb2.KeepLockSessionRequest(open=opening)
    return Call(
        "keep_lock_session_request",
        request,
        "keep_lock_session_response",
        lambda response: response,
        is_last=lambda response: response.HasField("lost"),
        is_exchange=True,
    )


# ---- waiting -----------------------------------------------------------------------------------------------


class Standing(NamedTuple):
    """An answer to what waits: how it stands (``waits``), or that it is over (``is_over``), be it with an
    error. That is no answer of its own, because an error on the way may have the same name."""

    is_over: bool
    grants: tuple[model.Grant, ...] = ()
    waits: tuple[model.Wait, ...] = ()
    is_timed_out: bool = False
    place: int = 0
    is_open: bool = False
    error: TowpathError | None = None


def refusal(refused: locks_pb2.LockRefusal) -> TowpathError:
    """Return the error that a refusal is, with what is known beside it."""
    error = convert.error_from_proto(refused.error)
    if isinstance(error, Deadlock):
        error.cycle = tuple(map(model.member_from_proto, refused.deadlock.cycle))
    elif isinstance(error, (LockHeld, LockOrder, WaitRefused)) and refused.HasField("blocker"):
        error.blocker = model.grant_from_proto(refused.blocker)
    return error


def _standing(response: Any) -> Standing:
    match response.WhichOneof("event"):
        case "granted":
            granted = response.granted
            grants = tuple([model.grant_from_proto(each) for each in granted.grants])
            return Standing(True, grants, is_timed_out=granted.is_timed_out)
        case "refused":
            return Standing(True, error=refusal(response.refused))
        case "opened":
            return Standing(True, place=response.opened.index, is_open=response.opened.is_open)
        case _:
            return Standing(False, waits=tuple(map(model.wait_from_proto, response.waiting.waits)))


def _waiting_call(request: str, body: Any) -> Call[Standing]:
    return Call(
        f"{request}_request",
        body,
        f"{request}_response",
        _standing,
        is_last=lambda standing: standing.is_over,
    )


def acquire(
    owner: int,
    wanted: Sequence[Wanted],
    *,
    timeout_s: float | None,
    is_reentrant: bool = False,
    is_guarded: bool = False,
    note: str = "",
) -> Call[Standing]:
    """Take locks; in which session, :func:`addressed` says."""
    request = make(
        locks_pb2.AcquireRequest,
        owner=locks_pb2.LockOwner(owner=owner),
        timeout_ms=timeout_ms(timeout_s),
        is_reentrant=is_reentrant,
        is_guarded=is_guarded,
        note=note,
    )
    for each in wanted:
        request.locks.append(
            make(
                locks_pb2.WantedLock,
                name=check_name(each.name),
                mode=locks_pb2.LockMode.ValueType(each.mode),
                weight=each.weight,
                capacity=each.capacity,
            )
        )
    return _waiting_call("acquire", request)


def whole(call: Call[Standing]) -> Call[Standing]:
    """Return a call that is made once and asked again and again: after each time that it was sent it may be
    addressed anew. Where what is asked is sent later it must not be used."""
    frame = Frame()
    body = getattr(frame, call.request)
    body.CopyFrom(call.body)
    return replace(call, body=body, whole=frame)


def addressed(call: Call[Standing], session: int, number: int) -> Call[Standing]:
    """Say of a call that acts for an owner in which session that is, and the request's number there."""
    call.body.owner.session = session
    call.body.request = number
    return call


def upgrade(session: int, number: int, timeout_s: float | None) -> Call[Standing]:
    """Make a shared lock exclusive."""
    request = make(
        locks_pb2.UpgradeLockRequest, session=session, request=number, timeout_ms=timeout_ms(timeout_s)
    )
    return _waiting_call("upgrade_lock", request)


def wait_condition(session: int, number: int, condition: str, timeout_s: float | None) -> Call[Standing]:
    """Wait to be notified, without the lock meanwhile."""
    request = make(
        locks_pb2.WaitConditionRequest,
        session=session,
        request=number,
        condition=condition,
        timeout_ms=timeout_ms(timeout_s),
    )
    return _waiting_call("wait_condition", request)


def arrive(owner: int, name: str, parties: int, timeout_s: float | None) -> Call[Standing]:
    """Arrive at a barrier, and wait for the others; in which session, :func:`addressed` says."""
    request = make(
        locks_pb2.ArriveBarrierRequest,
        owner=locks_pb2.LockOwner(owner=owner),
        name=check_name(name),
        parties=parties,
        timeout_ms=timeout_ms(timeout_s),
    )
    return _waiting_call("arrive_barrier", request)


def come_to_latch(
    owner: int, name: str, count: int, timeout_s: float | None, *, is_counted: bool, is_waiting: bool
) -> Call[Standing]:
    """Be counted at a latch, wait until it opens, or both; in which session, :func:`addressed` says."""
    call = arrive(owner, name, count, timeout_s)
    call.body.is_latch = True
    call.body.is_observer = not is_counted
    call.body.is_passing = not is_waiting
    return call


# ---- answered at once --------------------------------------------------------------------------------------


def release(session: int, number: int) -> Call[None]:
    """Give back what a request holds. What became of it is known already, or told otherwise."""
    frame = Frame()
    request = frame.release_request
    request.session, request.request = session, number
    return Call("release_request", request, "release_response", _nothing, is_one_way=True, whole=frame)


def _nothing(_: object) -> None:
    return None


class Place(NamedTuple):
    """Where a lock is given out: the page, the owner's number in it, and the lock's."""

    page: int
    member: int
    slot: int


def delegate(session: int, owner: int, name: str, page: int) -> Call[Place]:
    """Give a lock out to the uid's lock page, of which the session has one, or 0."""
    request = locks_pb2.DelegateLockRequest(
        owner=locks_pb2.LockOwner(session=session, owner=owner), lock=name, page=page
    )
    return Call(
        "delegate_lock_request",
        request,
        "delegate_lock_response",
        lambda response: Place(response.page, response.member, response.slot),
    )


def open_lane(session: int) -> Call[None]:
    """Open a lane for a session on this connection."""
    request = locks_pb2.OpenLockLaneRequest(session=session)
    return Call("open_lock_lane_request", request, "open_lock_lane_response", _nothing)


def downgrade(session: int, number: int) -> Call[None]:
    """Make an exclusive lock shared."""
    request = locks_pb2.DowngradeLockRequest(session=session, request=number)
    return Call("downgrade_lock_request", request, "downgrade_lock_response", lambda _: None)


def notify_condition(session: int, number: int, condition: str, count: int) -> Call[int]:
    """Notify who waits; answered by how many those were."""
    request = make(
        locks_pb2.NotifyConditionRequest, session=session, request=number, condition=condition, count=count
    )
    return Call(
        "notify_condition_request", request, "notify_condition_response", lambda response: response.notified
    )


def force_release(name: str, token: int, reason: str) -> Call[tuple[model.Grant, ...]]:
    """Take a lock from whoever has it."""
    request = make(locks_pb2.ForceReleaseRequest, name=check_name(name), token=token, reason=reason)
    return Call(
        "force_release_request",
        request,
        "force_release_response",
        lambda response: tuple(map(model.grant_from_proto, response.grants)),
    )


def list_locks(prefix: str, page_token: str) -> Call[model.LocksPage]:
    """Ask for a page of the locks in use."""
    request = make(locks_pb2.ListLocksRequest, prefix=prefix, page_size=PAGE, page_token=page_token)
    return Call("list_locks_request", request, "list_locks_response", model.page_from_proto)


def watch_locks(prefix: str) -> Call[locks_pb2.WatchLocksResponse]:
    """Follow what happens to locks."""
    request = make(locks_pb2.WatchLocksRequest, prefix=prefix)
    return Call("watch_locks_request", request, "watch_locks_response", lambda response: response)


def explain(*, lock: str = "", session: int = 0) -> Call[model.Explanation]:
    """Ask who waits for whom: of a lock, of a session, or (neither) of all."""
    request = locks_pb2.ExplainLocksRequest()
    if lock:
        request.lock = check_name(lock)
    elif session:
        request.session = session
    else:
        request.is_all = True
    return Call("explain_locks_request", request, "explain_locks_response", model.explanation_from_proto)
