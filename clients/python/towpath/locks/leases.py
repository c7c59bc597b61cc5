"""The lease of a lock session from afar: until when what it holds is certain to be its own. Sans-I/O.

Theory of operation
    The daemon ends a session of which it has not heard for a lease. Each third of that the session says that
    it is there, and the daemon answers. The lease runs from when what was said arrived, and so at least from
    when it was said: by a clock of this host that goes on while the host sleeps. A tenth of the lease before
    it must have run out (``LEASE_MARGIN``), counted from the last that was answered, the session counts as
    lost; that is what a clock that goes wrong may use up.

Not here: who says it, and what follows when it has run out (``session``).
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from towpath.errors import InvalidArgument, NotSupported

LEASE_MS_DEFAULT: Final = 10_000
"""Of sessions from afar."""
LEASE_S_MIN: Final = 1
LEASE_S_MAX: Final = 3_600
LEASE_MARGIN: Final = 10
"""The part of a lease, one in so many, by which its end comes earlier here than at the daemon."""
BEATS_PER_LEASE: Final = 3
"""How often in a lease a session says that it is there."""


class Lease:
    """One session's.

    Args:
        lease_ms: how long it is.
    """

    def __init__(self, lease_ms: int) -> None:
        self._lease_ms = lease_ms
        self._opening_at_ns = 0
        self._over_at_ns = 0  # 0: the daemon has not been heard of yet
        self._beats: deque[int] = deque()
        self._next_beat_ns = 0

    @property
    def left_s(self) -> float:
        """How long it lasts still, if the daemon is not heard of any more."""
        over_at_ns = self._over_at_ns
        return (over_at_ns - _now_ns()) / 1e9 if over_at_ns else self._lease_ms / 1e3

    @property
    def is_over(self) -> bool:
        """Whether it may have run out, and had begun."""
        return bool(self._over_at_ns) and _now_ns() >= self._over_at_ns

    def opening(self) -> None:
        """The session is about to be opened, or taken up again."""
        self._opening_at_ns = _now_ns()

    def opened(self) -> None:
        """The daemon has answered that."""
        self._beats.clear()
        self._heard_at(self._opening_at_ns)

    def take_beat(self) -> bool:
        """Whether it is to be said now that the session is there; then it counts as said."""
        now_ns = _now_ns()
        if now_ns < self._next_beat_ns:
            return False
        self._next_beat_ns = now_ns + self._beat_ns
        self._beats.append(now_ns)
        return True

    def answered(self) -> None:
        """The daemon has answered the oldest of what was said so."""
        if self._beats:
            self._heard_at(self._beats.popleft())

    def broke(self) -> None:
        """What was said on the connection that there was is not answered any more."""
        self._beats.clear()

    def due_s(self, *, is_open: bool) -> float:
        """After how many seconds it is to be looked at again."""
        now_ns = _now_ns()
        due_ns = now_ns + self._beat_ns
        if is_open:
            due_ns = min(due_ns, self._next_beat_ns)
        if self._over_at_ns:
            due_ns = min(due_ns, self._over_at_ns)
        return max(0.0, (due_ns - now_ns) / 1e9)

    @property
    def _beat_ns(self) -> int:
        return self._lease_ms * 1_000_000 // BEATS_PER_LEASE

    def _heard_at(self, said_at_ns: int) -> None:
        """The daemon has heard something that was said then."""
        self._over_at_ns = said_at_ns + self._lease_ms * 1_000_000 * (LEASE_MARGIN - 1) // LEASE_MARGIN


def checked_lease_ms(lease_s: float, before_ms: int, *, is_open: bool) -> int:
    """Return a lease as it is told.

    Args:
        before_ms: what it is now; 0: the daemon is on this host.
        is_open: the client has a lock session already.

    Raises:
        NotSupported: on the daemon's own host there are no leases.
        InvalidArgument: it is out of range, or comes too late.
    """
    if not before_ms:
        raise NotSupported(
            "a lock session of the daemon's own host has no lease", hint="it lives as long as its process"
        )
    if not LEASE_S_MIN <= lease_s <= LEASE_S_MAX:
        raise InvalidArgument(f"a lease has {LEASE_S_MIN} to {LEASE_S_MAX} seconds, not {lease_s}")
    if is_open:
        raise InvalidArgument("the lock session is open already", hint="say it before the first lock is used")
    return round(lease_s * 1e3)


def _now_ns() -> int:
    """A clock that goes on while the host sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
