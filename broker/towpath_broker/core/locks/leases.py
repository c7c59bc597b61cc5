"""Leases in time: when a session that is not heard of is taken for dead.

Theory of operation
    A session with a lease is *connected* while the stream that keeps it is open, and *heard of* whenever
    something comes by it. When neither has been so for the length of the lease it has expired, and the engine
    journals ``EndSession``. The time that is left is not in the journal: after a restart of the core every
    session has its whole lease again, which is a grace for all to come back. A session without a lease that
    was open when the core ended has a grace, too, of a length that the engine states.

    So that a stream which is open and silent says something, its client sends ``alive`` every third of the
    lease where the carrier does not look after it by itself.

Pure, and not journaled: the engine's own.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Final

DEADLINES_LEFT_OVER: Final = 1_000
"""Of earlier times at which a session was heard of; kept beside as many as there are sessions."""


class Leases:
    """Until when sessions live."""

    __slots__ = ("_deadlines", "_lease_ns", "_until_ns")

    def __init__(self) -> None:
        self._lease_ns: dict[int, int] = {}
        self._until_ns: dict[int, int] = {}  # 0: it does not expire while it is connected
        self._deadlines: list[tuple[int, int]] = []

    def open(self, session: int, lease_ms: int, now_ns: int, *, expires_connected: bool = False) -> None:
        """A session is there, and connected.

        Args:
            lease_ms: 0: it does not expire (its connection's end ends it).
            expires_connected: it must be heard of although it is connected (ZeroMQ).
        """
        self._lease_ns[session] = lease_ms * 1_000_000
        self._set(session, now_ns + lease_ms * 1_000_000 if expires_connected and lease_ms else 0)

    def heard(self, session: int, now_ns: int) -> None:
        """Something came from a session."""
        if self._until_ns.get(session):
            self._set(session, now_ns + self._lease_ns[session])

    def disconnected(self, session: int, now_ns: int) -> bool:
        """The stream of a session has ended; whether it may come back: if not, it is to be ended now."""
        lease_ns = self._lease_ns.get(session)
        if not lease_ns:
            return False
        self._set(session, now_ns + lease_ns)
        return True

    def recovered(self, session: int, lease_ms: int, grace_ms: int, now_ns: int) -> None:
        """A session was there before the core began: it may come back within its lease, or the grace."""
        self._lease_ns[session] = lease_ms * 1_000_000
        self._set(session, now_ns + (lease_ms or grace_ms) * 1_000_000)

    def close(self, session: int) -> None:
        """A session is gone."""
        self._lease_ns.pop(session, None)
        self._until_ns.pop(session, None)

    def next_deadline_ns(self) -> int | None:
        """Return when the next session expires; None: none does by itself."""
        while self._deadlines:
            at_ns, session = self._deadlines[0]
            if self._until_ns.get(session) == at_ns:
                return at_ns
            heappop(self._deadlines)
        return None

    def take_expired(self, now_ns: int) -> list[int]:
        """Return the sessions whose leases have passed, which are forgotten: each is to be ended."""
        found: list[int] = []
        while (at_ns := self.next_deadline_ns()) is not None and at_ns <= now_ns:
            _, session = heappop(self._deadlines)
            self.close(session)
            found.append(session)
        return found

    def _set(self, session: int, until_ns: int) -> None:
        self._until_ns[session] = until_ns
        if not until_ns:
            return
        heappush(self._deadlines, (until_ns, session))
        if len(self._deadlines) > 2 * len(self._until_ns) + DEADLINES_LEFT_OVER:
            self._deadlines = [(at_ns, each) for each, at_ns in self._until_ns.items() if at_ns]
            heapify(self._deadlines)
