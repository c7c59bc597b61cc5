"""Packets in, messages out: from a socket that keeps messages apart into a channel.

Theory of operation
    Take what is there, up to a batch, publish it, and only then take more: back-pressure, as with any stream.
    One buffer serves all sockets of a binding: nothing waits between receiving into it and copying out of it.

    A packet longer than the buffer is cut by the kernel, which says how long it was (MSG_TRUNC): it is
    refused and counted. A packet without a byte is a message too; the end of a connection, which reads the
    same, is told from it by the credentials that come with every packet (SO_PASSCRED).

Invariants
    Each packet is published or counted as refused. Descriptors that somebody sends along are closed.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

from towpath.bindings.unix import PACKET_BYTES_MAX_LIMIT
from towpath.errors import FrameTooLarge, PermissionDenied
from towpath.model import Headers
from towpath_broker.gateways.bridge.inflow import Ended
from towpath_broker.gateways.bridge.messages import BATCH_BYTES_MAX, BATCH_COUNT_MAX
from towpath_broker.gateways.bridge.publishing import Publishing
from towpath_broker.gateways.bridge.report import Tally
from towpath_broker.gateways.bridge.stop import Stop

CREDENTIALS: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(CREDENTIALS.size)
_REST_PACKETS_MAX: Final = BATCH_COUNT_MAX
"""What is still taken at the stop; more than a socket's queue holds."""


@functools.lru_cache(maxsize=256)
def headers_of(pid: int, uid: int, gid: int, peer: int = 0) -> Headers:
    """Who sent a message.

    Args:
        pid: 0 where that process is in another pid namespace.
        peer: the connection's number within the binding; 0 for none.
    """
    user = {"unix-pid": str(pid), "unix-uid": str(uid), "unix-gid": str(gid)}
    if peer:
        user["unix-peer"] = str(peer)
    return Headers(user=user)


def not_admitted(uid: int) -> PermissionDenied:
    """The error for somebody whom the binding's mode keeps out."""
    return PermissionDenied(f"uid {uid} may not use this socket", hint="see option mode, and its owner's uid")


class PacketInflow:
    """One socket's way into a channel.

    Args:
        end: the socket, non-blocking.
        buffer: shared by all of a binding's; as long as the longest packet that is carried.
        publishing: the way into the channel.
        tally: the binding's account.
        headers: of each message; None to say of each who sent it.
        admits: whose packets are carried, by uid and gid.
    """

    def __init__(
        self,
        end: socket.socket,
        buffer: bytearray,
        publishing: Publishing,
        tally: Tally,
        *,
        headers: Headers | None = None,
        admits: Callable[[int, int], bool] = lambda uid, gid: True,
    ) -> None:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._end = end
        self._buffer = buffer
        self._publishing = publishing
        self._tally = tally
        self._headers = headers
        self._admits = admits
        self._ended: Ended | None = None

    async def carry(self, stop: Stop) -> Ended:
        """Carry what comes, until the peer has ended its sending or the stop is set.

        Raises:
            TowpathError: the channel takes no more.
            OSError: the socket failed.
        """
        while not stop.is_set:
            if not await self._carry_batch(BATCH_COUNT_MAX):
                if self._ended is not None:
                    return self._ended
                await stop.readable(self._end.fileno())
        return Ended.STOPPED

    async def carry_rest(self) -> None:
        """Carry what is in the socket now, at most ``_REST_PACKETS_MAX`` packets."""
        left = _REST_PACKETS_MAX
        while left > 0 and (taken := await self._carry_batch(left)):
            left -= taken

    async def _carry_batch(self, count_max: int) -> int:
        """Publish what is there; return how many packets were taken."""
        # Gives the other bindings their turn: a fast writer alone would never let the loop go on.
        await asyncio.sleep(0)
        payloads: list[bytes] = []
        headers: list[Headers | None] = []
        taken = size = 0
        try:
            while taken < count_max and size < BATCH_BYTES_MAX:
                packet = self._receive()
                if packet is None:
                    self._ended = Ended.EOF
                    break
                taken += 1
                payload, sender = packet
                if payload is not None:
                    payloads.append(payload)
                    headers.append(sender)
                    size += len(payload)
        except BlockingIOError:
            pass
        if payloads:
            await self._publishing.publish(payloads, headers)
        return taken

    def _receive(self) -> tuple[bytes | None, Headers] | None:
        """Take one packet: its payload, None where it was too long, and who sent it; None at the end."""
        size, ancillary, _, _ = self._end.recvmsg_into(
            [self._buffer], _ANCILLARY_BYTES, socket.MSG_DONTWAIT | socket.MSG_TRUNC
        )
        sender = self._headers
        is_packet, is_admitted, uid = False, True, 0
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                is_packet = True
                pid, uid, gid = CREDENTIALS.unpack(data[: CREDENTIALS.size])
                is_admitted = self._admits(uid, gid)
                if sender is None:
                    sender = headers_of(pid, uid, gid)
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                for (descriptor,) in struct.iter_unpack("i", data[: len(data) // 4 * 4]):
                    os.close(descriptor)
        if not is_packet:
            return None
        assert sender is not None
        if not is_admitted:
            self._tally.refuse(1, not_admitted(uid))
            return None, sender
        if size > len(self._buffer):
            self._tally.refuse(
                1,
                FrameTooLarge(
                    f"a packet has {size} bytes; {len(self._buffer)} are allowed",
                    hint=f"raise packet_bytes_max, at most {PACKET_BYTES_MAX_LIMIT}",
                ),
            )
            return None, sender
        return bytes(memoryview(self._buffer)[:size]), sender
