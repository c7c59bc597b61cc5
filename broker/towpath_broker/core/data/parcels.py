"""The parts of a queue: parcels of messages, what of them is ready, and what is out with a consumer.

A message's life::

                 deliver_at, or nack with a delay
            +--------> delayed ------+
            |                        | due
    publish +----------------------> ready --------> leased ---ack---> settled
                                       ^                |
                                       +--- nack, deadline, death of the consumer
                                                        |
                                                        +--- rejected, max_deliveries ---> dead letter

Messages are handled in runs, never one by one: a *segment* is a run of a parcel that is ready or delayed, a
*lease* one that is out. All numbers in them are indexes into the parcel. Every message of a parcel is in
exactly one segment or lease, or is settled.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final

from .rows import Run
from .undo import Undo

if TYPE_CHECKING:
    from .consumers import Consumer

NS_PER_MS: Final = 1_000_000
MESSAGES_MAX: Final = 1024
"""Messages of one parcel."""


class Parcel:
    """Messages with contiguous seqs that came together.

    Attributes:
        deliver_at_ns: what its publisher asked for; 0: at once.
        live: how many are not settled.
        settled: bit i: the message with index i is.
    """

    __slots__ = (
        "content_bytes",
        "count",
        "deliver_at_ns",
        "first_seq",
        "live",
        "priority",
        "run",
        "settled",
    )

    def __init__(
        self, first_seq: int, run: Run, content_bytes: int, priority: int, deliver_at_ns: int = 0
    ) -> None:
        self.first_seq = first_seq
        self.run = run
        self.count = self.live = len(run.payloads)
        self.content_bytes = content_bytes
        self.priority = priority
        self.deliver_at_ns = deliver_at_ns
        self.settled = 0


class Segment:
    """Messages of a parcel that are ready, or will be; delivered ``attempts`` times before."""

    __slots__ = ("attempts", "end", "parcel", "start")

    def __init__(self, parcel: Parcel, start: int, end: int, attempts: int) -> None:
        self.parcel = parcel
        self.start = start
        self.end = end
        self.attempts = attempts


class Lease:
    """Messages that are out with a consumer, as deliveries first_delivery, first_delivery + 1, ...

    Attributes:
        attempt: which delivery of them it is, from 1.
    """

    __slots__ = (
        "attempt",
        "consumer",
        "deadline_ns",
        "end",
        "first_delivery",
        "is_live",
        "parcel",
        "start",
    )

    def __init__(
        self,
        consumer: Consumer,
        parcel: Parcel,
        start: int,
        end: int,
        attempt: int,
        first_delivery: int,
        deadline_ns: int,
    ) -> None:
        self.consumer = consumer
        self.parcel = parcel
        self.start = start
        self.end = end
        self.attempt = attempt
        self.first_delivery = first_delivery
        self.deadline_ns = deadline_ns
        self.is_live = True

    @property
    def end_delivery(self) -> int:
        """The number after that of its last delivery."""
        return self.first_delivery + self.end - self.start


class Lane:
    """The ready messages of one priority: the lowest seq first.

    ``fresh`` holds what was never delivered, by rising seq; ``back`` what came back or fell due.

    Attributes:
        spill_seq: from this seq on the lane's parcels are in the store alone; None: all are here.
        is_loading: the next of them are being read.
        has_more: others were stored since then.
    """

    __slots__ = ("back", "fresh", "has_more", "is_loading", "priority", "spill_seq")

    def __init__(self, priority: int, spill_seq: int | None = None) -> None:
        self.priority = priority
        self.fresh: deque[Segment] = deque()
        self.back: list[tuple[int, int, Segment]] = []
        self.spill_seq = spill_seq
        self.is_loading = False
        self.has_more = False

    @property
    def is_ready(self) -> bool:
        """Whether there is something to deliver."""
        return bool(self.fresh or self.back)

    def first(self) -> Segment:
        """Return the segment with the lowest seq, of a lane that is ready."""
        if not self.back:
            return self.fresh[0]
        seq, _, segment = self.back[0]
        if self.fresh and self.fresh[0].parcel.first_seq + self.fresh[0].start < seq:
            return self.fresh[0]
        return segment

    def take(self, segment: Segment, count: int, undo: Undo) -> None:
        """Take messages from the front of :meth:`first`'s segment."""
        is_fresh = bool(self.fresh) and self.fresh[0] is segment
        has_more = segment.start + count < segment.end
        if has_more:
            undo.set(segment, "start", segment.start + count)
        if is_fresh and not has_more:
            undo.add(self.fresh.appendleft, segment)
            self.fresh.popleft()
        elif not is_fresh:
            entry = heappop(self.back)
            undo.add(heappush, self.back, entry)
            if has_more:  # it stands where its first message does
                self.add_back(segment, entry[1], undo)

    def add_fresh(self, segment: Segment, undo: Undo) -> None:
        """Add what comes after all that is fresh."""
        undo.add(self.fresh.pop)
        self.fresh.append(segment)

    def add_back(self, segment: Segment, serial: int, undo: Undo) -> None:
        """Add what came back."""
        entry = (segment.parcel.first_seq + segment.start, serial, segment)
        undo.add(remove_from_heap, self.back, serial)
        heappush(self.back, entry)


def remove_from_heap(heap: list[tuple[int, int, Segment]], serial: int) -> None:
    """Take the entry with a serial number out of a heap. O(n): for undoing."""
    at = next(at for at, entry in enumerate(heap) if entry[1] == serial)
    heap[at] = heap[-1]
    heap.pop()
    heapify(heap)
