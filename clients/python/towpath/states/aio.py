"""A state's value, waiting on an event loop. The same as ``blocking``, where each method is documented."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from towpath import model
from towpath._value import Value
from towpath.errors import ConnectionLost, LimitExceeded, NotSupported, Timeout, VersionConflict
from towpath.handles import AsyncHandle
from towpath.locks.model import Fence
from towpath.names import check_name
from towpath.result import attempt_async
from towpath.services.news import News
from towpath.waiting import Buffer, deadline_ns, remaining_ns

from . import requests
from .page import Page
from .requests import WatchState

if TYPE_CHECKING:
    from towpath.aio.kinds import AsyncKinds


class AsyncState(AsyncHandle):
    """One state channel by name; see :class:`towpath.State`."""

    def __init__(self, client: AsyncKinds, name: str) -> None:
        self.name = check_name(name)
        self._client = client
        self._page: Page | None = None
        self._is_paged = True

    async def get(self) -> Value | None:
        """Return the value; None when there is none. See :meth:`towpath.State.get`."""
        page = self._page
        if page is not None and page.is_current and (value := page.get()) is not False:
            return value
        value = await self.look()
        return value if value.is_set else None

    async def look(self) -> Value:
        """The same, but a :class:`towpath.Value` also when there is none."""
        page = self._page
        if page is not None and page.is_usable and (value := page.look()) is not False:
            return value
        if self._is_paged:
            try:
                self._page = page = await self._client._value_page(self.name)
            except (NotSupported, LimitExceeded):
                self._is_paged, page = False, None
            if page is not None and (value := page.look()) is not False:
                return value
        return await self._client._call(requests.get(self.name))

    async def set(
        self,
        payload: Buffer,
        *,
        if_version: int | None = None,
        headers: model.Headers | None = None,
        fence: Fence | None = None,
    ) -> int:
        """Set the value; see :meth:`towpath.State.set`."""
        return await self._client._call(
            requests.put(self.name, payload, if_version=if_version, headers=headers, fence=fence)
        )

    async def delete(self, *, if_version: int | None = None, fence: Fence | None = None) -> int:
        """Delete the value; see :meth:`towpath.State.delete`."""
        return await self._client._call(requests.delete(self.name, if_version=if_version, fence=fence))

    async def update(self, change: Callable[[Value | None], Buffer | None]) -> int:
        """Change the value by what it is; see :meth:`towpath.State.update`. ``change`` is a plain
        function.
        """
        for tries in range(requests.UPDATE_ATTEMPTS):
            if tries:
                await asyncio.sleep(requests.update_pause_s(tries))
            value = await self.look()
            payload = change(value if value.is_set else None)
            try:
                if payload is None:
                    return await self.delete(if_version=value.version)
                return await self.set(payload, if_version=value.version)
            except VersionConflict:
                continue
        raise VersionConflict(requests.quicker(self.name))

    def watch(self, after_version: int | None = None) -> AsyncValueWatch:
        """Follow the value; see :meth:`towpath.State.watch`."""
        return AsyncValueWatch(self._client, self.name, after_version)

    async def close(self) -> None:
        """Let go of the page. More than once is fine."""
        page, self._page = self._page, None
        if page is not None:
            page.close()

    try_get = attempt_async(get)
    try_look = attempt_async(look)
    try_set = attempt_async(set)
    try_delete = attempt_async(delete)


class AsyncValueWatch(AsyncHandle):
    """A value's changes, as an asynchronous iterator; see :class:`towpath.ValueWatch`."""

    def __init__(self, client: AsyncKinds, name: str, after_version: int | None) -> None:
        self._news = News()
        self._state = WatchState(name, after_version, self._news.tell)
        self._closed = False
        self._leave = client._follow(self._state.request, self._state)

    async def receive(self, timeout: float | None = None) -> Value:
        """Return the next value; see :meth:`towpath.ValueWatch.receive`."""
        deadline = deadline_ns(timeout)
        while True:
            value = self._state.take()
            if value is not None:
                return value
            if self._state.why_ended is not None:
                raise self._state.why_ended.again()
            if remaining_ns(deadline) == 0:
                raise Timeout(f"the value of {self._state.name} did not change in {timeout} s", hint="")
            await self._news.wait(deadline)

    async def __aiter__(self) -> AsyncIterator[Value]:
        """Yield values until the watch is closed; raises ChannelUndeclared when the channel goes."""
        while not self._closed:
            try:
                value = await self.receive()
            except ConnectionLost:
                return
            yield value

    async def close(self) -> None:
        """Stop watching; an iteration ends. More than once is fine."""
        if not self._closed:
            self._closed = True
            self._leave()
            self._state.ended(ConnectionLost("the watch was closed", hint=""))

    try_receive = attempt_async(receive)
