"""Dealing: which consumer of a queue gets what is ready.

Theory of operation
    Consumers with room stand in a rotation. A round deals what is ready out in equal shares, of at most
    ``SHARE_MAX`` messages where there are several, and the next round goes on with the next consumer.

Invariants
    A consumer stands in the rotation exactly if ``has_room``; one that is silent never does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from .consumers import Consumer
from .effects import Deliver, Piece
from .parcels import NS_PER_MS, Lease
from .round import Round
from .undo import Undo

if TYPE_CHECKING:
    from .queues import Queue

SHARE_MAX: Final = 64
"""Messages that a consumer is given before the next one has its turn, where there are several."""
SHARE_ALONE_MAX: Final = 1024
UNSETTLED_BYTES_MAX: Final = 2 << 20
"""Bytes of payload that a consumer may have unsettled, whatever its prefetch; one message it may always."""
DELIVER_BYTES_MAX: Final = 1 << 20
"""About how many bytes of payload one effect delivers."""


class Dealer:
    """Of one queue."""

    __slots__ = ("_queue", "rotation")

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self.rotation: deque[Consumer] = deque()

    def welcome(self, consumer: Consumer, round_: Round) -> None:
        """Put a consumer that has room into the rotation, unless it is silent."""
        if not (consumer.has_room or consumer.is_silent) and consumer.unsettled < consumer.prefetch:
            round_.undo.add(self._restore, tuple(self.rotation))
            self.rotation.append(consumer)
            consumer.has_room = True

    def _restore(self, rotation: tuple[Consumer, ...]) -> None:
        for consumer in self.rotation:
            consumer.has_room = False
        self.rotation.clear()
        self.rotation.extend(rotation)
        for consumer in rotation:
            consumer.has_room = True

    def forget(self, consumer: Consumer, undo: Undo) -> None:
        """Take a consumer out of the rotation: it goes, or is silent."""
        if consumer.has_room:
            undo.add(self._restore, tuple(self.rotation))
            self.rotation.remove(consumer)
            consumer.has_room = False

    def deal(self, round_: Round) -> None:
        """Deliver what is ready to those who have room."""
        if not self._queue.ready or not self.rotation:
            return
        undo = round_.undo
        undo.add(self._restore, tuple(self.rotation))
        several = len(self.rotation) > 1
        share = min(SHARE_MAX, -(-self._queue.ready // len(self.rotation))) if several else SHARE_ALONE_MAX
        while self.rotation and self._queue.next_lane() is not None:
            consumer = self.rotation.popleft()
            first_delivery = consumer.next_delivery
            pieces, has_room = self._serve(consumer, share, round_)
            consumer.has_room = has_room
            if has_room:
                self.rotation.append(consumer)
            if pieces:
                round_.effects.append(
                    Deliver(
                        consumer.session, consumer.call, consumer.id, self._queue.name, first_delivery, pieces
                    )
                )

    def _serve(self, consumer: Consumer, share: int, round_: Round) -> tuple[list[Piece], bool]:
        """Give one consumer its share.

        Returns:
            What it is given, and whether it has room for more.
        """
        pieces: list[Piece] = []
        undo = round_.undo
        deadline_ns = round_.now_ns + self._queue.options.ack_ms * NS_PER_MS
        size_given = 0
        while share > 0 and size_given < DELIVER_BYTES_MAX:
            lane = self._queue.next_lane()
            room = min(share, consumer.prefetch - consumer.unsettled)
            if lane is None or room <= 0:
                break
            segment = lane.first()
            parcel, start = segment.parcel, segment.start
            payloads = parcel.run.payloads[start : min(start + room, segment.end)]
            size = sum(map(len, payloads))
            if consumer.unsettled_bytes + size > UNSETTLED_BYTES_MAX:
                payloads, size = _fitting(payloads, consumer)
                if not payloads:
                    return pieces, False
            count = len(payloads)
            end = start + count
            headers = parcel.run.headers[start:end]
            attempt = segment.attempts + 1
            lease = Lease(consumer, parcel, start, end, attempt, consumer.next_delivery, deadline_ns)
            lane.take(segment, count, undo)
            undo.set(self._queue, "ready", self._queue.ready - count)
            consumer.add(lease, size, undo)
            self._queue.watch(lease)
            pieces.append(Piece(parcel.first_seq + start, payloads, headers, parcel.run.time_ns, attempt))
            share -= count
            size_given += size
        return pieces, consumer.unsettled < consumer.prefetch


def _fitting(payloads: Sequence[bytes], consumer: Consumer) -> tuple[Sequence[bytes], int]:
    """Return as many payloads as a consumer has room for in bytes, and their size."""
    size = 0
    for count, payload in enumerate(payloads):
        is_first = count == 0 and consumer.unsettled == 0
        if consumer.unsettled_bytes + size + len(payload) > UNSETTLED_BYTES_MAX and not is_first:
            return payloads[:count], size
        size += len(payload)
    return payloads, size
