"""Callers and servers on this host that wait in the program's own threads.

Theory of operation
    A call writes the caller's ring and reads the rings of the answers in the thread that calls; a server
    reads requests in the thread that asks for one, and answers in whichever thread answers. Where several
    threads wait, one of them reads for all (``relay``). The daemon is asked for three things only: to make
    the ends, when the first call to a service is made, when a server begins, and when a server answers a
    caller for the first time.

Invariants
    The state of a service's end is changed under ``_lock``, which is never held while waiting.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from towpath import calls, model
from towpath._message import Message
from towpath.ends import ReaderState, SourceState
from towpath.errors import ConnectionLost, Timeout, TowpathError
from towpath.sync.messages import LocalPublisher
from towpath.v1 import frame_pb2
from towpath.waiting import CALL_TIMEOUT_S, Buffer, deadline_ns, far_ns, remaining_ns

from . import answering, asking, envelope
from .answering import Line, Ticket
from .api import Request, Server
from .asking import Calls, PendingCall
from .relay import Relay

if TYPE_CHECKING:
    from towpath.sync.client import LocalClient

READ_COUNT: Final = 256
READ_BYTES: Final = 1 << 20
ANSWER_TIMEOUT_S: Final = 1.0
"""How long an answer waits for room in the ring of a caller that does not read; then the caller is given
up.
"""
BEGIN_LOOK_S: Final = 0.0005
"""How often a caller looks whether a server that has just come reads it; a moment after the server came."""
_LINE: Final = "line"


class LocalCaller:
    """One client's way to one service.

    Args:
        principal: for whom a gateway calls; empty for the session's own.
    """

    def __init__(self, client: LocalClient, name: str, principal: str = "") -> None:
        self.name = name
        self._client = client
        deadline = deadline_ns(CALL_TIMEOUT_S)
        protocol = client._protocol
        info = client._call(calls.channel_info(name), deadline)
        begin = functools.partial(
            protocol.new_reader,
            name,
            "",
            wants_doorbell=False,
            role=frame_pb2.READER_ROLE_REPLIES,
        )
        self._replies = client._attach(begin, protocol.forget_reader, deadline)
        try:
            place = calls.SourcePlace(frame_pb2.SOURCE_ROLE_CALLER, self._replies.id, 0, principal)
            source = functools.partial(protocol.new_source, info, "", place=place)
            state = client._attach(source, protocol.forget_source, deadline)
        except BaseException:
            with client._sending():
                protocol.forget_reader(self._replies, ConnectionLost("it was never attached"))
            raise
        self._requests = LocalPublisher(client, state)
        self._source = state
        self._try_publish = state.writer.try_publish
        self._receive = self._replies.reader.receive
        self._lock = threading.Lock()
        self._calls = Calls(state, self._replies)
        self._relay = Relay(self._read)
        # Who comes and who goes is told by the core, in the client's thread: whoever reads looks again then.
        state.wake = self._wake

    def _wake(self) -> None:
        self._source.writer.notify()
        self._replies.reader.notify()

    @property
    def ended(self) -> TowpathError | None:
        """Why it is of no use any more; None while it is."""
        return self._calls.ended

    def close(self) -> None:
        """Leave the service: the servers learn it, and cancel what was asked. More than once is fine."""
        why = ConnectionLost("the client was closed", hint="")
        with self._client._sending():
            self._client._protocol.forget_source(self._source, why)
            self._client._protocol.forget_reader(self._replies, why)

    # ---- calling ----

    def call(
        self,
        payload: Buffer,
        *,
        headers: model.Headers | None,
        deadline: int | None,
        is_idempotent: bool,
        wait: bool,
    ) -> Message:
        """See :meth:`towpath.Client.call`."""
        call = PendingCall(deadline_ns=deadline, is_idempotent=is_idempotent, is_stream=False)
        raw = answering.headers_bytes(headers)
        while True:
            self._send(call, payload, raw, wait=wait)
            self._wait(call)
            reply = call.take()
            if reply is not None:
                return reply
            if not call.may_try_again:
                raise call.error or asking.lost(self.name)

    def call_stream(
        self,
        payload: Buffer,
        *,
        headers: model.Headers | None,
        deadline: int | None,
        is_idempotent: bool,
        wait: bool,
    ) -> Iterator[Message]:
        """See :meth:`towpath.Client.call_stream`."""
        call = PendingCall(deadline_ns=deadline, is_idempotent=is_idempotent, is_stream=True)
        raw = answering.headers_bytes(headers)
        self._send(call, payload, raw, wait=wait)
        return self._stream(call, payload, raw, wait=wait)

    def _stream(self, call: PendingCall, payload: Buffer, raw: bytes, *, wait: bool) -> Iterator[Message]:
        try:
            while True:
                self._wait(call)
                while (part := call.take()) is not None:
                    with self._lock:
                        grant = self._calls.grant(call)
                    if grant is not None:
                        self._requests.publish(b"", headers_raw=grant)
                    yield part
                if not call.is_over:
                    continue
                if not call.may_try_again:
                    break
                self._send(call, payload, raw, wait=wait)
        finally:
            self._withdraw(call)
        if call.error is not None:
            raise call.error

    def _send(self, call: PendingCall, payload: Buffer, raw: bytes, *, wait: bool) -> None:
        """Send a call to a server."""
        while True:
            with self._lock:
                server = self._calls.choose()
                if server is not None:
                    headers_raw = self._calls.begin(call, server) + raw
            if server is not None:
                break
            self._find_server(call, wait=wait)
        try:
            if self._replies.ended is not None:  # nobody would look again
                raise self._replies.ended.again()
            if self._try_publish(payload, headers_raw) <= 0:
                self._requests._publish_waiting(payload, headers_raw, call.deadline_ns)
            if self._source.writer.readers_changed:
                self._requests._meet_readers()
        except Timeout:
            with self._lock:
                self._calls.end(call)
            raise asking.too_late(self.name) from None
        except (ValueError, RuntimeError) as error:
            with self._lock:
                self._calls.end(call)
            raise self._source.refusal(error) from None
        except BaseException:
            with self._lock:
                self._calls.end(call)
            raise

    def _find_server(self, call: PendingCall, *, wait: bool) -> None:
        """Nobody can be asked: see whether somebody has come, and wait for that when it is wanted.

        Raises:
            NoServer: nobody serves.
            Timeout: nobody has come in time.
        """
        if self.ended is not None:
            raise self.ended.again()
        limit = call.deadline_ns if call.deadline_ns is not None else far_ns()
        self._requests._fetch_readers(limit)
        state = self._calls
        if state.choose() is not None:
            return
        if not wait and not state.is_awaiting_server:
            raise asking.no_server(self.name)
        if state.is_awaiting_server:  # it is there, and has not begun to read; nothing tells when it does
            time.sleep(min(BEGIN_LOOK_S, remaining_ns(limit) / 1e9))
        else:
            self._relay.wait(call, lambda: bool(state.is_awaiting_server or state.ended), limit)
        if asking.is_past(limit):
            raise asking.too_late(self.name)

    def _wait(self, call: PendingCall) -> None:
        """Wait until a call has news.

        Raises:
            Timeout: its deadline has passed; the server is told.
        """
        has_news = False
        try:
            has_news = self._relay.wait(call, lambda: call.has_news, call.deadline_ns)
        finally:
            if not has_news:
                self._withdraw(call)
        if not has_news:
            raise asking.too_late(self.name)

    def _withdraw(self, call: PendingCall) -> None:
        """Tell the server that nobody waits, if there is room to; it has the deadline, too."""
        with self._lock:
            raw = self._calls.withdraw(call)
        if raw is not None:
            with contextlib.suppress(ValueError, RuntimeError):
                if self._try_publish(b"", raw) < 0:
                    self._requests._meet_readers()
                    self._try_publish(b"", raw)

    # ---- reading ----

    def _read(self, deadline: int | None) -> None:
        """Read once; see :class:`Relay`."""
        state = self._replies
        try:
            messages = self._receive(READ_COUNT, READ_BYTES, remaining_ns(deadline))
        except ValueError:  # it was closed
            messages = []
        if messages:
            with self._lock:
                told = self._calls.take_in(messages)
        else:
            with self._client._sending():
                self._client._protocol.tend(state)
            with self._lock:
                told = self._calls.find_lost()
                if state.troubles:
                    told.extend(self._meet_troubles())
            self._relay.wake_all()  # a server may have come, for those who wait for one
        for call in told:
            self._relay.wake(call)

    def _meet_troubles(self) -> list[PendingCall]:
        """A server's answers cannot be had: it is not known whose, so no call goes on."""
        error = self._replies.troubles.pop()
        self._replies.troubles.clear()
        told = list(self._calls.pending.values())
        for call in told:
            self._calls.end(call, error.again())
        return told


class LocalServer(Server):
    """A server of a service on this host."""

    def __init__(self, client: LocalClient, name: str, concurrency: int) -> None:
        answering.check_concurrency(concurrency)
        self.channel = name
        self.concurrency = concurrency
        self._client = client
        deadline = deadline_ns(CALL_TIMEOUT_S)
        protocol = client._protocol
        self._info = client._call(calls.channel_info(name), deadline)
        begin = functools.partial(
            protocol.new_reader, name, "", wants_doorbell=False, role=frame_pb2.READER_ROLE_SERVER
        )
        self._state: ReaderState = client._attach(begin, protocol.forget_reader, deadline)
        self._receive = self._state.reader.receive
        self._lock = threading.Lock()
        self._line = Line(self._state, concurrency)
        self._relay = Relay(self._read)
        self._answerers: dict[int, LocalPublisher] = {}
        self._answering = threading.Lock()
        self._closed = False

    @property
    def is_closed(self) -> bool:
        return self._closed

    def receive(self, timeout: float | None = None) -> Request:
        deadline = deadline_ns(timeout)
        line, state = self._line, self._state
        while True:
            if line.line:
                with self._lock:
                    ticket = line.take()
                if ticket is not None:
                    return LocalRequest(self, ticket)
            if state.ended is not None:
                raise state.ended.again()
            if not self._relay.wait(_LINE, lambda: line.has_work or state.ended is not None, deadline):
                raise Timeout(f"no request to {self.channel!r} in {timeout} s")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._state.ended is None:
            self._turn_away()
        why = ConnectionLost("the server was closed", hint="")
        with self._client._sending():
            for publisher in self._answerers.values():
                self._client._protocol.forget_source(publisher._state, why)
            self._client._protocol.forget_reader(self._state, why)
        self._answerers.clear()
        self._relay.wake_all()

    def _turn_away(self) -> None:
        """Tell the callers of all that was not begun, so that they ask somebody else."""
        with self._lock:
            waiting = self._line.leave()
        with contextlib.suppress(ValueError, RuntimeError):
            self._relay.look()
        with self._lock:
            waiting += self._line.leave()
        for ticket in waiting:
            with contextlib.suppress(TowpathError):
                self._send(ticket, envelope.UNTOUCHED, b"", b"", is_last=True)

    # ---- answering ----

    def _send(self, ticket: Ticket, kind: int, payload: Buffer, headers_raw: bytes, *, is_last: bool) -> bool:
        """Write to a caller. Returns False when it is not there any more, or does not read.

        Raises:
            MessageTooLarge: nothing was sent.
        """
        publisher = self._answerers.get(ticket.source) or self._answerer(ticket.source)
        if publisher is None:
            with self._lock:
                self._line.cancel(ticket)
            return False
        raw = envelope.reply(kind, ticket.call) + headers_raw
        state = publisher._state
        try:
            if publisher._try_publish(payload, raw) <= 0:
                publisher._publish_waiting(payload, raw, deadline_ns(ANSWER_TIMEOUT_S))
            if state.writer.readers_changed:
                publisher._meet_readers()
        except (ValueError, RuntimeError) as error:
            refusal = state.refusal(error)
            if isinstance(refusal, ValueError):
                raise refusal from None
            self._give_up(ticket, publisher)
            return False
        except TowpathError:  # it does not read, or is gone
            self._give_up(ticket, publisher)
            return False
        if is_last:
            self._let_go(ticket)
        return True

    def _let_go(self, ticket: Ticket) -> None:
        """The program is done with a request: somebody who waits may take the next."""
        with self._lock:
            self._line.let_go(ticket)
        if self._line.line:
            self._relay.wake(_LINE)
            with contextlib.suppress(ValueError, RuntimeError):
                self._state.reader.notify()

    def _answerer(self, source: int) -> LocalPublisher | None:
        """Make the ring by which a caller is answered; None when it is gone."""
        with self._answering:
            if (known := self._answerers.get(source)) is not None:
                return known
            party = self._state.parties.get(source)
            if party is None or self._closed:
                return None
            place = calls.SourcePlace(frame_pb2.SOURCE_ROLE_ANSWERER, self._state.id, party[0])
            protocol = self._client._protocol
            begin = functools.partial(protocol.new_source, self._info, "", place=place)
            try:
                state: SourceState = self._client._attach(
                    begin, protocol.forget_source, deadline_ns(CALL_TIMEOUT_S)
                )
            except TowpathError:
                return None
            publisher = self._answerers[source] = LocalPublisher(self._client, state)
            return publisher

    def _give_up(self, ticket: Ticket, publisher: LocalPublisher) -> None:
        """A caller cannot be answered: whatever else it waits for is lost, and it learns that."""
        if self._answerers.get(ticket.source) is publisher:
            del self._answerers[ticket.source]
        publisher.close()
        with self._lock:
            for each in list(self._line.requests.values()):
                if each.source == ticket.source:
                    self._line.cancel(each)

    # ---- reading ----

    def _read(self, deadline: int | None) -> None:
        """Read once; see :class:`Relay`."""
        state = self._state
        try:
            messages = self._receive(READ_COUNT, READ_BYTES, 0 if state.ended else remaining_ns(deadline))
        except ValueError:  # it was closed
            return
        if messages:
            with self._lock:
                told = self._line.take_in(messages)
            if self._relay.has_sleepers:
                for _ in range(min(len(self._line.line), len(messages))):
                    self._relay.wake(_LINE)
            for ticket in self._line.take_refused() if self._line.has_refused else ():
                with contextlib.suppress(TowpathError):
                    self._send(
                        ticket, envelope.ERROR, answering.encode_error(answering.full()), b"", is_last=True
                    )
        else:
            told = self._tend()
        for ticket in told:
            self._relay.wake(ticket)

    def _tend(self) -> list[Ticket]:
        """Nothing came: see who is gone."""
        state, protocol = self._state, self._client._protocol
        with self._client._sending():
            protocol.tend(state)
            state.troubles.clear()  # who is not followed any more learns it from the core, or by its deadline
            for source in [source for source in self._answerers if source not in state.following]:
                publisher = self._answerers.pop(source)
                protocol.forget_source(publisher._state, ConnectionLost("the caller is gone", hint=""))
        with self._lock:
            return self._line.forget_callers_gone()


class LocalRequest(Request):
    """One request that a server on this host has taken."""

    def __init__(self, server: LocalServer, ticket: Ticket) -> None:
        self._server = server
        self._ticket = ticket
        self.payload = ticket.payload

    @property
    def channel(self) -> str:
        return self._server.channel

    @property
    def principal(self) -> str:
        return self._ticket.principal

    @property
    def is_stream(self) -> bool:
        return self._ticket.is_stream

    @property
    def is_idempotent(self) -> bool:
        return self._ticket.is_idempotent

    @property
    def message(self) -> Message:
        return self._ticket.message

    @property
    def is_answered(self) -> bool:
        return self._ticket.is_over

    @property
    def is_cancelled(self) -> bool:
        ticket, server = self._ticket, self._server
        if ticket.is_over:
            return ticket.is_cancelled
        with contextlib.suppress(ValueError, RuntimeError):
            server._relay.look()
        if asking.is_past(ticket.deadline_ns):
            with server._lock:
                server._line.expire(ticket)
        return ticket.is_cancelled

    @property
    def time_left(self) -> float | None:
        deadline = self._ticket.deadline_ns
        return None if deadline is None else remaining_ns(deadline) / 1e9

    def reply(self, payload: Buffer = b"", *, headers: model.Headers | None = None) -> None:
        self._last(envelope.REPLY, payload, answering.headers_bytes(headers))

    def end(self) -> None:
        if not self.is_stream:
            raise answering.needs_stream()
        self._last(envelope.END, b"", b"")

    def fail(self, error: BaseException) -> None:
        self._last(envelope.ERROR, answering.encode_error(error), b"")

    def _last(self, kind: int, payload: Buffer, headers_raw: bytes) -> None:
        ticket, server = self._ticket, self._server
        if ticket.is_over:
            if not ticket.is_cancelled:
                raise answering.over()
        else:
            server._send(ticket, kind, payload, headers_raw, is_last=True)
        if ticket.is_cancelled:
            server._let_go(ticket)

    def send(self, payload: Buffer, *, headers: model.Headers | None = None) -> bool:
        ticket, server = self._ticket, self._server
        if not self.is_stream:
            raise answering.needs_stream()
        if ticket.is_over and not ticket.is_cancelled:
            raise answering.over()
        server._relay.wait(ticket, lambda: ticket.may_send, ticket.deadline_ns)
        if ticket.is_over or not ticket.may_send:
            return False
        raw = answering.headers_bytes(headers)
        ticket.window -= envelope.part_bytes(memoryview(payload).nbytes, len(raw))
        return server._send(ticket, envelope.PART, payload, raw, is_last=False)

    def _finish(self) -> None:
        if not self._ticket.is_over:
            self.fail(answering.unanswered())
        if self._ticket.is_cancelled:
            self._server._let_go(self._ticket)


class Callers:
    """The services that one client has called; each is left when the client is closed."""

    def __init__(self, client: LocalClient) -> None:
        self._client = client
        self._callers: dict[tuple[str, str], LocalCaller] = {}
        self._opening = threading.Lock()

    def get(self, name: str, principal: str = "") -> LocalCaller:
        """Return the caller of a service, made when first asked for, and again when it has ended."""
        caller = self._callers.get((name, principal))
        if caller is None or caller.ended is not None:
            with self._opening:
                caller = self._callers.get((name, principal))
                if caller is None or caller.ended is not None:
                    if caller is not None:
                        caller.close()
                    caller = self._callers[name, principal] = LocalCaller(self._client, name, principal)
        return caller
