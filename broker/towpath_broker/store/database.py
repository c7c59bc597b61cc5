"""The store's file: its tables, how it is opened, and what SQLite's errors mean.

Theory of operation
    One file in WAL mode. ``synchronous=FULL`` has SQLite call fdatasync(2) on the log before COMMIT returns.
    Pages are of 16 KiB: messages come in batches, and a batch of 500 KiB then costs a third of what it costs
    in pages of 4 KiB, while a single small one costs the same (tests/bench has the figures). The log is
    brought into the file whenever it has ``WAL_PAGES`` pages, by the writer itself, after its commit: the log
    stays small enough to stay in the cache, and its pages are written over again. fdatasync(2) of a file that
    does not grow takes less: nothing about the file has to be written. So the log is given its full length
    when the store is opened; SQLite takes what has never been written for the end. Should readers keep it
    from being begun anew, it is cut at ``WAL_BYTES_MAX``.

    A file of its own, ``NAME-lock``, is locked (flock(2)) while a store is open for writing, since any number
    of processes may read. (A second descriptor of the database itself would, when closed, take SQLite's own
    locks along: fcntl(2).)

    A channel that is dropped loses its row and its name at once. What was in it goes bit by bit, with later
    commits, so that no commit takes long: its parcels' channel is then one that is not in ``channel``.

Invariants
    The file is for its owner only (0600, in a directory made 0700).
    Pages that were let go are used again; the file shrinks when it is rewritten only (``rewriting``).

Sources: https://www.sqlite.org/wal.html, https://www.sqlite.org/pragma.html,
https://www.sqlite.org/howtocorrupt.html (2.2)
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from pathlib import Path
from typing import Final

from towpath.errors import InvalidConfiguration, StoreDamaged, StoreFull
from towpath_broker.host import room
from towpath_broker.host.syncing import sync_directory

from .segments import directory_of

STORE_NAME: Final = "store.sqlite"
APPLICATION_ID: Final = 0x546F7773  # "Tows": file(1) and we know our files by it
SCHEMA_VERSION: Final = 3
PAGE_BYTES: Final = 16_384
WAL_PAGES: Final = 512
"""The log is brought into the file when it has so many pages: 8 MiB."""
WAL_BYTES_MAX: Final = 64 << 20
"""Above this the log is cut, which waits for readers, for ``BUSY_S`` at most."""
BUSY_S: Final = 0.5
CACHE_KIB: Final = 16_384
_LOG_BYTES: Final = 32 + WAL_PAGES * (24 + PAGE_BYTES)

_SCHEMA: Final = """
-- id: see ``numbers``. Of a topic with messages in it the parcels say what the last four would.
-- taken_from: parcels from this ordinal on say more of what was taken in than ``taken`` does.
CREATE TABLE channel (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    declared_at_ns INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    taken_from INTEGER NOT NULL DEFAULT 1,
    oldest_seq INTEGER NOT NULL DEFAULT 1,
    next_seq INTEGER NOT NULL DEFAULT 1,
    messages INTEGER NOT NULL DEFAULT 0,
    content_bytes INTEGER NOT NULL DEFAULT 0
) STRICT;
-- Durable topics. id: the channel's and the parcel's ordinal, see ``numbers``.
-- until_ns: the greatest last_time_ns up to here, so that it never goes back.
-- end_bytes: content_bytes of all parcels up to here, those that were let go too.
-- taken: of the sources in it, as pairs of source and seq.
-- segment, start, nbytes: where data is if it is not here, see ``segments``. Version 2 had it here always.
CREATE TABLE parcel (
    id INTEGER PRIMARY KEY,
    first_seq INTEGER NOT NULL,
    count INTEGER NOT NULL,
    content_bytes INTEGER NOT NULL,
    last_time_ns INTEGER NOT NULL,
    until_ns INTEGER NOT NULL,
    end_bytes INTEGER NOT NULL,
    taken BLOB NOT NULL,
    data BLOB NOT NULL,
    segment INTEGER NOT NULL DEFAULT 0,
    start INTEGER NOT NULL DEFAULT 0,
    nbytes INTEGER NOT NULL DEFAULT 0
) STRICT;
-- Queues, in the order in which they are read: at once (deliver_at_ns 0) by lane, which is the priority,
-- later by time, and then lane is 0.
CREATE TABLE queued (
    channel INTEGER NOT NULL,
    deliver_at_ns INTEGER NOT NULL,
    lane INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    count INTEGER NOT NULL,
    content_bytes INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (channel, deliver_at_ns, lane, first_seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE settled (
    channel INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    bits BLOB NOT NULL,
    PRIMARY KEY (channel, first_seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE attempt (
    channel INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    count INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    due_ns INTEGER NOT NULL,
    PRIMARY KEY (channel, first_seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE taken (
    channel INTEGER NOT NULL,
    source INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    PRIMARY KEY (channel, source)
) STRICT, WITHOUT ROWID;
CREATE TABLE place (
    channel INTEGER NOT NULL,
    name TEXT NOT NULL,
    seq INTEGER NOT NULL,
    saved_at_ns INTEGER NOT NULL,
    PRIMARY KEY (channel, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE value (
    channel INTEGER PRIMARY KEY,
    version INTEGER NOT NULL,
    is_set INTEGER NOT NULL,
    payload BLOB NOT NULL,
    headers BLOB NOT NULL,
    changed_at_ns INTEGER NOT NULL
) STRICT;
CREATE TABLE message_id (
    channel INTEGER NOT NULL,
    message_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    at_ns INTEGER NOT NULL,
    PRIMARY KEY (channel, message_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX message_id_by_time ON message_id (channel, at_ns);
CREATE TABLE committed (
    principal TEXT NOT NULL,
    name TEXT NOT NULL,
    response BLOB NOT NULL,
    at_ns INTEGER NOT NULL,
    PRIMARY KEY (principal, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX committed_by_time ON committed (at_ns);
-- What of dropped channels is still to be let go.
CREATE TABLE dropped (channel INTEGER PRIMARY KEY) STRICT;
"""

_ELSEWHERE: Final = "move the file away, or give the daemon another state_dir"


class Lock:
    """Keeps a second process from writing a store.

    Raises:
        InvalidConfiguration: another process has it.
        OSError: the host refuses.
    """

    def __init__(self, path: Path) -> None:
        name = f"{path}-lock"
        self._descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise InvalidConfiguration(
                f"the store {path} is in use by another daemon",
                hint="stop that one, or give this one another state_dir",
            ) from None

    def release(self) -> None:
        """Let go of it; more than once is fine."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def make_file(path: Path) -> None:
    """Make the file if it is not there, its directory, and that of its segments, durably."""
    missing = [each for each in path.parents if not each.exists()]
    directory_of(path).mkdir(mode=0o700, parents=True, exist_ok=True)
    for directory in missing:
        sync_directory(directory.parent)
    # Made by us first, so that it is never there with wider permissions than it shall have.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    sync_directory(path.parent)


def open_for_writing(path: Path, bytes_max: int) -> sqlite3.Connection:
    """Open a store's file, made before; give it its tables if it is empty. It may be of an earlier version.

    Args:
        bytes_max: the file does not grow beyond this; 0: as far as the disk goes.

    Raises:
        InvalidConfiguration: it is something else, or of a later version.
        StoreDamaged: SQLite cannot make sense of it.
        OSError, sqlite3.Error: the host refuses.
    """
    # The engine calls from a worker thread, one call at a time.
    database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        database.execute(f"PRAGMA page_size={PAGE_BYTES}")  # of a file that is still empty
        version = check_version(database, path)
        if database.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):  # it says no otherwise
            raise sqlite3.OperationalError(f"{path}: its log cannot be written")
        for pragma in (
            "synchronous=FULL",
            f"wal_autocheckpoint={WAL_PAGES}",
            f"journal_size_limit={WAL_PAGES * PAGE_BYTES * 2}",
            f"cache_size=-{CACHE_KIB}",
            "secure_delete=OFF",
            f"max_page_count={bytes_max // PAGE_BYTES if bytes_max else (1 << 30) - 1}",
        ):
            database.execute(f"PRAGMA {pragma}")
        if not version:
            make_tables(database)
    except sqlite3.DatabaseError as error:
        database.close()
        raise explained(error, path) from error
    except BaseException:
        database.close()
        raise
    return database


def lay_out_log(path: Path) -> None:
    """Give the log of a store that is open the length that it will have; as far as there is room.

    Raises:
        OSError: the host refuses, and not for want of room.
    """
    descriptor = os.open(f"{path}-wal", os.O_WRONLY | os.O_CLOEXEC)  # no lock of SQLite's is on this file
    try:
        at = os.fstat(descriptor).st_size
        missing = memoryview(bytes(max(0, _LOG_BYTES - at)))
        while missing:
            written = os.pwrite(descriptor, missing, at)
            at += written
            missing = missing[written:]
            os.fdatasync(descriptor)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    finally:
        os.close(descriptor)


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Open a store's file to read it, while it is written or not.

    Raises:
        InvalidConfiguration: it is not there, is something else, or of a later version.
        StoreDamaged: SQLite cannot make sense of it.
    """
    if not path.is_file():
        raise InvalidConfiguration(
            f"there is no store at {path}", hint="name the daemon's state directory: --state-dir"
        )
    database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        if (version := check_version(database, path)) == 0:
            raise InvalidConfiguration(f"{path} is empty, and not a store of Towpath", hint=_ELSEWHERE)
        if version < SCHEMA_VERSION:
            raise InvalidConfiguration(
                f"the store {path} is of version {version}; this Towpath reads {SCHEMA_VERSION}",
                hint="the daemon brings it up to date when it starts, and so does: towpath store compact",
            )
        database.execute("PRAGMA query_only=ON")
    except sqlite3.DatabaseError as error:
        database.close()
        raise explained(error, path) from error
    except BaseException:
        database.close()
        raise
    return database


def check_version(database: sqlite3.Connection, path: Path) -> int:
    """Return a store's version; 0: it is an empty database.

    Raises:
        InvalidConfiguration: it is neither that nor a store of this version, or an earlier one.
    """
    if database.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,):
        return 0
    application, version = (
        database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    if application != APPLICATION_ID:
        raise InvalidConfiguration(f"{path} is a database, but not a store of Towpath", hint=_ELSEWHERE)
    if version > SCHEMA_VERSION:
        raise InvalidConfiguration(
            f"the store {path} is of version {version}; this Towpath reads {SCHEMA_VERSION}",
            hint="run the version of Towpath that wrote it, or a later one",
        )
    return int(version)


def make_tables(database: sqlite3.Connection) -> None:
    """Make an empty database a store."""
    database.execute("BEGIN IMMEDIATE")
    for statement in filter(str.strip, _SCHEMA.split(";")):
        database.execute(statement)
    database.execute(f"PRAGMA application_id={APPLICATION_ID}")
    database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    database.execute("COMMIT")


def add_columns(database: sqlite3.Connection) -> None:
    """Make a store of version 2 one of this version. What is in it stays as it is."""
    database.execute("BEGIN IMMEDIATE")
    for column in ("segment", "start", "nbytes"):
        database.execute(f"ALTER TABLE parcel ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0")
    database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    database.execute("COMMIT")


def explained(error: sqlite3.DatabaseError, path: Path) -> Exception:
    """What an error of SQLite's means to whoever uses the store; itself, where it is the host's failure."""
    code = getattr(error, "sqlite_errorcode", 0)  # errors of the Python module itself have none
    match code & 0xFF:
        case sqlite3.SQLITE_NOTADB:
            return InvalidConfiguration(f"{path} is not a store of Towpath", hint=_ELSEWHERE)
        case sqlite3.SQLITE_CORRUPT:
            return StoreDamaged(f"the store {path} is damaged: {error}")
    reason = room.why_full(error, path)
    return error if reason is None else _full(path, reason)


def _full(path: Path, why: str) -> StoreFull:
    return StoreFull(f"there is no room in the store {path}: {why}")


def wal_bytes(path: Path) -> int:
    """The size of the log beside the file."""
    try:
        return os.stat(f"{path}-wal").st_size
    except FileNotFoundError:
        return 0
