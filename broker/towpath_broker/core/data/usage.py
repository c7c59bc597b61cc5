"""How much of something there is: in all, and for each principal."""

from __future__ import annotations

from towpath.errors import LimitExceeded, QuotaExceeded

from .undo import Undo


class Usage:
    """Counts one thing, many at a time.

    Args:
        what: is counted, for the refusal's text.
        total_name, owner_name: the fields of ``Limits`` that bound it.
    """

    __slots__ = ("_by_owner", "_owner_name", "_total_name", "_what", "owner_max", "total", "total_max")

    def __init__(self, what: str, total_name: str, total_max: int, owner_name: str, owner_max: int) -> None:
        self._what = what
        self._total_name = total_name
        self._owner_name = owner_name
        self.total_max = total_max
        self.owner_max = owner_max
        self.total = 0
        self._by_owner: dict[str, int] = {}

    def check(self, owner: str, more: int) -> None:
        """Refuse what would be too much.

        Raises:
            LimitExceeded, QuotaExceeded: with ``more`` bytes there would be more than there may be.
        """
        if self.total + more > self.total_max:
            raise LimitExceeded(
                f"there are {self.total} {self._what}, and {more} more do not fit:"
                f" {self._total_name} is {self.total_max}"
            )
        held = self._by_owner.get(owner, 0)
        if held + more > self.owner_max:
            raise QuotaExceeded(
                f"{owner} has {held} {self._what}, and {more} more do not fit:"
                f" {self._owner_name} is {self.owner_max}"
            )

    def add(self, owner: str, change: int, undo: Undo) -> None:
        """Count more, or less."""
        undo.add(self._add, owner, -change)
        self._add(owner, change)

    def _add(self, owner: str, change: int) -> None:
        self.total += change
        held = self._by_owner.get(owner, 0) + change
        assert held >= 0, (owner, held)
        if held:
            self._by_owner[owner] = held
        else:
            self._by_owner.pop(owner, None)
