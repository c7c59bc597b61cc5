"""What the parts of the bridge ask of each other, so that adapters run and are tested without a daemon.

``Client`` is the part of ``towpath.aio.AsyncClient`` that the bridge uses. ``Carrier`` is a channel as an
adapter sees it: payloads in, payloads out. ``Adapter`` is a mechanism as its runner sees it.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Mapping, Sequence
from typing import Protocol

from towpath.model import BindingReport, WatchEvent
from towpath_broker.gateways.bridge.stop import Stop


class Publisher(Protocol):
    """One source on one channel."""

    @property
    def message_bytes_max(self) -> int:
        """The largest payload, in bytes."""

    async def publish_many(self, payloads: Sequence[bytes], /) -> object:
        """Publish in order; waits while a subscriber's ring is full."""

    async def close(self) -> None:
        """Give the source up."""


class ReceivedMessage(Protocol):
    """What a subscription hands out."""

    @property
    def payload(self) -> bytes:
        """The bytes that were published."""


class Subscription(Protocol):
    """One reader on one channel."""

    async def receive_many(
        self, count_max: int, *, bytes_max: int, timeout: float | None = None
    ) -> Sequence[ReceivedMessage]:
        """Wait for at least one message and take what is there, within the bounds."""

    async def close(self) -> None:
        """Stop receiving."""


class Client(Protocol):
    """The daemon's client library, as far as the bridge needs it."""

    def watch(self) -> AsyncIterable[WatchEvent]:
        """The registry as it stands, then its changes; told again after a ``reset``."""

    async def publisher(self, channel: str, /, *, origin: str = "") -> Publisher:
        """Open a source."""

    async def subscribe(self, channel: str, /, *, exclude_origin: str = "") -> Subscription:
        """Open a reader."""

    async def report_bindings(self, reports: Mapping[int, BindingReport], /) -> None:
        """Tell the daemon how bindings fare."""


class Carrier(Protocol):
    """A channel, as an adapter sees it."""

    @property
    def message_bytes_max(self) -> int:
        """The largest payload that ``publish_many`` takes, in bytes."""

    @property
    def published_count(self) -> int | None:
        """How many messages were published, also by calls that failed; None where that cannot be told."""

    async def publish_many(self, payloads: Sequence[bytes]) -> None:
        """Publish in order; waits while a subscriber's ring is full: that is the back-pressure.

        Raises:
            TowpathError: the channel is gone, or the daemon refuses.
        """

    async def receive_many(self, count_max: int, bytes_max: int) -> Sequence[bytes]:
        """Wait for at least one message and take what is there.

        Args:
            count_max: at most so many.
            bytes_max: stop after the message with which the payloads reach this.

        Raises:
            TowpathError: the subscription ended.
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
