"""Tasks that wait for something that another one may bring about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from towpath.waiting import seconds


class News:
    """Whoever waits for it.

    Attributes:
        callbacks: what :meth:`tell` calls, beside waking those who wait.
    """

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()
        self.callbacks: set[Callable[[], None]] = set()

    def tell(self) -> None:
        """It may have come about."""
        for callback in tuple(self.callbacks):
            callback()
        for waiter in self._waiting:
            _wake(waiter)

    async def wait(self, deadline: int | None) -> None:
        """Wait for the next :meth:`tell`, or for the deadline on the monotonic clock."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        self._waiting.add(waiter)
        timeout_s = seconds(deadline)
        timer = None if timeout_s is None else loop.call_later(timeout_s, _wake, waiter)
        try:
            await waiter
        finally:
            if timer is not None:
                timer.cancel()
            self._waiting.discard(waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
