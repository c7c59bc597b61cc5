"""What every call has in common: how it ends.

Theory of operation
    A call's work runs in tasks of its own, so that three things can end it: the work itself, a helper that
    fails (the reader of a subscription's requests), and the gateway's stopping. When the peer cancels or
    vanishes, gRPC cancels the handler, and the handler cancels the work; ``finally`` in the work closes what
    it opened.

    An expected outcome (:class:`TowpathError`) becomes the status of its row in the error table, with the
    whole error in the trailer ``towpath-error-bin``. Anything else is a bug: the peer gets INTERNAL without a
    word about the inside, the log gets the traceback, and other calls go on.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Coroutine
from typing import Any, Final, NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError

from towpath.convert import error_to_proto
from towpath.errors import InternalError, InvalidArgument, TowpathError, Unavailable, error_from_code
from towpath_broker.gateways._common import GatewayContext, log
from towpath_broker.gateways.grpc.settings import GrpcSettings

T = TypeVar("T")
R = TypeVar("R")

ERROR_TRAILER: Final = "towpath-error-bin"
ERROR_TEXT_BYTES_MAX: Final = 1_000
"""Of message and hint each. Clients refuse metadata above 8 KiB, and the message travels twice."""
TRACE_CHARS_MAX: Final = 900
"""The end of a traceback is what tells, and a field of the log has at most 1,000 characters."""


class Calls:
    """Runs the work of calls and turns what it raises into statuses.

    Args:
        gateway: whose counters and stopping are used.
    """

    def __init__(self, gateway: GatewayContext[GrpcSettings]) -> None:
        self._gateway = gateway
        self._stopping: asyncio.Task[bool] = asyncio.create_task(
            gateway.stopping.wait(), name="grpc-stopping"
        )

    async def run(
        self,
        context: grpc.aio.ServicerContext[Any, Any],
        work: Coroutine[Any, Any, T],
        *helpers: Coroutine[Any, Any, None],
    ) -> T:
        """Do a call's work.

        Args:
            context: the call.
            work: what the call is over with.
            helpers: what runs beside it; their failure ends the call, their return does not.

        Returns:
            What the work returned.

        Raises:
            grpc.aio.AbortError: the call was ended with an error's status; gRPC knows what to do with it.
        """
        self._gateway.count("calls")
        try:
            return await self._until_done(work, *helpers)
        except TowpathError as error:
            self._gateway.count("calls_refused")
            outcome = error
        except Exception as error:
            # The process's outermost boundary towards peers: one broken call must not end everybody's.
            trace = "".join(traceback.format_exception(error))[-TRACE_CHARS_MAX:]
            log("grpc.call_failed", level="error", error=type(error).__name__, traceback=trace)
            self._gateway.count("calls_failed")
            outcome = InternalError("the gateway failed")
        await abort(context, outcome)

    async def _until_done(self, work: Coroutine[Any, Any, T], *helpers: Coroutine[Any, Any, None]) -> T:
        main = asyncio.create_task(work)
        tasks: list[asyncio.Task[Any]] = [main, *(asyncio.create_task(helper) for helper in helpers)]
        pending: set[asyncio.Task[Any]] = {*tasks, self._stopping}
        try:
            while not main.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done & set(tasks):
                    task.result()
                if self._stopping in done and not main.done():
                    raise Unavailable("the gateway is stopping", hint="connect again in a moment")
            return main.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def next_request(context: grpc.aio.ServicerContext[R, Any]) -> R | None:
    """Wait for a stream's next request.

    Args:
        context: a call whose requests are a stream.

    Returns:
        The request; None after the last.

    Raises:
        InvalidArgument: what came is not a request.
    """
    try:
        request = await context.read()
    except DecodeError as error:
        raise malformed(error) from None
    return None if request is grpc.aio.EOF else request


def method_name(name: str) -> str:
    """``GetValue`` of ``get_value``."""
    return "".join(word.capitalize() for word in name.split("_"))


def malformed(error: DecodeError) -> InvalidArgument:
    """What a peer is told whose request does not parse."""
    return InvalidArgument(
        f"the request cannot be decoded: {error}", hint="use the protobuf definitions in protos/towpath/v1"
    )


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: TowpathError) -> NoReturn:
    """End a call with an error's status and trailer.

    Args:
        context: the call.
        error: an expected outcome.

    Raises:
        grpc.aio.AbortError: always.
    """
    status = grpc.StatusCode[error.row.grpc]
    message = _shortened(error.message)
    small = error_from_code(error.code, message, _shortened(error.hint), error.retryable)
    await context.abort(status, message, ((ERROR_TRAILER, error_to_proto(small).SerializeToString()),))


def _shortened(text: str) -> str:
    raw = text.encode(errors="replace")
    if len(raw) <= ERROR_TEXT_BYTES_MAX:
        return text
    return raw[:ERROR_TEXT_BYTES_MAX].decode(errors="ignore") + "..."
