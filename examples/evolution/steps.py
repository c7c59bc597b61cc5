"""The steps of the evolution: what is bound on which bank, when a mechanism has nothing in it any more, and
what each step buys and costs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import termios
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import posix_ipc
from banks import CHANNEL, Bank

REGION_BYTES = 4096
"""Of the shared memory; its last word says how long the message is."""
SHM_OPTIONS = ("length=4092", "length_offset=4092")


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        right: what the right bank binds, inward.
        left: what the left bank binds, outward; empty where its daemon serves whoever comes.
        options: of both.
        is_empty: whether nothing is left in the mechanism.
        needs: what must be there before, made for as long as the step lasts; and its words for the story.
    """

    name: str
    right: str
    buys: str
    costs: str
    left: str = ""
    options: Sequence[str] = ()
    is_empty: Callable[[], bool] = lambda: True
    needs: Callable[[], contextlib.AbstractContextManager[None]] = field(default=contextlib.nullcontext)
    needs_text: str = ""

    def commands(self) -> list[tuple[str, list[str]]]:
        """What makes the step: a bank, and the words after `towpath`."""
        options = [word for option in self.options for word in ("--option", option)]
        found = [("right", ["bind", CHANNEL, self.right, "--direction", "in", *options])]
        if self.left:
            found.append(("left", ["bind", CHANNEL, self.left, "--direction", "out", *options]))
        return found


def all_steps(left: Bank, root: Path) -> list[Step]:
    """The story's steps, for this left bank and this directory."""
    fifo, name = root / "orders.fifo", f"/towpath-{root.name}"
    return [
        Step(
            "Anonymous pipe",
            right=f"pipe:towpath take {CHANNEL} --socket {left.socket}",
            buys="Nothing to name and nothing to clean up. Whoever reads slowly slows the writer down.",
            costs="Only a parent can give a pipe to its children. A byte stream: lines are an agreement.",
        ),
        Step(
            "FIFO",
            right=f"fifo:{fifo}",
            left=f"fifo:{fifo}",
            is_empty=lambda: _fifo_bytes(fifo) == 0,
            buys="A name in the file system: programs that were started apart find each other, and "
            "file permissions say who may.",
            costs="Still a byte stream, one way, one reader. Opening it waits for the other side. "
            "What is in it is lost when both have closed it.",
        ),
        Step(
            "Message queue",
            right=f"mq:{name}",
            left=f"mq:{name}",
            is_empty=lambda: posix_ipc.MessageQueue(name).current_messages == 0,
            buys="Messages instead of bytes, with priorities, kept by the kernel while nobody is "
            "there to read.",
            costs="Small: 10 messages of 8 KiB unless root raises the limits (fs.mqueue). A system "
            "call for each message, on each side.",
        ),
        Step(
            "Shared memory",
            right=f"shm:{name}",
            left=f"shm:{name}",
            options=[*SHM_OPTIONS, f"semaphore={name}-ready", f"free={name}-free"],
            is_empty=lambda: _semaphore(f"{name}-ready") == 0 and _semaphore(f"{name}-free") == 1,
            needs=lambda: _region(name),
            needs_text=" (somebody must own the region and its two semaphores; here it is this script)",
            buys="The message is where both sides can see it, and nothing is copied through the "
            "kernel: what matters for frames of megabytes, and for programs that have such a "
            "region already.",
            costs="A region holds one message, so for each there is a wake-up there and one back: for "
            "small messages the slowest of all. (Programs that use Towpath's library share "
            "rings, which need neither.)",
        ),
        Step(
            "ZeroMQ",
            right=f"pipe:towpath take {CHANNEL} --url zmq://{left.endpoint('zeromq', 'rpc')}",
            buys="TCP: the right bank may be another machine, and the programs there in any language "
            "that has ZeroMQ. It connects again by itself.",
            costs="A port to protect, a library on both sides, and messages through two more processes.",
        ),
        Step(
            "gRPC",
            right=f"pipe:towpath take {CHANNEL} --url grpc://{left.endpoint('grpc', 'listen')}",
            buys="A typed contract in a file (protos/towpath/v1), HTTP/2, and generated clients in a "
            "dozen languages: what other teams, proxies and load balancers know how to deal "
            "with.",
            costs="Two large libraries on each side (HTTP/2 and protobuf), and a port to protect.",
        ),
    ]


def _fifo_bytes(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)
    finally:
        os.close(descriptor)


def _semaphore(name: str) -> int:
    semaphore = posix_ipc.Semaphore(name)
    try:
        return int(semaphore.value)
    finally:
        semaphore.close()


@contextlib.contextmanager
def _region(name: str) -> Iterator[None]:
    memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, size=REGION_BYTES)
    memory.close_fd()
    values: Mapping[str, int] = {f"{name}-ready": 0, f"{name}-free": 1}
    for each, value in values.items():
        posix_ipc.Semaphore(each, posix_ipc.O_CREX, initial_value=value).close()
    try:
        yield
    finally:
        memory.unlink()
        for each in values:
            posix_ipc.unlink_semaphore(each)
