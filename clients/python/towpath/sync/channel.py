"""A channel by name, and the sources behind such handles; see ``api``."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from towpath import calls, loans, model
from towpath.handles import Handle
from towpath.loans import HELD_MAX, Loan
from towpath.queues import PREFETCH_DEFAULT
from towpath.result import attempt
from towpath.sync.consuming import Consumer
from towpath.waiting import Buffer, deadline_ns

if TYPE_CHECKING:
    from towpath.locks.model import Fence
    from towpath.sync.api import Client, Publisher, Subscription


class Channel(Handle):
    """A channel by name. All handles of a client for one name publish through one source, which is made when
    first used: ``client.channel(name).publish(data)`` may be called any number of times.
    """

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._publisher: Publisher | None = None
        self.name = name

    def publisher(self) -> Publisher:
        """The source behind ``publish``; a new one when that has ended, because the channel was undeclared,
        say.
        """
        publisher = self._publisher
        if publisher is None or publisher.is_ended:
            publisher = self._publisher = self._client._named_publishers.get(self)
        return publisher

    def publish(
        self,
        data: Buffer | Loan[int],
        *,
        headers: model.Headers | None = None,
        timeout: float | None = None,
        confirm: bool = False,
        key: bytes = b"",
        priority: int = 0,
        message_id: str = "",
        deliver_at: float | None = None,
        fence: Fence | None = None,
    ) -> int:
        """Publish one message, or what was loaned; see :meth:`Publisher.publish` and
        :meth:`Publisher.publish_loan`. The rest goes into its headers:

        Args:
            key: what the message is about.
            priority: 0 to 31, the highest; queues.
            message_id: what was published with the same id within the channel's ``dedupe_ms`` is not
                published again; queues and durable topics.
            deliver_at: not before, in seconds since the epoch; queues.
            fence: only if a lock is held by this token then (``guard.fence``); queues and durable topics. The
                daemon says what became of it, and it does not wait for room.

        Raises:
            Fenced: the lock is not held by this token any more; nothing was published.
            NotSupported: a fence, on a topic that is not durable.
        """
        headers = model.with_fields(
            headers, key=key, priority=priority, message_id=message_id, deliver_at=deliver_at
        )
        if fence is not None:
            call = calls.publish_fenced(self.name, data, headers, fence)
            return self._client._call(call, deadline_ns(timeout))
        if not isinstance(data, bytes) and loans.is_loan(data):
            return self.publisher().publish_loan(data, headers=headers, timeout=timeout, confirm=confirm)
        return self.publisher().publish(
            data,  # type: ignore[arg-type]
            headers=headers,
            timeout=timeout,
            confirm=confirm,
        )

    def loan(self, nbytes: int, *, timeout: float | None = None) -> Loan[int]:
        """Give a buffer to fill in place and publish without a copy; see :meth:`Publisher.loan`."""
        return self.publisher().loan(nbytes, timeout=timeout)

    def publish_many(
        self,
        payloads: Sequence[Buffer],
        *,
        headers: model.Headers | Sequence[model.Headers | None] | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        """Publish a batch; see :meth:`Publisher.publish_many`."""
        return self.publisher().publish_many(payloads, headers=headers, timeout=timeout, confirm=confirm)

    def subscribe(
        self,
        *,
        start: model.Start | None = None,
        place: str = "",
        take_over: bool = False,
        held_max: int = HELD_MAX,
    ) -> Subscription:
        """Subscribe; see :meth:`Client.subscribe`."""
        return self._client.subscribe(
            self.name, start=start, place=place, take_over=take_over, held_max=held_max
        )

    def consume(self, *, prefetch: int = PREFETCH_DEFAULT) -> Consumer:
        """Consume, where it is a queue; see :meth:`Client.consume`."""
        return self._client.consume(self.name, prefetch=prefetch)

    def close(self) -> None:
        """Give the source up, unless another handle that is still there publishes through it."""
        self._publisher = None
        self._client._named_publishers.release(self)

    try_publish = attempt(publish)
    try_publish_many = attempt(publish_many)
    try_loan = attempt(loan)
    try_subscribe = attempt(subscribe)
    try_consume = attempt(consume)


class NamedPublishers:
    """The sources behind a client's channel handles, by name.

    A handle that is gone without having been closed leaves its source, so that the next one finds it; the
    client closes all in the end.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._publishers: dict[str, Publisher] = {}
        self._users: dict[str, weakref.WeakSet[Channel]] = {}

    def get(self, channel: Channel) -> Publisher:
        """The name's publisher, made unless there is one that has not ended."""
        with self._lock:
            publisher = self._publishers.get(channel.name)
            if publisher is None or publisher.is_ended:
                if publisher is not None:
                    del self._publishers[channel.name]
                    publisher.close()
                publisher = self._publishers[channel.name] = self._client.publisher(channel.name)
            self._users.setdefault(channel.name, weakref.WeakSet()).add(channel)
            return publisher

    def release(self, channel: Channel) -> None:
        """This handle publishes no more; who was the last closes the source."""
        with self._lock:
            users = self._users.get(channel.name)
            if users is None:
                return
            users.discard(channel)
            if users:
                return
            del self._users[channel.name]
            publisher = self._publishers.pop(channel.name, None)
        if publisher is not None:
            publisher.close()
