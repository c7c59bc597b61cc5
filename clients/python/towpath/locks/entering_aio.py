"""Guards as contexts, and locks that are entered: as ``entering``, for tasks."""

from __future__ import annotations

import asyncio
from typing import Generic, Self
from weakref import WeakKeyDictionary

from towpath.locks.entering import Error, G, Kind, Trace
from towpath.locks.guards import GuardBase


class AsyncEntered(Generic[G]):
    """The guards by which a lock is entered, of each task."""

    def __init__(self) -> None:
        self._by_task: WeakKeyDictionary[asyncio.Task[object], list[G]] = WeakKeyDictionary()

    def push(self, guard: G) -> G:
        """The running task has entered."""
        self._by_task.setdefault(_task(), []).append(guard)
        return guard

    def pop(self) -> G:
        """It leaves: return the guard by which it entered last."""
        return self._by_task[_task()].pop()


def _task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


class AsyncGuardContext(GuardBase):
    """A guard that is released at the end of its block."""

    __slots__ = ()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: Kind, error: Error, trace: Trace) -> None:
        """As ``GuardContext.__exit__``."""
        self._leave(error)
