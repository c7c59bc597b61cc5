"""Who waits on an event loop until a ring is read: for room in it, or to know that it is stored.

Theory of operation
    A ring has its readers ring the session's doorbell when they pass one position (``Writer.arm_room``). Of
    one source two may wait at once: the publisher whose turn it is, for room, and one for a position that
    must be read (``READ_TO``). The ring is armed for the room, which is had first as a rule; whoever else
    waits is looked after each time when the doorbell rings, when one of them leaves, and every ``LOOK_NS``.

    Who waits for something to loan has the bell rung for that besides (``Writer.arm_loan``).

Invariants
    While somebody waits the ring is armed, or the one who waits is about to look for himself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container
from typing import Final

from towpath.ends import SourceState
from towpath.waiting import remaining_ns, shorter_ns

LOOK_NS: Final = 100_000_000
"""How often whoever waits looks for himself: who went away made room without ringing."""

_Waiter = tuple[int, asyncio.Future[None]]


class Room:
    """The sources of one session, and who waits for each.

    Args:
        sources: the ids of those that are not closed.
    """

    def __init__(self, sources: Container[int]) -> None:
        self._sources = sources
        self._line: dict[SourceState, list[_Waiter]] = {}
        self._loans: dict[SourceState, _Waiter] = {}

    async def wait(self, state: SourceState, size: int, deadline: int | None) -> None:
        """Wait until a reader rings, or it is time to look again.

        Args:
            size: of the message that there must be room for; or ``READ_TO`` and a position.
        """
        loop = asyncio.get_running_loop()
        waiter = size, loop.create_future()
        line = self._line.setdefault(state, [])
        line.append(waiter)
        span_ns = shorter_ns(shorter_ns(remaining_ns(deadline), state.look_ns), LOOK_NS)
        timer = loop.call_later(span_ns / 1e9, _wake, waiter)
        try:
            self._arm(state)
            await waiter[1]
        finally:
            timer.cancel()
            line.remove(waiter)
            if not line:
                del self._line[state]
            if state.source in self._sources:
                state.writer.disarm_room()
                self._arm(state)

    async def wait_loan(self, state: SourceState, nbytes: int, deadline: int | None) -> None:
        """The same for a loan of ``nbytes``; one at a time for each source."""
        loop = asyncio.get_running_loop()
        waiter = self._loans[state] = nbytes, loop.create_future()
        span_ns = shorter_ns(shorter_ns(remaining_ns(deadline), state.look_ns), LOOK_NS)
        timer = loop.call_later(span_ns / 1e9, _wake, waiter)
        try:
            if not state.writer.arm_loan(nbytes):
                await waiter[1]
        finally:
            timer.cancel()
            self._loans.pop(state, None)
            if state.source in self._sources:
                state.writer.disarm_loan()

    def wake(self, state: SourceState) -> None:
        """Have whoever waits for a source look again."""
        for waiter in self._line.get(state, ()):
            _wake(waiter)
        if state in self._loans:
            _wake(self._loans[state])

    def look(self) -> None:
        """The doorbell has rung."""
        for state in list(self._line):
            if state.source in self._sources:
                self._arm(state)
        for state, waiter in self._loans.items():
            if state.source in self._sources and _has_loan(state, waiter[0]):
                _wake(waiter)

    def _arm(self, state: SourceState) -> None:
        """Wake who need not wait; have the ring rung for the first of the others."""
        is_armed = False
        for waiter in sorted(self._line.get(state, ()), key=_size):
            if waiter[1].done():
                continue
            if is_armed:
                is_there = state.writer.wait_room(waiter[0], 0) != 0
            else:
                is_there = state.writer.arm_room(waiter[0])
                is_armed = not is_there
            if is_there:
                _wake(waiter)


def _has_loan(state: SourceState, nbytes: int) -> bool:
    try:
        return state.writer.arm_loan(nbytes)
    except ValueError:  # nothing can be loaned any more, which who waits is about to be told
        return True


def _size(waiter: _Waiter) -> int:
    return waiter[0]  # positions are larger than any message


def _wake(waiter: _Waiter) -> None:
    if not waiter[1].done():
        waiter[1].set_result(None)
