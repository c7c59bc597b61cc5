"""The wait-for graph: who waits for whom, and whether a new wait closes a circle.

Theory of operation
    The graph is not stored; it is read off the locks. An owner that waits has an edge to everybody who holds
    what it waits for (a *hard* edge) and to everybody before it in the queue whom it may not pass (a *soft*
    one). Each edge must go before it can be granted, so a circle is a deadlock; of permits, where it is
    enough that some of the holders go, a circle is only the occasion to look closer (``deadlock.Reduction``).

    New edges come from the request that begins to wait, and (when it converts) from those behind it to an
    owner that they waited for already. So before it there was no circle, and a new one leads through its
    owner. The search starts there, and ends at once when nobody waits for anything that this owner has.

    ``may_close_circle`` is for every wait and must not look at each of ten thousand that stand in a queue.
    They all wait for what holds the lock, and for nothing else, unless they wait for other locks too. So the
    search goes from lock to lock: to the locks that the holders wait for, and to those that the joint waiters
    before one wait for. Each lock's holders are looked at once, and each joint waiter once. It may find a
    circle where there is none, by way of a reader that another reader need not wait for; what is found is
    looked at closely in ``deadlock``.

Not here: what is done about a circle (``deadlock``). Waits for conditions and at barriers are in no graph:
who will notify, or arrive, is not known.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

from .grants import WAITING, Claim, Lock, Owner, Request, is_free
from .queue import holders_before, is_clear


class Edge(NamedTuple):
    """``waiter`` waits for ``holder``."""

    waiter: Claim
    holder: Claim


def waiting_of(owner: Owner) -> Request | None:
    """Return the request with which an owner waits for locks."""
    busy = owner.busy
    return busy if busy is not None and busy.state == WAITING else None


def may_close_circle(request: Request) -> bool:
    """Whether a request that waits may have closed a circle. O(holders and joint waiters reached)."""
    owner = request.owner
    if not any(claim.lock.queue for claim in owner.grants):
        return False  # nobody waits for what it has
    looked: set[Lock] = set()
    reached: dict[Lock, int] = {}  # up to which place joint waiters have been followed
    todo = [claim for claim in request.claims if _is_blocked(claim)]
    while todo:
        claim = todo.pop()
        lock = claim.lock
        if claim.converts is not None or lock not in looked:
            if claim.converts is None:
                looked.add(lock)
            for holder in lock.holders:
                if holder is claim.converts:
                    continue
                if holder.owner is owner:
                    return True
                waits = waiting_of(holder.owner)
                if waits is not None:
                    todo.extend(each for each in waits.claims if _is_worth(each, looked, reached))
        if lock.joint and reached.get(lock, -1) < claim.place:
            todo.extend(_joint_before(claim, reached))
    return False


def _is_worth(claim: Claim, looked: set[Lock], reached: dict[Lock, int]) -> bool:
    """Whether following a claim may lead to something new."""
    lock = claim.lock
    if lock in looked and not (lock.joint and reached.get(lock, -1) < claim.place):
        return False
    return _is_blocked(claim)


def _is_blocked(claim: Claim) -> bool:
    """Whether a claim that is queued waits for somebody: of several that wait together, not all need."""
    return len(claim.request.claims) == 1 or not (is_free(claim) and is_clear(claim))


def _joint_before(claim: Claim, reached: dict[Lock, int]) -> list[Claim]:
    """Return what the joint waiters before a claim wait for, of those not yet followed."""
    lock = claim.lock
    known = reached.get(lock, -1)
    reached[lock] = claim.place
    found: list[Claim] = []
    assert lock.queue is not None
    for other in lock.queue:
        if other.place >= claim.place:
            break
        if other.place > known and len(other.request.claims) > 1:
            found.extend(each for each in other.request.claims if each is not other and _is_blocked(each))
    return found


def circle(start: Request, among: Container[Owner]) -> list[Edge]:
    """Return a shortest circle of hard edges that leads through a request's owner; empty: there is none.

    Args:
        start: one that waits.
        among: only by way of these owners.

    Returns:
        Its edges, beginning with one of the owner's own. O(edges).
    """
    goal = start.owner
    came: dict[Owner, Edge] = {}
    line = [start]
    for request in line:  # grows while it is walked
        for claim in request.claims:
            for holder in holders_before(claim):
                owner = holder.owner
                if owner is goal:
                    return _path(Edge(claim, holder), came, goal)
                if owner in came or owner not in among:
                    continue
                waits = waiting_of(owner)
                if waits is not None:
                    came[owner] = Edge(claim, holder)
                    line.append(waits)
    return []


def _path(last: Edge, came: dict[Owner, Edge], goal: Owner) -> list[Edge]:
    path = [last]
    while path[-1].waiter.owner is not goal:
        path.append(came[path[-1].waiter.owner])
    path.reverse()
    return path
