"""The door's wire format: a length, then a protobuf ``Frame``; descriptors travel beside it. Sans-I/O.

Theory of operation
    On the UNIX socket a frame is a u32 (little-endian) length and that many bytes of ``towpath.v1.Frame``.
    A frame that needs file descriptors says how many; the sender passes them (SCM_RIGHTS) with the frame's
    first byte, so the receiver has them at the latest when the frame is complete. ``FrameDecoder`` takes
    whatever arrives and gives whole frames with their descriptors; ``Outbox`` holds what could not be sent
    yet, up to a bound.

Invariants
    A length above the bound, a frame that does not parse, and descriptors that do not match what frames
    declare are ``ProtocolViolation`` or ``BadDescriptor``; after one of them the decoder is of no further
    use and its connection is closed. Every descriptor has exactly one owner, a :class:`Descriptor`, and is
    closed when that goes.

Source: unix(7), cmsg(3).
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Final

from google.protobuf.message import DecodeError

from towpath.errors import BadDescriptor, ConnectionLost, ProtocolViolation, SlowConsumer
from towpath.v1.frame_pb2 import Frame

VERSION: Final = 1
"""The protocol version that this code speaks."""

REQUEST_BYTES_MAX: Final = 1 << 20
"""The longest frame that the daemon takes from a client."""

RESPONSE_BYTES_MAX: Final = 64 << 20
"""The longest frame that a client takes from the daemon (a listing of very many channels)."""

RECEIVE_BYTES: Final = 1 << 16
"""What is received at once, at most."""
_LENGTH: Final = struct.Struct("<I")
_DESCRIPTORS_QUEUED_MAX: Final = 64
_RECEIVE_FLAGS: Final = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_SEND_FLAGS: Final = int(socket.MSG_NOSIGNAL)
TRUNCATED: Final = int(socket.MSG_CTRUNC)
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(253 * array.array("i").itemsize)


_SIZES: Final = (RECEIVE_BYTES,)
_ANCILLARY_SIZES: Final = (_ANCILLARY_BYTES,)
_FLAGS: Final = (_RECEIVE_FLAGS,)


class Descriptor:
    """Owns one file descriptor, which is closed when the last reference to this object goes.

    Attributes:
        fd: the descriptor's number.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        """The descriptor's number, for select(2) and friends."""
        return self.fd

    def close(self) -> None:
        """Close it now; more than once is fine."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Descriptor({self.fd})"


Incoming = tuple[Frame, list[Descriptor]]
"""A frame and the descriptors that came with it."""


def encode(frame: Frame) -> bytes:
    """Return the frame as it travels: its length and its bytes."""
    body = frame.SerializeToString()
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Turns what arrives on a connection into frames.

    Args:
        frame_bytes_max: the longest frame accepted.
    """

    def __init__(self, frame_bytes_max: int) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._descriptors: deque[Descriptor] = deque()

    def feed(self, data: bytes, descriptors: Sequence[Descriptor] = ()) -> list[Incoming]:
        """Take what arrived; return the frames that are now whole.

        Raises:
            ProtocolViolation: too long, or not a Frame.
            BadDescriptor: more or fewer descriptors than the frames declare.
        """
        queued = self._descriptors
        queued.extend(descriptors)
        if len(queued) > _DESCRIPTORS_QUEUED_MAX:
            raise BadDescriptor(
                f"more than {_DESCRIPTORS_QUEUED_MAX} descriptors came without the frames they belong to"
            )
        buffer = self._buffer
        if buffer:
            buffer += data
        source = buffer or data  # mostly whole frames arrive, and nothing has to be kept
        frames: list[Incoming] = []
        start, arrived = 0, len(source)
        while arrived - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(source, start)
            if length > self._frame_bytes_max:
                raise ProtocolViolation(
                    f"a frame of {length} bytes; at most {self._frame_bytes_max} are allowed"
                )
            end = start + _LENGTH.size + length
            if arrived < end:
                break
            frames.append(self._decode(bytes(source[start + _LENGTH.size : end])))
            start = end
        if source is buffer:
            del buffer[:start]
        elif start < arrived:
            buffer += data[start:]
        if queued and not buffer:
            raise BadDescriptor("descriptors came that no frame declares")
        return frames

    def only(self, data: bytes) -> Frame | None:
        """Return the frame that has arrived, if it is just one, whole, and without descriptors. Nothing is
        taken: what arrived may be fed after it."""
        size = _LENGTH.size
        if self._buffer or self._descriptors or not size < len(data) <= size + self._frame_bytes_max:
            return None
        if _LENGTH.unpack_from(data)[0] != len(data) - size:
            return None
        try:
            frame = Frame.FromString(data[size:])
        except DecodeError:
            return None
        return None if frame.descriptors else frame

    def _decode(self, body: bytes) -> Incoming:
        try:
            frame = Frame.FromString(body)
        except DecodeError:
            raise ProtocolViolation("what arrived is not a Frame") from None
        declared = frame.descriptors
        if not declared:
            return frame, []
        if declared > len(self._descriptors):
            raise BadDescriptor(
                f"a frame declares {declared} descriptors and {len(self._descriptors)} arrived",
                hint="the receiver may be at its limit of open files (ulimit -n)",
            )
        return frame, [self._descriptors.popleft() for _ in range(declared)]


Raw = tuple[bytes, list[tuple[int, int, bytes]], int, object]
"""What recvmsg(2) returns."""


def receive_raw(sock: socket.socket, arrived: deque[Raw]) -> None:
    """Receive once what is there, and append it. Never waits, and a signal's handler that raises comes either
    before that or after it.

    Raises:
        BlockingIOError: nothing is there.
        OSError: the connection broke.
    """
    arrived.extend(map(sock.recvmsg, _SIZES, _ANCILLARY_SIZES, _FLAGS))


def receive(sock: socket.socket) -> tuple[bytes, list[Descriptor]]:
    """Receive once what is there; never waits.

    Returns:
        The bytes (empty at the end of the connection) and the descriptors that came with them.

    Raises:
        BlockingIOError: nothing is there.
        BadDescriptor: the kernel had to leave descriptors out (this process is near its limit).
        ConnectionLost: the connection broke.
    """
    try:
        raw = sock.recvmsg(RECEIVE_BYTES, _ANCILLARY_BYTES, _RECEIVE_FLAGS)
    except BlockingIOError:
        raise
    except OSError as error:
        raise broken(error) from None
    return received(raw)


def broken(error: OSError) -> ConnectionLost:
    """What it is when the host says that a connection broke."""
    return ConnectionLost(f"the connection broke: {error.strerror}")


def received(raw: Raw) -> tuple[bytes, list[Descriptor]]:
    """Return the bytes of what was received, and take its descriptors.

    Raises:
        BadDescriptor: the kernel had to leave descriptors out (this process is near its limit).
    """
    data, ancillary, flags, _ = raw
    descriptors: list[Descriptor] = []
    if not ancillary and not flags & TRUNCATED:
        return data, descriptors
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
            descriptors.extend(Descriptor(number) for number in numbers)
    if flags & TRUNCATED:
        raise BadDescriptor(
            "descriptors were lost on arrival", hint="this process is at its limit of open files (ulimit -n)"
        )
    return data, descriptors


def send_once(sock: socket.socket, data: bytes | memoryview, descriptors: Sequence[Descriptor]) -> int:
    """Send as much as the socket takes now; the descriptors go with the first byte.

    Returns:
        How many bytes went.

    Raises:
        BlockingIOError: nothing went.
        ConnectionLost: the connection broke.
    """
    try:
        if descriptors:
            numbers = array.array("i", [descriptor.fd for descriptor in descriptors])
            return sock.sendmsg(
                [data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)], socket.MSG_NOSIGNAL
            )
        return sock.send(data, _SEND_FLAGS)
    except BlockingIOError:
        raise
    except OSError as error:
        raise ConnectionLost(f"the connection broke: {error.strerror}") from None


class Outbox:
    """What waits to be sent on one connection, in order, up to a bound.

    Args:
        bytes_max: more than this waiting means that the peer does not read.
        descriptors_max: likewise for descriptors, which cost the kernel more.
    """

    def __init__(self, bytes_max: int, descriptors_max: int = 1024) -> None:
        self._bytes_max = bytes_max
        self._descriptors_max = descriptors_max
        self._queue: deque[tuple[bytes | memoryview, tuple[Descriptor, ...]]] = deque()
        self._bytes = 0
        self._descriptors = 0

    def __bool__(self) -> bool:
        return bool(self._queue)

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return self._bytes

    def put(self, data: bytes, descriptors: tuple[Descriptor, ...] = ()) -> None:
        """Append an encoded frame.

        Raises:
            SlowConsumer: the bound is reached; nothing was appended.
        """
        if self._bytes + len(data) > self._bytes_max and self._queue:
            raise SlowConsumer(f"over {self._bytes_max} bytes wait for a peer that does not read")
        if self._descriptors + len(descriptors) > self._descriptors_max:
            raise SlowConsumer(f"over {self._descriptors_max} descriptors wait for a peer that does not read")
        self._queue.append((data, descriptors))
        self._bytes += len(data)
        self._descriptors += len(descriptors)

    def send(self, sock: socket.socket, data: bytes, descriptors: tuple[Descriptor, ...] = ()) -> bool:
        """Send an encoded frame behind what waits; True when nothing is left.

        Raises:
            SlowConsumer: the bound is reached; nothing was sent.
            ConnectionLost: the connection broke.
        """
        if self._queue or descriptors:
            self.put(data, descriptors)
            return self.flush(sock)
        try:
            sent = send_once(sock, data, ())
        except BlockingIOError:
            sent = 0
        if sent == len(data):
            return True
        self.put(data[sent:])
        return False

    def flush(self, sock: socket.socket) -> bool:
        """Send what the socket takes; True when nothing is left.

        Raises:
            ConnectionLost: the connection broke.
        """
        queue = self._queue
        while queue:
            data, descriptors = queue[0]
            try:
                sent = send_once(sock, data, descriptors)
            except BlockingIOError:
                return False
            self._bytes -= sent
            self._descriptors -= len(descriptors)
            if sent == len(data):
                queue.popleft()
            else:
                queue[0] = (memoryview(data)[sent:], ())
        return True
