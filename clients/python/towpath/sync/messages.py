"""Publishing and subscribing, waiting in the caller's thread."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from towpath import calls, convert, model
from towpath._message import Message
from towpath.errors import ConnectionLost, Timeout, TowpathError, Unavailable
from towpath.protocol import ReaderState, SourceState, publication_error
from towpath.waiting import FOREVER, RECEIVE_BYTES, RECEIVE_COUNT, Buffer, deadline_ns, far_ns, remaining_ns

if TYPE_CHECKING:
    from towpath.sync.client import Client


class Publisher:
    """One source: this program's presence as a writer on one channel.

    Attributes:
        source: its id; with a message's seq unique for ever.
        channel: the channel's name.
        message_bytes_max: the largest message, headers included.
    """

    def __init__(self, client: Client, state: SourceState) -> None:
        self._client = client
        self._state = state
        self._writer = state.writer
        self._try_publish = state.writer.try_publish
        self._room = threading.Lock()
        self.source = state.source
        self.channel = state.channel
        self.message_bytes_max = state.writer.message_bytes_max

    def publish(
        self,
        data: Buffer,
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
    ) -> int:
        """Publish one message; waits while a subscriber's ring is full.

        Args:
            data: any bytes-like object, 0 to ``message_bytes_max`` bytes; it is copied.
            headers: what travels beside it.
            headers_raw: the same, already serialized as ``towpath.v1.Headers``.
            timeout: seconds to wait for room; None for ever.

        Returns:
            The message's seq.

        Raises:
            MessageTooLarge, InvalidArgument: nothing was published.
            Timeout: a subscriber does not read; nothing was published.
            ChannelUndeclared: the channel is gone.
        """
        if headers is not None:
            headers_raw = convert.encode_headers(headers)
        try:
            seq = self._try_publish(data, headers_raw or None)
            if seq <= 0:
                seq = self._publish_waiting(data, headers_raw or None, deadline_ns(timeout))
        except ValueError as error:
            raise self._state.refusal(error) from None
        if self._writer.readers_changed:
            self._meet_readers()
        return seq

    def _publish_waiting(self, data: Buffer, headers_raw: bytes | None, deadline: int | None) -> int:
        while True:
            seq = self._try_publish(data, headers_raw)
            if seq > 0:
                return seq
            self._make_way(seq, memoryview(data).nbytes + len(headers_raw or b""), deadline)

    def publish_many(
        self,
        payloads: Sequence[Buffer],
        *,
        headers: model.Headers | Sequence[model.Headers | None] | None = None,
        headers_raw: bytes | Sequence[bytes] | None = None,
        timeout: float | None = None,
    ) -> int:
        """Publish a batch, in order, with one wake-up per ring-full.

        Args:
            payloads: any number of bytes-like objects.
            headers: one for all, or one per payload.
            headers_raw: the same, already serialized.
            timeout: seconds to wait for room for all of it; None for ever.

        Returns:
            The last message's seq; of an empty batch, the last that there was.

        Raises:
            MessageTooLarge: one is too large; those before it were published, as the message says.
            Timeout: those before it were published, as the message says.
            ChannelUndeclared, InvalidArgument.
        """
        column = calls.headers_column(len(payloads), headers, headers_raw)
        writer = self._writer
        deadline = deadline_ns(timeout)
        done = 0
        try:
            while done < len(payloads):
                taken = writer.try_publish_many(payloads, done, column)
                if taken > 0:
                    done += taken
                else:
                    self._make_way(taken, calls.message_bytes(payloads, column, done), deadline)
        except ValueError as error:
            raise self._state.refusal(error, done, len(payloads)) from None
        except Timeout as error:
            raise calls.partly(error, done, len(payloads)) from None
        if writer.readers_changed:
            self._meet_readers()
        return writer.last_seq

    def _make_way(self, status: int, size: int, deadline: int | None) -> None:
        """Do what the ring asked for: tell it its readers (-1), or wait for room (0)."""
        state = self._state
        if state.ended is not None:
            raise state.ended
        if status < 0:
            self._fetch_readers(deadline if deadline is not None else far_ns())
            return
        with self._room:  # one thread waits; the others wait for it
            state.writer.wait_room(size, remaining_ns(deadline))
        if remaining_ns(deadline) == 0 and state.ended is None:
            raise calls.ring_full(state.channel)

    def _fetch_readers(self, deadline: int) -> None:
        client, state = self._client, self._state
        try:
            state.writer.install(client._call(calls.fetch_readers(state.source), deadline))
        except ConnectionLost:
            if client._closed:
                raise
        except TowpathError as error:
            raise publication_error(state, error) from None

    def _meet_readers(self) -> None:
        """A subscriber came while a message was being written, and may be asleep: let it be woken now.

        Without the daemon it cannot be met; it is when the connection is taken up again.
        """
        with contextlib.suppress(TowpathError):
            self._fetch_readers(far_ns())

    def wait_drained(self, timeout: float | None = None) -> bool:
        """Wait until every subscriber has taken all that was published. Returns False when the time is
        over.
        """
        deadline = deadline_ns(timeout)
        pause = 0.0002
        while self._state.ended is None:
            self._meet_readers_that_changed(deadline)
            if self._writer.drained():
                return True
            left = remaining_ns(deadline)
            if left == 0:
                return False
            time.sleep(pause if left == FOREVER else min(pause, left / 1e9))
            pause = min(pause * 2, 0.02)
        return False

    def _meet_readers_that_changed(self, deadline: int | None) -> None:
        """Who came, or went without taking all, since the last publish is known only to the core."""
        if self._room.acquire(blocking=False):
            try:
                is_current = self._writer.wait_room(0, 0) >= 0
            finally:
                self._room.release()
            if not is_current:
                with contextlib.suppress(Timeout, Unavailable):
                    self._fetch_readers(deadline if deadline is not None else far_ns())

    def close(self) -> None:
        """Leave the channel. What was published stays for the subscribers to take. More than once is fine."""
        with self._client._sending():
            self._client._protocol.forget_source(
                self._state, ConnectionLost("the publisher was closed", hint="")
            )

    def __enter__(self) -> Publisher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Subscription:
    """One subscription: iterate over it, or receive from it.

    Attributes:
        name: the channel's name.
    """

    def __init__(self, client: Client, state: ReaderState) -> None:
        self._client = client
        self._state = state
        self._receive = state.reader.receive
        self._buffer: deque[Message] = deque()
        self._closed = False
        self.name = state.channel

    def receive(self, timeout: float | None = None) -> Message:
        """Return the next message.

        Args:
            timeout: seconds to wait; None for ever, 0 not at all.

        Raises:
            Timeout: none came.
            ChannelUndeclared, ConnectionLost: the subscription has ended, and all before that was handed out.
        """
        if not self._buffer:
            self._buffer.extend(self._take(RECEIVE_COUNT, RECEIVE_BYTES, timeout))
            if not self._buffer:
                raise Timeout(f"no message on {self.name} in {timeout} s")
        return self._buffer.popleft()

    def receive_many(
        self, count_max: int = 256, *, bytes_max: int = 1 << 20, timeout: float | None = None
    ) -> list[Message]:
        """Return what there is, up to the bounds; waits for the first message.

        Args:
            count_max: 1 or more.
            bytes_max: payload bytes; one message may exceed it.
            timeout: seconds to wait; None for ever, 0 not at all.

        Returns:
            At least one message, or none when the time is over.

        Raises:
            ChannelUndeclared, ConnectionLost: as for ``receive``.
        """
        if self._buffer:
            return [self._buffer.popleft() for _ in range(min(count_max, len(self._buffer)))]
        return self._take(count_max, bytes_max, timeout)

    def _take(self, count_max: int, bytes_max: int, timeout: float | None) -> list[Message]:
        deadline = deadline_ns(timeout)
        state = self._state
        while True:
            if state.is_drained:
                assert state.ended is not None
                raise state.ended
            messages = self._receive(count_max, bytes_max, 0 if state.ended else remaining_ns(deadline))
            if messages:
                return messages
            with self._client._sending():
                self._client._protocol.tend(state)
            if state.is_drained:
                continue
            if remaining_ns(deadline) == 0:
                return []

    def __iter__(self) -> Iterator[Message]:
        """Yield messages until the subscription is closed; raises ChannelUndeclared when the channel goes."""
        while not self._closed:
            try:
                yield self.receive()
            except ConnectionLost:
                if self._closed:
                    return
                raise

    def close(self) -> None:
        """Leave the channel; a waiting receive ends. More than once is fine."""
        with self._client._sending():
            self._closed = True
            self._client._protocol.forget_reader(
                self._state, ConnectionLost("the subscription was closed", hint="")
            )

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Channel:
    """A channel by name: publishes through one source that is made at the first publish."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._publisher: Publisher | None = None
        self._opening = threading.Lock()
        self.name = name

    def publisher(self) -> Publisher:
        """The source behind ``publish``, made when first asked for."""
        with self._opening:
            if self._publisher is None:
                self._publisher = self._client.publisher(self.name)
            return self._publisher

    def publish(
        self, data: Buffer, *, headers: model.Headers | None = None, timeout: float | None = None
    ) -> int:
        """Publish one message; see :meth:`Publisher.publish`."""
        publisher = self._publisher or self.publisher()
        return publisher.publish(data, headers=headers, timeout=timeout)

    def publish_many(
        self,
        payloads: Sequence[Buffer],
        *,
        headers: model.Headers | Sequence[model.Headers | None] | None = None,
        timeout: float | None = None,
    ) -> int:
        """Publish a batch; see :meth:`Publisher.publish_many`."""
        publisher = self._publisher or self.publisher()
        return publisher.publish_many(payloads, headers=headers, timeout=timeout)

    def subscribe(self) -> Subscription:
        """Subscribe; see :meth:`Client.subscribe`."""
        return self._client.subscribe(self.name)

    def close(self) -> None:
        """Give the source up, if one was made."""
        with self._opening:
            publisher, self._publisher = self._publisher, None
        if publisher is not None:
            publisher.close()
