"""Leader election: a mutex whose holder says who it is.

To stand for election is to acquire the lock of the election's name exclusively, with a ``note`` that says
where the leader is to be found. Who holds it leads; the token is the term, and what a leader writes with it
as a fence is refused once there is another. To follow is to watch the lock, or to ask here. To resign is to
release it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .table import Table


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads. ``term``: the token of its grant."""

    session: int
    owner: int
    term: int
    since_ns: int
    note: str


def leader(table: Table, name: str) -> Leader | None:
    """Return who leads; None: nobody."""
    lock = table.locks.get(name)
    claim = lock.exclusive if lock is not None else None
    if claim is None:
        return None
    return Leader(claim.owner.session.id, claim.owner.number, claim.token, claim.since_ns, claim.request.note)


def candidates(table: Table, name: str) -> int:
    """Return how many stand behind the leader."""
    lock = table.locks.get(name)
    return len(lock.queue) if lock is not None and lock.queue else 0
