"""A file of records that is only ever written at its end: an append costs one system call.

Theory of operation
    The records of one append are one *frame*: a checksum, the frame's length, the position of its first
    record, and each record behind its length::

        0        4        8                16       20
        | crc32  | nbytes | first position | length | record ... | length | record ...
                          |<------------- nbytes ---------------------------------- >|

    A frame was appended if it is there whole. It is written by one pwrite(2): what the kernel has been given
    survives this process, and a frame that was cut short, by a kill or a loss of power, has another checksum.
    Each checksum begins with that of the frame before, so what once stood behind it, and was given up, is
    never taken for what comes after it. Whoever opens the file reads it through, to where frames end, and
    cuts off the rest.

Invariants
    Frames are whole, and their positions contiguous, up to the end that is known here.
    An append that fails leaves that end where it was.

Not here: what is in records, and when they are not needed any more (``logged``).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import BinaryIO, Final, NamedTuple
from zlib import crc32

from towpath_broker.host.syncing import sync_directory

READ_BYTES: Final = 1 << 20
"""At a time."""
_HEAD: Final = Struct("<II")
_FIRST: Final = Struct("<Q")
_LENGTH: Final = Struct("<I")
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LogFull(OSError):
    """There is no room for an append; nothing of it was kept."""


class _Frame(NamedTuple):
    """One that is whole.

    Attributes:
        end: where the next one begins.
        check: its checksum.
        body: first position, and records.
    """

    end: int
    check: int
    body: bytes


class Log:
    """Records in a file. Made if it is not there; for its owner only (0600).

    Args:
        path: nobody else has it open to write.

    Raises:
        OSError: the host refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            sync_directory(path.parent)
            self.last_position = 0
            """That of the last record; 0: there is none."""
            self._end = self._check = 0
            for frame in self._frames():
                self._end, self._check = frame.end, frame.check
                self.last_position = _first(frame) + sum(1 for _ in _records(frame)) - 1
            os.ftruncate(self._file, self._end)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, records: Sequence[bytes], first: int) -> None:
        """Give records to the kernel, all or none. O(bytes).

        Args:
            records: at least one.
            first: the position of the first; that after the last which is there, if one is.

        Raises:
            LogFull: there is no room.
            OSError: the host failed. Either way nothing has changed.
        """
        parts = [_FIRST.pack(first)]
        for record in records:
            parts += (_LENGTH.pack(len(record)), record)
        body = b"".join(parts)
        check = crc32(body, self._check)
        frame = _HEAD.pack(check, len(body)) + body
        try:
            written = os.pwrite(self._file, frame, self._end)
        except OSError as error:
            raise (LogFull(*error.args) if error.errno in _NO_ROOM else error) from None
        if written != len(frame):
            raise LogFull(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._end += written
        self._check = check
        self.last_position = first + len(records) - 1

    def sync(self) -> None:
        """Return when all that was appended survives a loss of power."""
        os.fdatasync(self._file)

    def clear(self) -> None:
        """Drop all records."""
        os.ftruncate(self._file, 0)
        self._end = self._check = self.last_position = 0

    def read(self, after: int) -> Iterator[tuple[int, bytes]]:
        """Yield position and record of all that come after a position, in order, of those there are now."""
        end = self._end
        for frame in self._frames():
            if frame.end > end:
                break
            for position, record in enumerate(_records(frame), _first(frame)):
                if position > after:
                    yield position, record

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _frames(self) -> Iterator[_Frame]:
        """Yield the frames from the beginning on, up to the first that is not whole or does not follow."""
        with open(self._path, "rb", READ_BYTES) as file:
            left = os.fstat(file.fileno()).st_size
            check = end = 0
            while (body := _body(file, left - end, check)) is not None:
                check = crc32(body, check)
                end += _HEAD.size + len(body)
                yield _Frame(end, check, body)


def _body(file: BinaryIO, left: int, before: int) -> bytes | None:
    """Read what is in a frame; None: it is not whole, or not of this place.

    Args:
        left: bytes of the file from here.
        before: the checksum of the frame before.
    """
    if left < _HEAD.size:
        return None
    check, nbytes = _HEAD.unpack(file.read(_HEAD.size))
    if not _FIRST.size <= nbytes <= left - _HEAD.size:
        return None
    body = file.read(nbytes)
    return body if crc32(body, before) == check else None


def _first(frame: _Frame) -> int:
    (first,) = _FIRST.unpack_from(frame.body)
    assert isinstance(first, int)
    return first


def _records(frame: _Frame) -> Iterator[bytes]:
    place, body = _FIRST.size, frame.body
    while place < len(body):
        (length,) = _LENGTH.unpack_from(body, place)
        place += _LENGTH.size + length
        yield body[place - length : place]
