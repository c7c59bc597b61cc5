"""Publishing and subscribing in shared memory, waiting in the caller's thread."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from towpath import calls, convert, model, outcomes
from towpath._message import Message
from towpath._quick import QuickPublisher, QuickSubscription
from towpath.ends import LOOK_NS_MAX, READ_TO, ReaderState, SourceState, publication_error
from towpath.errors import (
    ChannelNotFound,
    ChannelUndeclared,
    ConnectionLost,
    InvalidArgument,
    Timeout,
    TowpathError,
    Unavailable,
)
from towpath.loans import PLACE_BYTES, Loan, check_size, waited
from towpath.progress import Progress
from towpath.stored import READ_BYTES
from towpath.sync.api import Publisher, Subscription
from towpath.waiting import (
    FOREVER,
    PART_TIMEOUT_S,
    PAUSE_MAX_S,
    Buffer,
    deadline_ns,
    far_ns,
    remaining_ns,
    shorter_ns,
)

if TYPE_CHECKING:
    from towpath.sync.answer import Answer
    from towpath.sync.client import LocalClient


class LocalPublisher(QuickPublisher, Publisher):
    """A source with a ring of its own. ``publish`` and ``loan`` are the quick base's, which calls
    ``_publish`` and ``_loan`` where there is more to it than to put bytes into the ring, or to take a piece
    of its slab; a loan's ``publish`` calls ``publish_loan`` likewise.
    """

    def __init__(self, client: LocalClient, state: SourceState) -> None:
        self._set_writer(state.writer, state.loan_bytes_max)
        self._client = client
        self._state = state
        self._writer = state.writer
        self._room = threading.Lock()
        self._storing = threading.Condition(threading.Lock())
        self._wanted: list[int] = []
        self._is_looking = False
        self.source = state.source
        self.channel = state.channel
        self.message_bytes_max = state.writer.message_bytes_max

    @property
    def is_ended(self) -> bool:
        return self._state.ended is not None

    def _publish(
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
        confirmed_by = deadline_ns(timeout) if confirm else None
        try:
            seq = self._writer.try_publish(data, headers_raw or None)
            if seq <= 0:
                seq = self._publish_waiting(data, headers_raw or None, deadline_ns(timeout))
        except (ValueError, RuntimeError) as error:
            raise self._state.refusal(error) from None
        if self._writer.readers_changed:
            self._meet_readers()
        if confirm:
            self._wait_stored(confirmed_by)
        return seq

    def _publish_waiting(self, data: Buffer, headers_raw: bytes | None, deadline: int | None) -> int:
        while True:
            seq = self._writer.try_publish(data, headers_raw)
            if seq > 0:
                return seq
            self._make_way(seq, memoryview(data).nbytes + len(headers_raw or b""), deadline)

    def _loan(self, nbytes: int, *, timeout: float | None = None) -> Loan[int]:
        state, writer = self._state, self._writer
        check_size(nbytes, state.loan_bytes_max)
        deadline = deadline_ns(timeout)
        try:
            loan = writer.try_loan(nbytes, self)
            while isinstance(loan, int):
                self._make_way(loan, nbytes, deadline, is_loan=True)
                loan = writer.try_loan(nbytes, self)
        except (ValueError, RuntimeError) as error:
            raise state.refusal(error) from None
        return loan

    def publish_loan(
        self,
        loan: Loan[int],
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
            seq = self._writer.try_publish_loan(loan, raw)
            if seq <= 0:
                deadline = deadline_ns(timeout)
                while seq <= 0:
                    self._make_way(seq, PLACE_BYTES + len(raw or b""), deadline)
                    seq = self._writer.try_publish_loan(loan, raw)
        except (ValueError, RuntimeError) as error:
            raise self._state.refusal(error) from None
        if self._writer.readers_changed:
            self._meet_readers()
        if confirm:
            self._wait_stored(confirmed_by)
        return seq

    def publish_many(
        self,
        payloads: Sequence[Buffer],
        *,
        headers: model.Headers | Sequence[model.Headers | None] | None = None,
        headers_raw: bytes | Sequence[bytes] | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        """As documented; one wake-up per ring-full."""
        column = calls.headers_column(len(payloads), headers, headers_raw)
        writer = self._writer
        deadline = deadline_ns(timeout)
        done = 0
        try:
            while done < len(payloads):
                taken = writer.try_publish_many(payloads, done, column)
                if taken > 0:
                    done += taken
                else:
                    self._make_way(taken, calls.message_bytes(payloads, column, done), deadline)
        except (ValueError, RuntimeError) as error:
            raise self._state.refusal(error, done, len(payloads)) from None
        except Timeout as error:
            raise outcomes.partly(error, done, len(payloads)) from None
        if writer.readers_changed:
            self._meet_readers()
        last_seq = writer.last_seq
        if confirm:
            self._wait_stored(deadline)
        return last_seq

    def _make_way(self, status: int, size: int, deadline: int | None, *, is_loan: bool = False) -> None:
        """Do what the ring asked for: tell it its readers (-1), or wait for room (0), in it or for a loan."""
        state = self._state
        if state.ended is not None:
            raise state.ended.again()
        if status < 0:
            self._fetch_readers(deadline if deadline is not None else far_ns())
            return
        with self._room:  # one thread waits; the others wait for it
            wait = state.writer.wait_loan if is_loan else state.writer.wait_room
            if wait(size, shorter_ns(remaining_ns(deadline), state.look_ns)) > 0:
                return
            self._part_from_stalled()
        if remaining_ns(deadline) == 0 and state.ended is None:
            full = waited(state.channel) if is_loan else outcomes.ring_full(state.channel)
            raise full if state.held is None else state.held.again()

    def _part_from_stalled(self) -> None:
        """Go on without subscribers that have not moved for the channel's ``stall_ms_max``. While there is no
        daemon to ask, nobody is left behind.
        """
        client, state = self._client, self._state
        while client.is_connected and (reader := state.stalled_reader()) is not None:
            try:
                client._call(calls.detach_stalled(state.source, reader), deadline_ns(PART_TIMEOUT_S))
            except TowpathError:
                return  # it left by itself, say; the next look will tell

    def _fetch_readers(self, deadline: int) -> None:
        client, state = self._client, self._state
        try:
            client._ask(functools.partial(client._protocol.fetch_readers, state), deadline)
        except ConnectionLost:
            if client._is_over:
                raise
        except TowpathError as error:
            raise publication_error(state, error) from None

    def _meet_readers(self) -> None:
        """A subscriber came while a message was being written, and may be asleep: let it be woken now.

        Without the daemon it cannot be met; it is when the connection is taken up again.
        """
        with contextlib.suppress(TowpathError):
            self._fetch_readers(far_ns())

    def flush(self, timeout: float | None = None) -> None:
        self._wait_stored(deadline_ns(timeout))

    def _wait_stored(self, deadline: int | None) -> None:
        """Wait until what is published by now is on disk, where that is to be; see :meth:`flush`.

        Of several threads one waits for the ring, and wakes the others: what is stored for it is stored for
        most of them. (Were it a matter of turns, whoever had his would have the next as well.)
        """
        state, storing = self._state, self._storing
        if not state.is_durable:
            return
        tail = state.writer.tail
        with storing:
            self._wanted.append(tail)
            try:
                has_waited = False
                while not self._is_stored(tail, deadline, has_waited=has_waited):
                    has_waited = True
                    if self._is_looking:
                        storing.wait(shorter_ns(remaining_ns(deadline), LOOK_NS_MAX) / 1e9)
                        continue
                    self._is_looking, lowest = True, min(self._wanted)
                    storing.release()
                    try:
                        self._look_stored(lowest, deadline)
                    finally:
                        storing.acquire()
                        self._is_looking = False
                        storing.notify_all()
            finally:
                self._wanted.remove(tail)

    def _is_stored(self, tail: int, deadline: int | None, *, has_waited: bool) -> bool:
        """Whether everything before a position is on disk.

        Args:
            has_waited: somebody looked since; before, there may be room again in a store that had none.

        Raises:
            TowpathError: it will not be, or not for now, or the time is over.
        """
        state = self._state
        if state.ended is not None:
            raise state.ended.again()
        try:
            if state.is_stored(tail):
                return True
        except (ValueError, RuntimeError) as error:
            raise state.refusal(error) from None
        is_late = remaining_ns(deadline) == 0
        if state.held is not None and (has_waited or is_late):
            raise state.held.again()
        if is_late:
            raise outcomes.not_stored(state.channel)
        return False

    def _look_stored(self, tail: int, deadline: int | None) -> None:
        """Wait until that may be so."""
        writer = self._state.writer
        try:
            with self._room:
                status = writer.wait_room(READ_TO + tail, shorter_ns(remaining_ns(deadline), LOOK_NS_MAX))
            if status < 0:
                self._fetch_readers(deadline if deadline is not None else far_ns())
            elif status > 0 and not writer.readers():  # the core is away
                time.sleep(PAUSE_MAX_S)
        except (ValueError, RuntimeError) as error:
            raise self._state.refusal(error) from None

    def wait_drained(self, timeout: float | None = None) -> bool:
        deadline = deadline_ns(timeout)
        pause = 0.0002
        while self._state.ended is None:
            self._meet_readers_that_changed(deadline)
            self._state.forget_absent()
            if self._writer.drained():
                return True
            left = remaining_ns(deadline)
            if left == 0:
                return False
            time.sleep(pause if left == FOREVER else min(pause, left / 1e9))
            pause = min(pause * 2, 0.02)
        return False

    def _meet_readers_that_changed(self, deadline: int | None) -> None:
        """Who came, or went without taking all, since the last publish is known only to the core."""
        if self._room.acquire(blocking=False):
            try:
                is_current = self._writer.wait_room(0, 0) >= 0
            finally:
                self._room.release()
            if not is_current:
                with contextlib.suppress(Timeout, Unavailable):
                    self._fetch_readers(deadline if deadline is not None else far_ns())

    def close(self) -> None:
        with self._client._sending():
            self._client._protocol.forget_source(
                self._state, ConnectionLost("the publisher was closed", hint="")
            )


class LocalSubscription(QuickSubscription, Progress, Subscription):
    """A reader of the rings of a channel's sources. ``receive`` is the quick base's, which calls ``_receive``
    where there is more to it than to take what is in the rings.
    """

    def __init__(self, client: LocalClient, state: ReaderState) -> None:
        super().__init__(state.channel)
        self._set_reader(state.reader, self._buffer)
        self._client = client
        self._state = state
        self._asked: Answer[calls.StoredRead] | None = None  # of the store, and not answered yet
        self._set_reader_state(state)

    def begin(self, start: model.Start | None, place: str, deadline: int | None) -> None:
        """Begin where that is; before anything is received.

        Raises:
            InvalidArgument: it is no durable topic.
        """
        where = None if start is None else convert.start_to_proto(start)
        found = self._client._call(calls.find_stored(self.name, where, place), deadline)
        self._begin_at(self._client, where, place, found)

    def save_place(self, timeout: float | None = None) -> None:
        call = self._saving()
        if call is not None:
            self._client._call(call, deadline_ns(timeout))

    def _receive(self, timeout: float | None = None) -> Message:
        message = Subscription.receive(self, timeout)
        self._let_be_plain()
        return message

    def _take(self, count_max: int, bytes_max: int, timeout: float | None) -> list[Message]:
        self._asks_for_more()
        messages = self._take_sorted(count_max, bytes_max, deadline_ns(timeout))
        self._has_taken(messages)
        return messages

    def _take_sorted(self, count_max: int, bytes_max: int, deadline: int | None) -> list[Message]:
        """Take what comes next: of the store, where there is a gap, or of the rings."""
        log, state = self._log, self._state
        while True:
            if state.joined:
                log.join(state.joined)
            if not log.is_waiting:
                messages = self._take_new(count_max, bytes_max, deadline)
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
            if log.wanted is not None and not self._read_stored(*log.wanted, deadline):
                return []

    def _read_stored(self, channel: str, first_seq: int, deadline: int | None) -> bool:
        """Fetch what is wanted of the store; False when the time is over. Waits for the daemon to be back.

        What was asked for then is still on its way, for whoever receives next: so it comes however short the
        timeouts are, and however long the answer takes.
        """
        while True:
            try:
                if self._asked is None:
                    call = calls.read_stored(channel, first_seq, READ_BYTES)
                    self._asked = self._client._begin(call, deadline)
                answer = self._asked.wait(deadline)
                if answer is None:
                    return False
                self._asked = None
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

    def _take_new(self, count_max: int, bytes_max: int, deadline: int | None) -> list[Message]:
        """Take what is in the rings; nothing as soon as there is something to look for in the store."""
        state = self._state
        while not state.joined:
            if state.is_drained:
                assert state.ended is not None
                raise state.ended.again()
            if state.troubles:
                raise state.troubles.popleft()
            try:
                left_ns = 0 if state.ended else remaining_ns(deadline)
                messages = state.reader.receive(count_max, bytes_max, left_ns)
            except RuntimeError as error:
                raise InvalidArgument(
                    f"{error}: the subscription to {self.name!r} is received from already",
                    hint="let one thread receive, or subscribe once for each",
                ) from None
            if messages and not state.is_crowded:
                return messages
            with self._client._sending():
                self._client._protocol.tend(state)
            if messages:
                return messages
            if state.is_drained:
                continue
            if remaining_ns(deadline) == 0:
                break
        return []

    def close(self) -> None:
        with self._client._sending():
            self._closed = True
            self._client._protocol.forget_reader(
                self._state, ConnectionLost("the subscription was closed", hint="")
            )
