"""Latches: waiting until so many things have been done, once. For both clients.

A latch opens when it has been counted down as often as it is for, and stays open. It is forgotten when nobody
waits at it and the sessions of all that came to it have ended.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from towpath.errors import TowpathError
from towpath.locks import requests
from towpath.locks.pending import Pending
from towpath.locks.requests import Standing
from towpath.names import check_name
from towpath.result import attempt, attempt_async
from towpath.waiting import CALL_TIMEOUT_S

if TYPE_CHECKING:
    from towpath.locks.aio import AsyncLocks
    from towpath.locks.blocking import Locks


def _standing(pending: Pending) -> Standing:
    outcome = pending.outcome
    if isinstance(outcome, Standing):
        return outcome
    assert isinstance(outcome, TowpathError)
    raise outcome


class Latch:
    """Opens once, when it has been counted down.

    Args:
        count: how often; everybody must say the same, 1 to 65,536.
    """

    def __init__(self, locks: Locks, name: str, count: int) -> None:
        self.name = check_name(name, "a latch's name")
        self.count = count
        self._locks = locks

    def count_down(self) -> bool:
        """Count once, and do not wait. Returns whether the latch is open now.

        Raises:
            Timeout: the daemon did not answer; it may have been counted.
            LockConflict: others say another count, or it is a barrier.
            LimitExceeded, SessionLost, InvalidArgument.
        """
        return self._come(CALL_TIMEOUT_S, is_counted=True, is_waiting=False).is_open

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it is open, without counting.

        Args:
            timeout: seconds; None waits for ever, 0 does not wait.

        Raises:
            Timeout, or LockHeld where it was not to wait: it is not open.
            As for :meth:`count_down`.
        """
        self._come(timeout, is_counted=False, is_waiting=True)

    def arrive(self, timeout: float | None = None) -> int:
        """Count once, and wait until it is open. Returns which of those that counted this was, from 0; 0 also
        when it was open already. Errors as for :meth:`wait`; what was counted stays counted."""
        return self._come(timeout, is_counted=True, is_waiting=True).place

    def _come(self, timeout: float | None, *, is_counted: bool, is_waiting: bool) -> Standing:
        locks = self._locks
        call = requests.come_to_latch(
            locks.owner(), self.name, self.count, timeout, is_counted=is_counted, is_waiting=is_waiting
        )
        make = partial(requests.addressed, call)
        return _standing(locks.wait(locks.session(), make, timeout, is_remembered=True))

    try_count_down = attempt(count_down)
    try_wait = attempt(wait)
    try_arrive = attempt(arrive)


class AsyncLatch:
    """Opens once, when it has been counted down; see :class:`towpath.Latch`."""

    def __init__(self, locks: AsyncLocks, name: str, count: int) -> None:
        self.name = check_name(name, "a latch's name")
        self.count = count
        self._locks = locks

    async def count_down(self) -> bool:
        """Count once, and do not wait; see :meth:`towpath.Latch.count_down`."""
        return (await self._come(CALL_TIMEOUT_S, is_counted=True, is_waiting=False)).is_open

    async def wait(self, timeout: float | None = None) -> None:
        """Wait until it is open, without counting; see :meth:`towpath.Latch.wait`."""
        await self._come(timeout, is_counted=False, is_waiting=True)

    async def arrive(self, timeout: float | None = None) -> int:
        """Count once, and wait until it is open; see :meth:`towpath.Latch.arrive`."""
        return (await self._come(timeout, is_counted=True, is_waiting=True)).place

    async def _come(self, timeout: float | None, *, is_counted: bool, is_waiting: bool) -> Standing:
        locks = self._locks
        call = requests.come_to_latch(
            locks.owner(), self.name, self.count, timeout, is_counted=is_counted, is_waiting=is_waiting
        )
        make = partial(requests.addressed, call)
        return _standing(await locks.wait(locks.session(), make, timeout, is_remembered=True))

    try_count_down = attempt_async(count_down)
    try_wait = attempt_async(wait)
    try_arrive = attempt_async(arrive)
