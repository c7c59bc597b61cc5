"""Leases of lock sessions, with the clock and a timer: sessions are told as they expire.

Not here: how long each lasts (``core.locks.leases``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from towpath_broker.core.locks.leases import Leases


class TimedLeases:
    """See :class:`towpath_broker.core.locks.leases.Leases`, whose methods these are.

    Args:
        expired: told each session whose lease has run out; may close it, or others.
    """

    def __init__(self, expired: Callable[[int], object]) -> None:
        self._leases = Leases()
        self._expired = expired
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False

    def recovered(self, session: int, lease_ms: int, grace_ms: int) -> None:
        """A session is known from the journal; nobody keeps it yet."""
        self._leases.recovered(session, lease_ms, grace_ms, time.monotonic_ns())
        self._set_timer()

    def open(self, session: int, lease_ms: int, *, expires_connected: bool) -> None:
        """A session is kept by somebody."""
        self._leases.open(session, lease_ms, time.monotonic_ns(), expires_connected=expires_connected)
        self._set_timer()

    def heard(self, session: int) -> None:
        """Whoever keeps it is alive."""
        self._leases.heard(session, time.monotonic_ns())

    def disconnected(self, session: int) -> bool:
        """Nobody keeps it. Returns whether it has a lease that goes on."""
        goes_on = self._leases.disconnected(session, time.monotonic_ns())
        if goes_on:
            self._set_timer()
        return goes_on

    def close(self, session: int) -> None:
        """There is no such session any more."""
        self._leases.close(session)

    def stop(self) -> None:
        """Nothing expires from now on."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_ns = self._leases.next_deadline_ns()
        if due_ns is not None and not self._is_over:
            delay_s = max(0.0, (due_ns - time.monotonic_ns()) / 1e9)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._expire)

    def _expire(self) -> None:
        self._timer = None
        for session in self._leases.take_expired(time.monotonic_ns()):
            self._expired(session)
        self._set_timer()
