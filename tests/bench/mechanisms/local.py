"""What the host and the standard library offer: pipes, FIFOs, POSIX message queues, multiprocessing's.

A pipe knows no messages, so both ends agree on the size, and END is a payload of zeros.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import resource
from collections.abc import Iterator
from functools import partial
from multiprocessing.queues import Queue
from typing import Final

from tests.bench.load import Load
from tests.bench.mechanisms.link import Blocking, Receive, Send
from tests.bench.site import Site

PIPE_BYTES: Final = 1 << 20
"""What an unprivileged process may ask for (/proc/sys/fs/pipe-max-size); the best for the peer."""
WHOLE_BYTES: Final = 4096
"""Writes up to PIPE_BUF are atomic, so reads of one size get whole messages."""
MQ_MESSAGES_MAX: Final = 10
"""What an unprivileged queue may hold (/proc/sys/fs/mqueue/msg_max)."""
MQ_OVERHEAD_BYTES: Final = 64
"""What the kernel charges for each message beside its size, at least."""
QUEUED_MAX: Final = 1_000


def read_exactly(descriptor: int, size: int) -> bytes:
    """Read one message of a stream."""
    data = os.read(descriptor, size)
    if len(data) == size:
        return data
    parts, left = [data], size - len(data)
    while left:
        parts.append(os.read(descriptor, left))
        left -= len(parts[-1])
    return b"".join(parts)


def write_all(descriptors: list[int], payload: bytes) -> None:
    """Write one message, whole, to each."""
    for descriptor in descriptors:
        written = os.write(descriptor, payload)
        while written < len(payload):
            written += os.write(descriptor, memoryview(payload)[written:])


def sending(descriptors: list[int], size: int) -> Send:
    """The quickest way to write: one system call and nothing else, where that is enough."""
    if len(descriptors) == 1 and size <= WHOLE_BYTES:
        return partial(os.write, descriptors[0])
    return partial(write_all, descriptors)


def receiving(descriptor: int, size: int) -> Receive:
    """The quickest way to read."""
    return partial(os.read if size <= WHOLE_BYTES else read_exactly, descriptor, size)


class OsPipe(Blocking):
    """``os.pipe``, raw ``os.write`` and ``os.read``."""

    name = "os.pipe"
    family = "local"

    def make(self) -> None:
        self.end = bytes(self.load.size_bytes)
        self._pairs = [os.pipe() for _ in range(self.load.readers)]
        for read, _ in self._pairs:
            fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def unmake(self) -> None:
        for pair in self._pairs:
            for descriptor in pair:
                os.close(descriptor)

    @contextlib.contextmanager
    def writer(self) -> Iterator[Send]:
        yield sending([write for _, write in self._pairs], self.load.size_bytes)

    @contextlib.contextmanager
    def reader(self, index: int) -> Iterator[Receive]:
        yield receiving(self._pairs[index][0], self.load.size_bytes)


class Fifo(Blocking):
    """A FIFO, raw ``os.write`` and ``os.read``."""

    name = "FIFO"
    family = "local"

    def make(self) -> None:
        self.end = bytes(self.load.size_bytes)
        self._paths = [self.site.directory / f"{self.word}.{index}" for index in range(self.load.readers)]
        for path in self._paths:
            os.mkfifo(path)

    def unmake(self) -> None:
        for path in self._paths:
            path.unlink()

    @contextlib.contextmanager
    def writer(self) -> Iterator[Send]:
        descriptors = [os.open(path, os.O_WRONLY) for path in self._paths]  # waits for the reader
        fcntl.fcntl(descriptors[0], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        yield sending(descriptors, self.load.size_bytes)
        for descriptor in descriptors:
            os.close(descriptor)

    @contextlib.contextmanager
    def reader(self, index: int) -> Iterator[Receive]:
        # Without O_NONBLOCK both ends of a round trip would wait for each other's writer.
        descriptor = os.open(self._paths[index], os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(descriptor, True)
        # A read before the writer has come would return the end of the stream: hold the writing side open.
        held = os.open(self._paths[index], os.O_WRONLY)
        yield receiving(descriptor, self.load.size_bytes)
        os.close(held)
        os.close(descriptor)


def _allowed_queue_bytes() -> float:
    allowed = resource.getrlimit(resource.RLIMIT_MSGQUEUE)[0]
    return float("inf") if allowed == resource.RLIM_INFINITY else allowed


def _make_queue(name: str, size_bytes: int) -> None:
    import posix_ipc

    flags = posix_ipc.O_CREX
    posix_ipc.MessageQueue(name, flags, max_messages=MQ_MESSAGES_MAX, max_message_size=size_bytes).close()


class PosixMq(Blocking):
    """A POSIX message queue."""

    name = "POSIX mq"
    family = "local"
    module = "posix_ipc"

    @classmethod
    def obstacle(cls, site: Site, load: Load) -> str:
        import posix_ipc

        queues = 2 if load.pattern == "round trip" else load.readers
        if queues * MQ_MESSAGES_MAX * (load.size_bytes + MQ_OVERHEAD_BYTES) > _allowed_queue_bytes():
            return f"RLIMIT_MSGQUEUE allows {_allowed_queue_bytes():,.0f} bytes"
        name = f"/towpath-{os.getpid()}"
        try:
            _make_queue(name, load.size_bytes)
        except ValueError:
            return f"the host takes no messages of {load.size_bytes:,} bytes (fs.mqueue.msgsize_max)"
        posix_ipc.unlink_message_queue(name)
        return ""

    def make(self) -> None:
        self._names = [f"/towpath-{os.getpid()}-{self.word}-{index}" for index in range(self.load.readers)]
        for name in self._names:
            _make_queue(name, self.load.size_bytes)

    def unmake(self) -> None:
        import posix_ipc

        for name in self._names:
            posix_ipc.unlink_message_queue(name)

    @contextlib.contextmanager
    def writer(self) -> Iterator[Send]:
        import posix_ipc

        queues = [posix_ipc.MessageQueue(name) for name in self._names]

        def send_to_all(payload: bytes) -> None:
            for queue in queues:
                queue.send(payload)

        yield queues[0].send if len(queues) == 1 else send_to_all

    @contextlib.contextmanager
    def reader(self, index: int) -> Iterator[Receive]:
        import posix_ipc

        receive = posix_ipc.MessageQueue(self._names[index]).receive
        yield lambda: receive()[0]


class MultiprocessingQueue(Blocking):
    """``multiprocessing.Queue``."""

    name = "multiprocessing.Queue"
    family = "local"

    def make(self) -> None:
        context = multiprocessing.get_context("fork")
        bound = max(4, min(QUEUED_MAX, (4 << 20) // self.load.size_bytes))
        self._queues: list[Queue[bytes]] = [context.Queue(bound) for _ in range(self.load.readers)]

    def unmake(self) -> None:
        for queue in self._queues:
            queue.close()

    @contextlib.contextmanager
    def writer(self) -> Iterator[Send]:
        queues = self._queues

        def send_to_all(payload: bytes) -> None:
            for queue in queues:
                queue.put(payload)

        yield queues[0].put if len(queues) == 1 else send_to_all
        for queue in queues:
            queue.close()
            queue.join_thread()

    @contextlib.contextmanager
    def reader(self, index: int) -> Iterator[Receive]:
        yield self._queues[index].get


MECHANISMS: Final = (OsPipe, Fifo, PosixMq, MultiprocessingQueue)
