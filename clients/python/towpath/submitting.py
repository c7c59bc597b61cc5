"""Publishing on a queue: requests to the core, each with what had gathered while the one before was answered.

Theory of operation
    A queue has no rings: what is published goes to the core in ``PublishRequest``s, and is in the queue (on
    disk, where that is durable) when its response comes. Calls of several threads or tasks share a request.
    One is on its way at a time, so that whatever is refused, what comes after it has not overtaken it.

    A full queue holds the answer back until there is room. Whose time is over before has the request
    withdrawn, and waits for the core's word on what became of it; unless others share that request, who may
    wait longer.

Invariants
    A message is sent at most once: what was on its way when the connection broke is not sent again, and
    ConnectionLost says that it is not known. With a ``message_id`` it may be, and is not doubled.

Not here: waiting (``sync.submitting``, ``aio.submitting``), and publishing from afar (``remote.publishing``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from towpath import calls, model, outcomes, queues, wire
from towpath.asking import Asking
from towpath.errors import (
    Cancelled,
    ChannelNotFound,
    ChannelUndeclared,
    ConnectionLost,
    InternalError,
    ProtocolViolation,
    Timeout,
    TowpathError,
)
from towpath.remote.outbox import Column, Outbox, Submission, parsed_headers, so_far
from towpath.v1.channels_pb2 import PublishResponse
from towpath.waiting import Buffer

REQUEST_BYTES_MAX: Final = wire.REQUEST_BYTES_MAX - 4_096
"""The largest message that a request to the core can carry."""
BATCH_MESSAGES_MAX: Final = 2_048
BATCH_BYTES_MAX: Final = 512 << 10
WITHDRAW_S: Final = 5.0
"""How long to wait for the core's word on what was withdrawn."""

_NOT_KNOWN: Final = (ConnectionLost, InternalError, ProtocolViolation)
"""Errors after which it is not known whether it was published; all others say that it was not."""


class SubmitterBase:
    """All of a queue's publisher but the waiting.

    Attributes:
        source: of what was published last; 0 before.
        duplicates: messages that were not published since their id had been, so far.
    """

    def __init__(self, asking: Asking, info: model.ChannelInfo, lock: AbstractContextManager[Any]) -> None:
        self._asking = asking
        self._lock = lock
        self._outbox = Outbox(BATCH_MESSAGES_MAX, BATCH_BYTES_MAX)
        self._ended: TowpathError | None = None
        self._withdraw: Callable[[], object] = lambda: None
        self._last_seq = 0
        self.source = 0
        self.duplicates = 0
        self.channel = info.name
        self.message_bytes_max = min(info.ring_bytes // 4 - calls.RECORD_BYTES, REQUEST_BYTES_MAX)
        self._ring_bytes = info.ring_bytes

    @property
    def is_ended(self) -> bool:
        """As :attr:`towpath.Publisher.is_ended`."""
        return self._ended is not None

    @abstractmethod
    def _wake(self) -> None:
        """A submission may be settled; the lock is held."""

    # ---- what is submitted ----

    def _checked(
        self,
        payloads: Sequence[Buffer],
        headers: model.Headers | Sequence[model.Headers | None] | None,
        headers_raw: bytes | Sequence[bytes] | None,
    ) -> tuple[Sequence[Buffer], Column, TowpathError | None]:
        """Check messages; return those that may be published, their headers, and why not the rest."""
        self._asking._check_not_forked()
        column = calls.headers_column(len(payloads), headers, headers_raw)
        count = len(payloads)
        too_large: TowpathError | None = None
        for fitting in range(count):
            size = calls.message_bytes(payloads, column, fitting)
            if size > self.message_bytes_max:
                known = f"; {fitting} of {count} were published" if count > 1 else ""
                too_large = outcomes.too_large(size, self.message_bytes_max, self._ring_bytes, known)
                payloads = payloads[:fitting]
                break
        return payloads, parsed_headers(column), too_large

    def _submit(self, payloads: Sequence[Buffer], column: Column) -> Submission:
        submission = Submission(payloads, column, self._wake)
        with self._lock:
            if self._ended is not None:
                raise self._ended.again()
            self._outbox.submit(submission)
        self._push()
        return submission

    def _push(self) -> None:
        """Send what waits, unless something is on its way."""
        with self._lock:
            if self._outbox.is_busy or not self._outbox:
                return
            batch = self._outbox.take()
            self._withdraw = lambda: None
        call = queues.publish(self.channel, batch.payloads, batch.headers)
        withdraw = self._asking._post(call, self._answered)
        with self._lock:
            if withdraw is None:
                self._outbox.fail(outcomes.not_connected(), is_known=True)
                self._wake()
            elif self._outbox.is_on_way(batch):
                self._withdraw = withdraw

    def _answered(self, outcome: PublishResponse | TowpathError) -> None:
        with self._lock:
            if isinstance(outcome, TowpathError):
                if isinstance(outcome, ChannelNotFound):  # it was there when the publisher was made
                    outcome = ChannelUndeclared(f"channel {self.channel} was undeclared")
                self._outbox.fail(outcome, is_known=not isinstance(outcome, _NOT_KNOWN))
                if isinstance(outcome, ChannelUndeclared):
                    self._end(outcome)
            else:
                self.source = outcome.source
                self.duplicates += outcome.duplicates
                self._last_seq = outcome.first_seq + max(outcome.count - 1, 0)
                self._outbox.acknowledge(outcome.first_seq, self._last_seq)
            self._wake()
        self._push()

    def _end(self, error: TowpathError) -> None:
        if self._ended is None:
            self._ended = error
            self._outbox.fail_all(error)

    # ---- what became of it ----

    def _give_up(self, submission: Submission) -> bool:
        """Send no more of it; return whether the core's word on what is on its way should be waited for."""
        with self._lock:
            self._outbox.withdraw(submission)
            is_alone = submission.on_way > 0 and self._outbox.is_alone(submission)
            withdraw = self._withdraw
        if is_alone:
            withdraw()
        return is_alone

    @staticmethod
    def _was_not_sent(submission: Submission) -> bool:
        """Whether there was no connection for what is left of it, so that it can be submitted again."""
        return isinstance(submission.error, ConnectionLost) and not submission.on_way

    def _last_seq_of(self, submission: Submission, done: int, count: int) -> int:
        """The last one's, or why not all of a batch was published; ``done`` of it was, before."""
        if submission.acknowledged + done == count:
            return submission.last_seq
        error = submission.error
        if error is None or isinstance(error, Cancelled):
            error = Timeout(
                f"queue {self.channel} is full, or the daemon does not answer",
                hint="somebody must consume and settle: towpath status shows the queue's consumers",
            )
        submission.acknowledged += done
        raise so_far(error.again(), submission, count)
