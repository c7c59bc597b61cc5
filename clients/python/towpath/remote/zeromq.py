"""The ZeroMQ carrier: a DEALER socket that speaks ``Frame`` with the gateway's ``rpc`` endpoint.

Theory of operation
    One socket, with a context of its own, is one connection: libzmq's reconnecting is switched off,
    because it would not tell what was lost. ``ClientProtocol`` keeps the calls and streams; here are the
    socket on the event loop, and the waiting. A monitor tells of the connection's end; pings (ZMTP
    heartbeats) find a gateway that fell silent.

    Subscriptions work by credit (``credit``): the gateway sends no more messages than it was given credit
    for, and it gets more when half of the window is free. The window is such that messages of the channel's
    largest size take ``WINDOW_BYTES`` at most.

    The socket's descriptor stirs when its state *may* have changed, and stays silent about changes that a
    call took in; so its events are asked again after each burst of receives or sends.

What the gateway bounds, and how this keeps within it
    A peer may have 64 unary calls open (``rpc_calls_per_peer_max``): ``PUBLISHES_MAX`` and ``CALLS_MAX``
    together are fewer, and who comes beyond waits here. A message part over ``message_bytes_max`` (16 MiB)
    would end the connection: what is larger is refused here.

Invariants
    Used from the loop's thread only. At most ``WATCH_FRAMES_MAX`` changes of the registry wait for a watch
    that is not read; then it ends with SlowConsumer.

Source: zmq_getsockopt(3), ZMQ_FD and ZMQ_EVENTS; zmq_socket_monitor(3).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar

import zmq
from google.protobuf.message import DecodeError

from towpath import calls, convert
from towpath._version import __version__
from towpath.calls import Call
from towpath.errors import (
    ConnectionLost,
    ProtocolViolation,
    SlowConsumer,
    Timeout,
    TowpathError,
    Unavailable,
)
from towpath.names import is_pattern
from towpath.protocol import ClientProtocol
from towpath.remote.credit import Credit
from towpath.remote.ports import Ended
from towpath.v1.channels_pb2 import (
    PublishRequest,
    PublishResponse,
    Subscribed,
    SubscribeRequest,
    SubscribeResponse,
)
from towpath.v1.frame_pb2 import Frame
from towpath.v1.message_pb2 import Headers, MessageBatch
from towpath.v1.registry_pb2 import WatchResponse

T = TypeVar("T")

CALLS_MAX: Final = 16
PUBLISHES_MAX: Final = 40
WINDOW_MESSAGES: Final = 1_024
WINDOW_BYTES: Final = 64 << 20
PATTERN_WINDOW: Final = 256
"""Of a subscription to a pattern, whose channels' sizes are not known."""
WATCH_FRAMES_MAX: Final = 131_072
HEARTBEAT_MS: Final = 5_000
SILENCE_MS: Final = 15_000
"""A gateway that has not answered a ping for so long counts as gone."""
MESSAGE_BYTES_MAX: Final = (16 << 20) - 4_096
"""What the gateway takes in one part, less what a frame has beside one message."""
CLOSE_S: Final = 1.0
"""How long leaving a channel waits for the gateway's word."""

_FRAMES_PER_TURN: Final = 256
_FAILED_EVENTS: Final = int(
    zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class ZeroMQCarrier:
    """Reaches the ``rpc`` endpoint of a zeromq gateway.

    Args:
        endpoint: ``tcp://127.0.0.1:5558``.
        name: for people: what the session is called.
    """

    message_bytes_max = MESSAGE_BYTES_MAX

    def __init__(self, endpoint: str, name: str) -> None:
        self._endpoint = endpoint
        self._name = name

    async def open(self, timeout_s: float | None) -> ZeroMQConnection:
        connection = ZeroMQConnection(self._endpoint, self._name)
        try:
            await connection.wait_welcome(timeout_s)
        except BaseException:
            await connection.close()
            raise
        return connection


class ZeroMQConnection:
    """One connection; see :class:`towpath.remote.ports.Connection`."""

    def __init__(self, endpoint: str, name: str) -> None:
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self._protocol = ClientProtocol(name=name, software=f"towpath-python/{__version__} zmq")
        self._lost: asyncio.Future[TowpathError] = self._loop.create_future()
        self._welcomed = asyncio.Event()
        self._calls = asyncio.Semaphore(CALLS_MAX)
        self._publishes = asyncio.Semaphore(PUBLISHES_MAX)
        self._is_scheduled = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = self._socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.IPV6, 1),
            (zmq.RECONNECT_IVL, -1),
            (zmq.SNDHWM, 0),  # what is on its way is bounded by the calls that wait for it
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, SILENCE_MS),
        ):
            socket.setsockopt(option, value)
        self._monitor = socket.get_monitor_socket(_FAILED_EVENTS)
        self._fds = (int(socket.FD), int(self._monitor.FD))
        self._loop.add_reader(self._fds[0], self._stir)
        self._loop.add_reader(self._fds[1], self._read_monitor)
        self._read_monitor()  # a descriptor stirs only once its socket was asked and had nothing
        try:
            socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._fail(Unavailable(f"{endpoint}: {error.strerror}"))
        self._protocol.connection_made()
        self.flush()

    @property
    def principal(self) -> str:
        welcome = self._protocol.welcome
        return welcome.principal if welcome is not None else ""

    @property
    def is_lost(self) -> bool:
        return self._lost.done()

    # ---- life ----

    async def wait_welcome(self, timeout_s: float | None) -> None:
        """Wait until the gateway has answered.

        Raises:
            Unavailable: it did not.
            TowpathError: it refused.
        """
        welcomed = self._loop.create_task(self._welcomed.wait())
        try:
            await asyncio.wait((welcomed, self._lost), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            welcomed.cancel()
        if self._lost.done():
            raise self._lost.result()
        if not self._welcomed.is_set():
            raise Unavailable(f"no zeromq gateway answers at {self._endpoint}")

    async def wait_lost(self) -> TowpathError:
        return await asyncio.shield(self._lost)

    async def close(self) -> None:
        self._fail(ConnectionLost("the connection was closed", hint=""))

    def _fail(self, error: TowpathError) -> None:
        """End the connection; the first reason counts."""
        if self._lost.done():
            return
        for fd in self._fds:
            self._loop.remove_reader(fd)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()
        # With nothing to linger for this does not wait.
        self._context.term()
        self._lost.set_result(error)
        lost = error if isinstance(error, ConnectionLost) else ConnectionLost(error.message, hint=error.hint)
        self._protocol.connection_lost(lost)

    # ---- calls ----

    async def ask(self, call: Call[T], timeout_s: float | None) -> T:
        return await self._ask(self._calls, call, timeout_s)

    async def _ask(self, places: asyncio.Semaphore, call: Call[T], timeout_s: float | None) -> T:
        try:
            async with asyncio.timeout(timeout_s), places:
                return call.result(await self._answer(call))
        except TimeoutError:
            raise Timeout("the daemon did not answer in time") from None

    async def _answer(self, call: Call[T]) -> Frame:
        self._check()
        answered: asyncio.Future[Frame | TowpathError] = self._loop.create_future()

        def handle(answer: Frame | TowpathError) -> None:
            if not answered.done():
                answered.set_result(answer)

        call_id = self._protocol.call(call, handle)
        self.flush()
        try:
            answer = await answered
        except asyncio.CancelledError:
            self.cancel(call_id)
            raise
        if isinstance(answer, TowpathError):
            raise answer
        return answer

    async def subscribe(self, request: SubscribeRequest, held: int) -> ZeroMQBatches:
        channel, window = request.channel, PATTERN_WINDOW
        if not is_pattern(channel):
            info = await self.ask(calls.channel_info(channel), None)
            window = min(max(WINDOW_BYTES // (info.ring_bytes // 4), 1), WINDOW_MESSAGES)
        self._check()
        batches = ZeroMQBatches(self, request, window, held)
        try:
            await batches.wait_subscribed()
        except BaseException:
            await batches.close()
            raise
        return batches

    def publication(self, channel: str) -> ZeroMQPublication:
        return ZeroMQPublication(self, channel)

    async def publish(self, request: PublishRequest) -> PublishResponse:
        """Publish a batch."""
        call: Call[PublishResponse] = Call(
            "publish_request", request, "publish_response", lambda response: response
        )
        return await self._ask(self._publishes, call, None)

    async def watch(self) -> ZeroMQChanges:
        self._check()
        return ZeroMQChanges(self)

    async def open_stream(self, call: Call[T]) -> ZeroMQAnswers[T]:
        self._check()
        return ZeroMQAnswers(self, call)

    async def open_exchange(self, call: Call[T]) -> ZeroMQAnswers[T]:
        return await self.open_stream(call)

    def begin_stream(self, frame: Frame, handler: Callable[[Frame | TowpathError], None]) -> int:
        """Begin a stream; see :meth:`ClientProtocol.open_stream`."""
        call_id = self._protocol.open_stream(frame, handler)
        self.flush()
        return call_id

    def add_to_stream(self, call_id: int, frame: Frame) -> None:
        """Send one more request of a stream."""
        self._protocol.add_to_stream(call_id, frame)
        self.flush()

    def finish(self, call_id: int) -> None:
        """A stream has been answered for the last time, though the answer did not say so."""
        self._protocol.finish(call_id)

    def cancel(self, call_id: int) -> None:
        """End a call or a stream from here."""
        self._protocol.cancel(call_id)
        self.flush()

    def _check(self) -> None:
        if self._lost.done():
            raise ConnectionLost("the connection to the gateway was lost")

    # ---- the socket ----

    def flush(self) -> None:
        """Send what the protocol has queued."""
        if self._lost.done():
            return
        for frame, _ in self._protocol.take_outgoing():
            try:
                self._socket.send(frame.SerializeToString(), zmq.NOBLOCK)
            except zmq.Again:
                # Without a bound on its queue the socket refuses only when there is no connection any more.
                self._fail(ConnectionLost("the gateway closed the connection"))
                return
        self._touch()

    def _touch(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._touched)

    def _touched(self) -> None:
        self._is_scheduled = False
        self._stir()

    def _stir(self) -> None:
        if self._lost.done() or not int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            return
        for _ in range(_FRAMES_PER_TURN):
            try:
                raw = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._receive(raw)
            if self._lost.done():
                return
        self.flush()
        self._touch()

    def _receive(self, raw: bytes) -> None:
        try:
            try:
                frame = Frame.FromString(raw)
            except DecodeError:
                raise ProtocolViolation("what arrived is not a Frame") from None
            self._protocol.receive(frame, [], time.monotonic_ns())
        except TowpathError as error:
            self._fail(error)
            return
        if self._protocol.is_ready:
            self._welcomed.set()

    def _read_monitor(self) -> None:
        """Look for an event; only such are asked for that mean the end."""
        try:
            self._monitor.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        if self._protocol.is_ready:
            self._fail(ConnectionLost("the gateway closed the connection"))
        else:
            self._fail(Unavailable(f"no zeromq gateway answers at {self._endpoint}"))


class ZeroMQBatches:
    """A subscription; see :class:`towpath.remote.ports.Batches`.

    Args:
        window: how many messages may be on their way or held.
        held: how many of them are held from before.
    """

    def __init__(
        self, connection: ZeroMQConnection, request: SubscribeRequest, window: int, held: int
    ) -> None:
        self._connection = connection
        self._answers = _Answers()
        self._credit = Credit(window, held)
        self.subscribed = Subscribed()
        request.credit = self._credit.outstanding
        self._call_id = connection.begin_stream(Frame(subscribe_request=request), self._answers.put)

    async def wait_subscribed(self) -> None:
        """Wait until nothing published from now on is missed."""
        response = await self._receive()
        if not response.HasField("subscribed"):
            raise ProtocolViolation("a subscription began without its first response")
        self.subscribed = response.subscribed

    async def receive(self) -> MessageBatch:
        batch = (await self._receive()).batch
        self._credit.arrived(len(batch.payloads))
        return batch

    async def _receive(self) -> SubscribeResponse:
        frame = await self._answers.get()
        if frame.WhichOneof("body") != "subscribe_response":
            raise ProtocolViolation(f"subscribe_request was answered by {frame.WhichOneof('body')}")
        return frame.subscribe_response

    def holding(self, count: int) -> None:
        credit = self._credit.due(count)
        if credit:
            more = SubscribeRequest(credit=credit)
            self._connection.add_to_stream(self._call_id, Frame(subscribe_request=more))

    async def close(self) -> None:
        # The gateway confirms a cancel; what came before it is of no interest any more.
        frame = Frame()
        frame.cancel.SetInParent()
        self._connection.add_to_stream(self._call_id, frame)
        with contextlib.suppress(TimeoutError, TowpathError):
            async with asyncio.timeout(CLOSE_S):
                while True:
                    await self._answers.get()


class ZeroMQPublication:
    """Batches for one channel; see :class:`towpath.remote.ports.Publication`. The gateway publishes them
    on its own source, which others share.
    """

    def __init__(self, connection: ZeroMQConnection, channel: str) -> None:
        self._connection = connection
        self._channel = channel

    async def publish(self, payloads: Sequence[bytes], headers: Sequence[Headers] | None) -> PublishResponse:
        return await self._connection.publish(
            PublishRequest(channel=self._channel, payloads=payloads, headers=headers)
        )

    async def close(self) -> None:
        """Nothing is held for it."""


class ZeroMQAnswers(Generic[T]):
    """A call's answers; see :class:`towpath.remote.ports.Answers`."""

    def __init__(self, connection: ZeroMQConnection, call: Call[T]) -> None:
        self._connection = connection
        self._call = call
        self._answers = _Answers()
        self._call_id = connection.begin_stream(call.frame(0), self._answers.put)

    async def receive(self) -> T:
        answer = self._call.result(await self._answers.get())
        if self._call.is_last is not None and self._call.is_last(answer):
            self._connection.finish(self._call_id)
        return answer

    async def send(self, body: Any) -> None:
        if self._answers.ended is not None:
            raise self._answers.ended
        self.more(body)

    def more(self, body: Any) -> None:
        frame = Frame()
        getattr(frame, self._call.request).CopyFrom(body)
        self._connection.add_to_stream(self._call_id, frame)

    def close(self) -> None:
        self._connection.cancel(self._call_id)


class ZeroMQChanges:
    """A watch; see :class:`towpath.remote.ports.Changes`."""

    def __init__(self, connection: ZeroMQConnection) -> None:
        self._connection = connection
        self._answers = _Answers()
        frame = Frame()
        frame.watch_request.SetInParent()
        self._call_id = connection.begin_stream(frame, self._put)

    def _put(self, answer: Frame | TowpathError) -> None:
        if len(self._answers) < WATCH_FRAMES_MAX:
            self._answers.put(answer)
        else:
            self.close()
            self._answers.put(SlowConsumer(f"over {WATCH_FRAMES_MAX} changes of the registry were not taken"))

    async def receive(self) -> WatchResponse:
        frame = await self._answers.get()
        if frame.WhichOneof("body") != "watch_response":
            raise ProtocolViolation(f"watch_request was answered by {frame.WhichOneof('body')}")
        return frame.watch_response

    def close(self) -> None:
        self._connection.cancel(self._call_id)


class _Answers:
    """A stream's answers, in order, and its end."""

    def __init__(self) -> None:
        self._frames: deque[Frame] = deque()
        self._ended: TowpathError | None = None
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def ended(self) -> TowpathError | None:
        """Why no more will come, or None."""
        return self._ended

    def put(self, answer: Frame | TowpathError) -> None:
        if isinstance(answer, TowpathError):
            self._ended = self._ended or answer
        elif answer.WhichOneof("body") == "error":
            self._ended = convert.error_from_proto(answer.error)
        elif answer.WhichOneof("body") == "end":
            self._ended = Ended("the stream was ended")
        else:
            self._frames.append(answer)
        self._arrived.set()

    async def get(self) -> Frame:
        while not self._frames:
            if self._ended is not None:
                raise self._ended
            self._arrived.clear()
            await self._arrived.wait()
        return self._frames.popleft()
