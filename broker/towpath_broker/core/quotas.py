"""Quotas: how many of one thing each principal has.

A :class:`Tally` counts one thing (sessions, channels, publishers, subscribers). Whoever makes one checks
first and adds after; whoever ends one removes. A principal that has none takes no memory, so remote
principals that come and go leave nothing behind.
"""

from __future__ import annotations

from towpath.errors import QuotaExceeded


class Tally:
    """Counts one thing per principal.

    Args:
        limit_name: the field of ``Limits`` that bounds it.
        what: what is counted, for the refusal's text.
    """

    __slots__ = ("_counts", "limit_name", "what")

    def __init__(self, limit_name: str, what: str) -> None:
        self.limit_name = limit_name
        self.what = what
        self._counts: dict[str, int] = {}

    def check(self, principal: str, maximum: int) -> None:
        """Refuse one more.

        Raises:
            QuotaExceeded: the principal has ``maximum`` of them.
        """
        count = self._counts.get(principal, 0)
        if count >= maximum:
            raise QuotaExceeded(f"{principal} has {count} {self.what}: {self.limit_name} is {maximum}")

    def add(self, principal: str) -> None:
        """Count one more."""
        self._counts[principal] = self._counts.get(principal, 0) + 1

    def remove(self, principal: str) -> None:
        """Count one less."""
        count = self._counts.pop(principal)
        if count > 1:
            self._counts[principal] = count - 1

    def count(self, principal: str) -> int:
        """Return how many the principal has."""
        return self._counts.get(principal, 0)

    def total(self) -> int:
        """Return how many all principals have together. O(principals)."""
        return sum(self._counts.values())
