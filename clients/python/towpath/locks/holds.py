"""What a lock session holds, and whether that still counts. Sans-I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from towpath.errors import SessionLost, TowpathError

from . import model

if TYPE_CHECKING:
    from .session import LockSession


class Hold:
    """What one request holds.

    Attributes:
        number: the request's.
        grants: one for each lock, in the order of the request.
        why_lost: why it does not count any more; None: it does.
        is_wounded: an older owner wants it (policy wound-wait).
    """

    __slots__ = ("grants", "is_wounded", "number", "session", "why_lost")

    def __init__(self, session: LockSession, number: int, grants: tuple[model.Grant, ...]) -> None:
        self.session = session
        self.number = number
        self.grants = grants
        self.why_lost: TowpathError | None = None
        self.is_wounded = False

    @property
    def is_valid(self) -> bool:
        """Whether it counts, as far as can be known here."""
        return self.why_lost is None and not self.session.may_be_gone

    def check(self) -> None:
        """Raises why it does not count any more."""
        if self.why_lost is not None:
            raise self.why_lost.again()
        if self.session.may_be_gone:
            raise silent()


class Page(Protocol):
    """A lock page that the session is in (``paging``): what is held there the daemon need not know.

    Attributes:
        identity: of the page.
    """

    identity: int

    def has(self, owner: int) -> bool:
        """Whether an owner holds something there."""

    def held(self) -> dict[int, bool]:
        """The requests that hold there, and whether the daemon has taken each over."""

    def revoked(self, number: int, error: TowpathError) -> bool:
        """A request's lock was taken away; whether it was one that held there."""

    def close(self) -> None:
        """The session is over."""


def silent() -> SessionLost:
    """Why nothing counts any more when the daemon may have ended the session."""
    return SessionLost("the daemon has not been heard of for as long as it keeps locks without that")
