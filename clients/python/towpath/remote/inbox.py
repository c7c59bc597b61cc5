"""What a subscription has received and not handed out yet, and what it knows of each source. Sans-I/O.

Theory of operation
    Batches are runs of one source with contiguous numbers. Of each source the last seq seen is remembered
    over reconnections. A run that begins beyond the next number tells that what lies between was missed; one
    that begins before it has messages that were seen already, which are dropped.

    What a source published before it was first heard of does not count: a subscription begins in the middle
    of things. So a source first heard of after a reconnection may have lost messages that nobody counts.

Invariants
    Seq grows within each source. ``lost`` is the sum of ``missed`` over all messages put. At most
    ``SOURCES_MAX`` sources are remembered; those silent for longest are forgotten first.

Not here: waiting; who makes a batch (``ports``).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

from towpath._message import Message
from towpath.errors import ProtocolViolation, TowpathError
from towpath.v1.message_pb2 import MessageBatch

MESSAGES_MAX: Final = 4_096
BYTES_MAX: Final = 1 << 20
"""Above either, nothing more is asked of the carrier until the program has taken some."""
SOURCES_MAX: Final = 4_096


class Inbox:
    """One subscription's messages.

    Attributes:
        lost: messages that were missed, in total.
        ended: why nothing more will come, or None; what is held is still handed out.
        is_stored: the channel is a durable topic: its seqs are one row for ever, whatever the source.
        next_seq: of such a channel: what comes after the last message put, or what it begins with; None: not
            known.
    """

    def __init__(self, channel: str) -> None:
        self._channel = channel
        self._messages: deque[Message] = deque()
        self._bytes = 0
        self._last: OrderedDict[int, int] = OrderedDict()
        self.lost = 0
        self.is_stored = False
        self.next_seq: int | None = None
        self.ended: TowpathError | None = None

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def has_room(self) -> bool:
        """Whether more should be asked for."""
        return len(self._messages) < MESSAGES_MAX and self._bytes < BYTES_MAX

    @property
    def is_drained(self) -> bool:
        """Whether it has ended and everything before that was handed out."""
        return self.ended is not None and not self._messages

    def put(self, batch: MessageBatch) -> int:
        """Take a run of messages in.

        Returns:
            How many of them were seen before, and dropped.

        Raises:
            ProtocolViolation: its columns do not fit together; nothing was taken.
        """
        count = len(batch.payloads)
        if len(batch.publish_times_ns) != count or len(batch.headers) not in (0, count):
            raise ProtocolViolation(
                f"a batch of {count} payloads has {len(batch.publish_times_ns)} times and "
                f"{len(batch.headers)} headers"
            )
        if not count:
            return 0
        first = batch.first_seq
        if self.is_stored:
            return self._put_stored(batch, first, count)
        expected = self._last.get(batch.source, 0) + 1
        if expected == 1:
            seen, missed = 0, batch.missed
        else:
            seen, missed = min(max(expected - first, 0), count), max(first - expected, 0)
        self._remember(batch.source, max(first + count, expected) - 1)
        self._append(batch, seen, missed)
        self.lost += missed
        return seen

    def _put_stored(self, batch: MessageBatch, first: int, count: int) -> int:
        """Of a durable topic nothing is missed but what the gateway says is."""
        expected = first if self.next_seq is None else self.next_seq
        seen = min(max(expected - first, 0), count)
        self.next_seq = max(first + count, expected)
        missed = 0 if seen else batch.missed
        self._append(batch, seen, missed)
        self.lost += missed
        return seen

    def _remember(self, source: int, last_seq: int) -> None:
        self._last[source] = last_seq
        self._last.move_to_end(source)
        if len(self._last) > SOURCES_MAX:
            self._last.popitem(last=False)

    def _append(self, batch: MessageBatch, seen: int, missed: int) -> None:
        channel = batch.channel or self._channel
        source, first = batch.source, batch.first_seq
        payloads, times = batch.payloads, batch.publish_times_ns
        raw = [headers.SerializeToString() for headers in batch.headers]
        for index in range(seen, len(payloads)):
            payload = payloads[index]
            message = Message(
                payload,
                seq=first + index,
                source=source,
                time_ns=times[index],
                channel=channel,
                headers_raw=raw[index] if raw else b"",
                missed=missed,
            )
            missed = 0
            self._messages.append(message)
            self._bytes += len(payload)

    def take(self, count_max: int, bytes_max: int) -> list[Message]:
        """Hand out what there is, up to the bounds; one message may exceed ``bytes_max``."""
        messages = self._messages
        taken: list[Message] = []
        size = 0
        while messages and len(taken) < count_max:
            size += len(messages[0].payload)
            if taken and size > bytes_max:
                break
            message = messages.popleft()
            self._bytes -= len(message.payload)
            taken.append(message)
        return taken

    def end(self, error: TowpathError) -> None:
        """Nothing more will come."""
        if self.ended is None:
            self.ended = error

    def close(self, error: TowpathError) -> None:
        """Hand out nothing more."""
        self.ended = error
        self._messages.clear()
        self._bytes = 0
