"""Doorbells of the core: how publishers and subscribers wake its event loop.

Theory of operation
    Each pair of which the core is one end has a doorbell of its own: a socketpair, of which the other side
    gets the sending end. A client that owns a doorbell may share one among all who ring it; the core may
    not, because one of them could shut it down for the others. So what somebody does to a doorbell
    concerns that pair alone: filling it means it has rung, ending it means it rings no more.

    A doorbell also tells who is alive. The other side has the only sending end, and lets go of it with the
    pair, or with its life; and the receiving end outlives the core (``kept``). So it ends when the other side
    is gone, and not when a connection breaks or the core is started again.

Invariants
    A rung bell is read once per turn of the loop, a bounded number of bytes: nobody can hold the loop.
    Descriptors that somebody sends through a doorbell are not accepted; the kernel closes them.

Not here: what to do when one rings (own_channel).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Final

from towpath import wire

Pair = tuple[int, int]
"""A source and a reader."""

_BELL_BYTES: Final = 4096


class Bells:
    """The receiving ends, by pair; registered in the running loop."""

    def __init__(self) -> None:
        self._bells: dict[Pair, socket.socket] = {}
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._bells)

    def __contains__(self, pair: Pair) -> bool:
        return pair in self._bells

    def make(self, pair: Pair, rung: Callable[[], object], ended: Callable[[], object]) -> wire.Descriptor:
        """Make a pair's doorbell, in place of the one that it had.

        Args:
            rung: called from the loop when the other side rang.
            ended: called from the loop when it let go of its end, or is gone; the bell is closed by then.

        Returns:
            The sending end.
        """
        self.remove(pair)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        theirs.setblocking(False)
        self._register(pair, ours, rung, ended)
        return wire.Descriptor(theirs.detach())

    def _ring(self, pair: Pair, rung: Callable[[], object], ended: Callable[[], object]) -> None:
        try:
            is_alive = bool(self._bells[pair].recv(_BELL_BYTES))
        except BlockingIOError:
            return
        except OSError:
            is_alive = False
        if is_alive:
            rung()
        else:
            self.remove(pair)
            ended()

    def adopt(
        self,
        pair: Pair,
        receiving: wire.Descriptor,
        rung: Callable[[], object],
        ended: Callable[[], object],
    ) -> None:
        """Go on with a doorbell that an earlier process made."""
        self._register(pair, socket.socket(fileno=os.dup(receiving.fd)), rung, ended)

    def _register(
        self, pair: Pair, ours: socket.socket, rung: Callable[[], object], ended: Callable[[], object]
    ) -> None:
        ours.setblocking(False)
        self._bells[pair] = ours
        self._loop.add_reader(ours, self._ring, pair, rung, ended)

    def fileno(self, pair: Pair) -> int:
        """The receiving end of a pair that has a doorbell."""
        return self._bells[pair].fileno()

    def remove(self, pair: Pair) -> None:
        """Close a pair's doorbell; nothing to do where there is none."""
        bell = self._bells.pop(pair, None)
        if bell is not None:
            self._loop.remove_reader(bell)
            bell.close()

    def close(self) -> None:
        """Close all."""
        for pair in tuple(self._bells):
            self.remove(pair)
