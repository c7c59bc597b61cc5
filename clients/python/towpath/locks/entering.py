"""Guards as contexts, and locks that are entered: ``with lock:`` makes a guard, and ends it.

A lock may be entered by several threads, or tasks, at a time, and by one of them again, as a reentrant one.
So the guards are kept by thread, or task, the newest last. One class for threads and one for tasks, of each
kind; nothing else of locks differs so.
"""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Generic, Self, TypeVar
from weakref import WeakKeyDictionary

from towpath.locks.guards import GuardBase

G = TypeVar("G")
Kind = type[BaseException] | None
Error = BaseException | None
Trace = TracebackType | None


class Entered(Generic[G]):
    """The guards by which a lock is entered, of each thread."""

    def __init__(self) -> None:
        self._by_thread = threading.local()

    def push(self, guard: G) -> G:
        """The calling thread has entered."""
        guards: list[G] = self._by_thread.__dict__.setdefault("guards", [])
        guards.append(guard)
        return guard

    def pop(self) -> G:
        """It leaves: return the guard by which it entered last."""
        guard: G = self._by_thread.guards.pop()
        return guard


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


class GuardContext(GuardBase):
    """A guard that is released at the end of its block."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Kind, error: Error, trace: Trace) -> None:
        """Release, unless it was released inside. If the lock was lost inside, and nothing else is wrong,
        that is raised."""
        self._leave(error)


class AsyncGuardContext(GuardBase):
    """A guard that is released at the end of its block."""

    __slots__ = ()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: Kind, error: Error, trace: Trace) -> None:
        """As :meth:`GuardContext.__exit__`."""
        self._leave(error)
