"""The fair queue of a lock: who may be granted now, and in which order.

Theory of operation
    First come, first served. A claim is granted when the holders leave room for it (``grants.is_free``) and
    no claim before it in the queue conflicts with it; so readers pass only readers, and nobody passes who
    waits for permits. Who asks when there is a queue stands at its end. Those who convert come first, since
    nobody behind them could be granted before them anyway.

    A request for several locks stands in all their queues from one moment on, and is granted when it could be
    in each. Meanwhile it takes nothing; but it keeps its place, so those behind it wait although the lock may
    be free. Because requests enter their queues at one moment, the order of any two of them is the same in
    all queues, and joint requests alone never wait in a circle.

    After each change of a lock ``advance`` grants whatever has become possible. It looks at the queue from
    its head and stops where nothing further can be granted.

Invariants
    Between commands no waiting request could be granted.
    Cost of ``advance``: the claims granted, plus the joint readers that are passed.
"""

from __future__ import annotations

from .avoidance import banker
from .commands import Policy
from .grants import Claim, Lock, Request, is_free
from .modes import CONFLICTS, SHARED
from .table import Table


def is_clear(claim: Claim) -> bool:
    """Whether no claim that conflicts is before it; one that is not in the queue would stand at its end, or,
    when it converts, behind others that do."""
    lock = claim.lock
    queue = lock.queue
    if not queue:
        return True
    if claim in queue or claim.converts is not None:
        return not waiters_before(claim, is_one_enough=True)
    return claim.mode == SHARED and not lock.exclusive_waiting


def is_grantable(table: Table, request: Request) -> bool:
    """Whether a request, waiting or new, can be granted now. O(its locks), and, of a joint request that waits
    to read, those before it in its queues."""
    if table.settled_at_ns:
        return False
    for claim in request.claims:
        if not is_free(claim):
            return False
        if claim.lock.space.policy is Policy.BANKER:
            return banker.is_grantable(claim.lock.space, request)
        if not is_clear(claim):
            return False
    return True


def advance(table: Table, lock: Lock) -> None:
    """Grant what the lock's present state allows. The lock is forgotten if nobody uses it."""
    if table.settled_at_ns:
        return
    todo = [lock]
    while todo:
        lock = todo.pop()
        if lock.space.policy is Policy.BANKER:
            for request in banker.next_grantable(lock.space):
                grant_waiting(table, request)
        elif lock.queue:
            _advance_queue(table, lock, todo)
        if not lock.holders and not lock.queue:
            table.tidy(lock)


def _advance_queue(table: Table, lock: Lock, todo: list[Lock]) -> None:
    granted: list[Claim] = []
    is_shared_passed = False
    assert lock.queue is not None
    for claim in lock.queue:
        if not is_free(claim):
            break  # who is behind it conflicts with it, or with those who hold
        request = claim.request
        is_ready = len(request.claims) == 1 or all(
            other is claim or (is_free(other) and is_clear(other)) for other in request.claims
        )
        if claim.mode == SHARED:
            if not is_ready:
                is_shared_passed = True
                continue
        elif not is_ready or (is_shared_passed and claim.converts is None):
            break
        # Granted at once, so that what comes next is judged by it; it leaves this queue after the loop.
        granted.append(claim)
        for other in request.claims:
            if other is not claim:
                table.dequeue(other)
                if other.lock.capacity:
                    todo.append(other.lock)  # those behind it waited for their turn, and there may be permits
        table.end_wait(request)
        table.grant(request)
    for claim in granted:
        table.dequeue(claim)


def grant_waiting(table: Table, request: Request) -> None:
    """Grant a request that is in queues."""
    for claim in request.claims:
        table.dequeue(claim)
        claim.lock.space.waiting.pop(request, None)
    table.end_wait(request)
    table.grant(request)


def holders_before(claim: Claim) -> list[Claim]:
    """Return the grants that a claim waits for. O(holders)."""
    if is_free(claim):
        return []
    lock = claim.lock
    conflicts = CONFLICTS[claim.mode]
    return [
        holder
        for holder in lock.holders
        if holder is not claim.converts and (lock.capacity or conflicts[holder.mode])
    ]


def waiters_before(claim: Claim, *, is_one_enough: bool = False) -> list[Claim]:
    """Return the claims before one in the queue which it may not pass (or one of them); one that is not in
    the queue would stand at its end. O(its place)."""
    lock = claim.lock
    if not lock.queue or lock.space.policy is Policy.BANKER:
        return []
    conflicts = CONFLICTS[claim.mode]
    found: list[Claim] = []
    for other in lock.queue:
        if other is claim:
            break
        if conflicts[other.mode] and (claim.converts is None or other.converts is not None):
            found.append(other)
            if is_one_enough:
                break
    return found
