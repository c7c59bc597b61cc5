"""Outward ``signal:`` bindings: what the C code that sends signals is told, and what it tells.

Theory of operation
    Most messages become signals where they are received, in a thread and in C (``_native.SignalTaker``). It
    sends to the processes that it was aimed at, as long as the files by which they were found are as they
    were. What it leaves goes the long way, by the event loop, which finds the target anew and aims again.
    What it took is counted here: ``TOLD_S`` after the first, all of it.

Invariants
    It is aimed at nobody whose pidfd is closed: who forgets a process aims again before anything else runs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Final

from towpath_broker.gateways.bridge import _native
from towpath_broker.gateways.bridge.report import Tally
from towpath_broker.gateways.bridge.targets import Target

TOLD_S: Final = 0.2
"""How late what was taken is counted; so that a message costs no turn of the event loop."""


class Aim:
    """One binding's.

    Args:
        number: the signal's.
        target: whom it signals.
        tally: the binding's account.
        is_text: a payload is the value as a number, and not its bytes.
        on_counted: called after each count.
    """

    def __init__(
        self, number: int, target: Target, tally: Tally, *, is_text: bool, on_counted: Callable[[], None]
    ) -> None:
        self.taker = _native.SignalTaker(number, is_text)
        self._target = target
        self._tally = tally
        self._on_counted = on_counted
        self._served: set[int] = set()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(self.taker.fileno(), self._on_taken)

    def update(self) -> None:
        """The target's processes are others than before, or their files are."""
        self._served.update(self.taker.served())
        pidfds = tuple(process.pidfd for process in self._target.processes)
        stamps = tuple((os.fsencode(path), *stamp) for path, stamp in self._target.stamped)
        self.taker.aim(pidfds, stamps)

    def take_served(self) -> set[int]:
        """Who has had the message that was left, as pidfds; asked once for each."""
        served, self._served = self._served | set(self.taker.served()), set()
        return served

    def close(self) -> None:
        """Count, and aim at nobody any more."""
        self._loop.remove_reader(self.taker.fileno())
        if self._timer is not None:
            self._timer.cancel()
        self._count()
        self.taker.close()

    def _count(self) -> None:
        messages, nbytes = self.taker.taken()
        if messages:
            self._tally.count_out(messages, nbytes)
        self._on_counted()

    def _on_taken(self) -> None:
        self._loop.remove_reader(self.taker.fileno())
        self._timer = self._loop.call_later(TOLD_S, self._on_time)

    def _on_time(self) -> None:
        self._count()
        self._loop.add_reader(self.taker.fileno(), self._on_taken)
