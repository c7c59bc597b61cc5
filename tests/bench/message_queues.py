"""What the bridge's message queues cost, beside a C program that does the same by hand.

Theory of operation
    A C program sends, and something carries: a C loop of mq_receive and mq_send into a second queue, which
    another C program empties; or the bridge, into a channel that a Python program reads, and from a channel
    into a queue that a C program empties. All three have a sender, a carrier and a receiver, each a process,
    where the scheduler likes. Measured is the time from the first to the last message, in turns, so that the
    machine's moods meet all alike; the median of ratios is the figure.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.bench.results import Results
from tests.bench.site import Daemon
from tests.support.daemon import LOCAL_ONLY

BYTES: Final = 64
WAIT_S: Final = 60.0


def measure(results: Results, count: int, rounds: int) -> None:
    """Measure, and note the ratios: how many times as long as the C loop each way takes (a rate
    of 0.7 of its is a time of 1.43)."""
    with _ways(count) as ways:
        times_s: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                times_s[name].append(way())
    for name, taken in times_s.items():
        results.singles[f"{name} messages/s"] = count / statistics.median(taken)
        pairs = zip(taken, times_s["mq C loop"], strict=True)
        results.singles[f"{name}, time by C loop's"] = statistics.median(
            ours / theirs for ours, theirs in pairs
        )


@contextlib.contextmanager
def _ways(count: int) -> Iterator[dict[str, Callable[[], float]]]:
    import posix_ipc

    import towpath

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        program = f"{folder}/mq_loop"
        source = Path(__file__).parent / "mechanisms" / "mq_loop.c"
        subprocess.run(["gcc", "-O2", source, "-o", program, "-lrt"], check=True)
        names = [f"/towpath-bench-{os.getpid()}-{each}" for each in ("a", "b", "in", "out")]
        for name in names:
            queue = posix_ipc.MessageQueue(name, posix_ipc.O_CREX, max_message_size=1024)
            queue.close()
            stack.callback(posix_ipc.unlink_message_queue, name)
        daemon = Daemon(Path(folder), LOCAL_ONLY)
        stack.callback(daemon.close)
        client = stack.enter_context(towpath.connect(daemon.socket))
        client.declare("in")
        client.declare("out")
        client.bind("in", f"mq:{names[2]}", direction="in")
        client.bind("out", f"mq:{names[3]}", direction="out")
        subscription = stack.enter_context(client.subscribe("in"))
        publisher = stack.enter_context(client.publisher("out"))

        def run(*arguments: object) -> subprocess.Popen[bytes]:
            return subprocess.Popen([program, *map(str, arguments)])

        def finish(*processes: subprocess.Popen[bytes]) -> None:
            for process in processes:
                if process.wait(WAIT_S) != 0:
                    raise RuntimeError("mq_loop failed")

        def by_hand() -> float:
            receiver = run(names[1], "-", count)
            carrier = run(names[0], names[1], count)
            began = time.perf_counter()
            finish(run("-", names[0], count, BYTES), carrier, receiver)
            return time.perf_counter() - began

        def into_ring() -> float:
            began = time.perf_counter()
            sender = run("-", names[2], count, BYTES)
            got = 0
            while got < count:
                got += len(subscription.receive_many(count - got, timeout=WAIT_S))
            taken = time.perf_counter() - began
            finish(sender)
            return taken

        def out_of_ring() -> float:
            receiver = run(names[3], "-", count)
            payloads = [bytes(BYTES)] * 256
            began = time.perf_counter()
            sent = 0
            while sent < count:
                batch = payloads[: count - sent]
                publisher.publish_many(batch)
                sent += len(batch)
            finish(receiver)
            return time.perf_counter() - began

        yield {"mq C loop": by_hand, "mq in to ring": into_ring, "ring to mq": out_of_ring}
