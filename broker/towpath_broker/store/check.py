"""Reading all of a store: is everything there that it says, and is it whole?

Theory of operation
    One read transaction, so that what is checked is one state, while the daemon goes on writing; its log
    grows meanwhile by what is written, and segments are not unlinked. SQLite checks its pages and indexes;
    then every parcel is opened (its CRC covers every byte of it) and counted, and what a channel says of
    itself is compared with what it has.

Invariants
    Nothing is written. What is found is told, at most ``FINDINGS_MAX`` of it, and the check goes on.

    A copy has all parcels in its rows: one file, complete in itself.

Not here: mending. What is whole can be copied by ``backup``; what is damaged is told by channel and seq.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from towpath.errors import StoreDamaged
from towpath_broker.core.commands import Kind

from .contents import opened
from .database import PAGE_BYTES, explained, open_for_reading, wal_bytes
from .numbers import ORDINAL_BITS, span
from .reading import Totals, totals
from .segments import Place, bytes_beside, content, held

FINDINGS_MAX: Final = 1_000
PAGES_PER_STEP: Final = 1_024

Progress = Callable[[int, int], None]
"""Told now and then how many of how many bytes are done."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it must be.

    Attributes:
        channel: whose; empty: of the file itself.
    """

    channel: str
    text: str


@dataclass(frozen=True, slots=True)
class ChannelSummary:
    """What a channel has."""

    name: str
    kind: str
    declared_at_ns: int
    oldest_seq: int
    next_seq: int
    messages: int
    content_bytes: int
    parcels: int
    places: int


@dataclass(slots=True)
class Report:
    """What was read.

    Attributes:
        file_bytes: of the file and its segments.
        log_bytes: of the log beside the file, whatever of it is brought into the file already.
        findings: empty: the store is whole.
    """

    path: str
    file_bytes: int
    log_bytes: int
    channels: list[ChannelSummary] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def find(self, channel: str, text: str) -> None:
        """Note something, unless there is too much already."""
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(Finding(channel, text))


@dataclass(frozen=True, slots=True)
class _Channel:
    number: int
    name: str
    kind: int
    declared_at_ns: int
    totals: Totals

    @property
    def where(self) -> tuple[str, tuple[int, int]]:
        """What finds its parcels: a table with a condition, and its parameters."""
        if self.kind == Kind.QUEUE:
            return "queued WHERE channel BETWEEN ? AND ?", (self.number, self.number)
        return "parcel WHERE id BETWEEN ? AND ?", span(self.number)


def summarize(path: Path) -> Report:
    """Return what channels there are, without reading what is in them.

    Raises:
        InvalidConfiguration: there is no store of this version there.
        StoreDamaged: SQLite cannot make sense of it.
    """
    database = open_for_reading(path)
    try:
        report = _begun(database, path)
        for channel in _channels(database):
            report.channels.append(_summary(database, channel))
        return report
    except sqlite3.DatabaseError as error:
        raise explained(error, path) from error
    finally:
        database.close()


def check(path: Path, progress: Progress = lambda done, total: None) -> Report:
    """Read everything; return what was found.

    Raises:
        InvalidConfiguration: there is no store of this version there.
        StoreDamaged: SQLite cannot even begin.
    """
    with held(path):
        return _check(path, progress)


def _check(path: Path, progress: Progress) -> Report:
    database = open_for_reading(path)
    try:
        report = _begun(database, path)
        for (text,) in database.execute(f"PRAGMA integrity_check({FINDINGS_MAX})"):
            if text != "ok":
                report.find("", text)
        channels = list(_channels(database))
        total = sum(_stored_bytes(database, channel) for channel in channels)
        done = 0
        for channel in channels:
            report.channels.append(_summary(database, channel))
            for nbytes in _check_channel(database, channel, report):
                done += nbytes
                progress(done, total)
        _check_strays(database, report)
        return report
    except sqlite3.DatabaseError as error:
        raise explained(error, path) from error
    finally:
        database.close()


def backup(path: Path, target: Path, progress: Progress = lambda done, total: None) -> int:
    """Copy a store as it is at one moment, while it is written; return the bytes of the copy.

    Raises:
        InvalidConfiguration: there is no store of this version there.
        FileExistsError: the target is there already.
        OSError: it cannot be written. No half a copy stays.
    """
    source = open_for_reading(path)
    try:
        with open(target, "xb", opener=_private):
            pass
        try:
            with held(path):
                _copy(source, path, target, progress)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        return target.stat().st_size
    finally:
        source.close()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _copy(source: sqlite3.Connection, path: Path, target: Path, progress: Progress) -> None:
    # A read transaction that is open for as long as it takes: else each commit would begin the copy anew.
    source.execute("BEGIN")
    # What is left of a topic that was dropped may have no segments any more: it is left as it is.
    apart = f"FROM parcel WHERE segment > 0 AND id >> {ORDINAL_BITS} IN (SELECT id FROM channel)"
    (apart_bytes,) = source.execute(f"SELECT coalesce(sum(nbytes), 0) {apart}").fetchone()
    copy = sqlite3.connect(target, isolation_level=None)
    try:
        source.backup(
            copy,
            pages=PAGES_PER_STEP,
            progress=lambda _, left, total: progress(
                (total - left) * PAGE_BYTES, total * PAGE_BYTES + apart_bytes
            ),
            sleep=0,
        )
        copy.execute(
            "PRAGMA journal_mode=DELETE"
        )  # one file, complete in itself; the daemon makes it WAL again
        (pages,) = copy.execute("PRAGMA page_count").fetchone()
        done = pages * PAGE_BYTES
        copy.execute("BEGIN")
        for parcel, *place in source.execute(f"SELECT id, segment, start, nbytes {apart}"):
            data = content(path, parcel, Place(*place), b"")
            copy.execute("UPDATE parcel SET data = ?, segment = 0 WHERE id = ?", (data, parcel))
            done += len(data)
            progress(done, pages * PAGE_BYTES + apart_bytes)
        copy.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise OSError(f"{target}: {error}") from error
    finally:
        copy.close()


# ---- channels ----------------------------------------------------------------------------------------------


def _begun(database: sqlite3.Connection, path: Path) -> Report:
    report = Report(str(path), path.stat().st_size + bytes_beside(path), wal_bytes(path))
    database.execute("BEGIN")
    return report


def _channels(database: sqlite3.Connection) -> Iterator[_Channel]:
    for number, name, kind, declared_at_ns in database.execute(
        "SELECT id, name, kind, declared_at_ns FROM channel ORDER BY name"
    ).fetchall():
        yield _Channel(number, name, kind, declared_at_ns, totals(database, number, kind))


def _summary(database: sqlite3.Connection, channel: _Channel) -> ChannelSummary:
    where, parameters = channel.where
    (parcels,) = database.execute(f"SELECT count(*) FROM {where}", parameters).fetchone()
    (places,) = database.execute("SELECT count(*) FROM place WHERE channel = ?", (channel.number,)).fetchone()
    return ChannelSummary(
        channel.name,
        Kind(channel.kind).name.lower(),
        channel.declared_at_ns,
        *channel.totals,
        parcels,
        places,
    )


def _stored_bytes(database: sqlite3.Connection, channel: _Channel) -> int:
    where, parameters = channel.where
    (nbytes,) = database.execute(
        f"SELECT coalesce(sum(content_bytes), 0) FROM {where}", parameters
    ).fetchone()
    return int(nbytes)


def _check_channel(database: sqlite3.Connection, channel: _Channel, report: Report) -> Iterator[int]:
    """Check one channel; yield the content bytes of each parcel that was read."""
    if channel.kind == Kind.QUEUE:
        yield from _check_queue(database, channel, report)
    elif channel.kind == Kind.TOPIC:
        yield from _check_topic(database, channel, report)


def _check_topic(database: sqlite3.Connection, channel: _Channel, report: Report) -> Iterator[int]:
    expected, until_ns = channel.totals.oldest_seq, 0
    before: tuple[int, int] | None = None  # of the parcel before: its id, and end_bytes
    where, parameters = channel.where
    for (
        parcel,
        first_seq,
        count,
        content_bytes,
        last_time_ns,
        parcel_until_ns,
        end_bytes,
        data,
        *place,
    ) in database.execute(
        "SELECT id, first_seq, count, content_bytes, last_time_ns, until_ns, end_bytes, data,"
        f" segment, start, nbytes FROM {where} ORDER BY id",
        parameters,
    ):
        if first_seq != expected:
            report.find(channel.name, f"messages {expected} to {first_seq - 1} are missing")
        elif before is not None and before != (parcel - 1, end_bytes - content_bytes):
            report.find(channel.name, f"the messages from {first_seq} on do not follow those before them")
        before = parcel, end_bytes
        try:
            data = content(Path(report.path), parcel, Place(*place), data)
        except FileNotFoundError as error:
            report.find(channel.name, f"the messages from {first_seq} on: {error.filename} is missing")
        except StoreDamaged as error:
            report.find(channel.name, f"the messages from {first_seq} on: {error.message}")
        else:
            _check_parcel(channel, first_seq, count, content_bytes, data, report)
        until_ns = max(until_ns, last_time_ns)
        if parcel_until_ns < until_ns:
            report.find(channel.name, f"from {first_seq} on times cannot be searched for")
        expected = first_seq + count
        yield content_bytes


def _check_queue(database: sqlite3.Connection, channel: _Channel, report: Report) -> Iterator[int]:
    messages, end = 0, 1
    keys = database.execute(
        "SELECT first_seq, deliver_at_ns, lane FROM queued WHERE channel = ? ORDER BY first_seq",
        (channel.number,),
    ).fetchall()
    for first_seq, *key in keys:
        count, content_bytes, priority, data = database.execute(
            "SELECT count, content_bytes, priority, data FROM queued"
            " WHERE channel = ? AND first_seq = ? AND deliver_at_ns = ? AND lane = ?",
            (channel.number, first_seq, *key),
        ).fetchone()
        if first_seq < end or first_seq + count > channel.totals.next_seq:
            report.find(channel.name, f"messages from {first_seq} on have numbers that cannot be")
        if key[1] != (0 if key[0] else priority):
            report.find(channel.name, f"the messages from {first_seq} on are not where they belong")
        _check_parcel(channel, first_seq, count, content_bytes, data, report)
        end = first_seq + count
        found = database.execute(
            "SELECT bits FROM settled WHERE channel = ? AND first_seq = ?", (channel.number, first_seq)
        ).fetchone()
        settled = found[0] if found is not None else b""
        done = int.from_bytes(settled, "little").bit_count()
        if len(settled) * 8 >= count + 8 or done >= count:
            report.find(channel.name, f"of the messages from {first_seq} on more are settled than there are")
        messages += count - done
        yield content_bytes
    if messages != channel.totals.messages:
        report.find(channel.name, f"{messages} messages are there, {channel.totals.messages} should be")


def _check_parcel(
    channel: _Channel, first_seq: int, count: int, content_bytes: int, data: bytes, report: Report
) -> None:
    try:
        parcel = opened(data, first_seq, channel.name)
    except StoreDamaged as error:
        report.find(channel.name, error.message)
        return
    payloads, headers, _, _ = parcel.unpack()
    if parcel.count != count or sum(map(len, payloads)) + sum(map(len, headers)) != content_bytes:
        report.find(channel.name, f"the messages from {first_seq} on are not those that were stored")


def _check_strays(database: sqlite3.Connection, report: Report) -> None:
    """What belongs to no channel, and is not on its way out."""
    known = "(SELECT id FROM channel UNION ALL SELECT channel FROM dropped)"
    tables = ("queued", "message_id", "attempt", "settled", "taken", "place", "value")
    for table, number in (("parcel", f"id >> {ORDINAL_BITS}"), *((table, "channel") for table in tables)):
        (count,) = database.execute(
            f"SELECT count(DISTINCT {number}) FROM {table} WHERE {number} NOT IN {known}"
        ).fetchone()
        if count:
            report.find("", f"{count} channels have rows in {table} and are not there")
