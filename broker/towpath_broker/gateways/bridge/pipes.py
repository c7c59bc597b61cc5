"""What Linux knows of a pipe or FIFO, by descriptor.

Sources: pipe(7), fcntl(2) F_SETPIPE_SZ, poll(2), proc(5) (``/proc/self/fd``: opening it opens the same pipe
anew).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import sys
import termios
from typing import Final

PIPE_IN_BYTES: Final = 1 << 20
"""Wished size of a pipe that is read from: the most an unprivileged process gets by default."""
PIPE_OUT_BYTES: Final = 1 << 18
"""Wished size of a pipe that is written to; smaller, because all that is in it may have to be sent again."""


def grow_pipe(descriptor: int, size_bytes: int) -> None:
    """Ask for a larger pipe. Best effort: the user's share of pipe memory may be used up, and any size
    works."""
    with contextlib.suppress(OSError):
        if fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ) < size_bytes:
            fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, size_bytes)


def pipe_capacity_bytes(descriptor: int) -> int:
    """How much fits into the pipe."""
    return fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)


def has_reader(write_end: int) -> bool:
    """Whether anybody has the pipe open for reading: without one, poll(2) tells the write end POLLERR."""
    poll = select.poll()
    poll.register(write_end, 0)
    return not poll.poll(0)


def unread_bytes(descriptor: int) -> int:
    """How much lies in the pipe."""
    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)


def take_unread(write_end: int) -> int:
    """Empty a pipe whose readers have gone.

    One read(2) takes all: the kernel holds the pipe's lock throughout, so nobody can take a part in between.

    Returns:
        How many bytes nobody had read.
    """
    read_end = os.open(f"/proc/self/fd/{write_end}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return len(os.read(read_end, pipe_capacity_bytes(write_end)))
    except BlockingIOError:
        return 0
    finally:
        os.close(read_end)
