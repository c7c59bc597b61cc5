"""A journal in memory: for a daemon that shall leave nothing behind, and for tests. It survives nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class MemoryJournal:
    """Implements ``ports.Journal`` with a list."""

    def __init__(self) -> None:
        self._records: list[bytes] = []
        self._dropped = 0  # records before the first in the list
        self._snapshot: tuple[int, bytes] | None = None

    @property
    def last_position(self) -> int:
        """The position of the last record ever appended; 0 before the first."""
        return self._dropped + len(self._records)

    def append(self, records: Sequence[bytes]) -> int:
        """Keep records; see ``ports.Journal``."""
        assert records
        first = self.last_position + 1
        self._records.extend(records)
        return first

    def append_unsynced(self, records: Sequence[bytes]) -> int:
        """The same."""
        return self.append(records)

    def is_full(self, error: Exception) -> bool:
        """It is never full."""
        return False

    def has_room(self) -> bool:
        """It always has."""
        return True

    def replay(self, after: int) -> Iterator[tuple[int, bytes]]:
        """Yield position and record; see ``ports.Journal``."""
        start = max(after - self._dropped, 0)
        yield from enumerate(self._records[start:], self._dropped + start + 1)

    def save_snapshot(self, position: int, snapshot: bytes) -> None:
        """Keep a snapshot; see ``ports.Journal``."""
        assert position <= self.last_position
        del self._records[: max(position - self._dropped, 0)]
        self._dropped = max(position, self._dropped)
        self._snapshot = position, snapshot

    def load_snapshot(self) -> tuple[int, bytes] | None:
        """Return the latest snapshot; see ``ports.Journal``."""
        return self._snapshot

    def close(self) -> None:
        """Do nothing: there is nothing to give up."""
