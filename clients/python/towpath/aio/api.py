"""What the asyncio client looks like, wherever the daemon is: the classes that programs name.

The same as ``towpath.sync.api``, where each method is documented; here all that waits is a coroutine.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from towpath import calls, loans, model
from towpath._message import Message
from towpath.aio.channel import AsyncChannel, NamedPublishers
from towpath.aio.kinds import AsyncKinds
from towpath.asking import Following, Listener
from towpath.errors import Cancelled, ConnectionLost, Timeout, TowpathError
from towpath.handles import AsyncHandle as AsyncHandle
from towpath.loans import HELD_MAX, Loan
from towpath.result import attempt_async
from towpath.services.aio_api import AsyncServices
from towpath.waiting import RECEIVE_BYTES, RECEIVE_COUNT, Buffer

if TYPE_CHECKING:
    import io
    import socket

    from towpath import pipes
    from towpath.framing import FramingOptions

T = TypeVar("T")


class AsyncClient(AsyncKinds, AsyncServices, AsyncHandle):
    """A session with a daemon. Made by ``towpath.aio.connect``; use it as an asynchronous context manager, or
    close it. All calls are made from the loop that ``connect`` ran on.
    """

    _url: str | None = None

    def __init__(self) -> None:
        self._named_publishers = NamedPublishers(self)

    @property
    @abstractmethod
    def is_connected(self) -> bool:
        """Whether the daemon can be asked now."""

    @property
    @abstractmethod
    def session(self) -> int:
        """The session's id; 0 while there is no connection, and always 0 from afar."""

    @property
    @abstractmethod
    def principal(self) -> str:
        """For whom the session acts: ``uid:1000``; empty while that is not known."""

    def acting_for(self, principal: str) -> AsyncKinds:
        """What somebody else may ask; honoured only from gateways that the daemon started."""
        return _ActingFor(self, principal)

    async def report_bindings(self, reports: Mapping[int, model.BindingReport]) -> None:
        """From the bridge: how its bindings fare."""
        await self._call(calls.report_bindings(reports))

    async def report_gateway(
        self, endpoints: Mapping[str, str], counters: Mapping[str, int], detail: str = ""
    ) -> None:
        """From a gateway: where it listens and what it counted."""
        await self._call(calls.report_gateway(endpoints, counters, detail))

    @abstractmethod
    def watch(self, *, after_revision: int | None = None) -> AsyncWatch:
        """Follow the registry; see :meth:`towpath.Client.watch`."""

    def channel(self, name: str) -> AsyncChannel:
        """Return a handle for publishing and subscribing by name; asks nobody until it is used."""
        return AsyncChannel(self, name)

    @abstractmethod
    async def publisher(self, name: str, *, origin: str = "") -> AsyncPublisher:
        """Become a publisher of a channel; see :meth:`towpath.Client.publisher`."""

    @abstractmethod
    async def subscribe(
        self,
        name: str,
        *,
        exclude_origin: str = "",
        start: model.Start | None = None,
        place: str = "",
        take_over: bool = False,
        held_max: int = HELD_MAX,
    ) -> AsyncSubscription:
        """Subscribe: nothing published after this returned is missed; see
        :meth:`towpath.Client.subscribe`.
        """

    async def open_pipe(
        self, name: str, mode: pipes.Mode, *, framing: FramingOptions | str = "line"
    ) -> io.FileIO:
        """Open one end of a real pipe(7) with a channel at its other end; see
        :meth:`towpath.Client.open_pipe`.
        """
        from towpath import pipes  # with what starts processes, which few programs need

        return await asyncio.to_thread(pipes.open_pipe, self._url, name, mode, framing=framing)

    async def open_pair(
        self, publish: str, subscribe: str, *, framing: FramingOptions | str = "line"
    ) -> socket.socket:
        """Open a socket, the two-way sort of pipe; see :meth:`towpath.Client.open_pair`."""
        from towpath import pipes

        return await asyncio.to_thread(pipes.open_pair, self._url, publish, subscribe, framing=framing)

    try_publisher = attempt_async(publisher)
    try_subscribe = attempt_async(subscribe)
    try_open_pipe = attempt_async(open_pipe)
    try_open_pair = attempt_async(open_pair)


class AsyncPublisher(AsyncHandle):
    """One source: this program's presence as a writer on one channel. Attributes as for
    :class:`towpath.Publisher`.
    """

    source: int
    channel: str
    message_bytes_max: int

    @property
    @abstractmethod
    def is_ended(self) -> bool:
        """Whether nothing more can be published; see :class:`towpath.Publisher`."""

    @abstractmethod
    async def publish(
        self,
        data: Buffer,
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        """Publish one message; see :meth:`towpath.Publisher.publish`. From afar, calls of several tasks share
        a batch.
        """

    @abstractmethod
    async def publish_many(
        self,
        payloads: Sequence[Buffer],
        *,
        headers: model.Headers | Sequence[model.Headers | None] | None = None,
        headers_raw: bytes | Sequence[bytes] | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        """Publish a batch; see :meth:`towpath.Publisher.publish_many`. Batches of several tasks do not
        mix.
        """

    async def loan(self, nbytes: int, *, timeout: float | None = None) -> Loan[Awaitable[int]]:
        """Give a buffer to fill in place and publish without a copy; see :meth:`towpath.Publisher.loan`."""
        return loans.heap_loan(nbytes, self, self.message_bytes_max)

    async def publish_loan(
        self,
        loan: Loan[Awaitable[int]],
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        """Publish what was loaned, as ``await loan.publish()`` does; see
        :meth:`towpath.Publisher.publish_loan`.
        """
        heap = loans.data_of(loan, self)
        with memoryview(heap) as data:
            seq = await self.publish(
                data, headers=headers, headers_raw=headers_raw, timeout=timeout, confirm=confirm
            )
        heap.end()
        return seq

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until all that was published is on disk; see :meth:`towpath.Publisher.flush`."""

    @abstractmethod
    async def wait_drained(self, timeout: float | None = None) -> bool:
        """Wait until every subscriber has taken all that was published; see
        :meth:`towpath.Publisher.wait_drained`.
        """

    try_publish = attempt_async(publish)
    try_publish_many = attempt_async(publish_many)
    try_loan = attempt_async(loan)
    try_publish_loan = attempt_async(publish_loan)
    try_flush = attempt_async(flush)


class AsyncSubscription(AsyncHandle):
    """One subscription: ``async for`` over it, or receive from it; by one task at a time."""

    name: str

    def __init__(self, name: str) -> None:
        self.name = name
        self._buffer: deque[Message] = deque()
        self._closed = False

    @property
    @abstractmethod
    def lost(self) -> int:
        """Messages that this subscription missed so far, of all sources: the sum of ``Message.missed``."""

    @property
    @abstractmethod
    def is_stored(self) -> bool:
        """See :attr:`towpath.Subscription.is_stored`."""

    @property
    @abstractmethod
    def next_seq(self) -> int | None:
        """See :attr:`towpath.Subscription.next_seq`."""

    @abstractmethod
    async def save_place(self, timeout: float | None = None) -> None:
        """Remember that everything handed out so far was dealt with; see
        :meth:`towpath.Subscription.save_place`.
        """

    @abstractmethod
    async def _take(self, count_max: int, bytes_max: int, timeout: float | None) -> list[Message]:
        """What :meth:`receive_many` does when nothing is in hand."""

    async def receive(self, timeout: float | None = None) -> Message:
        """Return the next message; see :meth:`towpath.Subscription.receive`."""
        if not self._buffer:
            self._buffer.extend(await self._take(RECEIVE_COUNT, RECEIVE_BYTES, timeout))
            if not self._buffer:
                raise Timeout(f"no message on {self.name} in {timeout} s")
        return self._buffer.popleft()

    async def receive_many(
        self, count_max: int = RECEIVE_COUNT, *, bytes_max: int = RECEIVE_BYTES, timeout: float | None = None
    ) -> list[Message]:
        """Return what there is, up to the bounds; see :meth:`towpath.Subscription.receive_many`."""
        if self._buffer:
            return [self._buffer.popleft() for _ in range(min(count_max, len(self._buffer)))]
        return await self._take(count_max, bytes_max, timeout)

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Yield messages until the subscription is closed; raises ChannelUndeclared when the channel goes."""
        while not self._closed:
            try:
                message = await self.receive()
            except ConnectionLost:
                if self._closed:
                    return
                raise
            yield message

    try_receive = attempt_async(receive)
    try_receive_many = attempt_async(receive_many)


class AsyncWatch(AsyncHandle):
    """The registry's changes, as an asynchronous iterator; survives reconnections, after which it says
    ``reset``.
    """

    @abstractmethod
    async def receive(self) -> model.WatchEvent:
        """Return the next change. Raises ConnectionLost when the client is closed."""

    async def __aiter__(self) -> AsyncIterator[model.WatchEvent]:
        while True:
            try:
                event = await self.receive()
            except (ConnectionLost, Cancelled):
                return
            yield event

    try_receive = attempt_async(receive)


class _ActingFor(AsyncKinds):
    """What another principal may ask."""

    def __init__(self, client: AsyncClient, principal: str) -> None:
        self._client = client
        self._principal = principal

    async def _call(self, call: calls.Call[T], deadline: int | None = None) -> T:
        return await self._client._call(replace(call, principal=self._principal), deadline)

    def _post(
        self, call: calls.Call[T], then: Callable[[T | TowpathError], None]
    ) -> Callable[[], object] | None:
        return self._client._post(replace(call, principal=self._principal), then)

    def _follow(self, make: Callable[[], calls.Call[T]], listener: Listener[T]) -> Following:
        return self._client._follow(lambda: replace(make(), principal=self._principal), listener)

    def _check_not_forked(self) -> None:
        self._client._check_not_forked()

    @property
    def _is_over(self) -> bool:
        return self._client._is_over
