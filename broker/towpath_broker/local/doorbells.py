"""Doorbells that the core makes for pairs of users: so that nobody can silence a session's bell for others.

Theory of operation
    A client that sleeps in an event loop gives one doorbell with hello; it is for processes of its own uid,
    which could stop it altogether if they wanted to. When somebody of another uid is to ring, the core makes
    a socketpair for that uid: the client is sent the receiving end (``doorbell_added``), and whoever of that
    uid meets the client is handed the sending end. Shutting it down concerns that uid's messages alone.

Invariants
    A session has at most ``BELLS_MAX`` of these; the uids beyond share one more.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from towpath import wire

BELLS_MAX: Final = 64
"""Doorbells that one session has for other users; those beyond share one."""

_SHARED: Final = -1


class Doorbells:
    """The sending ends of one session's doorbells.

    Args:
        own: the one given with hello, for processes of the session's uid.
        uid: the session's.
        send: takes a receiving end to the client; None for a client that knows of none but its own.
    """

    def __init__(
        self, own: wire.Descriptor, uid: int, send: Callable[[wire.Descriptor], None] | None
    ) -> None:
        self._own = own
        self._uid = uid
        self._send = send
        self._others: dict[int, wire.Descriptor] = {}

    def for_uid(self, uid: int) -> wire.Descriptor:
        """Return what somebody of a uid is to ring."""
        if uid == self._uid or self._send is None:
            return self._own
        key = uid if uid in self._others or len(self._others) < BELLS_MAX else _SHARED
        bell = self._others.get(key)
        if bell is None:
            try:
                receiving, sending = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            except OSError:
                return self._own  # the host has no descriptor left: better a shared one than none
            sending.setblocking(False)
            bell = self._others[key] = wire.Descriptor(sending.detach())
            self._send(wire.Descriptor(receiving.detach()))
        return bell
