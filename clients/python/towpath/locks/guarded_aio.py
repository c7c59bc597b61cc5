"""Locks that own their data, waiting on an event loop. The same as ``guarded_blocking``, where each method is
documented."""

from __future__ import annotations

import contextlib
from typing import Generic, Self, TypeVar

from towpath.errors import TowpathError
from towpath.locks.aio import AsyncLocks
from towpath.locks.entering import Error, Kind, Trace
from towpath.locks.entering_aio import AsyncEntered, AsyncGuardContext
from towpath.locks.guarded import Terms, Valued, WriteGuardBase, check_written_by, recovered
from towpath.locks.holds import Hold
from towpath.locks.model import Mode
from towpath.result import attempt_async
from towpath.waiting import CALL_TIMEOUT_S

T = TypeVar("T")


class AsyncReadGuard(Valued[T], AsyncGuardContext):
    """The value, together with others that read it; see :class:`towpath.ReadGuard`."""


class AsyncWriteGuard(WriteGuardBase[T]):
    """The value, alone; see :class:`towpath.WriteGuard`."""

    def __init__(self, locks: AsyncLocks, terms: Terms[T], hold: Hold) -> None:
        super().__init__(terms, hold)
        self._locks = locks

    async def commit(self) -> None:
        """Write the value now, and hold on; see :meth:`towpath.WriteGuard.commit`."""
        payload = self._changed()
        if payload is not None:
            hold = self._hold
            pending = await self._locks.wait(
                hold.session, self._writing(payload), CALL_TIMEOUT_S, hold.number
            )
            self._written(payload, pending)

    async def release(self) -> None:
        """Write the value if it has changed, and give the lock back; see
        :meth:`towpath.WriteGuard.release`."""
        hold = self._hold
        try:
            await self.commit()
            if self._is_recovered:  # and there was never anything to write
                self._recovered(await self._locks.wait(hold.session, recovered, CALL_TIMEOUT_S, hold.number))
                return
        except BaseException:
            with contextlib.suppress(TowpathError):
                self.abandon()
            raise
        self.abandon()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: Kind, error: Error, trace: Trace) -> None:
        if self._is_released:
            return
        if error is None:
            await self.release()
        else:
            with contextlib.suppress(TowpathError):
                self.abandon()


class AsyncGuarded(Generic[T]):
    """A value that is to be had only through a guard; see :class:`towpath.Guarded`.

    ``async with guarded as guard:`` is the same as ``async with await guarded.write() as guard:``.
    """

    def __init__(self, locks: AsyncLocks, terms: Terms[T]) -> None:
        self.name = terms.name
        self._locks = locks
        self._terms = terms
        self._entered: AsyncEntered[AsyncWriteGuard[T]] = AsyncEntered()

    async def write(self, timeout: float | None = None) -> AsyncWriteGuard[T]:
        """Take the lock exclusively, with its value; see :meth:`towpath.Guarded.write`."""
        return AsyncWriteGuard(self._locks, self._terms, await self._acquire(timeout, Mode.EXCLUSIVE))

    async def read(self, timeout: float | None = None) -> AsyncReadGuard[T]:
        """Take the lock together with others that read; see :meth:`towpath.Guarded.read`."""
        return AsyncReadGuard(self._terms, await self._acquire(timeout, Mode.SHARED))

    async def compare_and_set(self, value: T, *, written_by: int, timeout: float | None = None) -> int:
        """Set the value if nobody has written meanwhile; see :meth:`towpath.Guarded.compare_and_set`."""
        async with await self.write(timeout) as guard:
            check_written_by(guard, written_by)
            guard.value = value
            await guard.commit()
            return guard.written_by

    async def _acquire(self, timeout: float | None, mode: Mode) -> Hold:
        locks = self._locks
        make = self._terms.acquiring(locks.owner(), timeout, mode)
        session = locks.session()
        return session.hold(await locks.wait(session, make, timeout))

    async def __aenter__(self) -> AsyncWriteGuard[T]:
        return self._entered.push(await self.write())

    async def __aexit__(self, kind: Kind, error: Error, trace: Trace) -> None:
        await self._entered.pop().__aexit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<towpath.aio.AsyncGuarded {self.name}>"

    try_write = attempt_async(write)
    try_read = attempt_async(read)
    try_compare_and_set = attempt_async(compare_and_set)
