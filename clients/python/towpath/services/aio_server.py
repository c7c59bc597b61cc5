"""Servers on this host that wait on an event loop.

Theory of operation
    The same as ``server``. A task reads the control page, sleeps on the session's doorbell when nothing is
    there, and wakes the futures of whoever waits for what came.

Invariants
    All of it runs on the client's loop. Nothing here blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from towpath import calls, model
from towpath.aio.messages import LocalAsyncPublisher
from towpath.ends import ReaderState, SourceState
from towpath.errors import ConnectionLost, Timeout, TowpathError
from towpath.v1 import frame_pb2
from towpath.waiting import CALL_TIMEOUT_S, Buffer, deadline_ns, remaining_ns

from . import answering, asking, envelope
from .aio_api import AsyncRequest, AsyncServer
from .answering import ANSWER_TIMEOUT_S, Line, Ticket
from .asking import READ_BYTES, READ_COUNT
from .news import News
from .request import TicketRequest

if TYPE_CHECKING:
    from towpath.aio.client import LocalAsyncClient


_log = logging.getLogger("towpath")


class LocalAsyncServer(AsyncServer):
    """A server of a service on this host. Made by :meth:`open`."""

    def __init__(
        self, client: LocalAsyncClient, info: model.ChannelInfo, state: ReaderState, concurrency: int
    ) -> None:
        self.channel = info.name
        self.concurrency = concurrency
        self._client = client
        self._info = info
        self._state = state
        self._line = Line(state, concurrency)
        self._news = News()
        self._told: dict[Ticket, News] = {}
        self._answerers: dict[int, LocalAsyncPublisher] = {}
        self._answering = asyncio.Lock()
        self._closed = False
        state.wake = lambda: client._sleepers.wake(state)
        self._reading = asyncio.create_task(self._read(), name=f"towpath-serve {self.channel}")

    @classmethod
    async def open(
        cls, client: LocalAsyncClient, name: str, concurrency: int, principal: str = ""
    ) -> LocalAsyncServer:
        """Attach it; ``principal`` is for whom a gateway serves."""
        answering.check_concurrency(concurrency)
        deadline = deadline_ns(CALL_TIMEOUT_S)
        protocol = client._protocol
        info = await client._call(calls.channel_info(name), deadline)
        begin = functools.partial(
            protocol.new_reader,
            name,
            "",
            wants_doorbell=True,
            role=frame_pb2.READER_ROLE_SERVER,
            principal=principal,
        )
        state = await client._attach(begin, protocol.forget_reader, deadline)
        return cls(client, info, state, concurrency)

    @property
    def is_closed(self) -> bool:
        return self._closed

    async def receive(self, timeout: float | None = None) -> AsyncRequest:
        deadline = deadline_ns(timeout)
        while (ticket := self._line.take()) is None:
            if self._state.ended is not None:
                raise self._state.ended.again()
            if remaining_ns(deadline) == 0:
                raise Timeout(f"no request to {self.channel!r} in {timeout} s")
            await self._news.wait(deadline)
        return LocalAsyncRequest(self, ticket)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        if self._state.ended is None:
            await self._turn_away()
        why = ConnectionLost("the server was closed", hint="")
        protocol = self._client._protocol
        for publisher in self._answerers.values():
            protocol.forget_source(publisher._state, why)
        protocol.forget_reader(self._state, why)
        self._client._flush()
        self._answerers.clear()
        self._news.tell()

    async def _turn_away(self) -> None:
        """Tell the callers of all that was not begun, so that they ask somebody else."""
        waiting = self._line.leave()
        with contextlib.suppress(ValueError, RuntimeError):
            while messages := self._state.reader.receive(READ_COUNT, READ_BYTES, 0):
                self._line.take_in(messages)
        for ticket in waiting + self._line.leave():
            with contextlib.suppress(TowpathError):
                await self._send(ticket, envelope.UNTOUCHED, b"", b"", is_last=True)

    # ---- answering ----

    async def _send(
        self, ticket: Ticket, kind: int, payload: Buffer, headers_raw: bytes, *, is_last: bool
    ) -> bool:
        """Write to a caller. Returns False when it is not there any more, or does not read.

        Raises:
            MessageTooLarge: nothing was sent.
        """
        publisher = self._answerers.get(ticket.source) or await self._answerer(ticket.source)
        if publisher is None:
            self._line.expire(ticket)
            return False
        raw = envelope.reply(kind, ticket.call) + headers_raw
        try:
            await publisher.publish(payload, headers_raw=raw, timeout=ANSWER_TIMEOUT_S)
        except ValueError:
            raise
        except (TowpathError, RuntimeError):  # it does not read, or is gone
            self._give_up(ticket, publisher)
            return False
        if is_last:
            self._let_go(ticket)
        return True

    def _let_go(self, ticket: Ticket) -> None:
        """The program is done with a request: somebody who waits may take the next."""
        self._line.let_go(ticket)
        self._told.pop(ticket, None)
        if self._line.has_work:
            self._news.tell()

    async def _answerer(self, source: int) -> LocalAsyncPublisher | None:
        """Make the ring by which a caller is answered; None when it is gone."""
        async with self._answering:
            if (known := self._answerers.get(source)) is not None:
                return known
            party = self._state.parties.get(source)
            if party is None:
                return None
            place = calls.SourcePlace(frame_pb2.SOURCE_ROLE_ANSWERER, self._state.id, party[0])
            protocol, client = self._client._protocol, self._client
            begin = functools.partial(protocol.new_source, self._info, "", place=place)

            def attach() -> Awaitable[SourceState]:
                return client._attach(begin, protocol.forget_source, deadline)

            deadline = deadline_ns(CALL_TIMEOUT_S)
            try:
                state = await client._persist(attach)
            except TowpathError as error:
                _log.warning("caller %d of %s is not answered: %s", source, self.channel, error)
                return None
            state.wake = lambda: client._room.wake(state)
            publisher = self._answerers[source] = LocalAsyncPublisher(client, state)
            return publisher

    def _give_up(self, ticket: Ticket, publisher: LocalAsyncPublisher) -> None:
        """A caller cannot be answered: whatever else it waits for is lost, and it learns that."""
        if self._answerers.get(ticket.source) is publisher:
            del self._answerers[ticket.source]
        self._client._protocol.forget_source(
            publisher._state, ConnectionLost("the caller does not read", hint="")
        )
        self._client._flush()
        given_up = [each for each in self._line.requests.values() if each.source == ticket.source]
        for each in given_up:
            self._line.expire(each)
        self._tell(given_up)

    # ---- reading ----

    async def _read(self) -> None:
        """Read until the server is closed."""
        state, client = self._state, self._client
        while True:
            try:
                messages = state.reader.receive(READ_COUNT, READ_BYTES, 0)
            except (ValueError, RuntimeError):  # closed
                messages = []
            if messages:
                self._tell(self._line.take_in(messages))
                for ticket in self._line.take_refused() if self._line.has_refused else ():
                    with contextlib.suppress(TowpathError):
                        error = answering.encode_error(answering.full())
                        await self._send(ticket, envelope.ERROR, error, b"", is_last=True)
            else:
                self._tend()
            if self._line.has_work or state.ended is not None:
                self._news.tell()
            if state.ended is not None:
                return
            if messages:
                await asyncio.sleep(0)  # others of the loop want their turn
            else:
                await client._sleepers.sleep(state, None)

    def _tend(self) -> None:
        """Nothing came: see who is gone."""
        state, protocol = self._state, self._client._protocol
        protocol.tend(state)
        state.troubles.clear()  # who is not followed any more learns it from the core, or by its deadline
        for source in [source for source in self._answerers if source not in state.following]:
            publisher = self._answerers.pop(source)
            protocol.forget_source(publisher._state, ConnectionLost("the caller is gone", hint=""))
        self._client._flush()
        self._tell(self._line.forget_callers_gone())

    def _tell(self, tickets: list[Ticket]) -> None:
        """Have those who work on these requests look at them."""
        for ticket in tickets:
            if (news := self._told.get(ticket)) is not None:
                news.tell()


class LocalAsyncRequest(TicketRequest, AsyncRequest):
    """One request that a server on this host has taken."""

    def __init__(self, server: LocalAsyncServer, ticket: Ticket) -> None:
        super().__init__(server.channel, ticket)
        self._server = server

    @property
    def is_cancelled(self) -> bool:
        ticket = self._ticket
        if asking.is_past(ticket.deadline_ns):
            self._server._line.expire(ticket)
        return ticket.is_cancelled

    @property
    def time_left(self) -> float | None:
        deadline = self._ticket.deadline_ns
        return None if deadline is None else remaining_ns(deadline) / 1e9

    def _when_cancelled(self, callback: Callable[[], object]) -> Callable[[], object]:
        news = self._server._told.setdefault(self._ticket, News())

        def look() -> None:
            if self.is_cancelled:
                forget()
                callback()

        left = self.time_left
        timer = None if left is None else asyncio.get_running_loop().call_later(left + 0.001, look)

        def forget() -> None:
            if timer is not None:
                timer.cancel()
            news.callbacks.discard(look)
            self._server._told.pop(self._ticket, None)

        news.callbacks.add(look)
        return forget

    async def reply(self, payload: Buffer = b"", *, headers: model.Headers | None = None) -> None:
        await self._last(envelope.REPLY, payload, answering.headers_bytes(headers))

    async def end(self) -> None:
        if not self.is_stream:
            raise answering.needs_stream()
        await self._last(envelope.END, b"", b"")

    async def fail(self, error: BaseException) -> None:
        await self._last(envelope.ERROR, answering.encode_error(error), b"")

    async def _last(self, kind: int, payload: Buffer, headers_raw: bytes) -> None:
        ticket, server = self._ticket, self._server
        if ticket.is_over:
            if not ticket.is_cancelled:
                raise answering.over()
        else:
            await server._send(ticket, kind, payload, headers_raw, is_last=True)
        if ticket.is_cancelled:
            server._let_go(ticket)

    async def send(self, payload: Buffer, *, headers: model.Headers | None = None) -> bool:
        ticket, server = self._ticket, self._server
        if not self.is_stream:
            raise answering.needs_stream()
        if ticket.is_over and not ticket.is_cancelled:
            raise answering.over()
        while not ticket.may_send and not asking.is_past(ticket.deadline_ns):
            await server._told.setdefault(ticket, News()).wait(ticket.deadline_ns)
        if ticket.is_over or not ticket.may_send:
            return False
        raw = answering.headers_bytes(headers)
        ticket.window -= envelope.part_bytes(memoryview(payload).nbytes, len(raw))
        return await server._send(ticket, envelope.PART, payload, raw, is_last=False)

    async def _finish(self) -> None:
        if not self._ticket.is_over:
            await self.fail(answering.unanswered())
        if self._ticket.is_cancelled:
            self._server._let_go(self._ticket)
