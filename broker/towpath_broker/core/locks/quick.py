"""What nearly all commands are, without the questions that do not arise: one lock is taken that nobody uses,
and given back with nobody behind.

Theory of operation
    Each function first makes sure that the command is such a case, whereby nothing is changed, and then does
    what ``acquiring`` would have done, by the same steps of ``table``. If it is no such case, or whatever is
    wrong with it, it says so, and ``acquiring`` judges it from the beginning.

    A request and its claims refer to each other. Here, where nobody else can have either, that ends with the
    release, so that they go at once, and not when the collector of garbage finds them.

Invariants
    State and effects are those of ``acquiring``.

Not here: anything that could wait, or be in anybody's way.
"""

from __future__ import annotations

from .commands import Acquire, EndReason, Policy, Release
from .effects import Done, Granted, Released
from .grants import HELD, Claim, Owner, Request
from .limits import NUMBER_MAX, WEIGHT_MAX
from .modes import EXCLUSIVE, PERMITS, SHARED
from .table import Table


def acquire(table: Table, command: Acquire) -> bool:
    """Grant a request for one lock that is not in use; return whether it was one.

    Raises:
        InvalidName, LimitExceeded: of the lock, as ``acquiring.acquire`` would have. Nothing was changed.
    """
    session = table.sessions.get(command.session)
    if session is None or table.settled_at_ns or command.is_guarded or command.note:
        return False
    if len(command.locks) != 1:
        return False
    ((name, mode, weight, capacity),) = command.locks
    number = command.request
    owner = session.owners.get(command.owner)
    if owner is None:
        owner = Owner(session, command.owner)
    if (
        name in table.locks
        or owner.busy is not None
        or number in session.requests
        or not 0 < number <= NUMBER_MAX
        or not 0 <= owner.number <= NUMBER_MAX
        or len(session.requests) >= table.limits.grants_per_session_max
    ):
        return False
    if mode == PERMITS:
        if not 1 <= weight <= capacity <= WEIGHT_MAX:
            return False
    elif mode in (EXCLUSIVE, SHARED):
        weight, capacity = 1, 0
    else:
        return False
    lock = table.lock(name)
    if (
        lock.space.policy is not Policy.DETECT
        or table.claims_by_principal.get(session.principal, 0) >= table.limits.claims_per_principal_max
    ):
        return False
    lock.capacity = capacity
    request = Request(session, owner, number)
    request.since_ns = table.now_ns
    request.state = HELD
    claim = Claim(lock, owner, request, mode, weight)
    request.claims.append(claim)
    table.locks[name] = lock
    table.keep(request)
    table.hold(claim)
    table.effects.append(Granted(session.id, number, (claim.told(),), False, owner.number))
    return True


def release(table: Table, command: Release) -> bool:
    """End the grant of a request for one lock for which nobody waits; return whether it was one."""
    session = table.sessions.get(command.session)
    if session is None or command.value is not None or command.is_recovered:
        return False
    request = session.requests.get(command.request)
    if request is None or request.state != HELD or len(request.claims) != 1:
        return False
    (claim,) = request.claims
    lock = claim.lock
    # An upgrade that waits stands in the queue.
    if claim.count != 1 or lock.queue or lock.space.policy is not Policy.DETECT:
        return False
    table.drop(claim)
    table.forget(request)
    table.effects.append(Released(session.id, request.number, (claim.told(),), EndReason.RELEASED))
    if not lock.holders:
        table.tidy(lock)
    if command.reference:
        table.effects.append(Done(command.reference))
    request.claims.clear()
    return True
