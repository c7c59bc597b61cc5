"""Taking back what a round changed, when the store did not take its rows.

Theory of operation
    Whoever changes something tells :class:`Undo` the inverse first, or has it do both (``set``). Rolling back
    carries the inverses out, the last first: each finds things as its change had left them. So every inverse
    may be the simplest one that is right at that moment.

Invariants
    Applying a round and rolling it back leaves the machine as it was, in what can be observed of it: heaps
    may lie differently, alarms may be left over (they ring for nothing).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Undo:
    """The inverses of what was changed since the last :meth:`forget`."""

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def add(self, step: Callable[..., object], *arguments: Any) -> None:
        """Remember an inverse: ``step(*arguments)``."""
        self._steps.append((step, arguments))

    def set(self, thing: object, name: str, value: object) -> None:
        """Set an attribute, and remember what it was."""
        self._steps.append((setattr, (thing, name, getattr(thing, name))))
        setattr(thing, name, value)

    def put(self, mapping: dict[Any, Any], key: object, value: object) -> None:
        """Put an entry into a dict, and remember what was there. A new one comes last, and goes again."""
        if key in mapping:
            self._steps.append((mapping.__setitem__, (key, mapping[key])))
        else:
            self._steps.append((mapping.pop, (key,)))
        mapping[key] = value

    def remove(self, mapping: dict[Any, Any], key: object) -> Any:
        """Take an entry out of a dict and return it. Coming back it comes last: for dicts whose order says
        nothing."""
        value = mapping.pop(key)
        self._steps.append((mapping.__setitem__, (key, value)))
        return value

    def mark(self) -> int:
        """Return a point to roll back to."""
        return len(self._steps)

    def roll_back(self, mark: int = 0) -> None:
        """Take back everything since a mark."""
        steps = self._steps
        while len(steps) > mark:
            step, arguments = steps.pop()
            step(*arguments)

    def forget(self) -> None:
        """It is done for good."""
        self._steps.clear()
