"""What belongs to no mechanism: ``towpath pub NAME x`` beside ``python -c pass`` as a shell sees them, and
what the checksum of a received message costs by itself, which no mechanism can get below.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.bench.load import Load
from tests.bench.results import Results
from tests.bench.site import Site

CHECKSUM_REPEATS: Final = 200


def seconds(command: list[str]) -> float:
    """How long a program takes from its start to its end; it must succeed."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def checksum_ns(size_bytes: int) -> float:
    """What the tally takes for one payload, over a round of them, as the receivers call it."""
    load = Load("one-way", size_bytes, 0)
    payloads, tally = load.payloads(), load.tally()
    times = []
    for _ in range(CHECKSUM_REPEATS):
        began_ns = time.perf_counter_ns()
        tally.add(payloads)
        times.append((time.perf_counter_ns() - began_ns) / len(payloads))
    return statistics.median(times)


def measure(results: Results, site: Site, times: int) -> None:
    """Both in turn, so that a slow moment of the machine meets both."""
    towpath = str(Path(sys.executable).parent / "towpath")
    subprocess.run(
        [towpath, "declare", "bench.cli", "--socket", site.socket], check=True, stdout=subprocess.DEVNULL
    )
    publish = [towpath, "pub", "bench.cli", "x", "--socket", site.socket]
    nothing = [sys.executable, "-c", "pass"]
    pairs = [(seconds(publish), seconds(nothing)) for _ in range(times)]
    results.singles["pub ms"] = statistics.median(ours for ours, _ in pairs) * 1e3
    results.singles["pass ms"] = statistics.median(theirs for _, theirs in pairs) * 1e3
    results.singles["checksum of 64 B alone, ns"] = checksum_ns(64)
    results.singles["pub by pass"] = statistics.median(ours / theirs for ours, theirs in pairs)
