"""Publishing and subscribing, waiting on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from towpath import calls, convert, model
from towpath._message import Message
from towpath.errors import ConnectionLost, Timeout, TowpathError, Unavailable
from towpath.protocol import ReaderState, SourceState, publication_error
from towpath.waiting import FOREVER, RECEIVE_BYTES, RECEIVE_COUNT, Buffer, deadline_ns, remaining_ns

if TYPE_CHECKING:
    from towpath.aio.client import AsyncClient


class AsyncPublisher:
    """One source: this program's presence as a writer on one channel. Attributes as for
    :class:`towpath.Publisher`.
    """

    def __init__(self, client: AsyncClient, state: SourceState) -> None:
        self._client = client
        self._state = state
        self._writer = state.writer
        self._turn = asyncio.Lock()
        self.source = state.source
        self.channel = state.channel
        self.message_bytes_max = state.writer.message_bytes_max

    async def publish(
        self,
        data: Buffer,
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
    ) -> int:
        """Publish one message; see :meth:`towpath.Publisher.publish`."""
        if headers is not None:
            headers_raw = convert.encode_headers(headers)
        raw = headers_raw or None
        try:
            seq = 0 if self._turn.locked() else self._writer.try_publish(data, raw)
            if seq <= 0:
                seq = await self._publish_waiting(data, raw, deadline_ns(timeout))
        except ValueError as error:
            raise self._state.refusal(error) from None
        if self._writer.readers_changed:
            await self._meet_readers()
        return seq

    async def _publish_waiting(self, data: Buffer, raw: bytes | None, deadline: int | None) -> int:
        async with self._turn:
            while True:
                seq = self._writer.try_publish(data, raw)
                if seq > 0:
                    return seq
                await self._make_way(seq, memoryview(data).nbytes + len(raw or b""), deadline)

    async def publish_many(
        self,
        payloads: Sequence[Buffer],
        *,
        headers: model.Headers | Sequence[model.Headers | None] | None = None,
        headers_raw: bytes | Sequence[bytes] | None = None,
        timeout: float | None = None,
    ) -> int:
        """Publish a batch; see :meth:`towpath.Publisher.publish_many`. Batches of several tasks do not
        mix.
        """
        column = calls.headers_column(len(payloads), headers, headers_raw)
        deadline = deadline_ns(timeout)
        done = 0
        try:
            async with self._turn:
                while done < len(payloads):
                    taken = self._writer.try_publish_many(payloads, done, column)
                    if taken > 0:
                        done += taken
                    else:
                        await self._make_way(taken, calls.message_bytes(payloads, column, done), deadline)
                last = self._writer.last_seq
        except ValueError as error:
            raise self._state.refusal(error, done, len(payloads)) from None
        except Timeout as error:
            raise calls.partly(error, done, len(payloads)) from None
        if self._writer.readers_changed:
            await self._meet_readers()
        return last

    async def _make_way(self, status: int, size: int, deadline: int | None) -> None:
        """Do what the ring asked for: tell it its readers (-1), or wait for room (0)."""
        if self._state.ended is not None:
            raise self._state.ended
        if status < 0:
            await self._fetch_readers(deadline)
            return
        await self._client._wait_room(self._state, size, deadline)
        if remaining_ns(deadline) == 0 and self._state.ended is None:
            raise calls.ring_full(self.channel)

    async def _fetch_readers(self, deadline: int | None) -> None:
        client, state = self._client, self._state
        try:
            state.writer.install(await client._call(calls.fetch_readers(state.source), deadline))
        except ConnectionLost:
            if client._closed:
                raise
        except TowpathError as error:
            raise publication_error(state, error) from None

    async def _meet_readers(self) -> None:
        """A subscriber came while a message was being written, and may be asleep: let it be woken now."""
        with contextlib.suppress(TowpathError):
            await self._fetch_readers(None)

    async def wait_drained(self, timeout: float | None = None) -> bool:
        """Wait until every subscriber has taken all that was published. Returns False when the time is
        over.
        """
        deadline = deadline_ns(timeout)
        pause = 0.0002
        while self._state.ended is None:
            await self._meet_readers_that_changed(deadline)
            if self._writer.drained():
                return True
            left = remaining_ns(deadline)
            if left == 0:
                return False
            await asyncio.sleep(pause if left == FOREVER else min(pause, left / 1e9))
            pause = min(pause * 2, 0.02)
        return False

    async def _meet_readers_that_changed(self, deadline: int | None) -> None:
        """Who came, or went without taking all, since the last publish is known only to the core."""
        if not self._turn.locked() and self._writer.wait_room(0, 0) < 0:
            with contextlib.suppress(Timeout, Unavailable):
                await self._fetch_readers(deadline)

    async def close(self) -> None:
        """Leave the channel. What was published stays for the subscribers to take. More than once is fine."""
        self._client._protocol.forget_source(self._state, ConnectionLost("the publisher was closed", hint=""))
        self._client._flush()

    async def __aenter__(self) -> AsyncPublisher:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncSubscription:
    """One subscription: ``async for`` over it, or receive from it; by one task at a time."""

    def __init__(self, client: AsyncClient, state: ReaderState) -> None:
        self._client = client
        self._state = state
        self._buffer: deque[Message] = deque()
        self._closed = False
        self.name = state.channel

    async def receive(self, timeout: float | None = None) -> Message:
        """Return the next message; see :meth:`towpath.Subscription.receive`."""
        if not self._buffer:
            self._buffer.extend(await self._take(RECEIVE_COUNT, RECEIVE_BYTES, timeout))
            if not self._buffer:
                raise Timeout(f"no message on {self.name} in {timeout} s")
        return self._buffer.popleft()

    async def receive_many(
        self, count_max: int = 256, *, bytes_max: int = 1 << 20, timeout: float | None = None
    ) -> list[Message]:
        """Return what there is, up to the bounds; see :meth:`towpath.Subscription.receive_many`."""
        if self._buffer:
            return [self._buffer.popleft() for _ in range(min(count_max, len(self._buffer)))]
        return await self._take(count_max, bytes_max, timeout)

    async def _take(self, count_max: int, bytes_max: int, timeout: float | None) -> list[Message]:
        deadline = deadline_ns(timeout)
        state = self._state
        while True:
            if state.is_drained:
                assert state.ended is not None
                raise state.ended
            messages = state.reader.receive(count_max, bytes_max, 0)
            if messages:
                return messages
            self._client._protocol.tend(state)
            self._client._flush()
            if state.ended is not None:
                continue
            if remaining_ns(deadline) == 0:
                return []
            await self._client._sleep(state, deadline)

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Yield messages until the subscription is closed; raises ChannelUndeclared when the channel goes."""
        while not self._closed:
            try:
                message = await self.receive()
            except ConnectionLost:
                if self._closed:
                    return
                raise
            yield message

    async def close(self) -> None:
        """Leave the channel; a waiting receive ends. More than once is fine."""
        self._closed = True
        self._client._protocol.forget_reader(
            self._state, ConnectionLost("the subscription was closed", hint="")
        )
        self._client._flush()

    async def __aenter__(self) -> AsyncSubscription:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class AsyncChannel:
    """A channel by name: publishes through one source that is made at the first publish."""

    def __init__(self, client: AsyncClient, name: str) -> None:
        self._client = client
        self._publisher: AsyncPublisher | None = None
        self._opening = asyncio.Lock()
        self.name = name

    async def publisher(self) -> AsyncPublisher:
        """The source behind ``publish``, made when first asked for."""
        async with self._opening:
            if self._publisher is None:
                self._publisher = await self._client.publisher(self.name)
            return self._publisher

    async def publish(
        self, data: Buffer, *, headers: model.Headers | None = None, timeout: float | None = None
    ) -> int:
        """Publish one message; see :meth:`towpath.Publisher.publish`."""
        publisher = self._publisher or await self.publisher()
        return await publisher.publish(data, headers=headers, timeout=timeout)

    async def publish_many(
        self,
        payloads: Sequence[Buffer],
        *,
        headers: model.Headers | Sequence[model.Headers | None] | None = None,
        timeout: float | None = None,
    ) -> int:
        """Publish a batch; see :meth:`towpath.Publisher.publish_many`."""
        publisher = self._publisher or await self.publisher()
        return await publisher.publish_many(payloads, headers=headers, timeout=timeout)

    async def subscribe(self) -> AsyncSubscription:
        """Subscribe; see :meth:`towpath.Client.subscribe`."""
        return await self._client.subscribe(self.name)

    async def close(self) -> None:
        """Give the source up, if one was made."""
        async with self._opening:
            publisher, self._publisher = self._publisher, None
        if publisher is not None:
            await publisher.close()
