"""The kinds of channels that travel as frames, as methods of the asyncio client."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeVar

from towpath import calls, model
from towpath.aio.consuming import AsyncConsumer
from towpath.aio.registry import AsyncRegistry
from towpath.aio.transactions import AsyncTransaction
from towpath.asking import Listener
from towpath.errors import NotSupported, TowpathError
from towpath.queues import PREFETCH_DEFAULT
from towpath.result import attempt_async
from towpath.states.aio import AsyncState
from towpath.states.page import Page
from towpath.transactions import TIMEOUT_S

T = TypeVar("T")


class AsyncKinds(AsyncRegistry):
    """What is asked in frames, on every carrier; see :class:`towpath.sync.kinds.Kinds`."""

    @abstractmethod
    def _post(
        self, call: calls.Call[T], then: Callable[[T | TowpathError], None]
    ) -> Callable[[], object] | None:
        """As :meth:`towpath.asking.Asking._post`."""

    @abstractmethod
    def _follow(self, make: Callable[[], calls.Call[T]], listener: Listener[T]) -> Callable[[], object]:
        """As :meth:`towpath.asking.Asking._follow`."""

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
