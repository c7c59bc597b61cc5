"""What every receiver of the demo keeps: how many lines came, whether they were all there and in order,
and how late.

Lines of `count.py` are checked number by number. Lines of any other program are only counted and shown;
their order is checked by the receiver, by the messages' seq. Not here: how lines arrive.
"""

from __future__ import annotations

import json
import sys
import time


class Tally:
    """Counts until `expected` lines have come.

    Args:
        expected: lines to wait for.
        numbered: whether the lines are those of count.py.
    """

    def __init__(self, expected: int, *, numbered: bool) -> None:
        self.expected = expected
        self.numbered = numbered
        self.count = 0
        self.wrong: list[str] = []
        self._delays_ns: list[int] = []
        self._last_seq: dict[int, int] = {}

    def add(self, line: bytes, source: int = 0, seq: int = 0, time_ns: int = 0, at_ns: int = 0) -> None:
        """Take one line; `seq` is its number within its source, 0 where the route has none."""
        now = at_ns or time.time_ns()
        self.count += 1
        if seq:
            last = self._last_seq.get(source, seq - 1)
            if seq != last + 1:
                self.wrong.append(f"seq {seq} after {last}")
            self._last_seq[source] = seq
        if self.numbered:
            number, written_ns = map(int, line.split())
            if number != self.count:
                self.wrong.append(f"line {number} where {self.count} was due")
                self.count = number
            self._delays_ns.append(now - written_ns)
        else:
            if time_ns:
                self._delays_ns.append(now - time_ns)
            say("line", text=line.decode(errors="replace"))

    @property
    def missing(self) -> int:
        """How many more to wait for; what comes after them is not this demo's."""
        return self.expected - self.count

    @property
    def is_complete(self) -> bool:
        return self.missing <= 0

    def report(self) -> None:
        """Print what was seen, as the demo wants it."""
        p50_us, p99_us = self.percentiles_us()
        say("result", count=self.count, wrong=self.wrong[:5], p50_us=p50_us, p99_us=p99_us)

    def percentiles_us(self) -> tuple[float | None, float | None]:
        """The median delay and the 99th percentile, in microseconds; None where no time is known."""
        delays = sorted(self._delays_ns)
        if not delays:
            return None, None
        return delays[len(delays) // 2] / 1e3, delays[len(delays) * 99 // 100] / 1e3


def say(kind: str, **fields: object) -> None:
    """Print one JSON object for the demo to read."""
    sys.stdout.write(json.dumps({"kind": kind, **fields}) + "\n")
    sys.stdout.flush()
