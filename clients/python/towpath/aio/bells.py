"""The doorbells of an asyncio client: what others ring when something here sleeps on the event loop.

Theory of operation
    A doorbell is a socketpair; who rings has the sending end. Filling it means that it has rung, but whoever
    has the sending end can also shut it down, for all who share it. Processes of this client's own uid share
    one, which is given with hello: they could do it more harm than that. For each other uid the core makes
    one and sends the receiving end (``doorbell_added``), so that nobody is deaf for what another user did.

    When one is shut down, or cannot be listened to, those who ring it are looked after every ``LOOK_S``,
    until the connection is made anew and with it all doorbells but the own one.

Invariants
    A bell is read once per turn of the loop, a bounded number of bytes. Descriptors that somebody sends
    through one are not accepted; the kernel closes them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

from towpath import wire
from towpath.errors import LimitExceeded, host_limits

LOOK_S: Final = 0.02
"""How often sleepers are looked at while a doorbell is shut down; never otherwise."""

_BELL_BYTES: Final = 4096

_log = logging.getLogger("towpath")


class Bells:
    """The receiving ends, registered in the running loop.

    Args:
        look: called from the loop when one has rung: look whether there is something for whoever sleeps.

    Attributes:
        sender: the sending end of the own one, for hello.
    """

    def __init__(self, look: Callable[[], object]) -> None:
        self._look = look
        self._loop = asyncio.get_running_loop()
        with host_limits("an asyncio client's doorbell"):
            self._own, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sender = wire.Descriptor(sender.detach())
        self._others: set[socket.socket] = set()
        self._former: set[socket.socket] = set()
        self._looking: asyncio.TimerHandle | None = None
        self._register(self._own)

    @property
    def is_own_alive(self) -> bool:
        """Whether the one that processes of the own uid ring can still be heard."""
        return self._own.fileno() >= 0

    @property
    def is_late(self) -> bool:
        """Whether some of those who ring are not heard, and looked after instead."""
        return self._looking is not None

    def add(self, receiving: wire.Descriptor) -> None:
        """Listen to one more, which another uid rings."""
        try:
            with host_limits("a doorbell"):
                bell = socket.socket(fileno=os.dup(receiving.fd))
        except LimitExceeded as error:
            self._miss(str(error))
            return
        self._others.add(bell)
        self._register(bell)

    def connection_lost(self) -> None:
        """The next connection brings others. Those of now may ring on until their senders know."""
        self._former |= self._others
        self._others.clear()
        if self.is_own_alive:
            self._stop_looking()

    def close(self) -> None:
        """Listen no more. More than once is fine."""
        self._stop_looking()
        for bell in (self._own, *self._others, *self._former):
            self._remove(bell)

    def _register(self, bell: socket.socket) -> None:
        bell.setblocking(False)
        self._loop.add_reader(bell, self._rung, bell)

    def _remove(self, bell: socket.socket) -> None:
        if bell.fileno() >= 0:
            self._loop.remove_reader(bell)
            bell.close()
        self._others.discard(bell)
        self._former.discard(bell)

    def _rung(self, bell: socket.socket) -> None:
        try:
            is_alive = bool(bell.recv(_BELL_BYTES))
        except BlockingIOError:
            is_alive = True
        except OSError:
            is_alive = False
        if not is_alive:
            is_former = bell in self._former
            self._remove(bell)
            if not is_former:
                self._miss("a doorbell of this session was shut down")
        self._look()

    def _miss(self, why: str) -> None:
        if not self.is_late:
            _log.warning("%s: who rings it is heard up to 20 ms late", why)
            self._look_again()

    def _look_again(self) -> None:
        self._looking = self._loop.call_later(LOOK_S, self._look_again)
        self._look()

    def _stop_looking(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
