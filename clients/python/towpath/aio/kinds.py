"""The kinds of channels that travel as frames, as methods of the asyncio client."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import ClassVar, TypeVar

from towpath import calls, model
from towpath.aio.consuming import AsyncConsumer
from towpath.aio.locking import AsyncLocking
from towpath.aio.transactions import AsyncTransaction
from towpath.asking import Following, Listener
from towpath.errors import NotSupported, TowpathError
from towpath.locks import requests
from towpath.locks.aio import AsyncBarrier, AsyncGuard, AsyncLock, AsyncLocks, AsyncSemaphore, listed
from towpath.locks.leases import LEASE_MS_DEFAULT
from towpath.locks.model import Explanation, Grant, Listing
from towpath.locks.requests import Wanted
from towpath.queues import PREFETCH_DEFAULT
from towpath.result import attempt_async
from towpath.states.aio import AsyncState
from towpath.states.page import Page
from towpath.transactions import TIMEOUT_S

T = TypeVar("T")


class AsyncKinds(AsyncLocking):
    """What is asked in frames, on every carrier; see :class:`towpath.sync.kinds.Kinds`."""

    @abstractmethod
    def _post(
        self, call: calls.Call[T], then: Callable[[T | TowpathError], None]
    ) -> Callable[[], object] | None:
        """As :meth:`towpath.asking.Asking._post`."""

    @abstractmethod
    def _follow(self, make: Callable[[], calls.Call[T]], listener: Listener[T]) -> Following:
        """As :meth:`towpath.asking.Asking._follow`."""

    def _every(self, tick: Callable[[], float]) -> Callable[[], object]:
        """As :meth:`towpath.asking.Asking._every`."""
        raise NotSupported("nothing is done now and again on the daemon's own host")

    @abstractmethod
    def _check_not_forked(self) -> None:
        """As :meth:`towpath.asking.Asking._check_not_forked`."""

    @property
    @abstractmethod
    def _is_over(self) -> bool:
        """Whether the client is closed, or will not have a connection any more."""

    async def _value_page(self, name: str) -> Page:
        """The page of a state's value.

        Raises:
            NotSupported: it is on another host.
        """
        raise NotSupported("a value page is memory of the daemon's host")

    _LOCK_LEASE_MS: ClassVar[int] = LEASE_MS_DEFAULT

    @cached_property
    def _locks(self) -> AsyncLocks:
        return AsyncLocks(self, lease_ms=self._LOCK_LEASE_MS)

    def _page_lock(self, name: str) -> AsyncLock | None:
        """A lock that is taken in shared memory where that is possible; None on carriers that have none."""
        return None

    def lock(self, name: str, *, reentrant: bool = False, note: str = "", fast: bool = True) -> AsyncLock:
        """Return a handle for a lock by name; see :meth:`towpath.Client.lock`."""
        if fast and not reentrant and not note:
            quick = self._page_lock(name)
            if quick is not None:
                return quick
        return AsyncLock(self._locks, name, reentrant=reentrant, note=note)

    def semaphore(self, name: str, permits: int = 0) -> AsyncSemaphore:
        """Return a handle for a counting semaphore by name; see :meth:`towpath.Client.semaphore`."""
        return AsyncSemaphore(self._locks, name, permits)

    def barrier(self, name: str, parties: int) -> AsyncBarrier:
        """Return a handle for a place where so many wait for each other."""
        return AsyncBarrier(self._locks, name, parties)

    async def acquire_all(self, *locks: AsyncLock | str, timeout: float | None = None) -> AsyncGuard:
        """Take several locks at one moment or none; see :meth:`towpath.Client.acquire_all`."""
        wanted = [Wanted(lock if isinstance(lock, str) else lock.name) for lock in locks]
        return AsyncGuard(self._locks, await self._locks.acquire(wanted, timeout))

    async def force_release(self, name: str, *, token: int = 0, reason: str = "") -> tuple[Grant, ...]:
        """Take a lock from whoever has it; see :meth:`towpath.Client.force_release`."""
        return await self._call(requests.force_release(name, token, reason))

    def set_lock_lease(self, seconds: float) -> None:
        """Say how long locks outlive a broken connection; see :meth:`towpath.Client.set_lock_lease`."""
        self._locks.set_lease(seconds)

    def on_lock_lost(self, told: Callable[[TowpathError], object]) -> None:
        """Have a function told whenever locks are lost that this client holds: taken away, or with its
        session. It is called by the thread, or on the loop, that hears of it, and must not wait."""
        self._locks.on_lost.append(told)

    async def list_locks(self, prefix: str = "") -> Listing:
        """Return the locks in use whose names begin so; see :meth:`towpath.Client.list_locks`."""
        return await listed(self, prefix)

    async def explain_locks(self, lock: str = "", *, session: int = 0) -> Explanation:
        """Say who waits for whom; see :meth:`towpath.Client.explain_locks`."""
        return await self._call(requests.explain(lock=lock, session=session))

    def state(self, name: str) -> AsyncState:
        """Return a handle for a state channel by name; asks nobody until it is used."""
        return AsyncState(self, name)

    async def consume(self, name: str, *, prefetch: int = PREFETCH_DEFAULT) -> AsyncConsumer:
        """Consume a queue; see :meth:`towpath.Client.consume`."""
        consumer = AsyncConsumer(self, name, prefetch)
        await consumer.open()
        return consumer

    async def places(self, name: str) -> list[model.Place]:
        """Return how far the named subscriptions of a durable topic have come; see
        :meth:`towpath.Client.places`.
        """
        return await self._call(calls.places(name))

    async def delete_place(self, name: str, place: str) -> None:
        """Forget a named subscription of a durable topic; see :meth:`towpath.Client.delete_place`."""
        await self._call(calls.delete_place(name, place))

    def transaction(self, *, timeout: float | None = TIMEOUT_S) -> AsyncTransaction:
        """Begin a transaction; see :meth:`towpath.Client.transaction`."""
        return AsyncTransaction(self, timeout)

    try_consume = attempt_async(consume)
