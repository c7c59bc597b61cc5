"""Reading the store's file, while it is written: the queries, on connections of their own.

Theory of operation
    Whoever reads borrows a connection, of which there are as many as ever read at once. Each answer is one
    read transaction and sees whole commits. It takes all it wants at once and keeps no transaction open:
    an open one would keep the log from being begun anew.

    A large parcel is in a segment, which may be let go and unlinked between reading the row and the segment.
    Then the row is gone too: the question is asked again, and what is there now is the answer.

    Each query goes along a table's own order (``database``, ``numbers``) and stops when it has what was asked
    for; none walks a channel. A queue's and a topic's parcels are told apart by their table.

Not here: writing (``sqlite``), the check of everything (``check``).
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from towpath.errors import StoreDamaged
from towpath_broker.core.commands import Kind
from towpath_broker.core.data import rows

from .contents import first_at, unpack
from .database import open_for_reading
from .numbers import first_id, newest_id, oldest_id, span, taken_since
from .segments import Place, content
from .topics import source_of

T = TypeVar("T")

IDLE_MAX: Final = 8
"""Connections that are kept open when nobody reads."""
ASKED_MAX: Final = 8
"""How often a question is asked when each time a segment was let go just then; then it is missing."""
NEXT_IDS_MAX: Final = 256
"""Topics of which it is known what was read last."""


class Totals(NamedTuple):
    """What a channel holds; as in ``rows.Totals``."""

    oldest_seq: int
    next_seq: int
    messages: int
    content_bytes: int


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
        self._next_ids: dict[int, int] = {}  # by topic: what comes after what was read last; a hint

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
                    **totals(database, number, kind)._asdict(),
                    priorities=_priorities(database, number) if kind == Kind.QUEUE else (),
                    next_due_ns=_next_due(database, number, (0, 0)) if kind == Kind.QUEUE else 0,
                    taken={source_of(source): seq for source, seq in taken.get(number, ())}
                    | taken_since(database, number, taken_from),
                    places={place: (seq, at_ns) for place, seq, at_ns in places.get(number, ())},
                )
                for number, name, declared_at_ns, kind, taken_from in database.execute(
                    "SELECT id, name, declared_at_ns, kind, taken_from FROM channel ORDER BY id"
                )
            ]

    # ---- durable topics ------------------------------------------------------------------------------------

    def parcels(self, channel: str, first_seq: int, bytes_max: int) -> Sequence[rows.PackedParcel]:
        """Parcels from the one that has a seq on."""
        return _asked(lambda: self._parcels(channel, first_seq, bytes_max))

    def _parcels(self, channel: str, first_seq: int, bytes_max: int) -> Sequence[rows.PackedParcel]:
        found: list[rows.PackedParcel] = []
        with self._lent() as database:
            number = _number(database, channel)
            first = self._continued(database, number, first_seq)
            if first is None:
                first = first_id(database, number, "first_seq + count > ?", first_seq)
            for parcel, seq, count, data, *place in database.execute(
                "SELECT id, first_seq, count, data, segment, start, nbytes FROM parcel"
                " WHERE id BETWEEN ? AND ? ORDER BY id",
                (first, span(number)[1]),
            ):
                data = content(self._path, parcel, Place(*place), data)
                found.append(rows.PackedParcel(seq, count, data))
                bytes_max -= len(data)
                if bytes_max <= 0:
                    break
        if first is not None:
            with self._lock:
                self._next_ids.pop(number, None)
                self._next_ids[number] = first + len(found)
                if len(self._next_ids) > NEXT_IDS_MAX:
                    del self._next_ids[next(iter(self._next_ids))]
        return found

    def _continued(self, database: sqlite3.Connection, number: int, first_seq: int) -> int | None:
        """The parcel that begins with a seq, where reading the one before it came last: no need to search."""
        found = database.execute(
            "SELECT id FROM parcel WHERE id = ? AND first_seq = ?", (self._next_ids.get(number), first_seq)
        ).fetchone()
        return None if found is None else int(found[0])

    def heads(self, channel: str, first_seq: int, count_max: int) -> Sequence[rows.ParcelHead]:
        """What the parcels are from a seq on."""
        with self._lent() as database:
            number = _number(database, channel)
            first = first_id(database, number, "first_seq >= ?", first_seq)
            return [
                rows.ParcelHead(*found)
                for found in database.execute(
                    "SELECT first_seq, count, content_bytes, last_time_ns FROM parcel"
                    " WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?",
                    (first, span(number)[1], count_max),
                )
            ]

    def find_time(self, channel: str, time_ns: int) -> int | None:
        """The first message of a time or later.

        Of the parcels from the first one up to which there was such a message, the first that has one: it is
        the same parcel, unless the clock was set back and what was published before that was let go.
        """
        return _asked(lambda: self._find_time(channel, time_ns))

    def _find_time(self, channel: str, time_ns: int) -> int | None:
        with self._lent() as database:
            number = _number(database, channel)
            first = first_id(database, number, "until_ns >= ?", time_ns)
            found = database.execute(
                "SELECT id, first_seq, data, segment, start, nbytes FROM parcel"
                " WHERE id BETWEEN ? AND ? AND last_time_ns >= ? ORDER BY id LIMIT 1",
                (first, span(number)[1], time_ns),
            ).fetchone()
        if found is None:
            return None
        parcel, first_seq, data, *place = found
        return first_at(content(self._path, parcel, Place(*place), data), first_seq, channel, time_ns)

    # ---- queues --------------------------------------------------------------------------------------------

    def queue(
        self, channel: str, priority: int, first_seq: int, count_max: int, bytes_max: int
    ) -> Sequence[rows.StoredParcel]:
        """Parcels of one priority."""
        with self._lent() as database:
            number = _number(database, channel)
            found = database.execute(
                "SELECT first_seq, count, content_bytes, priority, deliver_at_ns, data FROM queued"
                " WHERE channel = ? AND deliver_at_ns = 0 AND lane = ? AND first_seq >= ?"
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
                "SELECT first_seq, count, content_bytes, priority, deliver_at_ns, data FROM queued"
                " WHERE channel = ? AND deliver_at_ns > 0 AND (deliver_at_ns, lane, first_seq) > (?, 0, ?)"
                " AND deliver_at_ns <= ? ORDER BY deliver_at_ns, lane, first_seq LIMIT ?",
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


def _asked(ask: Callable[[], T]) -> T:
    """Ask for what may be in a segment."""
    for _ in range(ASKED_MAX - 1):
        with contextlib.suppress(FileNotFoundError):
            return ask()
    try:
        return ask()
    except FileNotFoundError as error:
        raise StoreDamaged(f"{error.filename} is missing") from None


def _number(database: sqlite3.Connection, channel: str) -> int:
    """A channel's number; -1, which none has, when it is not there (any more)."""
    found = database.execute("SELECT id FROM channel WHERE name = ?", (channel,)).fetchone()
    return -1 if found is None else int(found[0])


def _by_channel(found: Iterable[tuple[Any, ...]]) -> dict[int, list[tuple[Any, ...]]]:
    by_channel: dict[int, list[tuple[Any, ...]]] = {}
    for number, *rest in found:
        by_channel.setdefault(number, []).append(tuple(rest))
    return by_channel


def totals(database: sqlite3.Connection, number: int, kind: int) -> Totals:
    """What a channel holds. Of a topic with messages its parcels tell."""
    oldest = oldest_id(database, number) if kind == Kind.TOPIC else None
    newest = newest_id(database, number) if oldest is not None else None
    if newest is None:
        found = database.execute(
            "SELECT oldest_seq, next_seq, messages, content_bytes FROM channel WHERE id = ?", (number,)
        ).fetchone()
        return Totals(*found)
    (oldest_seq, before_bytes), (next_seq, end_bytes) = (
        database.execute(f"SELECT {what} FROM parcel WHERE id = ?", (parcel,)).fetchone()
        for what, parcel in (
            ("first_seq, end_bytes - content_bytes", oldest),
            ("first_seq + count, end_bytes", newest),
        )
    )
    return Totals(oldest_seq, next_seq, next_seq - oldest_seq, end_bytes - before_bytes)


def _priorities(database: sqlite3.Connection, number: int) -> Sequence[int]:
    """Which priorities there are: a step of the table's key for each, not one for each parcel."""
    found: list[int] = []
    least = 0
    while True:
        (priority,) = database.execute(
            "SELECT min(lane) FROM queued WHERE channel = ? AND deliver_at_ns = 0 AND lane >= ?",
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
        " AND (deliver_at_ns, lane, first_seq) > (?, 0, ?) ORDER BY deliver_at_ns, lane, first_seq LIMIT 1",
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
    """A queue's parcels with what was settled and their attempts, about ``bytes_max`` bytes of them."""
    parcels: list[rows.StoredParcel] = []
    for first_seq, count, content_bytes, priority, deliver_at_ns, data in found:
        attempts = database.execute(
            "SELECT first_seq, count, attempts, due_ns FROM attempt"
            " WHERE channel = ?1 AND first_seq < ?3 AND first_seq + count > ?2 AND first_seq >="
            " coalesce((SELECT max(first_seq) FROM attempt WHERE channel = ?1 AND first_seq <= ?2), ?2)"
            " ORDER BY first_seq",
            (number, first_seq, first_seq + count),
        ).fetchall()
        settled = database.execute(
            "SELECT bits FROM settled WHERE channel = ? AND first_seq = ?", (number, first_seq)
        ).fetchone()
        run = unpack(data, first_seq, channel)
        bits = settled[0] if settled is not None else b""
        parcels.append(
            rows.StoredParcel(first_seq, content_bytes, priority, deliver_at_ns, run, bits, attempts)
        )
        bytes_max -= len(data)
        if bytes_max <= 0:
            break
    return parcels
