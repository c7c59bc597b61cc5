"""The service Channels: messages in and out.

Theory of operation
    Publish borrows the channel's shared source. PublishStream has sources of its own, one per channel that it
    names, and is strictly sequential: read a request, publish it, write its response. A peer that does not
    read the responses therefore stops being read itself, and HTTP/2 flow control stops it from sending.

    Subscribe is a loop of ``receive_many`` and ``write``. gRPC takes a write only when the peer's
    flow-control window has room, so a peer that does not read stops the loop, the loop stops reading the
    rings, and the channel's overflow policy decides what happens to the publishers. Where the peer asked for
    a window (credit), the loop also waits for credit; such a peer learns that the channel is gone only when
    it has given credit for all that came before.

    Deadlines: a publish waits at most until shortly before the call's deadline, so that the answer that says
    how much was published arrives before the deadline does.

Invariants
    A subscription and a stream's sources are closed when their call ends, whatever ends it.
    With a window, no more messages were ever sent than credit was given.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
from google.protobuf.message import Message

from towpath.convert import check_unfenced, checked_publish
from towpath.errors import InvalidArgument, LimitExceeded
from towpath.names import check_name
from towpath.v1 import channels_pb2, services_pb2
from towpath_broker.gateways import _forwarding, _services
from towpath_broker.gateways._common import GatewayContext
from towpath_broker.gateways.grpc.batches import pack
from towpath_broker.gateways.grpc.calls import Calls, method_name, next_request
from towpath_broker.gateways.grpc.publishers import SharedPublishers, publish_batch
from towpath_broker.gateways.grpc.registry import CALL_TIMEOUT_S, PRINCIPAL
from towpath_broker.gateways.grpc.settings import GrpcSettings
from towpath_broker.gateways.grpc.window import Window

if TYPE_CHECKING:
    from towpath.aio import AsyncPublisher

CHANNELS_PER_STREAM_MAX: Final = 64
"""Channels that one PublishStream may name; more end it with LIMIT_EXCEEDED."""
DEADLINE_MARGIN_S: Final = 0.25
"""A publish gives up this long before its deadline (or a tenth of what is left, if that is less)."""

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class ChannelsService:
    """Publishes and subscribes for remote peers, and passes on what other kinds of channels are asked
    (``_forwarding``).

    Args:
        gateway: settings, client and counters.
        calls: runs the work of each call.
    """

    def __init__(self, gateway: GatewayContext[GrpcSettings], calls: Calls) -> None:
        settings = gateway.settings
        self._gateway = gateway
        self._calls = calls
        self._shared = SharedPublishers(
            gateway.client, open_max=settings.publishers_max, idle_s=settings.publisher_idle_ms / 1_000
        )
        self._asker = gateway.acting_for(PRINCIPAL)
        self._queues = _forwarding.Queues(self._asker)
        for name in _forwarding.CALLS:
            setattr(self, method_name(name), functools.partial(self._pass_on, name))
        for name in _forwarding.STREAMS:
            setattr(self, method_name(name), functools.partial(self._pass_stream_on, name))

    async def close(self) -> None:
        """Close what is shared between calls; no call may be open any more."""
        await self._shared.close()

    async def Publish(
        self, request: channels_pb2.PublishRequest, context: Context
    ) -> channels_pb2.PublishResponse:
        """Publish a batch on the channel's shared source."""
        return await self._calls.run(context, self._publish(request, context))

    # The two below write through the context instead of yielding.
    async def PublishStream(
        self, request_iterator: AsyncIterator[channels_pb2.PublishStreamRequest], context: Context
    ) -> None:
        """Publish batch after batch on sources of this stream's own."""
        await self._calls.run(context, self._publish_stream(context))

    async def Subscribe(
        self, request_iterator: AsyncIterator[channels_pb2.SubscribeRequest], context: Context
    ) -> None:
        """Send what is published on a channel, or on all that a pattern stands for, until the peer ends the
        call or its window is used up.
        """
        window = Window()
        await self._calls.run(context, self._send(context, window), _read_requests(context, window))

    async def Call(self, request: services_pb2.CallRequest, context: Context) -> None:
        """Call a service, and send its replies."""
        await self._calls.run(
            context, _services.call(self._gateway.client, PRINCIPAL, request, context.write)
        )

    async def Serve(
        self, request_iterator: AsyncIterator[services_pb2.ServeRequest], context: Context
    ) -> None:
        """Serve for a peer, until it ends the call."""
        await self._calls.run(context, self._serve(context))

    async def _serve(self, context: Context) -> None:
        first = await next_request(context)
        if first is None or not first.HasField("serving"):
            raise InvalidArgument("the first request of Serve says `serving`")
        server = _services.PeerServer(self._gateway.client, PRINCIPAL, first.serving, context.write)
        serving = asyncio.create_task(server.run())
        reading = asyncio.create_task(_read_replies(context, server))
        try:
            await asyncio.wait((serving, reading), return_when=asyncio.FIRST_COMPLETED)
            await (reading if reading.done() else serving)
        finally:
            serving.cancel()
            reading.cancel()
            await asyncio.gather(serving, reading, return_exceptions=True)

    async def _pass_on(self, name: str, request: Message, context: Context) -> Message:
        """Answer a call with what the core says."""
        return await self._calls.run(context, self._asked(name, request, context))

    async def _asked(self, name: str, request: Message, context: Context) -> Message:
        call = _forwarding.call_of(name, request)
        timeout_s: float | None = context.time_remaining()
        response: Message = await self._asker.pass_on(call, timeout=timeout_s or CALL_TIMEOUT_S)
        return response

    async def _pass_stream_on(self, name: str, request: Message, context: Context) -> None:
        """Answer a call with whatever the core says, until the peer ends it."""
        await self._calls.run(context, self._streamed(name, request, context))

    async def _streamed(self, name: str, request: Message, context: Context) -> None:
        async with contextlib.aclosing(_forwarding.stream(self._asker, name, request)) as responses:
            async for response in responses:
                await context.write(response)
                if name == "consume":
                    self._gateway.count("messages_out", len(response.batch.payloads))

    async def _publish(
        self, request: channels_pb2.PublishRequest, context: Context
    ) -> channels_pb2.PublishResponse:
        payloads, headers_raw = checked_publish(request)
        if await self._queues.has(request.channel):
            self._gateway.count("messages_in", len(payloads))
            return await self._queues.publish(request, _publish_timeout_s(context))
        check_unfenced(request)
        source, first_seq = await self._shared.publish(
            check_name(request.channel), payloads, headers_raw, _publish_timeout_s(context)
        )
        self._gateway.count("messages_in", len(payloads))
        return channels_pb2.PublishResponse(source=source, first_seq=first_seq, count=len(payloads))

    async def _publish_stream(self, context: Context) -> None:
        publishers: dict[str, AsyncPublisher] = {}
        channel = ""
        try:
            while (request := await next_request(context)) is not None:
                channel = check_name(request.channel or channel)
                payloads, headers_raw = checked_publish(request)
                if await self._queues.has(channel):
                    await self._publish_on_queue(channel, request, context)
                    continue
                publisher = publishers.get(channel)
                if publisher is None:
                    if len(publishers) >= CHANNELS_PER_STREAM_MAX:
                        raise LimitExceeded(
                            f"the stream publishes on {CHANNELS_PER_STREAM_MAX} channels already"
                        )
                    publisher = publishers[channel] = await self._gateway.client.publisher(channel)
                first_seq = await publish_batch(publisher, payloads, headers_raw, _publish_timeout_s(context))
                self._gateway.count("messages_in", len(payloads))
                await context.write(
                    channels_pb2.PublishStreamResponse(
                        channel=channel, source=publisher.source, first_seq=first_seq, count=len(payloads)
                    )
                )
        finally:
            for publisher in publishers.values():
                await publisher.close()

    async def _publish_on_queue(
        self, channel: str, request: channels_pb2.PublishStreamRequest, context: Context
    ) -> None:
        whole = channels_pb2.PublishRequest(
            channel=channel, payloads=request.payloads, headers=request.headers
        )
        told = await self._queues.publish(whole, _publish_timeout_s(context))
        self._gateway.count("messages_in", len(request.payloads))
        await context.write(
            channels_pb2.PublishStreamResponse(
                channel=channel,
                source=told.source,
                first_seq=told.first_seq,
                count=told.count,
                duplicates=told.duplicates,
            )
        )

    async def _send(self, context: Context, window: Window) -> None:
        settings = self._gateway.settings
        channel = await window.opened()
        beginning = _forwarding.beginning(window.first)
        async with await self._gateway.client.subscribe(channel, held_max=0, **beginning) as subscription:
            _forwarding.leave_place(subscription)
            subscribed = _forwarding.subscribed_to(subscription)
            await context.write(channels_pb2.SubscribeResponse(subscribed=subscribed))
            while count_max := await window.room(settings.batch_messages_max):
                messages = await subscription.receive_many(count_max, bytes_max=settings.batch_bytes_max)
                count = len(messages)
                window.spend(count)
                responses, unreadable = pack(messages)
                # A peer that does not read keeps us in write(); then there shall be one copy of the batch,
                # not two.
                del messages
                if unreadable:
                    self._gateway.count("headers_unreadable", unreadable)
                for response in responses:
                    await context.write(response)
                self._gateway.count("messages_out", count)


async def _read_replies(context: Context, server: _services.PeerServer) -> None:
    while (event := await next_request(context)) is not None:
        server.take(event)


async def _read_requests(context: Context, window: Window) -> None:
    while (request := await next_request(context)) is not None:
        window.take(request)
    window.end()


def _publish_timeout_s(context: Context) -> float | None:
    remaining_s: float | None = context.time_remaining()
    if remaining_s is None:
        return None
    return max(0.0, remaining_s - min(DEADLINE_MARGIN_S, remaining_s / 10))
