"""The service Registry: the daemon's own calls, passed on.

Theory of operation
    The contract is the same on every carrier: a gRPC request is the body of a ``Frame``, and so is its
    response. So a call goes to the door as it came, for the principal of remote peers, and what the core
    answers goes back as it is; what may be asked and by whom is decided there. Watch alone is shared between
    peers (``watching``).
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from towpath.calls import Call
from towpath.v1 import registry_pb2, registry_pb2_grpc
from towpath_broker.gateways._common import GatewayContext
from towpath_broker.gateways.grpc.calls import Calls
from towpath_broker.gateways.grpc.settings import GrpcSettings
from towpath_broker.gateways.grpc.watching import RegistryWatch

PRINCIPAL: Final = "grpc:anonymous"
"""For whom peers act until they are authenticated."""
CALL_TIMEOUT_S: Final = 60.0
"""How long a call without a deadline waits for the daemon."""

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
R = TypeVar("R", bound=Message)


class RegistryService(registry_pb2_grpc.RegistryServicer):
    """Answers registry calls of remote peers.

    Args:
        gateway: client and counters.
        calls: runs the work of each call.
    """

    def __init__(self, gateway: GatewayContext[GrpcSettings], calls: Calls) -> None:
        self._client = gateway.acting_for(PRINCIPAL)
        self._calls = calls
        self._watch = RegistryWatch(gateway.client)

    async def DeclareChannel(
        self, request: registry_pb2.DeclareChannelRequest, context: Context
    ) -> registry_pb2.DeclareChannelResponse:
        return await self._ask("declare_channel", request, registry_pb2.DeclareChannelResponse, context)

    async def UndeclareChannel(
        self, request: registry_pb2.UndeclareChannelRequest, context: Context
    ) -> registry_pb2.UndeclareChannelResponse:
        return await self._ask("undeclare_channel", request, registry_pb2.UndeclareChannelResponse, context)

    async def GetChannel(
        self, request: registry_pb2.GetChannelRequest, context: Context
    ) -> registry_pb2.GetChannelResponse:
        return await self._ask("get_channel", request, registry_pb2.GetChannelResponse, context)

    async def ListChannels(
        self, request: registry_pb2.ListChannelsRequest, context: Context
    ) -> registry_pb2.ListChannelsResponse:
        return await self._ask("list_channels", request, registry_pb2.ListChannelsResponse, context)

    async def CreateBinding(
        self, request: registry_pb2.CreateBindingRequest, context: Context
    ) -> registry_pb2.CreateBindingResponse:
        return await self._ask("create_binding", request, registry_pb2.CreateBindingResponse, context)

    async def DeleteBinding(
        self, request: registry_pb2.DeleteBindingRequest, context: Context
    ) -> registry_pb2.DeleteBindingResponse:
        return await self._ask("delete_binding", request, registry_pb2.DeleteBindingResponse, context)

    async def GetBinding(
        self, request: registry_pb2.GetBindingRequest, context: Context
    ) -> registry_pb2.GetBindingResponse:
        return await self._ask("get_binding", request, registry_pb2.GetBindingResponse, context)

    async def ListBindings(
        self, request: registry_pb2.ListBindingsRequest, context: Context
    ) -> registry_pb2.ListBindingsResponse:
        return await self._ask("list_bindings", request, registry_pb2.ListBindingsResponse, context)

    async def GetStatus(
        self, request: registry_pb2.GetStatusRequest, context: Context
    ) -> registry_pb2.GetStatusResponse:
        return await self._ask("get_status", request, registry_pb2.GetStatusResponse, context)

    # Writes through the context instead of yielding: gRPC allows it, its stubs do not know.
    async def Watch(  # type: ignore[override]
        self, request: registry_pb2.WatchRequest, context: Context
    ) -> None:
        await self._calls.run(context, self._tell_changes(request, context))

    async def _ask(self, name: str, request: Message, response: type[R], context: Context) -> R:
        call: Call[R] = Call(f"{name}_request", request, f"{name}_response", lambda answer: answer)
        timeout_s: float | None = context.time_remaining()
        return await self._calls.run(context, self._client.pass_on(call, timeout=timeout_s or CALL_TIMEOUT_S))

    async def _tell_changes(self, request: registry_pb2.WatchRequest, context: Context) -> None:
        with self._watch.follow() as follower:
            if request.HasField("after_revision"):
                # The watch remembers the state, not how it came to be.
                await context.write(registry_pb2.WatchResponse(reset=registry_pb2.WatchReset()))
            while True:
                await context.write(await follower.receive())
