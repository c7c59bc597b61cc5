"""Which of a durable queue's parcels are in memory: a window that consumers move along.

Theory of operation
    For each priority the parcels from ``spill_seq`` on are in the store alone. A parcel is kept out when
    there is enough in memory, or when earlier ones of its priority are out. When a lane runs low and there
    are consumers, the next ones are asked for (``LoadParcels``) and come with ``ParcelsLoaded``.

    Messages to be delivered later are in the store alone until they fall due; the window knows when the
    first of them does. Those that came back with a delay stay in memory; after a restart they wait on when
    their parcel is read.

Invariants
    A parcel that is out has no segment and no lease. At most one load of each lane, and one of what falls
    due, is under way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from .commands import ParcelsLoaded
from .effects import LoadParcels
from .parcels import Lane, Parcel, Segment
from .round import Round
from .rows import StoredChannel, StoredParcel
from .undo import Undo

if TYPE_CHECKING:
    from .queues import Queue

RESIDENT_BYTES_MAX: Final = 16 << 20
"""About how many bytes of a durable queue are in memory, beside what is out with consumers."""
LOAD_COUNT_MAX: Final = 1024
LOAD_BYTES_MAX: Final = 4 << 20


class Window:
    """Of one queue."""

    __slots__ = ("_cursor", "_due_ns", "_is_loading_due", "_queue")

    def __init__(self, queue: Queue, stored: StoredChannel | None) -> None:
        self._queue = queue
        self._due_ns = stored.next_due_ns if stored else 0  # 0: nothing in the store is to fall due
        self._cursor = (0, 0)  # what falls due was loaded up to this (deliver_at_ns, first_seq)
        self._is_loading_due = False

    def keeps_out(self, first_seq: int, size: int, priority: int, due_ns: int, undo: Undo) -> bool:
        """Decide whether a parcel that is being stored stays in the store alone."""
        if due_ns:
            if not self._due_ns or due_ns < self._due_ns:
                undo.set(self, "_due_ns", due_ns)
            return True
        lane = self._queue.lane(priority)
        if lane.spill_seq is None:
            held = self._queue.resident_bytes
            if not held or held + size <= RESIDENT_BYTES_MAX:
                return False
            undo.set(lane, "spill_seq", first_seq)
        undo.set(lane, "has_more", True)
        return True

    def next_due_ns(self) -> int | None:
        """Return when to look for what falls due; None: there is nothing, or nobody to have it."""
        if not self._due_ns or self._is_loading_due or not self._queue.consumers:
            return None
        return self._due_ns

    def load(self, round_: Round) -> None:
        """Ask for what is needed next."""
        queue, undo = self._queue, round_.undo
        if not queue.shared.is_durable or not queue.consumers:
            return
        has_room = queue.resident_bytes < RESIDENT_BYTES_MAX // 2
        for priority in queue.priorities:
            lane = queue.lanes[priority]
            if lane.spill_seq is None or lane.is_loading or (lane.is_ready and not has_room):
                continue
            undo.set(lane, "is_loading", True)
            undo.set(lane, "has_more", False)
            round_.effects.append(self._request(priority, lane.spill_seq, 0, 0))
        due_ns = self.next_due_ns()
        if due_ns is not None and due_ns <= round_.now_ns and (has_room or not queue.ready):
            undo.set(self, "_is_loading_due", True)
            undo.set(self, "_due_ns", 0)
            after_ns, after_seq = self._cursor
            round_.effects.append(self._request(None, after_seq + 1, after_ns, round_.now_ns))

    def _request(self, priority: int | None, first_seq: int, after_ns: int, until_ns: int) -> LoadParcels:
        return LoadParcels(
            self._queue.name,
            self._queue.declared_at_ns,
            priority,
            first_seq,
            after_ns,
            until_ns,
            LOAD_COUNT_MAX,
            LOAD_BYTES_MAX,
        )

    def take(self, command: ParcelsLoaded, round_: Round) -> None:
        """Put parcels that were read where they belong."""
        undo = round_.undo
        for stored in command.parcels:
            self._put(stored, command.priority, round_)
        if command.priority is not None:
            lane = self._queue.lane(command.priority)
            self._move_on(lane, command, undo)
            return
        undo.set(self, "_is_loading_due", False)
        if command.parcels:
            last = command.parcels[-1]
            undo.set(self, "_cursor", (last.deliver_at_ns, last.first_seq))
        # What was stored while they were read is in `_due_ns` already.
        times = [due_ns for due_ns in (self._due_ns, command.next_due_ns) if due_ns]
        undo.set(self, "_due_ns", min(times, default=0))

    @staticmethod
    def _move_on(lane: Lane, command: ParcelsLoaded, undo: Undo) -> None:
        undo.set(lane, "is_loading", False)
        if command.is_end and not lane.has_more:
            undo.set(lane, "spill_seq", None)
        elif command.parcels:
            last = command.parcels[-1]
            undo.set(lane, "spill_seq", last.first_seq + len(last.run.payloads))

    def _put(self, stored: StoredParcel, priority: int | None, round_: Round) -> None:
        queue = self._queue
        parcel = Parcel(
            stored.first_seq, stored.run, stored.content_bytes, stored.priority, stored.deliver_at_ns
        )
        parcel.settled = int.from_bytes(stored.settled, "little")
        parcel.live -= parcel.settled.bit_count()
        queue.keep_parcel(parcel, round_)
        lane = queue.lane(parcel.priority)
        for segment, due_ns in _segments(parcel, stored.attempts):
            if due_ns > round_.now_ns:
                queue.delay(segment, due_ns, round_)
                continue
            if priority is None:
                queue.make_ready(segment, round_)
                continue
            lane.add_fresh(segment, round_.undo)
            round_.undo.set(queue, "ready", queue.ready + segment.end - segment.start)


def _segments(parcel: Parcel, attempts: Sequence[tuple[int, int, int, int]]) -> list[tuple[Segment, int]]:
    """Return what of a parcel is not settled, in runs that were delivered equally often, each with when it
    falls due."""
    before = [(0, 0)] * parcel.count
    for first_seq, count, times, due_ns in attempts:
        start = first_seq - parcel.first_seq
        before[start : start + count] = [(times, due_ns)] * count
    segments: list[tuple[Segment, int]] = []
    for index in range(parcel.count):
        if parcel.settled >> index & 1:
            continue
        last = segments[-1][0] if segments else None
        if last is not None and last.end == index and before[last.start] == before[index]:
            last.end = index + 1
        else:
            segments.append((Segment(parcel, index, index + 1, before[index][0]), before[index][1]))
    return segments
