"""The asyncio client of the daemon of this host: ``await towpath.aio.connect()``. The same as
``towpath.sync.client``, waiting on an event loop.

Theory of operation
    The door's socket and the session's doorbell are watched by the loop. A subscription that finds its
    rings empty says so in its control page ("asleep, ring the doorbell"), looks again, and awaits a
    future; the next publisher rings. A publisher that finds a ring full says so in the ring, and awaits a
    future in the same way; the subscriber that makes the room rings.

Invariants
    Nothing here blocks the loop. All calls are made from the loop that ``connect`` ran on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from towpath import addresses, asking, calls, loans, model, outcomes, tracing, wire
from towpath._version import __version__
from towpath.aio.api import AsyncClient, AsyncPublisher
from towpath.aio.bells import Bells
from towpath.aio.messages import LocalAsyncPublisher, LocalAsyncSubscription
from towpath.aio.room import Room
from towpath.aio.sleeper import Sleepers
from towpath.aio.submitting import AsyncQueuePublisher
from towpath.aio.watching import LocalAsyncWatch
from towpath.ends import KeptReader, ReaderState, SourceState
from towpath.errors import ConnectionLost, LimitExceeded, TowpathError, Unavailable
from towpath.life import Life, keep_from_children
from towpath.loans import HELD_MAX
from towpath.locks.aio import AsyncLock
from towpath.locks.requests import Place
from towpath.protocol import IDS_PER_REQUEST, ClientProtocol, Handler
from towpath.services.aio_caller import AsyncCallers, LocalAsyncCaller
from towpath.services.aio_server import LocalAsyncServer
from towpath.states.page import Page
from towpath.transport import FrameTransport
from towpath.v1.frame_pb2 import Frame
from towpath.waiting import (
    CALL_TIMEOUT_S,
    deadline_ns,
    program_name,
    remaining_ns,
    seconds,
)

if TYPE_CHECKING:
    from towpath import _ring
    from towpath.locks.paging_aio import AsyncPageLock
else:
    try:
        from towpath.locks.paging_aio import AsyncPageLock
    except ImportError:
        AsyncPageLock = None

T = TypeVar("T")

E = TypeVar("E", SourceState, ReaderState)

OUTBOX_BYTES_MAX: Final = 16 << 20


class LocalAsyncClient(AsyncClient):
    """A session with the daemon of this host."""

    _LOCK_LEASE_MS = 0

    def __init__(self, url: str | None, name: str) -> None:
        super().__init__()
        self._url = url
        self._loop = asyncio.get_running_loop()
        self._life = Life()
        self._bells = Bells(self._look)
        self._protocol = ClientProtocol(
            name=program_name(name),
            software=f"towpath-python/{__version__} asyncio",
            doorbell=self._bells.sender,
            doorbell_added=self._bells.add,
        )
        self._transport: FrameTransport | None = None
        self._sleepers = Sleepers(self._loop, self._protocol.readers)
        self._room = Room(self._protocol.sources)
        self._ready = asyncio.Event()
        self._callers = AsyncCallers(self)
        self._allocating = asyncio.Lock()
        self._reconnecting: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        keep_from_children(self)

    # ---- life ----

    async def close(self) -> None:
        if self._life.is_closed:
            return
        self._life.is_closed = True
        why = ConnectionLost("the client was closed", hint="")
        self._protocol.close(why)
        await self._callers.close()
        self._protocol.connection_lost(why)
        self._ready.set()
        self._bells.close()
        if self._expiry is not None:
            self._expiry.cancel()
        if self._transport is not None:
            self._transport.close()
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reconnecting

    def _abandon(self) -> None:
        """In a forked child: this client is the parent's."""
        self._transport = None
        self._protocol.abandon(self._life.abandon())

    @property
    def is_connected(self) -> bool:
        """Whether the daemon can be asked now. Messages flow in shared memory either way."""
        return self._protocol.is_ready

    @property
    def session(self) -> int:
        welcome = self._protocol.welcome
        return welcome.session if welcome is not None else 0

    @property
    def principal(self) -> str:
        welcome = self._protocol.welcome
        return welcome.principal if welcome is not None else ""

    # ---- messages ----

    def watch(self, *, after_revision: int | None = None) -> LocalAsyncWatch:
        return LocalAsyncWatch(self, after_revision)

    async def publisher(self, name: str, *, origin: str = "") -> AsyncPublisher:
        protocol = self._protocol

        async def attach() -> AsyncPublisher:
            info = await self._call(calls.channel_info(name), deadline)
            if info.kind == "queue":
                return AsyncQueuePublisher(self, info)
            begin = functools.partial(protocol.new_source, info, origin)
            state = await self._attach(begin, protocol.forget_source, deadline)
            state.wake = lambda: self._room.wake(state)
            return LocalAsyncPublisher(self, state)

        deadline = deadline_ns(CALL_TIMEOUT_S)
        return tracing.traced_async(await self._persist(attach))

    async def subscribe(
        self,
        name: str,
        *,
        exclude_origin: str = "",
        start: model.Start | None = None,
        place: str = "",
        take_over: bool = False,
        held_max: int = HELD_MAX,
    ) -> LocalAsyncSubscription:
        protocol = self._protocol

        async def attach() -> LocalAsyncSubscription:
            begin = functools.partial(
                protocol.new_reader,
                name,
                exclude_origin,
                wants_doorbell=True,
                held_max=held_max,
                place=calls.ReaderName(place, take_over),
            )
            state = await self._attach(begin, protocol.forget_reader, deadline)
            state.wake = lambda: self._sleepers.wake(state)
            subscription = LocalAsyncSubscription(self, state)
            if start is not None or place:
                try:
                    await subscription.begin(start, place, deadline)
                except BaseException:
                    await subscription.close()
                    raise
            return subscription

        loans.check_held_max(held_max)
        deadline = deadline_ns(CALL_TIMEOUT_S)
        return await self._persist(attach)

    async def take_up(self, name: str, kept: KeptReader, /, *, exclude_origin: str) -> LocalAsyncSubscription:
        """Go on with a subscription to a channel whose process is gone, where that had come to: for gateways,
        of which the supervisor keeps it.

        What was published since is heard, as far as it was not overwritten: as by a subscriber that was cut
        off for a while.

        Args:
            kept: its descriptor stays the caller's.

        Raises:
            InvalidArgument: what was kept is not what is left of a subscription.
            TowpathError: as ``subscribe``; also while whoever had it is still connected.
        """
        await self._wait_ready(deadline_ns(CALL_TIMEOUT_S))
        protocol, now_ns = self._protocol, time.monotonic_ns()

        begin = functools.partial(protocol.take_up_reader, name, exclude_origin, kept, now_ns)
        state = await self._attach(begin, protocol.forget_reader, deadline_ns(CALL_TIMEOUT_S))
        state.wake = lambda: self._sleepers.wake(state)
        self._schedule_expiry()
        return LocalAsyncSubscription(self, state)

    async def _value_page(self, name: str) -> Page:
        return await self._memory(functools.partial(self._protocol.attach_value, name))

    async def _memory(self, ask: Callable[[Callable[[T | TowpathError], None]], None]) -> T:
        """Ask for what comes with memory of the daemon's host."""
        await self._wait_ready(deadline_ns(CALL_TIMEOUT_S))
        given: asyncio.Future[T | TowpathError] = self._loop.create_future()
        ask(lambda found: None if given.done() else given.set_result(found))
        self._flush()
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                found = await given
        except TimeoutError:
            raise outcomes.no_answer() from None
        return outcomes.outcome(found)

    async def _lock_page(self, call: calls.Call[Place]) -> tuple[Place, _ring.LockPage | None]:
        """Ask for a lock to be given out to the uid's lock page; see :meth:`ClientProtocol.ask_lock_page`."""
        return await self._memory(functools.partial(self._protocol.ask_lock_page, call))

    def _page_lock(self, name: str) -> AsyncLock | None:
        return None if AsyncPageLock is None else AsyncPageLock(self._locks, name, self)

    async def serve(self, name: str, *, concurrency: int = 1, principal: str = "") -> LocalAsyncServer:
        return await self._persist(lambda: LocalAsyncServer.open(self, name, concurrency, principal))

    async def service_caller(self, name: str, principal: str = "") -> LocalAsyncCaller:
        return await self._callers.get(name, principal)

    async def _persist(self, attach: Callable[[], Awaitable[T]]) -> T:
        """Attach, once more whenever the connection breaks meanwhile; see the synchronous client."""
        while True:
            try:
                return await attach()
            except ConnectionLost:
                if self._is_over:
                    raise

    async def _attach(
        self,
        begin: Callable[[Handler], E],
        forget: Callable[[E, TowpathError], None],
        deadline: int | None,
    ) -> E:
        """Have the core attach a source or a reader, on the connection that its id was given on."""
        await self._ensure_ids(deadline)
        answered: asyncio.Future[Frame | TowpathError] = self._loop.create_future()
        state = begin(lambda answer: None if answered.done() else answered.set_result(answer))
        self._flush()
        try:
            outcomes.outcome(await self._answer(answered, deadline))
        except BaseException:
            forget(state, ConnectionLost("it was never attached"))
            self._flush()
            raise
        return state

    # ---- calling ----

    async def _call(
        self,
        call: calls.Call[T],
        deadline: int | None = None,
        descriptors: tuple[wire.Descriptor, ...] = (),
    ) -> T:
        return call.result(
            await self._ask(lambda done: self._protocol.call(call, done, descriptors), deadline)
        )

    async def _ask(self, begin: Callable[[Handler], int], deadline: int | None = None) -> Frame:
        """Queue a call by ``begin``, which is given who is to have its answer, and wait for that."""
        deadline = deadline_ns(CALL_TIMEOUT_S) if deadline is None else deadline
        await self._wait_ready(deadline)
        answered: asyncio.Future[Frame | TowpathError] = self._loop.create_future()

        def handle(answer: Frame | TowpathError) -> None:
            if not answered.done():
                answered.set_result(answer)

        call_id = begin(handle)
        self._flush()
        try:
            value = await self._answer(answered, deadline)
        finally:
            if not answered.done() or answered.cancelled():
                self._protocol.cancel(call_id)
                self._flush()
        return outcomes.outcome(value)

    async def _begin(self, call: calls.Call[T], deadline: int | None) -> asyncio.Future[T | TowpathError]:
        """Queue a call, as soon as there is a connection; its answer may be waited for more than once."""
        await self._wait_ready(deadline_ns(CALL_TIMEOUT_S) if deadline is None else deadline)
        answered: asyncio.Future[T | TowpathError] = self._loop.create_future()
        self._protocol.call(call, asking.answered(call, answered.set_result))
        self._flush()
        return answered

    def _post(
        self, call: calls.Call[T], then: Callable[[T | TowpathError], None]
    ) -> Callable[[], object] | None:
        if not self._protocol.is_ready or self._life.is_closed:
            return None
        call_id = self._protocol.call(call, asking.answered(call, then))
        self._flush()
        return functools.partial(self._withdraw, call_id)

    @property
    def _is_over(self) -> bool:
        return self._life.is_over

    def _withdraw(self, call_id: int) -> None:
        self._protocol.withdraw(call_id)
        self._flush()

    def _follow(self, make: Callable[[], calls.Call[T]], listener: asking.Listener[T]) -> asking.Following:
        if self._life.is_over:
            raise self._life.over()
        stream = self._protocol.keep_stream(make, listener)
        self._flush()

        def leave() -> None:
            stream.leave()
            self._flush()

        def send(body: Any) -> None:
            stream.send(body)
            self._flush()

        return asking.Following(leave, send)

    def _check_not_forked(self) -> None:
        self._life.check_not_forked()

    async def _answer(
        self, answered: asyncio.Future[Frame | TowpathError], deadline: int | None
    ) -> Frame | TowpathError:
        try:
            async with asyncio.timeout(seconds(deadline)):
                return await answered
        except TimeoutError:
            raise outcomes.no_answer() from None

    async def _ensure_ids(self, deadline: int | None) -> None:
        """Wait until there is a connection and the session has an id to use on it."""
        await self._wait_ready(deadline)
        while self._protocol.needs_ids:
            # One at a time: what is unused of a session's older blocks lapses when it is given another.
            async with self._allocating:
                if self._protocol.needs_ids:
                    call = calls.allocate_ids(IDS_PER_REQUEST)
                    self._protocol.add_ids(*await self._call(call, deadline))
            await self._wait_ready(deadline)

    async def _wait_ready(self, deadline: int | None) -> None:
        if not self._ready.is_set():
            try:
                async with asyncio.timeout(seconds(deadline)):
                    await self._ready.wait()
            except TimeoutError:
                raise outcomes.silent(
                    is_connected=self._transport is not None, last=self._life.last_error
                ) from None
        if self._life.is_over:
            raise self._life.over()

    def _flush(self) -> None:
        for frame, descriptors in self._protocol.take_outgoing():
            if self._transport is not None:
                self._transport.send(frame, descriptors)

    # ---- the connection ----

    def _open(self, sock: socket.socket) -> None:
        self._transport = FrameTransport(
            sock,
            frame_bytes_max=wire.RESPONSE_BYTES_MAX,
            outbox_bytes_max=OUTBOX_BYTES_MAX,
            on_frame=self._frame,
            on_closed=self._lost,
        )
        self._protocol.connection_made()
        self._flush()

    def _frame(self, frame: Frame, descriptors: list[wire.Descriptor]) -> None:
        self._protocol.receive(frame, descriptors, time.monotonic_ns())
        self._flush()
        if self._protocol.is_ready and not self._ready.is_set():
            self._life.welcomed()
            self._ready.set()
            self._schedule_expiry()

    def _schedule_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        deadline = self._protocol.deadline_ns
        if deadline is not None:
            self._expiry = self._loop.call_later(remaining_ns(deadline) / 1e9 + 0.001, self._expire)

    def _expire(self) -> None:
        if not self._life.is_closed:
            self._protocol.expire(time.monotonic_ns())
            self._flush()
            self._schedule_expiry()

    def _lost(self, error: TowpathError | None) -> None:
        if self._life.is_closed:
            return
        self._transport = None
        self._bells.connection_lost()
        self._ready.clear()
        self._protocol.connection_lost(error)
        if not self._life.lost(error):
            self._protocol.end_streams(self._life.over())
            self._ready.set()
            return
        self._reconnecting = self._loop.create_task(self._reconnect(), name="towpath-reconnect")

    async def _reconnect(self) -> None:
        while not self._life.is_closed:
            await asyncio.sleep(self._life.pauses.next_s())
            try:
                self._open(addresses.open_socket(self._url))
                return
            except (Unavailable, LimitExceeded):
                continue

    # ---- waking and waiting ----

    def _look(self) -> None:
        """A doorbell has rung, for anybody who sleeps or waits here."""
        self._sleepers.look()
        self._room.look()


async def connect(url: str | None = None, *, timeout: float | None = 5.0, name: str = "") -> AsyncClient:
    """Connect to a daemon; arguments and errors as for :func:`towpath.connect`."""
    remote = addresses.parse_remote(url)
    if remote is not None:
        from towpath.remote import aio  # it brings what the local client does not need

        return await aio.connect(remote, timeout=timeout, name=name)
    client = LocalAsyncClient(url, name)
    try:
        client._open(addresses.open_socket(url))
        await client._wait_ready(deadline_ns(timeout))
    except BaseException:
        await client.close()
        raise
    return client
