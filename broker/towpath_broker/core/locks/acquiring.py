"""Acquiring and giving back: how a request is judged, step by step.

Theory of operation
    1. What cannot be is refused: names, weights, the bounds, what the lock space does not allow whatever the
       state of things (an order broken, a claim exceeded, no timeout where one is needed).
    2. What the owner has already is counted, if it asked for that (reentrance).
    3. What can be granted is granted.
    4. Otherwise it waits, unless it was not to, or its lock space does not let it; then it may turn out that
       its waiting closes a circle (``deadlock``).

    Steps 1 and 2 change nothing before everything is judged, so that a refusal leaves no trace.

Invariants
    As of ``table`` and ``queue``.
"""

from __future__ import annotations

from towpath.errors import (
    Deadlock,
    InvalidArgument,
    LimitExceeded,
    LockConflict,
    LockHeld,
    LockInUse,
    NotHeld,
    QuotaExceeded,
    TowpathError,
    WaitRefused,
    Wounded,
)

from . import commands as c
from . import effects as e
from .avoidance import ages, banker, ordering
from .commands import EndReason, Policy, Wanted
from .deadlock import name_of, resolve
from .grants import AT_BARRIER, HELD, WAITING, Claim, Lock, Owner, Request, Session
from .guarded import end_of_grant
from .limits import LOCKS_PER_REQUEST_MAX, NOTE_CHARS_MAX, NUMBER_MAX, WEIGHT_MAX
from .modes import EXCLUSIVE, PERMITS, SHARED
from .queue import advance, holders_before, is_grantable, waiters_before
from .spaces import Space
from .table import Table


class Blocked(Exception):
    """A request is refused because of another's grant. Not an error of its own: it carries one.

    Args:
        error: the refusal.
        blocker: the grant, or the wait, that is in the way.
    """

    def __init__(self, error: TowpathError, blocker: Claim) -> None:
        super().__init__(error)
        self.error = error
        self.blocker = blocker


# ---- acquiring ---------------------------------------------------------------------------------------------


def acquire(table: Table, command: c.Acquire) -> None:
    """Grant a request, or let it wait.

    Raises:
        TowpathError, Blocked: it is refused; nothing was changed.
    """
    session = table.session(command.session)
    existing = session.requests.get(command.request)
    if existing is not None:
        if existing.state == AT_BARRIER:
            raise InvalidArgument(f"request {command.request} waits at a barrier")
        tell_again(table, existing)
        return
    owner = table.owner(session, command.owner)
    check_new(table, session, owner, command.request)
    wanted = command.locks
    if not 1 <= len(wanted) <= LOCKS_PER_REQUEST_MAX:
        raise InvalidArgument(f"a request is for 1 to {LOCKS_PER_REQUEST_MAX} locks, not {len(wanted)}")
    if len(command.note) > NOTE_CHARS_MAX:
        raise InvalidArgument(f"the note has {len(command.note)} characters: {NOTE_CHARS_MAX} are allowed")
    request = Request(session, owner, command.request)
    request.note = command.note
    request.is_guarded = command.is_guarded
    request.since_ns = table.now_ns
    for each in wanted:
        request.claims.append(_claim(table, request, each))
    if len(wanted) > 1 and len({claim.lock.name for claim in request.claims}) < len(wanted):
        raise InvalidArgument("one request names a lock twice")
    has = table.claims_by_principal.get(session.principal, 0)
    if has + len(wanted) > table.limits.claims_per_principal_max:
        raise QuotaExceeded(f"{session.principal} holds or waits for {has} locks: claims_per_principal_max")
    if owner.grants and _reenter(table, request, command):
        return
    check_policies(request, command.timeout_ms)
    if is_grantable(table, request):
        _keep(table, request)
        table.grant(request)
        return
    wait(table, request, command.timeout_ms)


def check_new(table: Table, session: Session, owner: Owner, number: int) -> None:
    """Refuse a request that cannot begin.

    Raises:
        InvalidArgument: the number cannot be, or the owner waits already.
        LimitExceeded: the session has as many requests as it may have.
    """
    if not 0 < number <= NUMBER_MAX or not 0 <= owner.number <= NUMBER_MAX:
        raise InvalidArgument("a request's number is 1 to 2**63 - 1, an owner's 0 to 2**63 - 1")
    if owner.busy is not None:
        raise InvalidArgument(
            f"owner {owner.number} of the session waits already, with its request {owner.busy.number}",
            hint="give each thread and each task an owner's number of its own",
        )
    if len(session.requests) >= table.limits.grants_per_session_max:
        raise LimitExceeded(
            f"the session has {len(session.requests)} requests that hold or wait: grants_per_session_max"
        )


def _claim(table: Table, request: Request, wanted: Wanted) -> Claim:
    """Return what a request wants of one lock.

    Raises:
        InvalidName, InvalidArgument, LockConflict, LimitExceeded: it cannot be wanted.
    """
    name, mode, weight, capacity = wanted
    lock = table.locks.get(name)
    if lock is None:
        lock = table.lock(name)
    if lock.page is not None:
        raise LockInUse(f"{name!r} is given out to a lock page", hint="the engine takes it back before")
    if lock.space.policy is Policy.BANKER:
        resource = lock.space.resources.get(name)
        if resource is None:
            raise InvalidArgument(f"{name!r} is not a resource of the lock space {lock.space.prefix!r}")
        if mode == SHARED:
            raise InvalidArgument(f"{name!r} is a resource: it is taken by units, or exclusively")
        capacity = resource
        if mode == EXCLUSIVE:
            mode, weight = PERMITS, resource
    if mode != PERMITS:
        if mode not in (EXCLUSIVE, SHARED):
            raise InvalidArgument(f"{mode} is no mode of a lock")
        return Claim(_with_capacity(lock, 0) if lock.capacity else lock, request.owner, request, mode, 1)
    capacity = capacity or lock.capacity
    if lock.capacity != capacity:
        lock = _with_capacity(lock, capacity)
    if not 1 <= lock.capacity <= WEIGHT_MAX:
        raise InvalidArgument(
            f"how many permits has {name!r}?", hint=f"state the capacity, 1 to {WEIGHT_MAX}"
        )
    if not 1 <= weight <= lock.capacity:
        raise InvalidArgument(f"{weight} of the {lock.capacity} permits of {name!r} cannot be had")
    return Claim(lock, request.owner, request, PERMITS, weight)


def _with_capacity(lock: Lock, capacity: int) -> Lock:
    """Return a lock of this name and of another capacity, to be kept, if nobody uses the one that is there.

    Raises:
        LockConflict: somebody uses it.
    """
    if lock.holders or lock.queue or lock.conditions:
        what = f"a semaphore with {lock.capacity} permits" if lock.capacity else "used as a lock"
        raise LockConflict(f"{lock.name!r} is {what}")
    if lock.data is None:  # it is not in the table
        lock.capacity = capacity
        return lock
    other = Lock(lock.name, lock.space, capacity)
    other.data, other.token = lock.data, lock.token
    return other


def _reenter(table: Table, request: Request, command: c.Acquire) -> bool:
    """Count what the owner has already, if that is what it asks for.

    Raises:
        InvalidArgument: it has some of several locks.
        Blocked: it has the lock, in a way that its waiting would be for itself.
    """
    for claim in request.claims:
        for held in claim.lock.holders:
            if held.owner is not request.owner or claim.mode == PERMITS:
                continue
            if command.is_reentrant and (held.mode == EXCLUSIVE or claim.mode == SHARED):
                if len(request.claims) > 1:
                    raise InvalidArgument(
                        f"the owner has {held.lock.name!r} already: acquire the others alone"
                    )
                if held.request.conversion is not None:
                    continue
                held.count += 1
                request.claims = [held]
                table.keep(request)
                request.state = HELD
                session = request.session
                grants = table.grants_of(request)
                owner = request.owner.number
                table.effects.append(e.Granted(session.id, request.number, grants, owner=owner))
                return True
            if EXCLUSIVE in (held.mode, claim.mode):
                hint = "upgrade it" if held.mode == SHARED else "acquire it as reentrant"
                raise Blocked(Deadlock(f"the owner holds {held.lock.name!r} itself", hint=hint), held)
    return False


def check_policies(request: Request, timeout_ms: int) -> None:
    """Refuse what lock spaces do not allow whatever others do.

    Raises:
        InvalidArgument, ClaimExceeded, Wounded, Blocked: they do not.
    """
    owner = request.owner
    for claim in request.claims:
        space = claim.lock.space
        match space.policy:
            case Policy.DETECT:
                continue
            case Policy.ORDERED if claim.converts is None:
                refused = ordering.check(owner, claim.lock)
                if refused is not None:
                    raise Blocked(*refused)
            case Policy.BANKER:
                if any(other.lock.space is not space for other in request.claims):
                    raise InvalidArgument("resources and other locks cannot be taken together")
                banker.check_request(owner, claim.lock, claim.weight)
            case Policy.WOUND_WAIT if space.prefix in owner.wounded:
                raise Wounded(f"an older owner wants what this one holds in the lock space {space.prefix!r}")
            case Policy.TIMEOUT_ONLY if timeout_ms < 0:
                raise InvalidArgument(
                    f"in the lock space {space.prefix!r} each request has a timeout", hint="state one"
                )


def _keep(table: Table, request: Request) -> None:
    for claim in request.claims:
        table.locks[claim.lock.name] = claim.lock
    table.keep(request)


# ---- waiting -----------------------------------------------------------------------------------------------


def wait(table: Table, request: Request, timeout_ms: int) -> None:
    """Let a request wait for its locks, as their lock spaces allow; it may be granted before this returns.

    Raises:
        LockHeld, WaitRefused (as Blocked), LimitExceeded, QuotaExceeded: it may not; nothing was changed.
    """
    wounded = check_may_wait(table, request, timeout_ms)
    if request.upgrades is None:
        _keep(table, request)
    _stand(table, request, timeout_ms, wounded)


def wait_again(table: Table, request: Request, timeout_ms: int = c.NO_TIMEOUT) -> None:
    """Let a request wait that had its lock, and gave it up for a condition, or that waited in a lock page;
    whatever the lock space says of who may wait. Deadlocks are found all the same."""
    _stand(table, request, timeout_ms, [])


def _stand(table: Table, request: Request, timeout_ms: int, wounded: list[Claim]) -> None:
    """Stand in the queues, and see what comes of that."""
    table.begin_wait(request, WAITING, timeout_ms)
    for claim in request.claims:
        table.enqueue(claim)
        if claim.lock.space.policy is Policy.BANKER:
            claim.lock.space.waiting[request] = None
    told = len(table.effects)
    for claim in wounded:
        _wound(table, claim, request)
    if request.state == WAITING:
        resolve(table, request)
    if request.state == WAITING:
        number = request.number if request.upgrades is None else request.upgrades.number
        table.effects.insert(told, e.Waiting(request.session.id, number))


def check_may_wait(table: Table, request: Request, timeout_ms: int) -> list[Claim]:
    """Refuse a wait that may not begin, and return whom it wounds.

    Raises:
        LockHeld, WaitRefused (as Blocked), LimitExceeded, QuotaExceeded: it may not.
    """
    wounded: list[Claim] = []
    for claim in request.claims:
        policy = claim.lock.space.policy
        if timeout_ms == 0 or policy is Policy.NO_WAIT:
            _refuse_now(table, request)
        if policy is Policy.ORDERED and claim.converts is not None:
            others = [*holders_before(claim), *waiters_before(claim)]
            raise Blocked(ordering.no_upgrade(claim.lock), others[0])
        if policy in (Policy.WAIT_DIE, Policy.WOUND_WAIT):
            in_the_way = [*holders_before(claim), *waiters_before(claim)]
            if policy is Policy.WOUND_WAIT:
                wounded.extend(ages.younger_blockers(request.owner, in_the_way))
                continue
            older = ages.older_blocker(request.owner, in_the_way)
            if older is not None:
                who = name_of(older.owner.session)
                error = WaitRefused(f"{claim.lock.name!r} is wanted by {who} too, which is older")
                raise Blocked(error, older)
    table.check_wait(request.session)
    return wounded


def _refuse_now(table: Table, request: Request) -> None:
    for claim in request.claims:
        for other in (*holders_before(claim), *waiters_before(claim)):
            who = name_of(other.owner.session)
            what = "holds it" if other.token else "waits for it"
            raise Blocked(LockHeld(f"{claim.lock.name!r} is not free: {who} {what}"), other)
    if table.settled_at_ns:
        raise LockHeld("the host has started lately: nothing is granted until leases of before have passed")
    raise LockHeld("granting it now could lead to a deadlock (banker's algorithm)")


def _wound(table: Table, claim: Claim, by: Request) -> None:
    """Somebody younger is in the way of a request."""
    owner, prefix = claim.owner, claim.lock.space.prefix
    if claim.token and prefix not in owner.wounded and claim in owner.grants:
        table.revision += 1
        owner.wounded[prefix] = None
        session = owner.session.id
        table.effects.append(e.Wounded(session, owner.number, claim.told(), by.session.id, by.owner.number))
    busy = owner.busy
    if busy is not None and busy.state == WAITING and (claim.token or busy is claim.request):
        withdraw(table, busy, Wounded(f"an older owner ({name_of(by.session)}) wants {claim.lock.name!r}"))


def withdraw(table: Table, request: Request, error: TowpathError) -> None:
    """Refuse a request that waits for locks, and grant what that allows."""
    table.leave_queues(request)
    table.refuse(request, error)
    for claim in request.claims:
        advance(table, claim.lock)


def tell_again(table: Table, request: Request) -> None:
    """Answer a request that was made before by how it stands."""
    session = request.session.id
    if request.state == HELD:
        grants, owner = table.grants_of(request), request.owner.number
        table.effects.append(e.Granted(session, request.number, grants, owner=owner))
    else:
        table.effects.append(e.Waiting(session, request.number))


# ---- converting --------------------------------------------------------------------------------------------


def held_request(table: Table, session: int, number: int) -> Request:
    """Return a request that holds.

    Raises:
        SessionLost, NotHeld: it does not.
    """
    request = table.session(session).requests.get(number)
    if request is None or request.state != HELD or not request.claims:
        raise NotHeld(f"request {number} of lock session {session} holds nothing")
    return request


def the_claim(request: Request) -> Claim:
    """Return the one lock that a request holds.

    Raises:
        InvalidArgument: it holds several, or shares the one with another request of its owner.
    """
    if len(request.claims) != 1 or request.claims[0].count != 1:
        raise InvalidArgument("this goes only with a request that holds one lock, and has it alone")
    if request.conversion is not None:
        raise InvalidArgument("the request waits for its upgrade")
    return request.claims[0]


def upgrade(table: Table, command: c.Upgrade) -> None:
    """Make a shared grant exclusive, or let it wait for that.

    Raises:
        TowpathError, Blocked: it is refused; nothing was changed.
    """
    held = held_request(table, command.session, command.request)
    if held.conversion is not None:
        table.effects.append(e.Waiting(command.session, command.request))
        return
    claim = the_claim(held)
    if claim.mode == EXCLUSIVE:
        tell_again(table, held)
        return
    if claim.mode != SHARED:
        raise NotHeld(f"{claim.lock.name!r} is not held shared")
    if held.owner.busy is not None:
        check_new(table, held.session, held.owner, held.number)
    request = Request(held.session, held.owner, held.number)
    wanted = Claim(claim.lock, claim.owner, request, EXCLUSIVE, 1)
    wanted.converts = claim
    request.claims.append(wanted)
    request.upgrades = held
    check_policies(request, command.timeout_ms)
    if is_grantable(table, request):
        table.grant(request)
        return
    held.conversion = request
    try:
        wait(table, request, command.timeout_ms)
    except (TowpathError, Blocked):
        held.conversion = None
        raise


def downgrade(table: Table, command: c.Downgrade) -> None:
    """Make an exclusive grant shared, and let in who may read beside it.

    Raises:
        SessionLost, NotHeld, InvalidArgument: it is not held exclusively.
    """
    request = held_request(table, command.session, command.request)
    claim = the_claim(request)
    if claim.mode != EXCLUSIVE:
        raise NotHeld(f"{claim.lock.name!r} is not held exclusively")
    table.revision += 1
    claim.mode = SHARED
    claim.lock.exclusive = None
    advance(table, claim.lock)


# ---- giving back -------------------------------------------------------------------------------------------


def release(table: Table, request: Request, reason: EndReason) -> None:
    """End the grants of a request that holds, and grant what that allows."""
    conversion = request.conversion
    if conversion is not None:
        table.leave_queues(conversion)
        table.refuse(conversion, NotHeld("the request was released while it waited for its upgrade"))
    request.conversion = None
    dropped: list[Claim] = []
    for claim in request.claims:
        if claim.count > 1:
            claim.count -= 1
            if claim.request is request:
                claim.request = _other_request(request, claim)
        else:
            table.drop(claim)
            dropped.append(claim)
            if request.is_guarded:
                end_of_grant(table, claim, reason)
    table.revision += 1
    table.forget(request)
    table.tell_released(request, tuple([claim.told() for claim in dropped]), reason)
    looked_at: Space | None = None
    for claim in dropped:
        lock = claim.lock
        if lock.space.waiting:
            if lock.space is not looked_at:  # all who wait there are looked at together
                looked_at = lock.space
                advance(table, lock)
            table.tidy(lock)
        elif lock.queue:
            advance(table, lock)
        elif not lock.holders:
            table.tidy(lock)


def _other_request(request: Request, claim: Claim) -> Request:
    """Return another request that shares a claim."""
    return next(
        other for other in request.session.requests.values() if other is not request and claim in other.claims
    )
