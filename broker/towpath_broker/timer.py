"""One timer of the event loop for a machine that says when it has something due. There is no polling."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from .ports import Clock

SPAN_S_MAX: Final = 60.0
"""The loop's clock and the machine's may part; so far ahead they are compared again at the latest."""


class DueTimer:
    """Calls when something is due.

    Args:
        clock: the machine's.
        due_ns: when the next thing is due; None: nothing is.
        ring: called, from the loop, when that has come.
    """

    def __init__(self, clock: Clock, due_ns: Callable[[], int | None], ring: Callable[[], object]) -> None:
        self._clock = clock
        self._due_ns = due_ns
        self._tell = ring
        self._handle: asyncio.TimerHandle | None = None
        self._at_ns = 0

    def set(self) -> None:
        """Wait for what is due next, instead of what was before."""
        due_ns = self._due_ns()
        if self._handle is not None:
            if due_ns == self._at_ns:
                return
            self.stop()
        if due_ns is not None:
            self._at_ns = due_ns
            delay_s = max(0.0, (due_ns - self._clock.now_ns()) / 1e9)
            loop = asyncio.get_running_loop()
            self._handle = loop.call_later(min(delay_s, SPAN_S_MAX), self._ring)

    def stop(self) -> None:
        """Call no more, until it is set again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _ring(self) -> None:
        self._handle = None
        due_ns = self._due_ns()
        if due_ns is not None and due_ns <= self._clock.now_ns():
            self._tell()
        else:
            self.set()
