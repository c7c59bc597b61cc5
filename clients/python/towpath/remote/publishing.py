"""Publishing from afar, on an event loop.

Theory of operation
    Submissions wait in an :class:`Outbox`; one task sends batch after batch on the session's connection, each
    when the one before is acknowledged. When the connection breaks, what was on its way fails (nobody knows
    whether it arrived), and what waited goes out on the next one, from a new source.

    What a message may be is checked before it is submitted, as the ring would, so that one caller's mistake
    does not cost others who share the batch.

Invariants
    A message is sent at most once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from towpath import calls, model, outcomes, wire
from towpath.aio.api import AsyncHandle, AsyncPublisher
from towpath.errors import (
    ChannelNotFound,
    ChannelUndeclared,
    ConnectionLost,
    InternalError,
    InvalidArgument,
    InvalidName,
    LimitExceeded,
    MessageTooLarge,
    NotSupported,
    PermissionDenied,
    QueueFull,
    QuotaExceeded,
    StoreFull,
    Timeout,
    TowpathError,
)
from towpath.remote.outbox import Column, Outbox, Submission, parsed_headers, so_far
from towpath.remote.ports import Connection, Publication
from towpath.remote.session import Session, unreachable
from towpath.waiting import Buffer, deadline_ns, seconds

STORED_BYTES_MAX: Final = wire.REQUEST_BYTES_MAX - 4_096
"""The largest message of a queue or a durable topic: the gateway passes it on in a request to the core."""

_NOTHING_WAS_PUBLISHED: Final = (
    InvalidArgument,
    InvalidName,
    LimitExceeded,
    MessageTooLarge,
    NotSupported,
    PermissionDenied,
    QuotaExceeded,
)
"""Errors of a gateway that say so. After others it is not known."""


class RemoteAsyncPublisher(AsyncPublisher):
    """A publisher through a gateway."""

    def __init__(
        self, session: Session, info: model.ChannelInfo, on_closed: Callable[[AsyncHandle], None]
    ) -> None:
        self._session = session
        self._on_closed = on_closed
        self._outbox = Outbox()
        self._work = asyncio.Event()
        self._ended: TowpathError | None = None
        self._publication: Publication | None = None
        self._sending = asyncio.create_task(self._send(), name="towpath-publisher")
        self._sending.add_done_callback(self._stopped)
        self._last_seq = 0
        self.duplicates = 0
        self.source = 0
        self.channel = info.name
        self._ring_bytes = info.ring_bytes
        self._is_queue = info.kind == "queue"
        self.message_bytes_max = min(info.ring_bytes // 4 - calls.RECORD_BYTES, session.message_bytes_max)
        if self._is_queue or info.durable:
            self.message_bytes_max = min(self.message_bytes_max, STORED_BYTES_MAX)

    @property
    def is_ended(self) -> bool:
        return self._ended is not None

    # ---- publishing ----

    async def publish(
        self,
        data: Buffer,
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        return await self.publish_many(
            [data], headers=headers, headers_raw=headers_raw, timeout=timeout, confirm=confirm
        )

    async def publish_many(
        self,
        payloads: Sequence[Buffer],
        *,
        headers: model.Headers | Sequence[model.Headers | None] | None = None,
        headers_raw: bytes | Sequence[bytes] | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        if self._ended is not None:
            raise self._ended.again()
        column = parsed_headers(calls.headers_column(len(payloads), headers, headers_raw))
        deadline = deadline_ns(timeout)
        fitting = self._count_fitting(payloads, column)
        last = self._last_seq
        if fitting:
            fits = payloads if fitting == len(payloads) else payloads[:fitting]
            last = await self._submit(fits, column, deadline, len(payloads))
        if fitting < len(payloads):
            size = _message_bytes(payloads, column, fitting)
            so_far = f"; {fitting} of {len(payloads)} were published" if len(payloads) > 1 else ""
            raise outcomes.too_large(size, self.message_bytes_max, self._ring_bytes, so_far)
        return last

    def _count_fitting(self, payloads: Sequence[Buffer], column: Column) -> int:
        """How many of them may be published, up to the first that is too large."""
        for index in range(len(payloads)):
            if _message_bytes(payloads, column, index) > self.message_bytes_max:
                return index
        return len(payloads)

    async def _submit(
        self, payloads: Sequence[Buffer], column: Column, deadline: int | None, count: int
    ) -> int:
        """Publish messages that fit; ``count`` is for people."""
        settled = asyncio.Event()
        submission = Submission(payloads, column, settled.set)
        self._outbox.submit(submission)
        self._work.set()
        try:
            async with asyncio.timeout(seconds(deadline)):
                await settled.wait()
        except TimeoutError:
            self._outbox.withdraw(submission)
            raise self._late(submission, count) from None
        except asyncio.CancelledError:
            self._outbox.withdraw(submission)
            raise
        if submission.error is not None:
            raise so_far(submission.error, submission, count)
        return submission.last_seq

    def _late(self, submission: Submission, count: int) -> TowpathError:
        """What a publisher is told whose time is over."""
        if not self._session.is_connected and not submission.on_way:
            return so_far(unreachable(), submission, count)
        error = Timeout(
            f"queue {self.channel} is full, or the gateway is slow"
            if self._is_queue
            else f"a subscriber of {self.channel} does not read, or the gateway is slow",
            hint="towpath status shows the channel's subscribers",
        )
        return so_far(error, submission, count)

    # ---- sending ----

    async def _send(self) -> None:
        on: Connection | None = None
        while self._ended is None:
            while not self._outbox:
                self._work.clear()
                await self._work.wait()
            try:
                connection = await self._session.ready()
            except TowpathError as error:
                self._end(error)
                return
            if self._publication is None or on is not connection:
                self._publication, on = connection.publication(self.channel), connection
            if self._outbox:  # what waited may have given up meanwhile
                await self._send_batch(self._publication)

    async def _send_batch(self, publication: Publication) -> None:
        batch = self._outbox.take()
        try:
            told = await publication.publish(batch.payloads, batch.headers)
        except TowpathError as error:
            self._publication = None
            if isinstance(error, ChannelNotFound):  # it was there when the publisher was made
                error = ChannelUndeclared(f"channel {self.channel} was undeclared")
            # A gateway may pass a batch on in pieces, of which the first fitted.
            is_full = isinstance(error, QueueFull | StoreFull) and len(batch.payloads) == 1
            self._outbox.fail(error, is_known=is_full or isinstance(error, _NOTHING_WAS_PUBLISHED))
            if isinstance(error, ChannelUndeclared):
                self._end(error)
        else:
            self.source = told.source
            self.duplicates += told.duplicates
            self._last_seq = told.first_seq + max(told.count - 1, 0)
            self._outbox.acknowledge(told.first_seq, self._last_seq)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        """A bug in the task must not leave anybody waiting."""
        if not task.cancelled() and (bug := task.exception()) is not None:
            self._end(InternalError(f"the publisher failed: {bug!r}"))

    def _end(self, error: TowpathError) -> None:
        if self._ended is None:
            self._ended = error
            self._outbox.fail_all(error)

    async def wait_drained(self, timeout: float | None = None) -> bool:
        raise NotSupported(
            "a publisher behind a gateway does not see its subscribers",
            hint="what publish returned for is in the channel's ring",
        )

    async def close(self) -> None:
        self._on_closed(self)
        self._end(ConnectionLost("the publisher was closed", hint=""))
        self._sending.cancel()
        await asyncio.wait((self._sending,))
        publication, self._publication = self._publication, None
        if publication is not None:
            await publication.close()


def _message_bytes(payloads: Sequence[Buffer], column: Column, index: int) -> int:
    headers = column[index] if isinstance(column, list) else column
    return memoryview(payloads[index]).nbytes + (headers.ByteSize() if headers is not None else 0)
