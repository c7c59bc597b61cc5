"""The gRPC carrier: the services ``Channels``, ``Locks`` and ``Registry`` of a grpc gateway.

Theory of operation
    One gRPC channel is one connection: it is made anew, without what gRPC itself remembers of the address,
    when its state leaves READY. Pings find a gateway that fell silent.

    A subscription asks for no credit: what it does not read stays in HTTP/2's flow control, which is held to
    ``STREAM_BYTES`` for each. A publisher has a stream, and so a source, of its own. Registry calls are found
    by the names of their requests, so that this knows none of them; those of other kinds, too.

    An error is the trailer ``towpath-error-bin`` where there is one. Without it gRPC itself speaks: the
    connection broke, the deadline passed, a bound was exceeded.

Invariants
    Used from the loop's thread only. What is received at once is at most ``RESPONSE_BYTES_MAX``.

Not here: TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

# Otherwise gRPC starts threads of its own in a forked child, which crash it now and then (seen with 1.85: one
# child in six). gRPC reads it once, when it is first used; a program that wants it says so itself.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
from google.protobuf.message import DecodeError

from towpath import calls, convert
from towpath.calls import Call
from towpath.errors import (
    Cancelled,
    ConnectionLost,
    LimitExceeded,
    NotSupported,
    PermissionDenied,
    ProtocolViolation,
    Timeout,
    TowpathError,
    Unavailable,
)
from towpath.names import is_pattern
from towpath.remote.ports import Ended
from towpath.v1 import channels_pb2_grpc, locks_pb2_grpc, registry_pb2_grpc
from towpath.v1.channels_pb2 import (
    PublishStreamRequest,
    PublishStreamResponse,
    Subscribed,
    SubscribeRequest,
    SubscribeResponse,
)
from towpath.v1.error_pb2 import Error
from towpath.v1.message_pb2 import Headers, MessageBatch
from towpath.v1.registry_pb2 import WatchRequest, WatchResponse

T = TypeVar("T")

ERROR_TRAILER: Final = "towpath-error-bin"
MESSAGE_BYTES_MAX: Final = (4 << 20) - 4_096
"""What the gateway takes in one request, less what a request has beside one message."""
RESPONSE_BYTES_MAX: Final = (256 << 20) + (1 << 20)
"""The largest message that a ring holds, and what is beside it."""
STREAM_BYTES: Final = 1 << 20
CLOSE_S: Final = 1.0
"""How long leaving a channel waits for the gateway's word."""
SHUTDOWN_S: Final = 0.2
"""How long closing a connection waits for gRPC to let go of the event loop."""

_OPTIONS: Final = (
    # Another channel's view of the address, its back-off above all, is not ours.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", RESPONSE_BYTES_MAX),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", STREAM_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.client_idle_timeout_ms", 2**31 - 1),
)


class GrpcCarrier:
    """Reaches a grpc gateway.

    Args:
        target: ``127.0.0.1:50551`` or ``unix:/path``.
    """

    message_bytes_max = MESSAGE_BYTES_MAX

    def __init__(self, target: str) -> None:
        self._target = target

    async def open(self, timeout_s: float | None) -> GrpcConnection:
        channel = grpc.aio.insecure_channel(self._target, options=_OPTIONS)
        try:
            async with asyncio.timeout(timeout_s):
                await self._wait_ready(channel)
        except TimeoutError:
            await channel.close()
            raise Unavailable(f"no grpc gateway answers at {self._target}") from None
        except BaseException:
            await channel.close()
            raise
        return GrpcConnection(channel)

    async def _wait_ready(self, channel: grpc.aio.Channel) -> None:
        state = channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                raise Unavailable(f"no grpc gateway answers at {self._target}")
            await channel.wait_for_state_change(state)
            state = channel.get_state()


class GrpcConnection:
    """One connection; see :class:`towpath.remote.ports.Connection`."""

    principal = ""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self._registry: Any = registry_pb2_grpc.RegistryStub(channel)
        self._channels: Any = channels_pb2_grpc.ChannelsStub(channel)
        self._locks: Any = locks_pb2_grpc.LocksStub(channel)
        self._lost: asyncio.Future[TowpathError] = asyncio.get_running_loop().create_future()
        self._watching = asyncio.create_task(self._watch_state(), name="towpath-grpc-state")

    # ---- life ----

    @property
    def is_lost(self) -> bool:
        return self._lost.done()

    async def _watch_state(self) -> None:
        await self._channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        self._fail(ConnectionLost("the connection to the gateway was lost"))

    def _fail(self, error: TowpathError) -> None:
        if not self._lost.done():
            self._lost.set_result(error)

    async def wait_lost(self) -> TowpathError:
        return await asyncio.shield(self._lost)

    async def close(self) -> None:
        self._fail(ConnectionLost("the connection was closed", hint=""))
        await self._channel.close()
        # It ends with the channel, which is when nobody holds a call any more. Until then gRPC has an event
        # for this loop, which may be closed next.
        await asyncio.wait((self._watching,), timeout=SHUTDOWN_S)
        self._watching.cancel()

    def begin(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Begin a call.

        Raises:
            ConnectionLost: the connection is closed.
        """
        try:
            return method(*arguments, **options)
        except grpc.aio.UsageError:
            raise ConnectionLost("the connection was closed", hint="") from None

    async def settled(self, work: Awaitable[T]) -> T:
        """Await something of gRPC's; raise its errors as Towpath's, and note a connection that has broken."""
        try:
            return await work
        except grpc.aio.AioRpcError as error:
            failure = self._error(error.code(), error.details(), error.trailing_metadata())
        except grpc.aio.UsageError:
            failure = ConnectionLost("the connection was closed", hint="")
        except DecodeError:
            failure = ProtocolViolation("a response cannot be decoded")
        except asyncio.CancelledError:
            # gRPC raises it too, in whoever waits for a call of a channel that is closed.
            if _is_being_cancelled():
                raise
            failure = ConnectionLost("the connection was closed", hint="")
        finally:
            # Whoever keeps the error must not keep the call with it, which would keep the channel open.
            del work
        raise failure

    async def write_first(self, call: Any, body: Any) -> None:
        """Write a stream's first request. On a connection that is breaking gRPC may never come back from it
        (seen with 1.85: it waits to have sent the call's metadata), so the connection's end ends it.

        Raises:
            TowpathError: the stream has ended.
            asyncio.InvalidStateError: so it had before.
        """
        writing = asyncio.ensure_future(call.write(body))
        try:
            await asyncio.wait((writing, self._lost), return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                await self.settled(writing)
                return
        finally:
            writing.cancel()
        raise ConnectionLost("the connection to the gateway was lost")

    async def read(self, call: Any) -> Any:
        """Return a stream's next response.

        Raises:
            Cancelled: it has ended well.
            TowpathError: it has ended otherwise.
        """
        try:
            response = await self.settled(call.read())
            if response is not grpc.aio.EOF:
                return response
            failure = await self.reason(call)
        finally:
            del call  # see settled
        raise failure

    async def reason(self, call: Any) -> TowpathError:
        """Say why a stream has ended."""
        return self._error(await call.code(), await call.details(), await call.trailing_metadata())

    def _error(self, code: grpc.StatusCode, details: str | None, trailers: Any) -> TowpathError:
        for key, value in trailers or ():
            if key == ERROR_TRAILER:
                with contextlib.suppress(DecodeError):
                    return convert.error_from_proto(Error.FromString(value))
        # From here on it is gRPC itself that speaks, not the gateway.
        match code:
            case grpc.StatusCode.UNAVAILABLE:
                error = ConnectionLost(f"the connection to the gateway was lost: {details}")
                self._fail(error)
                return error
            case grpc.StatusCode.OK:
                return Ended("the call was ended")
            case grpc.StatusCode.CANCELLED:
                return Cancelled("the call was cancelled")
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return Timeout("the daemon did not answer in time")
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return LimitExceeded(f"the gateway refused: {details}")
            case grpc.StatusCode.UNIMPLEMENTED:
                return NotSupported(f"the gateway does not know this call: {details}")
            case _:
                return ProtocolViolation(f"the gateway answered {code.name}: {details}")

    # ---- calls ----

    async def ask(self, call: Call[T], timeout_s: float | None) -> T:
        if call.principal:
            raise PermissionDenied("a principal is stated by gateways of the daemon only")
        method = self._method(call)
        return call.decode(await self.settled(self.begin(method, call.body, timeout=timeout_s)))

    def _method(self, call: Call[Any]) -> Any:
        name = type(call.body).__name__.removesuffix("Request")
        for service in (self._registry, self._channels, self._locks):
            if hasattr(service, name):
                return getattr(service, name)
        raise NotSupported(f"{call.request} exists on the UNIX socket only")

    async def open_stream(self, call: Call[T]) -> GrpcAnswers[T]:
        begun = self.begin(self._method(call), call.body)
        kind = GrpcAnswer if isinstance(begun, grpc.aio.UnaryUnaryCall) else GrpcAnswers
        return kind(self, call, begun)

    async def open_exchange(self, call: Call[T]) -> GrpcExchange[T]:
        begun = self.begin(self._method(call))
        try:
            await self.write_first(begun, call.body)
        except asyncio.InvalidStateError:
            raise await self.reason(begun) from None
        except BaseException:
            begun.cancel()
            raise
        return GrpcExchange(self, call, begun)

    async def subscribe(self, request: SubscribeRequest, held: int) -> GrpcBatches:
        batches = GrpcBatches(self, self.begin(self._channels.Subscribe), request)
        try:
            await batches.wait_subscribed()
        except BaseException:
            batches.cancel()
            raise
        return batches

    def publication(self, channel: str) -> GrpcPublication:
        return GrpcPublication(self, self._channels.PublishStream, channel)

    async def watch(self) -> GrpcChanges:
        return GrpcChanges(self, self.begin(self._registry.Watch, WatchRequest()))


class GrpcAnswers(Generic[T]):
    """A call's answers; see :class:`towpath.remote.ports.Answers`."""

    def __init__(self, connection: GrpcConnection, asked: Call[T], call: Any) -> None:
        self._connection = connection
        self._asked = asked
        self._call = call

    async def receive(self) -> T:
        return self._asked.decode(await self._connection.read(self._call))

    def more(self, body: Any) -> None:
        """What is not read holds the gateway up by itself."""

    def close(self) -> None:
        self._call.cancel()
        self._call = None


class GrpcAnswer(GrpcAnswers[T]):
    """The only answer of a call that has one, as a stream."""

    async def receive(self) -> T:
        return self._asked.decode(await self._connection.settled(self._call))


class GrpcExchange(GrpcAnswers[T]):
    """A call that goes both ways; see :class:`towpath.remote.ports.Exchange`."""

    async def send(self, body: Any) -> None:
        try:
            await self._connection.settled(self._call.write(body))
        except asyncio.InvalidStateError:
            raise await self._connection.reason(self._call) from None


class GrpcBatches:
    """A subscription; see :class:`towpath.remote.ports.Batches`."""

    def __init__(self, connection: GrpcConnection, call: Any, request: SubscribeRequest) -> None:
        self._connection = connection
        self._call = call
        self._request = request
        self._channel = request.channel
        self.subscribed = Subscribed()

    async def wait_subscribed(self) -> None:
        """Wait until nothing published from now on is missed."""
        await self._connection.write_first(self._call, self._request)
        response = await self._receive()
        if not response.HasField("subscribed"):
            raise ProtocolViolation("a subscription began without its first response")
        self.subscribed = response.subscribed

    async def receive(self) -> MessageBatch:
        return (await self._receive()).batch

    async def _receive(self) -> SubscribeResponse:
        response: SubscribeResponse = await self._connection.read(self._call)
        return response

    def holding(self, count: int) -> None:
        """What is not read holds the gateway up by itself."""

    def cancel(self) -> None:
        """End the call, and let go of it; nothing is waited for."""
        self._call.cancel()
        self._call = None

    async def close(self) -> None:
        self.cancel()
        # gRPC tells a caller of a cancelled call's end at once. The gateway takes requests in their order, so
        # when it has answered another one it has left the channel.
        if not is_pattern(self._channel):
            with contextlib.suppress(TowpathError):
                await self._connection.ask(calls.channel_info(self._channel), CLOSE_S)


class GrpcPublication:
    """A stream with a source of its own; see :class:`towpath.remote.ports.Publication`."""

    def __init__(self, connection: GrpcConnection, method: Callable[[], Any], channel: str) -> None:
        self._connection = connection
        self._method = method
        self._channel = channel
        self._call: Any = None

    async def publish(
        self, payloads: Sequence[bytes], headers: Sequence[Headers] | None
    ) -> PublishStreamResponse:
        request = PublishStreamRequest(payloads=payloads, headers=headers)
        try:
            if self._call is None:
                self._call = self._connection.begin(self._method)
                request.channel = self._channel
                await self._connection.write_first(self._call, request)
            else:
                await self._connection.settled(self._call.write(request))
        except asyncio.InvalidStateError:
            # The stream had ended before; how, its status says.
            raise await self._connection.reason(self._call) from None
        response: PublishStreamResponse = await self._connection.read(self._call)
        return response

    async def close(self) -> None:
        if self._call is None:
            return
        # The status comes when the gateway has given the source up.
        with contextlib.suppress(TimeoutError, TowpathError, asyncio.InvalidStateError):
            async with asyncio.timeout(CLOSE_S):
                await self._connection.settled(self._call.done_writing())
                await self._call.code()
        self._call.cancel()
        self._call = None


class GrpcChanges:
    """A watch; see :class:`towpath.remote.ports.Changes`."""

    def __init__(self, connection: GrpcConnection, call: Any) -> None:
        self._connection = connection
        self._call = call

    async def receive(self) -> WatchResponse:
        response: WatchResponse = await self._connection.read(self._call)
        return response

    def close(self) -> None:
        self._call.cancel()
        self._call = None


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
