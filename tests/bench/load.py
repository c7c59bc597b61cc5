"""What is measured in one go, and what a process of a measurement has in hand. Knows no mechanism.

Theory of operation
    One measurement is some processes that were forked from the harness: a sender and its receivers, or the
    two ends of a round trip. Each has a :class:`Role`: the load, a line to the harness (JSON, one object a
    line), and the acknowledgement pipes. All say ``ready``, the harness says ``go``, the receivers report,
    the harness says ``finish``, and all end; so nothing that takes up or tears down a connection is timed.

    The sender repeats one *round* of payloads, as many as make up a mebibyte (4 to 256), until the time is
    over, then sends the mechanism's END. A receiver keeps a :class:`Tally`: how many messages it received,
    and one checksum of all their payloads in order (xxh3, the quickest there is, so that the mechanism is
    measured and not the checksum), unless the load is unchecked. The harness knows what both
    must be after so many rounds, and so can tell that every message arrived, whole and in its place. The rate
    is messages over the time from the sender's first message to the last receiver's last.

    Mechanisms without back-pressure get a credit window: a receiver writes a byte to its pipe after each
    round, and the sender is at most ``WINDOW_ROUNDS`` rounds ahead of the slowest.

Invariants
    A receiver's loop runs in C wherever its mechanism allows it (``map``, ``islice``, ``join``), alike for
    all, so that what is compared is the mechanism and not the loop around it. For the same reason small
    payloads are checksummed a round at a time: a call of the checksum takes longer than its 64 bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal

import xxhash

if TYPE_CHECKING:
    from typing_extensions import Buffer

Pattern = Literal["one-way", "fan-out", "round trip"]

END: Final = b""
ROUND_BYTES: Final = 1 << 20
WINDOW_ROUNDS: Final = 4
JOINED_BYTES_MAX: Final = 4096
"""Payloads up to this size are checksummed a round at a time; larger ones each, and dropped at once."""
SAMPLES_MAX: Final = 50_000
WARM_UPS: Final = 100
PROBE: Final = b"probe"
START: Final = b"start"
PROBE_PAUSE_S: Final = 0.01


@dataclass(frozen=True)
class Load:
    """What one measurement carries.

    Attributes:
        pattern: from one to one, from one to ``readers``, or there and back.
        size_bytes: of each payload.
        readers: receivers, 1 unless it is a fan-out.
        is_checked: the receiver checksums the payloads; else it counts the messages and leaves it at that.
        run_ns: how long the sender sends, or round trips are made.
        pause_ns: slept before each round trip, so that both sides sleep when it begins; 0 for both awake.
    """

    pattern: Pattern
    size_bytes: int
    run_ns: int
    readers: int = 1
    is_checked: bool = True
    pause_ns: int = 0

    @property
    def round_length(self) -> int:
        """Messages in a round."""
        return max(4, min(256, ROUND_BYTES // self.size_bytes))

    @property
    def tally_length(self) -> int:
        """Messages that are tallied together where they come one by one."""
        return self.round_length if self.size_bytes <= JOINED_BYTES_MAX else 1

    def payloads(self) -> list[bytes]:
        """One round: different payloads, the same in every process, none beginning with a zero byte."""
        generator = random.Random(self.size_bytes)
        tail = generator.randbytes(self.size_bytes - 1)
        return [bytes([1 + index % 255]) + tail for index in range(self.round_length)]

    def tally(self, rounds: int = 0) -> Tally:
        """A tally to begin with, or what it must be after so many rounds."""
        tally = Tally(self)
        payloads = self.payloads() if rounds else []
        for _ in range(rounds):
            tally.add(payloads)
        return tally


class Tally:
    """What was received so far.

    Attributes:
        count: of messages.
    """

    def __init__(self, load: Load) -> None:
        self._is_checked = load.is_checked
        self._is_joined = load.size_bytes <= JOINED_BYTES_MAX
        self._hash = xxhash.xxh3_64()
        self.count = 0

    def add(self, payloads: Sequence[Buffer]) -> None:
        """Add payloads, or messages that are bytes-like, as Towpath's."""
        self.count += len(payloads)
        if not self._is_checked:
            return
        if self._is_joined:
            self._hash.update(b"".join(payloads))
        else:
            for payload in payloads:
                self._hash.update(payload)

    def take(self, payloads: Iterator[bytes], count: int) -> int:
        """Receive so many, or all there are; return how many those were."""
        before = self.count
        if self._is_joined:
            self.add(list(islice(payloads, count)))
        else:
            for payload in islice(payloads, count):
                self.add((payload,))
        return self.count - before

    def report(self) -> list[int]:
        """For the line to the harness."""
        return [self.count, self._hash.intdigest()]


class Role:
    """One process's part in a measurement.

    Args:
        load: what is measured.
        line: to the harness.
        acks: the descriptor of each receiver's acknowledgement pipe: write ends in a receiver (its own
            only), read ends in the sender.
    """

    def __init__(self, load: Load, line: socket.socket, acks: list[int]) -> None:
        self.load = load
        self.payloads = load.payloads()
        self.tally = load.tally()
        self._line = line
        self._acks = acks
        self._ahead = 0
        self._rounds = 0

    # ---- the line ----

    def tell(self, **facts: Any) -> None:
        """Send one object to the harness."""
        self._line.sendall(json.dumps(facts).encode() + b"\n")

    def wait_go(self) -> None:
        """Say that this process is ready, and wait until all are."""
        self.tell(ready=True)
        self._wait_word()

    def wait_finish(self) -> None:
        """Wait until the measurement is over."""
        self._wait_word()

    def _wait_word(self) -> None:
        if not self._line.recv(1):
            os._exit(1)  # the harness has given up

    async def wait_go_async(self) -> None:
        """As ``wait_go``, with the event loop running."""
        self.tell(ready=True)
        await self.wait_finish_async()

    async def wait_finish_async(self) -> None:
        """As ``wait_finish``, with the event loop running."""
        self._line.setblocking(False)
        if not await asyncio.get_running_loop().sock_recv(self._line, 1):
            os._exit(1)
        self._line.setblocking(True)

    # ---- sending ----

    def rounds(self, *, has_credit: bool) -> Iterator[list[bytes]]:
        """Yield the round until the time is over; tell the harness how often that was, and when it began.

        Args:
            has_credit: stay within the window.
        """
        began_ns = time.monotonic_ns()
        end_ns = began_ns + self.load.run_ns
        while time.monotonic_ns() < end_ns:
            if has_credit:
                self._take_credit()
            yield self.payloads
            self._rounds += 1
        self._report_sent(began_ns)

    async def next_round(self, began_ns: int, *, has_credit: bool) -> list[bytes] | None:
        """The same for an event loop: the round, or None when the time is over."""
        if time.monotonic_ns() >= began_ns + self.load.run_ns:
            self._report_sent(began_ns)
            return None
        if has_credit:
            await self._take_credit_async()
        self._rounds += 1
        return self.payloads

    def _report_sent(self, began_ns: int) -> None:
        self.tell(sent_rounds=self._rounds, began_ns=began_ns)

    def _take_credit(self) -> None:
        if self._ahead >= WINDOW_ROUNDS:
            for ack in self._acks:
                os.read(ack, 1)
            self._ahead -= 1
        self._ahead += 1

    async def _take_credit_async(self) -> None:
        if self._ahead >= WINDOW_ROUNDS:
            for ack in self._acks:
                await wait_readable(ack)
                os.read(ack, 1)
            self._ahead -= 1
        self._ahead += 1

    # ---- receiving ----

    def consume(self, receive: Callable[[], bytes], end: bytes = END, *, has_credit: bool = False) -> None:
        """Receive until END, one call for each message, and report."""
        tally, length, payloads = self.tally, self.load.round_length, iter(receive, end)
        while tally.take(payloads, length) == length:
            if has_credit:
                self.acknowledge()
        self.report_received()

    def acknowledge(self) -> None:
        """Tell the sender that one round has arrived."""
        os.write(self._acks[0], b"x")

    async def consume_async(
        self, receive: Callable[[], Awaitable[bytes]], *, has_credit: bool = False
    ) -> None:
        """The same with a call that is awaited; END is empty."""
        held: list[bytes] = []
        while payload := await receive():
            held.append(payload)
            if len(held) == self.load.tally_length:
                self.tally.add(held)
                held.clear()
                if has_credit and self.tally.count % self.load.round_length == 0:
                    self.acknowledge()
        self.tally.add(held)
        self.report_received()

    def report_received(self) -> None:
        """Tell the harness what arrived, at the moment when all had."""
        self.tell(received=self.tally.report(), ended_ns=time.monotonic_ns())

    # ---- finding each other ----

    @cached_property
    def _probe(self) -> bytes:
        return PROBE.ljust(self.load.size_bytes)

    @cached_property
    def _start(self) -> bytes:
        return START.ljust(self.load.size_bytes)

    def probe(self, send: Callable[[bytes], object]) -> None:
        """Send probes until every receiver has had one, then START; for what has no other way to know."""
        waiting = list(self._acks)
        while waiting:
            send(self._probe)
            time.sleep(PROBE_PAUSE_S)
            waiting = [ack for ack in waiting if not _take_byte(ack)]
        send(self._start)

    def await_probe(self, receive: Callable[[], bytes]) -> None:
        """Receive up to START."""
        receive()
        self.acknowledge()
        while receive() != self._start:
            pass

    def probe_back(self, send: Callable[[bytes], object], receive: Callable[[], bytes]) -> None:
        """Send probes until one comes back, then take in the others."""
        found = threading.Event()

        def send_probes() -> None:
            while not found.is_set():
                send(self._probe)
                found.wait(PROBE_PAUSE_S)

        sending = threading.Thread(target=send_probes)
        sending.start()
        receive()
        found.set()
        sending.join()
        send(self._start)
        while receive() != self._start:
            pass

    # ---- round trips ----

    def time_round_trips(self, trip: Callable[[bytes], object]) -> None:
        """Make round trips until the time is over, and report."""
        payload, pause_s = self.payloads[0], self.load.pause_ns / 1e9
        clock = time.perf_counter_ns
        for _ in range(3 if pause_s else WARM_UPS):
            trip(payload)
        times: list[int] = []
        end_ns = clock() + self.load.run_ns
        while clock() < end_ns and len(times) < SAMPLES_MAX:
            if pause_s:
                time.sleep(pause_s)
            began_ns = clock()
            trip(payload)
            times.append(clock() - began_ns)
        self.report_times(times)

    async def time_round_trips_async(self, trip: Callable[[bytes], Awaitable[object]]) -> None:
        """The same on an event loop."""
        payload, pause_s = self.payloads[0], self.load.pause_ns / 1e9
        clock = time.perf_counter_ns
        for _ in range(3 if pause_s else WARM_UPS):
            await trip(payload)
        times: list[int] = []
        end_ns = clock() + self.load.run_ns
        while clock() < end_ns and len(times) < SAMPLES_MAX:
            if pause_s:
                await asyncio.sleep(pause_s)
            began_ns = clock()
            await trip(payload)
            times.append(clock() - began_ns)
        self.report_times(times)

    def report_times(self, times: list[int]) -> None:
        """Report the median and the 99th percentile of round trips in nanoseconds."""
        times.sort()
        self.tell(p50_ns=times[len(times) // 2], p99_ns=times[len(times) * 99 // 100], trips=len(times))


def _take_byte(descriptor: int) -> bool:
    os.set_blocking(descriptor, False)
    try:
        return bool(os.read(descriptor, 1))
    except BlockingIOError:
        return False
    finally:
        os.set_blocking(descriptor, True)


async def wait_readable(descriptor: int) -> None:
    """Wait on the event loop until a descriptor can be read."""
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(descriptor, readable.set_result, None)
    try:
        await readable
    finally:
        loop.remove_reader(descriptor)
