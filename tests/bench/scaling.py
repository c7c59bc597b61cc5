"""Cost against numbers: channels in use, subscribers, message size. Medians of repeated short runs.

Each point is one process that publishes and receives in turn, on its own: that has no second process to be
disturbed by, and what grows is seen all the same.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Final

from tests.bench.results import Results
from tests.bench.site import Site

CHANNELS: Final = (1, 10, 100, 300, 1_000)
SUBSCRIBERS: Final = (1, 2, 4, 8, 16, 32, 64)
SIZES: Final = (64, 256, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20)
REPEATS: Final = 5
MESSAGES: Final = 2_000
BYTES: Final = 64 << 20
PAYLOAD: Final = b"x" * 64


def _median_ns(work: Callable[[], None], messages: int) -> float:
    """Nanoseconds for each message: the median of some repetitions, after one that does not count."""
    times = []
    for _ in range(REPEATS + 1):
        began_ns = time.perf_counter_ns()
        work()
        times.append((time.perf_counter_ns() - began_ns) / messages)
    return statistics.median(times[1:])


def _channels(socket: str, count: int) -> float:
    import towpath

    with towpath.connect(socket) as client:
        names = [f"bench.scale.{number}" for number in range(count)]
        for name in names:
            client.declare(name, ring_bytes=1 << 16)
        subscriptions = [client.subscribe(name) for name in names]
        publishers = [client.publisher(name) for name in names]
        ends = list(zip(publishers, subscriptions, strict=True))
        visits = max(1, MESSAGES // count)

        def work() -> None:
            for _ in range(visits):
                for publisher, subscription in ends:
                    publisher.publish(PAYLOAD)
                    subscription.receive(0)

        return _median_ns(work, visits * count)


def _subscribers(socket: str, count: int) -> float:
    import towpath

    with towpath.connect(socket) as client:
        client.declare("bench.wide")
        subscriptions = [client.subscribe("bench.wide") for _ in range(count)]
        with client.publisher("bench.wide") as publisher:
            times = []
            for _ in range(REPEATS + 1):
                began_ns = time.perf_counter_ns()
                for _ in range(MESSAGES):
                    publisher.publish(PAYLOAD)
                times.append((time.perf_counter_ns() - began_ns) / MESSAGES)
                for subscription in subscriptions:
                    while subscription.receive_many(timeout=0):
                        pass
            return statistics.median(times[1:])


def _size(socket: str, size: int) -> float:
    import towpath

    with towpath.connect(socket) as client:
        client.declare(f"bench.size.{size}", ring_bytes=max(1 << 20, 8 * size))
        payload, count = b"x" * size, max(20, min(MESSAGES, BYTES // size))
        with (
            client.subscribe(f"bench.size.{size}") as subscription,
            client.publisher(f"bench.size.{size}") as ours,
        ):

            def work() -> None:
                for _ in range(count):
                    ours.publish(payload)
                    subscription.receive(0)

            return _median_ns(work, count)


def _run(measure: Callable[[str, int], float], socket: str, number: int, line: Connection) -> None:
    line.send(measure(socket, number))


def _apart(measure: Callable[[str, int], float], socket: str, number: int) -> float:
    """Measure one point in a process of its own."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(measure, socket, number, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(60):
            raise RuntimeError(f"{measure.__name__} with {number} did not end")
        figure: float = ours.recv()
        return figure
    finally:
        process.kill()
        process.join()
        ours.close()


def measure(results: Results, site: Site, *, is_quick: bool) -> None:
    """All three curves."""
    keep = slice(None, None, 2) if is_quick else slice(None)
    curves: tuple[tuple[str, Callable[[str, int], float], tuple[int, ...]], ...] = (
        ("cost of a message against channels in use", _channels, CHANNELS),
        ("cost of a publish against subscribers", _subscribers, SUBSCRIBERS),
        ("cost of a message against its size", _size, SIZES),
    )
    for name, work, numbers in curves:
        results.curves[name] = [(number, _apart(work, site.socket, number)) for number in numbers[keep]]
