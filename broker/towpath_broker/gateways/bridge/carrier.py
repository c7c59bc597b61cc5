"""A channel, as an adapter sees it, through the client library.

Theory of operation
    A topic is published and subscribed. A queue is consumed: what an adapter has received is its own until it
    says that it was handed over (``settle``) or cannot be carried (``reject``). While it holds any, their
    deadline is set anew each time half of it has passed, so that a full mechanism does not have them
    delivered twice; when it holds none, there is no timer.

Invariants
    Each message of a queue is settled at most once; what was not settled goes back at ``close``. A connection
    that broke has taken the deliveries back already: settling those is no error, they will come again.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final

from towpath.errors import ChannelUndeclared, ConnectionLost, DeliveryLost, TowpathError, Unavailable
from towpath.model import BindingInfo, Headers
from towpath_broker.gateways.bridge import subscribing
from towpath_broker.gateways.bridge.keeping import BindingKeeping
from towpath_broker.gateways.bridge.ports import (
    Client,
    Consumer,
    Publisher,
    ReceivedMessage,
    Subscription,
    Taker,
)
from towpath_broker.gateways.bridge.threads import Threads
from towpath_broker.log import log

AHEAD_COUNT_MAX: Final = 1024
AHEAD_BYTES_MAX: Final = 1 << 22
"""Taken from the client, at most, at each extension; its prefetch bounds what there can be in all."""
REASON_CHARS_MAX: Final = 256
"""Of an error's message, beside a dead letter."""


class ChannelCarrier:
    """A channel through the client library.

    Args:
        publisher: None for direction ``out``.
        subscription: of a topic; None for direction ``in``.
        consumer: of a queue, in place of a subscription.
        on_undeclared: called when the channel turns out to be gone, and its bindings with it.
        keeping: has the subscription.
        threads: the bridge's.
    """

    def __init__(
        self,
        publisher: Publisher | None,
        subscription: Subscription | None,
        consumer: Consumer | None,
        on_undeclared: Callable[[], None],
        keeping: BindingKeeping,
        threads: Threads,
    ) -> None:
        self._keeping = keeping
        self._threads = threads
        self._thread: Executor | None = None
        self._taker: object = None
        self._on_undeclared = on_undeclared
        self._publisher = publisher
        self._subscription = subscription
        self._consumer = consumer
        self._held: dict[int, ReceivedMessage] = {}  # by id(): a delivery is unsettled while it is here
        self._timer: asyncio.TimerHandle | None = None
        self._extending: asyncio.Future[None] | None = None
        self._ahead: deque[ReceivedMessage] = deque()
        self._is_receiving = False

    @classmethod
    async def open(
        cls,
        client: Client,
        info: BindingInfo,
        keeping: BindingKeeping,
        threads: Threads,
        on_undeclared: Callable[[], None],
    ) -> ChannelCarrier:
        """Open what the direction needs. The binding is the messages' origin, and does not get back what it
        brought to a topic.

        Raises:
            TowpathError: the channel is gone, or the daemon refuses.
        """
        origin = f"binding:{info.id}"
        publisher = None if info.direction == "out" else await client.publisher(info.channel, origin=origin)
        subscription: Subscription | None = None
        consumer: Consumer | None = None
        try:
            if info.direction != "in":
                if (await client.channel_info(info.channel)).kind == "queue":
                    consumer = await client.consume(info.channel)
                else:
                    subscription = await subscribing.subscribe(client, info.channel, origin, keeping)
        except BaseException:
            if publisher is not None:
                await publisher.close()
            raise
        return cls(publisher, subscription, consumer, on_undeclared, keeping, threads)

    @property
    def message_bytes_max(self) -> int:
        """As :attr:`Carrier.message_bytes_max`."""
        assert self._publisher is not None
        return self._publisher.message_bytes_max

    @property
    def published_count(self) -> int | None:
        """As :attr:`Carrier.published_count`."""
        # Only a publisher with a ring of its own, not wrapped for tracing, knows.
        count: int | None = getattr(self._publisher, "last_seq", None)
        return count

    @property
    def lost_count(self) -> int:
        """As :attr:`Carrier.lost_count`."""
        return 0 if self._subscription is None else self._subscription.lost

    @property
    def is_settled(self) -> bool:
        """As :attr:`Carrier.is_settled`."""
        return self._consumer is not None

    async def publish_many(
        self, payloads: Sequence[bytes], headers: Sequence[Headers | None] | None = None
    ) -> None:
        """As :meth:`Carrier.publish_many`."""
        assert self._publisher is not None
        try:
            if headers is None:
                await self._publisher.publish_many(payloads)
            else:
                await self._publisher.publish_many(payloads, headers=headers)
        except ChannelUndeclared:
            self._on_undeclared()
            raise

    def hand_on(self, taker: Taker) -> None:
        """As :meth:`Carrier.hand_on`."""
        if self._subscription is not None and self._thread is None:
            self._thread, self._taker = self._threads.get(), taker.capsule()

    async def receive_many(self, count_max: int, bytes_max: int) -> Sequence[ReceivedMessage]:
        """As :meth:`Carrier.receive_many`."""
        try:
            return await self._receive_many(count_max, bytes_max)
        except ChannelUndeclared:
            self._on_undeclared()
            raise

    async def _receive_many(self, count_max: int, bytes_max: int) -> Sequence[ReceivedMessage]:
        if self._consumer is None:
            return await self._receive_published(count_max, bytes_max)
        if self._ahead:
            count = min(count_max, len(self._ahead))
            return [self._ahead.popleft() for _ in range(count)]
        self._is_receiving = True
        try:
            deliveries = await self._consumer.receive_many(count_max, bytes_max=bytes_max)
        finally:
            self._is_receiving = False
        self._hold(deliveries)
        return deliveries

    async def _receive_published(self, count_max: int, bytes_max: int) -> Sequence[ReceivedMessage]:
        subscription = self._subscription
        assert subscription is not None
        while self._thread is not None:
            await subscription.hand_on(self._taker, self._thread)
            messages = await subscription.receive_many(count_max, bytes_max=bytes_max, timeout=0)
            if messages:
                return messages
        return await subscription.receive_many(count_max, bytes_max=bytes_max)

    def settle(self, messages: Sequence[ReceivedMessage]) -> None:
        """As :meth:`Carrier.settle`."""
        if self._consumer is not None and messages:
            self._give_up(messages)
            self._tell(self._consumer.ack, messages)

    def reject(self, messages: Sequence[ReceivedMessage], error: TowpathError) -> None:
        """As :meth:`Carrier.reject`."""
        if self._consumer is not None and messages:
            self._give_up(messages)
            reason = error.message[:REASON_CHARS_MAX]
            self._tell(functools.partial(self._consumer.nack, reject=True, reason=reason), messages)

    def _tell(
        self, tell: Callable[[Sequence[ReceivedMessage]], None], messages: Sequence[ReceivedMessage]
    ) -> None:
        """Say something of deliveries; those that a broken connection has taken back are left out."""
        try:
            tell(messages)
        except ConnectionLost as error:
            log("bridge.settled_too_late", level="warning", count=len(messages), message=error.message)
        except DeliveryLost as error:
            if len(messages) > 1:
                for message in messages:
                    self._tell(tell, [message])
                return
            self._held.pop(id(messages[0]), None)
            log("bridge.settled_too_late", level="warning", count=1, message=error.message)

    async def close(self) -> None:
        """Leave the channel. A connection that is gone has left it already."""
        if self._thread is not None:
            self._threads.give_back(self._thread)
            self._thread = None
        self._held.clear()
        self._set_timer()
        if self._extending is not None:
            self._extending.cancel()
        subscription = self._subscription
        closing = [end.close for end in (self._consumer, self._publisher) if end is not None]
        if subscription is not None:
            is_left = self._keeping.hands_over
            closing.insert(0, subscription.leave if is_left else subscription.close)
            if not is_left:
                subscribing.forget(self._keeping)
        for close in closing:
            try:
                await close()
            except (ConnectionLost, Unavailable):
                log("bridge.close_skipped", level="debug")

    def _give_up(self, messages: Sequence[ReceivedMessage]) -> None:
        for message in messages:
            self._held.pop(id(message), None)
        self._set_timer()

    def _hold(self, deliveries: Sequence[ReceivedMessage]) -> None:
        self._held.update((id(delivery), delivery) for delivery in deliveries)
        self._set_timer()

    def _set_timer(self) -> None:
        if not self._held and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif self._held and self._timer is None:
            assert self._consumer is not None
            half_s = self._consumer.ack_ms / 2000
            self._timer = asyncio.get_running_loop().call_later(half_s, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._extending = asyncio.ensure_future(self._extend())

    async def _extend(self) -> None:
        """Set the deadlines anew; also of what the client has received ahead, while nobody asks for it."""
        consumer = self._consumer
        assert consumer is not None
        try:
            if not self._is_receiving:
                ahead = await consumer.receive_many(AHEAD_COUNT_MAX, bytes_max=AHEAD_BYTES_MAX, timeout=0)
                self._ahead.extend(ahead)
                self._hold(ahead)
            self._tell(consumer.extend, list(self._held.values()))
        except TowpathError as error:
            # The connection has broken, say; whoever receives next is told, and what was held comes again.
            log("bridge.not_extended", level="warning", count=len(self._held), message=error.message)
            return
        self._set_timer()
