"""What the engine needs from outside: a clock, a journal, somewhere to emit effects.

Ports are small so that each has at least two honest implementations: the journal in memory and in SQLite, the
clock of the host and one that a test moves. One conformance suite runs on every journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from .core.effects import Effect

Emit = Callable[[Effect], None]
"""Carries out one effect, at once and without waiting; called in order, from the engine's task."""


class Clock(Protocol):
    """Tells the time."""

    def now_ns(self) -> int:
        """Return nanoseconds since the epoch; may go back when the host's clock is set."""


class WallClock:
    """The host's clock, CLOCK_REALTIME of clock_gettime(2)."""

    def now_ns(self) -> int:
        """Return nanoseconds since the epoch."""
        return time.time_ns()


class Journal(Protocol):
    """The ordered log of the durable commands that were accepted, and the latest snapshot of what they led
    to.

    Positions are 1, 2, 3, ...; they go on after a snapshot and a restart, and none is given twice. Methods
    are called one at a time, from any thread. Failures of the host (a full disk) raise what the host raises
    (``OSError``, ``sqlite3.Error``): the daemon ends, and what was not acknowledged was not promised.
    """

    @property
    def last_position(self) -> int:
        """The position of the last record ever appended; 0 before the first."""

    def append(self, records: Sequence[bytes]) -> int:
        """Keep records, all or none.

        Args:
            records: at least one.

        Returns:
            The position of the first. When this returns, the records survive a loss of power.
        """

    def replay(self, after: int) -> Iterator[tuple[int, bytes]]:
        """Yield position and record of all that come after a position, in order."""

    def save_snapshot(self, position: int, snapshot: bytes) -> None:
        """Keep a snapshot in the place of the last, and drop the records that it covers.

        Args:
            position: that of the last record which the snapshot covers.
            snapshot: any bytes. When this returns, it survives a loss of power.
        """

    def load_snapshot(self) -> tuple[int, bytes] | None:
        """Return the latest snapshot and its position, or None."""

    def close(self) -> None:
        """Give up the journal; closing twice is fine. Nothing else may be called afterwards."""
