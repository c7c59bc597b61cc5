"""The supervisor's control sockets: JSON objects with descriptors, over AF_UNIX SOCK_SEQPACKET.

Theory of operation
    One packet is one JSON object with a ``type``; SOCK_SEQPACKET keeps packets whole and in order, and tells
    the end of the other side as EOF. Descriptors travel beside a packet (SCM_RIGHTS). Sending never waits:
    what the kernel does not take now is kept by :class:`Outbox`, which is bounded.

Invariants
    Every descriptor that arrives is either handed to the caller or closed. A packet that is no JSON object,
    is cut off or has too many descriptors is a :class:`ProtocolViolation`.

Not here: what the packets mean (supervisor.py, daemon.py).
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

from towpath.errors import ProtocolViolation

PACKET_BYTES_MAX: Final = 160_000
"""Less than a socket's send buffer. What may be longer travels as a file (children.settings_file)."""
DESCRIPTORS_MAX: Final = 64
"""In one packet; the kernel takes 253."""
OUTBOX_MAX: Final = 256
"""Packets that wait for a side that does not read; beyond it sending is refused."""

Packet = dict[str, Any]


def control_pair() -> tuple[socket.socket, socket.socket]:
    """Make a control socket: our end, which does not block, and the child's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def send_packet(control: socket.socket, packet: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Send one packet whole.

    Raises:
        BlockingIOError: the other side does not read.
        OSError: the other side is gone.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    control.sendmsg(
        [json.dumps(packet, separators=(",", ":")).encode()],
        rights,
        socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL,
    )


def receive_packet(control: socket.socket) -> tuple[Packet, list[int]] | None:
    """Receive one packet.

    Returns:
        The packet and its descriptors, the caller's to close (they are close-on-exec); None at the end of the
        other side.

    Raises:
        BlockingIOError: there is none now.
        ProtocolViolation: it is not what a packet must be; its descriptors are closed.
    """
    room = socket.CMSG_SPACE(DESCRIPTORS_MAX * array.array("i").itemsize)
    try:
        data, rights, flags, _ = control.recvmsg(PACKET_BYTES_MAX, room, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None
    descriptors = array.array("i")
    for level, kind, content in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolViolation("a control packet is too long or has too many descriptors")
        if not data:
            return None
        packet = json.loads(data)
        if not isinstance(packet, dict) or not isinstance(packet.get("type"), str):
            raise ProtocolViolation("a control packet is not an object with a type")
    except (ValueError, RecursionError) as error:
        close_all(descriptors)
        raise ProtocolViolation(f"a control packet is not JSON: {error}") from None
    except ProtocolViolation:
        close_all(descriptors)
        raise
    return packet, list(descriptors)


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)


class Outbox:
    """Sends packets on a socket of the running event loop without ever waiting.

    It owns the descriptors given to it and closes them when they are sent or will not be. A packet with a
    ``topic`` replaces an unsent one of the same topic: only the newest counts.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._waiting: deque[tuple[str, Mapping[str, Any], list[int]]] = deque()
        self._is_writing = False

    def send(self, packet: Mapping[str, Any], descriptors: Sequence[int] = (), *, topic: str = "") -> bool:
        """Send a packet, now or as soon as the other side reads.

        Returns:
            False when it will not be sent: the other side is gone, or has not read for ``OUTBOX_MAX``
            packets.
        """
        if topic:
            self._waiting = deque(item for item in self._waiting if item[0] != topic)
        if len(self._waiting) >= OUTBOX_MAX:
            close_all(descriptors)
            return False
        self._waiting.append((topic, packet, list(descriptors)))
        return self._flush()

    def _flush(self) -> bool:
        loop = asyncio.get_running_loop()
        while self._waiting:
            _, packet, descriptors = self._waiting[0]
            try:
                send_packet(self._control, packet, descriptors)
            except BlockingIOError:
                if not self._is_writing:
                    loop.add_writer(self._control, self._flush)
                    self._is_writing = True
                return True
            except OSError:
                self.close()
                return False
            self._waiting.popleft()
            close_all(descriptors)
        self._stop_writing()
        return True

    def _stop_writing(self) -> None:
        if self._is_writing:
            asyncio.get_running_loop().remove_writer(self._control)
            self._is_writing = False

    def close(self) -> None:
        """Forget what was not sent. The socket stays its owner's."""
        self._stop_writing()
        while self._waiting:
            close_all(self._waiting.popleft()[2])
