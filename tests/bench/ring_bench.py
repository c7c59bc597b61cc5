"""What the ring carries between two processes, Python on both ends: run by hand or by ``make bench``.

Each case forks a writer; this process reads. Figures are of one run on one machine, so only ratios mean much:
the last column sets each case against the first.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

from towpath._ring import Reader, Writer

if TYPE_CHECKING:
    from collections.abc import Callable

FOREVER = -1
RING_BYTES = 4 << 20
RUN_NS = 700_000_000  # how long the writer of a case writes


def write_batches(writer: Writer, size: int, batch: int) -> None:
    """Publish batches until the time is over."""
    payloads = [b"x" * size] * batch
    end_ns = time.monotonic_ns() + RUN_NS
    while time.monotonic_ns() < end_ns:
        start = 0
        while start < batch:
            taken = writer.try_publish_many(payloads, start)
            if taken == 0:
                writer.wait_room(size, FOREVER)
            start += taken


def write_singly(writer: Writer, size: int, _batch: int) -> None:
    """Publish one message for each call until the time is over."""
    payload = b"x" * size
    publish, end_ns = writer.try_publish, time.monotonic_ns() + RUN_NS
    while time.monotonic_ns() < end_ns:
        for _ in range(100):
            while not publish(payload):
                writer.wait_room(size, FOREVER)


def begin_writer(write: Callable[[Writer, int, int], None], size: int, batch: int) -> tuple[Reader, int]:
    """Fork a writer that runs `write`, connected to the reader that is returned with its pid."""
    ours, theirs = socket.socketpair()
    reader = Reader(2)
    control = reader.share()
    pid = os.fork()
    if pid == 0:
        writer = Writer(1, RING_BYTES)
        writer.attach(2, control, 0, -1, True)
        socket.send_fds(theirs, [b"x"], [writer.share()])
        write(writer, size, batch)
        writer.close()
        os._exit(0)
    _, [ring], _, _ = socket.recv_fds(ours, 10, 1)
    reader.add(ring, 0, 1, "bench", True)
    for fd in (ring, control):
        os.close(fd)
    ours.close()
    theirs.close()
    return reader, pid


def throughput(
    write: Callable[[Writer, int, int], None], size: int, batch: int, count_max: int
) -> tuple[float, float]:
    """Messages and bytes per second."""
    reader, pid = begin_writer(write, size, batch)
    received, began_ns = 0, time.monotonic_ns()
    while not reader.take_drained():
        while messages := reader.receive(count_max, 64 << 20, FOREVER):
            received += len(messages)
    seconds = (time.monotonic_ns() - began_ns) / 1e9
    os.waitpid(pid, 0)
    reader.close()
    return received / seconds, received * size / seconds


def round_trips(rounds: int) -> tuple[float, float]:
    """The median and the 99th percentile of a round trip, in microseconds."""
    ours, theirs = socket.socketpair()
    writer, reader = Writer(1, 65536), Reader(1)
    there, back = writer.share(), reader.share()
    pid = os.fork()
    if pid == 0:
        own, other = Writer(2, 65536), Reader(2)
        own.attach(1, back, 0, -1, True)
        other.add(there, 0, 1, "bench", True)
        socket.send_fds(theirs, [b"x"], [own.share(), other.share()])
        for _ in range(rounds):
            other.receive(1, 1000, FOREVER)
            own.try_publish(b"pong")
        theirs.recv(1)
        os._exit(0)
    _, [ring, control], _, _ = socket.recv_fds(ours, 10, 2)
    writer.attach(2, control, 0, -1, True)
    reader.add(ring, 0, 2, "bench", True)
    times = []
    for _ in range(rounds):
        began_ns = time.perf_counter_ns()
        writer.try_publish(b"ping")
        reader.receive(1, 1000, FOREVER)
        times.append(time.perf_counter_ns() - began_ns)
    ours.send(b"x")
    os.waitpid(pid, 0)
    times.sort()
    return times[rounds // 2] / 1000, times[rounds * 99 // 100] / 1000


CASES: list[tuple[str, Callable[[Writer, int, int], None], int, int, int]] = [
    ("64 B, batches of 256 to batches", write_batches, 64, 256, 256),
    ("64 B, one call each to batches", write_singly, 64, 1, 256),
    ("64 B, one call each to one call each", write_singly, 64, 1, 1),
    ("1 KiB, batches of 64", write_batches, 1 << 10, 64, 256),
    ("64 KiB, batches of 16", write_batches, 1 << 16, 16, 16),
    ("64 KiB, one call each", write_singly, 1 << 16, 1, 16),
    ("1 MiB less 1 KiB, one call each", write_singly, (1 << 20) - 1024, 1, 4),
]


def main() -> None:
    print(f"{'case':40} {'messages/s':>12} {'GB/s':>7} {'ratio':>7}")
    first = 0.0
    for name, write, size, batch, count_max in CASES:
        messages, size_rate = throughput(write, size, batch, count_max)
        first = first or messages
        print(f"{name:40} {messages:12,.0f} {size_rate / 1e9:7.2f} {messages / first:7.3f}")
    median, worst = round_trips(50_000)
    print(f"round trip: median {median:.2f} us, 99th percentile {worst:.2f} us")


if __name__ == "__main__":
    main()
