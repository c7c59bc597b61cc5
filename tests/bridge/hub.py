"""A daemon in memory, as far as the bridge sees one: a registry that is watched, topics that are published
and read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from towpath.ends import KeptReader
from towpath.errors import ChannelNotFound, TowpathError
from towpath.model import NO_HEADERS, BindingInfo, BindingReport, ChannelInfo, Direction, Headers, WatchEvent
from towpath_broker.gateways.bridge.ports import Consumer


@dataclass(frozen=True)
class HubMessage:
    payload: bytes
    headers: Headers = NO_HEADERS
    headers_raw: bytes | None = None


class HubPublisher:
    """One source."""

    message_bytes_max = 1 << 20

    def __init__(self, hub: Hub, channel: str, origin: str) -> None:
        self._hub = hub
        self._channel = channel
        self.origin = origin
        hub.open_ends += 1

    async def publish_many(
        self, payloads: Sequence[bytes], /, *, headers: Sequence[Headers | None] | None = None
    ) -> None:
        self._hub.publish(self._channel, payloads, self.origin)

    async def close(self) -> None:
        self._hub.open_ends -= 1
        self._hub.changed.set()


class HubSubscription:
    """One reader."""

    lost = 0

    def __init__(self, hub: Hub, channel: str, exclude_origin: str) -> None:
        self._hub = hub
        self.channel = channel
        self.exclude_origin = exclude_origin
        self.waiting: deque[bytes] = deque()
        self.arrived = asyncio.Event()
        self.error: TowpathError | None = None
        hub.open_ends += 1

    async def receive_many(
        self, count_max: int, *, bytes_max: int, timeout: float | None = None
    ) -> list[HubMessage]:
        while not self.waiting:
            if self.error is not None:
                raise self.error
            self.arrived.clear()
            await self.arrived.wait()
        return [HubMessage(self.waiting.popleft()) for _ in range(min(count_max, len(self.waiting)))]

    async def hand_on(self, taker: object, thread: Executor) -> None:
        raise AssertionError("there is no ring here")

    def keep(self) -> KeptReader:
        raise AssertionError("nobody keeps anything here")

    async def leave(self) -> None:
        await self.close()

    async def close(self) -> None:
        self._hub.open_ends -= 1
        self._hub.changed.set()
        self._hub.subscriptions.remove(self)


class Hub:
    """The daemon.

    Attributes:
        reports: the newest of each binding.
        published: what came from bindings, by channel.
        open_ends: publishers and subscriptions that are not closed.
        host_error: raised instead of opening any, as at a limit of the host.
    """

    def __init__(self) -> None:
        self.bindings: dict[int, BindingInfo] = {}
        self.channels = {"test"}
        self.reports: dict[int, BindingReport] = {}
        self.published: dict[str, list[bytes]] = {"test": []}
        self.subscriptions: list[HubSubscription] = []
        self.open_ends = 0
        self.host_error: OSError | None = None
        self.changed = asyncio.Event()
        self._events: asyncio.Queue[WatchEvent] = asyncio.Queue()
        self._events.put_nowait(WatchEvent("current", 0))

    # -- for tests --

    def bind(
        self, binding: int, url: str, direction: Direction, options: Mapping[str, str] | None = None
    ) -> None:
        info = BindingInfo(binding, "test", url, direction, options or {}, "uid:0", BindingReport())
        self.bindings[binding] = info
        self._events.put_nowait(WatchEvent("binding_created", 0, binding=info))

    def unbind(self, binding: int) -> None:
        info = self.bindings.pop(binding)
        self._events.put_nowait(WatchEvent("binding_deleted", 0, binding=info))

    def reconnect(self, without: int | None = None) -> None:
        """The connection broke and came again; a binding may have been deleted meanwhile."""
        if without is not None:
            del self.bindings[without]
        self.reports.clear()
        self._events.put_nowait(WatchEvent("reset", 0))
        for info in self.bindings.values():
            self._events.put_nowait(WatchEvent("binding_created", 0, binding=info))
        self._events.put_nowait(WatchEvent("current", 0))

    def publish(self, channel: str, payloads: Sequence[bytes], origin: str = "") -> None:
        if origin:
            self.published[channel].extend(payloads)
        for subscription in self.subscriptions:
            if subscription.channel == channel and (not origin or subscription.exclude_origin != origin):
                subscription.waiting.extend(payloads)
                subscription.arrived.set()
        self.changed.set()

    # -- for the bridge --

    async def watch(self) -> AsyncIterator[WatchEvent]:
        while True:
            yield await self._events.get()

    async def publisher(self, channel: str, /, *, origin: str = "") -> HubPublisher:
        self._check(channel)
        return HubPublisher(self, channel, origin)

    async def subscribe(
        self, channel: str, /, *, exclude_origin: str = "", held_max: int = 0
    ) -> HubSubscription:
        self._check(channel)
        subscription = HubSubscription(self, channel, exclude_origin)
        self.subscriptions.append(subscription)
        return subscription

    async def take_up(self, channel: str, kept: KeptReader, /, *, exclude_origin: str) -> HubSubscription:
        raise AssertionError("nobody has kept anything here")

    async def channel_info(self, name: str, /) -> ChannelInfo:
        self._check(name)
        return ChannelInfo(name, "topic", False, "block", 1 << 22, "uid:0", 0, 0, 0, 0)

    async def consume(self, name: str, /) -> Consumer:
        raise AssertionError("no channel here is a queue")

    async def report_bindings(self, reports: Mapping[int, BindingReport], /) -> None:
        self.reports.update(reports)
        self.changed.set()

    def _check(self, channel: str) -> None:
        if self.host_error is not None:
            raise self.host_error
        if channel not in self.channels:
            raise ChannelNotFound(f"no channel {channel}")
