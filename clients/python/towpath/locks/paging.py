"""Locks taken in shared memory, waiting in the caller's thread; see ``in_page``.

Who waits in the page holds nothing, and wants the lock alone. If the lock is taken back meanwhile, the daemon
may have its request, under the number that it had in the page: asking again with that number tells.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from towpath import _ring
from towpath.errors import LockHeld, Timeout, TowpathError
from towpath.locks import requests
from towpath.locks.blocking import Guard, Lock, Locks
from towpath.locks.in_page import InPage, LockInPage
from towpath.locks.requests import Wanted
from towpath.locks.session import LockSession

if TYPE_CHECKING:
    from towpath.sync.client import LocalClient

FOREVER: Final = (1 << 64) - 1


class PageGuard(InPage, Guard):
    """The guard of a lock that was taken in the page; see :class:`towpath.Guard`."""

    __slots__ = ()
    page_lock: PageLock

    @property
    def _locks(self) -> Locks:  # type: ignore[override]
        return self.page_lock._locks

    def _exit_slow(self, kind: Any, error: Any, trace: Any) -> None:
        Guard.__exit__(self, kind, error, trace)

    def upgrade(self, timeout: float | None = None) -> None:
        self._to_core()
        Guard.upgrade(self, timeout)

    def downgrade(self) -> None:
        self._to_core()
        Guard.downgrade(self)

    def wait(self, condition: str = "", timeout: float | None = None) -> bool:
        self._to_core()
        return Guard.wait(self, condition, timeout)

    def notify(self, condition: str = "", count: int = 1) -> int:
        self._to_core()
        return Guard.notify(self, condition, count)


_QuickGuard: Final = _ring.lock_guard_type(PageGuard)


@_ring.lock_own_acquire
class PageLock(LockInPage[PageGuard], Lock):
    """A lock that is taken in shared memory where that is possible; see :class:`towpath.Lock`."""

    def __init__(self, locks: Locks, name: str, client: LocalClient) -> None:
        Lock.__init__(self, locks, name)
        LockInPage.__init__(self, name, _QuickGuard)
        self._client = client

    def _acquire_slow(self, timeout: float | None = None, *, shared: bool = False) -> Guard:
        requests.timeout_ms(timeout)  # refuses what is none
        guard = self._from_page(timeout, bool(shared))
        if guard is not None:
            return guard
        return Lock.acquire(self, timeout, shared=shared)

    def _enter_slow(self, guard: Guard | None) -> Guard:
        return self._entered.push(self.acquire() if guard is None else guard)

    def _exit_slow(self, kind: Any, error: Any, trace: Any) -> None:
        Lock.__exit__(self, kind, error, trace)

    def _from_page(self, timeout: float | None, is_shared: bool) -> Guard | None:
        """Take it in the page; None: the daemon is to be asked.

        Raises:
            LockHeld, Timeout, and what a signal's handler raises.
        """
        session, owner = self._locks.session(), self._locks.owner()
        if not self.is_used_again():
            return None
        for _ in range(2):
            result, guard = self.take(session, owner, timeout, is_shared)
            if guard is not None:
                return guard
            if result == _ring.LOCK_HELD:
                is_core = is_shared or session.has_holds(owner)
                return None if is_core else self._wait(session, timeout)
            if result != _ring.LOCK_SHUT or not self._join(session, owner):
                return None
        return None

    def _join(self, session: LockSession, owner: int) -> bool:
        """Ask for the lock to be given out; whether it is."""
        call = self.request(session, owner)
        if call is None:
            return False
        try:
            place, memory = self._client._lock_page(call)
        except TowpathError as error:
            self.refused(error)
            return False
        return self.given_out(session, owner, place, memory)

    def _wait(self, session: LockSession, timeout: float | None) -> Guard | None:
        deadline_ns = FOREVER if timeout is None else time.monotonic_ns() + int(timeout * 1e9)
        number = session.next_number()
        guard: Guard | None
        try:
            result, guard = self.wait_page(number, deadline_ns)
        except BaseException:
            session.withdraw(number)
            raise
        if guard is not None:
            return guard
        if result == _ring.LOCK_OVER:
            raise Timeout(f"{self.name!r} was not free in time")
        if result == _ring.LOCK_CLOSED:
            return None
        left_s = None if timeout is None else max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
        call = requests.acquire(self._locks.owner(), [Wanted(self.name)], timeout_s=left_s)
        try:
            pending = self._locks.wait(session, partial(requests.addressed, call), left_s, number)
            return Guard(self._locks, session.hold(pending))
        except LockHeld:
            raise Timeout(f"{self.name!r} was not free in time") from None
        except BaseException:
            session.release_number(number)  # a grant may be on its way
            raise
