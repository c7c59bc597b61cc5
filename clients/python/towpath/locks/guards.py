"""What is alike in both kinds of guards."""

from __future__ import annotations

from towpath.errors import NotHeld, TowpathError
from towpath.locks import model
from towpath.locks.holds import Hold
from towpath.locks.model import Mode
from towpath.locks.session import LockSession


class GrantBase:
    """Proof that the program holds a lock, or several."""

    __slots__ = ("_hold",)

    def __init__(self, hold: Hold) -> None:
        self._hold = hold

    @property
    def grants(self) -> tuple[model.Grant, ...]:
        """One for each lock, in the order in which they were asked for."""
        return self._hold.grants

    @property
    def session(self) -> LockSession:
        """Whose it is."""
        return self._hold.session

    @property
    def name(self) -> str:
        """The lock's name; of several, the first one's."""
        return self._hold.grants[0].lock

    @property
    def mode(self) -> Mode:
        """How it is held now."""
        return self._hold.grants[0].mode

    @property
    def token(self) -> int:
        """The fencing token: above that of every grant before, for ever."""
        return self._hold.grants[0].token

    @property
    def fence(self) -> model.Fence:
        """For what is written on behalf of the lock: it is refused when the lock is not held so any more."""
        return model.Fence(self.name, self.token)

    @property
    def is_valid(self) -> bool:
        """Whether it is held, as far as this program can know. Whoever must be certain has the token checked
        by what is written to."""
        return self._hold.is_valid

    @property
    def is_wounded(self) -> bool:
        """Whether an older owner wants it, in a lock space with the policy ``wound-wait``: this thread, or
        task, gets no further lock there before it has released all that it has there."""
        return self._hold.is_wounded

    def check(self) -> None:
        """Do nothing while it is held.

        Raises:
            NotHeld: it was released.
            LockRevoked, SessionLost: it was lost.
        """
        self._hold.check()


class GuardBase(GrantBase):
    """A guard that is given back without waiting."""

    __slots__ = ()

    def release(self) -> None:
        """Give it back. Does not wait.

        Raises:
            NotHeld: it was released already.
            LockRevoked, SessionLost: it had been lost: what was done meanwhile was perhaps not alone.
        """
        self._hold.session.release(self._hold)

    def _leave(self, error: BaseException | None) -> None:
        """A block ends; ``error``: by what, if not as it should. Its lock is released, unless it was inside.

        Raises:
            LockRevoked, SessionLost: the lock was lost inside, and nothing else is wrong.
        """
        try:
            self.release()
        except NotHeld:
            pass
        except TowpathError:
            if error is None:
                raise
