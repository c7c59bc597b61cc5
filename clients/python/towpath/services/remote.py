"""Callers and servers that reach a service through a gateway, on an event loop.

Theory of operation
    A call is a stream of answers on the session's connection; the gateway is the caller on the daemon's host.
    A server is a stream both ways: requests, cancellations and grants come, replies go. When the connection
    breaks, the calls on it end (those that are idempotent are made again on the next), the requests under way
    are cancelled, and the server offers itself again on the next connection.

Invariants
    At most ``concurrency`` requests are here at a time: the gateway sees to it. No more of a stream is sent
    than was granted.

Not here: the connection (``towpath.remote.session``), the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Final

from towpath import calls, convert, model
from towpath._message import Message
from towpath.errors import (
    Cancelled,
    ConnectionLost,
    MessageTooLarge,
    NoServer,
    ProtocolViolation,
    Timeout,
    TowpathError,
    Unavailable,
)
from towpath.names import check_name
from towpath.remote.ports import Answers, Ended, Exchange
from towpath.remote.session import Session
from towpath.v1.services_pb2 import CallRequest, CallResponse, Reply, ServeRequest, ServeResponse, Serving
from towpath.waiting import CALL_TIMEOUT_S, Buffer, deadline_ns, far_ns, remaining_ns, seconds

from . import answering, asking, envelope
from .aio_api import AsyncRequest, AsyncServer
from .news import News

MISSING_LOOK_S: Final = 0.1
"""How often somebody who waits for a server asks again whether there is one."""
TIMEOUT_MS_MAX: Final = (1 << 32) - 1

_TRY_AGAIN = (ConnectionLost, Unavailable, Cancelled)


class RemoteAsyncCaller:
    """One client's way to one service."""

    def __init__(self, session: Session, name: str) -> None:
        self.name = check_name(name)
        self._session = session

    async def call(
        self,
        payload: Buffer,
        *,
        headers: model.Headers | None,
        deadline: int | None,
        is_idempotent: bool,
        wait: bool,
    ) -> Message:
        """See :meth:`towpath.Client.call`."""
        request = self._request(payload, headers, is_idempotent=is_idempotent)
        async with contextlib.aclosing(self._replies(request, deadline, wait=wait)) as replies:
            async for reply in replies:
                return reply
        raise ProtocolViolation(f"{self.name!r} ended the call without a reply")

    async def call_stream(
        self,
        payload: Buffer,
        *,
        headers: model.Headers | None,
        deadline: int | None,
        is_idempotent: bool,
        wait: bool,
    ) -> AsyncGenerator[Message, None]:
        """See :meth:`towpath.Client.call_stream`."""
        request = self._request(payload, headers, is_idempotent=is_idempotent)
        request.is_stream = True
        request.window = envelope.WINDOW_BYTES
        async with contextlib.aclosing(self._replies(request, deadline, wait=wait)) as replies:
            async for reply in replies:
                yield reply

    def _request(self, payload: Buffer, headers: model.Headers | None, *, is_idempotent: bool) -> CallRequest:
        request = CallRequest(channel=self.name, payload=bytes(payload), is_idempotent=is_idempotent)
        if headers is not None:
            request.headers.CopyFrom(convert.headers_to_proto(headers))
        _check_size(request, self._session)
        return request

    async def _replies(
        self, request: CallRequest, deadline: int | None, *, wait: bool
    ) -> AsyncGenerator[Message, None]:
        """Ask, again as long as nothing came and that does no harm."""
        has_begun = False
        while True:
            try:
                async with contextlib.aclosing(self._attempt(request, deadline)) as replies:
                    async for reply in replies:
                        has_begun = True
                        yield reply
                return
            except NoServer:
                if not wait:
                    raise
                await asyncio.sleep(min(MISSING_LOOK_S, remaining_ns(deadline or far_ns()) / 1e9))
            except _TRY_AGAIN:
                if has_begun or not request.is_idempotent:
                    raise
            if asking.is_past(deadline):
                raise asking.too_late(self.name)

    async def _attempt(self, request: CallRequest, deadline: int | None) -> AsyncGenerator[Message, None]:
        left = remaining_ns(deadline)
        request.timeout_ms = 0 if deadline is None else min(max(1, left // 1_000_000), TIMEOUT_MS_MAX)
        connection = await self._session.ready(deadline)
        call: calls.Call[CallResponse] = calls.Call(
            "call_request", request, "call_response", lambda response: response
        )
        answers = await connection.open_stream(call)
        owed = 0
        number = 0
        try:
            while True:
                reply = await self._receive(answers, deadline)
                if reply is None:
                    return
                number += 1
                raw = reply.headers.SerializeToString()
                yield Message(
                    reply.payload,
                    seq=number,
                    source=0,
                    time_ns=time.time_ns(),
                    channel=self.name,
                    headers_raw=raw,
                )
                owed += envelope.part_bytes(len(reply.payload), len(raw))
                if request.is_stream and owed >= envelope.WINDOW_BYTES // 2:
                    answers.more(CallRequest(window=owed))
                    owed = 0
        finally:
            answers.close()

    async def _receive(self, answers: Answers[CallResponse], deadline: int | None) -> CallResponse | None:
        """Return the next reply; None after the last."""
        try:
            async with asyncio.timeout(seconds(deadline)):
                return await answers.receive()
        except TimeoutError:
            raise asking.too_late(self.name) from None
        except Ended:
            return None


class RemoteAsyncServer(AsyncServer):
    """A server of a service, through a gateway. Made by :meth:`open`."""

    def __init__(
        self, session: Session, name: str, concurrency: int, closed: Callable[[RemoteAsyncServer], object]
    ) -> None:
        self.channel = check_name(name)
        self.concurrency = answering.check_concurrency(concurrency)
        self._session = session
        self._told_closed = closed
        self._line: deque[RemoteAsyncRequest] = deque()
        self._requests: dict[int, RemoteAsyncRequest] = {}
        self._exchange: Exchange[ServeResponse] | None = None
        self._ended: TowpathError | None = None
        self._news = News()
        self._closed = False
        self._serving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin; returns when requests can come.

        Raises:
            TowpathError: why they cannot.
        """
        exchange = await self._begin(deadline_ns(CALL_TIMEOUT_S))
        self._serving = asyncio.create_task(self._serve(exchange), name=f"towpath-serve {self.channel}")

    async def _begin(self, deadline: int | None) -> Exchange[ServeResponse]:
        connection = await self._session.ready(deadline)
        serving = Serving(channel=self.channel, concurrency=self.concurrency)
        call: calls.Call[ServeResponse] = calls.Call(
            "serve_request", ServeRequest(serving=serving), "serve_response", lambda response: response
        )
        exchange = await connection.open_exchange(call)
        try:
            if not (await exchange.receive()).HasField("served"):
                raise ProtocolViolation("a server's stream began without its first response")
        except BaseException:
            exchange.close()
            raise
        return exchange

    async def _serve(self, exchange: Exchange[ServeResponse]) -> None:
        try:
            while True:
                self._exchange = exchange
                try:
                    while True:
                        self._take(await exchange.receive())
                except _TRY_AGAIN:
                    self._connection_lost()
                finally:
                    exchange.close()
                while True:
                    try:
                        exchange = await self._begin(None)
                        break
                    except _TRY_AGAIN:
                        await asyncio.sleep(MISSING_LOOK_S)
        except TowpathError as error:
            self._ended = error
            self._connection_lost()

    def _connection_lost(self) -> None:
        self._exchange = None
        for request in list(self._requests.values()):
            request.cancel()
        self._requests.clear()
        self._line.clear()
        self._news.tell()

    def _take(self, response: ServeResponse) -> None:
        match response.WhichOneof("event"):
            case "request":
                request = RemoteAsyncRequest(self, response)
                self._requests[response.request.request] = request
                self._line.append(request)
                self._news.tell()
            case "cancelled":
                if (known := self._requests.pop(response.cancelled.request, None)) is not None:
                    known.cancel()
            case "granted":
                if (known := self._requests.get(response.granted.request)) is not None:
                    known.grant(response.granted.bytes)

    @property
    def is_closed(self) -> bool:
        return self._closed

    async def receive(self, timeout: float | None = None) -> AsyncRequest:
        deadline = deadline_ns(timeout)
        while True:
            while self._line:
                request = self._line.popleft()
                if not request.is_answered:
                    return request
            if self._ended is not None:
                raise self._ended.again()
            if remaining_ns(deadline) == 0:
                raise Timeout(f"no request to {self.channel!r} in {timeout} s")
            await self._news.wait(deadline)

    async def close(self) -> None:
        self._closed = True
        if self._ended is None:
            self._ended = ConnectionLost("the server was closed", hint="")
        if self._serving is not None:
            self._serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._serving
        self._connection_lost()
        self._told_closed(self)

    async def _send(self, request: RemoteAsyncRequest, reply: Reply) -> bool:
        """Send a reply. Returns False when there is no way to the caller any more."""
        if self._exchange is None or self._requests.get(request.number) is not request:
            request.cancel()
            return False
        is_last = reply.is_last or reply.HasField("error")
        if is_last:
            del self._requests[request.number]
        reply.request = request.number
        try:
            await self._exchange.send(ServeRequest(reply=reply))
        except TowpathError:
            request.cancel()
            return False
        return True


class RemoteAsyncRequest(AsyncRequest):
    """One request that came through a gateway."""

    def __init__(self, server: RemoteAsyncServer, response: ServeResponse) -> None:
        request = response.request
        self._server = server
        self.number = request.request
        self.payload = request.payload
        self._request = request
        self._message = Message(
            request.payload,
            seq=request.request,
            source=0,
            time_ns=time.time_ns(),
            channel=server.channel,
            headers_raw=request.headers.SerializeToString(),
        )
        self._deadline = deadline_ns(request.timeout_ms / 1e3) if request.timeout_ms else None
        self._window = request.window
        self._is_over = False
        self._is_cancelled = False
        self._news = News()

    @property
    def channel(self) -> str:
        return self._server.channel

    @property
    def principal(self) -> str:
        return self._request.principal

    @property
    def is_stream(self) -> bool:
        return self._request.is_stream

    @property
    def is_idempotent(self) -> bool:
        return self._request.is_idempotent

    @property
    def message(self) -> Message:
        return self._message

    def cancel(self) -> None:
        """Nobody waits for an answer any more."""
        if not self._is_over:
            self._is_over = self._is_cancelled = True
            self._news.tell()

    def grant(self, size: int) -> None:
        """So much more of a stream may be sent."""
        self._window += size
        self._news.tell()

    @property
    def is_answered(self) -> bool:
        return self._is_over

    @property
    def is_cancelled(self) -> bool:
        return self._is_cancelled

    @property
    def time_left(self) -> float | None:
        return None if self._deadline is None else remaining_ns(self._deadline) / 1e9

    def _when_cancelled(self, callback: Callable[[], object]) -> Callable[[], object]:
        def look() -> None:
            if self._is_cancelled:
                self._news.callbacks.discard(look)
                callback()

        self._news.callbacks.add(look)
        return lambda: self._news.callbacks.discard(look)

    async def reply(self, payload: Buffer = b"", *, headers: model.Headers | None = None) -> None:
        reply = _reply(payload, headers, is_last=True)
        _check_size(reply, self._server._session)
        await self._last(reply)

    async def end(self) -> None:
        if not self.is_stream:
            raise answering.needs_stream()
        await self._last(Reply(is_end=True, is_last=True))

    async def fail(self, error: BaseException) -> None:
        reply = Reply()
        reply.error.MergeFromString(answering.encode_error(error))
        await self._last(reply)

    async def _last(self, reply: Reply) -> None:
        if self._is_over:
            if not self._is_cancelled:
                raise answering.over()
            return
        if await self._server._send(self, reply):
            self._is_over = True

    async def send(self, payload: Buffer, *, headers: model.Headers | None = None) -> bool:
        if not self.is_stream:
            raise answering.needs_stream()
        if self._is_over and not self._is_cancelled:
            raise answering.over()
        while self._window <= 0 and not self._is_over:
            await self._news.wait(None)
        if self._is_over:
            return False
        reply = _reply(payload, headers, is_last=False)
        _check_size(reply, self._server._session)
        self._window -= envelope.part_bytes(len(reply.payload), reply.headers.ByteSize())
        return await self._server._send(self, reply)

    async def _finish(self) -> None:
        if not self._is_over:
            await self.fail(answering.unanswered())


def _reply(payload: Buffer, headers: model.Headers | None, *, is_last: bool) -> Reply:
    reply = Reply(payload=bytes(payload), is_last=is_last)
    if headers is not None:
        reply.headers.CopyFrom(convert.headers_to_proto(headers))
    return reply


def _check_size(message: CallRequest | Reply, session: Session) -> None:
    """Refuse what the gateway would not take: it would close the connection, and end all that is on it."""
    size = len(message.payload) + message.headers.ByteSize()
    if size > session.message_bytes_max:
        raise MessageTooLarge(
            f"a message of {size} bytes; at most {session.message_bytes_max} go through the gateway",
            hint="send it in pieces: a reply as a stream, a request as several",
        )
