"""Appending to a file from a thread, with a bounded buffer: whoever appends waits for no disk."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from typing import Final

from towpath.cli.streams import StreamError

BUFFER_BYTES_MAX: Final = 64 << 20
"""What may wait to be written; one record is always taken when nothing waits."""


class Appender:
    """A new file, written in order and in whole records as far as the file system lets it.

    Args:
        path: of the file.
        replaces: whether a file that is there may be replaced.
        waits: whether :meth:`put` waits while the buffer is full.

    Attributes:
        written_bytes: what is in the file.

    Raises:
        OSError: the file cannot be made; FileExistsError when it is there already.
    """

    def __init__(self, path: str, *, replaces: bool, waits: bool) -> None:
        self.path = path
        self.written_bytes = 0
        self._waits = waits
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_TRUNC if replaces else os.O_EXCL)
        self._file = os.open(path, flags, 0o666)
        self._records: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._error: OSError | None = None
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="recording", daemon=True)
        self._thread.start()

    def put(self, record: bytes) -> bool:
        """Have a record appended; False when the buffer is full, and then nothing was done.

        Raises:
            StreamError: the file cannot be written.
        """
        with self._changed:
            while self._is_full(len(record)):
                if not self._waits:
                    return False
                self._changed.wait()
            self.check()
            self._records.append(record)
            self._buffered_bytes += len(record)
            self._changed.notify_all()
        return True

    def close(self) -> None:
        """Write what is buffered, have it reach the disk, and close the file. More than once is fine.

        Raises:
            StreamError: the file could not be written.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        if self._file >= 0:
            file, self._file = self._file, -1
            try:
                os.fsync(file)
            except OSError as error:
                if error.errno != errno.EINVAL:  # a device has no disk
                    self._error = self._error or error
            finally:
                os.close(file)
        self.check()

    def _is_full(self, size: int) -> bool:
        has_room = not self._records or self._buffered_bytes + size <= BUFFER_BYTES_MAX
        return not has_room and self._error is None

    def check(self) -> None:
        """Raise StreamError if the file cannot be written."""
        if self._error is not None:
            raise StreamError(f"cannot write to {self.path}: {self._error.strerror}")

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._records and not self._closing:
                    self._changed.wait()
                if not self._records:
                    return
                record = self._records[0]
            try:
                self._write(record)
            except OSError as error:
                with self._changed:
                    self._error = error
                    self._records.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                self._records.popleft()
                self._buffered_bytes -= len(record)
                self._changed.notify_all()

    def _write(self, record: bytes) -> None:
        rest = memoryview(record)
        while rest:
            written = os.write(self._file, rest)
            self.written_bytes += written
            rest = rest[written:]
