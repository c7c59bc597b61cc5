"""The host's store: one SQLite file, one writer, any number of readers.

Theory of operation
    A commit is one transaction of the writer's connection; SQLite has it on disk before ``commit`` returns
    (``database``). Reading is ``reading``'s, on connections of its own. Rows name channels; the file knows
    them by a number, which no other channel is ever given.

    What is read at start is one row per channel and its places, sources and priorities: the time it takes
    does not depend on how much is stored. SQLite itself first goes through the log that a crash left behind,
    which is bounded (``WAL_BYTES_MAX``). Then the newest parcel of each durable topic (of ``TAILS_MAX``) is
    checked, as the tail is what a crash can harm, and what was found is logged.

Invariants
    ``commit`` leaves all of its rows, or none. After ``StoreFull`` the store goes on, and so it does after
    room was made. After any other failure it must not be written again: what the host made of a failed
    fdatasync(2) is unknown until the file is opened again.

Not here: the meaning of rows (``core.data``), what is wrong with a damaged file (``check``).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from towpath.errors import StoreDamaged, StoreFull
from towpath_broker.core.commands import Kind
from towpath_broker.core.data import rows
from towpath_broker.log import log

from . import database
from .contents import opened, pack
from .numbers import free_number, newest_id, span
from .reading import Readers
from .rewriting import bring_up_to_date
from .segments import Place, Segments, content
from .topics import Topics

SWEEP_PARCELS: Final = 64
"""Parcels of dropped channels that one commit lets go."""
TAILS_MAX: Final = 1_024
"""Durable topics whose newest parcel is checked at start."""

LOG_LOOK_COMMITS: Final = 8
"""Commits after which it is looked whether the log must be cut: a look is a system call."""

_QUEUED_KEY: Final = "(channel, deliver_at_ns, lane, first_seq)"


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found when the store was opened.

    Attributes:
        wal_bytes: of the log that was left; 0 after an orderly end.
    """

    wal_bytes: int
    channels: int
    messages: int
    content_bytes: int
    duration_ns: int


class SqliteStore:
    """Implements ``ports.Store`` in a file.

    Args:
        path: the file; made if it is not there, and so is its directory.
        bytes_max: neither the file grows beyond this nor what lies beside it; 0: as far as the disk goes.

    Raises:
        InvalidConfiguration: another daemon has the store, it is of a later version, or the file is
            something else.
        StoreDamaged: SQLite cannot make sense of it.
        OSError, sqlite3.Error: the host refuses.
    """

    def __init__(self, path: str | os.PathLike[str], *, bytes_max: int = 0) -> None:
        self.path = Path(path)
        self.recovery: Recovery | None = None
        self._began_ns = time.monotonic_ns()
        self._writers: Mapping[type, Callable[[Any], None]] = {
            rows.OpenChannel: self._open_channel,
            rows.DropChannel: self._drop_channel,
            rows.Totals: self._set_totals,
            rows.AddParcel: self._add_parcel,
            rows.DropParcels: self._drop_parcels,
            rows.Settle: self._settle,
            rows.Attempts: self._set_attempts,
            rows.Taken: self._set_taken,
            rows.ForgetTaken: self._forget_taken,
            rows.PutValue: self._put_value,
            rows.PutPlace: self._put_place,
            rows.DropPlace: self._drop_place,
            rows.Remember: self._remember,
            rows.Forget: self._forget,
            rows.AddTransaction: self._add_transaction,
            rows.ForgetTransactions: self._forget_transactions,
        }
        self._ids: dict[str, tuple[int, int]] = {}  # by name: number and kind
        database.make_file(self.path)
        self._lock = database.Lock(self.path)
        try:
            self._wal_bytes = database.wal_bytes(self.path)
            self._database = self._opened(bytes_max)
            database.lay_out_log(self.path)
            self._segments = Segments(self.path, bytes_max)
            with self._explaining():
                self._segments.take_up(self._database)
        except BaseException:
            self._lock.release()
            raise
        self._topics = Topics(self._database, self._segments)
        self._readers = Readers(self.path)
        self._must_sweep = True
        self._unlooked = 0  # commits since the log's length was looked at

    def _opened(self, bytes_max: int) -> sqlite3.Connection:
        opened = database.open_for_writing(self.path, bytes_max)
        # Asked of this connection: to open and close another would have it bring the log into the file.
        version = database.check_version(opened, self.path)
        if version == 2:
            database.add_columns(opened)
        if version >= 2:
            return opened
        opened.close()
        bring_up_to_date(self.path)
        return database.open_for_writing(self.path, bytes_max)

    # ---- start -------------------------------------------------------------------------------------------

    def load(self) -> Sequence[rows.StoredChannel]:
        """Return all channels that are stored; see ``ports.Store``. Logs what was found."""
        with self._explaining():
            channels = self._readers.channels()
            if self.recovery is not None:
                return channels
            checked = self._check_tails(channels)
        self.recovery = Recovery(
            self._wal_bytes,
            len(channels),
            sum(channel.messages for channel in channels),
            sum(channel.content_bytes for channel in channels),
            time.monotonic_ns() - self._began_ns,
        )
        log(
            "store.recovered" if self._wal_bytes else "store.opened",
            path=str(self.path),
            log_bytes=self.recovery.wal_bytes,
            channels=self.recovery.channels,
            messages=self.recovery.messages,
            content_bytes=self.recovery.content_bytes,
            tails_checked=checked,
            ms=self.recovery.duration_ns // 1_000_000,
        )
        return channels

    def _check_tails(self, channels: Sequence[rows.StoredChannel]) -> int:
        """Check the newest parcels; return of how many channels."""
        checked = 0
        for channel in channels:
            newest = newest_id(self._database, self._number(channel.channel))
            if newest is None:
                continue
            first_seq, count, data, *place = self._database.execute(
                "SELECT first_seq, count, data, segment, start, nbytes FROM parcel WHERE id = ?", (newest,)
            ).fetchone()
            try:
                data = content(self.path, newest, Place(*place), data)
            except FileNotFoundError as error:
                raise StoreDamaged(f"of {channel.channel!r} {error.filename} is missing") from None
            if opened(data, first_seq, channel.channel).count != count or (
                first_seq + count != channel.next_seq
            ):
                raise StoreDamaged(
                    f"the newest messages of {channel.channel!r} are not those that were stored"
                )
            checked += 1
            if checked == TAILS_MAX:
                break
        return checked

    # ---- writing -----------------------------------------------------------------------------------------

    def commit(self, written: Sequence[rows.Row]) -> None:
        """Carry out rows in one transaction; see ``ports.Store``."""
        try:
            self._write(written)
        except BaseException as error:
            meaning: BaseException = error
            if isinstance(error, sqlite3.DatabaseError):
                meaning = database.explained(error, self.path)
            if isinstance(meaning, StoreFull):
                self._segments.undo()
            else:
                self._segments.abandon()
            if meaning is error:
                raise
            raise meaning from error
        self._segments.keep()
        self._unlooked += 1
        if self._unlooked >= LOG_LOOK_COMMITS:
            self._unlooked = 0
            if database.wal_bytes(self.path) > database.WAL_BYTES_MAX:
                self._cut_log()

    def prepare(self) -> None:
        """Begin the next commit's transaction; see ``ports.Store``."""
        if not self._database.in_transaction:
            with contextlib.suppress(sqlite3.DatabaseError):  # the commit tries again, and says what is wrong
                self._database.execute("BEGIN IMMEDIATE")

    def _write(self, written: Sequence[rows.Row]) -> None:
        try:
            if not self._database.in_transaction:
                self._database.execute("BEGIN IMMEDIATE")
            for row in written:
                self._writers[type(row)](row)
            self._topics.finish()
            if self._must_sweep:
                self._sweep()
            self._database.execute("COMMIT")
        except BaseException:
            self._ids.clear()
            self._topics.forget()
            self._must_sweep = True
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _explaining(self) -> Any:
        try:
            yield
        except sqlite3.DatabaseError as error:
            meaning = database.explained(error, self.path)
            if meaning is error:
                raise
            raise meaning from error

    def _cut_log(self) -> None:
        """Readers have kept the log from being begun anew for long: wait for them, shortly."""
        busy, pages, _ = self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            log("store.log_grows", level="warning", path=str(self.path), pages=pages)

    def _channel(self, name: str) -> tuple[int, int]:
        known = self._ids.get(name)
        if known is None:
            known = self._database.execute("SELECT id, kind FROM channel WHERE name = ?", (name,)).fetchone()
            assert known is not None, f"{name} was not opened"
            self._ids[name] = known
        return known

    def _number(self, name: str) -> int:
        return self._channel(name)[0]

    def _open_channel(self, row: rows.OpenChannel) -> None:
        number = free_number(self._database)
        self._database.execute(
            "INSERT INTO channel (id, name, declared_at_ns, kind) VALUES (?, ?, ?, ?)",
            (number, row.channel, row.declared_at_ns, row.kind),
        )
        self._ids[row.channel] = (number, row.kind)

    def _drop_channel(self, row: rows.DropChannel) -> None:
        number = self._number(row.channel)
        del self._ids[row.channel]
        self._topics.drop(number)
        for table in ("taken", "place", "value", "attempt", "settled"):
            self._database.execute(f"DELETE FROM {table} WHERE channel = ?", (number,))
        self._database.execute("DELETE FROM channel WHERE id = ?", (number,))
        self._database.execute("INSERT INTO dropped VALUES (?)", (number,))
        self._must_sweep = True

    def _sweep(self) -> None:
        """Let go of some of what was in a channel that was dropped."""
        found = self._database.execute("SELECT channel FROM dropped LIMIT 1").fetchone()
        if found is None:
            self._must_sweep = False
            return
        gone = self._database.execute(
            "DELETE FROM parcel WHERE id IN (SELECT id FROM parcel WHERE id BETWEEN ? AND ? LIMIT ?)",
            (*span(*found), SWEEP_PARCELS),
        ).rowcount
        gone += self._database.execute(
            f"DELETE FROM queued WHERE {_QUEUED_KEY} IN"
            f" (SELECT {_QUEUED_KEY[1:-1]} FROM queued WHERE channel = ? LIMIT ?)",
            (*found, SWEEP_PARCELS),
        ).rowcount
        gone += self._database.execute(
            "DELETE FROM message_id WHERE (channel, message_id) IN"
            " (SELECT channel, message_id FROM message_id WHERE channel = ? LIMIT ?)",
            (*found, SWEEP_PARCELS * 16),
        ).rowcount
        if not gone and not self._segments.has(*found):
            self._database.execute("DELETE FROM dropped WHERE channel = ?", found)

    def _set_totals(self, row: rows.Totals) -> None:
        number, kind = self._channel(row.channel)
        if kind == Kind.TOPIC:
            self._topics.set_totals(number, row)
            return
        self._database.execute(
            "UPDATE channel SET next_seq = ?, messages = ?, content_bytes = ? WHERE id = ?",
            (row.next_seq, row.messages, row.content_bytes, number),
        )

    def _add_parcel(self, row: rows.AddParcel) -> None:
        number, kind = self._channel(row.channel)
        if kind == Kind.TOPIC:
            self._topics.add(number, row)
            return
        self._database.execute(
            "INSERT INTO queued VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                number,
                row.deliver_at_ns,
                0 if row.deliver_at_ns else row.priority,
                row.first_seq,
                row.priority,
                row.count,
                row.content_bytes,
                pack(row.content),
            ),
        )

    def _drop_parcels(self, row: rows.DropParcels) -> None:
        self._topics.let_go(self._number(row.channel), row.below_seq)

    def _settle(self, row: rows.Settle) -> None:
        number = self._number(row.channel)
        if row.settled is not None:
            self._database.execute(
                "INSERT OR REPLACE INTO settled VALUES (?, ?, ?)", (number, row.first_seq, row.settled)
            )
            return
        found = self._database.execute(
            f"DELETE FROM queued WHERE {_QUEUED_KEY} = (?, ?, ?, ?) RETURNING count",
            (number, row.deliver_at_ns, 0 if row.deliver_at_ns else row.priority, row.first_seq),
        ).fetchone()
        if found is not None:
            self._database.execute(
                "DELETE FROM settled WHERE channel = ? AND first_seq = ?", (number, row.first_seq)
            )
            self._forget_attempts(number, row.first_seq, found[0])

    def _set_attempts(self, row: rows.Attempts) -> None:
        number = self._number(row.channel)
        self._forget_attempts(number, row.first_seq, row.count)
        self._database.execute(
            "INSERT INTO attempt VALUES (?, ?, ?, ?, ?)",
            (number, row.first_seq, row.count, row.attempts, row.due_ns),
        )

    def _forget_attempts(self, number: int, first_seq: int, count: int) -> None:
        """Cut a run of messages out of what is known of attempts; the runs there do not overlap."""
        end = first_seq + count
        overlapping = self._database.execute(
            "SELECT first_seq, count, attempts, due_ns FROM attempt"
            " WHERE channel = ?1 AND first_seq < ?3 AND first_seq >="
            " coalesce((SELECT max(first_seq) FROM attempt WHERE channel = ?1 AND first_seq <= ?2), ?2)",
            (number, first_seq, end),
        ).fetchall()
        for first, length, *rest in overlapping:
            if first + length <= first_seq:
                continue
            self._database.execute("DELETE FROM attempt WHERE channel = ? AND first_seq = ?", (number, first))
            if first < first_seq:
                self._database.execute(
                    "INSERT INTO attempt VALUES (?, ?, ?, ?, ?)", (number, first, first_seq - first, *rest)
                )
            if first + length > end:
                self._database.execute(
                    "INSERT INTO attempt VALUES (?, ?, ?, ?, ?)", (number, end, first + length - end, *rest)
                )

    def _set_taken(self, row: rows.Taken) -> None:
        self._topics.take(self._number(row.channel), row.source, row.seq)

    def _forget_taken(self, row: rows.ForgetTaken) -> None:
        self._topics.forget_source(self._number(row.channel), row.source)

    def _put_value(self, row: rows.PutValue) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO value VALUES (?, ?, ?, ?, ?, ?)",
            (
                self._number(row.channel),
                row.version,
                row.is_set,
                row.payload,
                row.headers,
                row.changed_at_ns,
            ),
        )

    def _put_place(self, row: rows.PutPlace) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO place VALUES (?, ?, ?, ?)",
            (self._number(row.channel), row.name, row.seq, row.saved_at_ns),
        )

    def _drop_place(self, row: rows.DropPlace) -> None:
        self._database.execute(
            "DELETE FROM place WHERE channel = ? AND name = ?", (self._number(row.channel), row.name)
        )

    def _remember(self, row: rows.Remember) -> None:
        number = self._number(row.channel)
        self._database.executemany(
            "INSERT OR REPLACE INTO message_id VALUES (?, ?, ?, ?)",
            [(number, message_id, seq, row.at_ns) for message_id, seq in row.ids],
        )

    def _forget(self, row: rows.Forget) -> None:
        self._database.execute(
            "DELETE FROM message_id WHERE channel = ? AND at_ns < ?",
            (self._number(row.channel), row.before_ns),
        )

    def _add_transaction(self, row: rows.AddTransaction) -> None:
        self._database.execute(
            "INSERT OR REPLACE INTO committed VALUES (?, ?, ?, ?)",
            (row.principal, row.transaction, row.response, row.at_ns),
        )

    def _forget_transactions(self, row: rows.ForgetTransactions) -> None:
        self._database.execute("DELETE FROM committed WHERE at_ns < ?", (row.before_ns,))

    # ---- reading -----------------------------------------------------------------------------------------

    def read_parcels(self, channel: str, first_seq: int, bytes_max: int) -> Sequence[rows.PackedParcel]:
        """Return parcels of a durable topic; see ``ports.Store``."""
        with self._explaining():
            return self._readers.parcels(channel, first_seq, bytes_max)

    def read_heads(self, channel: str, first_seq: int, count_max: int) -> Sequence[rows.ParcelHead]:
        """Return what parcels a durable topic has; see ``ports.Store``."""
        with self._explaining():
            return self._readers.heads(channel, first_seq, count_max)

    def find_time(self, channel: str, time_ns: int) -> int | None:
        """Return the first seq of a time; see ``ports.Store``."""
        with self._explaining():
            return self._readers.find_time(channel, time_ns)

    def read_queue(
        self, channel: str, priority: int, first_seq: int, count_max: int, bytes_max: int
    ) -> Sequence[rows.StoredParcel]:
        """Return parcels of a queue; see ``ports.Store``."""
        with self._explaining():
            return self._readers.queue(channel, priority, first_seq, count_max, bytes_max)

    def read_due(
        self, channel: str, after: tuple[int, int], until_ns: int, count_max: int, bytes_max: int
    ) -> tuple[Sequence[rows.StoredParcel], int]:
        """Return a queue's parcels that fell due; see ``ports.Store``."""
        with self._explaining():
            return self._readers.due(channel, after, until_ns, count_max, bytes_max)

    def read_value(self, channel: str) -> rows.StoredValue:
        """Return a state's value; see ``ports.Store``."""
        with self._explaining():
            return self._readers.value(channel)

    def read_ids(self, channel: str, since_ns: int) -> Mapping[str, tuple[int, int]]:
        """Return message ids; see ``ports.Store``."""
        with self._explaining():
            return self._readers.ids(channel, since_ns)

    def read_transactions(self, since_ns: int) -> Sequence[rows.StoredTransaction]:
        """Return transactions; see ``ports.Store``."""
        with self._explaining():
            return self._readers.transactions(since_ns)

    def close(self) -> None:
        """Bring the log into the file, close it, and give up its lock."""
        self._readers.close()
        self._segments.close()
        self._database.close()  # and with it what was only prepared
        self._lock.release()
