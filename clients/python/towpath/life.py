"""How long a local client lives, and why it ends. Sans-I/O, for the blocking and the asyncio client.

Theory of operation
    A client outlives its connections: what waits for one waits on while the next is tried for, with growing
    pauses. There will be none any more when the program has closed the client, when a forked child has it,
    whose parent's it is, or when trying is pointless: the daemon speaks another protocol, or it refuses a
    client that it has never welcomed, which is then the answer to ``connect``.

Invariants
    Whoever asks a client that is over is told the same thing, by an error of his own each time.

Not here: the session (``protocol``), sockets and waiting (``sync.connection``, ``aio.client``).
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from towpath import outcomes
from towpath.errors import ConnectionLost, TowpathError, VersionMismatch
from towpath.waiting import Pauses


class Forked(Protocol):
    """A client, as a forked child finds it."""

    def _abandon(self) -> None:
        """In the child: it is the parent's."""


_clients: weakref.WeakSet[Forked] = weakref.WeakSet()


def keep_from_children(client: Forked) -> None:
    """Have a client's ``_abandon`` called in every child that is forked while it is there."""
    _clients.add(client)


def _abandon_all() -> None:
    for client in list(_clients):
        client._abandon()


os.register_at_fork(after_in_child=_abandon_all)


class Life:
    """One client's.

    Attributes:
        pauses: before each attempt to connect again.
        last_error: how the last connection ended, for people.
        refused: why the daemon will not have this client, or None.
        is_closed: the program, or a fork, has ended it.
        is_forked: it belongs to the parent of this process.
    """

    def __init__(self) -> None:
        self.pauses = Pauses()
        self.last_error: TowpathError | None = None
        self.refused: TowpathError | None = None
        self.is_closed = False
        self.is_forked = False
        self._why_closed = ConnectionLost("the client is closed", hint="")
        self._was_welcome = False

    @property
    def is_over(self) -> bool:
        """Whether there will be no connection any more."""
        return self.is_closed or self.refused is not None

    def over(self) -> TowpathError:
        """What to raise when it is over."""
        return (self.refused or self._why_closed).again()

    def welcomed(self) -> None:
        """The daemon has answered the greeting: from here on it is worth trying again."""
        self._was_welcome = True
        self.pauses.begin_anew()

    def lost(self, error: TowpathError | None) -> bool:
        """A connection has ended; returns whether another is to be tried for.

        Args:
            error: why; None: it was not said.
        """
        self.last_error = error
        is_refusal = error is not None and not isinstance(error, ConnectionLost)
        if isinstance(error, VersionMismatch) or (is_refusal and not self._was_welcome):
            self.refused = error
        return self.refused is None

    def abandon(self) -> TowpathError:
        """In a forked child: it is the parent's. Returns what everybody is told."""
        self.is_closed = self.is_forked = True
        self._why_closed = outcomes.forked()
        return self._why_closed

    def check_not_forked(self) -> None:
        """Raises ConnectionLost in a forked child, where nobody serves this client."""
        if self.is_forked:
            raise self.over()
