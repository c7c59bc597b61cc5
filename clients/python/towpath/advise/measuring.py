"""Measures a mechanism: its ends in processes of their own, a rate and a round trip.

Theory of operation
    Each end is a forked process. It opens what it needs, says so, and waits until all have; so no connecting
    is timed. For a rate a sender sends until the time is over, then an end mark; receivers count, and take
    the time from when the first ``WARM_UPS`` have come, which touch memory that nobody had used. For round
    trips one process sends and waits for what the other sends back; with a pause before each where the
    conversation is a slow one, because a process that sleeps answers later than one that is awake.

    On one core all of this takes turns, as the programs would.

Invariants
    Everything is bounded: a measurement by ``DEADLINE_S``, all together by ``TOTAL_S``; what is not measured
    then says so. No process outlives its measurement, no file or queue the site.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection, wait
from statistics import median
from typing import Any, Final

from towpath.advise.model import BATCH_COUNT, MECHANISMS, Measurement, Requirements
from towpath.advise.site import Site
from towpath.advise.ways import AHEAD_BYTES, WAYS, Load, Obstacle, Way, open_calls
from towpath.errors import TowpathError

RUN_S: Final = 0.15
ROUNDS: Final = 3
"""The figures are the medians of so many rounds: which core a process is put on is chance."""
QUICK_S: Final = 0.1
DEADLINE_S: Final = 20.0
TOTAL_S: Final = 120.0
TRIPS_MAX: Final = 20_000
WARM_UPS: Final = 20
PAUSE_S_MAX: Final = 0.01
"""Before a round trip of a slow conversation; whoever sleeps longer than this sleeps no deeper."""
_PR_SET_PDEATHSIG: Final = 1
_FORK: Final = multiprocessing.get_context("fork")

Work = Callable[[ExitStack], Callable[[], Any]]
"""Opens an end, and returns what is to be timed."""


class Measurer:
    """Measures one mechanism after the other.

    Args:
        site: where.
        run_s: how long each rate, and each round trip, is measured, in each of the ``rounds``.
        total_s: after so long nothing more is begun.
    """

    def __init__(
        self, site: Site, *, run_s: float = RUN_S, rounds: int = ROUNDS, total_s: float = TOTAL_S
    ) -> None:
        self._site = site
        self._run_s, self._rounds = run_s, rounds
        self._end_s = time.monotonic() + total_s

    def measure(self, name: str, required: Requirements) -> Measurement:
        """Measure one mechanism; what goes wrong becomes its obstacle."""
        size_bytes = required.size_bytes
        if time.monotonic() > self._end_s:
            return Measurement(name, size_bytes, obstacle="there was no time left to measure it")
        if required.is_durable and not MECHANISMS[name].is_durable:
            return Measurement(name, size_bytes, obstacle="not measured")
        try:
            rate = median(self._rate(name, required) for _ in range(self._rounds))
            trips = [self._round_trip(name, required) for _ in range(self._rounds)]
        except (Obstacle, TowpathError, OSError, _Failed) as error:
            return Measurement(name, size_bytes, obstacle=str(error))
        p50_us, p99_us = (median(column) for column in zip(*trips, strict=True))
        return Measurement(name, size_bytes, rate, p50_us, p99_us)

    def _run(self, works: list[Work]) -> list[Any]:
        return _run(works, min(time.monotonic() + DEADLINE_S, self._end_s))

    def _way(
        self, name: str, required: Requirements, made: ExitStack, *, fan_out: int = 1, batch_count: int = 1
    ) -> Way:
        """Make a way, which is removed with ``made``."""
        load = Load(required.size_bytes, fan_out, required.is_durable, batch_count)
        way = WAYS[name](self._site, load)
        made.callback(way.remove)
        return way

    def _rate(self, name: str, required: Requirements) -> float:
        with ExitStack() as made:
            batch_count = max(1, min(BATCH_COUNT, AHEAD_BYTES // required.size_bytes))
            way = self._way(name, required, made, fan_out=required.fan_out, batch_count=batch_count)
            roles = [_receiving(way, index) for index in range(required.fan_out)]
            *received, sent = self._run([*roles, _sending(way, self._run_s)])
        if any(count != sent for count, _ in received):
            raise _Failed(f"it lost messages: {min(count for count, _ in received)} of {sent} arrived")
        return float((sent - WARM_UPS) / max(span_s for _, span_s in received))

    def _round_trip(self, name: str, required: Requirements) -> tuple[float, float]:
        pause_s = 0.0 if required.rate is None else min(1 / required.rate, PAUSE_S_MAX)
        if pause_s < 1e-4:
            pause_s = 0.0
        if name == "ring" and required.is_sync and not required.is_durable:
            asking, answering = open_calls(self._site, required.size_bytes)
            times = self._run([answering, _pinging(asking, required.size_bytes, self._run_s, pause_s)])[-1]
        else:
            with ExitStack() as made:
                there, back = (self._way(name, required, made) for _ in range(2))
                pinging = _pinging(_exchanging(there, back), required.size_bytes, self._run_s, pause_s)
                times = self._run([_echoing(there, back), pinging])[-1]
        times.sort()
        return times[len(times) // 2] / 1e3, times[len(times) * 99 // 100] / 1e3


class _Failed(Exception):
    """A measurement broke."""


# ---- the processes' work


def _message(size_bytes: int) -> bytes:
    """A message; one that begins with a zero is the last."""
    return b"\x01" * size_bytes


def _sending(way: Way, run_s: float) -> Work:
    """Returns how many were sent."""

    def opened(stack: ExitStack) -> Callable[[], int]:
        send = way.sender(stack)
        size_bytes = way.load.size_bytes
        message = _message(size_bytes)
        batch = range(max(1, min(64, (1 << 20) // size_bytes)))

        def work() -> int:
            for _ in range(WARM_UPS):
                send(message)
            count, end_s = WARM_UPS, time.monotonic() + run_s
            while count == WARM_UPS or time.monotonic() < end_s:
                for _ in batch:
                    send(message)
                count += len(batch)
            send(bytes(size_bytes))
            return count

        return work

    return opened


def _receiving(way: Way, index: int) -> Work:
    """Returns how many came, and how long all took but the first, which go through memory that is new."""

    def opened(stack: ExitStack) -> Callable[[], tuple[int, float]]:
        receive = way.receiver(stack, index)

        def work() -> tuple[int, float]:
            count, began_s = 0, time.monotonic()
            while receive()[0]:
                count += 1
                if count == WARM_UPS:
                    began_s = time.monotonic()
            return count, time.monotonic() - began_s

        return work

    return opened


def _exchanging(there: Way, back: Way) -> Callable[[ExitStack], Callable[[bytes], object]]:
    def opened(stack: ExitStack) -> Callable[[bytes], object]:
        receive = back.receiver(stack, 0)
        send = there.sender(stack)

        def trip(message: bytes) -> object:
            send(message)
            return receive()

        return trip

    return opened


def _echoing(there: Way, back: Way) -> Work:
    def opened(stack: ExitStack) -> Callable[[], None]:
        receive = there.receiver(stack, 0)
        send = back.sender(stack)

        def work() -> None:
            message = receive()
            while message[0]:
                send(message)
                message = receive()
            send(message)

        return work

    return opened


def _pinging(
    asking: Callable[[ExitStack], Callable[[bytes], object]], size_bytes: int, run_s: float, pause_s: float
) -> Work:
    def opened(stack: ExitStack) -> Callable[[], list[int]]:
        trip = asking(stack)
        message = _message(size_bytes)

        def work() -> list[int]:
            times: list[int] = []
            clock = time.perf_counter_ns
            for _ in range(WARM_UPS):
                trip(message)
            end_ns = clock() + round(run_s * 1e9)
            while not times or (clock() < end_ns and len(times) < TRIPS_MAX):
                if pause_s:
                    time.sleep(pause_s)
                began_ns = clock()
                trip(message)
                times.append(clock() - began_ns)
            trip(bytes(size_bytes))
            return times

        return work

    return opened


# ---- the processes


def _run(works: list[Work], deadline_s: float) -> list[Any]:
    """Have each work done in a process of its own; return what they found, in order.

    Raises:
        Obstacle: one could not open its end.
        _Failed: one broke, or the time is over.
    """
    with _processes(works) as lines:
        _each(lines, deadline_s)  # opened
        for line in lines:
            line.send("go")
        found = _each(lines, deadline_s)
        for line in lines:
            line.send("finish")
        _each(lines, deadline_s)  # closed
    return found


@contextlib.contextmanager
def _processes(works: list[Work]) -> Iterator[list[Connection]]:
    pairs = [_FORK.Pipe() for _ in works]
    ends = [end for pair in pairs for end in pair]
    processes = [
        _FORK.Process(target=_child, args=(work, theirs, ends), daemon=True)
        for work, (_, theirs) in zip(works, pairs, strict=True)
    ]
    try:
        for process in processes:
            process.start()
        for _, theirs in pairs:
            theirs.close()
        yield [ours for ours, _ in pairs]
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
                process.close()
        for ours, theirs in pairs:
            ours.close()
            theirs.close()


def _each(lines: list[Connection], deadline_s: float) -> list[Any]:
    """Hear something from each."""
    heard: dict[Connection, Any] = {}
    while len(heard) < len(lines):
        left_s = deadline_s - time.monotonic()
        ready = wait([line for line in lines if line not in heard], timeout=max(left_s, 0))
        if not ready:
            raise _Failed("it did not come to an end in time")
        for line in ready:
            assert isinstance(line, Connection)
            try:
                kind, value = line.recv()
            except EOFError:
                raise _Failed("a process of it ended early") from None
            if kind == "obstacle":
                raise Obstacle(value)
            if kind == "failed":
                raise _Failed(value)
            heard[line] = value
    return [heard[line] for line in lines]


def _child(work: Work, line: Connection, ends: list[Connection]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this one
    for end in ends:
        if end is not line:  # else nobody would see when another ends
            end.close()
    try:
        with ExitStack() as stack:
            do = work(stack)
            line.send(("opened", None))
            line.recv()
            line.send(("found", do()))
            line.recv()
        line.send(("closed", None))
    except Obstacle as error:
        line.send(("obstacle", str(error)))
    except BaseException as error:
        with contextlib.suppress(OSError):
            line.send(("failed", f"{type(error).__name__}: {error}"))
    finally:
        os._exit(0)
