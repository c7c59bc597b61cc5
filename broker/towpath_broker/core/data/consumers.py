"""A consumer of a queue: what it has been given and not settled yet.

Deliveries are numbered per consumer, 1, 2, 3, ...; settling names ranges of them. Leases are kept by rising
numbers. What a range covers is cut out at its borders, so that whole leases can be dealt with.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from towpath.errors import InvalidArgument
from towpath_broker.core.ids import CallId, SessionId

from .commands import Range
from .parcels import Lease
from .round import Round
from .undo import Undo

if TYPE_CHECKING:
    from .queues import Queue

PREFETCH_MAX: Final = 65_536
PREFETCH_DEFAULT: Final = 256
_FIRST = attrgetter("first_delivery")


class Consumer:
    """Attributes:
    unsettled, unsettled_bytes: what it has.
    has_room: it stands in the queue's rotation, to be served.
    is_silent: a delivery of its expired, and it has not said anything since.
    """

    __slots__ = (
        "call",
        "has_room",
        "id",
        "is_silent",
        "leases",
        "next_delivery",
        "prefetch",
        "principal",
        "queue",
        "session",
        "unsettled",
        "unsettled_bytes",
    )

    def __init__(
        self,
        identifier: int,
        queue: Queue,
        session: SessionId,
        call: CallId,
        principal: str,
        prefetch: int,
    ) -> None:
        self.id = identifier
        self.queue = queue
        self.session = session
        self.call = call
        self.principal = principal
        self.prefetch = prefetch
        self.leases: list[Lease] = []
        self.next_delivery = 1
        self.unsettled = 0
        self.unsettled_bytes = 0
        self.has_room = False
        self.is_silent = False

    def leave(self, round_: Round, *, is_orderly: bool) -> None:
        """The consumer is gone: what it had goes back at once."""
        self.queue.remove_consumer(self, round_, is_orderly=is_orderly)

    def add(self, lease: Lease, size: int, undo: Undo) -> None:
        """Give it something: the next deliveries."""
        undo.add(_take_back, self.leases, len(self.leases))
        self.leases.append(lease)
        count = lease.end - lease.start
        undo.set(self, "next_delivery", self.next_delivery + count)
        undo.set(self, "unsettled", self.unsettled + count)
        undo.set(self, "unsettled_bytes", self.unsettled_bytes + size)

    def cut(self, deliveries: Range, undo: Undo) -> tuple[int, int]:
        """Split leases at the borders of a range.

        Returns:
            Which leases lie in it: a slice of ``leases``.

        Raises:
            InvalidArgument: there was never such a delivery.
        """
        first, last = deliveries.first, deliveries.last
        if not 1 <= first <= last < self.next_delivery:
            raise InvalidArgument(
                f"deliveries {first} to {last} were never made to consumer {self.id}",
                hint=f"it has had 1 to {self.next_delivery - 1}",
            )
        start = bisect_right(self.leases, first, key=_FIRST)
        if start and self.leases[start - 1].end_delivery > first:
            start = self._split(start - 1, first, undo)
        end = bisect_left(self.leases, last + 1, lo=start, key=_FIRST)
        if end > start and self.leases[end - 1].end_delivery > last + 1:
            self._split(end - 1, last + 1, undo)
        return start, end

    def _split(self, at: int, delivery: int, undo: Undo) -> int:
        """Make the lease at an index end before a delivery; returns where the one is that begins with it."""
        lease = self.leases[at]
        kept = delivery - lease.first_delivery
        if kept == 0:
            return at
        rest = Lease(
            lease.consumer,
            lease.parcel,
            lease.start + kept,
            lease.end,
            lease.attempt,
            delivery,
            lease.deadline_ns,
        )
        undo.set(lease, "end", lease.start + kept)
        undo.add(_take_back, self.leases, at + 1)
        self.leases.insert(at + 1, rest)
        self.queue.watch(rest)
        return at + 1

    def lost(self, deliveries: Range, start: int, end: int) -> list[Range]:
        """Return what of a range is in no lease of a slice: settled before, or given back."""
        gaps: list[Range] = []
        expected = deliveries.first
        for lease in self.leases[start:end]:
            if lease.first_delivery > expected:
                gaps.append(Range(expected, lease.first_delivery - 1))
            expected = lease.end_delivery
        if expected <= deliveries.last:
            gaps.append(Range(expected, deliveries.last))
        return gaps

    def release(self, start: int, end: int, undo: Undo) -> list[Lease]:
        """Take a slice of leases away from the consumer."""
        released = self.leases[start:end]
        del self.leases[start:end]
        undo.add(self._give_again, start, released)
        count = size = 0
        for lease in released:
            undo.set(lease, "is_live", False)
            count += lease.end - lease.start
            size += sum(map(len, lease.parcel.run.payloads[lease.start : lease.end]))
        undo.set(self, "unsettled", self.unsettled - count)
        undo.set(self, "unsettled_bytes", self.unsettled_bytes - size)
        return released

    def _give_again(self, start: int, released: list[Lease]) -> None:
        self.leases[start:start] = released


def _take_back(leases: list[Lease], at: int) -> None:
    """A lease has never been: what is left of it in the heap of deadlines says nothing."""
    leases.pop(at).is_live = False
