"""Locks taken in shared memory by tasks of an event loop; see ``in_page``.

A task takes a lock there that is free, without waiting for anything. One that is not free it asks the daemon
for, which takes the lock back for that, and tells the loop when it is the task's turn: nothing sleeps in the
page, and nothing blocks the loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from towpath import _ring
from towpath.errors import TowpathError
from towpath.locks import requests
from towpath.locks.aio import AsyncGuard, AsyncLock, AsyncLocks
from towpath.locks.in_page import InPage, LockInPage
from towpath.locks.session import LockSession

if TYPE_CHECKING:
    from towpath.aio.client import LocalAsyncClient


class AsyncPageGuard(InPage, AsyncGuard):
    """The guard of a lock that was taken in the page; see :class:`towpath.aio.AsyncGuard`."""

    __slots__ = ()
    page_lock: _TaskLock

    @property
    def _locks(self) -> AsyncLocks:  # type: ignore[override]
        return self.page_lock.locks

    async def upgrade(self, timeout: float | None = None) -> None:
        self._to_core()
        await AsyncGuard.upgrade(self, timeout)

    async def downgrade(self) -> None:
        self._to_core()
        await AsyncGuard.downgrade(self)

    async def wait(self, condition: str = "", timeout: float | None = None) -> bool:
        self._to_core()
        return await AsyncGuard.wait(self, condition, timeout)

    async def notify(self, condition: str = "", count: int = 1) -> int:
        self._to_core()
        return await AsyncGuard.notify(self, condition, count)


_QuickGuard: Final = _ring.lock_guard_type(AsyncPageGuard)


class _TaskLock(LockInPage[AsyncPageGuard]):
    """The page's part. Not the lock itself: what it has for threads is not for tasks."""

    def __init__(self, locks: AsyncLocks, name: str) -> None:
        super().__init__(name, _QuickGuard)
        self.locks = locks


class AsyncPageLock(AsyncLock):
    """A lock that is taken in shared memory where that is possible; see :class:`towpath.aio.AsyncLock`."""

    def __init__(self, locks: AsyncLocks, name: str, client: LocalAsyncClient) -> None:
        super().__init__(locks, name)
        self._client = client
        self._there = _TaskLock(locks, self.name)

    async def acquire(self, timeout: float | None = None, *, shared: bool = False) -> AsyncGuard:
        requests.timeout_ms(timeout)  # refuses what is none
        guard = await self._from_page(timeout, bool(shared))
        if guard is not None:
            return guard
        return await AsyncLock.acquire(self, timeout, shared=shared)

    async def _from_page(self, timeout: float | None, is_shared: bool) -> AsyncGuard | None:
        """Take it in the page; None: the daemon is to be asked.

        Raises:
            LockHeld.
        """
        session, owner = self._locks.session(), self._locks.owner()
        if not self._there.is_used_again():
            return None
        for _ in range(2):
            result, guard = self._there.take(session, owner, timeout, is_shared)
            if guard is not None:
                return guard
            if result != _ring.LOCK_SHUT or not await self._join(session, owner):
                return None
        return None

    async def _join(self, session: LockSession, owner: int) -> bool:
        """Ask for the lock to be given out; whether it is."""
        call = self._there.request(session, owner)
        if call is None:
            return False
        try:
            place, memory = await self._client._lock_page(call)
        except TowpathError as error:
            self._there.refused(error)
            return False
        return self._there.given_out(session, owner, place, memory)
