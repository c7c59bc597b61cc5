"""How many bytes channels hold: in all, and for each owner of channels."""

from __future__ import annotations

from towpath.errors import LimitExceeded, QuotaExceeded

from .undo import Undo


class Usage:
    """Bytes of one sort.

    Args:
        total_name, owner_name: the fields of ``Limits`` that bound them.
    """

    __slots__ = ("_by_owner", "_owner_name", "_total_name", "owner_max", "total", "total_max")

    def __init__(self, total_name: str, total_max: int, owner_name: str, owner_max: int) -> None:
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
                f"all channels together hold {self.total} bytes, and {more} more do not fit:"
                f" {self._total_name} is {self.total_max}"
            )
        held = self._by_owner.get(owner, 0)
        if held + more > self.owner_max:
            raise QuotaExceeded(
                f"the channels of {owner} hold {held} bytes, and {more} more do not fit:"
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

    def of(self, owner: str) -> int:
        """Return what one owner's channels hold."""
        return self._by_owner.get(owner, 0)
