"""When something happens by itself: one alarm for each channel that has one."""

from __future__ import annotations

from heapq import heappop, heappush


class Alarms:
    """Alarms by name. An entry of the heap that says something else than ``_at`` says nothing."""

    __slots__ = ("_at", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[int, str]] = []
        self._at: dict[str, int] = {}

    def set(self, name: str, at_ns: int | None) -> None:
        """Ring at a time, and not when it was said before; None: not at all."""
        if at_ns is None:
            self._at.pop(name, None)
        elif self._at.get(name) != at_ns:
            self._at[name] = at_ns
            heappush(self._heap, (at_ns, name))

    def next_ns(self) -> int | None:
        """Return when the next one rings; None: none does."""
        while self._heap:
            at_ns, name = self._heap[0]
            if self._at.get(name) == at_ns:
                return at_ns
            heappop(self._heap)
        return None

    def take(self, now_ns: int) -> list[str]:
        """Return the names whose alarms have rung, which are over then."""
        names: list[str] = []
        while (at_ns := self.next_ns()) is not None and at_ns <= now_ns:
            _, name = heappop(self._heap)
            del self._at[name]
            names.append(name)
        return names
