"""The request to stop, and the waits on descriptors that it ends.

An adapter may be cancelled only where nothing is in its hands. So it is not cancelled but asked:
``stop.set()`` ends whatever wait of this module it is in, and it puts its things in order and returns.

Not here: cancellation proper, which ends an adapter that did not come to an end in time.
"""

from __future__ import annotations

import asyncio
import weakref


class Stop:
    """Set once. Waits end when it is.

    Attributes:
        is_set: whether stopping was asked for.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._waits: set[asyncio.Future[bool]] = set()
        self._children: weakref.WeakSet[Stop] = weakref.WeakSet()

    def child(self) -> Stop:
        """Make one that is set when this is, and can also be set alone."""
        child = Stop()
        child.is_set = self.is_set
        self._children.add(child)
        return child

    def set(self) -> None:
        """Ask for it; idempotent."""
        self.is_set = True
        for wait in self._waits:
            _resolve(wait, False)
        for child in self._children:
            child.set()

    async def readable(self, descriptor: int) -> bool:
        """Wait until a read would not block. Nobody else may wait on the descriptor.

        Returns:
            False when stopping was asked for.
        """
        loop = asyncio.get_running_loop()
        wait: asyncio.Future[bool] = loop.create_future()
        loop.add_reader(descriptor, _resolve, wait, True)
        try:
            return await self._ended(wait)
        finally:
            loop.remove_reader(descriptor)

    async def writable(self, descriptor: int) -> bool:
        """Wait until a write would not block. Nobody else may wait on the descriptor.

        Returns:
            False when stopping was asked for.
        """
        loop = asyncio.get_running_loop()
        wait: asyncio.Future[bool] = loop.create_future()
        loop.add_writer(descriptor, _resolve, wait, True)
        try:
            return await self._ended(wait)
        finally:
            loop.remove_writer(descriptor)

    async def sleep(self, seconds: float) -> bool:
        """Wait for a time.

        Returns:
            False when stopping was asked for.
        """
        loop = asyncio.get_running_loop()
        wait: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(seconds, _resolve, wait, True)
        try:
            return await self._ended(wait)
        finally:
            timer.cancel()

    async def resolved(self, wait: asyncio.Future[bool]) -> bool:
        """Wait until somebody sets a future's result, which is returned.

        Returns:
            False when stopping was asked for; the result is set, then.
        """
        return await self._ended(wait)

    async def wait(self) -> None:
        """Wait until stopping is asked for."""
        await self._ended(asyncio.get_running_loop().create_future())

    async def _ended(self, wait: asyncio.Future[bool]) -> bool:
        if self.is_set:
            return False
        self._waits.add(wait)
        try:
            return await wait
        finally:
            self._waits.discard(wait)


def _resolve(wait: asyncio.Future[bool], result: bool) -> None:
    # A descriptor may become ready in the same turn of the loop in which stopping is asked for.
    if not wait.done():
        wait.set_result(result)
