"""A segment of shared memory that a foreign program owns.

Theory of operation
    What is in a POSIX segment is read by read(2) on its descriptor, which comes back short where a mapping
    would raise SIGBUS; what is written, and words that are changed, go through system calls on our own
    mapping, which fail (``_native``). So an owner who cuts a segment short brings about an error here, and a
    write never makes it longer, as write(2) would. A System V segment has no descriptor, and cannot shrink.

Invariants
    The segment is never made, resized or removed here.

Sources: shm_overview(7), shmget(2), futex(2).
"""

from __future__ import annotations

import os
import stat
import struct
from typing import Final

from towpath.bindings.shm import ShmPlace
from towpath.errors import BindingFailed
from towpath_broker.gateways.bridge import _native
from towpath_broker.gateways.bridge.words import SHM_FOLDER, failure

WORD: Final = struct.Struct("=I")


class Segment:
    """One segment that is there.

    Args:
        place: which.
        is_writable: it is written to.

    Attributes:
        path: of a POSIX segment's file; empty for System V.

    Raises:
        BindingFailed: there is none (retryable), we may not, or it is no segment.
    """

    def __init__(self, place: ShmPlace, *, is_writable: bool) -> None:
        self._place = place
        self._is_writable = is_writable
        self._descriptor = -1
        self._address = 0
        self._mapped_bytes = 0
        self.path = f"{SHM_FOLDER}{place.name}" if place.name else ""
        with failure(f"cannot open {place.segment}"):
            if self.path:
                self._open()
            else:
                self._id, self._size_bytes = _native.find_segment(place.key)
                self._address = _native.attach_segment(self._id, is_writable)

    def _open(self) -> None:
        access = os.O_RDWR if self._is_writable else os.O_RDONLY
        self._descriptor = os.open(self.path, access | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        self._found = os.fstat(self._descriptor)
        if not stat.S_ISREG(self._found.st_mode):
            os.close(self._descriptor)
            raise BindingFailed(f"{self.path} is no segment of shared memory", hint="it was left alone")

    @property
    def size_bytes(self) -> int:
        """How large it is now."""
        return os.fstat(self._descriptor).st_size if self.path else self._size_bytes

    @property
    def link(self) -> str:
        """A path that leads to this very file, whatever happens to its name."""
        return f"/proc/self/fd/{self._descriptor}"

    @property
    def identity(self) -> str:
        """Tells it from one that is made anew under its name."""
        return f"{self._found.st_ino}:{self._found.st_ctime_ns}" if self.path else str(self._id)

    def is_there(self) -> bool:
        """Whether its name still leads to it."""
        try:
            if self.path:
                return os.path.samestat(os.lstat(self.path), self._found)
            return _native.find_segment(self._place.key)[0] == self._id
        except OSError:
            return False

    def check(self, end: int) -> None:
        """Refuse to work on what is not there.

        Args:
            end: how much of it is needed, in bytes.

        Raises:
            BindingFailed: it ends before that, or was removed; retryable.
        """
        if not self.is_there():
            raise BindingFailed(f"{self._place.segment} was removed or replaced", retryable=True)
        if self.size_bytes < end:
            raise self._too_short(end)

    def read(self, offset: int, length: int) -> bytes:
        """Copy bytes out.

        Raises:
            BindingFailed: the segment ends before; retryable.
        """
        if self.path:
            with failure(f"cannot read {self._place.segment}"):
                data = os.pread(self._descriptor, length, offset)
            if len(data) == length:
                return data
        elif offset + length <= self._size_bytes:
            return _native.read_memory(self._address + offset, length)
        raise self._too_short(offset + length)

    def word(self, offset: int) -> int:
        """Read a word. What is read before and after stays before and after."""
        _native.fence()
        value: int = WORD.unpack(self.read(offset, WORD.size))[0]
        _native.fence()
        return value

    def write(self, offset: int, data: bytes) -> None:
        """Copy bytes in.

        Raises:
            BindingFailed: the segment ends before, or has shrunk; retryable. A part may have been written.
        """
        address = self._mapped(offset + len(data))
        try:
            _native.write_memory(address + offset, data)
        except OSError:
            raise self._too_short(offset + len(data)) from None

    def advance(self, offset: int) -> None:
        """Add one to a word, and wake whoever sleeps on it.

        Raises:
            BindingFailed: as :meth:`write`.
        """
        address = self._mapped(offset + WORD.size)
        try:
            _native.add_and_wake(address + offset, 1)
        except OSError:
            raise self._too_short(offset + WORD.size) from None

    def address_of(self, offset: int) -> int:
        """Return a word's address, to be waited for; not to be touched.

        Raises:
            BindingFailed: the segment ends before; retryable.
        """
        return self._mapped(offset + WORD.size) + offset

    def close(self) -> None:
        """Let go of it."""
        if self._mapped_bytes:
            _native.unmap_memory(self._address, self._mapped_bytes)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        elif self._address:
            _native.detach_segment(self._address)

    def _mapped(self, end: int) -> int:
        if self.path and end > self._mapped_bytes:
            size_bytes = self.size_bytes
            if size_bytes < end:
                raise self._too_short(end)
            if self._mapped_bytes:
                _native.unmap_memory(self._address, self._mapped_bytes)
                self._mapped_bytes = 0
            with failure(f"cannot map {self._place.segment}"):
                self._address = _native.map_memory(self._descriptor, size_bytes, self._is_writable)
            self._mapped_bytes = size_bytes
        elif not self.path and end > self._size_bytes:
            raise self._too_short(end)
        return self._address

    def _too_short(self, end: int) -> BindingFailed:
        return BindingFailed(
            f"{self._place.segment} has {self.size_bytes} bytes, and the binding needs {end}",
            hint="its owner has made it shorter, or not yet long enough",
            retryable=True,
        )
