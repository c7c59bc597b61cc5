"""What the Python tests of the ring share: connected pairs, forged memfds."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import struct
from typing import TYPE_CHECKING, Literal

from towpath._ring import GenerationTable, Message, Reader, Writer

if TYPE_CHECKING:
    from collections.abc import Iterator

SECOND_NS = 1_000_000_000
LONG_NS = 60 * SECOND_NS  # a wait that must end before


@contextlib.contextmanager
def shared(owner: Writer | Reader | GenerationTable) -> Iterator[int]:
    """A descriptor of the owner's memory, closed afterwards."""
    fd = owner.share()
    try:
        yield fd
    finally:
        os.close(fd)


def connect(
    writer: Writer, reader: Reader, slot: int = 0, *, start: Literal["tail", "start", "history"] = "start"
) -> None:
    with shared(writer) as ring, shared(reader) as control:
        writer.attach(reader.reader, control, slot, -1, start)
        reader.add(ring, slot, writer.source, "plant.line1", start)


def payloads(messages: list[Message]) -> list[bytes]:
    return [message.payload for message in messages]


def fill(writer: Writer, payload: bytes = b"x" * 1000) -> int:
    count = 0
    while writer.try_publish(payload) > 0:
        count += 1
    return count


def memfd(content: bytes, size: int, seals: int = 0x7) -> int:
    """An O_RDONLY descriptor of a memfd with this content and these seals."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, content)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


class Forged:
    """A sealed memfd that we can write at any time, begun as a copy of a true one."""

    def __init__(self, true_fd: int) -> None:
        size = os.fstat(true_fd).st_size
        writable = os.memfd_create("forged", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(writable, os.pread(true_fd, size, 0))
        fcntl.fcntl(writable, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self.memory = mmap.mmap(writable, size)
        self.fd = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
        os.close(writable)

    def put(self, at: int, form: str, *values: int) -> None:
        struct.pack_into(form, self.memory, at, *values)

    def close(self) -> None:
        os.close(self.fd)
        self.memory.close()
