"""Large parcels of durable topics: in files of their own beside the store's, written once.

Theory of operation
    SQLite writes all that it is given twice, into its log and later into its file, with a checksum over it
    in between. For a parcel of many messages that is most of what a commit costs. So one of ``APART_BYTES``
    or more is appended to a *segment*, and its row says where (:class:`Place`). A commit first writes and
    syncs segments and then commits the rows: what a row names is on disk, and what no row names is not there,
    whatever lies in the segment. A parcel has a CRC over all of it, as in a row.

    A segment is one topic's, and named by the ordinal of its first parcel (``numbers``). Topics let go of
    their oldest parcels only; so a segment is let go as a whole, when none of its parcels has a row. A
    segment goes on at the end of what was committed last; after a restart a topic begins a new one, so that
    nobody must find out where that end was.

    Files are unlinked after the commit that lets go of them, ``UNLINKED_MAX`` with each commit. Who reads
    from an older state of the rows may find a file gone, and asks again (``reading``). Who reads one state
    for long (``check``) holds it (:func:`held`): no file is unlinked meanwhile.

Invariants
    What a committed row names is neither written again nor cut off.
    Between two commits nothing is known here that rows and the directory do not say.

Not here: rows (``topics``), what a parcel is (``contents``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from towpath.errors import StoreDamaged, StoreFull

from .numbers import ORDINAL_MAX, newest_id, oldest_id

APART_BYTES: Final = 64 << 10
"""A packed parcel of so many bytes goes to a segment."""
SEGMENT_BYTES: Final = 16 << 20
"""A segment that has so many is not written any more. A topic may have so much more on disk than it keeps."""
UNLINKED_MAX: Final = 4
"""Segments that are unlinked with one commit."""

_NAME: Final = re.compile("([0-9a-f]{1,16})-([0-9a-f]{1,16})")


class Place(NamedTuple):
    """Where a parcel is: in a segment, from a byte on; ``segment`` 0: in its row."""

    segment: int
    start: int
    nbytes: int


IN_ROW: Final = Place(0, 0, 0)


def directory_of(path: Path) -> Path:
    """Where a store's segments are."""
    return path.with_name(f"{path.name}-parcels")


def _name(number: int, segment: int) -> str:
    return f"{number:x}-{segment:x}"


def content(path: Path, parcel_id: int, place: Place, data: bytes) -> bytes:
    """Return a packed parcel, as its row and the segments of the store at ``path`` have it.

    Args:
        data: what is in the row.

    Raises:
        FileNotFoundError: the segment is not there: it was let go since the row was read, or is missing.
        StoreDamaged: the segment is too short.
    """
    if not place.segment:
        return data
    file = directory_of(path) / _name(parcel_id // (ORDINAL_MAX + 1), place.segment)
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found = os.pread(descriptor, place.nbytes, place.start)
    finally:
        os.close(descriptor)
    if len(found) != place.nbytes:
        raise StoreDamaged(f"{file} ends before byte {place.start + place.nbytes}")
    return found


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep the segments of the store at ``path`` from being unlinked; to be entered before rows are read."""
    try:
        descriptor = os.open(directory_of(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:  # a copy, which has everything in its rows
        yield
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def bytes_beside(path: Path) -> int:
    """What all segments of the store at ``path`` have. O(segments)."""
    total = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(directory_of(path)) as found:
        for each in found:
            with contextlib.suppress(FileNotFoundError):
                total += each.stat().st_size
    return total


@dataclass(slots=True)
class _Segment:
    """A segment that this run of the store writes.

    Attributes:
        end: where the next parcel goes.
        committed: where it went before this commit; -1: the segment was not there.
        descriptor: open while a commit writes it; -1: it does not.
    """

    number: int
    ordinal: int
    end: int = 0
    committed: int = -1
    descriptor: int = -1


class Segments:
    """Writes the segments of a store, inside its writer's transactions.

    ``append``, ``let_go`` and ``drop`` as rows are carried out, ``sync`` before they are committed, and
    ``keep``, ``undo`` or ``abandon`` after that.

    Args:
        path: the store's file. The directory of its segments is there.
        bytes_max: what all segments may have together; 0: as far as the disk goes.
    """

    def __init__(self, path: Path, bytes_max: int) -> None:
        self._path = directory_of(path)
        self._bytes_max = bytes_max
        self._bytes = 0
        self._directory = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._files: dict[int, list[int]] = {}  # by topic: its segments, the oldest first
        self._newest: dict[int, _Segment] = {}  # by topic: the one that this run writes
        self._touched: list[_Segment] = []  # by this commit
        self._gone: dict[int, tuple[int, int]] = {}  # by topic: what this commit lets go of, see let_go
        self._doomed: dict[tuple[int, int], None] = {}

    def take_up(self, database: sqlite3.Connection) -> None:
        """See what segments there are; doom what a crash left behind. Once, first. O(segments)."""
        for name in os.listdir(self._path):
            if not (found := _NAME.fullmatch(name)):  # not ours
                continue
            number, ordinal = (int(part, 16) for part in found.groups())
            self._files.setdefault(number, []).append(ordinal)
            self._bytes += (self._path / name).stat().st_size
        channels = {number for (number,) in database.execute("SELECT id FROM channel")}
        for number, segments in tuple(self._files.items()):
            segments.sort()
            oldest, newest = oldest_id(database, number), newest_id(database, number)
            if number not in channels or oldest is None or newest is None:
                self._doom(number, ORDINAL_MAX, 0)
                continue
            # Behind the newest parcel there is what a commit wrote that was cut short.
            while segments and segments[-1] > newest & ORDINAL_MAX:
                self._doomed[number, segments.pop()] = None
            self._doom(number, oldest & ORDINAL_MAX, (newest & ORDINAL_MAX) + 1)
        self._unlink_some()

    # ---- a commit ------------------------------------------------------------------------------------------

    def append(self, number: int, ordinal: int, data: bytes) -> Place:
        """Write a topic's next parcel.

        Raises:
            StoreFull: there is no room.
            OSError: the host refuses otherwise.
        """
        segment = self._newest.get(number)
        if segment is None or segment.end >= SEGMENT_BYTES:
            segment = self._newest[number] = _Segment(number, ordinal)
        if self._bytes_max and self._bytes + len(data) > self._bytes_max:
            raise StoreFull(f"there is no room in {self._path}: its bound is reached")
        start = segment.end
        missing = memoryview(data)
        try:
            if segment.descriptor < 0:
                self._open(segment)
            while missing:
                written = os.pwrite(segment.descriptor, missing, segment.end)
                segment.end += written
                self._bytes += written
                missing = missing[written:]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StoreFull(f"there is no room in {self._path}: {error.strerror}") from error
        return Place(segment.ordinal, start, len(data))

    def _open(self, segment: _Segment) -> None:
        flags = os.O_WRONLY | os.O_CLOEXEC
        if segment.committed < 0:
            # One of that name that is there already is a commit's that was cut short: no row ever named it.
            flags |= os.O_CREAT | os.O_TRUNC
            self._doomed.pop((segment.number, segment.ordinal), None)
        name = _name(segment.number, segment.ordinal)
        segment.descriptor = os.open(name, flags, 0o600, dir_fd=self._directory)
        self._touched.append(segment)

    def let_go(self, number: int, oldest: int, following: int) -> None:
        """A topic's parcels below an ordinal are let go by this commit.

        Args:
            oldest: the ordinal of the first that stays, or ``following``.
            following: the ordinal that the topic's next parcel will have.
        """
        self._gone[number] = oldest, following

    def drop(self, number: int) -> None:
        """A topic is dropped by this commit."""
        self._gone[number] = ORDINAL_MAX, 0

    def sync(self) -> None:
        """Have on disk what was written."""
        for segment in self._touched:
            os.fdatasync(segment.descriptor)
        if any(segment.committed < 0 for segment in self._touched):
            os.fsync(self._directory)

    def keep(self) -> None:
        """The commit is on disk."""
        for segment in self._touched:
            if segment.committed < 0:
                self._files.setdefault(segment.number, []).append(segment.ordinal)
            segment.committed = segment.end
        self._close_touched()
        for number, (oldest, following) in self._gone.items():
            self._doom(number, oldest, following)
        self._gone.clear()
        self._unlink_some()

    def undo(self) -> None:
        """Nothing of the commit is there, and that is certain: write over it, and give its room back."""
        for segment in self._touched:
            self._bytes -= segment.end - max(segment.committed, 0)
            segment.end = max(segment.committed, 0)
            with contextlib.suppress(OSError):  # what cannot be cut off is written over
                os.ftruncate(segment.descriptor, segment.end)
            if segment.committed < 0:
                os.unlink(_name(segment.number, segment.ordinal), dir_fd=self._directory)
        self._newest = {number: each for number, each in self._newest.items() if each.committed >= 0}
        self._close_touched()
        self._gone.clear()
        self._unlink_some()

    def abandon(self) -> None:
        """The commit failed, and may be there or not: what it wrote stays, and nothing follows it."""
        for segment in self._touched:
            self._newest.pop(segment.number, None)
        self._close_touched()
        self._gone.clear()

    def _close_touched(self) -> None:
        for segment in self._touched:
            os.close(segment.descriptor)
            segment.descriptor = -1
        self._touched.clear()

    def close(self) -> None:
        """Give up the directory; more than once is fine."""
        self._close_touched()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    # ---- letting go ----------------------------------------------------------------------------------------

    def has(self, number: int) -> bool:
        """Whether a topic has, or had, a segment that is still there."""
        return number in self._files or any(number == doomed for doomed, _ in self._doomed)

    def _doom(self, number: int, oldest: int, following: int) -> None:
        """Doom a topic's segments that have no parcel any more."""
        segments = self._files.get(number, [])
        while segments and (segments[1] if len(segments) > 1 else following) <= oldest:
            self._doomed[number, segments.pop(0)] = None
        if not segments:
            self._files.pop(number, None)
            self._newest.pop(number, None)

    def _unlink_some(self) -> None:
        """Unlink what is doomed, unless somebody reads an older state."""
        if not self._doomed:
            return
        try:
            fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        for number, ordinal in tuple(self._doomed)[:UNLINKED_MAX]:
            with contextlib.suppress(FileNotFoundError):  # an operator was quicker
                file = self._path / _name(number, ordinal)
                self._bytes -= file.stat().st_size
                file.unlink()
            del self._doomed[number, ordinal]
        fcntl.flock(self._directory, fcntl.LOCK_UN)
