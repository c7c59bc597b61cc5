"""Watching the registry of this host's daemon, waiting on an event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from towpath import convert, model
from towpath.aio.api import AsyncWatch
from towpath.errors import Cancelled, ConnectionLost, TowpathError
from towpath.v1.frame_pb2 import Frame

if TYPE_CHECKING:
    from towpath.aio.client import LocalAsyncClient


class LocalAsyncWatch(AsyncWatch):
    """A watch that goes through the door."""

    def __init__(self, client: LocalAsyncClient, after_revision: int | None) -> None:
        self._client = client
        self._events: asyncio.Queue[model.WatchEvent | TowpathError] = asyncio.Queue()
        self._call_id = 0
        self._started = False
        self._after_revision = after_revision

    def _handle(self, answer: Frame | TowpathError) -> None:
        self._events.put_nowait(convert.watch_item(answer))

    async def _start(self) -> None:
        await self._client._wait_ready(None)
        after_revision, self._after_revision = self._after_revision, None
        self._call_id = self._client._protocol.watch(self._handle, after_revision)
        self._client._flush()
        self._started = True

    async def receive(self) -> model.WatchEvent:
        if not self._started:
            await self._start()
        item = await self._events.get()
        if isinstance(item, ConnectionLost) and not self._client._is_over:
            self._started = False
            return model.WatchEvent("reset", 0)
        if isinstance(item, TowpathError):
            raise item
        return item

    async def close(self) -> None:
        self._client._protocol.cancel(self._call_id)
        self._client._flush()
        self._events.put_nowait(Cancelled("the watch was closed"))
