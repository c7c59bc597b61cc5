"""Which channels someone wants, given subscriptions that are prefixes. Pure.

Theory of operation
    ZeroMQ subscribes to prefixes of bytes, Towpath to channels. The table holds both sides: the prefixes
    that are subscribed to, and the channels that exist. A channel is wanted while at least one prefix is a
    beginning of its name. Each change returns what became wanted, or ceased to be, so that whoever reads
    channels need not compare sets.

    Names are kept sorted: those with one prefix are neighbours, found by bisection. A new name is looked
    up by each of its own beginnings, of which there are at most 256.

Invariants
    ``wanted`` is exactly the names that have a subscribed beginning. Bounded by ``prefixes_max``.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable


class PrefixTable:
    """Subscriptions and channels.

    Args:
        prefixes_max: how many different prefixes are held.
    """

    def __init__(self, prefixes_max: int) -> None:
        self._prefixes_max = prefixes_max
        self._prefixes: set[bytes] = set()
        self._names: list[bytes] = []
        self._matches: dict[bytes, int] = {}

    @property
    def wanted(self) -> frozenset[bytes]:
        """The names that exist and have a subscribed beginning."""
        return frozenset(self._matches)

    @property
    def prefixes(self) -> frozenset[bytes]:
        """What is subscribed to."""
        return frozenset(self._prefixes)

    @property
    def is_full(self) -> bool:
        """Whether a further prefix would be one too many."""
        return len(self._prefixes) >= self._prefixes_max

    def is_declared(self, name: bytes) -> bool:
        """Whether the channel exists, as far as the table was told."""
        index = bisect.bisect_left(self._names, name)
        return index < len(self._names) and self._names[index] == name

    def subscribe(self, prefix: bytes) -> list[bytes]:
        """Add a prefix.

        Returns:
            The names that nobody wanted before. Nothing when the prefix is there already.

        Raises:
            OverflowError: the table is full (see ``is_full``); nothing was changed.
        """
        if prefix in self._prefixes:
            return []
        if self.is_full:
            raise OverflowError(f"{self._prefixes_max} prefixes are subscribed to already")
        self._prefixes.add(prefix)
        fresh = []
        for name in self._with_prefix(prefix):
            count = self._matches.get(name, 0)
            self._matches[name] = count + 1
            if count == 0:
                fresh.append(name)
        return fresh

    def unsubscribe(self, prefix: bytes) -> list[bytes]:
        """Remove a prefix; return the names that nobody wants any more."""
        if prefix not in self._prefixes:
            return []
        self._prefixes.remove(prefix)
        gone = []
        for name in self._with_prefix(prefix):
            self._matches[name] -= 1
            if self._matches[name] == 0:
                del self._matches[name]
                gone.append(name)
        return gone

    def declare(self, name: bytes) -> bool:
        """Add a channel; return whether it is wanted."""
        index = bisect.bisect_left(self._names, name)
        if index == len(self._names) or self._names[index] != name:
            self._names.insert(index, name)
            count = sum(name[:end] in self._prefixes for end in range(len(name) + 1))
            if count:
                self._matches[name] = count
        return name in self._matches

    def undeclare(self, name: bytes) -> bool:
        """Remove a channel; return whether it was wanted."""
        index = bisect.bisect_left(self._names, name)
        if index < len(self._names) and self._names[index] == name:
            del self._names[index]
        return self._matches.pop(name, None) is not None

    def replace(self, names: Iterable[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Take these as all the channels there are.

        Returns:
            The names that are new, and those that are gone.
        """
        now, before = set(names), set(self._names)
        gone = sorted(before - now)
        fresh = sorted(now - before)
        for name in gone:
            self.undeclare(name)
        for name in fresh:
            self.declare(name)
        return fresh, gone

    def _with_prefix(self, prefix: bytes) -> list[bytes]:
        start = bisect.bisect_left(self._names, prefix)
        end = start
        while end < len(self._names) and self._names[end].startswith(prefix):
            end += 1
        return self._names[start:end]
