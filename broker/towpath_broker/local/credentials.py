"""Who is at the other end of a UNIX socket, as the kernel tells it; never as the peer does.

Source: unix(7) SO_PEERCRED, socket(7) SO_PEERGROUPS, pidfd_open(2).
"""

from __future__ import annotations

import array
import errno
import grp
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

_SO_PEERGROUPS: Final = 59
_UCRED: Final = struct.Struct("iII")
_GROUPS_MAX: Final = 65536


@dataclass(frozen=True, slots=True)
class Peer:
    """The process that made the connection.

    Attributes:
        pid: 0 where a container hides it.
        groups: its groups then, supplementary ones included.
    """

    pid: int
    uid: int
    groups: frozenset[int]

    @property
    def principal(self) -> str:
        return f"uid:{self.uid}"


def peer_of(sock: socket.socket) -> Peer:
    """Return who is at the other end of a connected UNIX socket."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    groups = array.array("I")
    try:
        groups.frombytes(sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * 64))
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        groups.frombytes(sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _GROUPS_MAX))
    return Peer(pid, uid, frozenset({gid, *groups}))


class Admins:
    """Decides who is an admin: the daemon's own uid, root, and the members of one group.

    Args:
        group: the group's name; empty for none. A group that does not exist has no members.
    """

    def __init__(self, group: str) -> None:
        self._group = group

    def is_admin(self, peer: Peer) -> bool:
        if peer.uid in (0, os.geteuid()):
            return True
        try:
            return bool(self._group) and grp.getgrnam(self._group).gr_gid in peer.groups
        except KeyError:
            return False


def open_pidfd(pid: int) -> int | None:
    """Return a descriptor that becomes readable when the process ends; None where the kernel hides it."""
    if pid <= 0:
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
