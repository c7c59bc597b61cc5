"""The synchronous client for a daemon elsewhere: what ``towpath.connect("grpc://...")`` gives.

Theory of operation
    ``aio`` on an event loop in a thread of the client's own. Each method hands a coroutine over and waits for
    its end; a subscription takes up to 256 messages at a time, and hands them out one by one in the caller's
    thread.

Invariants
    A client, and all that came from it, may be used by several threads. ``close`` ends the thread, and
    everything that waits. After a fork the child's handles raise; it must connect for itself.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from towpath import asking, calls, model, outcomes, tracing
from towpath._message import Message
from towpath.addresses import RemoteAddress
from towpath.errors import ConnectionLost, Timeout, TowpathError
from towpath.loans import HELD_MAX
from towpath.remote import aio
from towpath.remote.following import RemoteAsyncSubscription, RemoteAsyncWatch
from towpath.remote.publishing import RemoteAsyncPublisher
from towpath.services.api import Caller, Server
from towpath.services.remote_blocking import RemoteCaller, RemoteServer
from towpath.sync.api import Client, Publisher, Subscription, Watch
from towpath.waiting import Buffer, deadline_ns, seconds

T = TypeVar("T")

_clients: weakref.WeakSet[RemoteClient] = weakref.WeakSet()


def _forget_in_child() -> None:
    for client in list(_clients):
        client._portal.abandon()


def _close_all() -> None:
    for client in list(_clients):
        client.close()


os.register_at_fork(after_in_child=_forget_in_child)
atexit.register(_close_all)


class Portal:
    """An event loop in a thread, and the way onto it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._is_open = True
        self._entering = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="towpath-remote", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            if tasks:
                self._loop.run_until_complete(asyncio.wait(tasks))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the work on the loop, and wait for it.

        Raises:
            ConnectionLost: the portal is closed.
        """
        with self._entering:
            if not self._is_open:
                work.close()
                raise ConnectionLost("the client is closed", hint="")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ConnectionLost("the client was closed", hint="") from None
        except BaseException:
            # Also when it is us who are interrupted: then the work is in vain.
            future.cancel()
            raise

    def do(self, function: Callable[[], T]) -> T:
        """Have a function called on the loop, and wait for it; from the loop's thread, call it.

        Raises:
            ConnectionLost: the portal is closed.
        """
        if threading.current_thread() is self._thread:
            return function()

        async def called() -> T:
            return function()

        return self.run(called())

    def post(self, function: Callable[[], object]) -> None:
        """Have the loop call a function; nobody waits for it.

        Raises:
            ConnectionLost: the portal is closed.
        """
        with self._entering:
            self.check()
            self._loop.call_soon_threadsafe(function)

    @property
    def is_open(self) -> bool:
        """Whether work can be handed over."""
        return self._is_open

    def check(self) -> None:
        """Raises ConnectionLost when the portal is closed, as it is in a forked child."""
        if not self._is_open:
            raise ConnectionLost("the client is closed", hint="")

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Do this last piece of work, and end the thread. More than once is fine."""
        with self._entering:
            if not self._is_open:
                last.close()
                return
            future = asyncio.run_coroutine_threadsafe(last, self._loop)
            self._is_open = False
        try:
            future.result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def abandon(self) -> None:
        """In a forked child: the thread is the parent's."""
        self._entering = threading.Lock()
        self._is_open = False


class RemoteClient(Client):
    """A session with a gateway. Made by :func:`connect`."""

    def __init__(self, address: RemoteAddress, *, timeout: float | None, name: str) -> None:
        super().__init__()
        self._url = address.url
        self._portal = Portal()
        try:
            self._inner = self._portal.run(aio.connect(address, timeout=timeout, name=name))
        except BaseException:
            self._portal.close(_nothing())
            raise
        _clients.add(self)

    def close(self) -> None:
        if self._portal.is_open:
            self._locks.close()
        self._portal.close(self._inner.close())

    def __repr__(self) -> str:
        return f"<towpath.Client from afar{'' if self.is_connected else ', not connected'}>"

    @property
    def is_connected(self) -> bool:
        return self._inner.is_connected

    @property
    def session(self) -> int:
        return self._inner.session

    @property
    def principal(self) -> str:
        return self._inner.principal

    def _call(self, call: calls.Call[T], deadline: int | None = None) -> T:
        return self._portal.run(self._inner._call(call, deadline))

    def _post(
        self, call: calls.Call[T], then: Callable[[T | TowpathError], None]
    ) -> Callable[[], object] | None:
        withdraws: list[Callable[[], object]] = []

        def posted() -> None:
            withdraw = self._inner._post(call, then)
            if withdraw is None:  # our caller is told in the way that is left
                then(outcomes.not_connected())
            else:
                withdraws.append(withdraw)

        self._portal.post(posted)
        return lambda: self._portal.post(lambda: [withdraw() for withdraw in withdraws])

    def _follow(self, make: Callable[[], calls.Call[T]], listener: asking.Listener[T]) -> asking.Following:
        following = self._portal.do(lambda: self._inner._follow(make, listener))
        return asking.Following(
            leave=lambda: self._portal.post(following.leave),
            send=lambda body: self._portal.post(lambda: following.send(body)),
        )

    def _every(self, tick: Callable[[], float]) -> Callable[[], object]:
        stop = self._portal.do(lambda: self._inner._every(tick))
        return lambda: self._portal.post(stop)

    @property
    def _is_over(self) -> bool:
        return not self._portal.is_open or self._inner._is_over

    def _check_not_forked(self) -> None:
        self._portal.check()

    def serve(self, name: str, *, concurrency: int = 1) -> Server:
        return RemoteServer(self._portal, self._portal.run(self._inner.serve(name, concurrency=concurrency)))

    def service_caller(self, name: str, principal: str = "") -> Caller:
        return RemoteCaller(self._portal, self._portal.run(self._inner.service_caller(name, principal)))

    def watch(self, *, after_revision: int | None = None) -> RemoteWatch:
        return RemoteWatch(self._portal, self._portal.run(self._watch(after_revision)))

    async def _watch(self, after_revision: int | None) -> RemoteAsyncWatch:
        watch = self._inner.watch(after_revision=after_revision)
        watch.start()
        return watch

    def publisher(self, name: str, *, origin: str = "") -> Publisher:
        inner = self._portal.run(self._inner.untraced_publisher(name, origin=origin))
        return tracing.traced(RemotePublisher(self._portal, inner))

    def subscribe(
        self,
        name: str,
        *,
        exclude_origin: str = "",
        start: model.Start | None = None,
        place: str = "",
        take_over: bool = False,
        held_max: int = HELD_MAX,
    ) -> RemoteSubscription:
        inner = self._portal.run(
            self._inner.subscribe(
                name,
                exclude_origin=exclude_origin,
                start=start,
                place=place,
                take_over=take_over,
                held_max=held_max,
            )
        )
        return RemoteSubscription(self._portal, inner)


class RemotePublisher(Publisher):
    """A publisher through a gateway."""

    def __init__(self, portal: Portal, inner: RemoteAsyncPublisher) -> None:
        self._portal = portal
        self._inner = inner
        self.source = inner.source
        self.channel = inner.channel
        self.message_bytes_max = inner.message_bytes_max

    @property
    def is_ended(self) -> bool:
        return self._inner.is_ended

    def publish(
        self,
        data: Buffer,
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        return self.publish_many(
            [data], headers=headers, headers_raw=headers_raw, timeout=timeout, confirm=confirm
        )

    def publish_many(
        self,
        payloads: Sequence[Buffer],
        *,
        headers: model.Headers | Sequence[model.Headers | None] | None = None,
        headers_raw: bytes | Sequence[bytes] | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        seq = self._portal.run(
            self._inner.publish_many(
                payloads, headers=headers, headers_raw=headers_raw, timeout=timeout, confirm=confirm
            )
        )
        self.source = self._inner.source
        return seq

    def wait_drained(self, timeout: float | None = None) -> bool:
        return self._portal.run(self._inner.wait_drained(timeout))

    def close(self) -> None:
        with contextlib.suppress(ConnectionLost):
            self._portal.run(self._inner.close())


class RemoteSubscription(Subscription):
    """A subscription through a gateway."""

    def __init__(self, portal: Portal, inner: RemoteAsyncSubscription) -> None:
        super().__init__(inner.name)
        self._portal = portal
        self._inner = inner

    @property
    def lost(self) -> int:
        """Messages that were missed, in total."""
        return self._inner.lost

    @property
    def is_stored(self) -> bool:
        return self._inner.is_stored

    @property
    def next_seq(self) -> int | None:
        for message in self._buffer:
            return message.seq if self._inner.next_seq is not None else None
        return self._inner.next_seq

    def save_place(self, timeout: float | None = None) -> None:
        self._portal.run(self._inner.save_place_at(self.next_seq, timeout))

    def _take(self, count_max: int, bytes_max: int, timeout: float | None) -> list[Message]:
        return self._portal.run(self._inner._take(count_max, bytes_max, timeout))

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(ConnectionLost):
            self._portal.run(self._inner.close())


class RemoteWatch(Watch):
    """A watch through a gateway."""

    def __init__(self, portal: Portal, inner: RemoteAsyncWatch) -> None:
        self._portal = portal
        self._inner = inner

    def receive(self, timeout: float | None = None) -> model.WatchEvent:
        return self._portal.run(self._receive(deadline_ns(timeout)))

    async def _receive(self, deadline: int | None) -> model.WatchEvent:
        try:
            async with asyncio.timeout(seconds(deadline)):
                return await self._inner.receive()
        except TimeoutError:
            raise Timeout("nothing changed") from None

    def close(self) -> None:
        with contextlib.suppress(ConnectionLost):
            self._portal.run(self._inner.close())


async def _nothing() -> None:
    return None


def connect(address: RemoteAddress, *, timeout: float | None, name: str) -> RemoteClient:
    """Connect to a gateway; see :func:`towpath.connect`."""
    return RemoteClient(address, timeout=timeout, name=name)
