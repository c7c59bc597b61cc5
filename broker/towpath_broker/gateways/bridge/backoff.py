"""How long to wait before trying again: twice as long each time, and short again after a healthy while."""

from __future__ import annotations

from typing import Final

DELAY_MS_MAX: Final = 30_000
HEALTHY_AFTER_S: Final = 60.0


class Backoff:
    """Delays between attempts.

    Args:
        first_ms: the first delay, above 0.
        delay_ms_max: the longest.
        healthy_after_s: an attempt that lasted so long was a good one.
    """

    def __init__(
        self,
        first_ms: int,
        *,
        delay_ms_max: int = DELAY_MS_MAX,
        healthy_after_s: float = HEALTHY_AFTER_S,
    ) -> None:
        self._first_ms = first_ms
        self._delay_ms_max = delay_ms_max
        self._healthy_after_s = healthy_after_s
        self._next_ms = first_ms

    def next_delay_ms(self, ran_for_s: float) -> int:
        """Give the delay before the next attempt.

        Args:
            ran_for_s: how long the last one lasted; after a good one it begins from the first delay
                again.
        """
        if ran_for_s >= self._healthy_after_s:
            self._next_ms = self._first_ms
        delay_ms = min(self._next_ms, self._delay_ms_max)
        self._next_ms = min(2 * delay_ms, self._delay_ms_max)
        return delay_ms


def format_delay(delay_ms: int) -> str:
    """Write a delay for people: ``2 s``, ``0.5 s``."""
    return f"{delay_ms / 1000:g} s"
