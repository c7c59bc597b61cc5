"""The asyncio client for a daemon elsewhere: what ``await towpath.aio.connect("grpc://...")`` gives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from towpath import asking, calls, model, tracing
from towpath.addresses import RemoteAddress
from towpath.aio.api import AsyncClient, AsyncHandle, AsyncPublisher
from towpath.errors import NotSupported, TowpathError
from towpath.loans import HELD_MAX, check_held_max
from towpath.remote.asking import RemoteAsking
from towpath.remote.following import RemoteAsyncSubscription, RemoteAsyncWatch
from towpath.remote.publishing import RemoteAsyncPublisher
from towpath.remote.session import Session, make_carrier
from towpath.services.remote import RemoteAsyncCaller, RemoteAsyncServer
from towpath.waiting import CALL_TIMEOUT_S, deadline_ns, program_name, seconds

T = TypeVar("T")


class RemoteAsyncClient(AsyncClient):
    """A session with a gateway. Made by :func:`connect`."""

    def __init__(self, address: RemoteAddress, name: str) -> None:
        super().__init__()
        self._url = address.url
        self._session = Session(make_carrier(address, program_name(name)))
        self._asking = RemoteAsking(self._session)
        self._handles: set[AsyncHandle] = set()

    async def open(self, deadline: int | None) -> None:
        """Connect; see :meth:`Session.open`."""
        await self._session.open(seconds(deadline))

    async def close(self) -> None:
        # All at once: each may wait a moment for the gateway's word.
        await asyncio.gather(*(handle.close() for handle in list(self._handles)))
        await self._locks.close()
        await self._session.close()
        await self._asking.close()

    @property
    def is_connected(self) -> bool:
        return self._session.is_connected

    @property
    def session(self) -> int:
        return 0

    @property
    def principal(self) -> str:
        connection = self._session.connection
        return connection.principal if connection is not None else ""

    async def _call(self, call: calls.Call[T], deadline: int | None = None) -> T:
        return await self._session.ask(call, deadline)

    def _post(
        self, call: calls.Call[T], then: Callable[[T | TowpathError], None]
    ) -> Callable[[], object] | None:
        return self._asking.post(call, then)

    def _follow(self, make: Callable[[], calls.Call[T]], listener: asking.Listener[T]) -> asking.Following:
        return self._asking.follow(make, listener)

    def _every(self, tick: Callable[[], float]) -> Callable[[], object]:
        return self._asking.every(tick)

    @property
    def _is_over(self) -> bool:
        return self._session.ended is not None

    def _check_not_forked(self) -> None:
        """A loop does not go on in a forked child: there is nobody to ask."""

    async def serve(self, name: str, *, concurrency: int = 1, principal: str = "") -> RemoteAsyncServer:
        if principal:
            raise _needs_the_host("a principal")
        server = RemoteAsyncServer(self._session, name, concurrency, self._handles.discard)
        await server.open()
        self._handles.add(server)
        return server

    async def service_caller(self, name: str, principal: str = "") -> RemoteAsyncCaller:
        if principal:
            raise _needs_the_host("a principal")
        return RemoteAsyncCaller(self._session, name)

    def watch(self, *, after_revision: int | None = None) -> RemoteAsyncWatch:
        is_anew = after_revision is not None  # a gateway knows the state, not how it came to be
        watch = RemoteAsyncWatch(self._session, self._handles.discard, is_anew=is_anew)
        self._handles.add(watch)
        return watch

    async def publisher(self, name: str, *, origin: str = "") -> AsyncPublisher:
        return tracing.traced_async(await self.untraced_publisher(name, origin=origin))

    async def untraced_publisher(self, name: str, *, origin: str = "") -> RemoteAsyncPublisher:
        """The publisher itself: what is to be traced must be seen in the program's own thread."""
        if origin:
            raise _needs_the_host("an origin")
        info = await self.channel_info(name)
        publisher = RemoteAsyncPublisher(self._session, info, self._handles.discard)
        self._handles.add(publisher)
        return publisher

    async def subscribe(
        self,
        name: str,
        *,
        exclude_origin: str = "",
        start: model.Start | None = None,
        place: str = "",
        take_over: bool = False,
        held_max: int = HELD_MAX,
    ) -> RemoteAsyncSubscription:
        if exclude_origin:
            raise _needs_the_host("exclude_origin")
        check_held_max(held_max)  # from afar all payloads are copies
        subscription = RemoteAsyncSubscription(
            self._session, name, self._handles.discard, start=start, place=place, takes_over=take_over
        )
        subscription.save_with(self)
        await subscription.open(deadline_ns(CALL_TIMEOUT_S))
        self._handles.add(subscription)
        return subscription


def _needs_the_host(what: str) -> NotSupported:
    return NotSupported(
        f"{what} cannot be stated through a gateway", hint="connect to the daemon on its own host"
    )


async def connect(address: RemoteAddress, *, timeout: float | None, name: str) -> RemoteAsyncClient:
    """Connect to a gateway; see :func:`towpath.connect`."""
    client = RemoteAsyncClient(address, name)
    try:
        await client.open(deadline_ns(timeout))
    except BaseException:
        await client.close()
        raise
    return client
