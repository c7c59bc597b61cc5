"""Reading the store's file, while it is written: the queries, on connections of their own.

Theory of operation
    Whoever reads borrows a connection, of which there are as many as ever read at once. Each answer is one
    read transaction and sees whole commits. It takes all it wants at once and keeps no transaction open:
    an open one would keep the log from being begun anew.

    Each query goes along an index (``database``) and stops when it has what was asked for; none walks a
    channel. A queue's and a topic's parcels are told apart by their table.

Not here: writing (``sqlite``), the check of everything (``check``).
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from towpath_broker.core.commands import Kind
from towpath_broker.core.data import rows

from .contents import first_at, unpack
from .database import open_for_reading

IDLE_MAX: Final = 8
"""Connections that are kept open when nobody reads."""

_SIGN: Final = 1 << 63


def source_key(source: int) -> int:
    """A source's id (64 bits, no sign) as SQLite can hold it."""
    return source - (source & _SIGN) * 2


def source_of(key: int) -> int:
    """The source's id of a key."""
    return key & (2 * _SIGN - 1)


class Readers:
    """Answers questions about a store's file, from any thread.

    Args:
        path: the file; there from the first question on.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._is_closed = False

    @contextlib.contextmanager
    def _lent(self) -> Iterator[sqlite3.Connection]:
        """A connection inside a read transaction."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = open_for_reading(self._path)
        try:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        with self._lock:
            is_kept = len(self._idle) < IDLE_MAX and not self._is_closed
            if is_kept:
                self._idle.append(connection)
        if not is_kept:
            connection.close()

    def close(self) -> None:
        """Close every connection; nobody may be reading."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    # ---- start -------------------------------------------------------------------------------------------

    def channels(self) -> Sequence[rows.StoredChannel]:
        """All channels, without what is in them. O(channels + places + sources)."""
        with self._lent() as database:
            taken = _by_channel(database.execute("SELECT channel, source, seq FROM taken"))
            places = _by_channel(database.execute("SELECT channel, name, seq, saved_at_ns FROM place"))
            return [
                rows.StoredChannel(
                    channel=name,
                    declared_at_ns=declared_at_ns,
                    kind=kind,
                    oldest_seq=oldest_seq,
                    next_seq=next_seq,
                    messages=messages,
                    content_bytes=content_bytes,
                    priorities=_priorities(database, number) if kind == Kind.QUEUE else (),
                    next_due_ns=_next_due(database, number, (0, 0)) if kind == Kind.QUEUE else 0,
                    taken={source_of(source): seq for source, seq in taken.get(number, ())},
                    places={place: (seq, at_ns) for place, seq, at_ns in places.get(number, ())},
                )
                for number, name, declared_at_ns, kind, oldest_seq, next_seq, messages, content_bytes in (
                    database.execute(
                        "SELECT id, name, declared_at_ns, kind, oldest_seq, next_seq, messages, content_bytes"
                        " FROM channel ORDER BY id"
                    )
                )
            ]

    # ---- durable topics ------------------------------------------------------------------------------------

    def parcels(self, channel: str, first_seq: int, bytes_max: int) -> Sequence[rows.PackedParcel]:
        """Parcels from the one that has a seq on."""
        found: list[rows.PackedParcel] = []
        with self._lent() as database:
            number = _number(database, channel)
            before = database.execute(
                "SELECT first_seq, count FROM parcel INDEXED BY parcel_by_seq"
                " WHERE channel = ? AND first_seq <= ? ORDER BY first_seq DESC LIMIT 1",
                (number, first_seq),
            ).fetchone()
            if before is not None and before[0] + before[1] > first_seq:
                first_seq = before[0]
            for first, count, data in database.execute(
                "SELECT first_seq, count, data FROM parcel WHERE channel = ? AND first_seq >= ?"
                " ORDER BY first_seq",
                (number, first_seq),
            ):
                found.append(rows.PackedParcel(first, count, data))
                bytes_max -= len(data)
                if bytes_max <= 0:
                    break
        return found

    def heads(self, channel: str, first_seq: int, count_max: int) -> Sequence[rows.ParcelHead]:
        """What the parcels are from a seq on; out of the index alone."""
        with self._lent() as database:
            return [
                rows.ParcelHead(*found)
                for found in database.execute(
                    "SELECT first_seq, count, content_bytes, last_time_ns"
                    " FROM parcel INDEXED BY parcel_by_seq"
                    " WHERE channel = ? AND first_seq >= ? ORDER BY first_seq LIMIT ?",
                    (_number(database, channel), first_seq, count_max),
                )
            ]

    def find_time(self, channel: str, time_ns: int) -> int | None:
        """The first message of a time or later.

        Of the parcels from the first one up to which there was such a message, the first that has one: it is
        the same parcel, unless the clock was set back and what was published before that was let go.
        """
        with self._lent() as database:
            found = database.execute(
                "SELECT first_seq, data FROM parcel INDEXED BY parcel_by_time"
                " WHERE channel = ?1 AND until_ns >= ?2 AND last_time_ns >= ?2"
                " ORDER BY until_ns, first_seq LIMIT 1",
                (_number(database, channel), time_ns),
            ).fetchone()
        return None if found is None else first_at(found[1], found[0], channel, time_ns)

    # ---- queues --------------------------------------------------------------------------------------------

    def queue(
        self, channel: str, priority: int, first_seq: int, count_max: int, bytes_max: int
    ) -> Sequence[rows.StoredParcel]:
        """Parcels of one priority."""
        with self._lent() as database:
            number = _number(database, channel)
            found = database.execute(
                "SELECT first_seq, count, content_bytes, priority, deliver_at_ns, settled, data FROM queued"
                " WHERE channel = ? AND priority = ? AND deliver_at_ns = 0 AND first_seq >= ?"
                " ORDER BY first_seq LIMIT ?",
                (number, priority, first_seq, count_max),
            )
            return _queued(database, number, channel, found, bytes_max)

    def due(
        self, channel: str, after: tuple[int, int], until_ns: int, count_max: int, bytes_max: int
    ) -> tuple[Sequence[rows.StoredParcel], int]:
        """Parcels that fell due, and when the next will."""
        with self._lent() as database:
            number = _number(database, channel)
            found = database.execute(
                "SELECT first_seq, count, content_bytes, priority, deliver_at_ns, settled, data FROM queued"
                " WHERE channel = ? AND deliver_at_ns > 0 AND (deliver_at_ns, first_seq) > (?, ?)"
                " AND deliver_at_ns <= ? ORDER BY deliver_at_ns, first_seq LIMIT ?",
                (number, *after, until_ns, count_max),
            )
            parcels = _queued(database, number, channel, found, bytes_max)
            if parcels:
                after = (parcels[-1].deliver_at_ns, parcels[-1].first_seq)
            return parcels, _next_due(database, number, after)

    # ---- the rest ------------------------------------------------------------------------------------------

    def value(self, channel: str) -> rows.StoredValue:
        """A state's value."""
        with self._lent() as database:
            found = database.execute(
                "SELECT version, is_set, payload, headers, changed_at_ns FROM value WHERE channel = ?",
                (_number(database, channel),),
            ).fetchone()
        if found is None:
            return rows.StoredValue()
        version, is_set, payload, headers, changed_at_ns = found
        return rows.StoredValue(version, bool(is_set), payload, headers, changed_at_ns)

    def ids(self, channel: str, since_ns: int) -> Mapping[str, tuple[int, int]]:
        """Message ids, oldest first."""
        with self._lent() as database:
            return {
                message_id: (seq, at_ns)
                for message_id, seq, at_ns in database.execute(
                    "SELECT message_id, seq, at_ns FROM message_id WHERE channel = ? AND at_ns >= ?"
                    " ORDER BY at_ns, seq",
                    (_number(database, channel), since_ns),
                )
            }

    def transactions(self, since_ns: int) -> Sequence[rows.StoredTransaction]:
        """Transactions, oldest first."""
        with self._lent() as database:
            return [
                rows.StoredTransaction(*found)
                for found in database.execute(
                    "SELECT principal, name, response, at_ns FROM committed WHERE at_ns >= ?"
                    " ORDER BY at_ns, principal, name",
                    (since_ns,),
                )
            ]


def _number(database: sqlite3.Connection, channel: str) -> int:
    """A channel's number; -1, which none has, when it is not there (any more)."""
    found = database.execute("SELECT id FROM channel WHERE name = ?", (channel,)).fetchone()
    return -1 if found is None else int(found[0])


def _by_channel(found: Iterable[tuple[Any, ...]]) -> dict[int, list[tuple[Any, ...]]]:
    by_channel: dict[int, list[tuple[Any, ...]]] = {}
    for number, *rest in found:
        by_channel.setdefault(number, []).append(tuple(rest))
    return by_channel


def _priorities(database: sqlite3.Connection, number: int) -> Sequence[int]:
    """Which priorities there are: a step of the index for each, not one for each parcel."""
    found: list[int] = []
    least = 0
    while True:
        (priority,) = database.execute(
            "SELECT min(priority) FROM queued WHERE channel = ? AND deliver_at_ns = 0 AND priority >= ?",
            (number, least),
        ).fetchone()
        if priority is None:
            return found
        found.append(priority)
        least = priority + 1


def _next_due(database: sqlite3.Connection, number: int, after: tuple[int, int]) -> int:
    """When the first parcel after another falls due; 0: there is none."""
    found = database.execute(
        "SELECT deliver_at_ns FROM queued WHERE channel = ? AND deliver_at_ns > 0"
        " AND (deliver_at_ns, first_seq) > (?, ?) ORDER BY deliver_at_ns, first_seq LIMIT 1",
        (number, *after),
    ).fetchone()
    return 0 if found is None else int(found[0])


def _queued(
    database: sqlite3.Connection,
    number: int,
    channel: str,
    found: Iterable[tuple[Any, ...]],
    bytes_max: int,
) -> list[rows.StoredParcel]:
    """A queue's parcels with their attempts, about ``bytes_max`` bytes of them."""
    parcels: list[rows.StoredParcel] = []
    for first_seq, count, content_bytes, priority, deliver_at_ns, settled, data in found:
        attempts = database.execute(
            "SELECT first_seq, count, attempts FROM attempt"
            " WHERE channel = ?1 AND first_seq < ?3 AND first_seq + count > ?2 AND first_seq >="
            " coalesce((SELECT max(first_seq) FROM attempt WHERE channel = ?1 AND first_seq <= ?2), ?2)"
            " ORDER BY first_seq",
            (number, first_seq, first_seq + count),
        ).fetchall()
        run = unpack(data, first_seq, channel)
        parcels.append(
            rows.StoredParcel(first_seq, content_bytes, priority, deliver_at_ns, run, settled, attempts)
        )
        bytes_max -= len(data)
        if bytes_max <= 0:
            break
    return parcels
