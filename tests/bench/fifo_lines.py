"""How fast lines go through a FIFO into a channel, and out of one, beside `cat` through such a FIFO.

Theory of operation
    A file of lines of 1 KiB is in memory. By hand, one ``cat`` writes it to a FIFO and another reads that, to
    where nothing is kept. In: the same ``cat`` writes to the FIFO of a binding, and a Python program receives
    each line as a message. Out: a Python program publishes the lines, and ``cat`` reads the binding's FIFO.
    Measured is from the start of the sender to the last line, in turns; the median of ratios is the figure.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.bench.results import Results
from tests.bench.site import Daemon, wait_for
from tests.support.daemon import LOCAL_ONLY

LINE_BYTES: Final = 1024
"""The newline with it."""
BATCH: Final = 256
MEMORY: Final = "/dev/shm"
WAIT_S: Final = 60.0


def measure(results: Results, count: int, rounds: int) -> None:
    """Measure ``count`` lines a run, and note the bandwidths and what part of cat's they are."""
    with ExitStack() as stack:
        ways = _ways(stack, count)
        times_s: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                times_s[name].append(way())
    for name, taken in times_s.items():
        results.singles[f"{name} MB/s"] = count * LINE_BYTES / 1e6 / statistics.median(taken)
        results.singles[f"{name}, by cat"] = statistics.median(
            theirs / ours for ours, theirs in zip(taken, times_s["lines by cat"], strict=True)
        )


def _ways(stack: ExitStack, count: int) -> dict[str, Callable[[], float]]:
    import towpath

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY)))
    line = b"x" * (LINE_BYTES - 1)
    lines = folder / "lines"
    lines.write_bytes((line + b"\n") * count)
    by_hand, inward, outward = (folder / name for name in ("by_hand", "in", "out"))
    os.mkfifo(by_hand)
    daemon = Daemon(folder, LOCAL_ONLY)
    stack.callback(daemon.close)
    client = stack.enter_context(towpath.connect(daemon.socket))
    client.declare("in")
    client.declare("out")
    client.bind("in", f"fifo:{inward}", direction="in")
    client.bind("out", f"fifo:{outward}", direction="out", options={"when_absent": "block"})
    wait_for(lambda: inward.exists() and outward.exists(), "the bindings' FIFOs")
    subscription = stack.enter_context(client.subscribe("in"))
    publisher = stack.enter_context(client.publisher("out"))
    total = count * LINE_BYTES

    def write(fifo: Path) -> subprocess.Popen[bytes]:
        with lines.open("rb") as source, fifo.open("wb", buffering=0) as sink:
            return subprocess.Popen(["cat"], stdin=source, stdout=sink)

    def read(fifo: Path) -> subprocess.Popen[bytes]:
        command = f"head -c {total} < {fifo} > /dev/null" if fifo == outward else f"cat {fifo} > /dev/null"
        return subprocess.Popen(["sh", "-c", command])

    def finish(*processes: subprocess.Popen[bytes]) -> None:
        for process in processes:
            if process.wait(WAIT_S) != 0:
                raise RuntimeError("cat failed")

    def cat() -> float:
        reader = read(by_hand)
        began = time.perf_counter()
        finish(write(by_hand), reader)
        return time.perf_counter() - began

    def into_channel() -> float:
        began = time.perf_counter()
        sender = write(inward)
        got = 0
        while got < count:
            got += len(subscription.receive_many(count - got, timeout=WAIT_S))
        taken = time.perf_counter() - began
        finish(sender)
        return taken

    def out_of_channel() -> float:
        reader = read(outward)
        began = time.perf_counter()
        sent = 0
        while sent < count:
            batch = [line] * min(BATCH, count - sent)
            publisher.publish_many(batch)
            sent += len(batch)
        finish(reader)
        return time.perf_counter() - began

    return {
        "lines by cat": cat,
        "lines into a channel": into_channel,
        "lines out of a channel": out_of_channel,
    }
