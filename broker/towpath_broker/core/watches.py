"""Watches: sessions that are told every change of the registry.

Each change raises ``revision`` by one and is told to every watch, in order. A new watch is first told the
state as it stands, at the revision that it has; the machine does that, since it knows the state. Or it is
told what changed since a revision that it knows, as far as that is remembered: the last ``CHANGES_KEPT``
changes.

The revision is durable, because every change is: it is part of the snapshot, and a replay counts as the run
did. So whoever comes back after a restart of the core may go on from where it was.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from towpath.errors import LimitExceeded

from .effects import Effect, StreamItem, WatchBody
from .ids import CallId, SessionId
from .sessions import Session

CHANGES_KEPT: Final = 1024
"""Who asks from an older revision is told everything anew."""


class Watches:
    """All watches, oldest first."""

    def __init__(self) -> None:
        self.revision = 0
        self._changes: deque[WatchBody] = deque(maxlen=CHANGES_KEPT)
        self._watches: dict[tuple[SessionId, CallId], None] = {}

    def __len__(self) -> int:
        return len(self._watches)

    def restore(self, revision: int) -> None:
        """Go on from a snapshot's revision; what changed before it is not known."""
        assert not self._watches and not self._changes
        self.revision = revision

    def add(self, session: Session, call: CallId, watches_max: int) -> None:
        """Add a watch; what is told from now on is told to it too.

        Raises:
            LimitExceeded: the session has as many watches as it may have.
        """
        assert call not in session.watches
        if len(session.watches) >= watches_max:
            raise LimitExceeded(
                f"the session has {len(session.watches)} watches: watches_per_session_max is {watches_max}"
            )
        session.watches[call] = None
        self._watches[session.id, call] = None

    def since(self, revision: int) -> list[tuple[int, WatchBody]] | None:
        """Return the changes after a revision, each with its own; None when they are not known.
        O(``CHANGES_KEPT``).
        """
        missed = self.revision - revision
        if not 0 <= missed <= len(self._changes):
            return None
        newest = list(self._changes)[len(self._changes) - missed :]
        return list(enumerate(newest, revision + 1))

    def cancel(self, session: Session, call: CallId) -> None:
        """End a watch; unknown calls are ignored."""
        if call in session.watches:
            del session.watches[call]
            del self._watches[session.id, call]

    def end_session(self, session: Session) -> None:
        """End all watches of a session."""
        for call in tuple(session.watches):
            self.cancel(session, call)

    def tell(self, change: WatchBody) -> list[Effect]:
        """Count a change and tell it to every watch."""
        self.revision += 1
        self._changes.append(change)
        return [StreamItem(session, call, self.revision, change) for session, call in self._watches]
