"""What a lock session gives back, until the daemon is known to have it. Sans-I/O.

Theory of operation
    On the daemon's own host a release is said and not answered: what comes after it on the same connection
    comes after it at the daemon. While there is no connection nothing is said; what is held for nobody is
    given back when the session has been taken up again.

    From afar no two calls are certain to be carried out in their order. So each release is answered, nothing
    is asked for before the releases said earlier have been, and one of which it is not known what became of
    it is said again.

Threads: the session's mutex guards what is here, and is not held while the client is asked for anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from towpath import outcomes
from towpath.errors import Cancelled, ConnectionLost, LimitExceeded, Timeout, TowpathError, Unavailable

from . import requests

if TYPE_CHECKING:
    from .pending import Pending
    from .session import LockSession

_UNCERTAIN: Final = (Cancelled, ConnectionLost, LimitExceeded, Timeout, Unavailable)
"""After such an answer to a release the lock may still be held."""


class Releases:
    """One session's."""

    def __init__(self, session: LockSession) -> None:
        self._session = session
        self._last = 0
        self._unanswered: dict[int, int] = {}  # the numbers of requests, by release
        self._uncertain: set[int] = set()
        self._behind: deque[Pending] = deque()

    def give_back(self, number: int) -> None:
        """Release what a request holds. Does not wait."""
        session = self._session
        if not session.lease_s:
            lane = session.lane
            if lane is not None and lane.give_back(number):
                return
            session.asking._post(requests.release(session.id, number), _ignore)
            return
        with session.mutex:
            self._last += 1
            release = self._last
            self._unanswered[release] = number
        self._say(release, number)

    def say_again(self) -> None:
        """Say again what was not answered for a reason that passes."""
        with self._session.mutex:
            uncertain, self._uncertain = self._uncertain, set()
            again = [(each, self._unanswered[each]) for each in uncertain if each in self._unanswered]
        for release, number in again:
            self._say(release, number)

    def _say(self, release: int, number: int) -> None:
        session = self._session
        call = replace(requests.release(session.id, number), is_one_way=False)
        if session.asking._post(call, partial(self._answered, release)) is None:
            self._answered(release, outcomes.not_connected())

    def _answered(self, release: int, outcome: TowpathError | None) -> None:
        """What was behind it is asked for, unless it is not known what became of it."""
        with self._session.mutex:
            if isinstance(outcome, _UNCERTAIN):
                self._uncertain.add(release)
                return
            self._unanswered.pop(release, None)
            ready: list[Pending] = []
            while self._behind and not self.is_before(self._behind[0]):
                ready.append(self._behind.popleft())
        for each in ready:
            each.ask(self._session.asking)

    # ---- with the mutex held -------------------------------------------------------------------------------

    def queue(self, pending: Pending) -> None:
        """A request begins: it is behind what was released before."""
        if self._unanswered:
            pending.after = self._last
            self._behind.append(pending)

    def is_before(self, pending: Pending) -> bool:
        """Whether a release that was said before a request has not been answered."""
        oldest = next(iter(self._unanswered), None)
        return oldest is not None and oldest <= pending.after

    def resumed(self, held: set[int]) -> set[int]:
        """The session was taken up again; all that is not answered is to be said again.

        Args:
            held: the requests that hold something at the daemon.

        Returns:
            Those of them that are being given back.
        """
        self._unanswered = {each: number for each, number in self._unanswered.items() if number in held}
        self._uncertain = set(self._unanswered)
        return set(self._unanswered.values())

    def queue_anew(self, pending: Iterable[Pending]) -> None:
        """All that is asked for is behind all that was released."""
        self._behind = deque(pending)
        for each in self._behind:
            each.after = self._last


def _ignore(_: object) -> None:
    """What became of it is known already, or told otherwise."""
