"""Writing durable topics: parcels, and up to where their sources were taken in.

Theory of operation
    What is appended should write one page (``numbers``). So nothing is written that the parcels tell: of a
    topic with messages in it the newest and the oldest parcel tell its totals; the row in ``channel`` does
    when there are none. And up to where each source was taken in is written with the parcel that was taken.
    To know it at start without reading all of them, it is brought together in the table ``taken`` whenever
    ``TAKEN_PARCELS`` have come since the last time, or one of these is let go; ``channel.taken_from`` says
    which parcels' own word is newer than the table's.

Invariants
    Between two commits nothing is known here that the file does not say: ``forget`` may be called then, and
    is after a commit that failed.

Not here: reading (``reading``), the transaction (``sqlite``), where large parcels are (``segments``).
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import Final

from towpath_broker.core.data import rows

from .contents import pack
from .numbers import newest_id, pack_taken, span, taken_since
from .segments import APART_BYTES, IN_ROW, Segments

TAKEN_PARCELS: Final = 64
"""Parcels whose word on what was taken in is newer than the table's, at most: so many are read at start."""

_SIGN: Final = 1 << 63


def source_key(source: int) -> int:
    """A source's id (64 bits, no sign) as SQLite can hold it."""
    return source - (source & _SIGN) * 2


def source_of(key: int) -> int:
    """The source's id of a key."""
    return key & (2 * _SIGN - 1)


@dataclass(slots=True)
class _End:
    """Where a topic's rows end.

    Attributes:
        next_id: the id of the next parcel.
        until_ns, end_bytes: as the newest parcel's row says; 0: there is none.
        taken_from: the id from which on parcels' own word counts.
        fresh: what was taken in by this commit, and is in no parcel yet.
        noted: what the parcels from ``taken_from`` on say.
    """

    next_id: int
    until_ns: int
    end_bytes: int
    taken_from: int
    fresh: dict[int, int] = field(default_factory=dict)
    noted: dict[int, int] = field(default_factory=dict)


class Topics:
    """Writes the durable topics of a store, inside its writer's transactions."""

    def __init__(self, database: sqlite3.Connection, segments: Segments) -> None:
        self._database = database
        self._segments = segments
        self._ends: dict[int, _End] = {}
        self._with_fresh: set[int] = set()
        self._oldest: dict[int, int] = {}  # of what this commit lets go of: the id of the first that stays

    def forget(self) -> None:
        """What was written is undone: know nothing that the file does not say."""
        self._ends.clear()
        self._with_fresh.clear()
        self._oldest.clear()

    def drop(self, number: int) -> None:
        """A topic is gone."""
        self._ends.pop(number, None)
        self._with_fresh.discard(number)
        self._oldest.pop(number, None)
        self._segments.drop(number)

    def add(self, number: int, row: rows.AddParcel) -> None:
        """Append a parcel."""
        end = self._end(number)
        end.until_ns = max(end.until_ns, row.last_time_ns)
        end.end_bytes += row.content_bytes
        data, place = pack(row.content), IN_ROW
        if len(data) >= APART_BYTES:
            data, place = b"", self._segments.append(number, end.next_id - span(number)[0], data)
        self._database.execute(
            "INSERT INTO parcel VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                end.next_id,
                row.first_seq,
                row.count,
                row.content_bytes,
                row.last_time_ns,
                end.until_ns,
                end.end_bytes,
                pack_taken(end.fresh),
                data,
                *place,
            ),
        )
        end.next_id += 1
        if end.fresh:
            end.noted |= end.fresh
            end.fresh.clear()
            self._with_fresh.discard(number)
        if end.next_id - end.taken_from >= TAKEN_PARCELS:
            self._bring_together(number, end)

    def let_go(self, number: int, below_seq: int) -> None:
        """Let go of the parcels that begin below a seq. O(those)."""
        first, last = span(number)
        gone = None
        for parcel, first_seq in self._database.execute(
            "SELECT id, first_seq FROM parcel WHERE id BETWEEN ? AND ? ORDER BY id", (first, last)
        ):
            if first_seq >= below_seq:
                break
            gone = parcel
        if gone is None:
            return
        end = self._end(number)
        if gone >= end.taken_from:
            self._bring_together(number, end)
        self._database.execute("DELETE FROM parcel WHERE id BETWEEN ? AND ?", (first, gone))
        self._oldest[number] = gone + 1

    def take(self, number: int, source: int, seq: int) -> None:
        """A source was taken in up to a seq; with what is added next."""
        self._end(number).fresh[source] = seq
        self._with_fresh.add(number)

    def forget_source(self, number: int, source: int) -> None:
        """Nothing more is taken of a source."""
        end = self._end(number)
        self._bring_together(number, end)
        self._database.execute(
            "DELETE FROM taken WHERE channel = ? AND source = ?", (number, source_key(source))
        )

    def set_totals(self, number: int, row: rows.Totals) -> None:
        """Note what a topic holds, if no parcel says it."""
        if row.oldest_seq < row.next_seq:
            return
        self._database.execute(
            "UPDATE channel SET oldest_seq = ?, next_seq = ?, messages = ?, content_bytes = ? WHERE id = ?",
            (row.oldest_seq, row.next_seq, row.messages, row.content_bytes, number),
        )

    def finish(self) -> None:
        """The commit's rows are carried out: note what was taken in with no parcel; have segments on disk."""
        for number in tuple(self._with_fresh):
            self._bring_together(number, self._ends[number])
        for number, oldest in self._oldest.items():
            first, _ = span(number)
            self._segments.let_go(number, oldest - first, self._end(number).next_id - first)
        self._oldest.clear()
        self._segments.sync()

    def _bring_together(self, number: int, end: _End) -> None:
        """Write into ``taken`` what only parcels say."""
        end.noted |= end.fresh
        end.fresh.clear()
        self._with_fresh.discard(number)
        self._database.executemany(
            "INSERT OR REPLACE INTO taken VALUES (?, ?, ?)",
            [(number, source_key(source), seq) for source, seq in end.noted.items()],
        )
        end.noted.clear()
        end.taken_from = end.next_id
        self._database.execute(
            "UPDATE channel SET taken_from = ? WHERE id = ?", (end.taken_from - span(number)[0], number)
        )

    def _end(self, number: int) -> _End:
        known = self._ends.get(number)
        if known is not None:
            return known
        (taken_from,) = self._database.execute(
            "SELECT taken_from FROM channel WHERE id = ?", (number,)
        ).fetchone()
        first, _ = span(number)
        newest = newest_id(self._database, number)
        if newest is None:
            end = _End(first + taken_from, 0, 0, first + taken_from)
        else:
            until_ns, end_bytes = self._database.execute(
                "SELECT until_ns, end_bytes FROM parcel WHERE id = ?", (newest,)
            ).fetchone()
            noted = taken_since(self._database, number, taken_from)
            end = _End(newest + 1, until_ns, end_bytes, first + taken_from, noted=noted)
        self._ends[number] = end
        return end
