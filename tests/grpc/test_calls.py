"""How a call ends when its work fails, when a helper fails, and when the gateway stops. Without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, cast

import grpc
import pytest

from towpath.errors import ChannelNotFound, InvalidArgument
from towpath.v1 import error_pb2
from towpath_broker.gateways._common import GatewayContext
from towpath_broker.gateways.grpc.calls import ERROR_TEXT_BYTES_MAX, Calls
from towpath_broker.gateways.grpc.settings import GrpcSettings


class Aborted(Exception):
    """What the call below raises where gRPC has its own."""


class Call:
    """Keeps how it was aborted."""

    def __init__(self) -> None:
        self.status: grpc.StatusCode | None = None
        self.details = ""
        self.error = error_pb2.Error()

    async def abort(
        self, status: grpc.StatusCode, details: str, trailers: tuple[tuple[str, bytes], ...]
    ) -> NoReturn:
        [(name, raw)] = trailers
        assert name == "towpath-error-bin"
        self.status, self.details, self.error = status, details, error_pb2.Error.FromString(raw)
        raise Aborted


Body = Callable[[Calls, Any, GatewayContext[GrpcSettings]], Awaitable[None]]


def run(body: Body) -> tuple[Call, dict[str, int]]:
    """Run a body, which may abort its call; return the call and the gateway's counters."""
    call = Call()
    counters: dict[str, int] = {}

    async def scenario() -> None:
        gateway = GatewayContext("grpc", GrpcSettings(), cast("Any", None), is_child=False)
        try:
            await body(Calls(gateway), call, gateway)
        finally:
            counters.update(gateway.counters)

    try:
        asyncio.run(scenario())
    except Aborted:
        assert call.status is not None
    return call, counters


async def fail(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


async def never(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("closed")


def test_a_bug_tells_the_peer_nothing_and_the_log_everything(capfd: pytest.CaptureFixture[str]) -> None:
    async def body(calls: Calls, call: Any, _: GatewayContext[GrpcSettings]) -> None:
        await calls.run(call, fail(RuntimeError("the inside")))

    call, counters = run(body)
    assert call.status is grpc.StatusCode.INTERNAL
    assert call.error.code == error_pb2.ERROR_CODE_INTERNAL
    assert "the inside" not in call.details + str(call.error)
    logged = capfd.readouterr().err
    assert "grpc.call_failed" in logged
    assert "the inside" in logged
    assert counters == {"calls": 1, "calls_failed": 1}


def test_an_error_s_texts_are_cut_to_what_clients_take_as_metadata() -> None:
    async def body(calls: Calls, call: Any, _: GatewayContext[GrpcSettings]) -> None:
        await calls.run(call, fail(ChannelNotFound("ü" * 5_000, hint="h" * 5_000)))

    call, counters = run(body)
    assert call.status is grpc.StatusCode.NOT_FOUND
    assert call.details == call.error.message == "ü" * (ERROR_TEXT_BYTES_MAX // 2) + "..."
    assert call.error.hint == "h" * ERROR_TEXT_BYTES_MAX + "..."
    assert counters == {"calls": 1, "calls_refused": 1}


def test_a_helper_s_failure_ends_the_work() -> None:
    ended: list[str] = []

    async def body(calls: Calls, call: Any, _: GatewayContext[GrpcSettings]) -> None:
        await calls.run(call, never(ended), fail(InvalidArgument("no")))

    call, _ = run(body)
    assert call.status is grpc.StatusCode.INVALID_ARGUMENT
    assert ended == ["closed"]


def test_a_helper_may_return_before_the_work_and_is_ended_with_it() -> None:
    ended: list[str] = []

    async def work() -> str:
        await asyncio.sleep(0.01)
        return "done"

    async def body(calls: Calls, call: Any, _: GatewayContext[GrpcSettings]) -> None:
        assert await calls.run(call, work(), asyncio.sleep(0), never(ended)) == "done"

    call, counters = run(body)
    assert call.status is None
    assert ended == ["closed"]
    assert counters == {"calls": 1}


def test_stopping_ends_the_work_with_unavailable() -> None:
    ended: list[str] = []

    async def body(calls: Calls, call: Any, gateway: GatewayContext[GrpcSettings]) -> None:
        asyncio.get_running_loop().call_later(0.01, gateway.stopping.set)
        await calls.run(call, never(ended))

    call, _ = run(body)
    assert call.status is grpc.StatusCode.UNAVAILABLE
    assert call.error.retryable
    assert ended == ["closed"]


def test_the_peer_s_cancellation_ends_the_work_first() -> None:
    ended: list[str] = []

    async def body(calls: Calls, call: Any, _: GatewayContext[GrpcSettings]) -> None:
        handler = asyncio.create_task(calls.run(call, never(ended)))
        await asyncio.sleep(0.01)
        handler.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handler
        assert ended == ["closed"]

    call, _ = run(body)
    assert call.status is None
