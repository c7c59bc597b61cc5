"""grpc.aio as it comes, one message per frame and many, and Towpath's grpc gateway, batched.

The bare streams know nothing of Towpath: bytes through identity serializers, which is the least that gRPC can
do, and for many per frame a protobuf message with one ``repeated bytes`` column (``PublishRequest`` is one).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from tests.bench.load import END, Load, Role
from tests.bench.mechanisms.link import ALL, Looping
from tests.bench.mechanisms.towpath_ring import TowpathBatched, ring_bytes
from tests.bench.site import Site, free_port

if TYPE_CHECKING:
    import grpc.aio

OPTIONS: Final = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
STOP_S: Final = 1.0
METHOD: Final = "/bench.Stream/Carry"


async def _serve(port: int, handler: grpc.RpcMethodHandler[Any, Any]) -> grpc.aio.Server:
    import grpc.aio

    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Stream", {"Carry": handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server


class GrpcStream(Looping):
    """A server's stream of bytes, one message per frame. Round trips are one stream each way of one call."""

    name = "grpc.aio, 1 per frame"
    family = "peers"
    module = "grpc"

    def __init__(self, site: Site, load: Load, *, is_back: bool = False) -> None:
        super().__init__(site, load, is_back=is_back)
        self.port = free_port()

    async def _send(self, role: Role) -> None:
        import grpc

        calls: list[grpc.aio.ServicerContext[Any, Any]] = []
        has_all, is_over = asyncio.Event(), asyncio.Event()

        async def carry(_requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await context.write(b"")
            calls.append(context)
            if len(calls) == self.load.readers:
                has_all.set()
            await is_over.wait()

        server = await _serve(self.port, grpc.stream_stream_rpc_method_handler(carry))
        await has_all.wait()
        await role.wait_go_async()
        began_ns = time.monotonic_ns()
        while payloads := await role.next_round(began_ns, has_credit=False):
            await self._write(calls, payloads)
        for call in calls:
            await call.write(END)
        await role.wait_finish_async()
        is_over.set()
        await server.stop(STOP_S)

    async def _write(self, calls: Sequence[Any], payloads: list[bytes]) -> None:
        for payload in payloads:
            for call in calls:
                await call.write(payload)

    @contextlib.asynccontextmanager
    async def _call(self) -> AsyncIterator[Any]:
        import grpc.aio

        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=OPTIONS) as channel:
            call: Any = channel.stream_stream(METHOD)(wait_for_ready=True)
            yield call
            await call.done_writing()
            await call.read()  # the end of the stream: the server's part is over

    async def _receive(self, role: Role) -> None:
        async with self._call() as call:
            await call.read()
            await role.wait_go_async()
            await role.consume_async(call.read)
            await role.wait_finish_async()

    async def _ping(self, role: Role) -> None:
        async with self._call() as call:
            await role.wait_go_async()

            async def trip(payload: bytes) -> None:
                await call.write(payload)
                await call.read()

            await role.time_round_trips_async(trip)
            await call.write(END)
            await role.wait_finish_async()

    async def _echo(self, role: Role) -> None:
        import grpc

        async def carry(_requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            while payload := await context.read():
                await context.write(payload)

        server = await _serve(self.port, grpc.stream_stream_rpc_method_handler(carry))
        await role.wait_go_async()
        role.tell(echoed=True)
        await role.wait_finish_async()
        await server.stop(STOP_S)


class GrpcBatchStream(GrpcStream):
    """The same with 256 messages per frame (of large ones, a mebibyte)."""

    name = "grpc.aio, batched"
    patterns = ("one-way", "fan-out")

    async def _write(self, calls: Sequence[Any], payloads: list[bytes]) -> None:
        from towpath.v1 import channels_pb2

        for call in calls:
            await call.write(channels_pb2.PublishRequest(payloads=payloads).SerializeToString())

    async def _receive(self, role: Role) -> None:
        from towpath.v1 import channels_pb2

        async with self._call() as call:
            await call.read()
            await role.wait_go_async()
            while frame := await call.read():
                role.tally.add(list(channels_pb2.PublishRequest.FromString(frame).payloads))
            role.report_received()
            await role.wait_finish_async()


class TowpathGrpc(TowpathBatched):
    """From shared memory through the grpc gateway to a plain grpc.aio client, batched; round trips begin at
    PublishStream."""

    name = "towpath via grpc, batched"
    needs = ("endpoints",)
    module = "grpc"
    patterns = ALL

    @contextlib.asynccontextmanager
    async def _responses(self, word: str) -> AsyncIterator[Any]:
        """A stream that is subscribed."""
        import grpc.aio

        from towpath.v1 import channels_pb2, channels_pb2_grpc

        async with grpc.aio.insecure_channel(
            self.site.endpoints["grpc"]["listen"], options=OPTIONS
        ) as channel:
            stub = channels_pb2_grpc.ChannelsStub(channel)
            call: Any = stub.Subscribe()
            await call.write(channels_pb2.SubscribeRequest(channel=word))
            await call.read()  # subscribed
            yield call
            call.cancel()

    def receive(self, role: Role, index: int) -> None:
        asyncio.run(self._receive(role))

    async def _receive(self, role: Role) -> None:
        await self._declare()
        async with self._responses(self.word) as call:
            await role.wait_go_async()
            payloads = list((await call.read()).batch.payloads)
            while payloads[-1]:
                role.tally.add(payloads)
                payloads = list((await call.read()).batch.payloads)
            role.tally.add(payloads[:-1])
            role.report_received()
            await role.wait_finish_async()

    async def _declare(self) -> None:
        import towpath.aio

        async with await towpath.aio.connect(self.site.socket) as client:
            await client.declare(self.word, ring_bytes=ring_bytes(self.load))

    def ping(self, role: Role) -> None:
        asyncio.run(self._ping(role))

    async def _ping(self, role: Role) -> None:
        import grpc.aio

        from towpath.v1 import channels_pb2, channels_pb2_grpc

        await self._declare()
        back = self.back
        assert isinstance(back, TowpathGrpc)
        await back._declare()
        async with (
            self._responses(back.word) as responses,
            grpc.aio.insecure_channel(self.site.endpoints["grpc"]["listen"], options=OPTIONS) as channel,
        ):
            publish: Any = channels_pb2_grpc.ChannelsStub(channel).PublishStream()
            await role.wait_go_async()

            async def trip(payload: bytes) -> None:
                await publish.write(channels_pb2.PublishStreamRequest(channel=self.word, payloads=[payload]))
                await responses.read()
                await publish.read()

            await role.time_round_trips_async(trip)
            await publish.write(channels_pb2.PublishStreamRequest(channel=self.word, payloads=[END]))
            await role.wait_finish_async()


MECHANISMS: Final = (GrpcStream, GrpcBatchStream, TowpathGrpc)
