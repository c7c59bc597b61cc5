"""Locks that own their data, waiting in the caller's thread."""

from __future__ import annotations

import contextlib
from typing import Generic, Self, TypeVar

from towpath.errors import TowpathError
from towpath.locks.blocking import Locks
from towpath.locks.entering import Entered, Error, GuardContext, Kind, Trace
from towpath.locks.guarded import Terms, Valued, WriteGuardBase, check_written_by, recovered
from towpath.locks.holds import Hold
from towpath.locks.model import Mode
from towpath.result import attempt
from towpath.waiting import CALL_TIMEOUT_S

T = TypeVar("T")


class ReadGuard(Valued[T], GuardContext):
    """The value, together with others that read it; released when it is closed."""


class WriteGuard(WriteGuardBase[T]):
    """The value, alone. What it has become is written back when the guard is closed, unless the block is left
    by an exception."""

    def __init__(self, locks: Locks, terms: Terms[T], hold: Hold) -> None:
        super().__init__(terms, hold)
        self._locks = locks

    def commit(self) -> None:
        """Write the value now, and hold on: whoever comes after a holder that dies later has it.

        Raises:
            InvalidArgument: the codec cannot encode it.
            MessageTooLarge, LimitExceeded, QuotaExceeded: it is too large; nothing was written.
            NotHeld, LockRevoked, SessionLost: the lock was lost; nothing was written.
            Timeout: the daemon did not answer; it is not known whether it was written.
        """
        payload = self._changed()
        if payload is not None:
            hold = self._hold
            pending = self._locks.wait(hold.session, self._writing(payload), CALL_TIMEOUT_S, hold.number)
            self._written(payload, pending)

    def release(self) -> None:
        """Write the value if it has changed, and give the lock back. Errors as for :meth:`commit`; the lock
        is given back all the same."""
        hold = self._hold
        try:
            self.commit()
            if self._is_recovered:  # and there was never anything to write
                self._recovered(self._locks.wait(hold.session, recovered, CALL_TIMEOUT_S, hold.number))
                return
        except BaseException:
            with contextlib.suppress(TowpathError):
                self.abandon()
            raise
        self.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Kind, error: Error, trace: Trace) -> None:
        if self._is_released:
            return
        if error is None:
            self.release()
        else:
            with contextlib.suppress(TowpathError):
                self.abandon()


class Guarded(Generic[T]):
    """A value that is to be had only through a guard; asks nobody until it is used.

    ``with guarded as guard:`` is the same as ``with guarded.write() as guard:``.

    Attributes:
        name: the lock's.
    """

    def __init__(self, locks: Locks, terms: Terms[T]) -> None:
        self.name = terms.name
        self._locks = locks
        self._terms = terms
        self._entered: Entered[WriteGuard[T]] = Entered()

    def write(self, timeout: float | None = None) -> WriteGuard[T]:
        """Take the lock exclusively, with its value.

        Args:
            timeout: seconds; None waits for ever, 0 does not wait.

        Raises:
            As :meth:`towpath.Lock.acquire`. A poisoned lock is had as any other: ``guard.is_poisoned``.
        """
        return WriteGuard(self._locks, self._terms, self._acquire(timeout, Mode.EXCLUSIVE))

    def read(self, timeout: float | None = None) -> ReadGuard[T]:
        """Take the lock together with others that read, with its value. Arguments and errors as for
        :meth:`write`."""
        return ReadGuard(self._terms, self._acquire(timeout, Mode.SHARED))

    def compare_and_set(self, value: T, *, written_by: int, timeout: float | None = None) -> int:
        """Set the value if it is still the one that was written by a grant, as ``guard.written_by`` told.

        Returns:
            The token by which it is written now.

        Raises:
            VersionConflict: somebody has written meanwhile; nothing was changed.
            As for :meth:`write` and :meth:`WriteGuard.commit`.
        """
        with self.write(timeout) as guard:
            check_written_by(guard, written_by)
            guard.value = value
            guard.commit()
            return guard.written_by

    def _acquire(self, timeout: float | None, mode: Mode) -> Hold:
        locks = self._locks
        make = self._terms.acquiring(locks.owner(), timeout, mode)
        session = locks.session()
        return session.hold(locks.wait(session, make, timeout))

    def __enter__(self) -> WriteGuard[T]:
        return self._entered.push(self.write())

    def __exit__(self, kind: Kind, error: Error, trace: Trace) -> None:
        self._entered.pop().__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<towpath.Guarded {self.name}>"

    try_write = attempt(write)
    try_read = attempt(read)
    try_compare_and_set = attempt(compare_and_set)
