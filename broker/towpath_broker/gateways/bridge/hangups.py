"""Being told that a peer has gone from which nothing more is read.

Theory of operation
    A peer that has ended its own sending (shutdown(2), as ``nc -N`` does) may go on listening. Its socket is
    readable for ever then, so the event loop cannot be asked to tell when it goes. epoll(7) tells of a
    hang-up whatever was asked for: here one instance is asked for nothing else, and itself is in the event
    loop.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable


class Hangups:
    """Calls back, once, when the other side of a socket has left altogether."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], object]] = {}
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_readable)

    def watch(self, descriptor: int, callback: Callable[[], object]) -> None:
        """Have a callback called on the loop; also when the peer has left already."""
        self._callbacks[descriptor] = callback
        self._epoll.register(descriptor, 0)

    def unwatch(self, descriptor: int) -> None:
        """Call nobody any more; before the descriptor is closed. Nothing happens where none is watched."""
        if self._callbacks.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def close(self) -> None:
        """End all watches."""
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._callbacks.clear()

    def _on_readable(self) -> None:
        for descriptor, _ in self._epoll.poll(0):
            callback = self._callbacks[descriptor]
            self.unwatch(descriptor)
            callback()
