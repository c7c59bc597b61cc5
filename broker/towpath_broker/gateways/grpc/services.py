"""Registers a service with the server so that a request that does not parse is an error like any other.

Theory of operation
    gRPC decodes a unary request before it calls anybody, and answers UNKNOWN when that fails. So the decoder
    here gives the error as a value, and the handler around the service's method sees to it. Requests of a
    stream are decoded when they are read (``calls.next_request``).

    Everything else is read from the service's descriptor, as the generated code would have it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from towpath.errors import InvalidArgument, NotSupported
from towpath_broker.gateways.grpc.calls import abort, malformed

Method = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]


def add_service(server: grpc.aio.Server, service: ServiceDescriptor, servicer: object) -> None:
    """Serve a service.

    Args:
        server: not started.
        service: which methods there are.
        servicer: has a coroutine method of each name, ``(request, context)``; streams write through the
            context.
    """
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in service.methods:
        behaviour: Method = getattr(servicer, method.name, _not_built)
        request_class = GetMessageClass(method.input_type)
        serializer = GetMessageClass(method.output_type).SerializeToString
        if method.client_streaming:
            handlers[method.name] = grpc.stream_stream_rpc_method_handler(
                behaviour, request_class.FromString, serializer
            )
        elif method.server_streaming:
            handlers[method.name] = grpc.unary_stream_rpc_method_handler(
                _unless_malformed(behaviour), _decoder(request_class), serializer
            )
        else:
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(
                _unless_malformed(behaviour), _decoder(request_class), serializer
            )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


async def _not_built(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await abort(context, NotSupported("this call is not built yet", hint=""))


def _decoder(request_class: type[Message]) -> Callable[[bytes], Message | InvalidArgument]:
    def decode(raw: bytes) -> Message | InvalidArgument:
        try:
            return request_class.FromString(raw)
        except DecodeError as error:
            return malformed(error)

    return decode


def _unless_malformed(behaviour: Method) -> Method:
    async def handle(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        if isinstance(request, InvalidArgument):
            await abort(context, request)
        return await behaviour(request, context)

    return handle
