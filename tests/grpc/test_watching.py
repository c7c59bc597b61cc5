"""One watch for many peers: what each is told, and what ends it. On a watch that is a queue in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal, cast

import pytest

from towpath.errors import ConnectionLost, SlowConsumer
from towpath.model import ChannelInfo, WatchEvent
from towpath.v1.registry_pb2 import WatchResponse
from towpath_broker.gateways.grpc.watching import CHANGES_QUEUED_MAX, Follower, RegistryWatch

if TYPE_CHECKING:
    from towpath.aio import AsyncClient


class Watch:
    """What ``client.watch()`` gives: the test puts events in."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[WatchEvent] = asyncio.Queue()
        self.closed = asyncio.Event()

    async def receive(self) -> WatchEvent:
        return await self.events.get()

    async def close(self) -> None:
        self.closed.set()


class Watches:
    """The one method of a client that is used here."""

    def __init__(self) -> None:
        self.made: list[Watch] = []

    def watch(self) -> Watch:
        self.made.append(Watch())
        return self.made[-1]


def channel_event(
    name: str, revision: int, kind: Literal["channel_declared", "channel_undeclared"] = "channel_declared"
) -> WatchEvent:
    return WatchEvent(kind, revision, ChannelInfo(name, "topic", False, "block", 4096, "uid:0", 0, 0, 0, 1))


async def told(follower: Follower, count: int) -> list[str]:
    return [_word(await follower.receive()) for _ in range(count)]


def _word(item: WatchResponse) -> str:
    match item.WhichOneof("event"):
        case "channel_declared":
            return f"+{item.channel_declared.name}@{item.revision}"
        case "channel_undeclared":
            return f"-{item.channel_undeclared.name}@{item.revision}"
        case other:
            return f"{other}@{item.revision}"


def run(body: Callable[[Watches, RegistryWatch], Awaitable[None]]) -> None:
    async def scenario() -> None:
        watches = Watches()
        await body(watches, RegistryWatch(cast("AsyncClient", watches)))
        for watch in watches.made:
            await watch.closed.wait()

    asyncio.run(scenario())


async def first_watch(watches: Watches) -> Watch:
    while not watches.made:  # noqa: ASYNC110 - the task that makes it runs in the next turns of the loop
        await asyncio.sleep(0)
    return watches.made[-1]


def test_an_early_and_a_late_follower_are_told_the_same_and_there_is_one_watch() -> None:
    async def body(watches: Watches, registry: RegistryWatch) -> None:
        with registry.follow() as early:
            watch = await first_watch(watches)
            for event in (channel_event("a", 1), channel_event("b", 2), WatchEvent("current", 2)):
                watch.events.put_nowait(event)
            assert await told(early, 3) == ["+a@1", "+b@2", "current@2"]
            watch.events.put_nowait(channel_event("c", 3))
            watch.events.put_nowait(channel_event("a", 4, "channel_undeclared"))
            assert await told(early, 2) == ["+c@3", "-a@4"]
            with registry.follow() as late:
                assert await told(late, 3) == ["+b@2", "+c@3", "current@4"]
                watch.events.put_nowait(channel_event("d", 5))
                assert await told(late, 1) == await told(early, 1) == ["+d@5"]
        assert len(watches.made) == 1

    run(body)


def test_the_last_follower_ends_the_watch_and_the_next_begins_anew() -> None:
    async def body(watches: Watches, registry: RegistryWatch) -> None:
        with registry.follow() as follower:
            watch = await first_watch(watches)
            watch.events.put_nowait(channel_event("a", 1))
            watch.events.put_nowait(WatchEvent("current", 1))
            await told(follower, 2)
        await watch.closed.wait()
        with registry.follow() as follower:
            while len(watches.made) < 2:  # noqa: ASYNC110 - as in first_watch
                await asyncio.sleep(0)
            watches.made[1].events.put_nowait(WatchEvent("current", 7))
            assert await told(follower, 1) == ["current@7"]

    run(body)


def test_a_follower_that_does_not_read_ends_and_the_others_go_on() -> None:
    async def body(watches: Watches, registry: RegistryWatch) -> None:
        with registry.follow() as slow, registry.follow() as quick:
            watch = await first_watch(watches)
            watch.events.put_nowait(WatchEvent("current", 0))
            await told(quick, 1)
            for revision in range(1, CHANGES_QUEUED_MAX + 3):
                watch.events.put_nowait(channel_event("a", revision))
                assert await told(quick, 1) == [f"+a@{revision}"]
            with pytest.raises(SlowConsumer):
                await slow.receive()

    run(body)


def test_a_lost_connection_ends_every_follower() -> None:
    async def body(watches: Watches, registry: RegistryWatch) -> None:
        with registry.follow() as one, registry.follow() as two:
            (await first_watch(watches)).events.put_nowait(WatchEvent("reset", 0))
            for follower in (one, two):
                with pytest.raises(ConnectionLost):
                    await follower.receive()

    run(body)
