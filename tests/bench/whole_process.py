"""Whole processes from a shell's point of view: ``towpath pub NAME x`` beside ``python -c pass``."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.results import Results
from tests.bench.site import Site


def seconds(command: list[str]) -> float:
    """How long a program takes from its start to its end; it must succeed."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


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
    results.singles["pub by pass"] = statistics.median(ours / theirs for ours, theirs in pairs)
