"""What the tests of ``unix:`` share: an adapter on a socket, and the far side by the standard library."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from tests.bridge import foreign
from tests.bridge.rig import Rig, within
from tests.support.deadlines import DEADLINE_S
from towpath.bindings import UNIX
from towpath.model import Direction
from towpath_broker.gateways.bridge.adapters.unix import UnixAdapter

TYPES = {"stream": socket.SOCK_STREAM, "dgram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}


def start(rig: Rig, place: Path | str, direction: Direction, **options: str) -> None:
    """Start an adapter on a socket; the options are checked as the daemon does."""
    UNIX.check_options(direction, options)
    adapter = UnixAdapter(
        str(place),
        direction,
        UNIX.parse_options(options),
        rig.carrier,
        rig.tally,
        rig.watcher,
        rig.keeping,
    )
    rig.start(adapter)


def raw(place: Path | str) -> str | bytes:
    """A place as the kernel has it."""
    text = str(place)
    return b"\0" + text[1:].encode() if text.startswith("@") else text


def connected(place: Path | str, kind: str = "stream") -> socket.socket:
    """Connect to a socket; non-blocking."""
    end = socket.socket(socket.AF_UNIX, TYPES[kind])
    end.connect(raw(place))
    end.setblocking(False)
    return end


def listening(place: Path | str, kind: str = "stream") -> socket.socket:
    """Make a socket that others connect, or send, to; non-blocking."""
    end = socket.socket(socket.AF_UNIX, TYPES[kind])
    end.bind(raw(place))
    if kind != "dgram":
        end.listen(8)
    end.setblocking(False)
    return end


async def accept(end: socket.socket) -> socket.socket:
    """Take the next connection; non-blocking."""
    connection, _ = await within(asyncio.get_running_loop().sock_accept(end))
    connection.setblocking(False)
    return connection  # type: ignore[no-any-return]


async def receive(end: socket.socket, size: int = 65_536) -> bytes:
    """Wait for something, or the end, of a socket."""
    return await within(asyncio.get_running_loop().sock_recv(end, size))  # type: ignore[no-any-return]


async def receive_bytes(end: socket.socket, count: int) -> bytes:
    """Wait for so many bytes of a stream."""
    data = b""
    while len(data) < count:
        piece = await receive(end, count - len(data))
        assert piece, f"the stream ended after {data[-100:]!r}"
        data += piece
    return data


async def send(end: socket.socket, data: bytes) -> None:
    """Send all, waiting for room."""
    await within(asyncio.get_running_loop().sock_sendall(end, data))


async def hung_up(end: socket.socket) -> None:
    """Wait until the other side has closed; what it had sent is thrown away."""
    try:
        while await receive(end):
            pass
    except ConnectionResetError:
        pass


async def foreign_ready(*arguments: str) -> asyncio.subprocess.Process:
    """Start ``unix_peer`` as one that listens, and wait until it does."""
    process = await foreign.start("unix_peer", *arguments, reads=True)
    assert process.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        assert await process.stdout.readline() == b"ready\n"
    return process


def own_headers(peer: int = 1) -> dict[str, str]:
    """What headers say of this process."""
    found = {"unix-pid": str(os.getpid()), "unix-uid": str(os.getuid()), "unix-gid": str(os.getgid())}
    return {**found, "unix-peer": str(peer)} if peer else found
