"""What the engine needs from outside: a clock, a journal, somewhere to emit effects.

Ports are small so that each has at least two honest implementations: the journal in memory and in SQLite, the
clock of the host and one that a test moves. One conformance suite runs on every journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from .core.data import rows
from .core.effects import Effect
from .core.locks.commands import LockCommand
from .core.locks.effects import LockEffect
from .core.locks.machine import LockMachine

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

    def append_unsynced(self, records: Sequence[bytes]) -> int:
        """The same, but it need only survive what the kernel survives: the end of this process, not a loss of
        power. A later :meth:`append` makes it as safe as itself. Does not wait for the disk.
        """

    def is_full(self, error: Exception) -> bool:
        """Whether an append, or a snapshot, failed with this for want of room: then nothing of it was kept,
        and the journal goes on."""

    def has_room(self) -> bool:
        """Try whether there is room again. Waits for the disk."""

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


class Store(Protocol):
    """Where the data plane keeps what is in queues, states and durable topics.

    ``commit`` is called from one thread at a time; ``read_*`` and ``find_*`` from other threads, while a
    commit runs too: they see whole commits. What a method returns is the caller's. Failures of the host other
    than a full disk raise what the host raises (``OSError``, ``sqlite3.Error``), and end the core.
    """

    def load(self) -> Sequence[rows.StoredChannel]:
        """Return all channels that are stored; called once, first.

        Raises:
            StoreDamaged, InvalidConfiguration: it cannot be used, or is of a later version.
        """

    def commit(self, written: Sequence[rows.Row]) -> None:
        """Carry out rows in order, all or none.

        When this returns they survive a loss of power.

        Raises:
            StoreFull: there was no room for them; none is kept, and the store goes on.
        """

    def prepare(self) -> None:
        """Do what can be done of the next commit before it is known. There may be none for long."""

    def read_parcels(self, channel: str, first_seq: int, bytes_max: int) -> Sequence[rows.PackedParcel]:
        """Return a durable topic's parcels from the one that has ``first_seq``, or the next, on: about
        ``bytes_max`` bytes of them, and at least one where there is one."""

    def read_heads(self, channel: str, first_seq: int, count_max: int) -> Sequence[rows.ParcelHead]:
        """Return what a durable topic's parcels are that begin at ``first_seq`` or later, by rising seq."""

    def find_time(self, channel: str, time_ns: int) -> int | None:
        """Return the seq of a durable topic's first message that was published at a time or later; None:
        there is none."""

    def read_queue(
        self, channel: str, priority: int, first_seq: int, count_max: int, bytes_max: int
    ) -> Sequence[rows.StoredParcel]:
        """Return a queue's parcels with ``deliver_at_ns`` 0, of one priority, which begin at ``first_seq`` or
        later, by rising seq: at most ``count_max``, about ``bytes_max`` bytes, at least one if there is."""

    def read_due(
        self, channel: str, after: tuple[int, int], until_ns: int, count_max: int, bytes_max: int
    ) -> tuple[Sequence[rows.StoredParcel], int]:
        """Return a queue's parcels with (deliver_at_ns, first_seq) above ``after`` and deliver_at_ns at most
        ``until_ns``, in that order; and the deliver_at_ns of the first that is not returned, 0: none."""

    def read_value(self, channel: str) -> rows.StoredValue:
        """Return a state's value."""

    def read_ids(self, channel: str, since_ns: int) -> Mapping[str, tuple[int, int]]:
        """Return, by message id, seq and when it was remembered, of those remembered since; oldest first."""

    def read_transactions(self, since_ns: int) -> Sequence[rows.StoredTransaction]:
        """Return the transactions that were committed since a time, oldest first."""

    def close(self) -> None:
        """Give up the store; closing twice is fine."""


class LockRunner(Protocol):
    """Who runs the lock machine; see ``lock_engine.LockEngine``."""

    def submit(self, command: LockCommand, /) -> None: ...
    def try_now(self, commands: Sequence[LockCommand], /) -> Sequence[LockEffect] | None: ...
    def look(self, what: Callable[[LockMachine], None], /, *, is_patient: bool = False) -> None: ...
    def is_at_disk(self) -> bool: ...
    def reading(self, is_begun: bool, /) -> None: ...
