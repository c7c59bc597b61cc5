"""A subscription's window: what its peer asked for, and how many messages it will still take. No gRPC, no
I/O.

Theory of operation
    The reader of the peer's requests calls :meth:`Window.take` and :meth:`Window.end`; the sender waits in
    :meth:`Window.opened` and :meth:`Window.room`. A first request with credit 0 asks for no window: then
    there is always room, and the transport's own flow control is what slows the sender down.

Invariants
    What was spent never exceeds the credit given.
"""

from __future__ import annotations

import asyncio
from typing import Final

from towpath.errors import InvalidArgument
from towpath.names import check_pattern
from towpath.v1 import channels_pb2

CREDIT_MAX: Final = 1 << 32
"""Messages that one window may allow at once; asking for more ends the call with INVALID_ARGUMENT."""


class Window:
    """One subscription's window; used by one reader and one sender on one event loop.

    Attributes:
        first: the peer's first request.
    """

    def __init__(self) -> None:
        self.first = channels_pb2.SubscribeRequest()
        self._channel = ""
        self._is_limited = False
        self._has_ended = False
        self._credit = 0
        self._changed = asyncio.Event()

    def take(self, request: channels_pb2.SubscribeRequest) -> None:
        """Take the next request of the peer.

        Args:
            request: the first names the channel; later ones only add credit.

        Raises:
            InvalidArgument: a later request names a channel, or adds credit where there is no window or above
                ``CREDIT_MAX``.
            InvalidName: the first request's channel, or pattern, is not well formed.
        """
        if not self._channel:
            self._channel = check_pattern(request.channel)
            self.first = request
            self._is_limited = request.credit > 0
        elif request.channel:
            raise InvalidArgument(
                f"the subscription is to {self._channel}; only the first request may name a channel"
            )
        elif request.credit and not self._is_limited:
            raise InvalidArgument(
                "credit was added to a subscription without a window",
                hint="give credit in the first request, or in none",
            )
        if self._credit + request.credit > CREDIT_MAX:
            raise InvalidArgument(f"more than {CREDIT_MAX} messages of credit are open")
        self._credit += request.credit
        self._changed.set()

    def end(self) -> None:
        """Note that the peer sends no more requests.

        Raises:
            InvalidArgument: it sent none at all.
        """
        if not self._channel:
            raise InvalidArgument("the stream ended before a request named a channel")
        self._has_ended = True
        self._changed.set()

    async def opened(self) -> str:
        """Wait for the first request; return the channel, or pattern, that it names."""
        while not self._channel:
            await self._wait_changed()
        return self._channel

    async def room(self, count_max: int) -> int:
        """Wait until the peer takes messages.

        Args:
            count_max: as many as are of use now, at least 1.

        Returns:
            How many may be sent, 1 to ``count_max``; 0 when the window is used up and the peer can add no
            more.
        """
        if not self._is_limited:
            return count_max
        while not self._credit and not self._has_ended:
            await self._wait_changed()
        return min(self._credit, count_max)

    def spend(self, count: int) -> None:
        """Take messages that are about to be sent off the credit.

        Args:
            count: at most what :meth:`room` returned.
        """
        if self._is_limited:
            assert count <= self._credit
            self._credit -= count

    async def _wait_changed(self) -> None:
        self._changed.clear()
        await self._changed.wait()
