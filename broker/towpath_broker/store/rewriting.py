"""Writing a store's file anew: to give back the room that it does not use, and from an earlier version.

Theory of operation
    The new file is made beside the old one and takes its name when it is whole and on disk, so that a crash
    leaves one or the other. The old one is brought out of WAL mode before, which nobody but its only user can
    do: so there is no log that belongs to a file of that name and not to the new one.

    Version 1 numbered parcels as they came, whatever their channel, and found them by two indexes; queues
    likewise. Parcels are copied one by one, packed as they are.

Invariants
    Whoever calls has the store's ``Lock``. At most what is stored is written once more: there must be room.

Source: https://www.sqlite.org/lang_vacuum.html#vacuuminto
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from towpath.errors import InvalidConfiguration, Unavailable
from towpath_broker.core.commands import Kind
from towpath_broker.host.syncing import sync_directory
from towpath_broker.log import log

from .database import (
    BUSY_S,
    PAGE_BYTES,
    SCHEMA_VERSION,
    Lock,
    add_columns,
    check_version,
    explained,
    make_tables,
)
from .numbers import CHANNEL_MAX, span


def compact(path: Path) -> tuple[int, int]:
    """Give back to the disk what a store's file does not use; return its bytes before and after.

    Raises:
        InvalidConfiguration: there is no store there, or a daemon has it.
        Unavailable: somebody reads it.
        StoreFull: there is no room for what is stored once more. The store is as it was.
        StoreDamaged: SQLite cannot make sense of it.
    """
    if not path.is_file():
        raise InvalidConfiguration(
            f"there is no store at {path}", hint="name the daemon's state directory: --state-dir"
        )
    lock = Lock(path)
    try:
        before = path.stat().st_size
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)) as database:
            version = check_version(database, path)
        if version == 1:
            bring_up_to_date(path)
        else:
            with _rewritten(path) as (database, new):
                if version == 2:
                    add_columns(database)
                database.execute("VACUUM INTO ?", (str(new),))
        return before, path.stat().st_size
    except sqlite3.DatabaseError as error:
        raise explained(error, path) from error
    finally:
        lock.release()


def bring_up_to_date(path: Path) -> None:
    """Rewrite a store of version 1.

    Raises:
        Unavailable, StoreFull, StoreDamaged: as for :func:`compact`.
    """
    with _rewritten(path) as (database, new):
        _copy_version_1(database, new, path)
    log("store.upgraded", path=str(path), version=SCHEMA_VERSION)


@contextlib.contextmanager
def _rewritten(path: Path) -> Iterator[tuple[sqlite3.Connection, Path]]:
    """The old file, opened, and where the new one is to be made, which takes its place then."""
    new = path.with_name(f"{path.name}-new")
    database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    try:
        new.unlink(missing_ok=True)  # of an earlier try that was cut short
        _leave_wal(database, path)
        os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        yield database, new
        database.close()
        _sync(new)
        os.replace(new, path)
        sync_directory(path.parent)
    except sqlite3.DatabaseError as error:
        raise explained(error, path) from error
    finally:
        database.close()
        new.unlink(missing_ok=True)


def _leave_wal(database: sqlite3.Connection, path: Path) -> None:
    try:
        (mode,) = database.execute("PRAGMA journal_mode=DELETE").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        mode = "busy"
    if mode != "delete":
        raise Unavailable(f"the store {path} is being read", hint="try again when that is over")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _copy_version_1(old: sqlite3.Connection, new: Path, path: Path) -> None:
    """Copy what is in a store of version 1, but for what is left of channels that were dropped."""
    (last,) = old.execute("SELECT coalesce(max(id), 0) FROM channel").fetchone()
    if last > CHANNEL_MAX:
        raise InvalidConfiguration(
            f"{path} has numbered {last} channels; at most {CHANNEL_MAX} can be brought up to date",
            hint="run the version of Towpath that wrote it",
        )
    with contextlib.closing(sqlite3.connect(new, isolation_level=None)) as database:
        # It is thrown away if this does not come to its end.
        for pragma in (f"page_size={PAGE_BYTES}", "journal_mode=OFF", "synchronous=OFF"):
            database.execute(f"PRAGMA {pragma}")
        make_tables(database)
        database.execute("ATTACH ? AS old", (str(path),))
        database.execute("BEGIN")
        database.execute(
            "INSERT INTO channel SELECT id, name, declared_at_ns, kind,"
            " (SELECT count(*) + 1 FROM old.parcel AS p WHERE p.channel = c.id),"
            " oldest_seq, next_seq, messages, content_bytes FROM old.channel AS c"
        )
        for (number,) in database.execute("SELECT id FROM channel WHERE kind = ?", (Kind.TOPIC,)).fetchall():
            _copy_topic(database, number)
        here = "WHERE channel IN (SELECT id FROM main.channel)"
        database.execute(
            "INSERT INTO queued SELECT channel, deliver_at_ns, iif(deliver_at_ns, 0, priority), first_seq,"
            f" priority, count, content_bytes, data FROM old.queued {here}"
        )
        database.execute(
            "INSERT INTO settled SELECT channel, first_seq, settled FROM old.queued"
            f" {here} AND settled <> x''"
        )
        database.execute(f"INSERT INTO attempt SELECT *, 0 FROM old.attempt {here}")
        for table in ("taken", "place", "value", "message_id"):
            database.execute(f"INSERT INTO {table} SELECT * FROM old.{table} {here}")
        database.execute("INSERT INTO committed SELECT * FROM old.committed")
        database.execute("COMMIT")


def _copy_topic(database: sqlite3.Connection, number: int) -> None:
    first, _ = span(number)
    end_bytes = 0
    heads = database.execute(
        "SELECT id, content_bytes FROM old.parcel INDEXED BY parcel_by_seq WHERE channel = ?"
        " ORDER BY first_seq",
        (number,),
    ).fetchall()
    for ordinal, (parcel, content_bytes) in enumerate(heads, 1):
        end_bytes += content_bytes
        database.execute(
            "INSERT INTO parcel SELECT ?, first_seq, count, content_bytes, last_time_ns, until_ns, ?, x'',"
            " data, 0, 0, 0 FROM old.parcel WHERE id = ?",
            (first + ordinal, end_bytes, parcel),
        )
