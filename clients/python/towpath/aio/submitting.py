"""Publishing on a queue, waiting on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from towpath import calls, model
from towpath.aio.api import AsyncClient, AsyncPublisher
from towpath.errors import ConnectionLost
from towpath.remote.outbox import Column, Submission
from towpath.submitting import WITHDRAW_S, SubmitterBase
from towpath.waiting import Buffer, deadline_ns, far_ns, remaining_ns, seconds


class AsyncQueuePublisher(SubmitterBase, AsyncPublisher):
    """A publisher of a queue; ``publish`` returns when the message is in it."""

    def __init__(self, client: AsyncClient, info: model.ChannelInfo) -> None:
        self._client = client
        super().__init__(client, info, contextlib.nullcontext())
        self._waiters: set[asyncio.Future[None]] = set()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

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
        deadline = deadline_ns(timeout)
        fitting, column, too_large = self._checked(payloads, headers, headers_raw)
        last_seq = await self._publish(fitting, column, deadline) if fitting else self._last_seq
        if too_large is not None:
            raise too_large
        return last_seq

    async def _publish(self, payloads: Sequence[Buffer], column: Column, deadline: int | None) -> int:
        done = 0
        while True:
            rest = column[done:] if isinstance(column, list) else column
            submission = self._submit(payloads[done:], rest)
            try:
                if not await self._wait_settled(submission, deadline) and self._give_up(submission):
                    await self._wait_settled(submission, deadline_ns(WITHDRAW_S))
            except BaseException:
                self._give_up(submission)
                raise
            if self._ended is not None or not self._was_not_sent(submission):
                return self._last_seq_of(submission, done, len(payloads))
            done += submission.acknowledged
            # Waits for the next connection; what raises here was not sent.
            await self._client._call(calls.channel_info(self.channel), deadline or far_ns())

    async def _wait_settled(self, submission: Submission, deadline: int | None) -> bool:
        while not submission.is_settled or self._outbox.is_of(submission):
            if remaining_ns(deadline) == 0:
                return False
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                async with asyncio.timeout(seconds(deadline)):
                    await waiter
            except TimeoutError:
                return False
            finally:
                self._waiters.discard(waiter)
        return True

    async def flush(self, timeout: float | None = None) -> None:
        """Nothing to wait for: what ``publish`` returned for is in the queue, on disk where it is durable."""

    async def wait_drained(self, timeout: float | None = None) -> bool:
        """True at once: what was published is in the queue, and stays there for whoever consumes it."""
        return True

    async def close(self) -> None:
        self._end(ConnectionLost("the publisher was closed", hint=""))
