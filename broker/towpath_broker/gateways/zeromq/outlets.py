"""The gateway as a publisher: a source per peer of ``rpc`` and channel, and one per channel for all who push.

Theory of operation
    A source is made when its channel is first published on, and kept until its peer leaves; those of
    ``push``, which does not know its peers, stay. When there are more than ``sources_max``, the one unused
    longest is closed. Batches of one source follow each other (a lock each), so the numbers of a batch are
    contiguous, and whoever waits for room holds up no other peer.

    A peer that comes when the channel has as many publishers as it may shares the source of those who push.

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


Peer = bytes
"""A peer of ``rpc``, by its identity; empty for all who push."""

_Key = tuple[Peer, str]


class _Outlet:
    """A peer's source on a channel, or the place for it. ``users`` are inside :meth:`Outlets.publish`."""

    __slots__ = ("is_left", "lock", "publisher", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.publisher: AsyncPublisher | None = None
        self.users = 0
        self.is_left = False


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
        self._outlets: OrderedDict[_Key, _Outlet] = OrderedDict()

    def __len__(self) -> int:
        return len(self._outlets)

    async def publish(
        self,
        channel: str,
        payloads: Sequence[bytes],
        headers_raw: Sequence[bytes] | None,
        *,
        peer: Peer = b"",
    ) -> tuple[int, int]:
        """Publish a batch; waits while a subscriber's ring is full, for as long as that takes.

        Args:
            channel: its name.
            payloads: one at least.
            headers_raw: serialized headers, one per payload (``b""`` for none), or None.
            peer: whose source it shall be.

        Returns:
            The source, and the seq of the first message.

        Raises:
            ChannelNotFound, MessageTooLarge, LimitExceeded, ...: nothing was published.
            ChannelUndeclared: the channel went away meanwhile; some of the batch may have been published.
            asyncio.CancelledError: some of the batch may have been published.
        """
        async with self._using((peer, channel)) as outlet:
            for is_last_try in (False, True):
                is_fresh = outlet.publisher is None
                try:
                    publisher = outlet.publisher or await self._open(channel, outlet)
                except LimitExceeded:
                    if not peer:
                        raise
                    break
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
        return await self.publish(channel, payloads, headers_raw)

    async def leave(self, peer: Peer) -> None:
        """A peer is gone, and its sources with it; what was published stays readable. O(sources)."""
        for key in [key for key in self._outlets if key[0] == peer]:
            outlet = self._outlets.pop(key)
            outlet.is_left = True
            if outlet.publisher is not None and not outlet.users:
                await outlet.publisher.close()

    async def close(self) -> None:
        """Close every source; what was published stays readable."""
        while self._outlets:
            _, outlet = self._outlets.popitem()
            if outlet.publisher is not None:
                await outlet.publisher.close()

    @contextlib.asynccontextmanager
    async def _using(self, key: _Key) -> AsyncIterator[_Outlet]:
        """Hold the outlet alone; forget it afterwards if it has no publisher, or its peer has left."""
        outlet = self._outlets.setdefault(key, _Outlet())
        self._outlets.move_to_end(key)
        outlet.users += 1
        try:
            async with outlet.lock:
                yield outlet
        finally:
            outlet.users -= 1
            if outlet.users == 0 and outlet.is_left and outlet.publisher is not None:
                await outlet.publisher.close()
            elif outlet.users == 0 and outlet.publisher is None and self._outlets.get(key) is outlet:
                del self._outlets[key]

    async def _open(self, channel: str, outlet: _Outlet) -> AsyncPublisher:
        """Make the channel's source. Only one that exists displaces another: names of no channel cost
        nobody a source."""
        async with self._opening:
            publisher = await self._client.publisher(channel)
        outlet.publisher = publisher
        if sum(each.publisher is not None for each in self._outlets.values()) > self._sources_max:
            idle = [key for key, each in self._outlets.items() if each.publisher and not each.users]
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
