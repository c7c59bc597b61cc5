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

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc

from towpath.errors import LimitExceeded
from towpath.names import check_name
from towpath.v1 import channels_pb2, channels_pb2_grpc
from towpath_broker.gateways._common import GatewayContext
from towpath_broker.gateways.grpc.batches import pack, unpack
from towpath_broker.gateways.grpc.calls import Calls, next_request
from towpath_broker.gateways.grpc.publishers import SharedPublishers, publish_batch
from towpath_broker.gateways.grpc.settings import GrpcSettings
from towpath_broker.gateways.grpc.window import Window

if TYPE_CHECKING:
    from towpath.aio import AsyncPublisher

CHANNELS_PER_STREAM_MAX: Final = 64
"""Channels that one PublishStream may name; more end it with LIMIT_EXCEEDED."""
DEADLINE_MARGIN_S: Final = 0.25
"""A publish gives up this long before its deadline (or a tenth of what is left, if that is less)."""

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class ChannelsService(channels_pb2_grpc.ChannelsServicer):
    """Publishes and subscribes for remote peers.

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

    async def close(self) -> None:
        """Close what is shared between calls; no call may be open any more."""
        await self._shared.close()

    async def Publish(
        self, request: channels_pb2.PublishRequest, context: Context
    ) -> channels_pb2.PublishResponse:
        """Publish a batch on the channel's shared source."""
        return await self._calls.run(context, self._publish(request, context))

    # The two below write through the context instead of yielding: gRPC allows it, its stubs do not know.
    async def PublishStream(  # type: ignore[override]
        self, request_iterator: AsyncIterator[channels_pb2.PublishStreamRequest], context: Context
    ) -> None:
        """Publish batch after batch on sources of this stream's own."""
        await self._calls.run(context, self._publish_stream(context))

    async def Subscribe(  # type: ignore[override]
        self, request_iterator: AsyncIterator[channels_pb2.SubscribeRequest], context: Context
    ) -> None:
        """Send what is published on a channel, or on all that a pattern stands for, until the peer ends the
        call or its window is used up.
        """
        window = Window()
        await self._calls.run(context, self._send(context, window), _read_requests(context, window))

    async def _publish(
        self, request: channels_pb2.PublishRequest, context: Context
    ) -> channels_pb2.PublishResponse:
        payloads, headers_raw = unpack(request)
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
                payloads, headers_raw = unpack(request)
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

    async def _send(self, context: Context, window: Window) -> None:
        settings = self._gateway.settings
        channel = await window.opened()
        async with await self._gateway.client.subscribe(channel) as subscription:
            subscribed = channels_pb2.Subscribed(channel=channel)
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


async def _read_requests(context: Context, window: Window) -> None:
    while (request := await next_request(context)) is not None:
        window.take(request)
    window.end()


def _publish_timeout_s(context: Context) -> float | None:
    remaining_s: float | None = context.time_remaining()
    if remaining_s is None:
        return None
    return max(0.0, remaining_s - min(DEADLINE_MARGIN_S, remaining_s / 10))
