"""The door: accepts connections on the UNIX socket, and carries out what the core decides for them.

Theory of operation
    Each connection (``connection``) turns frames into commands; the engine applies them and gives the
    effects to ``emit`` here, in order. An effect that concerns a session becomes a frame on its
    connection, with the descriptors it needs; the others change the generation table or let descriptors go.

Invariants
    No client makes the door wait: sockets do not block, what is unread or unsaid is bounded, and whoever
    breaks the protocol is closed alone. The end of a connection, or of the process that made it, is the
    end of its session, at once. A gateway is a connection that the supervisor handed over (``adopt``),
    never one that was accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections import Counter
from collections.abc import Callable
from typing import Final

from towpath import _ring, wire
from towpath.errors import ConnectionLost, LimitExceeded, TowpathError
from towpath.protocol import RESUME_GRACE_NS
from towpath.v1 import frame_pb2
from towpath.wording import plural
from towpath_broker.core import commands, effects
from towpath_broker.core.data import commands as data_commands
from towpath_broker.core.data import effects as data_effects
from towpath_broker.core.effects import Effect
from towpath_broker.core.ids import CallId, ConnectionId, SessionId, SourceId
from towpath_broker.log import log
from towpath_broker.ports import LockRunner
from towpath_broker.rings.descriptors import Descriptors
from towpath_broker.rings.kept import Keeper
from towpath_broker.rings.mediator import Mediator
from towpath_broker.rings.own_channel import Publication, partly
from towpath_broker.rings.values import PAGE_VALUE_BYTES, ValuePages

from . import translate, translate_data
from .connection import Connection
from .credentials import Admins, Peer, peer_of
from .lock_calls import LockCalls
from .tokens import ResumeTokens

UNWELCOMED_MAX: Final = 512
"""Connections that have not become sessions yet; above it the oldest is closed."""
ACCEPTS_PER_TURN: Final = 32
NO_DESCRIPTORS_PAUSE_S: Final = 0.1

StatusFrame = Callable[[int, effects.StatusTold], frame_pb2.Frame]


class Door:
    """The one door.

    Args:
        submit: gives a command to the engine; never waits.
        submit_data: gives one to the data plane's engine.
        locks: runs the lock machine.
        has_data: whether a channel is of the data plane.
        contents_of: what a channel of the data plane holds.
        table: the generation table, written on the core's behalf.
        keeper: has the supervisor keep what the core's own rings need to outlive it.
        admins: who may do what admins may.
        status_frame: completes the core's part of a status, and makes its frame.
        gateway_report: takes what a gateway reports of itself.
        warn: takes what an operator should know.
        tokens: what proves that a client which comes back is the one that left.
        software: what the daemon calls itself.
    """

    def __init__(
        self,
        *,
        submit: Callable[[commands.Command], None],
        submit_data: Callable[[data_commands.DataCommand], None],
        locks: LockRunner,
        has_data: Callable[[str], bool],
        contents_of: translate.ContentsOf,
        table: _ring.GenerationTable,
        keeper: Keeper,
        admins: Admins,
        status_frame: StatusFrame,
        gateway_report: Callable[[str, frame_pb2.ReportGatewayRequest], None],
        warn: Callable[[str], None],
        tokens: ResumeTokens,
        software: str,
    ) -> None:
        self.descriptors = Descriptors()
        self.mediator = Mediator(
            self.descriptors,
            keeper,
            submit=submit,
            written=self._written,
            refused=self._not_written,
            held=self._hold,
            ended=self._end_source,
        )
        self.submit = submit
        self._values = ValuePages()
        self.submit_data = submit_data
        self.has_data = has_data
        self._contents_of = contents_of
        self.tokens = tokens
        self.locks = LockCalls(locks, tokens, keeper)
        self.reading = locks.reading
        self.counters: Counter[str] = Counter()
        self._table = table
        self._shared_table = wire.Descriptor(table.share())
        self._admins = admins
        self._status_frame = status_frame
        self._gateway_report = gateway_report
        self._warn = warn
        self._software = software
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._connections: dict[ConnectionId, Connection] = {}
        self._unwelcomed: dict[ConnectionId, Connection] = {}
        self._sessions: dict[SessionId, Connection] = {}
        self._next_connection = 1
        self._listening_since_s: float | None = None
        self._is_empty = asyncio.Event()

    # ---- connections come ----

    def listen(self, listener: socket.socket) -> None:
        """Accept connections from now on. The socket stays its owner's."""
        listener.setblocking(False)
        self._listener = listener
        if self._listening_since_s is None:
            self._listening_since_s = self._loop.time()
        self._loop.add_reader(listener, self._accept)

    def resuming_ms(self, incarnation: int) -> int:
        """How much longer sessions of earlier incarnations are awaited."""
        if incarnation == 1:  # there was none
            return 0
        now_s = self._loop.time()
        passed_s = now_s - (now_s if self._listening_since_s is None else self._listening_since_s)
        return max(0, RESUME_GRACE_NS // 1_000_000 - int(passed_s * 1e3))

    def stop_listening(self) -> None:
        """Leave further connections in the backlog."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener = None

    def adopt(self, sock: socket.socket, gateway: str, pid: int) -> None:
        """Serve a connection that the supervisor made for a gateway that it started."""
        peer = peer_of(sock)
        self._add(sock, Peer(pid, peer.uid, peer.groups), gateway=gateway)

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, _address = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    raise
                self._pause_accepting(error)
                return
            self._add(sock, peer_of(sock), gateway="")

    def _pause_accepting(self, error: OSError) -> None:
        """The backlog keeps what comes until descriptors are free again."""
        listener = self._listener
        assert listener is not None
        log("door.accept_paused", level="warning", reason=error.strerror)
        self.stop_listening()
        self._loop.call_later(NO_DESCRIPTORS_PAUSE_S, self.listen, listener)

    def _add(self, sock: socket.socket, peer: Peer, *, gateway: str) -> None:
        number = ConnectionId(self._next_connection)
        self._next_connection += 1
        self.count("connections")
        self._is_empty.clear()
        connection = Connection(
            number, sock, peer, is_admin=self._admins.is_admin(peer), gateway=gateway, door=self
        )
        self._connections[number] = self._unwelcomed[number] = connection
        if len(self._unwelcomed) > UNWELCOMED_MAX:
            oldest = next(iter(self._unwelcomed.values()))
            oldest.close(LimitExceeded(f"over {UNWELCOMED_MAX} connections wait to say hello"))

    # ---- what connections tell ----

    def count(self, name: str) -> None:
        self.counters[name] += 1

    def gateway_reported(self, connection: Connection, report: frame_pb2.ReportGatewayRequest) -> None:
        self._gateway_report(connection.gateway, report)

    def connection_closed(self, connection: Connection, error: TowpathError | None) -> None:
        if error is not None and not isinstance(error, ConnectionLost):
            self.count("violations")
            log(
                "door.connection_closed",
                level="warning",
                pid=connection.peer.pid,
                uid=connection.peer.uid,
                code=error.code.name,
                message=error.message,
            )
        del self._connections[connection.number]
        self._unwelcomed.pop(connection.number, None)
        self.locks.connection_closed(connection)
        if connection.session is not None:
            del self._sessions[connection.session]
            self.descriptors.drop_session(connection.session)
            self.mediator.withdraw(connection.session)
            self.submit(commands.CloseSession(connection.session))
            self.submit_data(data_commands.EndSession(connection.session))
        if not self._connections:
            self._is_empty.set()

    # ---- what the core wants done ----

    def emit(self, effect: Effect) -> None:
        """Carry out one effect."""
        match effect:
            case effects.SessionOpened():
                self._opened(effect)
            case effects.SessionRefused():
                refused = self._connections.get(effect.connection)
                if refused is not None:
                    refused.close(effect.error)
            case effects.Reply():
                self._reply(effect)
            case effects.Refuse():
                if (connection := self._sessions.get(effect.session)) is not None:
                    connection.refuse(effect.call, effect.error)
            case effects.Notice() if effect.session == self.mediator.session:
                self.mediator.tell(effect.body)
            case effects.Notice():
                if (connection := self._sessions.get(effect.session)) is not None:
                    self._count_ended(effect.body)
                    handed = self._descriptors_for(effect.body, connection.peer.uid)
                    frame = translate.notice_frame(effect.body)
                    if isinstance(effect.body, effects.SourceAdded):
                        frame.source_added.is_stored = self.mediator.is_stored(effect.body.source)
                        if effect.body.start is effects.StartAt.TAIL:
                            frame.source_added.tail = self.descriptors.traffic.tail(effect.body.source)
                    connection.send(frame, handed)
            case effects.StreamItem():
                if (connection := self._sessions.get(effect.session)) is not None:
                    connection.send(translate.watch_frame(effect.call, effect.revision, effect.body))
            case effects.StreamPaused():
                if (connection := self._sessions.get(effect.session)) is not None:
                    more = commands.GoOnTelling(effect.session, effect.call)
                    connection.when_sent(lambda: self.submit(more))
            case effects.BumpGeneration():
                raised = self._table.bump(effect.index)
                assert raised == effect.generation, (raised, effect)
            case effects.DropSource():
                self.mediator.drop_source(effect.source)
                self.descriptors.drop_source(effect.source)
            case effects.DropReader():
                self.descriptors.drop_reader(effect.reader)
            case effects.OpenOwnSource():
                self.mediator.open_source(effect)
            case effects.OpenOwnReader():
                self.mediator.open_reader(effect)
            case effects.WriteMessages():
                self._write(effect)
            case effects.SourceBroken():
                self.count("sources_broken")
                self._warn(
                    f"publisher {effect.source} of {effect.channel!r} ({effect.principal}) breaks its ring,"
                    " says one of its subscribers, and has left it"
                )
            case effects.Warn():
                self._warn(effect.message)

    def forget_channel(self, name: str) -> None:
        """A channel of the data plane is gone: at once, so that whoever is told so finds nothing of it."""
        self.mediator.forget_log(name)
        self._values.show(name, None)

    def emit_data(self, effect: data_effects.Effect) -> None:
        """Carry out one effect of the data plane."""
        match effect:
            case data_effects.Reply():
                if (connection := self._asking(effect.session, effect.call)) is not None:
                    connection.answer(translate_data.reply_frame(effect.call, effect.body))
            case data_effects.Refuse():
                if (connection := self._asking(effect.session, effect.call)) is not None:
                    connection.refuse(effect.call, effect.error)
            case (
                data_effects.ConsumeStarted()
                | data_effects.Deliver()
                | data_effects.ValueItem()
                | data_effects.StreamEnded()
            ):
                if (connection := self._sessions.get(effect.session)) is not None:
                    connection.streams.send(effect)
            case data_effects.Waits():
                if (connection := self._sessions.get(effect.session)) is not None:
                    connection.waits(effect.call)
            case data_effects.Appended():
                self.mediator.appended(effect)
            case data_effects.NotTaken():
                self.mediator.not_taken(effect)
            case data_effects.ShowValue():
                self._values.show(effect.channel, effect.value)
            case data_effects.ShareValue():
                self._share_value(effect)
            case data_effects.DeadLetters():
                run = effect.run
                self.submit(commands.PublishLetters(effect.channel, run.payloads, run.headers))
            case data_effects.PresenceChanged():
                self.submit(commands.ReportPresence(effect.channel, effect.publishers, effect.subscribers))
            case data_effects.Warn():
                self._warn(effect.message)

    def _count_ended(self, body: effects.NoticeBody) -> None:
        """Count subscriptions that ended because too many publishers came and were not read."""
        if isinstance(body, effects.SubscriptionEnded) and isinstance(body.error, LimitExceeded):
            self.count("subscriptions_out_of_slots")

    def _asking(self, session: SessionId, call: CallId) -> Connection | None:
        """The connection that still waits for a call's answer."""
        connection = self._sessions.get(session)
        return connection if connection is not None and connection.request_of(call) is not None else None

    def _share_value(self, effect: data_effects.ShareValue) -> None:
        connection = self._sessions.get(effect.session)
        if connection is None:
            return
        try:
            page = self._values.share(effect.channel, effect.value)
        except TowpathError as error:
            connection.refuse(effect.call, error)
            return
        connection.answer(translate_data.value_attached_frame(effect.call, PAGE_VALUE_BYTES), (page,))

    def _opened(self, effect: effects.SessionOpened) -> None:
        connection = self._connections.get(effect.connection)
        if connection is None or connection.is_closed:
            self.submit(commands.CloseSession(effect.session))
            return
        del self._unwelcomed[connection.number]
        self._sessions[effect.session] = connection
        connection.opened(effect, self._shared_table, self._software)

    def _reply(self, effect: effects.Reply) -> None:
        connection = self._sessions.get(effect.session)
        request = connection.request_of(effect.call) if connection is not None else None
        if connection is None or request is None:
            return
        if isinstance(effect.body, effects.StatusTold):
            connection.answer(self._status_frame(effect.call, effect.body))
        else:
            frame = translate.reply_frame(effect.call, request, effect.body, self._contents_of)
            connection.answer(frame)

    def _write(self, effect: effects.WriteMessages) -> None:
        """Write for a connection that is there and still wants it; or for the core itself."""
        if effect.session == self.mediator.session:
            try:
                self.mediator.write(effect)
            except TowpathError as error:
                self._warn(f"{plural(len(effect.payloads), 'dead letter')} lost: {error}")
            return
        connection = self._sessions.get(effect.session)
        if connection is None or connection.is_withdrawn(effect.call):
            return
        try:
            self.mediator.write(effect)
        except TowpathError as error:
            connection.refuse(effect.call, error)

    def _written(self, publication: Publication, source: SourceId, last_seq: int) -> None:
        if (connection := self._sessions.get(publication.session)) is not None:
            connection.answer(
                translate.published_frame(publication.call, source, last_seq, len(publication.payloads))
            )

    def _not_written(self, publication: Publication, error: TowpathError) -> None:
        if (connection := self._sessions.get(publication.session)) is not None:
            connection.refuse(publication.call, partly(error, publication))
        elif publication.session == self.mediator.session:
            lost = len(publication.payloads) - publication.done
            self._warn(f"{plural(lost, 'dead letter')} lost: {error}")

    def _hold(self, session: SessionId, source: SourceId, error: TowpathError | None) -> None:
        if (connection := self._sessions.get(session)) is not None:
            connection.send(translate.held_frame(source, error))

    def _end_source(self, session: SessionId, source: SourceId, error: TowpathError) -> None:
        if (connection := self._sessions.get(session)) is not None:
            connection.send(translate.notice_frame(effects.PublicationEnded(source, error)))

    def _descriptors_for(self, body: effects.NoticeBody, uid: int) -> tuple[wire.Descriptor, ...]:
        match body:
            case effects.SourceAdded():
                return self._with_doorbell(self.descriptors.ring(body.source), body, uid)
            case effects.ReaderAdded():
                page = self.descriptors.page(body.reader)
                return self._with_doorbell(page, body, uid) if body.wants_doorbell else (page,)
            case _:
                return ()

    def _with_doorbell(
        self, memory: wire.Descriptor, body: effects.SourceAdded | effects.ReaderAdded, uid: int
    ) -> tuple[wire.Descriptor, ...]:
        """A session without a doorbell (no event loop sleeps there) sends none. The core has one per pair, a
        client one for each uid that rings; ``uid`` is of whom it is handed to.
        """
        if body.session == self.mediator.session:
            doorbell = self.mediator.bell(body.source, body.reader)
        else:
            other = self._sessions.get(body.session)
            doorbell = None if other is None else other.doorbell_for(uid)
        return (memory,) if doorbell is None else (memory, doorbell)

    # ---- the end ----

    async def close(self) -> None:
        """Close every connection; returns when the core has been told of each."""
        self._values.close()
        self.stop_listening()
        for connection in list(self._connections.values()):
            connection.close()
        if self._connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._is_empty.wait()
