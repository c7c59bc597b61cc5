"""One connection at the door: its handshake, the calls it waits for, and its end.

A connection's life::

    accepted --hello--> opening --SessionOpened--> open
       |                   |                        |
       +--- no hello in time, garbage, a slow reader, EOF, its process's death ---> closed

What it asks goes to the core as commands; nothing here decides.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from towpath import wire
from towpath.errors import (
    BadDescriptor,
    Cancelled,
    ConnectionLost,
    PermissionDenied,
    ProtocolViolation,
    Timeout,
    TowpathError,
    VersionMismatch,
)
from towpath.transport import FrameTransport
from towpath.v1.frame_pb2 import Frame
from towpath_broker.core import commands
from towpath_broker.core.commands import Caller
from towpath_broker.core.data import commands as data_commands
from towpath_broker.core.effects import SessionOpened
from towpath_broker.core.ids import CallId, ConnectionId, ReaderId, SessionId, SourceId
from towpath_broker.rings.own_channel import partly

from . import translate, translate_data, translate_locks
from .credentials import Peer, open_pidfd
from .doorbells import Doorbells
from .order import CONCERNED, Definitions
from .streams import Streams

if TYPE_CHECKING:
    from .door import Door
    from .lock_lanes import Lane

HELLO_TIMEOUT_S: Final = 10.0
OUTBOX_BYTES_MAX: Final = 4 << 20
"""A client that leaves more than this unread is cut off."""
CALLS_MAX: Final = 64
"""Calls of one connection that wait for their answer; above it the connection is not read."""
NAME_CHARS_MAX: Final = 64
RING_FULL_HINT: Final = "towpath status shows the channel's subscribers"


class Connection:
    """One client.

    Args:
        number: the door's number for it.
        sock: connected; owned by this object.
        peer: who it is, as the kernel says.
        is_admin: whether it may do what admins may.
        gateway: the gateway's name when the daemon started it, else empty.
        door: where commands go, and who is told of the end.
    """

    def __init__(
        self,
        number: ConnectionId,
        sock: socket.socket,
        peer: Peer,
        *,
        is_admin: bool,
        gateway: str,
        door: Door,
    ) -> None:
        self.number = number
        self.peer = peer
        self.gateway = gateway
        self.session: SessionId | None = None
        self.is_admin = is_admin
        self.lane: Lane | None = None
        self.frames = 0  # that were taken
        self._door = door
        self._hello: tuple[int, wire.Descriptor | None] | None = None
        self._takes_doorbells = False
        self._doorbells: Doorbells | None = None
        self._calls: dict[int, str] = {}
        self._watches: set[int] = set()
        self._data_calls: set[int] = set()
        self._one_way: set[int] = set()
        self._own_caller = Caller(peer.principal, is_admin)  # of any call
        self._unheard = 0
        self._definitions = Definitions()
        self.streams = Streams(self)
        self._offers: dict[int, Callable[[], None]] = {}
        self._tokens: dict[int, bytes] = {}
        self._loop = asyncio.get_running_loop()
        self._transport = FrameTransport(
            sock,
            frame_bytes_max=wire.REQUEST_BYTES_MAX,
            outbox_bytes_max=OUTBOX_BYTES_MAX,
            on_frame=self._take,
            on_closed=self._closed,
            farewell=lambda error: translate.error_frame(0, error),
            on_read=self._reading,
        )
        self._deadline = self._loop.call_later(HELLO_TIMEOUT_S, self._no_hello)
        self._pidfd = open_pidfd(peer.pid)
        if self._pidfd is not None:
            self._loop.add_reader(self._pidfd, self._process_ended)

    @property
    def pidfd(self) -> int | None:
        """The client's process; None where the kernel does not say, or it has gone."""
        return self._pidfd

    @property
    def is_closed(self) -> bool:
        return self._transport.is_closed

    # ---- what arrives ----

    def _reading(self, is_begun: bool) -> None:
        """What comes until this is told False is of one read."""
        lane = self.lane
        if lane is None or is_begun:
            self._door.reading(is_begun)
            return
        lanes = self._door.locks.lanes
        try:
            lanes.empty(lane)  # there may be what was said after the last frame
        finally:
            self._door.reading(False)
        lanes.attend(lane)

    def _take(self, frame: Frame, descriptors: list[wire.Descriptor]) -> None:
        if self.lane is not None:
            self._door.locks.lanes.empty(self.lane)
        self._frame(frame, descriptors)
        self.frames += 1

    def _frame(self, frame: Frame, descriptors: list[wire.Descriptor]) -> None:
        self._door.count("frames_in")
        request = frame.WhichOneof("body")
        if frame.id == 0 or request is None:
            raise ProtocolViolation("a frame without an id or without a request")
        if request == "cancel":
            if not self._definitions.hold_cancel(frame):
                self._cancel(frame.id)
            return
        if frame.id in self._calls:
            if request != translate_locks.KEEP or self._calls[frame.id] != request:
                raise ProtocolViolation(f"call {frame.id} is used again before it was answered")
            self._door.locks.go_on(self, frame.id, frame.keep_lock_session_request)
            return
        if request == "hello":
            self._take_hello(frame, descriptors)
            return
        if self.session is None:
            raise ProtocolViolation(f"{request} came before hello was answered")
        if frame.is_one_way:
            if request == translate_locks.RELEASE and self._give_back(frame):
                return
            self._one_way.add(frame.id)
        self._begin(frame.id, request)
        if request in translate_locks.REQUESTS:
            if request in translate_locks.STREAMS:
                self._watches.add(frame.id)
            try:
                caller = self._own_caller if not frame.principal else self._caller(frame)
                self._door.locks.ask(self, CallId(frame.id), caller, request, getattr(frame, request))
            except TowpathError as error:
                self.refuse(CallId(frame.id), error)
            return
        if request in CONCERNED and self._definitions.hold(frame, request):
            return
        self._carry_out(frame, request, descriptors)

    def _give_back(self, frame: Frame) -> bool:
        """Carry out a lock's release that is not answered without keeping it as a call, if that is possible.
        Every so many are kept as one all the same: so that their number, too, has a bound."""
        self._unheard = (self._unheard + 1) % CALLS_MAX
        if not self._unheard or frame.principal:
            return False
        return self._door.locks.give_back(self, self.peer.principal, frame.release_request)

    def _carry_out(self, frame: Frame, request: str, descriptors: list[wire.Descriptor]) -> None:
        try:
            self._submit(frame, request, descriptors)
        except TowpathError as error:
            self.refuse(CallId(frame.id), error)

    def _go_on(self) -> None:
        """Carry out what waited for a channel's definition, now that what follows from it is done."""
        if self.is_closed:
            return
        for frame in self._definitions.released():
            request = frame.WhichOneof("body") or ""
            if request == "cancel":
                self._cancel(frame.id)
            else:
                self._carry_out(frame, request, [])

    def _take_hello(self, frame: Frame, descriptors: list[wire.Descriptor]) -> None:
        if self._hello is not None:
            raise ProtocolViolation("hello came twice")
        hello = frame.hello
        if not hello.version_min <= wire.VERSION <= hello.version_max:
            raise VersionMismatch(
                f"the client speaks versions {hello.version_min} to {hello.version_max},"
                f" the daemon {wire.VERSION}"
            )
        self._hello = (frame.id, descriptors[0] if descriptors else None)
        self._takes_doorbells = hello.takes_doorbells
        self._deadline.cancel()
        name = "".join(c if c.isprintable() else "?" for c in hello.name[:NAME_CHARS_MAX])
        self._transport.pause_reading()  # what follows belongs to the session, which is not there yet
        self._door.submit(
            commands.OpenSession(
                self.number, self.peer.principal, self.is_admin, self.peer.pid, name, self.gateway
            )
        )

    def _submit(self, frame: Frame, request: str, descriptors: list[wire.Descriptor]) -> None:
        body = getattr(frame, request)
        caller = self._caller(frame)
        if request == "report_gateway_request":
            if not self.gateway:
                raise PermissionDenied("only a gateway that the daemon started may report")
            self._door.gateway_reported(self, body)
            answer = Frame(id=frame.id)
            answer.report_gateway_response.SetInParent()
            self.answer(answer)
            return
        if request == "attach_source_request":
            ring = self._only(descriptors, "a ring")
            source = SourceId(body.source)
            self._check_owner(frame.id, source, caller, body)
            ring_bytes = self._door.descriptors.offer_ring(
                source, ring, channel=body.channel, is_resumed=body.resumed
            )
            if body.resumed and body.HasField("unread_from"):
                self._door.descriptors.offer_unread(source, body.unread_from)
            self._offers[frame.id] = lambda: self._door.descriptors.withdraw_ring(source)
            self._door.submit(translate.attach_source(caller, body, ring_bytes))
            return
        if request == "attach_reader_request":
            page = self._only(descriptors, "a control page")
            command = translate.command_from(caller, request, body)
            reader = ReaderId(body.reader)
            self._check_owner(frame.id, reader, caller, body)
            self._door.descriptors.offer_page(reader, body.slots, page)
            self._offers[frame.id] = lambda: self._door.descriptors.drop_reader(reader)
            self._door.submit(command)
            return
        if request in translate_data.REQUESTS or (
            request == "publish_request" and self._door.has_data(body.channel)
        ):
            self._data_calls.add(frame.id)
            if request in translate_data.STREAMS:
                self._watches.add(frame.id)
            self._door.submit_data(translate_data.command_from(caller, request, body))
            return
        if request == "watch_request":
            self._watches.add(frame.id)
        self._door.submit(translate.command_from(caller, request, body))

    def _caller(self, frame: Frame) -> Caller:
        assert self.session is not None
        if not frame.principal:
            return Caller(self.peer.principal, self.is_admin, self.session, CallId(frame.id))
        if not self.gateway:
            raise PermissionDenied("only a gateway that the daemon started may ask for another principal")
        return Caller(frame.principal, False, self.session, CallId(frame.id))

    def _check_owner(self, call: int, identifier: int, caller: Caller, body: Any) -> None:
        """Let only who was given an id resume it; the answer gives the token to do so."""
        if body.resumed:
            self._door.tokens.check(identifier, caller.principal, body.resume_token)
        self._tokens[call] = self._door.tokens.token(identifier, caller.principal)

    @staticmethod
    def _only(descriptors: list[wire.Descriptor], what: str) -> wire.Descriptor:
        if len(descriptors) != 1:
            raise BadDescriptor(f"{what} must come with the request, as its only descriptor")
        return descriptors[0]

    def _cancel(self, call: int) -> None:
        if self.session is not None and call in self._calls:
            if self._calls[call] in translate_locks.REQUESTS:
                if self._door.locks.cancel(self, call):
                    self._end(call)
                return
            if call in self._data_calls:
                self._door.submit_data(data_commands.CancelCall(self.session, CallId(call)))
                if self._calls[call] in translate_data.STREAMS:
                    self._end(call)
                return
            if self._calls[call] == "publish_request":
                self._withdraw(CallId(call))
                return
            self._door.submit(commands.CancelCall(self.session, CallId(call)))
            if self._calls[call] in ("watch_request", "get_binding_request"):
                self._end(call)

    def _withdraw(self, call: CallId) -> None:
        """Publish no more of what is not written. Unlike other calls this one is answered all the same, since
        the client must know how much was written."""
        assert self.session is not None
        error: TowpathError = Cancelled(
            "there was no room in time: a subscriber's ring is full", hint=RING_FULL_HINT
        )
        for publication in self._door.mediator.withdraw(self.session, call):
            error = partly(error, publication)
        self.refuse(call, error)

    def is_withdrawn(self, call: CallId) -> bool:
        """Whether a publication was cancelled, and answered so, before the core came to it."""
        return call not in self._calls

    # ---- calls under way ----

    def _begin(self, call: int, request: str) -> None:
        self._calls[call] = request
        if len(self._calls) - len(self._watches) >= CALLS_MAX:
            self._transport.pause_reading()

    def _end(self, call: int) -> str | None:
        request = self._calls.pop(call, None)
        self._watches.discard(call)
        self._data_calls.discard(call)
        self._one_way.discard(call)
        if self._definitions.ended(call):
            self._loop.call_soon(self._go_on)  # not before the data plane has been told of the channel
        if len(self._calls) - len(self._watches) < CALLS_MAX:
            self._transport.resume_reading()
        return request

    def answer(self, frame: Frame, descriptors: tuple[wire.Descriptor, ...] = ()) -> None:
        """Send the only, or last, answer to a call, if one is wanted."""
        call = frame.id
        self._offers.pop(call, None)
        token = self._tokens.pop(call, None) if self._tokens else None
        if token is not None:
            answer = frame.WhichOneof("body")
            if answer in ("attach_source_response", "attach_reader_response"):
                getattr(frame, answer).resume_token = token
        if call not in self._one_way:
            self._transport.send(frame, descriptors)
        self._end(call)

    def end_unheard(self, call: int) -> bool:
        """End a call if it wants no answer; returns whether it is one."""
        if call not in self._one_way:
            return False
        self._end(call)
        return True

    def refuse(self, call: CallId, error: TowpathError) -> None:
        """End a call with an error; what was offered with it is dropped."""
        withdraw = self._offers.pop(call, None)
        if withdraw is not None:
            withdraw()
        self._door.count("refused")
        self.answer(translate.error_frame(call, error))

    def request_of(self, call: CallId) -> str | None:
        """Which request a call is; None when it was cancelled meanwhile."""
        return self._calls.get(call)

    def send(self, frame: Frame, descriptors: tuple[wire.Descriptor, ...] = ()) -> None:
        """Send a notice, or one more item of a stream."""
        self._transport.send(frame, descriptors)

    def waits(self, call: CallId) -> None:
        """A call waits for what others bring about: it does not keep them from being read."""
        if call in self._calls:
            self._watches.add(call)
            if len(self._calls) - len(self._watches) < CALLS_MAX:
                self._transport.resume_reading()

    @property
    def unsent_bytes(self) -> int:
        """How much waits for the socket to take it."""
        return self._transport.unsent_bytes

    def when_sent(self, then: Callable[[], object]) -> None:
        """Do something when all that was sent so far is the kernel's; never, if the connection ends first."""
        self._transport.when_sent(then)

    def doorbell_for(self, uid: int) -> wire.Descriptor | None:
        """What somebody of a uid rings to wake this client; None where it sleeps in no event loop."""
        return None if self._doorbells is None else self._doorbells.for_uid(uid)

    def _send_doorbell(self, receiving: wire.Descriptor) -> None:
        frame = Frame()
        frame.doorbell_added.SetInParent()
        self.send(frame, (receiving,))

    def opened(self, effect: SessionOpened, table: wire.Descriptor, software: str) -> None:
        """The core has made this connection a session."""
        assert self._hello is not None
        call, doorbell = self._hello
        self.session = effect.session
        self._own_caller = Caller(self.peer.principal, self.is_admin, self.session)
        if doorbell is not None:
            self._door.descriptors.keep_doorbell(effect.session, doorbell)
            send = self._send_doorbell if self._takes_doorbells else None
            self._doorbells = Doorbells(doorbell, self.peer.uid, send)
        resuming_ms = self._door.resuming_ms(effect.incarnation)
        welcome = translate.welcome_frame(call, effect, software, wire.VERSION, resuming_ms)
        self._transport.send(welcome, (table,))
        self._transport.resume_reading()

    # ---- the end ----

    def close(self, error: TowpathError | None = None) -> None:
        """Close the connection, telling the peer why if there is a reason."""
        self._transport.close(error)

    def _no_hello(self) -> None:
        self.close(Timeout(f"no hello came in {HELLO_TIMEOUT_S:.0f} seconds"))

    def _process_ended(self) -> None:
        assert self._pidfd is not None
        self._loop.remove_reader(self._pidfd)
        self._transport.leave(ConnectionLost("the client's process ended"))

    def _closed(self, error: TowpathError | None) -> None:
        self._deadline.cancel()
        if self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        self._door.connection_closed(self, error)
