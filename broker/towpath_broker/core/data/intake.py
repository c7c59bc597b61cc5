"""What comes into a queue: whether it fits, under which seq, and into which lane.

Theory of operation
    A publication becomes parcels of runs that are alike, of at most ``MESSAGES_MAX`` messages. Message ids
    that are known already are left out first, and take no room. Where there is no room a publication waits
    (``line``), or is refused, as the channel's overflow says; dead letters are told that there is none.

Invariants
    A publication is taken in whole or not at all.

Not here: who waits (``line``), what is kept out of memory (``window``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from towpath.errors import LimitExceeded, QueueFull
from towpath_broker.core.commands import Overflow

from .commands import Publish
from .effects import Published
from .parcels import MESSAGES_MAX, Parcel, Segment
from .publishing import Columns, columns_of
from .round import Round
from .rows import AddParcel, Run

if TYPE_CHECKING:
    from .queues import Queue


class Intake:
    """Of one queue."""

    __slots__ = ("_queue",)

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def publish(self, command: Publish, round_: Round) -> Published | None:
        """Take messages in.

        Returns:
            What was published; None: there is no room, and the publication waits.

        Raises:
            QueueFull: there is no room, and the channel refuses then; or so many wait already.
            InvalidArgument, LimitExceeded, QuotaExceeded: it cannot be published.
        """
        queue = self._queue
        columns = columns_of(command, round_.now_ns)
        self._check_size(columns)
        if queue.options.overflow is Overflow.BLOCK and (
            queue.line.waiting or not self.has_room(columns.count, columns.content_bytes)
        ):
            queue.line.wait(command, columns, round_)
            return None
        return self.publish_now(command, columns, round_)

    def publish_now(self, command: Publish, columns: Columns, round_: Round) -> Published:
        """Take messages in, or refuse.

        Raises:
            QueueFull, InvalidArgument, LimitExceeded, QuotaExceeded: it was not published.
        """
        queue = self._queue
        self._check_size(columns)
        fresh, duplicates, first_known = columns.without_known(queue.ids, round_.now_ns)
        if not fresh.count:
            return Published(queue.name, first_known, 0, duplicates)
        if not self.has_room(fresh.count, fresh.content_bytes):
            raise self._full()
        queue.shared.usage.check(queue.owner, fresh.content_bytes)
        first_seq = queue.next_seq
        if queue.ids.window_ns and any(fresh.message_ids):
            queue.ids.remember(
                fresh.ids_from(first_seq),
                queue.shared.limits.message_ids_per_channel_max,
                round_,
                is_durable=queue.shared.is_durable,
            )
        for run, priority, due_ns in fresh.runs(MESSAGES_MAX):
            self._add(run, priority, due_ns, round_)
        round_.touch(queue)
        return Published(queue.name, first_seq, fresh.count, duplicates)

    def post(self, run: Run, priority: int, round_: Round) -> bool:
        """Take dead letters in; returns whether there was room."""
        columns = Columns(run.payloads, run.headers, priorities=[priority] * len(run.payloads))
        if not self.has_room(columns.count, columns.content_bytes):
            return False
        for part, part_priority, _ in columns.runs(MESSAGES_MAX, time_ns=round_.now_ns):
            self._add(part, part_priority, 0, round_)
        round_.touch(self._queue)
        return True

    def has_room(self, count: int, nbytes: int) -> bool:
        """Whether there is room for so many messages, and so many bytes."""
        queue = self._queue
        return (
            queue.messages + count <= queue.options.capacity
            and queue.content_bytes + nbytes <= queue.options.capacity_bytes
        )

    def _check_size(self, columns: Columns) -> None:
        options = self._queue.options
        if columns.count > options.capacity or columns.content_bytes > options.capacity_bytes:
            raise LimitExceeded(
                f"{columns.count} messages of together {columns.content_bytes} bytes never fit into queue"
                f" {self._queue.name!r}: its capacity is {options.capacity} messages and"
                f" {options.capacity_bytes} bytes",
                hint="publish fewer at a time, or declare the queue with a larger capacity",
                retryable=False,
            )

    def _full(self) -> QueueFull:
        queue = self._queue
        return QueueFull(
            f"queue {queue.name!r} holds {queue.messages} messages of {queue.content_bytes} bytes: its"
            f" capacity is {queue.options.capacity} messages and {queue.options.capacity_bytes} bytes"
        )

    def _add(self, run: Run, priority: int, due_ns: int, round_: Round) -> None:
        queue, undo, count = self._queue, round_.undo, len(run.payloads)
        first_seq = queue.next_seq
        size = sum(map(len, run.payloads)) + sum(map(len, run.headers))
        undo.set(queue, "next_seq", first_seq + count)
        undo.set(queue, "messages", queue.messages + count)
        queue.charge(size, round_)
        if queue.shared.is_durable:
            now_ns = run.time_ns
            round_.rows.append(
                AddParcel(queue.name, first_seq, count, size, now_ns, now_ns, run, priority, due_ns)
            )
            if queue.window.keeps_out(first_seq, size, priority, due_ns, undo):
                return
        parcel = Parcel(first_seq, run, size, priority)
        queue.keep_parcel(parcel, round_)
        segment = Segment(parcel, 0, count, 0)
        if due_ns:
            queue.delay(segment, due_ns, round_)
        else:
            queue.lane(priority).add_fresh(segment, undo)
            undo.set(queue, "ready", queue.ready + count)
