"""The shared sources of unary publishes: turns, bounds, idling, failures. On a client that is a few lists."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, cast

import pytest

from towpath.errors import ChannelUndeclared, LimitExceeded, MessageTooLarge, Timeout
from towpath_broker.gateways.grpc.publishers import SharedPublishers

if TYPE_CHECKING:
    from towpath.aio import AsyncClient

FOREVER_S = 3_600.0


class Source:
    """A publisher that keeps what it is given; ``room`` makes it wait, ``is_gone`` makes it fail."""

    def __init__(self, client: Sources, channel: str, source: int) -> None:
        self.client = client
        self.channel = channel
        self.source = source
        self.message_bytes_max = 10
        self.published: list[bytes] = []
        self.is_gone = False
        self.closed = asyncio.Event()

    async def publish_many(
        self, payloads: Sequence[bytes], *, headers_raw: Sequence[bytes] | None, timeout: float | None
    ) -> int:
        assert not self.closed.is_set()
        try:
            async with asyncio.timeout(timeout):
                await self.client.room.wait()
        except TimeoutError:
            raise Timeout("no room; 0 were published") from None
        if self.is_gone:
            raise ChannelUndeclared("the channel is gone")
        self.published.extend(payloads)
        return len(self.published)

    async def close(self) -> None:
        self.closed.set()


class Sources:
    """The one method of a client that is used here."""

    def __init__(self) -> None:
        self.made: list[Source] = []
        self.room = asyncio.Event()
        self.room.set()
        self._changed = asyncio.Condition()

    async def publisher(self, channel: str) -> Source:
        await asyncio.sleep(0)
        async with self._changed:
            self.made.append(Source(self, channel, 100 + len(self.made)))
            self._changed.notify_all()
        return self.made[-1]

    async def wait_made(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self.made) >= count)

    @property
    def open(self) -> list[str]:
        return [source.channel for source in self.made if not source.closed.is_set()]


Body = Callable[[Sources, SharedPublishers], Awaitable[None]]


def run(body: Body, *, open_max: int = 2, idle_s: float = FOREVER_S) -> None:
    async def scenario() -> None:
        sources = Sources()
        shared = SharedPublishers(cast("AsyncClient", sources), open_max=open_max, idle_s=idle_s)
        await body(sources, shared)
        await shared.close()
        assert sources.open == []

    asyncio.run(scenario())


def test_callers_at_once_share_one_source_and_get_contiguous_numbers() -> None:
    async def body(sources: Sources, shared: SharedPublishers) -> None:
        batches = [[b"%d" % index] * (index + 1) for index in range(20)]
        answers = await asyncio.gather(*(shared.publish("a", batch, None, None) for batch in batches))
        [source] = sources.made
        for (number, first_seq), batch in zip(answers, batches, strict=True):
            assert number == source.source
            assert source.published[first_seq - 1 : first_seq - 1 + len(batch)] == batch

    run(body)


def test_the_source_used_longest_ago_gives_way() -> None:
    async def body(sources: Sources, shared: SharedPublishers) -> None:
        for channel in ("a", "b", "a", "c"):
            await shared.publish(channel, [b""], None, None)
        await asyncio.sleep(0)
        assert sources.open == ["a", "c"]

    run(body)


def test_a_source_in_use_does_not_give_way_and_one_more_channel_is_refused() -> None:
    async def body(sources: Sources, shared: SharedPublishers) -> None:
        sources.room.clear()
        waiting = [asyncio.create_task(shared.publish(channel, [b""], None, None)) for channel in "ab"]
        await sources.wait_made(2)
        with pytest.raises(LimitExceeded, match="publishers_max"):
            await shared.publish("c", [b""], None, None)
        sources.room.set()
        await asyncio.gather(*waiting)
        assert sources.open == ["a", "b"]

    run(body)


def test_a_caller_whose_turn_does_not_come_in_time_published_nothing() -> None:
    async def body(sources: Sources, shared: SharedPublishers) -> None:
        sources.room.clear()
        first = asyncio.create_task(shared.publish("a", [b"first"], None, None))
        await sources.wait_made(1)
        with pytest.raises(Timeout, match="nothing of this one"):
            await shared.publish("a", [b"second"], None, 0.01)
        sources.room.set()
        await first
        assert sources.made[0].published == [b"first"]

    run(body)


def test_a_cancelled_caller_gives_its_turn_back() -> None:
    async def body(sources: Sources, shared: SharedPublishers) -> None:
        sources.room.clear()
        first = asyncio.create_task(shared.publish("a", [b"first"], None, None))
        await sources.wait_made(1)
        second = asyncio.create_task(shared.publish("a", [b"second"], None, None))
        first.cancel()
        await asyncio.wait([first])
        sources.room.set()
        await second
        assert sources.made[0].published == [b"second"]

    run(body)


def test_a_channel_declared_again_is_published_on_at_once() -> None:
    async def body(sources: Sources, shared: SharedPublishers) -> None:
        await shared.publish("a", [b"old"], None, None)
        sources.made[0].is_gone = True
        assert await shared.publish("a", [b"new"], None, None) == (101, 1)
        assert sources.made[0].closed.is_set()

    run(body)


def test_a_channel_that_goes_under_a_new_source_is_not_tried_again() -> None:
    async def body(sources: Sources, shared: SharedPublishers) -> None:
        sources.room.clear()
        waiting = asyncio.create_task(shared.publish("a", [b""], None, None))
        await sources.wait_made(1)
        sources.made[0].is_gone = True
        sources.room.set()
        with pytest.raises(ChannelUndeclared):
            await waiting
        assert len(sources.made) == 1
        assert len(shared) == 0

    run(body)


def test_a_batch_with_one_message_too_large_is_refused_whole() -> None:
    async def body(sources: Sources, shared: SharedPublishers) -> None:
        with pytest.raises(MessageTooLarge, match=r"message 1 of 2 takes 11 bytes; .* none"):
            await shared.publish("a", [b"x" * 10, b"x" * 8], [b"", b"hhh"], None)
        assert sources.made[0].published == []
        assert sources.open == ["a"]

    run(body)


def test_an_idle_source_is_closed_and_then_no_timer_is_left() -> None:
    async def body(sources: Sources, shared: SharedPublishers) -> None:
        await shared.publish("a", [b""], None, None)
        async with asyncio.timeout(5):
            await sources.made[0].closed.wait()
        assert len(shared) == 0
        assert await shared.publish("a", [b""], None, None) == (101, 1)

    run(body, idle_s=0.02)
