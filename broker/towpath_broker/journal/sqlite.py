"""The host's journal: one SQLite file.

Theory of operation
    One append is one transaction of a database in WAL mode with ``synchronous=FULL``: SQLite calls
    fdatasync(2) on the log before COMMIT returns, so records that were acknowledged survive a loss of
    power, and a transaction that was cut short has never been. ``locking_mode=EXCLUSIVE`` keeps a second
    daemon out from the moment of opening until close or death: the kernel drops the lock with the process.

    Records are JSON and can be read while no daemon runs: ``sqlite3 journal.sqlite 'select * from record'``.

Invariants
    Positions are contiguous: the first record follows the snapshot, each other record the one before.
    The file is for its owner only (0600, in a directory made 0700).

Not here: what records mean (``core.codec``).

Sources: https://www.sqlite.org/wal.html, https://www.sqlite.org/pragma.html#pragma_synchronous
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Final

from towpath.errors import InvalidConfiguration
from towpath_broker.host import room
from towpath_broker.host.syncing import sync_directory

APPLICATION_ID: Final = 0x546F7770  # "Towp": file(1) and we know our files by it
SCHEMA_VERSION: Final = 1

_SCHEMA: Final = """
CREATE TABLE record (
    position INTEGER PRIMARY KEY,
    data TEXT NOT NULL
) STRICT;
CREATE TABLE snapshot (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    position INTEGER NOT NULL,
    data BLOB NOT NULL
) STRICT;
"""

_INSERT: Final = "INSERT INTO record (position, data) VALUES (?, ?)"
_INSERTS: Final = tuple(_INSERT + ", (?, ?)" * more for more in range(8))
"""Of one record, of two, ..."""


class SqliteJournal:
    """Implements ``ports.Journal`` in a file.

    Args:
        path: the file; made if it is not there, and so is its directory.

    Raises:
        InvalidConfiguration: another daemon has the journal, it is of a later version, or the file is
            something else.
        OSError, sqlite3.Error: the host refuses.
    """

    version: ClassVar[int] = SCHEMA_VERSION

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._last = self._covered = 0  # covered by the snapshot
        missing = [each for each in self._path.parents if not each.exists()]
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in missing:
            sync_directory(directory.parent)
        # Made by us first, so that it is never there with wider permissions than it shall have.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        sync_directory(self._path.parent)
        # The engine calls from a worker thread, one call at a time.
        self._database = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise self._explained(error) from error
        except BaseException:
            self._database.close()
            raise

    @property
    def last_position(self) -> int:
        """The position of the last record ever appended; 0 before the first."""
        return self._last

    def append(self, records: Sequence[bytes]) -> int:
        """Keep records in one transaction; see ``ports.Journal``."""
        assert records
        first = self._last + 1
        if len(records) <= len(_INSERTS):  # one statement is a transaction of its own
            values: list[int | str] = []
            for position, record in enumerate(records, first):
                values += (position, record.decode())
            self._database.execute(_INSERTS[len(records) - 1], values)
        else:
            with _Transaction(self._database):
                self._database.executemany(
                    _INSERT, ((position, record.decode()) for position, record in enumerate(records, first))
                )
        self._last += len(records)
        return first

    def append_unsynced(self, records: Sequence[bytes]) -> int:
        """The same; see ``ports.Journal``."""
        return self.append(records)

    def is_full(self, error: Exception) -> bool:
        """Whether there was no room; see ``ports.Journal``."""
        return isinstance(error, sqlite3.DatabaseError) and room.why_full(error, self._path) is not None

    def has_room(self) -> bool:
        """Try whether there is room; see ``ports.Journal``."""
        return room.why_not_written(self._path) is None

    def replay(self, after: int) -> Iterator[tuple[int, bytes]]:
        """Yield position and record; see ``ports.Journal``."""
        rows = self._database.execute(
            "SELECT position, data FROM record WHERE position > ? ORDER BY position", (after,)
        )
        for position, data in rows:
            yield position, data.encode()

    def save_snapshot(self, position: int, snapshot: bytes) -> None:
        """Keep a snapshot and drop what it covers, in one transaction; see ``ports.Journal``."""
        assert position <= self._last
        with _Transaction(self._database):
            self._database.execute(
                "INSERT OR REPLACE INTO snapshot (id, position, data) VALUES (1, ?, ?)", (position, snapshot)
            )
            self._database.execute("DELETE FROM record WHERE position <= ?", (position,))
        self._covered = position

    def load_snapshot(self) -> tuple[int, bytes] | None:
        """Return the latest snapshot; see ``ports.Journal``."""
        row: tuple[int, bytes] | None = self._database.execute(
            "SELECT position, data FROM snapshot WHERE id = 1"
        ).fetchone()
        return row

    def close(self) -> None:
        """Close the file and give up its lock."""
        self._database.close()

    def _open(self) -> None:
        database = self._database
        database.execute("PRAGMA locking_mode=EXCLUSIVE")
        # The lock is taken with the first transaction, so that nothing below is done on another's journal.
        with _Transaction(database, "BEGIN EXCLUSIVE"):
            application = _pragma(database, "application_id")
            version = _pragma(database, "user_version")
            is_empty = database.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)
            if not is_empty and application != APPLICATION_ID:
                raise InvalidConfiguration(
                    f"{self._path} is a database, but not a journal of Towpath", hint=_ELSEWHERE
                )
            if version > self.version:
                raise InvalidConfiguration(
                    f"the journal {self._path} is of version {version}; this Towpath reads {self.version}",
                    hint="run the version of Towpath that wrote it, or a later one",
                )
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        if is_empty:
            with _Transaction(database):
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    database.execute(statement)
                database.execute(f"PRAGMA application_id={APPLICATION_ID}")
        if version != self.version:
            database.execute(f"PRAGMA user_version={self.version}")
        (last,) = database.execute("SELECT max(position) FROM record").fetchone()
        (covered,) = database.execute("SELECT max(position) FROM snapshot").fetchone()
        self._covered = covered or 0
        self._last = max(last or 0, self._covered)

    def _explained(self, error: sqlite3.DatabaseError) -> Exception:
        if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return InvalidConfiguration(
                f"the journal {self._path} is in use by another daemon",
                hint="stop that one, or give this one another state_dir",
            )
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_NOTADB:
            return InvalidConfiguration(f"{self._path} is not a journal of Towpath", hint=_ELSEWHERE)
        return error


_ELSEWHERE: Final = "move the file away, or give the daemon another state_dir"


class _Transaction:
    """BEGIN and COMMIT around a block; ROLLBACK where it raises."""

    __slots__ = ("_begin", "_database")

    def __init__(self, database: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> None:
        self._database = database
        self._begin = begin

    def __enter__(self) -> None:
        self._database.execute(self._begin)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._database.execute("COMMIT")
        finally:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")


def _pragma(database: sqlite3.Connection, name: str) -> int:
    (value,) = database.execute(f"PRAGMA {name}").fetchone()
    assert isinstance(value, int)
    return value
