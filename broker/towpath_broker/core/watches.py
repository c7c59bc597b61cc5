"""Watches: sessions that are told every change of the registry.

Each change raises ``revision`` by one and is told to every watch, in order. A new watch is first told the
state as it stands, at the revision that it has; the machine does that, since it knows the state. The revision
begins at 0 with each run: compare revisions of one run only.
"""

from __future__ import annotations

from towpath.errors import LimitExceeded

from .effects import Effect, StreamItem, WatchBody
from .ids import CallId, SessionId
from .sessions import Session


class Watches:
    """All watches, oldest first."""

    def __init__(self) -> None:
        self.revision = 0
        self._watches: dict[tuple[SessionId, CallId], None] = {}

    def __len__(self) -> int:
        return len(self._watches)

    def start(self) -> None:
        """Begin a run."""
        assert not self._watches
        self.revision = 0

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
        return [StreamItem(session, call, self.revision, change) for session, call in self._watches]
