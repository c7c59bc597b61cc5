"""A channel by name, and the sources behind such handles; see ``api``."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING

from towpath import calls, loans, model
from towpath.aio.consuming import AsyncConsumer
from towpath.handles import AsyncHandle
from towpath.loans import HELD_MAX, Loan
from towpath.queues import PREFETCH_DEFAULT
from towpath.result import attempt_async
from towpath.waiting import Buffer, deadline_ns

if TYPE_CHECKING:
    from towpath.aio.api import AsyncClient, AsyncPublisher, AsyncSubscription
    from towpath.locks.model import Fence


class AsyncChannel(AsyncHandle):
    """A channel by name; see :class:`towpath.Channel`."""

    def __init__(self, client: AsyncClient, name: str) -> None:
        self._client = client
        self._publisher: AsyncPublisher | None = None
        self.name = name

    async def publisher(self) -> AsyncPublisher:
        """The source behind ``publish``; see :meth:`towpath.Channel.publisher`."""
        publisher = self._publisher
        if publisher is None or publisher.is_ended:
            publisher = self._publisher = await self._client._named_publishers.get(self)
        return publisher

    async def publish(
        self,
        data: Buffer | Loan[Awaitable[int]],
        *,
        headers: model.Headers | None = None,
        timeout: float | None = None,
        confirm: bool = False,
        key: bytes = b"",
        priority: int = 0,
        message_id: str = "",
        deliver_at: float | None = None,
        fence: Fence | None = None,
    ) -> int:
        """Publish one message; see :meth:`towpath.Channel.publish`."""
        headers = model.with_fields(
            headers, key=key, priority=priority, message_id=message_id, deliver_at=deliver_at
        )
        if fence is not None:
            call = calls.publish_fenced(self.name, data, headers, fence)
            return await self._client._call(call, deadline_ns(timeout))
        publisher = await self.publisher()
        if not isinstance(data, bytes) and loans.is_loan(data):
            return await publisher.publish_loan(data, headers=headers, timeout=timeout, confirm=confirm)
        return await publisher.publish(
            data,  # type: ignore[arg-type]
            headers=headers,
            timeout=timeout,
            confirm=confirm,
        )

    async def loan(self, nbytes: int, *, timeout: float | None = None) -> Loan[Awaitable[int]]:
        """Give a buffer to fill in place and publish without a copy; see :meth:`towpath.Publisher.loan`."""
        return await (await self.publisher()).loan(nbytes, timeout=timeout)

    async def publish_many(
        self,
        payloads: Sequence[Buffer],
        *,
        headers: model.Headers | Sequence[model.Headers | None] | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        """Publish a batch; see :meth:`towpath.Publisher.publish_many`."""
        publisher = await self.publisher()
        return await publisher.publish_many(payloads, headers=headers, timeout=timeout, confirm=confirm)

    async def subscribe(
        self,
        *,
        start: model.Start | None = None,
        place: str = "",
        take_over: bool = False,
        held_max: int = HELD_MAX,
    ) -> AsyncSubscription:
        """Subscribe; see :meth:`towpath.Client.subscribe`."""
        return await self._client.subscribe(
            self.name, start=start, place=place, take_over=take_over, held_max=held_max
        )

    async def consume(self, *, prefetch: int = PREFETCH_DEFAULT) -> AsyncConsumer:
        """Consume, where it is a queue; see :meth:`towpath.Client.consume`."""
        return await self._client.consume(self.name, prefetch=prefetch)

    async def close(self) -> None:
        """Give the source up; see :meth:`towpath.Channel.close`."""
        self._publisher = None
        await self._client._named_publishers.release(self)

    try_publish = attempt_async(publish)
    try_publish_many = attempt_async(publish_many)
    try_loan = attempt_async(loan)
    try_subscribe = attempt_async(subscribe)
    try_consume = attempt_async(consume)


class NamedPublishers:
    """The sources behind a client's channel handles, by name; as in ``towpath.sync.channel``."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._lock = asyncio.Lock()
        self._publishers: dict[str, AsyncPublisher] = {}
        self._users: dict[str, weakref.WeakSet[AsyncChannel]] = {}

    async def get(self, channel: AsyncChannel) -> AsyncPublisher:
        """The name's publisher, made unless there is one that has not ended."""
        async with self._lock:
            publisher = self._publishers.get(channel.name)
            if publisher is None or publisher.is_ended:
                if publisher is not None:
                    del self._publishers[channel.name]
                    await publisher.close()
                publisher = self._publishers[channel.name] = await self._client.publisher(channel.name)
            self._users.setdefault(channel.name, weakref.WeakSet()).add(channel)
            return publisher

    async def release(self, channel: AsyncChannel) -> None:
        """This handle publishes no more; who was the last closes the source."""
        async with self._lock:
            users = self._users.get(channel.name)
            if users is None:
                return
            users.discard(channel)
            if users:
                return
            del self._users[channel.name]
            publisher = self._publishers.pop(channel.name, None)
        if publisher is not None:
            await publisher.close()
