"""The gateway as a publisher: one source for each channel that peers publish on, shared by ``push`` and
``rpc``.

Theory of operation
    A source is made when its channel is first published on, and kept. When there are more than
    ``sources_max``, the one unused longest is closed. Batches for one channel follow each other (a lock
    each), so the numbers of a batch are contiguous.

    A publisher whose channel was undeclared is of no further use; if the channel exists again by the next
    batch, a new one takes its place and the batch goes there.

Invariants
    A source is closed only while nobody publishes through it. At most ``sources_max`` are open, but for
    those being opened.

Not here: queues, waiting times, refusals; those are the endpoints' own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final

from towpath.errors import ChannelUndeclared, LimitExceeded, MessageTooLarge

if TYPE_CHECKING:
    from towpath.aio import AsyncClient, AsyncPublisher

_OPENING_AT_ONCE: Final = 32


class _Outlet:
    """A channel's source, or the place for it. ``users`` are inside :meth:`Outlets.publish`."""

    __slots__ = ("lock", "publisher", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.publisher: AsyncPublisher | None = None
        self.users = 0


class Outlets:
    """The sources of the gateway.

    Args:
        client: whose sources they are.
        sources_max: how many there may be.
    """

    def __init__(self, client: AsyncClient, sources_max: int) -> None:
        self._client = client
        self._sources_max = sources_max
        self._opening = asyncio.Semaphore(_OPENING_AT_ONCE)
        self._outlets: OrderedDict[str, _Outlet] = OrderedDict()

    def __len__(self) -> int:
        return len(self._outlets)

    async def publish(
        self, channel: str, payloads: Sequence[bytes], headers_raw: Sequence[bytes] | None
    ) -> tuple[int, int]:
        """Publish a batch; waits while a subscriber's ring is full, for as long as that takes.

        Args:
            channel: its name.
            payloads: one at least.
            headers_raw: serialized headers, one per payload (``b""`` for none), or None.

        Returns:
            The source, and the seq of the first message.

        Raises:
            ChannelNotFound, MessageTooLarge, LimitExceeded, ...: nothing was published.
            ChannelUndeclared: the channel went away meanwhile; some of the batch may have been published.
            asyncio.CancelledError: some of the batch may have been published.
        """
        async with self._using(channel) as outlet:
            for is_last_try in (False, True):
                is_fresh = outlet.publisher is None
                publisher = outlet.publisher or await self._open(channel, outlet)
                _check_sizes(channel, payloads, headers_raw, publisher.message_bytes_max)
                try:
                    last_seq = await publisher.publish_many(payloads, headers_raw=headers_raw)
                except ChannelUndeclared:
                    outlet.publisher = None
                    await publisher.close()
                    if is_fresh or is_last_try:
                        raise
                else:
                    return publisher.source, last_seq - len(payloads) + 1
        raise AssertionError("the second try returns or raises")

    async def close(self) -> None:
        """Close every source; what was published stays readable."""
        while self._outlets:
            _, outlet = self._outlets.popitem()
            if outlet.publisher is not None:
                await outlet.publisher.close()

    @contextlib.asynccontextmanager
    async def _using(self, channel: str) -> AsyncIterator[_Outlet]:
        """Hold the channel's outlet alone; forget it afterwards if it has no publisher."""
        outlet = self._outlets.setdefault(channel, _Outlet())
        self._outlets.move_to_end(channel)
        outlet.users += 1
        try:
            async with outlet.lock:
                yield outlet
        finally:
            outlet.users -= 1
            if outlet.publisher is None and outlet.users == 0:
                self._outlets.pop(channel, None)

    async def _open(self, channel: str, outlet: _Outlet) -> AsyncPublisher:
        """Make the channel's source. Only one that exists displaces another: names of no channel cost
        nobody a source."""
        async with self._opening:
            publisher = await self._client.publisher(channel)
        outlet.publisher = publisher
        if sum(each.publisher is not None for each in self._outlets.values()) > self._sources_max:
            idle = [name for name, each in self._outlets.items() if each.publisher and not each.users]
            if not idle:
                outlet.publisher = None
                await publisher.close()
                raise LimitExceeded(
                    f"all {self._sources_max} sources (sources_max) of the gateway are in use"
                )
            # Taken out first: whoever wants that channel during the closing makes a new source.
            closing = self._outlets.pop(idle[0]).publisher
            assert closing is not None
            await closing.close()
        return publisher


def _check_sizes(
    channel: str, payloads: Sequence[bytes], headers_raw: Sequence[bytes] | None, bytes_max: int
) -> None:
    largest = max(map(len, payloads))
    if headers_raw is not None:
        largest = max(len(payload) + len(raw) for payload, raw in zip(payloads, headers_raw, strict=True))
    if largest > bytes_max:
        raise MessageTooLarge(f"a message of {largest} bytes; {channel} takes at most {bytes_max}")
