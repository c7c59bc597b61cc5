"""attack.py SOCKET WHAT: gives up root, then does to another user's channels the worst that it can.

Prints one line per attempt and how it ended; ``ready`` when the lasting ones are in place; then it waits for
a line on standard input.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import mmap
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import towpath
import towpath.sync.client
from tests.door.raw import RawClient
from towpath import _ring, wire
from towpath.v1 import frame_pb2
from towpath.v1.frame_pb2 import Frame

NOBODY = 65534
F_ADD_SEALS = 1033
PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
LIBC.mprotect.argtypes = LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
MAP_FAILED = ctypes.c_void_p(-1).value


def attempt(name: str, act: Callable[[], object]) -> None:
    """Try, and say whether the kernel let it."""
    try:
        act()
    except (OSError, ValueError):
        print(name, "refused", flush=True)
    else:
        print(name, "DONE", flush=True)


def checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "refused")


def map_and(descriptor: int, act: Callable[[int], int]) -> None:
    address = LIBC.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    assert address not in (None, MAP_FAILED)
    checked(act(address))


def try_to_change(what: str, descriptor: int) -> None:
    """All ways that there are from a descriptor to write access, or to take the memory away."""
    if os.fstat(descriptor).st_uid == NOBODY:
        return  # this program's own
    link = f"/proc/self/fd/{descriptor}"
    attempt(f"{what} write", lambda: os.write(descriptor, b"x"))
    attempt(f"{what} pwrite", lambda: os.pwrite(descriptor, b"x", 128))
    attempt(f"{what} reopen", lambda: os.open(link, os.O_RDWR))
    attempt(f"{what} mmap", lambda: mmap.mmap(descriptor, 4096, mmap.MAP_SHARED, mmap.PROT_WRITE))
    attempt(f"{what} mprotect", lambda: map_and(descriptor, lambda at: LIBC.mprotect(at, 4096, 3)))
    attempt(f"{what} madvise", lambda: map_and(descriptor, lambda at: LIBC.madvise(at, 4096, 9)))  # REMOVE
    attempt(f"{what} truncate", lambda: os.ftruncate(descriptor, 0))
    attempt(f"{what} truncate by path", lambda: os.truncate(link, 0))
    attempt(f"{what} punch", lambda: checked(LIBC.fallocate(descriptor, PUNCH, 0, 4096)))
    attempt(f"{what} chmod", lambda: os.fchmod(descriptor, 0o777))
    attempt(f"{what} chown", lambda: os.fchown(descriptor, NOBODY, NOBODY))
    attempt(f"{what} seal", lambda: fcntl.fcntl(descriptor, F_ADD_SEALS, 0x10))  # F_SEAL_FUTURE_WRITE


def open_others(pids: list[int]) -> None:
    """The daemon's and the victim's descriptors, by /proc."""
    for pid in pids:
        attempt(f"proc {pid}", lambda pid=pid: os.listdir(f"/proc/{pid}/fd"))  # type: ignore[misc]
        attempt(f"mem {pid}", lambda pid=pid: os.open(f"/proc/{pid}/mem", os.O_RDWR))  # type: ignore[misc]
        for number in range(3, 12):
            link = f"/proc/{pid}/fd/{number}"
            attempt(link, lambda link=link: os.open(link, os.O_RDWR))  # type: ignore[misc]


def jam(bell: int) -> None:
    """Fill a doorbell, make it block, throw descriptors in, and at last shut it down."""
    bell_socket = socket.socket(fileno=os.dup(bell))
    rights = array.array("i", [0] * 16)
    with contextlib.suppress(OSError):
        while True:
            bell_socket.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], socket.MSG_DONTWAIT)
    with contextlib.suppress(OSError):
        while True:
            bell_socket.send(b"x" * 4096, socket.MSG_DONTWAIT)
    bell_socket.setblocking(True)
    bell_socket.shutdown(socket.SHUT_RDWR)


def memory_of(client: RawClient, owned: _ring.Writer | _ring.Reader) -> mmap.mmap:
    """The writable mapping of this process's own memfd, found by its name in /proc: what an attacker has."""
    link = f"/proc/self/fd/{owned.share()}"
    descriptor = os.open(link, os.O_RDWR)
    return mmap.mmap(descriptor, 0)


def publish_garbage(path: Path, channel: str) -> None:
    """A publisher whose ring is fine when it is checked, and then anything at all."""
    client = RawClient(path)
    source = client.welcome.first_id
    writer = _ring.Writer(source, 1 << 20)
    for _ in range(10):
        writer.try_publish(b"fine" * 10)
    request = frame_pb2.AttachSourceRequest(channel=channel, source=source)
    client.send(Frame(id=2, attach_source_request=request), writer.share())
    bells: list[wire.Descriptor] = []
    while True:
        frame, descriptors = client.receive_all()
        if frame.id == 2:
            assert not frame.HasField("error"), frame
            break
        bells += descriptors[1:]
        for descriptor in descriptors[:1]:
            try_to_change(f"page on {channel}", descriptor.fd)
    for bell in bells:
        jam(bell.fd)
    memory = memory_of(client, writer)
    rng = random.Random(channel)
    for _ in range(200):
        at = rng.choice([128, 256, 384, 512, 4096 + rng.randrange(4000)])
        memory[at : at + 8] = rng.randbytes(8)
    KEPT.append((client, writer, memory))


def subscribe_garbage(path: Path, channel: str) -> None:
    """A subscriber whose control page says anything at all, and who jams what it is given."""
    client = RawClient(path)
    reader_id = client.welcome.first_id
    reader = _ring.Reader(reader_id, 8)
    request = frame_pb2.AttachReaderRequest(channel=channel, reader=reader_id, slots=8)
    client.send(Frame(id=2, attach_reader_request=request), reader.share())
    memory = memory_of(client, reader)
    while True:
        frame, descriptors = client.receive_all()
        if frame.id == 2:
            assert not frame.HasField("error"), frame
            break
        try_to_change(f"ring on {channel}", descriptors[0].fd)
        for bell in descriptors[1:]:
            jam(bell.fd)
    rng = random.Random(channel)
    for _ in range(200):
        at = rng.choice([128, 256, 264, 320])
        memory[at : at + 8] = rng.choice([rng.randbytes(8), b"\xff" * 8, (1).to_bytes(8, "little")])
    KEPT.append((client, reader, memory))


KEPT: list[object] = []


def main() -> None:
    path, what = Path(sys.argv[1]), sys.argv[2]
    channels = ("theirs.direct", "theirs.total")
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    if what == "memory":
        open_others([int(pid) for pid in sys.argv[3:]])
        for channel in channels:
            subscribe_garbage(path, channel)
            publish_garbage(path, channel)
    elif what == "stop":
        client = towpath.connect(str(path))
        KEPT.extend(client.subscribe(channel) for channel in channels)
    print("ready", flush=True)
    if what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
