"""The consumer: knows its standard input, and nothing else. It is never changed, and never restarted.

Writes down for each line of the producer's its number, when it was sent and when it came, in a file: three
64-bit numbers. Ends with the line `NUMBER end`. Usage: consumer.py LEDGER.
"""

from __future__ import annotations

import os
import sys
import time
from array import array


def main() -> None:
    rest = b""
    with open(sys.argv[1], "wb", buffering=0) as ledger:
        while data := os.read(0, 1 << 16):
            came_ns = time.monotonic_ns()
            *lines, rest = (rest + data).split(b"\n")
            entries = array("Q")
            for line in lines:
                number, sent = line.split()
                entries.extend((int(number), 0 if sent == b"end" else int(sent), came_ns))
            ledger.write(entries)
            if entries and entries[-2] == 0:
                return


if __name__ == "__main__":
    main()
