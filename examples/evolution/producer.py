"""The producer: knows its standard output, and nothing else. It is never changed, and never restarted.

Writes lines, `NUMBER NANOSECONDS`: a little at a time, then a burst, and again, until SIGTERM; the last line
is `NUMBER end`. Usage: producer.py STEADY BURST, both in lines; a steady one comes every 4 ms.
"""

from __future__ import annotations

import os
import signal
import sys
import time

PAUSE_S = 0.004


def main() -> None:
    steady, burst = int(sys.argv[1]), int(sys.argv[2])
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    number = 0
    while not asked:
        for _ in range(steady):
            number += 1
            write(f"{number} {time.monotonic_ns()}\n")
            time.sleep(PAUSE_S)
        now_ns = time.monotonic_ns()
        write("".join(f"{each} {now_ns}\n" for each in range(number + 1, number + burst + 1)))
        number += burst
    write(f"{number + 1} end\n")


def write(text: str) -> None:
    left = text.encode()
    while left:
        left = left[os.write(1, left) :]


if __name__ == "__main__":
    main()
