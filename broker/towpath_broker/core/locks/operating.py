"""What operators do: take locks away, lay down lock spaces; and claims, which are declared before.

Not here: who may do so. That is for the door.
"""

from __future__ import annotations

from towpath.errors import InvalidArgument, LockInUse, NotHeld, TowpathError

from . import acquiring, guarded
from . import commands as c
from . import effects as e
from .avoidance import banker
from .commands import EndReason, Policy
from .grants import Claim, Lock, Owner, Request
from .limits import NOTE_CHARS_MAX, NUMBER_MAX
from .queue import advance
from .spaces import Space, make_space
from .table import Table


def force_release(table: Table, command: c.ForceRelease) -> e.Done:
    """Take grants away from whoever has them, and grant what that allows.

    Raises:
        NotHeld: nobody has the lock, or not by that token.
        InvalidArgument: the reason is too long.
    """
    if len(command.reason) > NOTE_CHARS_MAX:
        raise InvalidArgument(
            f"the reason has {len(command.reason)} characters: {NOTE_CHARS_MAX} are allowed"
        )
    lock = table.locks.get(command.name)
    claims = [
        claim for claim in (lock.holders if lock is not None else ()) if command.token in (0, claim.token)
    ]
    if lock is None or not claims:
        by = f" by token {command.token}" if command.token else ""
        raise NotHeld(f"nobody holds {command.name!r}{by}")
    taken: list[tuple[int, e.Grant]] = []
    message = (
        f"taken by {command.principal}: {command.reason}"
        if command.reason
        else f"taken by {command.principal}"
    )
    for claim in claims:
        for request in _requests_of(claim):
            _take(table, claim, request, NotHeld(message))
            table.effects.append(e.Revoked(request.session.id, request.number, claim.told(), message))
        taken.append((claim.owner.session.id, claim.told()))
        table.drop(claim)
        for request in _requests_of(claim):
            request.claims.remove(claim)
            table.charge(request.session.principal, -1)
            if not request.claims:
                table.forget(request)
    advance(table, lock)
    return e.Done(0, taken=tuple(taken))


def _requests_of(claim: Claim) -> list[Request]:
    """Return the requests that share a grant; mostly there is one. O(requests of the session)."""
    return [request for request in claim.owner.session.requests.values() if claim in request.claims]


def _take(table: Table, claim: Claim, request: Request, error: TowpathError) -> None:
    if request.conversion is not None:
        acquiring.withdraw(table, request.conversion, error)
    if request.is_guarded:
        guarded.end_of_grant(table, claim, EndReason.FORCED)
    table.tell_released(request, (claim.told(),), EndReason.FORCED)


# ---- claims ------------------------------------------------------------------------------------------------


def declare_claims(table: Table, command: c.DeclareClaims) -> None:
    """Lay down the most that an owner will ever ask for; it replaces what it said of that lock space before.

    Raises:
        SessionLost, InvalidArgument, ClaimExceeded: it cannot be; nothing was changed.
    """
    session = table.session(command.session)
    if not 0 <= command.owner <= NUMBER_MAX:
        raise InvalidArgument("an owner's number is 0 to 2**63 - 1")
    owner = table.owner(session, command.owner)
    if not command.claims:
        if owner.busy is not None or any(claim.lock.name in owner.claims for claim in owner.grants):
            raise InvalidArgument("the owner has resources, or waits", hint="release them first")
        withdraw_claims(table, owner)
        table.forget_idle(owner)
        return
    spaces = {table.spaces.of(name).prefix: table.spaces.of(name) for name in command.claims}
    if len(spaces) > 1:
        raise InvalidArgument("claims are declared for one lock space at a time")
    (space,) = spaces.values()
    if space.policy is not Policy.BANKER:
        raise InvalidArgument(f"the lock space {space.prefix!r} does not use the banker's algorithm")
    banker.check_claims(space, owner, command.claims)
    table.revision += 1
    session.owners.setdefault(owner.number, owner)
    kept = {name: units for name, units in owner.claims.items() if not space.has(name)}
    owner.claims = {**kept, **{name: units for name, units in command.claims.items() if units}}
    space.members[owner] = None
    space.state = None
    look_again(table, space)


def withdraw_claims(table: Table, owner: Owner) -> None:
    """An owner that has no resources needs none any more."""
    if not owner.claims:
        return
    table.revision += 1
    spaces = {table.spaces.of(name).prefix: table.spaces.of(name) for name in owner.claims}
    owner.claims = {}
    for space in spaces.values():
        space.members.pop(owner, None)
        space.state = None
        look_again(table, space)


def look_again(table: Table, space: Space) -> None:
    """Something has changed for all who wait in a lock space with the banker's algorithm."""
    first = next(iter(space.waiting), None)
    if first is not None:
        advance(table, first.claims[0].lock)


# ---- lock spaces -------------------------------------------------------------------------------------------


def define_space(table: Table, command: c.DefineSpace) -> None:
    """Lay down, change or remove a lock space.

    Raises:
        TowpathError: it cannot be, or one of its locks is used; nothing was changed.
    """
    spaces = table.spaces
    existing = spaces.get(command.prefix)
    if command.is_removed and existing is None:
        raise InvalidArgument(f"there is no lock space {command.prefix!r}")
    left = table.limits.spaces_max - len(spaces) + (existing is not None)
    space = make_space(command, spaces_left=left)
    concerned: list[Lock] = []
    for lock in table.locks.values():
        if space.has(lock.name) and len(lock.space.prefix) <= len(space.prefix):
            if lock.is_used or lock.conditions or lock.page is not None:
                raise LockInUse(f"{lock.name!r} is used")
            concerned.append(lock)
    if existing is not None and existing.members:
        raise LockInUse(f"there are claims to the resources of {command.prefix!r}")
    table.revision += 1
    if command.is_removed:
        spaces.remove(command.prefix)
    else:
        spaces.put(space)
    for lock in concerned:
        lock.space = spaces.of(lock.name)
