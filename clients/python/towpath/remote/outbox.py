"""What a publisher waits to publish, and what became of it. Sans-I/O.

Theory of operation
    Each ``publish`` or ``publish_many`` is a :class:`Submission`. ``take`` makes a batch of what waits,
    from the front, up to the bounds: several small submissions in one batch, or a part of a large one.
    One batch is on its way at a time, so what is submitted meanwhile gathers for the next. Its
    acknowledgement settles the submissions that it completes; an error settles those that it touched.

Invariants
    Messages leave in the order of their submission, and those of one submission follow each other. A
    submission is settled once. What was on its way when an error came is never sent again.

Not here: waiting, timeouts; the connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from towpath import convert
from towpath.errors import TowpathError
from towpath.v1.message_pb2 import Headers

BATCH_MESSAGES_MAX: Final = 4_096
BATCH_BYTES_MAX: Final = 1 << 20
"""One batch has no more, unless one message alone is larger. Gateways take 10,000 messages and 4 MiB."""

Column = Headers | list[Headers] | None
"""The headers of a batch: none, one for all, or one for each."""

_NO_HEADERS: Final = Headers()


class Submission:
    """Messages that one call publishes.

    Attributes:
        acknowledged: how many of them are published.
        on_way: how many of them may be: they were sent, and nothing was heard of them.
        last_seq: the last acknowledged one's.
        error: why the rest will not be published, once settled.
        is_settled: whether nothing more will happen.
    """

    __slots__ = (
        "_headers",
        "_next",
        "_on_settled",
        "_payloads",
        "acknowledged",
        "error",
        "is_settled",
        "last_seq",
        "on_way",
    )

    def __init__(
        self,
        payloads: Sequence[bytes | bytearray | memoryview],
        headers: Headers | Sequence[Headers] | None,
        on_settled: Callable[[], None],
    ) -> None:
        self._payloads = payloads
        self._headers = headers
        self._on_settled = on_settled
        self._next = 0
        self.acknowledged = 0
        self.on_way = 0
        self.last_seq = 0
        self.error: TowpathError | None = None
        self.is_settled = False

    def settle(self, error: TowpathError | None) -> None:
        if not self.is_settled:
            self.is_settled = True
            self.error = error
            self._on_settled()

    @property
    def is_sent(self) -> bool:
        """Whether all of it was given to a batch."""
        return self._next == len(self._payloads)

    def move_into(self, batch: Batch) -> None:
        """Give the batch as much as it takes."""
        first = self._next
        while self._next < len(self._payloads):
            payload = bytes(self._payloads[self._next])
            headers = self._headers
            if headers is not None and not isinstance(headers, Headers):
                headers = headers[self._next]
            if not batch.add(payload, headers):
                break
            self._next += 1
        if self._next > first:
            batch.shares.append((self, self._next - first))
            self.on_way += self._next - first


class Batch:
    """What is sent at once.

    Attributes:
        payloads: at least one.
        shares: which submission has how many of them, in order.
    """

    def __init__(self, messages_max: int, bytes_max: int) -> None:
        self.payloads: list[bytes] = []
        self.shares: list[tuple[Submission, int]] = []
        self._headers: list[Headers] = []
        self._has_headers = False
        self._bytes = 0
        self._messages_max = messages_max
        self._bytes_max = bytes_max

    @property
    def headers(self) -> list[Headers] | None:
        """One per payload, or None when none has any."""
        return self._headers if self._has_headers else None

    def add(self, payload: bytes, headers: Headers | None) -> bool:
        """Append a message; False when there is no room for it."""
        size = len(payload) + (headers.ByteSize() if headers is not None else 0)
        if self.payloads and (
            len(self.payloads) >= self._messages_max or self._bytes + size > self._bytes_max
        ):
            return False
        self.payloads.append(payload)
        self._headers.append(headers if headers is not None else _NO_HEADERS)
        self._has_headers = self._has_headers or headers is not None
        self._bytes += size
        return True


class Outbox:
    """One publisher's submissions.

    Args:
        messages_max, bytes_max: bounds of a batch; one message may exceed the latter.
    """

    def __init__(self, messages_max: int = BATCH_MESSAGES_MAX, bytes_max: int = BATCH_BYTES_MAX) -> None:
        self._messages_max = messages_max
        self._bytes_max = bytes_max
        self._waiting: deque[Submission] = deque()
        self._batch: Batch | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def is_busy(self) -> bool:
        """Whether a batch is on its way."""
        return self._batch is not None

    def is_on_way(self, batch: Batch) -> bool:
        """Whether this very batch is."""
        return self._batch is batch

    def is_of(self, submission: Submission) -> bool:
        """Whether the batch on its way has some of this submission."""
        return self._batch is not None and any(share[0] is submission for share in self._batch.shares)

    def is_alone(self, submission: Submission) -> bool:
        """Whether the batch on its way is of this submission only."""
        return self._batch is not None and all(share[0] is submission for share in self._batch.shares)

    def submit(self, submission: Submission) -> None:
        """Append a submission."""
        self._waiting.append(submission)

    def withdraw(self, submission: Submission) -> None:
        """Send nothing more of a submission; ``on_way`` says what may still be published."""
        if submission in self._waiting:
            self._waiting.remove(submission)
        submission.is_settled = True

    def take(self) -> Batch:
        """Make the next batch; something must wait, and the last batch must be settled."""
        assert self._batch is None and self._waiting
        batch = self._batch = Batch(self._messages_max, self._bytes_max)
        while self._waiting:
            self._waiting[0].move_into(batch)
            if not self._waiting[0].is_sent:
                break
            self._waiting.popleft()
        return batch

    def acknowledge(self, first_seq: int, last_seq: int | None = None) -> None:
        """The batch on its way is published.

        Args:
            last_seq: the last one's, where not each was given a number of its own, because some had been
                published before.
        """
        assert self._batch is not None
        batch, self._batch = self._batch, None
        seq = first_seq
        for submission, count in batch.shares:
            seq += count
            submission.on_way -= count
            submission.acknowledged += count
            submission.last_seq = seq - 1 if last_seq is None else min(seq - 1, last_seq)
            if submission.is_sent and submission.on_way == 0:
                submission.settle(None)

    def fail(self, error: TowpathError, *, is_known: bool) -> None:
        """The batch on its way was refused, or nothing will be heard of it.

        Args:
            is_known: whether it is certain that none of it was published.
        """
        assert self._batch is not None
        batch, self._batch = self._batch, None
        for submission, count in batch.shares:
            if is_known:
                submission.on_way -= count
            if self._waiting and self._waiting[0] is submission:
                self._waiting.popleft()
            submission.settle(error)

    def fail_all(self, error: TowpathError) -> None:
        """Nothing more will be published."""
        if self._batch is not None:
            self.fail(error, is_known=False)
        while self._waiting:
            self._waiting.popleft().settle(error)


def parsed_headers(column: bytes | list[bytes] | None) -> Column:
    """Serialized headers as they go into a request.

    Raises:
        InvalidArgument: a field is out of its range.
    """
    if column is None:
        return None
    if isinstance(column, bytes):
        return _parse(column)
    return [_parse(raw) for raw in column]


def _parse(raw: bytes) -> Headers:
    return Headers.FromString(convert.encode_headers(convert.decode_headers(raw)))


def so_far(error: TowpathError, submission: Submission, count: int) -> TowpathError:
    """The error with what became of the messages, where that is not plain."""
    known = f"{submission.acknowledged} of {count} were published" if count > 1 else ""
    if submission.on_way:
        unknown = f"perhaps {submission.on_way} more" if known else "it is not known whether it was published"
        known = f"{known}, and {unknown}" if known else unknown
    if not known:
        return error
    return type(error)(f"{error.message}; {known}", hint=error.hint, retryable=error.retryable)
