"""Calls about locks that are open at the door, sessions that are kept there, and how calls are answered.

Not here: who may ask what, and when it is answered (``lock_calls``); frames (``translate_locks``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from towpath import wire
from towpath.errors import LockInUse, TowpathError
from towpath_broker.core.ids import CallId
from towpath_broker.core.locks import effects as e

from . import translate_locks
from .lock_pages import Place

if TYPE_CHECKING:
    from .connection import Connection
    from .lock_lanes import Lane

Outcome = e.Granted | e.Refused | e.BarrierOpened


@dataclass(slots=True, eq=False)
class Call:
    """A call that is to be answered. ``session``, ``number``: of one that waits; ``lane``, ``position``: of
    one that came by a lane, and is no call of its connection."""

    connection: Connection
    call: CallId
    request: str
    session: int = 0
    number: int = 0
    lane: Lane | None = None
    position: int = 0


@dataclass(slots=True)
class Kept:
    """A session: by whom, and for whom. ``call`` is the stream; None while nobody keeps it. ``waits``: the
    calls that wait, by the numbers of their requests. ``outcomes``: how the latest waits of a session with a
    lease have ended, for those whose connection broke before they heard of it; ``asks`` tells one wait with a
    number from the next. ``elsewhere``: requests that came by a lane, and are to be asked about by the
    socket; those that were refused, how."""

    principal: str
    lease_ms: int
    call: Call | None = None
    waits: dict[int, Call] = field(default_factory=dict)
    asks: dict[int, int] = field(default_factory=dict)
    outcomes: dict[int, tuple[int, Outcome]] = field(default_factory=dict)
    elsewhere: dict[int, e.Refused | None] = field(default_factory=dict)


def tell_outcome(call: Call, effect: Outcome) -> None:
    """Say how a wait has ended."""
    match effect:
        case e.Granted():
            answer(call, translate_locks.granted_frame(call.call, call.request, effect))
        case e.Refused():
            answer(call, translate_locks.refused_frame(call.call, call.request, effect))
        case e.BarrierOpened():
            answer(call, translate_locks.opened_frame(call.call, effect))


def answer(call: Call, frame: Any, descriptors: tuple[wire.Descriptor, ...] = ()) -> None:
    """End a call, unless it was cancelled meanwhile."""
    if call.connection.request_of(call.call) is not None:
        call.connection.answer(frame, descriptors)


def refuse(call: Call, error: TowpathError) -> None:
    """End a call with an error, unless it was cancelled meanwhile."""
    if call.connection.request_of(call.call) is not None:
        call.connection.refuse(call.call, error)


def tell_place(call: Call, lock: str, place: Place | None) -> None:
    """Say where a lock is given out; None: it was taken back before."""
    if place is None:
        refuse(call, LockInUse(f"{lock!r} was not given out"))
        return
    frame = translate_locks.delegated_frame(call.call, place.identity, place.member, place.slot)
    answer(call, frame, () if place.page is None else (place.page,))
