"""Servers on this host that wait in the program's own threads.

Theory of operation
    A server reads requests in the thread that asks for one, and answers in whichever thread answers. Where
    several threads wait, one of them reads for all (``relay``). The daemon is asked to make the ring by which
    a caller is answered, when it is answered for the first time.

Invariants
    The state of a service's end is changed under ``_lock``, which is never held while waiting.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from typing import TYPE_CHECKING, Final

from towpath import calls, model
from towpath.ends import ReaderState, SourceState
from towpath.errors import ConnectionLost, Timeout, TowpathError
from towpath.sync.messages import LocalPublisher
from towpath.v1 import frame_pb2
from towpath.waiting import CALL_TIMEOUT_S, Buffer, deadline_ns, remaining_ns

from . import answering, asking, envelope
from .answering import ANSWER_TIMEOUT_S, Line, Ticket
from .api import Request, Server
from .asking import READ_BYTES, READ_COUNT
from .relay import Relay
from .request import TicketRequest

if TYPE_CHECKING:
    from towpath.sync.client import LocalClient

_LINE: Final = "line"
_log = logging.getLogger("towpath")


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
            if state.writer.try_publish(payload, raw) <= 0:
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

            def attach() -> SourceState:
                return self._client._attach(begin, protocol.forget_source, deadline)

            deadline = deadline_ns(CALL_TIMEOUT_S)
            try:
                state = self._client._persist(attach)
            except TowpathError as error:
                _log.warning("caller %d of %s is not answered: %s", source, self.channel, error)
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


class LocalRequest(TicketRequest, Request):
    """One request that a server on this host has taken."""

    def __init__(self, server: LocalServer, ticket: Ticket) -> None:
        super().__init__(server.channel, ticket)
        self._server = server

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
