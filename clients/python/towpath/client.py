"""The synchronous client: ``towpath.connect()``.

Theory of operation
    One background thread per client reads the door's socket: answers, notices, and the loss and return of
    the daemon. Callers' threads send and wait. Messages take neither: ``publish`` writes the caller's ring
    and ``receive`` reads the publishers', in the caller's thread, and the door is asked only when somebody
    comes or goes. ``ClientProtocol`` holds all state, under one lock that is never held while waiting.

Invariants
    A Client, and all that came from it, may be used by several threads; one subscription is received from
    by one at a time. After a fork the child's handles raise; it must connect for itself.
    ``close`` ends the thread, and everything that waits.

Not here: the asyncio client (``aio``), which shares everything but the waiting.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Final, TypeVar

from towpath import addresses, calls, convert, model, wire
from towpath._message import Message
from towpath._version import __version__
from towpath.errors import (
    BindingFailed,
    Cancelled,
    ConnectionLost,
    InvalidArgument,
    MessageTooLarge,
    Timeout,
    TowpathError,
    Unavailable,
    VersionMismatch,
)
from towpath.protocol import ClientProtocol, Handler, ReaderState, SourceState, publication_error
from towpath.v1.frame_pb2 import Frame

T = TypeVar("T")
Buffer = bytes | bytearray | memoryview

CALL_TIMEOUT_S: Final = 10.0
"""How long a registry call waits for its answer, unless told otherwise."""

RECONNECT_FIRST_S: Final = 0.02
RECONNECT_MAX_S: Final = 2.0
FOREVER: Final = -1


def deadline_ns(timeout: float | None) -> int | None:
    """The point on the monotonic clock at which a timeout in seconds is over; None for never.

    Raises:
        InvalidArgument: it is negative or not a number.
    """
    if timeout is None:
        return None
    if not timeout >= 0:
        raise InvalidArgument(f"a timeout of {timeout} seconds", hint="None waits for ever, 0 does not wait")
    return time.monotonic_ns() + int(min(timeout, 1e9) * 1e9)


def remaining_ns(deadline: int | None) -> int:
    """What is left until a deadline: 0 when it is over, ``FOREVER`` when there is none."""
    return FOREVER if deadline is None else max(0, deadline - time.monotonic_ns())


def program_name(name: str) -> str:
    """What the session is called in ``towpath status``, unless the program says otherwise."""
    return name or os.path.basename(sys.argv[0] if sys.argv and sys.argv[0] else "python")


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _forget_in_child() -> None:
    for client in list(_clients):
        client._abandon()


os.register_at_fork(after_in_child=_forget_in_child)


class _Answer:
    """One call's answer, waited for by one thread."""

    __slots__ = ("_event", "_value")

    def __init__(self) -> None:
        self._event = threading.Event()
        self._value: Frame | TowpathError | None = None

    def set(self, value: Frame | TowpathError) -> None:
        self._value = value
        self._event.set()

    def wait(self, deadline: int | None) -> Frame | TowpathError | None:
        left = remaining_ns(deadline)
        self._event.wait(None if left == FOREVER else left / 1e9)
        return self._value


class Client:
    """A session with the local daemon. Made by :func:`connect`; use it as a context manager, or close it."""

    def __init__(self, url: str | None, *, timeout: float | None, name: str) -> None:
        self._url = url
        self._protocol = ClientProtocol(name=program_name(name), software=f"towpath-python/{__version__}")
        self._lock = threading.RLock()
        self._ready = threading.Condition(self._lock)
        self._sock: socket.socket | None = None
        self._failed: TowpathError | None = None
        self._closed = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._open(addresses.open_socket(url))
        self._thread = threading.Thread(target=self._run, name="towpath-client", daemon=True)
        self._thread.start()
        _clients.add(self)
        try:
            with self._lock:
                self._wait_ready(deadline_ns(timeout))
        except TowpathError:
            self.close()
            raise

    # ---- life ----

    def close(self) -> None:
        """End the session: its publishers and subscriptions are closed, and what waits is woken. More than
        once is fine.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            closed = ConnectionLost("the client was closed", hint="")
            self._protocol.close(closed)
            self._drop_connection(closed)
            self._ready.notify_all()
            os.write(self._wake_write, b"x")
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<towpath.Client session {self.session:#x}{'' if self.is_connected else ', not connected'}>"

    @property
    def is_connected(self) -> bool:
        """Whether the daemon can be asked now. Messages flow in shared memory either way."""
        return self._protocol.is_ready

    @property
    def session(self) -> int:
        """The session's id; 0 while there is no connection."""
        welcome = self._protocol.welcome
        return welcome.session if welcome is not None else 0

    @property
    def principal(self) -> str:
        """For whom the session acts: ``uid:1000``; empty while there is no connection."""
        welcome = self._protocol.welcome
        return welcome.principal if welcome is not None else ""

    # ---- registry ----

    def declare(
        self,
        name: str,
        *,
        kind: model.Kind | None = None,
        durable: bool | None = None,
        overflow: model.Overflow | None = None,
        ring_bytes: int | None = None,
    ) -> model.ChannelInfo:
        """Declare a channel, or see that it is declared alike.

        Args:
            name: levels of ``A-Z a-z 0-9 _ -`` joined by dots; 1 to 255 characters.
            kind: what the channel does; ``topic`` unless stated.
            durable: whether messages are kept on disk.
            overflow: what happens when a subscriber's ring is full; ``block`` unless stated.
            ring_bytes: bytes of each publisher's ring, a power of two from 4096 to 2**30; the largest
                message is a quarter.

        Returns:
            The channel as it is now.

        Raises:
            InvalidName, InvalidArgument, NotSupported: see the message.
            ChannelConflict: it is declared with other options than those stated.
            QuotaExceeded, LimitExceeded: too many channels.
        """
        return self._call(
            calls.declare(name, kind=kind, durable=durable, overflow=overflow, ring_bytes=ring_bytes)
        )

    def undeclare(self, name: str, *, force: bool = False) -> None:
        """Remove a channel and its bindings.

        Args:
            force: even while it is used; publishers and subscribers get ChannelUndeclared.

        Raises:
            ChannelNotFound, ChannelInUse, PermissionDenied (only its owner and admins may).
        """
        self._call(calls.undeclare(name, force=force))

    def channel_info(self, name: str) -> model.ChannelInfo:
        """Return a channel's entry in the registry. Raises ChannelNotFound."""
        return self._call(calls.channel_info(name))

    def channels(self, prefix: str = "") -> list[model.ChannelInfo]:
        """Return the channels whose names begin with ``prefix``, by name."""
        return self._call(calls.channels(prefix))

    def bind(
        self,
        channel: str,
        url: str,
        *,
        direction: model.Direction,
        options: Mapping[str, str] | None = None,
        keep: bool = False,
        timeout: float | None = CALL_TIMEOUT_S,
    ) -> model.BindingInfo:
        """Attach an adapter to a channel, and wait until the bridge has brought it up.

        Args:
            url: mechanism and place: ``fifo:/run/x``, ``pipe:vmstat 1``.
            direction: ``in`` to the channel, ``out`` of it, or ``both``.
            options: per mechanism; see the manual.
            keep: leave the binding defined even if it cannot be brought up now.

        Raises:
            BindingFailed: the mechanism refused; without ``keep`` the binding is gone again.
            BindingConflict, ChannelNotFound, InvalidArgument, PermissionDenied, Timeout.
        """
        deadline = deadline_ns(timeout)
        binding, created = self._call(
            calls.create_binding(channel, url, direction=direction, options=options), deadline
        )
        settled = self._call(calls.get_binding(binding.id, wait_settled=True), deadline)
        if settled.report.state == "failed" and not keep:
            if created:
                self._call(calls.delete_binding(settled.id), deadline)
            raise binding_failure(settled)
        return settled

    def unbind(self, binding: int | None = None, *, channel: str = "", url: str = "") -> model.BindingInfo:
        """Remove a binding, named by its id or by channel and URL. Raises BindingNotFound,
        PermissionDenied.
        """
        return self._call(calls.delete_binding(binding, channel=channel, url=url))

    def bindings(self, channel: str = "") -> list[model.BindingInfo]:
        """Return all bindings, or those of one channel."""
        return self._call(calls.bindings(channel))

    def status(self) -> model.Status:
        """Return what the daemon says of itself."""
        return self._call(calls.status())

    def watch(self) -> Watch:
        """Follow the registry: first the state as it stands, then every change. Close it when done."""
        return Watch(self)

    # ---- messages ----

    def channel(self, name: str) -> Channel:
        """Return a handle for publishing and subscribing by name; asks nobody until it is used."""
        return Channel(self, name)

    def publisher(self, name: str, *, origin: str = "") -> Publisher:
        """Become a publisher of a channel: a source of its own, with a ring of its own.

        Raises:
            ChannelNotFound, LimitExceeded (publishers per channel), QuotaExceeded.
        """
        deadline = deadline_ns(CALL_TIMEOUT_S)
        info = self._call(calls.channel_info(name), deadline)
        with self._lock:
            self._ensure_ids(deadline)
            state, call = self._protocol.new_source(name, origin, info.ring_bytes)
        try:
            cell = self._call(call, deadline, (state.ring,))
            with self._lock:
                self._protocol.source_attached(state, cell)
        except BaseException:
            with self._sending():
                self._protocol.forget_source(state, ConnectionLost("it was never attached"))
            raise
        return Publisher(self, state)

    def subscribe(self, name: str, *, exclude_origin: str = "") -> Subscription:
        """Subscribe: nothing published after this returned is missed.

        Raises:
            ChannelNotFound, LimitExceeded (subscribers per channel), QuotaExceeded.
        """
        deadline = deadline_ns(CALL_TIMEOUT_S)
        with self._lock:
            self._ensure_ids(deadline)
            state, call = self._protocol.new_reader(name, exclude_origin, wants_doorbell=False)
        try:
            self._call(call, deadline, (state.page,))
        except BaseException:
            with self._sending():
                self._protocol.forget_reader(state, ConnectionLost("it was never attached"))
            raise
        return Subscription(self, state)

    # ---- calling ----

    def _call(
        self,
        call: calls.Call[T],
        deadline: int | None = None,
        descriptors: tuple[wire.Descriptor, ...] = (),
    ) -> T:
        if deadline is None:
            deadline = deadline_ns(CALL_TIMEOUT_S)
        answer = _Answer()
        with self._lock:
            self._wait_ready(deadline)
            with self._sending():
                call_id = self._protocol.call(call, answer.set, descriptors)
        value = answer.wait(deadline)
        if value is None:
            with self._sending():
                self._protocol.cancel(call_id)
            raise Timeout("the daemon did not answer in time")
        if isinstance(value, TowpathError):
            raise value
        return call.result(value)

    def _ensure_ids(self, deadline: int | None) -> None:
        while self._protocol.needs_ids:
            self._lock.release()
            try:
                first_id, count = self._call(calls.allocate_ids(1024), deadline)
            finally:
                self._lock.acquire()
            if self._protocol.needs_ids:
                self._protocol.add_ids(first_id, count)

    def _wait_ready(self, deadline: int | None) -> None:
        """Wait, with the lock held, until there is a connection."""
        while not self._protocol.is_ready:
            if self._closed:
                raise ConnectionLost("the client is closed", hint="")
            if self._failed is not None:
                raise self._failed
            left = remaining_ns(deadline)
            if left == 0 or not self._ready.wait(None if left == FOREVER else left / 1e9):
                raise Unavailable("the daemon does not answer")
        if self._closed:
            raise ConnectionLost("the client is closed", hint="")

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        """Hold the lock, then send what the protocol queued meanwhile."""
        with self._lock:
            yield
            self._flush()

    def _flush(self) -> None:
        for frame, descriptors in self._protocol.take_outgoing():
            if self._sock is None:
                return
            if descriptors:
                frame.descriptors = len(descriptors)
            data = memoryview(wire.encode(frame))
            try:
                while data:
                    sent = wire.send_once(self._sock, data, descriptors)
                    data, descriptors = data[sent:], ()
            except ConnectionLost:
                with contextlib.suppress(
                    OSError
                ):  # the thread sees the end of the connection and takes it from there
                    self._sock.shutdown(socket.SHUT_RDWR)
                return

    # ---- the thread ----

    def _open(self, sock: socket.socket) -> None:
        with self._lock:
            self._sock = sock
            self._decoder = wire.FrameDecoder(wire.RESPONSE_BYTES_MAX)
            with self._sending():
                self._protocol.connection_made()

    def _drop_connection(self, error: TowpathError | None) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._protocol.connection_lost(error)

    def _run(self) -> None:
        try:
            while not self._closed:
                error = self._serve_connection()
                with self._lock:
                    self._drop_connection(error)
                    if isinstance(error, VersionMismatch):
                        self._failed = error
                        self._ready.notify_all()
                        break
                self._reconnect()
        finally:
            with self._lock:
                self._closed = True
                os.close(self._wake_read)
                os.close(self._wake_write)

    def _serve_connection(self) -> TowpathError | None:
        """Read one connection to its end; return why it ended."""
        sock = self._sock
        if sock is None:
            return None
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        while not self._closed:
            deadline = self._protocol.deadline_ns
            left = remaining_ns(deadline)
            poller.poll(None if left == FOREVER else left / 1e6)
            if self._closed:
                break
            try:
                self._take_in(sock)
            except TowpathError as error:
                return error
        return None

    def _take_in(self, sock: socket.socket) -> None:
        try:
            data, descriptors = wire.receive(sock)
        except BlockingIOError:
            data, descriptors = None, []
        now = time.monotonic_ns()
        with self._sending():
            if data is not None:
                if not data:
                    raise ConnectionLost("the daemon closed the connection")
                was_ready = self._protocol.is_ready
                for frame, owned in self._decoder.feed(data, descriptors):
                    self._protocol.receive(frame, owned, now)
                if self._protocol.is_ready and not was_ready:
                    self._ready.notify_all()
            self._protocol.expire(now)

    def _reconnect(self) -> None:
        pause = RECONNECT_FIRST_S
        while not self._closed:
            try:
                self._open(addresses.open_socket(self._url))
                return
            except Unavailable:
                poller = select.poll()
                poller.register(self._wake_read, select.POLLIN)
                poller.poll(pause * random.uniform(500, 1000))
                pause = min(pause * 2, RECONNECT_MAX_S)

    def _abandon(self) -> None:
        """In a forked child: this client is the parent's."""
        self._closed = True
        self._lock = threading.RLock()
        self._ready = threading.Condition(self._lock)
        self._sock = None
        self._protocol.welcome = None


def binding_failure(binding: model.BindingInfo) -> TowpathError:
    """What ``bind`` raises for a binding that could not be brought up."""
    error = binding.report.last_error
    if error is not None:
        return BindingFailed(f"{binding.url}: {error.message}", hint=error.hint)
    return BindingFailed(f"{binding.url}: {binding.report.detail or 'it could not be brought up'}")


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
            self._fetch_readers(deadline if deadline is not None else _far())
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
            self._fetch_readers(_far())

    def wait_drained(self, timeout: float | None = None) -> bool:
        """Wait until every subscriber has taken all that was published. Returns False when the time is
        over.
        """
        deadline = deadline_ns(timeout)
        pause = 0.0002
        while self._state.ended is None and not self._writer.drained():
            left = remaining_ns(deadline)
            if left == 0:
                return False
            time.sleep(pause if left == FOREVER else min(pause, left / 1e9))
            pause = min(pause * 2, 0.02)
        return self._state.ended is None

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
            self._buffer.extend(self._take(256, 1 << 20, timeout))
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


class Watch:
    """The registry's changes, as an iterator; survives reconnections, after which it says ``reset``."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._events: deque[model.WatchEvent | TowpathError] = deque()
        self._arrived = threading.Condition()
        self._call_id = 0
        self._start(deadline_ns(CALL_TIMEOUT_S))

    def _start(self, deadline: int | None) -> None:
        with self._client._lock:
            self._client._wait_ready(deadline)
            with self._client._sending():
                self._call_id = self._client._protocol.watch(self._handle)

    def _handle(self, answer: Frame | TowpathError) -> None:
        item: model.WatchEvent | TowpathError
        if isinstance(answer, TowpathError):
            item = answer
        elif answer.WhichOneof("body") == "error":
            item = convert.error_from_proto(answer.error)
        elif answer.WhichOneof("body") == "watch_response":
            item = convert.watch_event_from_proto(answer.watch_response)
        else:
            item = Cancelled("the watch ended")
        with self._arrived:
            self._events.append(item)
            self._arrived.notify()

    def receive(self, timeout: float | None = None) -> model.WatchEvent:
        """Return the next change. Raises Timeout, or ConnectionLost when the client is closed."""
        deadline = deadline_ns(timeout)
        with self._arrived:
            while not self._events:
                left = remaining_ns(deadline)
                if left == 0 or not self._arrived.wait(None if left == FOREVER else left / 1e9):
                    raise Timeout("nothing changed")
            item = self._events.popleft()
        if isinstance(item, ConnectionLost) and not self._client._closed:
            self._start(deadline)
            return model.WatchEvent("reset", 0)
        if isinstance(item, TowpathError):
            raise item
        return item

    def __iter__(self) -> Iterator[model.WatchEvent]:
        while True:
            try:
                yield self.receive()
            except (ConnectionLost, Cancelled):
                return

    def close(self) -> None:
        """Stop watching; an iteration ends."""
        with self._client._sending():
            self._client._protocol.cancel(self._call_id)
        self._handle(Cancelled("the watch was closed"))


def _far() -> int:
    return time.monotonic_ns() + 10**18


def connect(url: str | None = None, *, timeout: float | None = 5.0, name: str = "") -> Client:
    """Connect to the local daemon.

    Args:
        url: None searches ``$TOWPATH_SOCKET``, ``$XDG_RUNTIME_DIR/towpath/``, ``/run/towpath/`` and
            ``/tmp/towpath-UID/``; otherwise a path or ``unix:/path``.
        timeout: seconds to wait for the daemon's welcome.
        name: what ``towpath status`` calls this session; the program's name unless given.

    Returns:
        A connected client.

    Raises:
        Unavailable: no daemon answers.
        VersionMismatch: it speaks another protocol.
    """
    return Client(url, timeout=timeout, name=name)


__all__ = [
    "Channel",
    "Client",
    "Handler",
    "MessageTooLarge",
    "Publisher",
    "Subscription",
    "Watch",
    "connect",
]
