"""What the consumer's ledger says: whether every line came once and in order, how fast, and how late.

The producer writes `steady` lines one by one and then `burst` lines at once, again and again, so a line's
number says which it is. Rates are those of bursts: from the moment they were written to when the last line
had come. Delays are those of steady lines, the later half, since the first ones may have to wait behind the
burst.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from statistics import median


@dataclass(frozen=True)
class Pattern:
    """What the producer writes."""

    steady: int
    burst: int

    @property
    def cycle(self) -> int:
        return self.steady + self.burst

    def first_of_cycle(self, number: int) -> int:
        """The number with which the next whole cycle after this number begins."""
        return -(-number // self.cycle) * self.cycle + 1


@dataclass(frozen=True)
class Figures:
    """One step in numbers.

    Attributes:
        pause_ms: how long nothing came, around the moment when the conversation moved; 0 for the first.
    """

    name: str
    lines: int
    rate: float
    p50_us: float
    p99_us: float
    pause_ms: float = 0.0


class Ledger:
    """The file that the consumer writes: number, sent, came; for each line."""

    ENTRY_BYTES = 24

    def __init__(self, path: Path) -> None:
        self.path = path

    def count(self) -> int:
        """How many lines have come."""
        return self.path.stat().st_size // self.ENTRY_BYTES if self.path.exists() else 0

    def read(self) -> tuple[array[int], array[int], array[int]]:
        """Numbers, and when each was sent, and when it came."""
        data = array("Q")
        data.frombytes(self.path.read_bytes())
        return data[0::3], data[1::3], data[2::3]

    def complaint(self) -> str:
        """What is wrong with it: missing, repeated or misplaced lines; empty for nothing."""
        numbers, _, _ = self.read()
        for place, number in enumerate(numbers, 1):
            if number != place:
                return f"line {place} is the producer's {number}"
        return ""

    def figures(self, name: str, pattern: Pattern, begin: int, measured: int, end: int) -> Figures:
        """The figures of one step.

        Args:
            begin: how many lines had come when the step began.
            measured: how many when it had caught up with what had waited: from there it is measured.
            end: how many when it was over.
        """
        _, sent, came = self.read()
        rates, delays_us = [], []
        first = pattern.first_of_cycle(measured)
        while first + pattern.cycle - 1 <= end:
            start, stop = first - 1 + pattern.steady, first - 1 + pattern.cycle
            for place in range(start - pattern.steady // 2, start):
                delays_us.append((came[place] - sent[place]) / 1e3)
            rates.append(pattern.burst * 1e9 / (came[stop - 1] - sent[start]))
            first += pattern.cycle
        delays_us.sort()
        pause_ms = (came[begin] - came[begin - 1]) / 1e6 if begin else 0.0
        p99_us = delays_us[len(delays_us) * 99 // 100]
        return Figures(name, end - begin, median(rates), median(delays_us), p99_us, pause_ms)


def table(figures: list[Figures]) -> list[list[str]]:
    """The figures as cells, the headings first."""
    rows = [["step", "lines", "burst, lines/s", "p50 ms", "p99 ms", "pause ms"]]
    for each in figures:
        rows.append(
            [
                each.name,
                f"{each.lines:,}",
                f"{round(each.rate, -2 if each.rate >= 1_000 else 0):,.0f}",
                f"{each.p50_us / 1e3:.2f}",
                f"{each.p99_us / 1e3:.2f}",
                f"{each.pause_ms:,.0f}" if each.pause_ms else "-",
            ]
        )
    return rows
