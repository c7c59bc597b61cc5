"""What a gateway tells a peer that serves, in an order of events that a network gives once in a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from towpath._message import Message
from towpath.v1 import services_pb2
from towpath_broker.gateways._services import PeerServer


class Request:
    """A request whose caller leaves when it is told to."""

    payload = b"x"
    principal = "uid:1"
    is_stream = is_idempotent = False
    time_left = None
    message = Message(b"x", seq=1, source=1, time_ns=1, channel="c")

    def __init__(self) -> None:
        self.is_answered = self.is_cancelled = self.is_finished = False
        self._callback: Callable[[], object] = lambda: None

    def leave(self) -> None:
        self.is_answered = self.is_cancelled = True
        self._callback()

    def _when_cancelled(self, callback: Callable[[], object]) -> Callable[[], object]:
        self._callback = callback
        return lambda: None

    async def _finish(self) -> None:
        self.is_finished = True


def test_a_caller_that_leaves_while_its_request_is_on_the_way_is_told_of() -> None:
    async def told() -> list[str | None]:
        events: list[services_pb2.ServeResponse] = []
        request: Any = Request()

        async def send(event: services_pb2.ServeResponse) -> None:
            events.append(event)
            if event.HasField("request"):
                request.leave()

        nobody: Any = None
        server = PeerServer(nobody, "uid:1", services_pb2.Serving(channel="c"), send)
        server._begin(request)
        await asyncio.gather(*server._tasks)
        assert request.is_finished
        return [event.WhichOneof("event") for event in events]

    assert asyncio.run(told()) == ["request", "cancelled"]
