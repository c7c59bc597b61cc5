"""Guards as contexts, and locks that are entered: ``with lock:`` makes a guard, and ends it.

A lock may be entered by several threads, or tasks, at a time, and by one of them again, as a reentrant one.
So the guards are kept by thread, or task, the newest last. Here for threads; for tasks in ``entering_aio``.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Generic, Self, TypeVar

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


class GuardContext(GuardBase):
    """A guard that is released at the end of its block."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Kind, error: Error, trace: Trace) -> None:
        """Release, unless it was released inside. If the lock was lost inside, and nothing else is wrong,
        that is raised."""
        self._leave(error)
