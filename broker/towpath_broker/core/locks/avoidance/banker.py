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

    Owners whose needs are met finish one after the other; each gives back what it has. To find the next one
    without looking at all of them, owners are sorted by need, one list for each resource, and a pointer moves
    along each list as more becomes free; an owner is ready when all pointers have passed it. That is
    O(owners * resources * log owners), instead of owners squared.

    Waiting requests are looked at in order of arrival after each release, and each that is safe is granted:
    strict first come, first served would let the head, which is unsafe, hold up just those who must finish
    to make it safe.

Invariants
    The state is safe after every command. No waiting request is grantable.

Sources: E. W. Dijkstra, EWD 108 and 623; A. N. Habermann, "Prevention of System Deadlocks", CACM 12 (7),
1969; Silberschatz, Galvin, Gagne, "Operating System Concepts", "Deadlocks".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from towpath.errors import ClaimExceeded, InvalidArgument
from towpath_broker.core.locks.grants import Lock, Owner, Request, is_free

if TYPE_CHECKING:
    from towpath_broker.core.locks.spaces import Space


def finish_order(
    available: list[int], allocation: list[list[int]], need: list[list[int]], until: int = -1
) -> list[int]:
    """Return in which order processes can finish, each with what is available then; the lowest first where
    several can.

    Args:
        available: units of each resource that nobody has; not changed.
        allocation: by process, what it has of each resource.
        need: by process, what it may still ask for.
        until: stop when this process has finished; -1: go on.

    Returns:
        The processes by index. The state is safe if none is missing.
    """
    processes = len(allocation)
    free = list(available)
    by_need = (
        [sorted(range(processes), key=lambda at: row[at]) for row in zip(*need, strict=True)] if need else []
    )
    columns = list(zip(*need, strict=True))
    reached = [0] * len(free)
    short = [len(free)] * processes  # of how many resources too little is free
    ready = [] if free else list(range(processes))
    order: list[int] = []
    pending = list(range(len(free)))
    while True:
        for resource in pending:
            line, column, units, at = by_need[resource], columns[resource], free[resource], reached[resource]
            while at < processes and column[line[at]] <= units:
                process = line[at]
                short[process] -= 1
                if not short[process]:
                    heappush(ready, process)
                at += 1
            reached[resource] = at
        if not ready:
            return order
        process = heappop(ready)
        order.append(process)
        if process == until:
            return order
        pending = []
        for resource, units in enumerate(allocation[process]):
            if units:
                free[resource] += units
                pending.append(resource)


class State:
    """The state of a lock space as numbers, to try things with.

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
        for owner in self.owners:
            has = [0] * len(self.resources)
            for claim in owner.grants:
                column = self.columns.get(claim.lock.name)
                if column is not None:
                    has[column] += claim.weight
                    self.available[column] -= claim.weight
            claims = owner.claims
            self.allocation.append(has)
            self.need.append(
                [claims.get(name, 0) - units for name, units in zip(self.resources, has, strict=True)]
            )

    def take(self, request: Request) -> None:
        """Suppose that a request were granted."""
        self._move(request, 1)

    def give_back(self, request: Request) -> None:
        """Suppose that it were not."""
        self._move(request, -1)

    def _move(self, request: Request, sign: int) -> None:
        row = self.rows[request.owner]
        has, need = self.allocation[row], self.need[row]
        for claim in request.claims:
            column = self.columns[claim.lock.name]
            units = sign * claim.weight
            has[column] += units
            need[column] -= units
            self.available[column] -= units

    def order(self, until: Owner | None = None) -> list[Owner]:
        """Return in which order owners can finish."""
        row = -1 if until is None else self.rows[until]
        return [self.owners[at] for at in finish_order(self.available, self.allocation, self.need, row)]

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
        self.take(request)
        order = self.order(request.owner)
        self.give_back(request)
        return bool(order) and order[-1] is request.owner


def is_grantable(space: Space, request: Request) -> bool:
    """Whether there is enough for a request, and granting it leaves the state safe."""
    return all(map(is_free, request.claims)) and State(space).is_safe_with(request)


def next_grantable(space: Space) -> Iterator[Request]:
    """Yield the waiting requests that can be granted, in order of arrival; each must be granted before the
    next is asked for."""
    if not space.waiting:
        return
    state = State(space)
    for request in tuple(space.waiting):
        if state.is_safe_with(request):
            state.take(request)
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
