"""Publishing on a queue, waiting in the caller's thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from towpath import calls, model
from towpath.errors import ConnectionLost
from towpath.remote.outbox import Column, Submission
from towpath.submitting import WITHDRAW_S, SubmitterBase
from towpath.sync.api import Client, Publisher
from towpath.waiting import FOREVER, Buffer, deadline_ns, far_ns, remaining_ns


class QueuePublisher(SubmitterBase, Publisher):
    """A publisher of a queue; ``publish`` returns when the message is in it."""

    def __init__(self, client: Client, info: model.ChannelInfo) -> None:
        self._client = client
        self._changed = threading.Condition()
        super().__init__(client, info, self._changed)

    def _wake(self) -> None:
        self._changed.notify_all()

    def publish(
        self,
        data: Buffer,
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        return self.publish_many(
            [data], headers=headers, headers_raw=headers_raw, timeout=timeout, confirm=confirm
        )

    def publish_many(
        self,
        payloads: Sequence[Buffer],
        *,
        headers: model.Headers | Sequence[model.Headers | None] | None = None,
        headers_raw: bytes | Sequence[bytes] | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        """As documented; in requests of up to 2,048 messages, one after the other."""
        deadline = deadline_ns(timeout)
        fitting, column, too_large = self._checked(payloads, headers, headers_raw)
        last_seq = self._publish(fitting, column, deadline) if fitting else self._last_seq
        if too_large is not None:
            raise too_large
        return last_seq

    def _publish(self, payloads: Sequence[Buffer], column: Column, deadline: int | None) -> int:
        done = 0
        while True:
            rest = column[done:] if isinstance(column, list) else column
            submission = self._submit(payloads[done:], rest)
            try:
                if not self._wait_settled(submission, deadline) and self._give_up(submission):
                    self._wait_settled(submission, deadline_ns(WITHDRAW_S))
            except BaseException:
                self._give_up(submission)
                raise
            if self._ended is not None or not self._was_not_sent(submission):
                return self._last_seq_of(submission, done, len(payloads))
            done += submission.acknowledged
            # Waits for the next connection; what raises here was not sent.
            self._client._call(calls.channel_info(self.channel), deadline or far_ns())

    def _wait_settled(self, submission: Submission, deadline: int | None) -> bool:
        with self._changed:
            while not submission.is_settled or self._outbox.is_of(submission):
                left = remaining_ns(deadline)
                if left == 0 or not self._changed.wait(None if left == FOREVER else left / 1e9):
                    return False
        return True

    def flush(self, timeout: float | None = None) -> None:
        """Nothing to wait for: what ``publish`` returned for is in the queue, on disk where it is durable."""

    def wait_drained(self, timeout: float | None = None) -> bool:
        """True at once: what was published is in the queue, and stays there for whoever consumes it."""
        return True

    def close(self) -> None:
        with self._changed:
            self._end(ConnectionLost("the publisher was closed", hint=""))
