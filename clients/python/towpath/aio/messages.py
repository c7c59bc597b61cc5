"""Publishing and subscribing in shared memory, waiting on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING

from towpath import calls, convert, model, outcomes
from towpath._message import Message
from towpath._quick import QuickSubscription
from towpath.aio.api import AsyncPublisher, AsyncSubscription
from towpath.aio.sleeper import Sleeper
from towpath.ends import READ_TO, KeptReader, ReaderState, SourceState, publication_error
from towpath.errors import (
    ChannelNotFound,
    ChannelUndeclared,
    ConnectionLost,
    Timeout,
    TowpathError,
    Unavailable,
)
from towpath.loans import PLACE_BYTES, Loan, check_size, waited
from towpath.progress import Progress
from towpath.stored import READ_BYTES
from towpath.waiting import FOREVER, PART_TIMEOUT_S, PAUSE_MAX_S, Buffer, deadline_ns, remaining_ns, seconds

if TYPE_CHECKING:
    from towpath.aio.client import LocalAsyncClient


class LocalAsyncPublisher(AsyncPublisher):
    """A source with a ring of its own."""

    def __init__(self, client: LocalAsyncClient, state: SourceState) -> None:
        self._client = client
        self._state = state
        self._writer = state.writer
        self._turn = asyncio.Lock()
        self._confirming = asyncio.Lock()
        self.source = state.source
        self.channel = state.channel
        self.message_bytes_max = state.writer.message_bytes_max

    @property
    def is_ended(self) -> bool:
        return self._state.ended is not None

    @property
    def last_seq(self) -> int:
        """seq of the newest message; 0 before the first. After a publish that was cancelled, what it did."""
        return self._writer.last_seq

    async def publish(
        self,
        data: Buffer,
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        if headers is not None:
            headers_raw = convert.encode_headers(headers)
        raw = headers_raw or None
        confirmed_by = deadline_ns(timeout) if confirm else None
        try:
            seq = 0 if self._turn.locked() else self._writer.try_publish(data, raw)
            if seq <= 0:
                seq = await self._publish_waiting(data, raw, deadline_ns(timeout))
        except (ValueError, RuntimeError) as error:
            raise self._state.refusal(error) from None
        if self._writer.readers_changed:
            await self._meet_readers()
        if confirm:
            await self._wait_stored(confirmed_by)
        return seq

    async def _publish_waiting(self, data: Buffer, raw: bytes | None, deadline: int | None) -> int:
        async with self._turn:
            while True:
                seq = self._writer.try_publish(data, raw)
                if seq > 0:
                    return seq
                await self._make_way(seq, memoryview(data).nbytes + len(raw or b""), deadline)

    async def loan(self, nbytes: int, *, timeout: float | None = None) -> Loan[Awaitable[int]]:
        check_size(nbytes, self._state.loan_bytes_max)
        deadline = deadline_ns(timeout)
        try:
            loan = self._writer.try_loan(nbytes, self)
            while isinstance(loan, int):
                async with self._turn:
                    await self._make_way(loan, nbytes, deadline, is_loan=True)
                loan = self._writer.try_loan(nbytes, self)
        except (ValueError, RuntimeError) as error:
            raise self._state.refusal(error) from None
        return loan

    async def publish_loan(
        self,
        loan: Loan[Awaitable[int]],
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        if headers is not None:
            headers_raw = convert.encode_headers(headers)
        raw = headers_raw or None
        confirmed_by = deadline_ns(timeout) if confirm else None
        loan = self._state.own_loan(loan, self, raw)
        try:
            seq = 0 if self._turn.locked() else self._writer.try_publish_loan(loan, raw)
            if seq <= 0:
                deadline = deadline_ns(timeout)
                async with self._turn:
                    while (seq := self._writer.try_publish_loan(loan, raw)) <= 0:
                        await self._make_way(seq, PLACE_BYTES + len(raw or b""), deadline)
        except (ValueError, RuntimeError) as error:
            raise self._state.refusal(error) from None
        if self._writer.readers_changed:
            await self._meet_readers()
        if confirm:
            await self._wait_stored(confirmed_by)
        return seq

    async def publish_many(
        self,
        payloads: Sequence[Buffer],
        *,
        headers: model.Headers | Sequence[model.Headers | None] | None = None,
        headers_raw: bytes | Sequence[bytes] | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        column = calls.headers_column(len(payloads), headers, headers_raw)
        deadline = deadline_ns(timeout)
        done = 0
        try:
            async with self._turn:
                while done < len(payloads):
                    taken = self._writer.try_publish_many(payloads, done, column)
                    if taken > 0:
                        done += taken
                    else:
                        await self._make_way(taken, calls.message_bytes(payloads, column, done), deadline)
                last = self._writer.last_seq
        except (ValueError, RuntimeError) as error:
            raise self._state.refusal(error, done, len(payloads)) from None
        except Timeout as error:
            raise outcomes.partly(error, done, len(payloads)) from None
        if self._writer.readers_changed:
            await self._meet_readers()
        if confirm:
            await self._wait_stored(deadline)
        return last

    async def _make_way(self, status: int, size: int, deadline: int | None, *, is_loan: bool = False) -> None:
        """Do what the ring asked for: tell it its readers (-1), or wait for room (0), in it or for a loan."""
        if self._state.ended is not None:
            raise self._state.ended.again()
        if status < 0:
            await self._fetch_readers(deadline)
            return
        room = self._client._room
        await (room.wait_loan if is_loan else room.wait)(self._state, size, deadline)
        await self._part_from_stalled()
        if remaining_ns(deadline) == 0 and self._state.ended is None:
            held = self._state.held
            full = waited(self.channel) if is_loan else outcomes.ring_full(self.channel)
            raise full if held is None else held.again()

    async def _part_from_stalled(self) -> None:
        """Go on without subscribers that have not moved for the channel's ``stall_ms_max``. While there is no
        daemon to ask, nobody is left behind.
        """
        client, state = self._client, self._state
        while client.is_connected and (reader := state.stalled_reader()) is not None:
            try:
                await client._call(calls.detach_stalled(state.source, reader), deadline_ns(PART_TIMEOUT_S))
            except TowpathError:
                return  # it left by itself, say; the next look will tell

    async def _fetch_readers(self, deadline: int | None) -> None:
        client, state = self._client, self._state
        try:
            await client._ask(functools.partial(client._protocol.fetch_readers, state), deadline)
        except ConnectionLost:
            if client._is_over:
                raise
        except TowpathError as error:
            raise publication_error(state, error) from None

    async def _meet_readers(self) -> None:
        """A subscriber came while a message was being written, and may be asleep: let it be woken now."""
        with contextlib.suppress(TowpathError):
            await self._fetch_readers(None)

    async def flush(self, timeout: float | None = None) -> None:
        await self._wait_stored(deadline_ns(timeout))

    async def _wait_stored(self, deadline: int | None) -> None:
        """Wait until what is published by now is on disk, where that is to be; see :meth:`flush`."""
        state = self._state
        if not state.is_durable:
            return
        tail = state.writer.tail
        try:
            # One waits for the ring; those behind find, as a rule, that they were stored with it.
            async with asyncio.timeout(seconds(deadline)), self._confirming:
                while not self._is_stored(tail):
                    if state.writer.wait_room(0, 0) < 0:
                        await self._fetch_readers(deadline)
                    elif state.writer.readers():
                        await self._client._room.wait(state, READ_TO + tail, deadline)
                    else:  # nobody reads: the core is away
                        await asyncio.sleep(PAUSE_MAX_S)
        except TimeoutError:
            raise outcomes.not_stored(state.channel) from None
        except (ValueError, RuntimeError) as error:
            raise state.refusal(error) from None

    def _is_stored(self, tail: int) -> bool:
        """Whether everything before a position is on disk.

        Raises:
            TowpathError: it will not be, or not for now.
        """
        state = self._state
        if state.ended is not None:
            raise state.ended.again()
        if state.is_stored(tail):
            return True
        if state.held is not None:
            raise state.held.again()
        return False

    async def wait_drained(self, timeout: float | None = None) -> bool:
        deadline = deadline_ns(timeout)
        pause = 0.0002
        while self._state.ended is None:
            await self._meet_readers_that_changed(deadline)
            self._state.forget_absent()
            if self._writer.drained():
                return True
            left = remaining_ns(deadline)
            if left == 0:
                return False
            await asyncio.sleep(pause if left == FOREVER else min(pause, left / 1e9))
            pause = min(pause * 2, 0.02)
        return False

    async def _meet_readers_that_changed(self, deadline: int | None) -> None:
        """Who came, or went without taking all, since the last publish is known only to the core."""
        if not self._turn.locked() and self._writer.wait_room(0, 0) < 0:
            with contextlib.suppress(Timeout, Unavailable):
                await self._fetch_readers(deadline)

    async def close(self) -> None:
        self._client._protocol.forget_source(self._state, ConnectionLost("the publisher was closed", hint=""))
        self._client._flush()


class LocalAsyncSubscription(Progress, AsyncSubscription):
    """A reader of the rings of a channel's sources."""

    def __init__(self, client: LocalAsyncClient, state: ReaderState) -> None:
        super().__init__(state.channel)
        self._client = client
        self._state = state
        self._reader = state.reader
        self._quick = QuickSubscription()
        self._quick._set_reader(state.reader, self._buffer)
        self._take_one = self._quick._take_one
        self._sleeper: Sleeper | None = None  # one that nobody sleeps on
        self._asked: asyncio.Future[calls.StoredRead | TowpathError] | None = None  # of the store
        self._set_reader_state(state)

    def keep(self) -> KeptReader:
        """What is to be kept for ``LocalAsyncClient.take_up``; the descriptor is the caller's to close."""
        return self._state.keep()

    async def leave(self) -> None:
        """Close it so that somebody else can go on with what was kept of it."""
        self._state.is_left = True
        await self.close()

    async def begin(self, start: model.Start | None, place: str, deadline: int | None) -> None:
        """Begin where that is; before anything is received.

        Raises:
            InvalidArgument: it is no durable topic.
        """
        where = None if start is None else convert.start_to_proto(start)
        found = await self._client._call(calls.find_stored(self.name, where, place), deadline)
        self._begin_at(self._client, where, place, found)

    def leave_place(self) -> None:
        """Save the place no more by itself: what is taken from here is handed on, and whoever deals with it
        says how far that has come.
        """
        if self._place is not None:
            self._place.stop()

    async def save_place(self, timeout: float | None = None) -> None:
        call = self._saving()
        if call is not None:
            await self._client._call(call, deadline_ns(timeout))

    async def receive(self, timeout: float | None = None) -> Message:
        reader, asleep = self._reader, self._client._sleepers.asleep
        while timeout is None or reader.is_plain:
            message = self._take_one()
            if message is not None:
                return message
            if timeout is not None or not reader.is_plain:
                break
            sleeper, self._sleeper = self._sleeper or Sleeper(self._client._loop), None
            asleep[self._state] = sleeper
            try:
                if not reader.arm():
                    await sleeper
            finally:
                self._sleeper = sleeper
                self._client._sleepers.end(self._state, sleeper)
        message = await super().receive(timeout)
        self._let_be_plain()
        return message

    async def _take(self, count_max: int, bytes_max: int, timeout: float | None) -> list[Message]:
        self._asks_for_more()
        messages = await self._take_sorted(count_max, bytes_max, deadline_ns(timeout))
        self._has_taken(messages)
        return messages

    async def _take_sorted(self, count_max: int, bytes_max: int, deadline: int | None) -> list[Message]:
        """Take what comes next: of the store, where there is a gap, or of the rings."""
        log, state = self._log, self._state
        while True:
            if state.joined:
                log.join(state.joined)
            if not log.is_waiting:
                messages = await self._take_new(count_max, bytes_max, deadline)
                if not messages and state.joined:
                    continue
                if messages and state.stored:
                    messages = log.sort(messages, state.stored)
                    if not messages:
                        continue
                return messages
            messages = log.take(count_max, bytes_max)
            if messages:
                return messages
            if log.wanted is not None and not await self._read_stored(*log.wanted, deadline):
                return []

    async def _read_stored(self, channel: str, first_seq: int, deadline: int | None) -> bool:
        """Fetch what is wanted of the store; False when the time is over. Waits for the daemon to be back.

        What was asked for then is still on its way, for whoever receives next: so it comes however short the
        timeouts are, and however long the answer takes.
        """
        while True:
            try:
                if self._asked is None:
                    call = calls.read_stored(channel, first_seq, READ_BYTES)
                    self._asked = await self._client._begin(call, deadline)
                await asyncio.wait((self._asked,), timeout=seconds(deadline))
                if not self._asked.done():
                    return False
                answer, self._asked = self._asked.result(), None
                if isinstance(answer, TowpathError):
                    raise answer
                self._log.read(answer)
                return True
            except (ConnectionLost, Timeout, Unavailable):
                if self._client._is_over or self._state.ended is not None:
                    raise
                if deadline is not None and remaining_ns(deadline) == 0:
                    return False
            except ChannelNotFound:
                raise ChannelUndeclared(f"channel {channel} was undeclared") from None

    async def _take_new(self, count_max: int, bytes_max: int, deadline: int | None) -> list[Message]:
        """Take what is in the rings; nothing as soon as there is something to look for in the store."""
        state = self._state
        while not state.joined:
            if state.is_drained:
                assert state.ended is not None
                raise state.ended.again()
            if state.troubles:
                raise state.troubles.popleft()
            messages = state.reader.receive(count_max, bytes_max, 0)
            if messages and not state.is_crowded:
                return messages
            self._client._protocol.tend(state)
            self._client._flush()
            if messages:
                return messages
            if state.ended is not None or state.troubles:
                continue
            if remaining_ns(deadline) == 0:
                break
            await self._client._sleepers.sleep(state, deadline)
        return []

    async def hand_on(self, taker: object, thread: Executor) -> None:
        """Have what comes handed to C code, in a thread, until something else is to be done: then receive,
        without waiting, and do what is left with what that gives. What must be looked for in the store is
        not handed on.

        Args:
            taker: as for ``Reader.hand_on``.
            thread: has a free one.
        """
        state, log = self._state, self._log
        if self._buffer or state.stored or state.joined or log.is_waiting or state.troubles:
            return
        if state.ended is not None:
            return
        handing = self._client._loop.run_in_executor(thread, state.reader.hand_on, taker)
        self._client._sleepers.handing.add(state)
        try:
            await asyncio.shield(handing)
        except ValueError:
            if state.ended is None:  # else it was closed meanwhile
                raise
        finally:
            self._client._sleepers.handing.discard(state)
            if not handing.done():
                with contextlib.suppress(ValueError):  # closed: then it ends by itself
                    state.reader.notify()
                await asyncio.wait({handing})

    async def close(self) -> None:
        self._closed = True
        self._client._protocol.forget_reader(
            self._state, ConnectionLost("the subscription was closed", hint="")
        )
        self._client._flush()
