"""Consuming a queue, waiting in the caller's thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from towpath import outcomes, queues
from towpath.asking import Asking
from towpath.consuming import ConsumerBase
from towpath.errors import ConnectionLost, Timeout, TowpathError
from towpath.handles import Handle
from towpath.queues import Delivery
from towpath.result import attempt
from towpath.waiting import (
    CALL_TIMEOUT_S,
    FOREVER,
    deadline_ns,
    remaining_ns,
)

CLOSE_S = 2.0
"""How long closing waits for what was settled to be confirmed."""


class Consumer(ConsumerBase, Handle):
    """A consumer of a queue: iterate over it, or receive from it; settle each delivery.

    What it has not settled when it is closed, or dies, goes back into the queue at once. When the connection
    breaks it comes back by itself; what had been delivered before and not settled comes again, to whoever is
    next. One thread receives; any may settle.
    """

    def __init__(self, asking: Asking, name: str, prefetch: int = queues.PREFETCH_DEFAULT) -> None:
        self._changed = threading.Condition()
        super().__init__(asking, name, prefetch, self._changed)
        deadline = deadline_ns(CALL_TIMEOUT_S)
        self._leave = asking._follow(self._state.request, self)
        try:
            with self._changed:
                while not self._state.has_begun:
                    self._raise_ended()
                    if not self._wait(deadline):
                        raise outcomes.no_answer()
        except BaseException:
            self._leave()
            raise

    def _wake(self) -> None:
        self._changed.notify_all()

    def _wait(self, deadline: int | None) -> bool:
        """Wait for a change, with the lock held; False when the time is over."""
        left = remaining_ns(deadline)
        return left != 0 and self._changed.wait(None if left == FOREVER else left / 1e9)

    def _raise_ended(self) -> None:
        if self._state.ended is not None:
            raise self._state.ended.again()
        self._check()

    def receive(self, timeout: float | None = None) -> Delivery:
        """Return the next delivery.

        Args:
            timeout: seconds to wait; None for ever, 0 not at all.

        Raises:
            Timeout: none came.
            ChannelUndeclared, ConnectionLost: the queue is gone, or the client is closed.
        """
        taken = self.receive_many(1, timeout=timeout)
        if not taken:
            raise Timeout(f"no message in {self.name} in {timeout} s", hint="")
        return taken[0]

    def receive_many(
        self, count_max: int = 256, *, bytes_max: int = 1 << 20, timeout: float | None = None
    ) -> list[Delivery]:
        """Return what there is, up to the bounds; waits for the first delivery.

        Args:
            count_max: 1 or more.
            bytes_max: payload bytes; one message may exceed it.
            timeout: seconds to wait; None for ever, 0 not at all.

        Returns:
            At least one delivery, or none when the time is over.

        Raises:
            ChannelUndeclared, ConnectionLost: as for ``receive``.
        """
        self._check()
        deadline = deadline_ns(timeout)
        if self._state.is_stuck():
            self._push(is_retry=True)
        with self._changed:
            while True:
                taken = self._state.take(count_max, bytes_max)
                if taken:
                    return taken
                self._raise_ended()
                if not self._wait(deadline):
                    return []

    def __iter__(self) -> Iterator[Delivery]:
        """Yield deliveries until the consumer is closed; raises ChannelUndeclared when the queue goes."""
        while not self._closed:
            try:
                yield self.receive()
            except ConnectionLost:
                if self._closed:
                    return
                raise

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything that was settled is confirmed: on disk, where the queue is durable.

        Args:
            timeout: seconds; None for ever.

        Raises:
            DeliveryLost: some of what was settled since the last flush had gone back before, and others may
                have it; ``lost`` counts them.
            StoreFull: it was refused for now, and is said again with the next flush or receive.
            Timeout: it is not confirmed yet.
            ConnectionLost: the client is closed.
        """
        self._check()
        deadline = deadline_ns(timeout)
        self._push(is_retry=True)
        with self._changed:
            while not self._state.is_settled and not self._state.is_stuck():
                self._raise_ended()
                if not self._wait(deadline):
                    raise Timeout(f"what was settled of {self.name} is not confirmed yet", hint="")
            self._raise_trouble()

    def close(self) -> None:
        """Say what was settled, and leave; the rest goes back at once. More than once is fine."""
        if self._closed:
            return
        with contextlib.suppress(TowpathError):
            self.flush(CLOSE_S)
        self._closed = True
        with contextlib.suppress(ConnectionLost):
            self._asking._check_not_forked()
            self.ended(ConnectionLost("the consumer was closed", hint=""))
            self._leave()

    try_receive = attempt(receive)
    try_receive_many = attempt(receive_many)
    try_flush = attempt(flush)
