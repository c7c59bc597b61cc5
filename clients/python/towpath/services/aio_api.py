"""Servers and requests of the asyncio client, wherever the daemon is. The same as ``api``, where each method
is documented; here all that waits is a coroutine.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from towpath import model
from towpath.errors import Cancelled, ConnectionLost
from towpath.handles import AsyncHandle
from towpath.result import attempt_async
from towpath.waiting import CALL_TIMEOUT_S, Buffer, deadline_ns

from .answering import needs_stream
from .request import RequestBase

if TYPE_CHECKING:
    from towpath._message import Message

AsyncAnswer = Awaitable[Buffer | None] | AsyncIterable[Buffer]
"""What a handler gives: a coroutine that returns the reply (None for an empty one), or an asynchronous
iterable of which each item is a part of a stream."""

AsyncHandler = Callable[["AsyncRequest"], AsyncAnswer]


class AsyncRequest(RequestBase):
    """One request to a service; see :class:`towpath.Request`."""

    @abstractmethod
    def _when_cancelled(self, callback: Callable[[], object]) -> Callable[[], object]:
        """Have a function called, once, when nobody waits for an answer any more; returns what takes that
        back.
        """

    @abstractmethod
    async def reply(self, payload: Buffer = b"", *, headers: model.Headers | None = None) -> None:
        """Answer; see :meth:`towpath.Request.reply`."""

    @abstractmethod
    async def send(self, payload: Buffer, *, headers: model.Headers | None = None) -> bool:
        """Send a part of a stream; see :meth:`towpath.Request.send`."""

    @abstractmethod
    async def end(self) -> None:
        """End a stream without a last part."""

    @abstractmethod
    async def fail(self, error: BaseException) -> None:
        """Answer with an error; see :meth:`towpath.Request.fail`."""

    @abstractmethod
    async def _finish(self) -> None:
        """The program is done with it: fail it if it was not answered. More than once is fine."""

    async def answer(self, handler: AsyncHandler) -> None:
        """Answer with what a handler gives or raises; the task that works on it is cancelled, and goes on
        after this, when the caller waits no more.
        """
        task = asyncio.current_task()
        assert task is not None
        forget = self._when_cancelled(task.cancel)
        try:
            await self._answer(handler)
        except asyncio.CancelledError:
            if not self.is_cancelled:
                await self.fail(Cancelled("the server was stopped"))
                raise
            task.uncancel()
        except Exception as error:  # whatever a program's handler raises is its answer
            if not self.is_answered:
                await self.fail(error)
        finally:
            forget()
            await self._finish()

    async def _answer(self, handler: AsyncHandler) -> None:
        answer = handler(self)
        if isinstance(answer, AsyncIterable):
            if not self.is_stream:
                raise needs_stream()
            async for part in answer:
                if not await self.send(part):
                    return
            if not self.is_answered:
                await self.end()
            return
        reply = await answer
        if not self.is_answered:
            await self.reply(b"" if reply is None else reply)


class AsyncServer(AsyncHandle):
    """One server of a service; see :class:`towpath.Server`."""

    channel: str
    concurrency: int

    @abstractmethod
    async def receive(self, timeout: float | None = None) -> AsyncRequest:
        """Return the next request; see :meth:`towpath.Server.receive`."""

    try_receive = attempt_async(receive)

    @property
    @abstractmethod
    def is_closed(self) -> bool:
        """Whether it was closed here."""

    @abstractmethod
    async def close(self) -> None:
        """Serve no more; see :meth:`towpath.Server.close`."""

    async def __aiter__(self) -> AsyncIterator[AsyncRequest]:
        """Yield requests until the server is closed. With a ``concurrency`` of 1, a request that is not
        answered when the next one is asked for is failed.
        """
        while not self.is_closed:
            try:
                request = await self.receive()
            except ConnectionLost:
                if self.is_closed:
                    return
                raise
            yield request
            if self.concurrency == 1:
                await request._finish()

    async def run(self, handler: AsyncHandler) -> None:
        """Answer every request with what ``handler`` gives for it, each in a task of its own, ``concurrency``
        at a time, until the server is closed. A handler is cancelled when its caller waits no more.

        Raises:
            ChannelUndeclared, ConnectionLost: the server has ended.
        """
        async with asyncio.TaskGroup() as group:
            while not self.is_closed:
                try:
                    request = await self.receive()
                except ConnectionLost:
                    if self.is_closed:
                        return
                    raise
                group.create_task(request.answer(handler))


class AsyncCaller(Protocol):
    """A client's way to one service."""

    async def call(
        self,
        payload: Buffer,
        *,
        headers: model.Headers | None,
        deadline: int | None,
        is_idempotent: bool,
        wait: bool,
    ) -> Message: ...

    def call_stream(
        self,
        payload: Buffer,
        *,
        headers: model.Headers | None,
        deadline: int | None,
        is_idempotent: bool,
        wait: bool,
    ) -> AsyncGenerator[Message, None]: ...


class AsyncServices(ABC):
    """What an asyncio client can do with services."""

    async def call(
        self,
        name: str,
        payload: Buffer = b"",
        *,
        timeout: float | None = CALL_TIMEOUT_S,
        idempotent: bool = False,
        headers: model.Headers | None = None,
        wait: bool = False,
    ) -> Message:
        """Ask a service, and wait for the reply; see :meth:`towpath.Client.call`. A task that is cancelled
        cancels its call.
        """
        deadline = deadline_ns(timeout)
        caller = await self.service_caller(name)
        return await caller.call(
            payload, headers=headers, deadline=deadline, is_idempotent=idempotent, wait=wait
        )

    try_call = attempt_async(call)

    async def call_stream(
        self,
        name: str,
        payload: Buffer = b"",
        *,
        timeout: float | None = None,
        idempotent: bool = False,
        headers: model.Headers | None = None,
        wait: bool = False,
    ) -> AsyncGenerator[Message, None]:
        """Ask a service, and iterate over its replies; see :meth:`towpath.Client.call_stream`. What is not
        iterated to its end must be closed (``aclose``) to cancel the call.
        """
        deadline = deadline_ns(timeout)
        caller = await self.service_caller(name)
        replies = caller.call_stream(
            payload, headers=headers, deadline=deadline, is_idempotent=idempotent, wait=wait
        )
        async with contextlib.aclosing(replies):
            async for reply in replies:
                yield reply

    @abstractmethod
    async def serve(self, name: str, *, concurrency: int = 1, principal: str = "") -> AsyncServer:
        """Become a server of a service; see :meth:`towpath.Client.serve`. ``principal`` is for whom a gateway
        serves.
        """

    @abstractmethod
    async def service_caller(self, name: str, principal: str = "") -> AsyncCaller:
        """This client's way to a service; ``principal`` is for whom a gateway calls."""
