"""Lock sessions and lock calls at the door: who keeps which session, and who waits for which answer.

Theory of operation
    A lock session is kept by the connection that has its stream open. One with a lease of 0 ends with the
    stream, be it that the connection ended or the process; one with a lease may be taken up again, by whoever
    shows the token that came with it, until the lease has run out (``core.locks.leases``). One that a gateway
    keeps for a peer must also be heard of meanwhile. That a session has ended is told to the machine as a
    command, and so stands in the journal.

    After a restart of the core nobody keeps the sessions that the journal has. Each has its lease, or
    ``GRACE_MS``, to be taken up again; one whose process is gone ends at once.

    A wait is known by its session and the number that the session gave it; a call that waits is the one that
    last asked with that number. So a session that was taken up asks again, and is told how things stand.

Invariants
    A connection acts only for sessions that it keeps, on behalf of the principal that opened them.
    Each call is answered once; after that nothing is sent for it.

Not here: decisions about locks (``core.locks``), frames (``translate_locks``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from towpath.errors import (
    Cancelled,
    InvalidArgument,
    LockInUse,
    NotSupported,
    PermissionDenied,
    SessionLost,
    TowpathError,
    host_limits,
)
from towpath.locks.joined import JOINED
from towpath.names import check_name
from towpath_broker.core.commands import Caller
from towpath_broker.core.ids import CallId
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks.machine import LockMachine
from towpath_broker.core.locks.permissions import Permissions
from towpath_broker.ports import LockRunner
from towpath_broker.rings.kept import Keeper

from . import translate_lock_views, translate_locks
from .lock_answers import Call, Kept, Outcome, answer, refuse, tell_outcome, tell_place
from .lock_lanes import LockLanes
from .lock_leases import TimedLeases
from .lock_pages import LockPages
from .lock_watches import LockWatches
from .processes import command_line, is_alive
from .tokens import ResumeTokens

if TYPE_CHECKING:
    from .connection import Connection

GRACE_MS: Final = 5_000
"""How long the sessions of local programs may take to come back after a restart of the core."""
OUTCOMES_MAX: Final = 256
"""Ends of waits that are remembered for each session with a lease, in case its connection breaks."""


class LockCalls:
    """All of the door's.

    Args:
        engine: runs the lock machine; nothing of it waits.
        tokens: what proves that who takes a session up had it.
        keeper: has the supervisor keep lock pages.

    Attributes:
        permissions: who may do what; may be replaced.
    """

    def __init__(self, engine: LockRunner, tokens: ResumeTokens, keeper: Keeper) -> None:
        self.permissions = Permissions({})
        self._submit_now, self._look = engine.submit, engine.look
        self._tokens = tokens
        self.pages = LockPages(
            engine.submit,
            partial(engine.look, is_patient=True),
            keeper.keep_lock_page,
            keeper.remove_lock_page,
        )
        self._kept: dict[int, Kept] = {}
        self.lanes = LockLanes(
            engine, before=self.pages.before, emit=self.emit, kept=self._kept, check=self._check_take
        )
        self._of_call: dict[tuple[Connection, int], Call] = {}
        self._by_reference: dict[int, Call] = {}
        self._opening: dict[int, Kept] = {}
        self._next_reference = 1
        self._watches = LockWatches(engine.look)
        self._leases = TimedLeases(self._expired)
        self._is_over = False
        self._emitting: dict[type[e.LockEffect], Callable[[Any], None]] = {
            e.Granted: self._answer_wait,
            e.Refused: self._answer_wait,
            e.BarrierOpened: self._answer_wait,
            e.Waiting: self._tell_wait,
            e.Done: self._done,
            e.Failed: self._failed,
            e.SessionOpened: self._opened,
            e.SessionEnded: self._ended,
            e.Released: self._released,
            e.Revoked: self._revoked,
            e.Wounded: self._wounded,
        }

    def _submit(self, command: c.LockCommand) -> None:
        """Give a command to the engine, and before it what it needs of the lock pages."""
        self.pages.before(command)
        self._submit_now(command)

    def recovered(self, machine: LockMachine, pages: Mapping[str, int]) -> None:
        """The machine has replayed its journal: let those who had sessions come back.

        Args:
            pages: the lock pages that were kept, by name; taken over.
        """
        lost = self.pages.recovered(machine, pages)
        for session in machine.table.sessions.values():
            self._kept[session.id] = Kept(session.principal, session.lease_ms)
            if session.id in lost or (session.pid and not session.lease_ms and not is_alive(session.pid)):
                self._submit(c.EndSession(session.id, c.EndReason.SESSION_DIED))
            else:
                self._leases.recovered(session.id, session.lease_ms, GRACE_MS)

    # ---- what connections ask ------------------------------------------------------------------------------

    def ask(self, connection: Connection, number: CallId, caller: Caller, request: str, body: Any) -> None:
        """Carry out a request.

        Raises:
            TowpathError: it cannot be; nothing has changed.
        """
        call = Call(connection, number, request)
        if request in translate_locks.WAITS:
            self._wait(call, caller, body)
        elif request in translate_locks.PLAIN:
            self._plain(call, caller, request, body)
        elif request == translate_locks.KEEP:
            self._keep(call, caller, body)
        elif request == translate_locks.DELEGATE:
            self._delegate(call, caller, body)
        elif request == translate_locks.OPEN_LANE:
            self._open_lane(call, caller, body)
        else:
            self._look_for(call, caller, body)

    def give_back(self, connection: Connection, principal: str, body: Any) -> bool:
        """Carry out a release of which nobody wants to hear what became, if it is nothing else, and is the
        connection's to ask for; returns whether it was."""
        kept = self._kept.get(body.session)
        if (
            kept is None
            or kept.call is None
            or kept.call.connection is not connection
            or kept.principal != principal
            or body.HasField("value")
            or body.is_recovered
            or body.is_durable
        ):
            return False
        self._submit(c.Release(body.session, body.request))
        return True

    def go_on(self, connection: Connection, call: int, body: Any) -> None:
        """Take a later message of a session's stream."""
        stream = self._of_call.get((connection, call))
        if stream is None or not stream.session:
            return
        event = body.WhichOneof("event")
        if event == "close":
            self._submit(c.EndSession(stream.session, c.EndReason.SESSION_CLOSED))
        elif event == "alive":
            self._leases.heard(stream.session)
            connection.send(translate_locks.alive_frame(call))

    def _keep(self, call: Call, caller: Caller, body: Any) -> None:
        if body.WhichOneof("event") != "open":
            raise InvalidArgument("the first message of a lock session's stream opens it")
        opening = body.open
        if opening.place and not call.connection.gateway:
            raise PermissionDenied("a place is stated by gateways of the daemon only")
        self._of_call[call.connection, call.call] = call
        if opening.resumed:
            try:
                self._resume(call, caller, opening)
            except BaseException:
                del self._of_call[call.connection, call.call]
                raise
            return
        reference = self._refer(call)
        self._opening[reference] = Kept(caller.principal, opening.lease_ms, call)
        self._submit(
            c.OpenSession(
                caller.principal,
                opening.name,
                call.connection.peer.pid if not call.connection.gateway else 0,
                opening.place if call.connection.gateway else command_line(call.connection.peer.pid),
                opening.lease_ms,
                opening.priority,
                reference,
            )
        )

    def _resume(self, call: Call, caller: Caller, opening: Any) -> None:
        session = int(opening.resumed)
        self._tokens.check(session, f"lock {caller.principal}", opening.resume_token)
        kept = self._kept.get(session)
        if kept is None:
            raise SessionLost(f"lock session {session} is gone")
        self._take_over(kept)
        kept.call = call
        call.session = session
        self._connected(session, kept)
        self.pages.resumed(kept.principal, session, call.connection.pidfd)
        token = bytes(opening.resume_token)

        def tell(machine: LockMachine) -> None:
            if kept.call is not call:
                return
            try:
                grants, waits = translate_lock_views.holdings(machine.table, session)
            except SessionLost:
                return  # and it is told so
            frame = translate_locks.session_frame(call.call, session, kept.lease_ms, token, grants, waits)
            call.connection.send(frame)

        self._look(tell)

    def _take_over(self, kept: Kept) -> None:
        """A session is taken up: whoever asked for it before, on a connection that may be gone without our
        knowing, is told nothing more."""
        before = [*kept.waits.values(), *([] if kept.call is None else [kept.call])]
        kept.waits.clear()
        for call in before:
            error = SessionLost(
                f"lock session {call.session} was taken up on another stream",
                hint="one stream keeps a session; what waits is asked for again there",
            )
            self._end_call(call, error)

    def _wait(self, call: Call, caller: Caller, body: Any) -> None:
        call.session = self._check_kept(
            call.connection, caller, translate_locks.session_of(call.request, body)
        )
        call.number = int(body.request)
        command = translate_locks.WAITS[call.request](body)
        if not caller.is_admin:
            self._check_wanted(caller.principal, command)
        kept = self._kept[call.session]
        waits = kept.waits
        before = waits.get(call.number)
        if before is not None and (before.lane is None or not isinstance(command, c.Acquire)):
            raise InvalidArgument(f"request {call.number} is waited for already")
        if kept.lease_ms and call.request not in translate_locks.REMEMBERED:
            ask, outcome = kept.outcomes.pop(call.number, (0, None))
            if outcome is not None and ask == body.ask:
                tell_outcome(call, outcome)
                return
            if body.ask:
                kept.asks[call.number] = body.ask
        if kept.elsewhere:
            refused = kept.elsewhere.pop(call.number, None)
            if refused is not None:
                tell_outcome(call, refused)
                return
        waits[call.number] = self._of_call[call.connection, call.call] = call
        if before is not None:  # it came by the lane, and is on its way: told here, how it stands
            self._end_call(before, Cancelled("it is asked for by the socket"))
            return
        self._submit(command)

    def _check_take(self, principal: str, command: c.Acquire) -> None:
        """Refuse what a principal may not have."""
        _check_not_joined_list(command)
        self.permissions.check_take(principal, [wanted.name for wanted in command.locks])

    def _check_wanted(self, principal: str, command: Any) -> None:
        """Refuse what a principal may not have. What it asked for before, when it might, is withdrawn."""
        try:
            if isinstance(command, c.Acquire):
                self._check_take(principal, command)
            elif isinstance(command, c.ArriveBarrier):
                self.permissions.check_take(principal, [command.name])
        except PermissionDenied:
            self._submit(c.Cancel(command.session, command.request))
            raise

    def _plain(self, call: Call, caller: Caller, request: str, body: Any) -> None:
        if request not in translate_locks.OF_OPERATORS:
            self._check_kept(call.connection, caller, translate_locks.session_of(request, body))
        if not caller.is_admin:
            self._check_plain(caller.principal, request, body)
        reference = self._refer(call)
        try:
            self._submit(translate_locks.PLAIN[request](body, caller.principal, reference))
        except BaseException:
            del self._by_reference[reference]
            raise

    def _check_plain(self, principal: str, request: str, body: Any) -> None:
        """Refuse what this principal may not do."""
        if request == translate_locks.FORCE_RELEASE:
            self.permissions.check_force_release(principal, body.name)
        elif request == translate_locks.DECLARE_CLAIMS:
            self.permissions.check_take(principal, body.claims)
        elif request in translate_locks.OF_OPERATORS:
            raise PermissionDenied(
                "only the daemon's own user and administrators may do this",
                hint="ask as root, or as a member of the admin group",
            )

    def _delegate(self, call: Call, caller: Caller, body: Any) -> None:
        session = self._check_kept(call.connection, caller, body.owner.session)
        if not caller.is_admin:
            self.permissions.check_take(caller.principal, [body.lock])
        pidfd = call.connection.pidfd
        if call.connection.gateway or pidfd is None or self._kept[session].lease_ms:
            raise NotSupported("only local processes use a lock page, in sessions that end with them")
        if self._watches.is_watched(body.lock):
            raise LockInUse(f"{body.lock!r} is watched")

        self.pages.join(
            caller.principal,
            (session, int(body.owner.owner)),
            check_name(body.lock, "a lock's name"),
            has=int(body.page),
            pidfd=pidfd,
            refer=self._reference,
            then=partial(tell_place, call, body.lock),
        )

    def _open_lane(self, call: Call, caller: Caller, body: Any) -> None:
        session = self._check_kept(call.connection, caller, body.session)
        if call.connection.gateway or self._kept[session].lease_ms:
            raise NotSupported("only local programs have a lock lane, in sessions that end with them")
        with host_limits("a lock lane"):
            lane = self.lanes.open(call.connection, session)
        answer(call, translate_locks.lane_frame(call.call), (lane,))

    def _look_for(self, call: Call, caller: Caller, body: Any) -> None:
        def is_seen(name: str) -> bool:
            return caller.is_admin or self.permissions.may_see(caller.principal, name)

        if call.request == translate_locks.EXPLAIN and body.lock and not caller.is_admin:
            self.permissions.check_see(caller.principal, body.lock)
        self.pages.recall_all(getattr(body, "prefix", ""))  # what is looked at is in the machine
        if call.request == translate_locks.WATCH:
            self._watches.add(call.connection, call.call, body.prefix, is_seen)
            return

        def tell(machine: LockMachine) -> None:
            try:
                frame = translate_lock_views.looked_frame(
                    call.call, call.request, body, machine, self._is_kept, is_seen
                )
            except TowpathError as error:
                refuse(call, error)
            else:
                answer(call, frame)

        self._look(tell)

    def _is_kept(self, session: int) -> bool:
        """Whether a session's stream is open."""
        kept = self._kept.get(session)
        return kept is not None and kept.call is not None

    def _check_kept(self, connection: Connection, caller: Caller, session: int) -> int:
        kept = self._kept.get(session)
        if kept is None:
            raise SessionLost(f"lock session {session} is gone")
        if kept.call is None or kept.call.connection is not connection or kept.principal != caller.principal:
            raise PermissionDenied(
                f"lock session {session} is not yours", hint="open one, or resume your own"
            )
        return session

    def _refer(self, call: Call) -> int:
        reference = self._reference()
        self._by_reference[reference] = call
        return reference

    def _reference(self) -> int:
        self._next_reference += 1
        return self._next_reference - 1

    # ---- the end of calls and connections ------------------------------------------------------------------

    def cancel(self, connection: Connection, number: int) -> bool:
        """A call is not wanted any more. What a session waits for that nobody keeps now goes on all the
        same: whoever asked has lost its connection, and may come back.

        Returns:
            Whether it is over: nothing more is sent for it. Others are answered all the same.
        """
        call = self._of_call.pop((connection, number), None)
        if call is None:
            return self._watches.cancel(connection, number)
        if call.request == translate_locks.KEEP:
            self._stream_ended(call, c.EndReason.SESSION_CLOSED)
        else:
            self._forget_wait(call.session, call.number)
            if self._is_kept(call.session):
                self._submit(c.Cancel(call.session, call.number))
        return True

    def connection_closed(self, connection: Connection) -> None:
        """A connection has ended, and with it its streams."""
        self.lanes.close(connection)
        ended = [call for (of, _), call in self._of_call.items() if of is connection]
        for call in ended:
            del self._of_call[connection, call.call]
            if call.request == translate_locks.KEEP:
                self._stream_ended(call, c.EndReason.SESSION_DIED)
            else:
                self._forget_wait(call.session, call.number)
        self._watches.connection_closed(connection)

    def _stream_ended(self, call: Call, reason: c.EndReason) -> None:
        kept = self._kept.get(call.session)
        if kept is None or kept.call is not call or self._is_over:
            return
        kept.call = None
        if not self._leases.disconnected(call.session):
            self._submit(c.EndSession(call.session, reason))

    def stop(self) -> None:
        """The core is about to end, and its successor takes the sessions over: connections that close now
        end none of them."""
        self.pages.stop()
        self.lanes.stop()
        self._is_over = True
        self._leases.stop()

    def _connected(self, session: int, kept: Kept) -> None:
        """A session is kept by its ``call`` from now on."""
        assert kept.call is not None
        # Kept on behalf of a gateway's peer; the bridge's own lives as long as its connection, as anybody's.
        is_remote = kept.principal != kept.call.connection.peer.principal
        self._leases.open(session, kept.lease_ms, expires_connected=is_remote)

    def _expired(self, session: int) -> None:
        kept = self._kept.get(session)
        has_lease = kept is not None and kept.lease_ms
        reason = c.EndReason.LEASE_EXPIRED if has_lease else c.EndReason.SESSION_DIED
        self._submit(c.EndSession(session, reason))

    # ---- what the machine wants done -----------------------------------------------------------------------

    def emit(self, effect: e.LockEffect) -> None:
        """Carry out one effect."""
        carry_out = self._emitting.get(type(effect))
        if carry_out is None:
            self.pages.emit(effect)
            return
        carry_out(effect)
        if self._watches:
            self._watches.tell(effect)

    def _answer_wait(self, effect: Outcome) -> None:
        if isinstance(effect, e.Granted) and effect.is_found:
            return  # who has it knows; what is asked of it since is answered by what comes of that
        kept = self._kept.get(effect.session)
        if kept is None:
            return
        if kept.asks and (ask := kept.asks.pop(effect.request, 0)):
            is_withdrawn = isinstance(effect, e.Refused) and isinstance(effect.error, Cancelled)
            if not is_withdrawn:
                kept.outcomes[effect.request] = ask, effect
            if len(kept.outcomes) > OUTCOMES_MAX:
                del kept.outcomes[next(iter(kept.outcomes))]
        call = kept.waits.pop(effect.request, None)
        if call is None:
            if effect.request in kept.elsewhere and isinstance(effect, e.Refused):
                kept.elsewhere[effect.request] = effect
        elif call.lane is not None:
            self.lanes.answer(kept, call, effect)
        else:
            del self._of_call[call.connection, call.call]
            tell_outcome(call, effect)

    def _done(self, effect: e.Done) -> None:
        call = self._by_reference.pop(effect.reference, None)
        if call is not None and not call.connection.end_unheard(call.call):
            answer(call, translate_locks.done_frame(call.call, call.request, effect))

    def _released(self, effect: e.Released | e.Revoked) -> None:
        """What a request was granted is not its any more: it is no answer."""
        kept = self._kept.get(effect.session)
        if kept is not None and kept.outcomes:
            kept.outcomes.pop(effect.request, None)

    def _revoked(self, effect: e.Revoked) -> None:
        self._released(effect)
        if (stream := self._stream_of(effect.session)) is not None:
            stream.connection.send(translate_locks.revoked_frame(stream.call, effect))

    def _wounded(self, effect: e.Wounded) -> None:
        if (stream := self._stream_of(effect.session)) is not None:
            stream.connection.send(translate_locks.wounded_frame(stream.call, effect))

    def _tell_wait(self, effect: e.Waiting) -> None:
        """Say how it stands, if it still does when the machine is looked at."""
        kept = self._kept.get(effect.session)
        call = None if kept is None else kept.waits.get(effect.request)
        if kept is not None and call is not None and call.lane is not None:
            del kept.waits[effect.request]
            self.lanes.answer(kept, call, None)
            return

        def tell(machine: LockMachine) -> None:
            kept = self._kept.get(effect.session)
            call = None if kept is None else kept.waits.get(effect.request)
            if call is not None:
                call.connection.waits(call.call)
                waits = translate_lock_views.waits_of(machine.table, effect.session, effect.request)
                call.connection.send(translate_locks.waiting_frame(call.call, call.request, waits))
                self._watches.tell_waits(waits)

        self._look(tell)

    def _failed(self, effect: e.Failed) -> None:
        if self.pages.emit(effect):
            return
        call = self._by_reference.pop(effect.reference, None)
        self._opening.pop(effect.reference, None)
        if call is not None:
            self._end_call(call, effect.error)

    def _opened(self, effect: e.SessionOpened) -> None:
        call = self._by_reference.pop(effect.reference, None)
        kept = self._opening.pop(effect.reference, None)
        assert call is not None and kept is not None
        self._kept[effect.session] = kept
        call.session = effect.session
        self._connected(effect.session, kept)
        if self._of_call.get((call.connection, call.call)) is not call:  # it has ended meanwhile
            self._stream_ended(call, c.EndReason.SESSION_DIED)
            return
        token = self._tokens.token(effect.session, f"lock {kept.principal}")
        call.connection.send(translate_locks.session_frame(call.call, effect.session, kept.lease_ms, token))

    def _ended(self, effect: e.SessionEnded) -> None:
        kept = self._kept.pop(effect.session, None)
        if kept is None:
            return
        self._leases.close(effect.session)
        for wait in kept.waits.values():  # which the machine has not come to yet
            self._end_call(wait, SessionLost(f"lock session {effect.session} is gone"))
        call = kept.call
        if call is not None and self._of_call.pop((call.connection, call.call), None) is not None:
            answer(call, translate_locks.lost_frame(call.call, effect.session, effect.reason))

    def _end_call(self, call: Call, error: TowpathError) -> None:
        """End a call with an error, unless it was cancelled meanwhile."""
        if call.lane is not None:
            call.lane.memory.elsewhere(call.position)
            return
        self._of_call.pop((call.connection, call.call), None)
        refuse(call, error)

    def _forget_wait(self, session: int, number: int) -> Call | None:
        """Nobody is to be told how this wait ends; who was until now."""
        kept = self._kept.get(session)
        return None if kept is None else kept.waits.pop(number, None)

    def _stream_of(self, session: int) -> Call | None:
        kept = self._kept.get(session)
        return None if kept is None else kept.call


def _check_not_joined_list(command: c.Acquire) -> None:
    """Let only administrators say what is opened with the daemon's rights."""
    if any(wanted.name == JOINED for wanted in command.locks):
        raise PermissionDenied(
            f"{JOINED} has the list of joined locks, which only administrators may take",
            hint="ask as root, or as a member of the admin group",
        )
