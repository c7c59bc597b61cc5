"""Lock spaces: which rules hold for a lock, by its name.

A space is the lock of that very name and all below it: ``plant`` has ``plant`` and ``plant.line1``, and not
``plants``. The longest that fits counts; the empty prefix has all that no other has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from towpath.errors import InvalidArgument, LimitExceeded
from towpath.names import check_name

from .commands import DefineSpace, Policy, Victim
from .grants import Owner, Request
from .limits import RANKS_MAX, WEIGHT_MAX

if TYPE_CHECKING:
    from .avoidance.banker import State


class Space:
    """How the locks of one space are judged.

    Attributes:
        ranks: of POLICY_ORDERED, by lock; empty: the order of names.
        resources: of POLICY_BANKER, how much there is of each.
        waiting: of POLICY_BANKER, the requests that wait, by arrival.
        members: of POLICY_BANKER, the owners that have claims.
        state: of POLICY_BANKER, all this as numbers; None: to be made when it is needed.
    """

    __slots__ = ("members", "policy", "prefix", "ranks", "resources", "state", "victim", "waiting")

    def __init__(
        self, prefix: str, policy: Policy = Policy.DETECT, victim: Victim = Victim.REQUESTER
    ) -> None:
        self.prefix = prefix
        self.policy = policy
        self.victim = victim
        self.ranks: dict[str, int] = {}
        self.resources: dict[str, int] = {}
        self.waiting: dict[Request, None] = {}
        self.members: dict[Owner, None] = {}
        self.state: State | None = None

    def has(self, name: str) -> bool:
        """Whether a name is below the prefix."""
        prefix = self.prefix
        return not prefix or name == prefix or name.startswith(f"{prefix}.")


class Spaces:
    """All lock spaces; there is always one for everything."""

    def __init__(self) -> None:
        self._default = Space("")
        self._by_prefix: dict[str, Space] = {}

    def __iter__(self) -> Iterator[Space]:
        """Those that were defined, by prefix."""
        return iter(sorted(self._by_prefix.values(), key=lambda space: space.prefix))

    def __len__(self) -> int:
        return len(self._by_prefix)

    def of(self, name: str) -> Space:
        """Return the space of a lock. O(levels of the name)."""
        if not self._by_prefix:
            return self._default
        while name:
            space = self._by_prefix.get(name)
            if space is not None:
                return space
            name = name.rpartition(".")[0]
        return self._by_prefix.get("", self._default)

    def get(self, prefix: str) -> Space | None:
        """Return the space that was defined for a prefix."""
        return self._by_prefix.get(prefix)

    def put(self, space: Space) -> None:
        """Add a space, in the place of one of the same prefix."""
        self._by_prefix[space.prefix] = space

    def remove(self, prefix: str) -> None:
        """Take a space away."""
        del self._by_prefix[prefix]


def make_space(command: DefineSpace, *, spaces_left: int) -> Space:
    """Return the space that a command describes.

    Raises:
        InvalidName: the prefix, or a name, is not well formed.
        InvalidArgument: ranks or resources do not fit the policy, or a number is out of range.
        LimitExceeded: there are as many spaces as there may be.
    """
    if command.prefix:
        check_name(command.prefix, "a lock space's prefix")
    space = Space(command.prefix, command.policy, command.victim)
    for what, given, policy in (
        ("ranks", command.ranks, Policy.ORDERED),
        ("resources", command.resources, Policy.BANKER),
    ):
        if given and command.policy is not policy:
            raise InvalidArgument(f"{what} are for lock spaces with the policy {policy.name.lower()}")
        if len(given) > RANKS_MAX:
            raise LimitExceeded(f"a lock space may have {RANKS_MAX} {what}, not {len(given)}")
        for name, number in given.items():
            check_name(name, "a lock's name")
            if not space.has(name):
                raise InvalidArgument(f"{name!r} is not below {command.prefix!r}")
            if not 1 <= number <= WEIGHT_MAX:
                raise InvalidArgument(f"{number} is not one of the {what}: 1 to {WEIGHT_MAX} are")
    if command.policy is Policy.BANKER and not command.resources:
        raise InvalidArgument("a lock space with the banker's algorithm needs resources")
    if spaces_left <= 0:
        raise LimitExceeded("there are as many lock spaces as there may be: spaces_max")
    space.ranks = dict(command.ranks)
    space.resources = dict(command.resources)
    return space
