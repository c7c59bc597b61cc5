"""Consuming a queue, waiting on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from towpath import outcomes, queues
from towpath.asking import Asking
from towpath.consuming import ConsumerBase
from towpath.errors import ConnectionLost, Timeout, TowpathError
from towpath.handles import AsyncHandle
from towpath.queues import Delivery
from towpath.result import attempt_async
from towpath.waiting import CALL_TIMEOUT_S, deadline_ns, remaining_ns, seconds

CLOSE_S = 2.0
"""How long closing waits for what was settled to be confirmed."""


class AsyncConsumer(ConsumerBase, AsyncHandle):
    """A consumer of a queue; see :class:`towpath.Consumer`. ``ack``, ``nack`` and ``extend`` do not wait, and
    are not awaited; they are called from the loop.
    """

    def __init__(self, asking: Asking, name: str, prefetch: int = queues.PREFETCH_DEFAULT) -> None:
        super().__init__(asking, name, prefetch, contextlib.nullcontext())
        self._changed = asyncio.Event()
        self._leave = asking._follow(self._state.request, self)

    async def open(self) -> None:
        """Wait until it is there.

        Raises:
            TowpathError: it was refused, or nobody answers.
        """
        deadline = deadline_ns(CALL_TIMEOUT_S)
        try:
            while not self._state.has_begun:
                self._raise_ended()
                if not await self._wait(deadline):
                    raise outcomes.no_answer()
        except BaseException:
            self._leave()
            raise

    def _wake(self) -> None:
        self._changed.set()

    async def _wait(self, deadline: int | None) -> bool:
        """Wait for a change; False when the time is over."""
        if remaining_ns(deadline) == 0:
            return False
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds(deadline)):
                await self._changed.wait()
                return True
        return False

    def _raise_ended(self) -> None:
        if self._state.ended is not None:
            raise self._state.ended.again()
        self._check()

    async def receive(self, timeout: float | None = None) -> Delivery:
        """Return the next delivery; see :meth:`towpath.Consumer.receive`."""
        taken = await self.receive_many(1, timeout=timeout)
        if not taken:
            raise Timeout(f"no message in {self.name} in {timeout} s", hint="")
        return taken[0]

    async def receive_many(
        self, count_max: int = 256, *, bytes_max: int = 1 << 20, timeout: float | None = None
    ) -> list[Delivery]:
        """Return what there is, up to the bounds; see :meth:`towpath.Consumer.receive_many`."""
        self._check()
        deadline = deadline_ns(timeout)
        if self._state.is_stuck():
            self._push(is_retry=True)
        while True:
            taken = self._state.take(count_max, bytes_max)
            if taken:
                return taken
            self._raise_ended()
            if not await self._wait(deadline):
                return []

    async def __aiter__(self) -> AsyncIterator[Delivery]:
        """Yield deliveries until the consumer is closed; raises ChannelUndeclared when the queue goes."""
        while not self._closed:
            try:
                delivery = await self.receive()
            except ConnectionLost:
                if self._closed:
                    return
                raise
            yield delivery

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until everything that was settled is confirmed; see :meth:`towpath.Consumer.flush`."""
        self._check()
        deadline = deadline_ns(timeout)
        self._push(is_retry=True)
        while not self._state.is_settled and not self._state.is_stuck():
            self._raise_ended()
            if not await self._wait(deadline):
                raise Timeout(f"what was settled of {self.name} is not confirmed yet", hint="")
        self._raise_trouble()

    async def close(self) -> None:
        """Say what was settled, and leave; the rest goes back at once. More than once is fine."""
        if self._closed:
            return
        with contextlib.suppress(TowpathError):
            await self.flush(CLOSE_S)
        self._closed = True
        self.ended(ConnectionLost("the consumer was closed", hint=""))
        self._leave()

    try_receive = attempt_async(receive)
    try_receive_many = attempt_async(receive_many)
    try_flush = attempt_async(flush)
