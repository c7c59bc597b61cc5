"""Lock lanes: memory in which a session asks for what is free, and gives it back, without the socket.

Theory of operation
    A lane (``clients/c/towpath_lane.h``) belongs to one connection and to the session that it keeps. It is
    another road for two of the words that the socket carries, ``Acquire`` for one lock and ``Release``, and
    they become the same commands. Only a grant is told in the lane. Of all else the client is told there to
    ask by the socket, with the same number: the request is in the machine by then, which says how it stands.
    A refusal has left nothing there; it is kept until it is asked for (``Kept.elsewhere``), so that nothing
    is judged twice.

    What came by the lane before a frame is carried out before it, and the other way round: each cell says
    how many frames were before it, and the lane is emptied before each frame.

    The loop sleeps in its selector, where the lane cannot wake it. So after something was said the loop
    *attends* to the lane: before it sleeps it looks there for ``LOOK_NS`` (:meth:`LockLanes.look`), as long
    as nothing else is to be done. Only so long the client uses it. Where that came to nothing the loop
    attends more and more seldom.

    While the engine waits for the disk nothing is taken from lanes, but before a frame: what one client may
    have under way is bounded by its cells and its calls.

Invariants
    Each cell that asks is answered once. What a client writes harms nobody else: what no client would write
    ends its connection.

Not here: what is judged (``core.locks``), whose session it is (``lock_calls``).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from towpath import _ring, wire
from towpath.errors import PermissionDenied, ProtocolViolation, TowpathError
from towpath.v1 import locks_pb2
from towpath_broker.core.ids import CallId
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.ports import LockRunner

from . import translate_locks
from .lock_answers import Call, Kept

if TYPE_CHECKING:
    from .connection import Connection

LOOK_NS: Final = 50_000
"""How long the loop looks into lanes, after something was said in one, before it sleeps."""
ATTENDED_MAX: Final = 8
"""Lanes that it looks into at a time; whoever else comes takes the place of the longest there."""
SKIPS_MAX: Final = 255
"""How often a lane is not attended to, at most, after that came to nothing."""
ASKED_MAX: Final = 64
"""Different requests of a lane that are kept, to be understood at once when they come again."""
ELSEWHERE_MAX: Final = 64
"""Requests of a session that were said in its lane, and about which it is to ask by the socket."""

SERVED_MAX: Final = 4
"""How often the loop serves lanes before others have a turn."""
NO_CALL: Final = CallId(0)

_REQUEST: Final = "acquire_request"
_DONE: Final = frozenset({e.Granted, e.Released})
"""Effects after which nothing is left to the loop."""


class Lane:
    """One connection's.

    Attributes:
        memory: this end of it.
        asked: requests as they were asked; None: what is not for a lane.
        is_attended, is_stalled: the loop looks into it; nothing is taken before the engine goes on.
        skips, left_out: how often it is not attended to; how often it was not.

    Raises:
        OSError: the host has no memory, or no descriptor.
    """

    __slots__ = (
        "asked",
        "connection",
        "is_attended",
        "is_stalled",
        "left_out",
        "memory",
        "session",
        "skips",
    )

    def __init__(self, connection: Connection, session: int) -> None:
        self.connection = connection
        self.session = session
        self.memory = _ring.LaneCore()
        self.asked: dict[bytes, c.Acquire | None] = {}
        self.is_attended = self.is_stalled = False
        self.skips = self.left_out = 0


class LockLanes:
    """All of the door's.

    Args:
        engine: the lock machine's.
        before: told of each command before the engine is given it.
        emit: carries out effects.
        kept: the sessions.
        check: refuses what a principal may not take.
    """

    def __init__(
        self,
        engine: LockRunner,
        *,
        before: Callable[[c.LockCommand], None],
        emit: Callable[[e.LockEffect], None],
        kept: Mapping[int, Kept],
        check: Callable[[str, c.Acquire], None],
    ) -> None:
        self._engine = engine
        self._before = before
        self._emit = emit
        self._kept = kept
        self._check = check
        self._attended: list[Lane] = []
        self._watched: tuple[_ring.LaneCore, ...] = ()
        self._until_ns = 0
        self._is_all_done = True  # of what was said last: the loop has nothing to do for it
        self._is_over = False

    # ---- connections ---------------------------------------------------------------------------------------

    def open(self, connection: Connection, session: int) -> wire.Descriptor:
        """Open a connection's lane, instead of the one that it has; returns the client's end.

        Raises:
            OSError: the host has no memory, or no descriptor.
        """
        self.close(connection)
        lane = Lane(connection, session)
        descriptor = wire.Descriptor(lane.memory.share())
        connection.lane = lane
        return descriptor

    def close(self, connection: Connection) -> None:
        """Take what was said last; there is no lane any more."""
        lane, connection.lane = connection.lane, None
        if lane is None:
            return
        with contextlib.suppress(ProtocolViolation):  # who said it is gone
            self.empty(lane)
        self._leave(lane)
        kept = self._kept.get(lane.session)
        if kept is not None:
            for call in [call for call in kept.waits.values() if call.lane is lane]:
                del kept.waits[call.number]

    def stop(self) -> None:
        """The core is about to end: nothing is taken any more."""
        self._is_over = True
        for lane in self._attended:
            lane.memory.rest()
        self._attended.clear()
        self._watched = ()

    # ---- what is said --------------------------------------------------------------------------------------

    def empty(self, lane: Lane) -> None:
        """Carry out what was said in a lane before the next frame of its connection.

        Raises:
            ProtocolViolation: no client says that; the connection must be closed.
        """
        if self._is_over:
            return
        take, frames = lane.memory.take, lane.connection.frames
        commands: list[c.LockCommand] = []
        broken = None
        try:
            for _ in range(_ring.LANE_CELLS):
                said = take(frames)
                if said is None:
                    break
                command = self._command(lane, *said)
                if command is not None:
                    commands.append(command)
        except _ring.RingError as error:
            broken = ProtocolViolation(str(error))
        if commands:
            self._carry_out(commands)
        if broken is not None:
            raise broken

    def _command(self, lane: Lane, position: int, number: int, asked: bytes | None) -> c.LockCommand | None:
        """Return what a cell says; None: it is answered."""
        session = lane.session
        kept = self._kept.get(session)
        is_its = kept is not None and kept.call is not None and kept.call.connection is lane.connection
        if asked is None:
            return c.Release(session, number) if is_its else None
        known = lane.asked.get(asked)
        if known is None and asked not in lane.asked:
            known = self._understand(lane, asked)
        if kept is None or not is_its or known is None or number in kept.waits or not self._may(lane, known):
            lane.memory.elsewhere(position)
            return None
        kept.waits[number] = Call(lane.connection, NO_CALL, _REQUEST, session, number, lane, position)
        return c.Acquire(
            session,
            known.owner,
            number,
            known.locks,
            known.timeout_ms,
            known.is_reentrant,
            False,
            known.note,
        )

    def _carry_out(self, commands: list[c.LockCommand]) -> None:
        for command in commands:
            self._before(command)
        effects = self._engine.try_now(commands)
        if effects is None:
            self._is_all_done = False
            for command in commands:
                self._engine.submit(command)
            return
        for effect in effects:
            if type(effect) not in _DONE:
                self._is_all_done = False
            self._emit(effect)

    def _understand(self, lane: Lane, asked: bytes) -> c.Acquire | None:
        """Return what is asked for, and keep it; None: it goes by the socket only, where it is told why."""
        if len(lane.asked) >= ASKED_MAX:
            lane.asked.clear()
        known = None
        try:
            body = locks_pb2.AcquireRequest.FromString(asked)
            if len(body.locks) == 1 and not body.is_guarded and not body.ask:
                known = translate_locks.acquire(body)
        except (DecodeError, TowpathError):
            pass
        lane.asked[asked] = known
        return known

    def _may(self, lane: Lane, known: c.Acquire) -> bool:
        if lane.connection.is_admin:
            return True
        try:
            self._check(lane.connection.peer.principal, known)
        except PermissionDenied:
            return False
        return True

    # ---- answers -------------------------------------------------------------------------------------------

    def answer(self, kept: Kept, call: Call, effect: e.LockEffect | None) -> None:
        """Say how it stands with what a lane's call asked for; None: it waits, or is not told here."""
        assert call.lane is not None
        if isinstance(effect, e.Granted) and len(effect.grants) == 1:
            grant = effect.grants[0]
            call.lane.skips //= 2
            call.lane.memory.granted(call.position, grant.token, grant.since_ns)
            return
        if len(kept.elsewhere) >= ELSEWHERE_MAX:
            del kept.elsewhere[next(iter(kept.elsewhere))]
        kept.elsewhere[call.number] = effect if isinstance(effect, e.Refused) else None
        call.lane.memory.elsewhere(call.position)
        _was_in_vain(call.lane)

    # ---- the loop ------------------------------------------------------------------------------------------

    def attend(self, lane: Lane) -> None:
        """Something was said on a lane's connection: look into it for a while, unless that does not pay."""
        if self._is_over:
            return
        self._until_ns = time.monotonic_ns() + LOOK_NS
        if lane.is_attended:
            return
        if lane.left_out < lane.skips:
            lane.left_out += 1
            return
        lane.left_out = 0
        if len(self._attended) >= ATTENDED_MAX and not self._rest(self._attended[0]):
            return
        lane.is_attended = True
        lane.memory.attend()
        self._attended.append(lane)
        self._watch()

    def look(self, epoll: int, timeout_s: float | None) -> bool:
        """Look into the lanes that are attended to, before the loop sleeps; returns whether it must not.

        Args:
            epoll: the descriptor of what the loop sleeps on; an event there ends the look.
            timeout_s: for how long it would sleep; 0: not at all; None: for ever.
        """
        if not self._watched:
            return False
        self._is_all_done = True
        found = 1
        for _ in range(SERVED_MAX):
            if not self._is_all_done:
                break
            span_ns = max(0, self._until_ns - time.monotonic_ns())
            if timeout_s is not None:
                span_ns = min(span_ns, int(timeout_s * 1e9))
            found = _ring.lanes_look(self._watched, epoll, span_ns)
            if found <= 0:
                break
            for lane in tuple(self._attended):
                if not lane.is_stalled and lane.memory.has_news:
                    self._serve(lane)
        if not found and timeout_s != 0:
            found = sum(not self._rest(lane) for lane in tuple(self._attended) if not lane.is_stalled)
        return found != 0

    def _serve(self, lane: Lane) -> None:
        """Take what is new in a lane that is attended to."""
        self._until_ns = time.monotonic_ns() + LOOK_NS
        if self._engine.is_at_disk():
            lane.is_stalled = True
            self._watch()
            self._is_all_done = False
            self._engine.look(lambda _: self._go_on(lane))
        else:
            self._empty_or_close(lane)

    def _go_on(self, lane: Lane) -> None:
        """What the disk was waited for is done; the engine takes what is said now next."""
        lane.is_stalled = False
        if lane.is_attended:
            self._empty_or_close(lane)
            self._watch()

    def _empty_or_close(self, lane: Lane) -> None:
        try:
            self.empty(lane)
        except ProtocolViolation as error:
            lane.connection.close(error)
            self._leave(lane)

    def _rest(self, lane: Lane) -> bool:
        """Look into a lane no more; False: something was said there just now, and the loop goes on."""
        if lane.is_stalled:
            return False
        if lane.memory.rest():
            self._serve(lane)
            return False
        _was_in_vain(lane)
        self._leave(lane)
        return True

    def _leave(self, lane: Lane) -> None:
        if lane.is_attended:
            lane.is_attended = False
            self._attended.remove(lane)
            self._watch()

    def _watch(self) -> None:
        self._watched = tuple(lane.memory for lane in self._attended if not lane.is_stalled)


def _was_in_vain(lane: Lane) -> None:
    """A look into a lane came to nothing that the socket could not have told."""
    lane.skips = min(2 * lane.skips + 1, SKIPS_MAX)
