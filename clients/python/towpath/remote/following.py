"""Subscribing and watching from afar, on an event loop.

Theory of operation
    Each subscription has a task that reads batches from the session's connection into an :class:`Inbox`,
    while that has room. When the connection breaks it subscribes again on the next one; the inbox knows what
    was seen. A stream is told how many messages are held, not how many were taken: that may happen while
    there is none (``credit`` says what becomes of it otherwise). A refusal that trying again does not change
    ends the subscription. When the daemon has parted it from a publisher that waited too long (SlowConsumer),
    ``receive`` raises that once; then it goes on.

    A watch is the same without numbers: on a new connection everything is told again, after ``reset``.

Invariants
    What is held for a program is bounded by the inbox (or ``EVENTS_MAX``) and the carrier's window.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Final

from towpath import calls, convert, model, outcomes
from towpath._message import Message
from towpath.aio.api import AsyncHandle, AsyncSubscription, AsyncWatch
from towpath.asking import Asking
from towpath.errors import (
    Cancelled,
    ChannelNotFound,
    ChannelUndeclared,
    ConnectionLost,
    SlowConsumer,
    SubscriptionInUse,
    Timeout,
    TowpathError,
    Unavailable,
)
from towpath.remote.inbox import Inbox
from towpath.remote.ports import Batches, Connection
from towpath.remote.session import Session
from towpath.stored import SavedPlace
from towpath.v1.channels_pb2 import SubscribeRequest
from towpath.v1.store_pb2 import Start
from towpath.waiting import (
    Pauses,
    deadline_ns,
    remaining_ns,
    seconds,
    sooner_ns,
)

EVENTS_MAX: Final = 4_096
"""Changes of the registry that wait for the program; beyond, nothing more is read."""

PLACE_S: Final = 30.0
"""How long a subscription that goes by a name tries to get that back on a new connection."""

_TRY_AGAIN: Final = (Cancelled, ConnectionLost, Timeout, Unavailable)
"""What ends a stream but not what is carried on it."""


class RemoteAsyncSubscription(AsyncSubscription):
    """A subscription through a gateway.

    Attributes:
        lost: messages that were missed, in total.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        on_closed: Callable[[AsyncHandle], None],
        *,
        start: model.Start | None = None,
        place: str = "",
        takes_over: bool = False,
    ) -> None:
        super().__init__(name)
        self._session = session
        self._begin = SubscribeRequest(
            channel=name,
            start=None if start is None else convert.start_to_proto(start),
            name=place,
            takes_over=takes_over,
        )
        self._place = place
        self._saver: SavedPlace | None = None
        self._taken_seq: int | None = None  # what comes after the last message that was taken from here
        self._on_closed = on_closed
        self._inbox = Inbox(name)
        self._stream: Batches | None = None
        self._trouble: TowpathError | None = None
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    @property
    def lost(self) -> int:
        return self._inbox.lost

    async def open(self, deadline: int | None) -> None:
        """Subscribe, and follow from then on.

        Raises:
            TowpathError: the subscription was refused, or nobody answers.
        """
        connection = await self._session.ready(deadline)
        try:
            async with asyncio.timeout(seconds(deadline)):
                self._stream = await connection.subscribe(self._request(), 0)
        except TimeoutError:
            raise Timeout("the daemon did not answer in time") from None
        self._inbox.is_stored = self._stream.subscribed.is_stored
        self._inbox.next_seq = self._taken_seq = self._stream.subscribed.next_seq or None
        self._following = asyncio.create_task(self._follow(connection), name="towpath-subscription")
        self._following.add_done_callback(lambda _: self._changed.set())

    def _request(self) -> SubscribeRequest:
        """What to ask for: at first as the program said, then to go on behind what was received."""
        if self._inbox.is_stored and self._inbox.next_seq is not None:
            start = Start(seq=self._inbox.next_seq)
            return SubscribeRequest(channel=self.name, start=start, name=self._place)
        request = SubscribeRequest()
        request.CopyFrom(self._begin)
        return request

    def save_with(self, client: Asking) -> None:
        """Have the place saved by this client."""
        if self._place:
            self._saver = SavedPlace(client, self.name, self._place)

    # ---- following ----

    async def _follow(self, connection: Connection) -> None:
        """Fill the inbox until the subscription ends."""
        pauses = Pauses()
        place_deadline = 0
        while True:
            try:
                if self._stream is None:
                    connection = await self._session.ready()
                    self._stream = await connection.subscribe(self._request(), len(self._inbox))
                pauses.begin_anew()
                place_deadline = 0
                await self._read(connection, self._stream)
            except SlowConsumer as error:
                self._stream = None
                await self._tell(error)
            except TowpathError as error:
                stream, self._stream = self._stream, None
                if self._session.ended is not None:
                    self._end(self._session.ended)
                    return
                if stream is None and isinstance(error, SubscriptionInUse):
                    # By ourselves, perhaps, on the connection that broke, until the gateway notices.
                    place_deadline = place_deadline or sooner_ns(None, PLACE_S)
                    if remaining_ns(place_deadline) == 0:
                        self._end(error)
                        return
                elif not isinstance(error, _TRY_AGAIN):
                    self._end(self._reason(error))
                    if stream is not None:
                        await stream.close()
                    return
            await asyncio.sleep(pauses.next_s())

    async def _tell(self, error: TowpathError) -> None:
        """Have ``receive`` raise an error once, after what is held; return when it has."""
        self._trouble = error
        self._changed.set()
        while self._trouble is not None:
            self._has_room.clear()
            await self._has_room.wait()

    async def _read(self, connection: Connection, stream: Batches) -> None:
        stream.holding(len(self._inbox))  # fewer, perhaps, than when it was asked for
        while True:
            if not self._inbox.has_room:
                await self._wait_room(connection)
            if self._inbox.put(await stream.receive()):
                stream.holding(len(self._inbox))
            self._changed.set()

    async def _wait_room(self, connection: Connection) -> None:
        """Wait until the program has taken some.

        Raises:
            ConnectionLost: the connection broke meanwhile. Somebody must subscribe again at once, so that
                publishers are held up for a program that does not read, and nothing more is missed.
        """
        lost = asyncio.ensure_future(connection.wait_lost())
        try:
            while not self._inbox.has_room:
                self._has_room.clear()
                room = asyncio.ensure_future(self._has_room.wait())
                try:
                    await asyncio.wait((room, lost), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    room.cancel()
                if lost.done():
                    raise ConnectionLost("the connection to the gateway was lost")
        finally:
            lost.cancel()

    def _reason(self, error: TowpathError) -> TowpathError:
        """A channel that is gone when we come back was undeclared meanwhile."""
        if isinstance(error, ChannelNotFound):
            return ChannelUndeclared(f"channel {self.name} was undeclared")
        return error

    def _end(self, error: TowpathError) -> None:
        if isinstance(error, SubscriptionInUse):  # what is held is given to whoever took the place
            self._inbox.close(error)
            if self._saver is not None:
                self._saver.stop()
        self._inbox.end(error)
        self._changed.set()

    # ---- receiving ----

    @property
    def is_stored(self) -> bool:
        return self._inbox.is_stored

    @property
    def next_seq(self) -> int | None:
        for message in self._buffer:
            return message.seq if self._inbox.is_stored else None
        return self._taken_seq

    async def save_place(self, timeout: float | None = None) -> None:
        await self.save_place_at(self.next_seq, timeout)

    async def save_place_at(self, seq: int | None, timeout: float | None) -> None:
        """Remember that everything before a seq was dealt with; None: nothing is known to have been."""
        if not self._place:
            raise outcomes.no_place(self.name)
        if isinstance(self._inbox.ended, SubscriptionInUse):
            raise self._inbox.ended.again()
        if seq is None:
            return
        deadline = deadline_ns(timeout)
        if self._saver is not None:
            idle = asyncio.Event()
            self._saver.when_idle(idle.set)
            try:
                async with asyncio.timeout(seconds(deadline)):
                    await idle.wait()
            except TimeoutError:
                raise outcomes.no_answer() from None
        await self._session.ask(calls.save_place(self.name, self._place, seq), deadline)

    async def _take(self, count_max: int, bytes_max: int, timeout: float | None) -> list[Message]:
        if isinstance(self._inbox.ended, SubscriptionInUse):
            raise self._inbox.ended.again()
        if self._saver is not None and self._taken_seq is not None:
            self._saver.dealt(self._taken_seq)
        messages = await self._take_held(count_max, bytes_max, timeout)
        if messages and self._inbox.is_stored:
            self._taken_seq = messages[-1].seq + 1
        return messages

    async def _take_held(self, count_max: int, bytes_max: int, timeout: float | None) -> list[Message]:
        deadline = deadline_ns(timeout)
        while True:
            messages = self._inbox.take(count_max, bytes_max)
            if messages:
                if self._stream is not None:
                    self._stream.holding(len(self._inbox))
                if self._inbox.has_room:
                    self._has_room.set()
                return messages
            if self._trouble is not None:
                trouble, self._trouble = self._trouble, None
                self._has_room.set()
                raise trouble
            if self._inbox.ended is not None:
                raise self._inbox.ended
            _raise_failure(self._following)
            if remaining_ns(deadline) == 0:
                return []
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds(deadline)):
                    await self._changed.wait()

    async def close(self) -> None:
        self._closed = True
        self._on_closed(self)
        self._inbox.close(ConnectionLost("the subscription was closed", hint=""))
        self._changed.set()
        following, self._following = self._following, None
        if following is not None:
            following.cancel()
            await asyncio.wait((following,))
        del following  # and with it what it was doing, which a carrier has to let go of
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()


class RemoteAsyncWatch(AsyncWatch):
    """A watch through a gateway."""

    def __init__(self, session: Session, on_closed: Callable[[AsyncHandle], None], *, is_anew: bool) -> None:
        self._session = session
        self._on_closed = on_closed
        self._events: deque[model.WatchEvent] = deque([model.WatchEvent("reset", 0)] if is_anew else [])
        self._ended: TowpathError | None = None
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch, unless that was done."""
        if self._watching is None and self._ended is None:
            self._watching = asyncio.create_task(self._watch(), name="towpath-watch")
            self._watching.add_done_callback(lambda _: self._changed.set())

    async def _watch(self) -> None:
        pauses = Pauses()
        while True:
            try:
                connection = await self._session.ready()
                changes = await connection.watch()
                try:
                    while True:
                        await self._put(convert.watch_event_from_proto(await changes.receive()))
                        pauses.begin_anew()
                finally:
                    changes.close()
            except TowpathError as error:
                if self._session.ended is not None:
                    self._end(self._session.ended)
                    return
                if not isinstance(error, (*_TRY_AGAIN, SlowConsumer)):
                    self._end(error)
                    return
            await self._put(model.WatchEvent("reset", 0))
            await asyncio.sleep(pauses.next_s())

    async def _put(self, event: model.WatchEvent) -> None:
        while len(self._events) >= EVENTS_MAX:
            self._has_room.clear()
            await self._has_room.wait()
        self._events.append(event)
        self._changed.set()

    def _end(self, error: TowpathError) -> None:
        self._ended = self._ended or error
        self._changed.set()

    async def receive(self) -> model.WatchEvent:
        self.start()
        while not self._events:
            if self._ended is not None:
                raise self._ended
            _raise_failure(self._watching)
            self._changed.clear()
            await self._changed.wait()
        self._has_room.set()
        return self._events.popleft()

    async def close(self) -> None:
        self._on_closed(self)
        self._events.clear()
        self._end(Cancelled("the watch was closed"))
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.wait((watching,))


def _raise_failure(task: asyncio.Task[None] | None) -> None:
    """A bug in a task belongs to whoever waits for what it does."""
    if task is not None and task.done() and not task.cancelled():
        task.result()
