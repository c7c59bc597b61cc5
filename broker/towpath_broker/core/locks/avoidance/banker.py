"""The banker's algorithm: resources of several types, declared claims, and only safe grants.

Theory of operation
    A lock space names its resources and how much there is of each. An owner declares the most it will ever
    have of each at a time, before it acquires. A request is granted only if afterwards the state is still
    *safe*: there is an order in which every owner can get all that it claimed, with what is free and what
    those before it give back. Otherwise it waits, although there is enough.

    The state is safe before each request. So to judge one only its requester's turn matters: if, after the
    grant, enough others can finish that the requester can get the rest of its claim, then it can finish and
    give everything back, and what is left then is more than there was before the grant. So the search stops
    at the requester.

    Owners whose needs are met finish, and give back what they have; and so on. To find them without looking
    at all of them, the needs of each resource are sorted, and for each place in the sorted list there is a
    set of those up to there, as the bits of a number; who is ready is in the intersection of one set for each
    resource. That is O(resources * log owners) for each round of owners that finish together, and
    O(resources) for each owner.

    Waiting requests are looked at in order of arrival after each release, and each that is safe is granted:
    strict first come, first served would let the head, which is unsafe, hold up just those who must finish
    to make it safe.

Invariants
    The state is safe after every command. No waiting request is grantable.

Sources: E. W. Dijkstra, EWD 108 and 623; A. N. Habermann, "Prevention of System Deadlocks", CACM 12 (7),
1969; Silberschatz, Galvin, Gagne, "Operating System Concepts", "Deadlocks".
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from operator import add, le
from typing import TYPE_CHECKING

from towpath.errors import ClaimExceeded, InvalidArgument
from towpath_broker.core.locks.grants import Claim, Lock, Owner, Request, is_free

if TYPE_CHECKING:
    from towpath_broker.core.locks.spaces import Space


class Needs:
    """What processes may still ask for, arranged for finding those whose needs are met.

    Args:
        need: by process, units of each resource.
    """

    def __init__(self, need: Sequence[Sequence[int]]) -> None:
        self._everybody = (1 << len(need)) - 1
        self._columns = [_arranged(column) for column in zip(*need, strict=True)]

    def renew(self, resource: int, need: Sequence[Sequence[int]]) -> None:
        """The needs of one resource have changed. O(processes * log processes)."""
        self._columns[resource] = _arranged([row[resource] for row in need])

    def met_by(self, free: Sequence[int]) -> int:
        """Return the processes that need no more than what is free, as bits."""
        found = self._everybody
        for (needs, sets), units in zip(self._columns, free, strict=True):
            found &= sets[bisect_right(needs, units)]
        return found


def _arranged(column: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return needs, sorted, and for each place in that list the set of the processes before it."""
    line = sorted(range(len(column)), key=column.__getitem__)
    sets = [0]
    for process in line:
        sets.append(sets[-1] | 1 << process)
    return [column[process] for process in line], sets


def finish_order(
    available: Sequence[int], allocation: Sequence[Sequence[int]], need: Sequence[Sequence[int]]
) -> list[int]:
    """Return in which order processes can finish, each with what is available then.

    Args:
        available: units of each resource that nobody has.
        allocation: by process, what it has of each resource.
        need: by process, what it may still ask for.

    Returns:
        The processes by index. The state is safe if none is missing.
    """
    needs, free, order = Needs(need), list(available), list[int]()
    for process, _ in _finishing(needs, free, allocation, 0):
        order.append(process)
    return order


def _finishing(
    needs: Needs, free: list[int], allocation: Sequence[Sequence[int]], done: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield the processes that finish, and what is free then, which is ``free`` itself.

    Args:
        done: those that have, or are not to be looked at, as bits.
    """
    while True:
        ready = needs.met_by(free) & ~done
        if not ready:
            return
        done |= ready
        while ready:
            bit = ready & -ready
            ready ^= bit
            process = bit.bit_length() - 1
            free[:] = map(add, free, allocation[process])
            yield process, free


class State:
    """The state of a lock space as numbers. It is kept with the space (``Space.state``) and follows each
    grant and release; when claims change it is made anew.

    Attributes:
        resources: their names, sorted; the columns of all else.
        owners: those that have claims, by age; the rows.
    """

    def __init__(self, space: Space) -> None:
        self.resources = sorted(space.resources)
        self.total = [space.resources[name] for name in self.resources]
        self.owners = sorted(space.members, key=lambda owner: owner.age)
        self.rows = {owner: row for row, owner in enumerate(self.owners)}
        self.columns = {name: column for column, name in enumerate(self.resources)}
        self.allocation: list[list[int]] = []
        self.need: list[list[int]] = []
        self.available = list(self.total)
        self._changed: set[int] = set()  # columns; in no order that could be seen
        for owner in self.owners:
            has = [0] * len(self.resources)
            for claim in owner.grants:
                if claim.lock.space is space:
                    column = self.columns[claim.lock.name]
                    has[column] += claim.weight
                    self.available[column] -= claim.weight
            claims = owner.claims
            self.allocation.append(has)
            self.need.append(
                [claims.get(name, 0) - units for name, units in zip(self.resources, has, strict=True)]
            )
        self._needs = Needs(self.need)

    def take(self, request: Request, sign: int = 1) -> None:
        """Suppose that a request were granted; with ``sign`` -1, that it were not."""
        for claim in request.claims:
            self.move(claim, sign)

    def move(self, claim: Claim, sign: int) -> None:
        """A claim is granted, or (``sign`` -1) given back."""
        row, column = self.rows[claim.owner], self.columns[claim.lock.name]
        units = sign * claim.weight
        self.allocation[row][column] += units
        self.need[row][column] -= units
        self.available[column] -= units
        self._changed.add(column)

    def order(self) -> list[Owner]:
        """Return in which order owners can finish."""
        return [self.owners[at] for at in finish_order(self.available, self.allocation, self.need)]

    def order_without(self, owner: Owner) -> list[Owner]:
        """Return in which order owners could finish if one had given back all that it has."""
        row = self.rows[owner]
        has, need = self.allocation[row], self.need[row]
        available = [units + back for units, back in zip(self.available, has, strict=True)]
        allocation, needs = list(self.allocation), list(self.need)
        allocation[row] = [0] * len(has)
        needs[row] = [units + back for units, back in zip(need, has, strict=True)]
        return [self.owners[at] for at in finish_order(available, allocation, needs)]

    def is_safe_with(self, request: Request) -> bool:
        """Whether the state, which is safe, would be so with a request granted."""
        if not all(map(is_free, request.claims)):
            return False
        row = self.rows[request.owner]
        free, need = list(self.available), list(self.need[row])
        for claim in request.claims:
            column = self.columns[claim.lock.name]
            free[column] -= claim.weight
            need[column] -= claim.weight
        if all(map(le, need, free)):
            return True
        while self._changed:
            self._needs.renew(self._changed.pop(), self.need)
        finishing = _finishing(self._needs, free, self.allocation, 1 << row)
        return any(all(map(le, need, units)) for _, units in finishing)


def state_of(space: Space) -> State:
    """Return a lock space's state, as it is now."""
    if space.state is None:
        space.state = State(space)
    return space.state


def is_grantable(space: Space, request: Request) -> bool:
    """Whether there is enough for a request, and granting it leaves the state safe."""
    return all(map(is_free, request.claims)) and state_of(space).is_safe_with(request)


def waits_elsewhere(space: Space) -> bool:
    """Whether an owner that has claims waits for something else: what the algorithm relies on, that everybody
    finishes who gets what it claimed, is not so then."""
    for owner in space.members:
        busy = owner.busy
        if busy is not None and any(claim.lock.space is not space for claim in busy.claims):
            return True
    return False


def next_grantable(space: Space) -> Iterator[Request]:
    """Yield the waiting requests that can be granted, in order of arrival; each must be granted before the
    next is asked for."""
    for request in tuple(space.waiting):
        if state_of(space).is_safe_with(request):
            yield request


def check_claims(space: Space, owner: Owner, claims: Mapping[str, int]) -> None:
    """Refuse claims that cannot be.

    Raises:
        InvalidArgument: a claim is of no resource of the space, below what the owner has, or raised while it
            has something.
        ClaimExceeded: it is for more than there is.
    """
    held: dict[str, int] = {}
    for claim in owner.grants:
        if claim.lock.space is space:
            held[claim.lock.name] = held.get(claim.lock.name, 0) + claim.weight
    for name, units in claims.items():
        if name not in space.resources:
            raise InvalidArgument(f"{name!r} is not a resource of the lock space {space.prefix!r}")
        if units < 0:
            raise InvalidArgument(f"nobody can claim {units} of {name!r}")
        if units > space.resources[name]:
            raise ClaimExceeded(
                f"{units} of {name!r} cannot be claimed: there are {space.resources[name]}", hint="claim less"
            )
    if held and any(units > owner.claims.get(name, 0) for name, units in claims.items()):
        raise InvalidArgument(
            "a claim is not raised while the owner has resources", hint="release them first"
        )
    for name, units in held.items():
        if claims.get(name, 0) < units:
            raise InvalidArgument(
                f"{claims.get(name, 0)} of {name!r} is less than the {units} that the owner has",
                hint="release first, then claim less",
            )


def check_request(owner: Owner, lock: Lock, weight: int) -> None:
    """Refuse a request beyond what was claimed.

    Raises:
        ClaimExceeded: it is.
    """
    name = lock.name
    held = sum(claim.weight for claim in owner.grants if claim.lock is lock)
    claimed = owner.claims.get(name, 0)
    if held + weight > claimed:
        raise ClaimExceeded(
            f"{held + weight} of {name!r} would be more than the {claimed} that the owner claimed"
        )
