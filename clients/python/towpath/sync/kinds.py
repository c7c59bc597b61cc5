"""The kinds of channels that travel as frames, as methods of the synchronous client."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeVar

from towpath import calls, model
from towpath.asking import Listener
from towpath.errors import NotSupported, TowpathError
from towpath.queues import PREFETCH_DEFAULT
from towpath.result import attempt
from towpath.states.blocking import State
from towpath.states.page import Page
from towpath.sync.consuming import Consumer
from towpath.sync.registry import Registry
from towpath.sync.transactions import Transaction
from towpath.transactions import TIMEOUT_S

T = TypeVar("T")


class Kinds(Registry):
    """What is asked in frames, on every carrier; :class:`towpath.Client` is one. Its port is described at
    :class:`towpath.asking.Asking`.
    """

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

    def _value_page(self, name: str) -> Page:
        """The page of a state's value.

        Raises:
            NotSupported: it is on another host.
        """
        raise NotSupported("a value page is memory of the daemon's host")

    def state(self, name: str) -> State:
        """Return a handle for a state channel by name; asks nobody until it is used."""
        return State(self, name)

    def consume(self, name: str, *, prefetch: int = PREFETCH_DEFAULT) -> Consumer:
        """Consume a queue: each message goes to one of its consumers, until it is settled.

        Args:
            name: the queue's.
            prefetch: how many deliveries may be unsettled at a time, 1 to 65,536.

        Raises:
            ChannelNotFound, InvalidArgument (no queue), LimitExceeded, QuotaExceeded.
        """
        return Consumer(self, name, prefetch)

    def places(self, name: str) -> list[model.Place]:
        """Return how far the named subscriptions of a durable topic have come, by name.

        Raises:
            ChannelNotFound, InvalidArgument (no durable topic).
        """
        return self._call(calls.places(name))

    def delete_place(self, name: str, place: str) -> None:
        """Forget a named subscription of a durable topic.

        Raises:
            SubscriptionNotFound, ChannelNotFound, InvalidArgument (no durable topic).
        """
        self._call(calls.delete_place(name, place))

    def transaction(self, *, timeout: float | None = TIMEOUT_S) -> Transaction:
        """Begin a transaction: what it is told is carried out together at its end, or not at all.

        Args:
            timeout: seconds that a commit goes on asking what became of it, while connections break; None for
                ever.
        """
        return Transaction(self, timeout)

    try_consume = attempt(consume)
