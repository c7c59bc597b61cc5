"""The sources of unary publishes: one per channel, shared by all callers, closed when nobody has published
for long.

Theory of operation
    A unary publish comes alone; to make and detach a ring for each would cost far more than the publish. So
    the first one opens a source on its channel and later ones use it. Callers of one channel take turns (a
    lock per channel), so that each batch's numbers are contiguous; a channel whose subscriber makes its
    publishers wait holds up that channel's callers only. At most ``open_max`` sources are kept; the one used
    longest ago gives way. One timer runs while any is open, none otherwise.

    A source that fails is closed and forgotten, and the next publish opens a new one. If the reason is that
    the channel was undeclared since the last publish, it may well have been declared again: that publish
    itself is tried once more.

Invariants
    A source in use is never closed under its user.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from towpath.errors import ChannelUndeclared, LimitExceeded, MessageTooLarge, Timeout, TowpathError

if TYPE_CHECKING:
    from towpath.aio import AsyncClient, AsyncPublisher


async def publish_batch(
    publisher: AsyncPublisher,
    payloads: Sequence[bytes],
    headers_raw: Sequence[bytes] | None,
    timeout_s: float | None,
) -> int:
    """Publish a batch whole.

    Args:
        publisher: nobody else publishes on it meanwhile.
        payloads: at least one.
        headers_raw: None, or serialized headers, one per payload.
        timeout_s: seconds to wait for room in the rings; None waits for ever.

    Returns:
        The first payload's seq.

    Raises:
        MessageTooLarge: one of them is larger than the channel carries; none was published.
        Timeout: there was no room for all of them in time; the message says how many were published.
    """
    for index, payload in enumerate(payloads):
        size_bytes = len(payload) + (len(headers_raw[index]) if headers_raw else 0)
        if size_bytes > publisher.message_bytes_max:
            raise MessageTooLarge(
                f"message {index} of {len(payloads)} takes {size_bytes} bytes; this channel carries "
                f"{publisher.message_bytes_max}; none of the batch was published"
            )
    last_seq = await publisher.publish_many(payloads, headers_raw=headers_raw, timeout=timeout_s)
    return last_seq - len(payloads) + 1


@dataclass(slots=True)
class _Shared:
    """One channel's source.

    Attributes:
        lock: held by the caller whose turn it is.
        publisher: None before the first turn, and after a failure.
        users: callers that publish or wait to.
        idle_since_s: when the last of them left, in the loop's time.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    publisher: AsyncPublisher | None = None
    users: int = 0
    idle_since_s: float = 0.0


class SharedPublishers:
    """The sources of unary publishes.

    Args:
        client: publishes.
        open_max: sources open at once.
        idle_s: seconds without use after which one is closed.
    """

    def __init__(self, client: AsyncClient, *, open_max: int, idle_s: float) -> None:
        self._client = client
        self._open_max = open_max
        self._idle_s = idle_s
        self._shared: OrderedDict[str, _Shared] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._shared)

    async def publish(
        self,
        channel: str,
        payloads: Sequence[bytes],
        headers_raw: Sequence[bytes] | None,
        timeout_s: float | None,
    ) -> tuple[int, int]:
        """Publish a batch on a channel.

        Args:
            channel: its name.
            payloads, headers_raw: as :func:`publish_batch` has them.
            timeout_s: seconds for all of it, the wait for other callers included; None for no end.

        Returns:
            The source, and the first payload's seq.

        Raises:
            Timeout, MessageTooLarge: as :func:`publish_batch`.
            LimitExceeded: every source that may be open is in use.
            TowpathError: what opening a publisher raises (ChannelNotFound, ...).
        """
        deadline_s = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        shared = self._take(channel)
        try:
            await _lock(shared.lock, channel, deadline_s)
            try:
                was_open = shared.publisher is not None
                try:
                    return await self._publish(shared, channel, payloads, headers_raw, deadline_s)
                except ChannelUndeclared:
                    if not was_open:
                        raise
                return await self._publish(shared, channel, payloads, headers_raw, deadline_s)
            finally:
                shared.lock.release()
        finally:
            self._give_back(channel, shared)

    async def _publish(
        self,
        shared: _Shared,
        channel: str,
        payloads: Sequence[bytes],
        headers_raw: Sequence[bytes] | None,
        deadline_s: float | None,
    ) -> tuple[int, int]:
        if shared.publisher is None:
            shared.publisher = await self._client.publisher(channel)
        publisher = shared.publisher
        try:
            first_seq = await publish_batch(publisher, payloads, headers_raw, _remaining_s(deadline_s))
        except (MessageTooLarge, Timeout):
            raise
        except TowpathError:
            shared.publisher = None
            await publisher.close()
            raise
        return publisher.source, first_seq

    def _take(self, channel: str) -> _Shared:
        shared = self._shared.get(channel)
        if shared is None:
            if len(self._shared) >= self._open_max:
                self._evict_oldest()
            shared = self._shared[channel] = _Shared()
        self._shared.move_to_end(channel)
        shared.users += 1
        return shared

    def _give_back(self, channel: str, shared: _Shared) -> None:
        loop = asyncio.get_running_loop()
        shared.users -= 1
        shared.idle_since_s = loop.time()
        if shared.users == 0 and shared.publisher is None:
            del self._shared[channel]
        if self._shared and self._timer is None:
            self._timer = loop.call_later(self._idle_s, self._close_idle)

    def _evict_oldest(self) -> None:
        for channel, shared in self._shared.items():
            if shared.users == 0:
                self._discard(channel)
                return
        raise LimitExceeded(
            f"unary publishes wait on {self._open_max} channels at once, as many as publishers_max allows",
            hint="raise publishers_max under [grpc], or use PublishStream",
        )

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        idle_before_s = loop.time() - self._idle_s
        for channel, shared in list(self._shared.items()):
            if shared.users == 0 and shared.idle_since_s <= idle_before_s:
                self._discard(channel)
        self._timer = loop.call_later(self._idle_s, self._close_idle) if self._shared else None

    def _discard(self, channel: str) -> None:
        publisher = self._shared.pop(channel).publisher
        if publisher is not None:
            task = asyncio.create_task(publisher.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every source; nobody may be publishing any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for channel in list(self._shared):
            self._discard(channel)
        await asyncio.gather(*self._closing)


def _remaining_s(deadline_s: float | None) -> float | None:
    return None if deadline_s is None else max(0.0, deadline_s - asyncio.get_running_loop().time())


async def _lock(lock: asyncio.Lock, channel: str, deadline_s: float | None) -> None:
    try:
        async with asyncio.timeout_at(deadline_s):
            await lock.acquire()
    except TimeoutError:
        raise Timeout(
            f"earlier publishes on {channel} still wait for room; nothing of this one was published"
        ) from None
