"""``Answer``: what one thread waits for and another one brings."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from towpath import outcomes
from towpath.errors import TowpathError
from towpath.waiting import FOREVER, remaining_ns

A = TypeVar("A")


class Answer(Generic[A]):
    """One call's answer, waited for by one thread."""

    __slots__ = ("_event", "_value")

    def __init__(self) -> None:
        self._event = threading.Event()
        self._value: A | TowpathError | None = None

    def set(self, value: A | TowpathError) -> None:
        """It is there; from any thread."""
        self._value = value
        self._event.set()

    def is_set(self) -> bool:
        """Whether it is there."""
        return self._value is not None

    def wait(self, deadline: int | None) -> A | TowpathError | None:
        """Wait for it, until a point on the monotonic clock, in nanoseconds; None for ever.

        Returns:
            What was answered; None when the time is over.
        """
        left = remaining_ns(deadline)
        self._event.wait(None if left == FOREVER else left / 1e9)
        return self._value

    def result(self, deadline: int | None) -> A:
        """As :meth:`wait`, where only an answer will do.

        Raises:
            Timeout: there is none.
            TowpathError: it is an error.
        """
        return outcomes.outcome(self.wait(deadline))
