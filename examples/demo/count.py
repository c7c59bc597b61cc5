"""A program that knows nothing of Towpath: writes numbered lines to its standard output, at a steady pace.

Usage: count.py COUNT PER_SECOND. Each line is `NUMBER NANOSECONDS`, the time at which it was written.
"""

from __future__ import annotations

import sys
import time

BURST = 20


def main() -> None:
    count, per_second = int(sys.argv[1]), int(sys.argv[2])
    start = time.monotonic()
    for first in range(1, count + 1, BURST):
        last = min(first + BURST, count + 1)
        sys.stdout.write("".join(f"{number} {time.time_ns()}\n" for number in range(first, last)))
        sys.stdout.flush()
        ahead = start + (last - 1) / per_second - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)


if __name__ == "__main__":
    main()
