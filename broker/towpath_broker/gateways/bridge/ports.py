"""What the parts of the bridge ask of each other, so that adapters run and are tested without a daemon.

``Client`` is the part of ``towpath.aio.AsyncClient`` that the bridge uses. ``Carrier`` is a channel as an
adapter sees it: payloads in, messages out, with headers where the mechanism has a place for any. ``Adapter``
is a mechanism as its runner sees it.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Protocol

from towpath.ends import KeptReader
from towpath.errors import TowpathError
from towpath.model import BindingReport, ChannelInfo, Headers, WatchEvent
from towpath_broker.gateways.bridge.stop import Stop


class Publisher(Protocol):
    """One source on one channel."""

    @property
    def message_bytes_max(self) -> int:
        """The largest payload, in bytes."""

    async def publish_many(
        self, payloads: Sequence[bytes], /, *, headers: Sequence[Headers | None] | None = None
    ) -> object:
        """Publish in order; waits while a subscriber's ring is full."""

    async def close(self) -> None:
        """Give the source up."""


class ReceivedMessage(Protocol):
    """What a subscription hands out."""

    @property
    def payload(self) -> bytes:
        """The bytes that were published."""

    @property
    def headers(self) -> Headers:
        """What travels beside them; decoded each time."""

    @property
    def headers_raw(self) -> bytes | None:
        """Empty or None where there are none."""


class Subscription(Protocol):
    """One reader on one channel."""

    @property
    def lost(self) -> int:
        """How many messages it missed so far."""

    async def receive_many(
        self, count_max: int, *, bytes_max: int, timeout: float | None = None
    ) -> Sequence[ReceivedMessage]:
        """Wait for at least one message and take what is there, within the bounds."""

    async def hand_on(self, taker: object, thread: Executor) -> None:
        """Have what comes handed to C code in a thread, until there is something to receive or to be told."""

    def keep(self) -> KeptReader:
        """What a bridge that comes next needs to go on; the descriptor is the caller's to close."""

    async def leave(self) -> None:
        """Stop receiving; what was kept goes on saying how far it had come."""

    async def close(self) -> None:
        """Stop receiving."""


class ReceivedDelivery(ReceivedMessage, Protocol):
    """What a queue's consumer hands out."""

    def ack(self) -> None:
        """It is done."""


class Consumer(Protocol):
    """One consumer of a queue."""

    @property
    def ack_ms(self) -> int:
        """How long a delivery may stay unsettled."""

    async def receive_many(
        self, count_max: int, *, bytes_max: int, timeout: float | None = None
    ) -> Sequence[ReceivedDelivery]:
        """Wait for at least one delivery and take what is there, within the bounds."""

    def ack(self, deliveries: Iterable[Any], /) -> None:
        """They are done."""

    def nack(self, deliveries: Iterable[Any], /, *, reject: bool = False, reason: str = "") -> None:
        """They are not done."""

    def extend(self, deliveries: Iterable[Any], /) -> None:
        """They take longer."""

    async def close(self) -> None:
        """Leave; what was not settled goes back into the queue."""


class Client(Protocol):
    """The daemon's client library, as far as the bridge needs it."""

    def watch(self) -> AsyncIterable[WatchEvent]:
        """The registry as it stands, then its changes; told again after a ``reset``."""

    async def publisher(self, channel: str, /, *, origin: str = "") -> Publisher:
        """Open a source."""

    async def subscribe(
        self, channel: str, /, *, exclude_origin: str = "", held_max: int = ...
    ) -> Subscription:
        """Open a reader."""

    async def take_up(self, channel: str, kept: KeptReader, /, *, exclude_origin: str) -> Subscription:
        """Go on with a reader whose process is gone."""

    async def channel_info(self, name: str, /) -> ChannelInfo:
        """What is known of a channel."""

    async def consume(self, name: str, /) -> Consumer:
        """Become a consumer of a queue."""

    async def report_bindings(self, reports: Mapping[int, BindingReport], /) -> None:
        """Tell the daemon how bindings fare."""


class Taker(Protocol):
    """C code that takes messages where they are received, and leaves what it cannot take."""

    def capsule(self) -> object:
        """What the ring's reader calls."""


class Carrier(Protocol):
    """A channel, as an adapter sees it."""

    @property
    def message_bytes_max(self) -> int:
        """The largest payload that ``publish_many`` takes, in bytes."""

    @property
    def published_count(self) -> int | None:
        """How many messages were published, also by calls that failed; None where that cannot be told."""

    @property
    def lost_count(self) -> int:
        """How many messages the channel dropped, by its overflow policy, before they could be received."""

    @property
    def is_settled(self) -> bool:
        """Whether the channel is a queue: each message received is to be settled, once, by :meth:`settle` or
        :meth:`reject`; what was not settled in the end goes back into the queue.
        """

    async def publish_many(
        self, payloads: Sequence[bytes], headers: Sequence[Headers | None] | None = None
    ) -> None:
        """Publish in order; waits while a subscriber's ring is full: that is the back-pressure.

        Args:
            payloads: one each.
            headers: as many, or None where no message has any.

        Raises:
            TowpathError: the channel is gone, or the daemon refuses.
        """

    def hand_on(self, taker: Taker) -> None:
        """From now on :meth:`receive_many` gives only what this does not take, where that can be."""

    async def receive_many(self, count_max: int, bytes_max: int) -> Sequence[ReceivedMessage]:
        """Wait for at least one message and take what is there.

        Args:
            count_max: at most so many.
            bytes_max: stop after the message with which the payloads reach this.

        Raises:
            TowpathError: the subscription ended.
        """

    def settle(self, messages: Sequence[ReceivedMessage]) -> None:
        """They were handed over. Nothing happens where :attr:`is_settled` is false."""

    def reject(self, messages: Sequence[ReceivedMessage], error: TowpathError) -> None:
        """They cannot be carried, now or ever: to the queue's dead-letter channel with them. Nothing happens
        where :attr:`is_settled` is false.
        """


class Adapter(Protocol):
    """One binding's mechanism."""

    async def run(self, stop: Stop) -> None:
        """Carry until ``stop`` is set, then hand on what was taken in, and return.

        Returns early when the mechanism ended and its policy says to leave it so; the state has been set
        then.
        Being cancelled ends it at once, with nothing left running or open.

        Raises:
            TowpathError: it cannot go on; a retryable one is tried again after a pause.
        """
