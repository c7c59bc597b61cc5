"""Load on a channel in total order, and what must be true of it afterwards, whatever became of the core."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Callable

import towpath
from tests.support.blocking import BlockingClient
from tests.support.daemon import DaemonHandle, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors

PUBLISHERS = 3
Seen = tuple[int, int, int, int, bytes]
"""Source, seq, origin's source, origin's seq, payload."""


class Load:
    """Publishers and subscribers of one channel, each in a thread, until told to end.

    Args:
        reopens: whether the first publisher is closed and made anew all the time.
    """

    def __init__(self, daemon: DaemonHandle, channel: str, *, reopens: bool = False) -> None:
        self.daemon = daemon
        self.channel = channel
        self.reopens = reopens
        self.stopping = threading.Event()
        self.published = [0] * PUBLISHERS
        self.total: int | None = None
        self.seen: list[list[Seen]] = [[], []]
        self.failures: list[BaseException] = []
        publish = [lambda n=n: self._publish(n) for n in range(PUBLISHERS)]
        receive = [lambda n=n: self._receive(n) for n in range(2)]
        self._publishing = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True) for work in publish
        ]
        self._receiving = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True) for work in receive
        ]
        self._all_there = threading.Barrier(1 + 2 + PUBLISHERS)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as failure:
            self.failures.append(failure)
            self.stopping.set()

    # ---- threads ----

    def _publish(self, number: int) -> None:
        rng = random.Random(number)
        with towpath.connect(str(self.daemon.socket)) as client:
            publisher = client.publisher(self.channel)
            self._all_there.wait(DEADLINE_S)
            while not self.stopping.is_set():
                first, count = self.published[number], rng.randrange(1, 40)
                payloads = [b"%d:%d:" % (number, first + i) + b"." * rng.randrange(80) for i in range(count)]
                headers = towpath.Headers(key=b"%d" % first) if number == 1 else None
                publisher.publish_many(payloads, headers=headers, timeout=DEADLINE_S)
                self.published[number] += count
                if self.reopens and number == 0:
                    assert publisher.wait_drained(DEADLINE_S)
                    publisher.close()
                    publisher = self._new_publisher(client)
            assert publisher.wait_drained(DEADLINE_S)
            publisher.close()

    def _new_publisher(self, client: towpath.Client) -> towpath.Publisher:
        while True:
            try:
                return client.publisher(self.channel)
            except (errors.ConnectionLost, errors.Unavailable):  # the core was killed whenever it was asked
                continue

    def _receive(self, number: int) -> None:
        make = BlockingClient if number else towpath.connect
        with make(str(self.daemon.socket)) as client:
            subscription = client.subscribe(self.channel)
            self._all_there.wait(DEADLINE_S)
            seen = self.seen[number]
            idle_turns = 0
            while self.total is None or len(seen) < self.total:
                try:
                    got = subscription.receive_many(256, timeout=0.5)
                except errors.Timeout:
                    got = []
                if self.failures:
                    return
                seen += [(m.source, m.seq, m.origin_source, m.origin_seq, bytes(m.payload)) for m in got]
                idle_turns = 0 if got or self.total is None else idle_turns + 1
                assert idle_turns < 2 * DEADLINE_S, f"{len(seen)} of {self.total} arrived"

    # ---- for the test ----

    def __enter__(self) -> Load:
        """Begin; returns when all are there."""
        for thread in (*self._publishing, *self._receiving):
            thread.start()
        self._all_there.wait(DEADLINE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()

    def wait_progress(self, count: int) -> None:
        """Wait until subscribers have so many more."""
        before = len(self.seen[0])
        wait_until(
            lambda: bool(self.failures) or len(self.seen[0]) >= before + count,
            lambda: f"{len(self.seen[0])} - {before}",
        )
        assert not self.failures, self.failures

    def stop(self) -> None:
        """End publishing, and wait until all has arrived."""
        self.stopping.set()
        for thread in self._publishing:
            thread.join(2 * DEADLINE_S)
            assert not thread.is_alive()
        self.total = sum(self.published)
        for thread in self._receiving:
            thread.join(2 * DEADLINE_S)
            assert not thread.is_alive()
        assert not self.failures, self.failures

    def check(self) -> None:
        """Exactly once, each publisher's own order, one order for all, numbers without a gap."""
        first, second = self.seen
        assert [pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]][:3] == []
        assert len({source for source, *_ in first}) == 1
        assert [(place, seq) for place, (_, seq, *_) in enumerate(first, 1) if seq != place][:3] == []
        by_origin: defaultdict[int, list[int]] = defaultdict(list)
        for _, _, origin, origin_seq, _ in first:
            by_origin[origin].append(origin_seq)
        for origin, seqs in by_origin.items():
            wrong = [(place, seq) for place, seq in enumerate(seqs, 1) if seq != place]
            assert wrong[:3] == [], f"of {origin}, {len(wrong)} of {len(seqs)}"
        for number in range(PUBLISHERS):
            own = [int(p.split(b":")[1]) for *_, p in first if p.startswith(b"%d:" % number)]
            assert own == list(range(self.published[number]))
