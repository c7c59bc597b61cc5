"""Callers on this host that wait on an event loop.

Theory of operation
    The same as ``caller``. A task reads the control page, sleeps on the session's doorbell when nothing is
    there, and wakes the futures of whoever waits for what came.

Invariants
    All of it runs on the client's loop. Nothing here blocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from towpath import calls, model
from towpath._message import Message
from towpath.aio.messages import LocalAsyncPublisher
from towpath.ends import ReaderState, SourceState
from towpath.errors import ConnectionLost, Timeout, TowpathError
from towpath.v1 import frame_pb2
from towpath.waiting import CALL_TIMEOUT_S, Buffer, deadline_ns, far_ns, remaining_ns, seconds

from . import answering, asking
from .asking import BEGIN_LOOK_S, READ_BYTES, READ_COUNT, Calls, PendingCall
from .news import News

if TYPE_CHECKING:
    from towpath.aio.client import LocalAsyncClient


class LocalAsyncCaller:
    """One client's way to one service. Made by :meth:`open`."""

    def __init__(self, client: LocalAsyncClient, source: SourceState, replies: ReaderState) -> None:
        self.name = source.channel
        self._client = client
        self._source = source
        self._replies = replies
        self._requests = LocalAsyncPublisher(client, source)
        self._calls = Calls(source, replies)
        self._news: dict[PendingCall, News] = {}
        self._servers = News()
        source.wake = self._wake
        replies.wake = self._wake
        self._reading = asyncio.create_task(self._read(), name=f"towpath-call {self.name}")

    @classmethod
    async def open(cls, client: LocalAsyncClient, name: str, principal: str = "") -> LocalAsyncCaller:
        """Attach both ends."""
        deadline = deadline_ns(CALL_TIMEOUT_S)
        protocol = client._protocol
        info = await client._call(calls.channel_info(name), deadline)
        begin = functools.partial(
            protocol.new_reader, name, "", wants_doorbell=True, role=frame_pb2.READER_ROLE_REPLIES
        )
        replies = await client._attach(begin, protocol.forget_reader, deadline)
        try:
            place = calls.SourcePlace(frame_pb2.SOURCE_ROLE_CALLER, replies.id, 0, principal)
            source = await client._attach(
                functools.partial(protocol.new_source, info, "", place=place),
                protocol.forget_source,
                deadline,
            )
        except BaseException:
            protocol.forget_reader(replies, ConnectionLost("it was never attached"))
            client._flush()
            raise
        return cls(client, source, replies)

    def _wake(self) -> None:
        self._client._sleepers.wake(self._replies)
        self._client._room.wake(self._source)

    @property
    def ended(self) -> TowpathError | None:
        """Why it is of no use any more; None while it is."""
        return self._calls.ended

    async def close(self) -> None:
        """Leave the service. More than once is fine."""
        why = ConnectionLost("the client was closed", hint="")
        self._client._protocol.forget_source(self._source, why)
        self._client._protocol.forget_reader(self._replies, why)
        self._client._flush()
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading

    # ---- calling ----

    async def call(
        self,
        payload: Buffer,
        *,
        headers: model.Headers | None,
        deadline: int | None,
        is_idempotent: bool,
        wait: bool,
    ) -> Message:
        """See :meth:`towpath.Client.call`."""
        call = PendingCall(deadline_ns=deadline, is_idempotent=is_idempotent, is_stream=False)
        raw = answering.headers_bytes(headers)
        while True:
            await self._send(call, payload, raw, wait=wait)
            await self._wait(call)
            reply = call.take()
            if reply is not None:
                return reply
            if not call.may_try_again:
                raise call.error or asking.lost(self.name)

    async def call_stream(
        self,
        payload: Buffer,
        *,
        headers: model.Headers | None,
        deadline: int | None,
        is_idempotent: bool,
        wait: bool,
    ) -> AsyncGenerator[Message, None]:
        """See :meth:`towpath.Client.call_stream`."""
        call = PendingCall(deadline_ns=deadline, is_idempotent=is_idempotent, is_stream=True)
        raw = answering.headers_bytes(headers)
        await self._send(call, payload, raw, wait=wait)
        try:
            while True:
                await self._wait(call)
                while (part := call.take()) is not None:
                    grant = self._calls.grant(call)
                    if grant is not None:
                        await self._requests.publish(b"", headers_raw=grant)
                    yield part
                if not call.is_over:
                    continue
                if not call.may_try_again:
                    break
                await self._send(call, payload, raw, wait=wait)
        finally:
            self._withdraw(call)
        if call.error is not None:
            raise call.error

    async def _send(self, call: PendingCall, payload: Buffer, raw: bytes, *, wait: bool) -> None:
        while (server := self._calls.choose()) is None:
            await self._find_server(call, wait=wait)
        headers_raw = self._calls.begin(call, server) + raw
        try:
            await self._requests.publish(payload, headers_raw=headers_raw, timeout=seconds(call.deadline_ns))
        except Timeout:
            self._calls.end(call)
            raise asking.too_late(self.name) from None
        except BaseException:
            self._calls.end(call)
            raise

    async def _find_server(self, call: PendingCall, *, wait: bool) -> None:
        """Nobody can be asked: see whether somebody has come, and wait for that when it is wanted, or while
        the core is so young that servers of the one before may still come back.

        Raises:
            NoServer: nobody serves.
            Timeout: nobody has come in time.
        """
        if self.ended is not None:
            raise self.ended.again()
        limit = call.deadline_ns if call.deadline_ns is not None else far_ns()
        await self._requests._fetch_readers(limit)
        state = self._calls
        if state.choose() is not None:
            return
        until = limit if wait else min(limit, self._client._protocol.resuming_until_ns)
        if not state.is_awaiting_server and not wait and asking.is_past(until):
            raise asking.no_server(self.name)
        if state.is_awaiting_server:  # it is there, and has not begun to read; nothing tells when it does
            await asyncio.sleep(min(BEGIN_LOOK_S, remaining_ns(limit) / 1e9))
        else:
            await self._servers.wait(until)
        if asking.is_past(limit):
            raise asking.too_late(self.name)

    async def _wait(self, call: PendingCall) -> None:
        """Wait until a call has news.

        Raises:
            Timeout: its deadline has passed; the server is told.
        """
        news = self._news[call] = News()
        try:
            while not (has_news := call.has_news) and not asking.is_past(call.deadline_ns):
                await news.wait(call.deadline_ns)
        except BaseException:
            self._withdraw(call)
            raise
        finally:
            del self._news[call]
        if not has_news:
            self._withdraw(call)
            raise asking.too_late(self.name)

    def _withdraw(self, call: PendingCall) -> None:
        """Tell the server that nobody waits, if there is room to; it has the deadline, too."""
        raw = self._calls.withdraw(call)
        if raw is not None:
            with contextlib.suppress(ValueError, RuntimeError):
                self._source.writer.try_publish(b"", raw)

    # ---- reading ----

    async def _read(self) -> None:
        """Read until both ends are closed."""
        state, client = self._replies, self._client
        while True:
            try:
                messages = state.reader.receive(READ_COUNT, READ_BYTES, 0)
            except (ValueError, RuntimeError):  # closed
                messages = []
            if messages:
                told = self._calls.take_in(messages)
            else:
                client._protocol.tend(state)
                client._flush()
                told = self._calls.find_lost()
                if state.troubles:
                    told += self._meet_troubles()
                self._servers.tell()
            for call in told:
                if (news := self._news.get(call)) is not None:
                    news.tell()
            if self.ended is not None:
                return
            if not messages:
                await client._sleepers.sleep(state, None)

    def _meet_troubles(self) -> list[PendingCall]:
        """A server's answers cannot be had: it is not known whose, so no call goes on."""
        error = self._replies.troubles.pop()
        self._replies.troubles.clear()
        told = list(self._calls.pending.values())
        for call in told:
            self._calls.end(call, error.again())
        return told


class AsyncCallers:
    """The services that one client has called; each is left when the client is closed."""

    def __init__(self, client: LocalAsyncClient) -> None:
        self._client = client
        self._callers: dict[tuple[str, str], LocalAsyncCaller] = {}
        self._opening = asyncio.Lock()

    async def get(self, name: str, principal: str = "") -> LocalAsyncCaller:
        """Return the caller of a service, made when first asked for, and again when it has ended."""
        caller = self._callers.get((name, principal))
        if caller is None or caller.ended is not None:
            async with self._opening:
                caller = self._callers.get((name, principal))
                if caller is None or caller.ended is not None:
                    if caller is not None:
                        await caller.close()
                    caller = await self._client._persist(
                        functools.partial(LocalAsyncCaller.open, self._client, name, principal)
                    )
                    self._callers[name, principal] = caller
        return caller

    async def close(self) -> None:
        """Leave them all."""
        for caller in self._callers.values():
            await caller.close()
