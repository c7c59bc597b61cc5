"""Leader election: a mutex whose holder says who it is.

Theory of operation
    To stand for election is to acquire the lock of the election's name, with a note that says where the
    leader is to be found. Who holds it leads; its token is the *term*, and what a leader writes with
    ``fence=guard.fence`` is refused once there is another. To resign is to release it; who dies resigns.
    Followers watch the lock, and look at who holds it whenever something has happened to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from towpath.errors import NotHeld
from towpath.locks import model, requests
from towpath.locks.blocking import Guard, Locks
from towpath.locks.model import Mode
from towpath.locks.requests import Wanted
from towpath.locks.watching import LockEvent, LockWatch
from towpath.names import check_name
from towpath.result import attempt


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads.

    Attributes:
        term: the token of its grant: above that of every leader before.
        note: what it says of itself.
        since_ns: nanoseconds since the epoch.
        session: where it runs, as far as that is known.
    """

    term: int
    note: str
    since_ns: int
    session: model.Session | None


def leader_of(found: model.Explanation, name: str) -> Leader | None:
    """Who holds the lock of a name exclusively."""
    sessions = {session.id: session for session in found.sessions}
    for lock in found.locks:
        if lock.name == name:
            for grant in lock.holders:
                if grant.mode is Mode.EXCLUSIVE:
                    return Leader(grant.token, grant.note, grant.since_ns, sessions.get(grant.owner.session))
    return None


def concerns(event: LockEvent, name: str) -> bool:
    """Whether it may have changed who leads."""
    return event.kind == "reset" or (event.grant is not None and event.grant.lock == name)


class Election:
    """One election by name; asks nobody until it is used."""

    def __init__(self, locks: Locks, name: str) -> None:
        self.name = check_name(name, "an election's name")
        self._locks = locks

    def campaign(self, note: str = "", timeout: float | None = None) -> Guard:
        """Stand for election, and wait until it is won.

        Args:
            note: where the leader is to be found; for followers.
            timeout: seconds; None waits for ever, 0 does not wait.

        Returns:
            What proves it: ``token`` is the term, ``fence`` goes with what the leader writes, ``release()``
            resigns. It is valid as long as the program leads.

        Raises:
            As :meth:`towpath.Lock.acquire`.
        """
        return Guard(self._locks, self._locks.acquire([Wanted(self.name)], timeout, note=note))

    def leader(self) -> Leader | None:
        """Return who leads; None: nobody."""
        try:
            return leader_of(self._locks._client._call(requests.explain(lock=self.name)), self.name)
        except NotHeld:
            return None

    def watch(self) -> Iterator[Leader | None]:
        """Yield who leads, now and whenever that has changed; None: nobody. Of changes that follow each other
        closely the last is told."""
        told = -1
        with LockWatch(self._locks._client, self.name) as watch:
            leader = self.leader()
            while True:
                if (term := leader.term if leader is not None else 0) != told:
                    told = term
                    yield leader
                while not concerns(watch.receive(), self.name):
                    pass
                leader = self.leader()

    try_campaign = attempt(campaign)
    try_leader = attempt(leader)
