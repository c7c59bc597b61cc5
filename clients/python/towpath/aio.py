"""The asyncio client: ``await towpath.aio.connect()``. The same as ``client``, waiting on an event loop.

Theory of operation
    The door's socket and the session's doorbell are watched by the loop. A subscription that finds its
    rings empty says so in its control page ("asleep, ring the doorbell"), looks again, and awaits a
    future; the next publisher rings. A publisher that finds a ring full waits for room in a thread of the
    client's, in turns, since a full ring is the exception.

Invariants
    Nothing here blocks the loop. All calls are made from the loop that ``connect`` ran on.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, TypeVar

from towpath import addresses, calls, convert, model, wire
from towpath._message import Message
from towpath._version import __version__
from towpath.client import (
    CALL_TIMEOUT_S,
    FOREVER,
    RECONNECT_FIRST_S,
    RECONNECT_MAX_S,
    Buffer,
    binding_failure,
    deadline_ns,
    program_name,
    remaining_ns,
)
from towpath.errors import (
    Cancelled,
    ConnectionLost,
    Timeout,
    TowpathError,
    Unavailable,
    VersionMismatch,
)
from towpath.protocol import ClientProtocol, ReaderState, SourceState, publication_error
from towpath.transport import FrameTransport
from towpath.v1.frame_pb2 import Frame

T = TypeVar("T")

OUTBOX_BYTES_MAX: Final = 16 << 20
ROOM_THREADS_MAX: Final = 32
ROOM_TURN_NS: Final = 250_000_000
"""How long a full ring may keep one of the room threads before the next one has its turn."""


class AsyncClient:
    """A session with the local daemon. Made by :func:`connect`; use it as an asynchronous context manager,
    or close it.
    """

    def __init__(self, url: str | None, name: str) -> None:
        self._url = url
        self._loop = asyncio.get_running_loop()
        self._bell, bell_sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._bell.setblocking(False)
        self._protocol = ClientProtocol(
            name=program_name(name),
            software=f"towpath-python/{__version__} asyncio",
            doorbell=wire.Descriptor(bell_sender.detach()),
        )
        self._transport: FrameTransport | None = None
        self._asleep: dict[ReaderState, asyncio.Event] = {}
        self._ready = asyncio.Event()
        self._failed: TowpathError | None = None
        self._closed = False
        self._reconnecting: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._room: ThreadPoolExecutor | None = None
        self._loop.add_reader(self._bell, self._rung)

    # ---- life ----

    async def close(self) -> None:
        """End the session: its publishers and subscriptions are closed, and what waits is woken. More than
        once is fine.
        """
        if self._closed:
            return
        self._closed = True
        why = ConnectionLost("the client was closed", hint="")
        self._protocol.close(why)
        self._protocol.connection_lost(why)
        self._ready.set()
        self._loop.remove_reader(self._bell)
        self._bell.close()
        if self._expiry is not None:
            self._expiry.cancel()
        if self._transport is not None:
            self._transport.close()
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reconnecting
        if self._room is not None:
            self._room.shutdown(wait=False)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def is_connected(self) -> bool:
        """Whether the daemon can be asked now. Messages flow in shared memory either way."""
        return self._protocol.is_ready

    @property
    def session(self) -> int:
        """The session's id; 0 while there is no connection."""
        welcome = self._protocol.welcome
        return welcome.session if welcome is not None else 0

    def acting_for(self, principal: str) -> Registry:
        """The registry as somebody else may use it; honoured only from gateways that the daemon started."""
        return Registry(self, principal)

    # ---- registry; documented at towpath.Client ----

    async def declare(
        self,
        name: str,
        *,
        kind: model.Kind | None = None,
        durable: bool | None = None,
        overflow: model.Overflow | None = None,
        ring_bytes: int | None = None,
    ) -> model.ChannelInfo:
        return await Registry(self).declare(
            name, kind=kind, durable=durable, overflow=overflow, ring_bytes=ring_bytes
        )

    async def undeclare(self, name: str, *, force: bool = False) -> None:
        await Registry(self).undeclare(name, force=force)

    async def channel_info(self, name: str) -> model.ChannelInfo:
        return await Registry(self).channel_info(name)

    async def channels(self, prefix: str = "") -> list[model.ChannelInfo]:
        return await Registry(self).channels(prefix)

    async def bind(
        self,
        channel: str,
        url: str,
        *,
        direction: model.Direction,
        options: Mapping[str, str] | None = None,
        keep: bool = False,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> model.BindingInfo:
        return await Registry(self).bind(
            channel, url, direction=direction, options=options, keep=keep, timeout=timeout
        )

    async def unbind(
        self, binding: int | None = None, *, channel: str = "", url: str = ""
    ) -> model.BindingInfo:
        return await Registry(self).unbind(binding, channel=channel, url=url)

    async def bindings(self, channel: str = "") -> list[model.BindingInfo]:
        return await Registry(self).bindings(channel)

    async def status(self) -> model.Status:
        return await Registry(self).status()

    async def call(self, call: calls.Call[T], *, timeout: float | None = CALL_TIMEOUT_S) -> T:
        """Make any call of the contract; see :meth:`Registry.call`."""
        return await Registry(self).call(call, timeout=timeout)

    def watch(self) -> AsyncWatch:
        return AsyncWatch(self)

    async def report_bindings(self, reports: Mapping[int, model.BindingReport]) -> None:
        """From the bridge: how its bindings fare."""
        await self._call(calls.report_bindings(reports))

    async def report_gateway(
        self, endpoints: Mapping[str, str], counters: Mapping[str, int], detail: str = ""
    ) -> None:
        """From a gateway: where it listens and what it counted."""
        await self._call(calls.report_gateway(endpoints, counters, detail))

    # ---- messages ----

    def channel(self, name: str) -> AsyncChannel:
        """Return a handle for publishing and subscribing by name; asks nobody until it is used."""
        return AsyncChannel(self, name)

    async def publisher(self, name: str, *, origin: str = "") -> AsyncPublisher:
        """Become a publisher of a channel; see :meth:`towpath.Client.publisher`."""
        info = await self.channel_info(name)
        await self._ensure_ids()
        state, call = self._protocol.new_source(name, origin, info.ring_bytes)
        try:
            cell = await self._call(call, descriptors=(state.ring,))
            self._protocol.source_attached(state, cell)
        except BaseException:
            self._protocol.forget_source(state, ConnectionLost("it was never attached"))
            self._flush()
            raise
        return AsyncPublisher(self, state)

    async def subscribe(self, name: str, *, exclude_origin: str = "") -> AsyncSubscription:
        """Subscribe: nothing published after this returned is missed; see
        :meth:`towpath.Client.subscribe`.
        """
        await self._ensure_ids()
        state, call = self._protocol.new_reader(name, exclude_origin, wants_doorbell=True)
        state.wake = lambda: self._wake(state)
        try:
            await self._call(call, descriptors=(state.page,))
        except BaseException:
            self._protocol.forget_reader(state, ConnectionLost("it was never attached"))
            self._flush()
            raise
        return AsyncSubscription(self, state)

    # ---- calling ----

    async def _call(
        self,
        call: calls.Call[T],
        deadline: int | None = None,
        descriptors: tuple[wire.Descriptor, ...] = (),
    ) -> T:
        deadline = deadline_ns(CALL_TIMEOUT_S) if deadline is None else deadline
        await self._wait_ready(deadline)
        answered: asyncio.Future[Frame | TowpathError] = self._loop.create_future()

        def handle(answer: Frame | TowpathError) -> None:
            if not answered.done():
                answered.set_result(answer)

        call_id = self._protocol.call(call, handle, descriptors)
        self._flush()
        try:
            async with asyncio.timeout(_seconds(deadline)):
                value = await answered
        except TimeoutError:
            raise Timeout("the daemon did not answer in time") from None
        finally:
            if not answered.done() or answered.cancelled():
                self._protocol.cancel(call_id)
                self._flush()
        if isinstance(value, TowpathError):
            raise value
        return call.result(value)

    async def _ensure_ids(self) -> None:
        await self._wait_ready(deadline_ns(CALL_TIMEOUT_S))
        while self._protocol.needs_ids:
            first_id, count = await self._call(calls.allocate_ids(1024))
            if self._protocol.needs_ids:
                self._protocol.add_ids(first_id, count)

    async def _wait_ready(self, deadline: int | None) -> None:
        if not self._ready.is_set():
            try:
                async with asyncio.timeout(_seconds(deadline)):
                    await self._ready.wait()
            except TimeoutError:
                raise Unavailable("the daemon does not answer") from None
        if self._closed:
            raise ConnectionLost("the client is closed", hint="")
        if self._failed is not None:
            raise self._failed

    def _flush(self) -> None:
        for frame, descriptors in self._protocol.take_outgoing():
            if self._transport is not None:
                self._transport.send(frame, descriptors)

    # ---- the connection ----

    def _open(self, sock: socket.socket) -> None:
        self._transport = FrameTransport(
            sock,
            frame_bytes_max=wire.RESPONSE_BYTES_MAX,
            outbox_bytes_max=OUTBOX_BYTES_MAX,
            on_frame=self._frame,
            on_closed=self._lost,
        )
        self._protocol.connection_made()
        self._flush()

    def _frame(self, frame: Frame, descriptors: list[wire.Descriptor]) -> None:
        self._protocol.receive(frame, descriptors, time.monotonic_ns())
        self._flush()
        if self._protocol.is_ready and not self._ready.is_set():
            self._ready.set()
            self._schedule_expiry()

    def _schedule_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        deadline = self._protocol.deadline_ns
        if deadline is not None:
            self._expiry = self._loop.call_later(remaining_ns(deadline) / 1e9 + 0.001, self._expire)

    def _expire(self) -> None:
        if not self._closed:
            self._protocol.expire(time.monotonic_ns())
            self._flush()

    def _lost(self, error: TowpathError | None) -> None:
        if self._closed:
            return
        self._transport = None
        self._ready.clear()
        self._protocol.connection_lost(error)
        if isinstance(error, VersionMismatch):
            self._failed = error
            self._ready.set()
            return
        self._reconnecting = self._loop.create_task(self._reconnect(), name="towpath-reconnect")

    async def _reconnect(self) -> None:
        pause = RECONNECT_FIRST_S
        while not self._closed:
            try:
                self._open(addresses.open_socket(self._url))
                return
            except Unavailable:
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, RECONNECT_MAX_S)

    # ---- waking and waiting ----

    def _rung(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)
        for state in list(self._asleep):
            # A sleep is rung for once: whoever finds nothing (the ring may be on its way to us) must arm again.
            if state.id in self._protocol.readers and (state.reader.pending_bytes or state.reader.arm()):
                self._wake(state)

    def _wake(self, state: ReaderState) -> None:
        event = self._asleep.get(state)
        if event is not None:
            event.set()

    async def _sleep(self, state: ReaderState, deadline: int | None) -> None:
        """Wait until a publisher rings, the core has news, or the time is over."""
        event = self._asleep[state] = asyncio.Event()
        try:
            if not state.reader.arm():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_seconds(deadline)):
                        await event.wait()
        finally:
            self._asleep.pop(state, None)
            if state.id in self._protocol.readers:
                state.reader.disarm()

    async def _wait_room(self, state: SourceState, size: int, deadline: int | None) -> None:
        if self._room is None:
            self._room = ThreadPoolExecutor(ROOM_THREADS_MAX, "towpath-room")
        left = remaining_ns(deadline)
        turn = ROOM_TURN_NS if left == FOREVER else min(left, ROOM_TURN_NS)
        try:
            await self._loop.run_in_executor(self._room, state.writer.wait_room, size, turn)
        except asyncio.CancelledError:
            state.writer.notify()
            raise


class Registry:
    """The registry's calls, for the session's own principal or, from a gateway, for another; documented at
    towpath.Client.
    """

    def __init__(self, client: AsyncClient, principal: str = "") -> None:
        self._client = client
        self._principal = principal

    async def _call(self, call: calls.Call[T], deadline: int | None = None) -> T:
        if self._principal:
            call = calls.Call(call.request, call.body, call.response, call.decode, self._principal)
        return await self._client._call(call, deadline)

    async def call(self, call: calls.Call[T], *, timeout: float | None = CALL_TIMEOUT_S) -> T:
        """Make any call of the contract: for gateways, which pass on what they are asked.

        Args:
            call: the request, and how its response is decoded.
            timeout: seconds to wait for the response.

        Raises:
            TowpathError: what the core refused with.
            Timeout: it did not answer in time.
            ConnectionLost: the connection broke before the answer came.
        """
        return await self._call(call, deadline_ns(timeout))

    async def declare(
        self,
        name: str,
        *,
        kind: model.Kind | None = None,
        durable: bool | None = None,
        overflow: model.Overflow | None = None,
        ring_bytes: int | None = None,
    ) -> model.ChannelInfo:
        return await self._call(
            calls.declare(name, kind=kind, durable=durable, overflow=overflow, ring_bytes=ring_bytes)
        )

    async def undeclare(self, name: str, *, force: bool = False) -> None:
        await self._call(calls.undeclare(name, force=force))

    async def channel_info(self, name: str) -> model.ChannelInfo:
        return await self._call(calls.channel_info(name))

    async def channels(self, prefix: str = "") -> list[model.ChannelInfo]:
        return await self._call(calls.channels(prefix))

    async def bind(
        self,
        channel: str,
        url: str,
        *,
        direction: model.Direction,
        options: Mapping[str, str] | None = None,
        keep: bool = False,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> model.BindingInfo:
        deadline = deadline_ns(timeout)
        binding, created = await self.create_binding(
            channel, url, direction=direction, options=options, deadline=deadline
        )
        settled = await self._call(calls.get_binding(binding.id, wait_settled=True), deadline)
        if settled.report.state == "failed" and not keep:
            if created:
                await self._call(calls.delete_binding(settled.id), deadline)
            raise binding_failure(settled)
        return settled

    async def create_binding(
        self,
        channel: str,
        url: str,
        *,
        direction: model.Direction,
        options: Mapping[str, str] | None = None,
        deadline: int | None = None,
    ) -> tuple[model.BindingInfo, bool]:
        """Define a binding without waiting for the bridge; the second value says whether it is new."""
        return await self._call(
            calls.create_binding(channel, url, direction=direction, options=options), deadline
        )

    async def unbind(
        self, binding: int | None = None, *, channel: str = "", url: str = ""
    ) -> model.BindingInfo:
        return await self._call(calls.delete_binding(binding, channel=channel, url=url))

    async def binding(
        self, binding: int, *, wait_settled: bool = False, timeout: float | None = CALL_TIMEOUT_S
    ) -> model.BindingInfo:
        """Return one binding; with ``wait_settled`` as soon as the bridge has brought it up or failed to."""
        return await self._call(calls.get_binding(binding, wait_settled=wait_settled), deadline_ns(timeout))

    async def bindings(self, channel: str = "") -> list[model.BindingInfo]:
        return await self._call(calls.bindings(channel))

    async def status(self) -> model.Status:
        return await self._call(calls.status())


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
        while self._state.ended is None and not self._writer.drained():
            left = remaining_ns(deadline)
            if left == 0:
                return False
            await asyncio.sleep(pause if left == FOREVER else min(pause, left / 1e9))
            pause = min(pause * 2, 0.02)
        return self._state.ended is None

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
            self._buffer.extend(await self._take(256, 1 << 20, timeout))
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


class AsyncWatch:
    """The registry's changes, as an asynchronous iterator; survives reconnections, after which it says
    ``reset``.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._events: asyncio.Queue[model.WatchEvent | TowpathError] = asyncio.Queue()
        self._call_id = 0
        self._started = False

    def _handle(self, answer: Frame | TowpathError) -> None:
        if isinstance(answer, TowpathError):
            self._events.put_nowait(answer)
        elif answer.WhichOneof("body") == "error":
            self._events.put_nowait(convert.error_from_proto(answer.error))
        elif answer.WhichOneof("body") == "watch_response":
            self._events.put_nowait(convert.watch_event_from_proto(answer.watch_response))
        else:
            self._events.put_nowait(Cancelled("the watch ended"))

    async def _start(self) -> None:
        await self._client._wait_ready(None)
        self._call_id = self._client._protocol.watch(self._handle)
        self._client._flush()
        self._started = True

    async def receive(self) -> model.WatchEvent:
        """Return the next change. Raises ConnectionLost when the client is closed."""
        if not self._started:
            await self._start()
        item = await self._events.get()
        if isinstance(item, ConnectionLost) and not self._client._closed:
            self._started = False
            return model.WatchEvent("reset", 0)
        if isinstance(item, TowpathError):
            raise item
        return item

    async def __aiter__(self) -> AsyncIterator[model.WatchEvent]:
        while True:
            try:
                event = await self.receive()
            except (ConnectionLost, Cancelled):
                return
            yield event

    async def close(self) -> None:
        """Stop watching; an iteration ends."""
        self._client._protocol.cancel(self._call_id)
        self._client._flush()
        self._events.put_nowait(Cancelled("the watch was closed"))


def _seconds(deadline: int | None) -> float | None:
    left = remaining_ns(deadline)
    return None if left == FOREVER else left / 1e9


async def connect(url: str | None = None, *, timeout: float | None = 5.0, name: str = "") -> AsyncClient:
    """Connect to the local daemon; arguments and errors as for :func:`towpath.connect`."""
    client = AsyncClient(url, name)
    try:
        client._open(addresses.open_socket(url))
        await client._wait_ready(deadline_ns(timeout))
    except BaseException:
        await client.close()
        raise
    return client
