"""Services from afar: a gateway calls for its peers, and serves for them.

Theory of operation
    A peer's call is a call of the gateway's own client, for the peer's principal; its replies are sent as
    they come. A peer that serves is a server of the gateway's own client (:class:`PeerServer`): each request
    that it takes is sent to the peer, and answered by what the peer sends back. The peer's stream ends, for
    whatever reason: the server is closed, and its callers learn it.

    A peer answers many requests on one stream, so one caller that does not read must not hold up the others:
    each request has a task and a line of its own. What waits in it is bounded, because the peer may send no
    more of a stream than it was granted.

Invariants
    At most ``concurrency`` requests are with a peer. A peer that sends more of a stream than it may loses its
    stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from towpath import convert
from towpath.errors import ConnectionLost, ProtocolViolation, TowpathError
from towpath.services.aio_api import AsyncCaller, AsyncRequest, AsyncServer
from towpath.services.envelope import WINDOW_BYTES, part_bytes
from towpath.v1 import services_pb2
from towpath.waiting import deadline_ns


class ServiceClient(Protocol):
    """What is needed of the gateway's client."""

    async def service_caller(self, name: str, principal: str = "") -> AsyncCaller: ...

    async def serve(self, name: str, *, concurrency: int = 1, principal: str = "") -> AsyncServer: ...


SendReply = Callable[[services_pb2.CallResponse], Awaitable[None]]
SendEvent = Callable[[services_pb2.ServeResponse], Awaitable[None]]


async def call(
    client: ServiceClient, principal: str, request: services_pb2.CallRequest, send: SendReply
) -> None:
    """Carry out a peer's call; returns when all of its replies are sent. Cancelled, it cancels the call.

    Raises:
        TowpathError: what became of it instead.
    """
    headers = convert.headers_from_proto(request.headers) if request.HasField("headers") else None
    deadline = deadline_ns(request.timeout_ms / 1e3) if request.timeout_ms else None
    caller = await client.service_caller(request.channel, principal)
    options: dict[str, Any] = {
        "headers": headers,
        "deadline": deadline,
        "is_idempotent": request.is_idempotent,
        "wait": False,
    }
    if not request.is_stream:
        await send(_response(await caller.call(request.payload, **options)))
        return
    replies = caller.call_stream(request.payload, **options)
    try:
        async for reply in replies:
            await send(_response(reply))
    finally:
        await replies.aclose()


def _response(message: Any) -> services_pb2.CallResponse:
    response = services_pb2.CallResponse(payload=message.payload)
    if message.headers_raw:
        response.headers.MergeFromString(message.headers_raw)
    return response


class _Carried:
    """One request that is with the peer."""

    def __init__(self, request: AsyncRequest) -> None:
        self.request = request
        self.replies: deque[services_pb2.Reply] = deque()
        self.room = WINDOW_BYTES
        self.news = asyncio.Event()


class PeerServer:
    """A server on behalf of a peer.

    Args:
        client: the gateway's.
        principal: the peer's.
        serving: what the peer asked for.
        send: sends an event to the peer; waits while it does not read.
    """

    def __init__(
        self, client: ServiceClient, principal: str, serving: services_pb2.Serving, send: SendEvent
    ) -> None:
        self._client = client
        self._principal = principal
        self._serving = serving
        self._send_event = send
        self._sending = asyncio.Lock()
        self._carried: dict[int, _Carried] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = asyncio.Event()
        self._failure: BaseException | None = None
        self._next = 1

    async def run(self) -> None:
        """Serve until the service ends, or this is cancelled.

        Raises:
            TowpathError: why it ended, or could not begin.
        """
        channel, concurrency = self._serving.channel, self._serving.concurrency or 1
        serving = await self._client.serve(channel, concurrency=concurrency, principal=self._principal)
        async with serving as server:
            served = services_pb2.Served(channel=channel)
            await self._send(services_pb2.ServeResponse(served=served))
            try:
                await self._receive(server)
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _receive(self, server: AsyncServer) -> None:
        """Send each request to the peer, until the service ends or one of them fails."""
        while self._failure is None:
            receiving = asyncio.ensure_future(server.receive())
            failing = asyncio.ensure_future(self._failed.wait())
            try:
                await asyncio.wait((receiving, failing), return_when=asyncio.FIRST_COMPLETED)
                if receiving.done():
                    self._begin(receiving.result())
            finally:
                receiving.cancel()
                failing.cancel()
        raise self._failure

    def _begin(self, request: AsyncRequest) -> None:
        number, self._next = self._next, self._next + 1
        carried = self._carried[number] = _Carried(request)
        task = asyncio.create_task(self._carry(number, carried))
        self._tasks.add(task)
        task.add_done_callback(self._carried_out)

    def _carried_out(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and self._failure is None:
            self._failure = error
            self._failed.set()

    async def _send(self, event: services_pb2.ServeResponse) -> None:
        async with self._sending:  # one after the other: a carrier takes no two at a time
            await self._send_event(event)

    def take(self, event: services_pb2.ServeRequest) -> None:
        """Take what the peer sent after its first request.

        Raises:
            ProtocolViolation: it may not be sent; the stream must end.
        """
        if not event.HasField("reply"):
            raise ProtocolViolation("a server's stream begins once; what follows are replies")
        reply = event.reply
        carried = self._carried.get(reply.request)
        if carried is None:
            return  # of a request that is over: the caller waited no more
        if not reply.is_last and not reply.HasField("error"):
            if carried.room <= 0:
                raise ProtocolViolation(f"more was sent for request {reply.request} than was granted")
            carried.room -= part_bytes(len(reply.payload), reply.headers.ByteSize())
        carried.replies.append(reply)
        carried.news.set()

    async def _carry(self, number: int, carried: _Carried) -> None:
        request = carried.request
        forget = request._when_cancelled(carried.news.set)
        try:
            await self._send(_request(number, request))
            while not request.is_answered:
                await carried.news.wait()
                carried.news.clear()
                while carried.replies and not request.is_answered:
                    await self._pass_on(number, carried, carried.replies.popleft())
            if request.is_cancelled:  # which it may have been already while it was sent
                cancelled = services_pb2.RequestCancelled(request=number)
                await self._send(services_pb2.ServeResponse(cancelled=cancelled))
        finally:
            forget()
            del self._carried[number]
        await request._finish()

    async def _pass_on(self, number: int, carried: _Carried, reply: services_pb2.Reply) -> None:
        request = carried.request
        try:
            headers = convert.headers_from_proto(reply.headers) if reply.HasField("headers") else None
            if reply.HasField("error"):
                await request.fail(convert.error_from_proto(reply.error))
            elif reply.is_end:
                await request.end()
            elif reply.is_last:
                await request.reply(reply.payload, headers=headers)
            elif await request.send(reply.payload, headers=headers):
                size = part_bytes(len(reply.payload), reply.headers.ByteSize())
                carried.room += size
                granted = services_pb2.RequestGranted(request=number, bytes=size)
                await self._send(services_pb2.ServeResponse(granted=granted))
        except ConnectionLost:
            raise
        except TowpathError as error:  # the reply cannot be had as it is: the caller learns why
            if not request.is_answered:
                await request.fail(error)


def _request(number: int, request: AsyncRequest) -> services_pb2.ServeResponse:
    left = request.time_left
    told = services_pb2.Request(
        request=number,
        payload=request.payload,
        timeout_ms=0 if left is None else min(max(1, int(left * 1e3)), (1 << 32) - 1),
        principal=request.principal,
        is_stream=request.is_stream,
        is_idempotent=request.is_idempotent,
        window=WINDOW_BYTES if request.is_stream else 0,
    )
    if request.message.headers_raw:
        told.headers.MergeFromString(request.message.headers_raw)
    return services_pb2.ServeResponse(request=told)
