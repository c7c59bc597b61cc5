"""Following what happens to locks, waiting on an event loop. The same as ``watching``, where each method is
documented."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING

from towpath.errors import ConnectionLost, Timeout
from towpath.handles import AsyncHandle
from towpath.locks import requests
from towpath.locks.watching import LockEvent, WatchedLocks
from towpath.result import attempt_async
from towpath.services.news import News
from towpath.waiting import deadline_ns, remaining_ns

if TYPE_CHECKING:
    from towpath.aio.kinds import AsyncKinds


class AsyncLockWatch(AsyncHandle):
    """What happens to locks, as an asynchronous iterator; see :class:`towpath.LockWatch`."""

    def __init__(self, client: AsyncKinds, prefix: str) -> None:
        self._news = News()
        self._client = client
        self._request = partial(requests.watch_locks, prefix)
        self._request()
        self._heard = WatchedLocks(self._news.tell)
        self._closed = False
        self._leave = client._follow(self._request, self._heard)

    async def receive(self, timeout: float | None = None) -> LockEvent:
        """Return the next event; see :meth:`towpath.LockWatch.receive`."""
        deadline = deadline_ns(timeout)
        while (event := self._heard.take()) is None:
            if self._heard.why_ended is not None:
                raise self._heard.why_ended.again()
            if left_out := self._heard.take_left_out():
                self._leave()
                self._leave = self._client._follow(self._request, self._heard)
                return LockEvent("reset", missed=left_out)
            if remaining_ns(deadline) == 0:
                raise Timeout(f"nothing happened to the locks in {timeout} s", hint="")
            await self._news.wait(deadline)
        return event

    async def __aiter__(self) -> AsyncIterator[LockEvent]:
        """Yield events until the watch is closed."""
        while not self._closed:
            try:
                event = await self.receive()
            except ConnectionLost:
                return
            yield event

    async def close(self) -> None:
        """Stop watching; an iteration ends. More than once is fine."""
        if not self._closed:
            self._closed = True
            self._leave()
            self._heard.ended(ConnectionLost("the watch was closed", hint=""))

    try_receive = attempt_async(receive)
