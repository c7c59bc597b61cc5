"""Watches: sessions that are told every change of the registry.

Each change raises ``revision`` by one and is told to every watch, in order. A new watch is first told the
state as it stands; the machine does that, since it knows the state. Or it is told what changed since a
revision that it knows, as far as that is remembered: the last ``CHANGES_KEPT`` changes.

There may be very much of the state, so it is told in pieces, channels by name and then bindings by id, each
when the one before is on its way (:class:`Telling`). What changes meanwhile is told at once where the watch
has been told of it already; the rest is in a later piece, as it stands then. So ``current`` comes when the
watch knows all, as of the revision that it says.

The revision is durable, because every change is: it is part of the snapshot, and a replay counts as the run
did. So whoever comes back after a restart of the core may go on from where it was.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from towpath.errors import LimitExceeded

from .effects import (
    Effect,
    StreamItem,
    WatchBindingCreated,
    WatchBindingDeleted,
    WatchBody,
    WatchChannelDeclared,
    WatchChannelUndeclared,
)
from .ids import BindingId, CallId, SessionId
from .sessions import Session

CHANGES_KEPT: Final = 1024
"""Who asks from an older revision is told everything anew."""


@dataclass(slots=True)
class Telling:
    """How far a watch was told the state as it stands.

    Attributes:
        channel: the last channel's name.
        binding: the last binding's id; None while channels are told.
    """

    channel: str = ""
    binding: BindingId | None = None

    def has_told(self, change: WatchBody) -> bool:
        """Whether what changed is among what was told."""
        match change:
            case WatchChannelDeclared() | WatchChannelUndeclared():
                return self.binding is not None or change.channel.name <= self.channel
            case WatchBindingCreated() | WatchBindingDeleted():
                return self.binding is not None and change.binding.id <= self.binding
            case _:
                return True


class Watches:
    """All watches, oldest first."""

    def __init__(self) -> None:
        self.revision = 0
        self._changes: deque[WatchBody] = deque(maxlen=CHANGES_KEPT)
        self._watches: dict[tuple[SessionId, CallId], Telling | None] = {}

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

    def begin_telling(self, session: Session, call: CallId) -> Telling:
        """A watch is to be told the state as it stands, from the beginning."""
        telling = self._watches[session.id, call] = Telling()
        return telling

    def telling(self, session: SessionId, call: CallId) -> Telling | None:
        """How far a watch was told the state; None when all, or when there is no such watch."""
        return self._watches.get((session, call))

    def end_telling(self, session: Session, call: CallId) -> None:
        """A watch knows the state."""
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
        return [
            StreamItem(session, call, self.revision, change)
            for (session, call), telling in self._watches.items()
            if telling is None or telling.has_told(change)
        ]
