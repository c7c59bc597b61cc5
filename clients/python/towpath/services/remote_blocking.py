"""Callers and servers that reach a service through a gateway, waiting in the program's own threads: the work
is done on the client's loop (``towpath.remote.blocking``), and waited for here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from towpath import model
from towpath._message import Message
from towpath.errors import ConnectionLost
from towpath.waiting import Buffer

from .aio_api import AsyncRequest, AsyncServer
from .api import Request, Server
from .remote import RemoteAsyncCaller

if TYPE_CHECKING:
    from towpath.remote.blocking import Portal


class RemoteCaller:
    """One client's way to one service."""

    def __init__(self, portal: Portal, inner: RemoteAsyncCaller) -> None:
        self._portal = portal
        self._inner = inner

    def call(
        self,
        payload: Buffer,
        *,
        headers: model.Headers | None,
        deadline: int | None,
        is_idempotent: bool,
        wait: bool,
    ) -> Message:
        """See :meth:`towpath.Client.call`."""
        return self._portal.run(
            self._inner.call(
                payload, headers=headers, deadline=deadline, is_idempotent=is_idempotent, wait=wait
            )
        )

    def call_stream(
        self,
        payload: Buffer,
        *,
        headers: model.Headers | None,
        deadline: int | None,
        is_idempotent: bool,
        wait: bool,
    ) -> Iterator[Message]:
        """See :meth:`towpath.Client.call_stream`."""
        replies = self._inner.call_stream(
            payload, headers=headers, deadline=deadline, is_idempotent=is_idempotent, wait=wait
        )

        async def following() -> Message | None:
            return await anext(replies, None)

        try:
            while (reply := self._portal.run(following())) is not None:
                yield reply
        finally:
            with contextlib.suppress(ConnectionLost):
                self._portal.run(_closed(replies))


async def _closed(replies: object) -> None:
    await replies.aclose()  # type: ignore[attr-defined]


class RemoteServer(Server):
    """A server through a gateway."""

    def __init__(self, portal: Portal, inner: AsyncServer) -> None:
        self._portal = portal
        self._inner = inner
        self.channel = inner.channel
        self.concurrency = inner.concurrency
        self._closed = False

    @property
    def is_closed(self) -> bool:
        return self._closed

    def receive(self, timeout: float | None = None) -> Request:
        return RemoteRequest(self._portal, self._portal.run(self._inner.receive(timeout)))

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(ConnectionLost):
            self._portal.run(self._inner.close())


class RemoteRequest(Request):
    """One request that came through a gateway."""

    def __init__(self, portal: Portal, inner: AsyncRequest) -> None:
        self._portal = portal
        self._inner = inner
        self.payload = inner.payload

    @property
    def channel(self) -> str:
        return self._inner.channel

    @property
    def principal(self) -> str:
        return self._inner.principal

    @property
    def is_stream(self) -> bool:
        return self._inner.is_stream

    @property
    def is_idempotent(self) -> bool:
        return self._inner.is_idempotent

    @property
    def message(self) -> Message:
        return self._inner.message

    @property
    def is_answered(self) -> bool:
        return self._inner.is_answered

    @property
    def is_cancelled(self) -> bool:
        return self._inner.is_cancelled

    @property
    def time_left(self) -> float | None:
        return self._inner.time_left

    def reply(self, payload: Buffer = b"", *, headers: model.Headers | None = None) -> None:
        self._portal.run(self._inner.reply(payload, headers=headers))

    def send(self, payload: Buffer, *, headers: model.Headers | None = None) -> bool:
        return self._portal.run(self._inner.send(payload, headers=headers))

    def end(self) -> None:
        self._portal.run(self._inner.end())

    def fail(self, error: BaseException) -> None:
        self._portal.run(self._inner.fail(error))

    def _finish(self) -> None:
        with contextlib.suppress(ConnectionLost):
            self._portal.run(self._inner._finish())
