"""The service Locks: what peers ask about locks, passed on (``_locks``).

Theory of operation
    A peer is a connection, as gRPC names it: a session's calls must come by the connection that keeps it.

    When a call is cancelled gRPC does not say whether its peer withdrew it or the connection broke. But a
    connection that breaks ends all of its calls before anything else can be said on any of them. So a notice
    that means nothing is written on the session's stream: if that fails, the peer is gone.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import Message

from towpath.v1 import locks_pb2
from towpath_broker.gateways import _forwarding
from towpath_broker.gateways._common import GatewayContext
from towpath_broker.gateways._locks import CALLS, PLAIN, WAITS, KeptSession, LockPeers
from towpath_broker.gateways.grpc.calls import Calls, method_name, next_request
from towpath_broker.gateways.grpc.registry import CALL_TIMEOUT_S, PRINCIPAL
from towpath_broker.gateways.grpc.settings import GrpcSettings

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class LocksService:
    """Keeps lock sessions for remote peers, and passes on what they ask.

    Args:
        gateway: client, counters, and the event that says stop.
        calls: runs the work of each call.
    """

    def __init__(self, gateway: GatewayContext[GrpcSettings], calls: Calls) -> None:
        self._gateway = gateway
        self._calls = calls
        self._asker = gateway.acting_for(PRINCIPAL)
        self._peers = LockPeers(self._asker)
        for name in WAITS:
            setattr(self, method_name(name), functools.partial(self._wait, name))
        for name in CALLS:
            setattr(self, method_name(name), functools.partial(self._ask, name))
        for name in PLAIN:
            setattr(self, method_name(name), functools.partial(self._look, name))

    async def KeepLockSession(
        self, request_iterator: AsyncIterator[locks_pb2.KeepLockSessionRequest], context: Context
    ) -> None:
        """Keep a session until it ends, or the peer ends the call."""
        stream = _Stream(context)

        async def is_cut() -> bool:
            return self._gateway.stopping.is_set() or not await stream.is_open()

        session = KeptSession(context.peer(), is_cut)
        try:
            opening = await next_request(context)
        except asyncio.CancelledError:
            session.left.set()
            raise
        await self._calls.run(context, self._keep(session, opening, stream), _read(context, session))

    async def _keep(
        self, session: KeptSession, opening: locks_pb2.KeepLockSessionRequest | None, stream: _Stream
    ) -> None:
        first = locks_pb2.KeepLockSessionRequest() if opening is None else opening
        await self._peers.keep(session, first, str(session.peer), stream.write)

    async def WatchLocks(self, request: locks_pb2.WatchLocksRequest, context: Context) -> None:
        """Send what happens to locks, until the peer ends the call."""
        await self._calls.run(context, self._watch(request, context))

    async def _watch(self, request: locks_pb2.WatchLocksRequest, context: Context) -> None:
        async with aclosing(self._peers.watch(request)) as changes:
            async for change in changes:
                await context.write(change)

    async def _wait(self, name: str, request: Message, context: Context) -> None:
        await self._calls.run(context, self._peers.wait(name, request, context.peer(), context.write))

    async def _ask(self, name: str, request: Message, context: Context) -> Message:
        asking = self._peers.ask(name, request, context.peer(), _timeout_s(context))
        answer: Message = await self._calls.run(context, asking)
        return answer

    async def _look(self, name: str, request: Message, context: Context) -> Message:
        answer: Message = await self._calls.run(context, self._looked(name, request, context))
        return answer

    async def _looked(self, name: str, request: Message, context: Context) -> Message:
        call = _forwarding.call_of(name, request)
        answer: Message = await self._asker.pass_on(call, timeout=_timeout_s(context))
        return answer


class _Stream:
    """What is written on a session's stream: one notice at a time, as gRPC wants it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._writing = asyncio.Lock()

    async def write(self, notice: Any) -> None:
        async with self._writing:
            await self._context.write(notice)

    async def is_open(self) -> bool:
        """Whether the peer is there; see the module's docstring."""
        try:
            await self.write(locks_pb2.KeepLockSessionResponse())
        except Exception:  # whatever gRPC raises: it was not written
            return False
        return True


async def _read(context: Context, session: KeptSession) -> None:
    while (request := await next_request(context)) is not None:
        session.take(request)


def _timeout_s(context: Context) -> float:
    timeout_s: float | None = context.time_remaining()
    return timeout_s or CALL_TIMEOUT_S
