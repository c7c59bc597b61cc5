"""What travels as frames, from afar: calls that nobody waits for, and streams that outlive their connection.

Theory of operation
    Each posted call and each stream is a task on the client's loop. A stream's task asks on the session's
    connection, tells what comes, and when that connection breaks, asks on the next; a refusal that trying
    again does not change ends it. What a stream is to be sent besides goes by a line of its own, in order,
    and is forgotten with the connection. See :class:`towpath.asking.Asking` for what is promised.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from towpath.asking import Following, Listener
from towpath.calls import Call
from towpath.errors import Cancelled, ConnectionLost, InternalError, Timeout, TowpathError, Unavailable
from towpath.remote.ports import Answers, Connection, Exchange
from towpath.remote.session import Session
from towpath.waiting import CALL_TIMEOUT_S, Pauses

T = TypeVar("T")

_TRY_AGAIN = (Cancelled, ConnectionLost, Timeout, Unavailable)
"""What ends a stream but not what it is about."""


class RemoteAsking:
    """One session's posted calls and streams."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: dict[asyncio.Task[None], Listener[Any]] = {}
        self._ticking: set[_Ticking] = set()

    def post(self, call: Call[T], then: Callable[[T | TowpathError], None]) -> Callable[[], object] | None:
        """As :meth:`towpath.asking.Asking._post`; what is withdrawn may have been carried out."""
        connection = self._session.connection
        if connection is None or connection.is_lost:
            return None

        async def asked() -> None:
            outcome: T | TowpathError
            try:
                outcome = await connection.ask(call, CALL_TIMEOUT_S)
            except TowpathError as error:
                outcome = error
            except asyncio.CancelledError:
                then(Cancelled("the call was withdrawn: it may have been carried out"))
                raise
            then(outcome)

        return self._start(asked()).cancel

    def follow(self, make: Callable[[], Call[T]], listener: Listener[T]) -> Following:
        """As :meth:`towpath.asking.Asking._follow`."""
        if self._session.ended is not None:
            raise self._session.ended.again()
        line = _Line()
        following = self._start(self._followed(make, listener, line))
        self._listeners[following] = listener

        def stopped(task: asyncio.Task[None]) -> None:
            """A bug in the task must not leave anybody waiting."""
            self._listeners.pop(task, None)
            if not task.cancelled() and (bug := task.exception()) is not None:
                listener.ended(InternalError(f"the stream failed: {bug!r}"))

        # A task that was cancelled has its frames, and with them what they hold, for as long as it is there.
        running = weakref.ref(following)

        def leave() -> None:
            task = running()
            if task is not None:
                self._listeners.pop(task, None)
                task.cancel()

        following.add_done_callback(stopped)
        return Following(leave, line.put)

    def every(self, tick: Callable[[], float]) -> Callable[[], object]:
        """As :meth:`towpath.asking.Asking._every`."""

        ticking = _Ticking(tick)
        self._ticking.add(ticking)

        def stop() -> None:
            ticking.stop()
            self._ticking.discard(ticking)

        return stop

    async def close(self) -> None:
        """End everything; who follows is told."""
        listeners = list(self._listeners.values())
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for ticking in self._ticking:
            ticking.stop()
        if tasks:
            await asyncio.wait(tasks)
        for listener in listeners:
            listener.ended(ConnectionLost("the client was closed", hint=""))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name="towpath-asking")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _followed(self, make: Callable[[], Call[T]], listener: Listener[T], line: _Line) -> None:
        pauses = Pauses()
        while True:
            try:
                connection = await self._session.ready()
                call = make()
                stream = await self._opened(connection, call, line)
                try:
                    while True:
                        item = await stream.receive()
                        listener.came(item)
                        if call.is_last is not None and call.is_last(item):
                            return
                        pauses.begin_anew()
                finally:
                    line.close()
                    stream.close()
            except TowpathError as error:
                if self._session.ended is not None:
                    listener.ended(self._session.ended.again())
                    return
                if not isinstance(error, _TRY_AGAIN):
                    listener.ended(error)
                    return
                listener.broke(error)
            await asyncio.sleep(pauses.next_s())

    async def _opened(self, connection: Connection, call: Call[T], line: _Line) -> Answers[T]:
        if not call.is_exchange:
            return await connection.open_stream(call)
        exchange = await connection.open_exchange(call)
        line.sending = self._start(line.send(exchange))
        return exchange


class _Ticking:
    """Something that is called now and again."""

    def __init__(self, tick: Callable[[], float]) -> None:
        self._tick = tick
        self._is_over = False
        self._timer: asyncio.Handle = asyncio.get_running_loop().call_soon(self._ticked)

    def _ticked(self) -> None:
        after_s = self._tick()
        if not self._is_over:
            self._timer = asyncio.get_running_loop().call_later(after_s, self._ticked)

    def stop(self) -> None:
        self._is_over = True
        self._timer.cancel()


class _Line:
    """What one stream is to be sent, besides its first request."""

    def __init__(self) -> None:
        self._bodies: asyncio.Queue[Any] = asyncio.Queue()
        self.sending: asyncio.Task[None] | None = None

    def put(self, body: Any) -> None:
        """Have something sent, if there is a connection."""
        if self.sending is not None:
            self._bodies.put_nowait(body)

    async def send(self, exchange: Exchange[Any]) -> None:
        """Send what is put, until the stream ends."""
        with contextlib.suppress(TowpathError):  # whoever reads the stream is told
            while True:
                await exchange.send(await self._bodies.get())

    def close(self) -> None:
        """The stream has ended, and what was to be sent with it."""
        sending, self.sending = self.sending, None
        if sending is not None:
            sending.cancel()
        self._bodies = asyncio.Queue()
