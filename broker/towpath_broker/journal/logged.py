"""The journal of the locks: a log for the records, beside the SQLite file that has the snapshot.

Theory of operation
    Records of locks come by ten thousands a second, and most need only survive this process. So they go to a
    log (``log``); ``append`` syncs it, and with the new records all before them. The snapshot is kept in the
    SQLite file, as other journals keep it, and when it is on the disk the log is cleared. A process that
    ends in between leaves records that the snapshot covers: they are passed over by their positions.

    The SQLite file keeps others out, and tells the version. A journal whose records are in the file itself,
    as they once were, is read, and goes on in the log; its first snapshot drops them.

    The log is ``FILE-log``. Records are JSON in it; ``strings`` shows them.

Invariants
    Positions are contiguous: first the records of the file, if it has some, then those of the log.

Not here: what records mean (``core.locks.codec``), when there is a snapshot (``lock_engine``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from .log import Log, LogFull
from .sqlite import SqliteJournal


class LoggedJournal(SqliteJournal):
    """Implements ``ports.Journal`` in a file and a log beside.

    Args:
        path: the file; made if it is not there, and so are its directory and the log.

    Raises:
        InvalidConfiguration: another daemon has the journal, it is of a later version, or the file is
            something else.
        OSError, sqlite3.Error: the host refuses.
    """

    version: ClassVar[int] = 2
    """Who knows only 1 would not see the log."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        try:
            self._log = Log(Path(f"{self._path}-log"))
            if self._log.last_position < self._last:
                self._log.clear()  # all that is left of it is covered
            self._last = max(self._last, self._log.last_position)
        except BaseException:
            super().close()
            raise

    def append(self, records: Sequence[bytes]) -> int:
        """Keep records, and what was appended before; see ``ports.Journal``."""
        first = self.append_unsynced(records)
        self._log.sync()
        return first

    def append_unsynced(self, records: Sequence[bytes]) -> int:
        """Give records to the kernel; see ``ports.Journal``."""
        first = self._last + 1
        self._log.append(records, first)
        self._last += len(records)
        return first

    def is_full(self, error: Exception) -> bool:
        """Whether there was no room; see ``ports.Journal``."""
        return isinstance(error, LogFull) or super().is_full(error)

    def replay(self, after: int) -> Iterator[tuple[int, bytes]]:
        """Yield position and record; see ``ports.Journal``."""
        yield from super().replay(after)
        yield from self._log.read(max(after, self._covered))

    def save_snapshot(self, position: int, snapshot: bytes) -> None:
        """Keep a snapshot; see ``ports.Journal``. Records that it covers are dropped if it covers all."""
        super().save_snapshot(position, snapshot)
        if position == self._last:
            self._log.clear()

    def close(self) -> None:
        """Close both, and give up the lock."""
        self._log.close()
        super().close()
