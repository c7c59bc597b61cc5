"""The threads of bindings whose messages are handed on where they are received, and not by the event loop.

Theory of operation
    A message's way by the event loop is long: its doorbell, a turn of the loop, a task. Where what is to be
    done with a message is a system call that never waits, a thread that sleeps on the ring itself does it, in
    C (``Reader.hand_on``); the loop is left with what is not plain. A thread costs memory, so there are
    ``THREADS_MAX``; a binding that finds none goes by the loop, as all others do.

    They ask for short slices of the processor's time. The scheduler lets a thread that was woken run at once
    only if it is not owed less than who runs; with a short slice it does, and on one core that is the
    difference between now and when the publisher has gone to sleep.

Invariants
    No signal is ever delivered to such a thread: those that come in are one thread's (``_native``).
"""

from __future__ import annotations

import signal
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Final

THREADS_MAX: Final = 16
"""At a time, of one bridge."""
SLICE_NS: Final = 500_000


class Threads:
    """Counts them."""

    def __init__(self) -> None:
        self._given: set[Executor] = set()

    def get(self) -> Executor | None:
        """Start one; None when there are enough."""
        if len(self._given) == THREADS_MAX:
            return None
        from towpath_broker.gateways.bridge import _native  # whoever asks has it

        thread = ThreadPoolExecutor(1, "handing-on", _native.set_slice, (SLICE_NS,))
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            thread.submit(bool).result()  # it is there now, and has this mask
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._given.add(thread)
        return thread

    def give_back(self, thread: Executor) -> None:
        """Let one end, which does nothing any more."""
        self._given.discard(thread)
        thread.shutdown(wait=False)
