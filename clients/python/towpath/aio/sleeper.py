"""``Sleeper``: what one task after another awaits until it is woken; a future that is used again and again.
``Sleepers``: those of a client who sleep on their rings.

Theory of operation
    An asyncio task waits for whatever yields itself with ``_asyncio_future_blocking`` set and has the few
    methods below: that is how asyncio's own futures, and those of others, are waited for
    (``asyncio.futures.isfuture``, ``Task.__step``). A real future wakes its task by way of the loop: a turn
    later, after one more look at all descriptors. :meth:`Sleeper.wake_now` lets the task go on at once, from
    a callback of the loop, which saves a message that was waited for a system call and more.

Invariants
    A task is woken once for each time that it goes to sleep, in its own context. While another task runs,
    and for a cancellation, that is by way of the loop.
    Who sleeps in ``Sleepers`` has said so in its control page, and found nothing in the rings after that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping
from contextvars import Context
from typing import Any

from towpath.ends import ReaderState
from towpath.waiting import seconds


class Sleeper:
    """For one task at a time.

    Args:
        loop: of the tasks that sleep here.
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_context", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._callback: Callable[[Any], object] | None = None
        self._context: Context | None = None

    def __await__(self) -> Generator[Sleeper, None, None]:
        """Sleep until woken."""
        self._asyncio_future_blocking = True
        yield self

    def wake_now(self) -> None:
        """Let the task go on before this returns. From a callback of the loop; where another task runs, it is
        as :meth:`wake_soon`.
        """
        callback = self._callback
        if callback is None:
            return
        if asyncio.current_task(self._loop) is not None:
            self.wake_soon()
            return
        self._callback = None
        assert self._context is not None
        self._context.run(callback, self)

    def wake_soon(self) -> None:
        """Let the task go on with the loop's next turn."""
        self._wake_soon(self)

    def _wake_soon(self, why: Sleeper | _Cancelled) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            self._loop.call_soon(callback, why, context=self._context)

    # ---- what a task asks of a future ----

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Whose tasks may sleep here."""
        return self._loop

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context) -> None:
        """How the task is woken: it sleeps now."""
        self._callback, self._context = callback, context

    def cancel(self, msg: Any = None) -> bool:
        """Wake the task with a cancellation; False when it does not sleep any more."""
        if self._callback is None:
            return False
        self._wake_soon(_Cancelled(msg))
        return True

    def result(self) -> None:
        """Nothing: the task was woken."""


class _Cancelled:
    """Given to a task in place of what it slept on: it was cancelled."""

    def __init__(self, message: Any) -> None:
        self._arguments = () if message is None else (message,)

    def result(self) -> None:
        raise asyncio.CancelledError(*self._arguments)


class Sleepers:
    """Who of a client sleeps until a publisher rings.

    Args:
        readers: the client's, by their ids.

    Attributes:
        asleep: by the reader whose rings are empty.
        handing: readers of which a thread hands on what comes; it sleeps on the rings itself.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, readers: Mapping[int, ReaderState]) -> None:
        self._loop = loop
        self._readers = readers
        self.asleep: dict[ReaderState, Sleeper] = {}
        self.handing: set[ReaderState] = set()

    def look(self) -> None:
        """The doorbell has rung, for anybody who sleeps here."""
        for state, sleeper in list(self.asleep.items()):
            # A sleep is rung for once: whoever finds nothing (the ring may be on its way to us) must arm
            # again.
            if state.id in self._readers and (state.reader.pending_bytes or state.reader.arm()):
                sleeper.wake_now()

    def wake(self, state: ReaderState) -> None:
        """Something but a message has come for whoever sleeps there, or is about to."""
        state.reader.is_plain = False
        if state in self.handing:
            state.reader.notify()
        sleeper = self.asleep.get(state)
        if sleeper is not None:
            sleeper.wake_soon()

    async def sleep(self, state: ReaderState, deadline: int | None) -> None:
        """Wait until a publisher rings, the core has news, or the time is over."""
        sleeper = self.asleep[state] = Sleeper(self._loop)
        # Not `asyncio.timeout`, which costs a good part of a round trip.
        timeout_s = seconds(deadline)
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, self.wake, state)
        try:
            if not state.reader.arm():
                await sleeper
        finally:
            if timer is not None:
                timer.cancel()
            self.end(state, sleeper)

    def end(self, state: ReaderState, sleeper: Sleeper) -> None:
        """Who slept goes on, or was cancelled; by then somebody else may sleep there."""
        if self.asleep.get(state) is sleeper:
            del self.asleep[state]
            if state.id in self._readers:
                state.reader.disarm()
