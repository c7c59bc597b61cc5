"""Messages in, bytes out: from a channel into a descriptor, with an exact account of what the reader has
taken.

Theory of operation
    One task pulls batches from the channel and frames them into ``_held``; another pushes them into the
    descriptor. Between them lies a bound. While a reader is there but slow, pulling stops, and the channel
    sees a slow subscriber. While *no* reader is there (no FIFO open for reading, no command running)
    ``when_absent`` decides: ``block`` stops pulling all the same, so that the channel's publishers wait;
    ``drop`` keeps the newest ``HELD_BYTES_MAX`` for the next reader and drops what is older, counted.
    Dropping is the default, because a reader that is not there must not stall everybody else on the channel.

    What was written lies in the pipe until somebody reads it, and stays there while we hold the write end
    open. When the last reader goes away (``pause``), the bytes that it left tell to the byte what it
    consumed. If it stopped between two frames, everything stays as it is, and the next reader goes on there:
    a shell that opens and closes the FIFO for each line (``while :; do read x < fifo; done``) misses nothing.
    If it stopped inside a frame, or the pipe is to be closed (``detach``), the pipe is emptied, and every
    frame that was not consumed *whole* is put in front of ``_held`` again. For this the frames that may still
    lie in the pipe are remembered (``_flight``), as many bytes as the pipe holds.

    ::

        channel -> pull -> _held -> push -> pipe -> reader
                             ^- pause, detach -'     (unread frames, in order)

What is promised
    At least once at this edge: a frame of which the reader took only a part is sent again whole to the next
    reader. What a reader has taken is its own, whether it did anything with it or not. If a reader goes and
    another comes before the bridge has noticed, the stream just goes on where the first stopped, as with any
    pipe of two readers. If another program writes into the same FIFO, its bytes are taken for the newest of
    ours, and some frames may come twice.

Invariants
    ``_held`` and ``_flight`` are in channel order, and every frame in ``_flight`` is before every frame in
    ``_held``.
    Cost of ``_held`` <= max(HELD_BYTES_MAX, 2 * frame_bytes_max) + one received batch, and what was taken
    back from one pipe. A message is counted as out once, when first written whole.

Not here: opening descriptors and finding out that a reader came; adapters call ``attach``.
"""

from __future__ import annotations

import asyncio
import os
import struct
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final

from towpath.bindings import WhenAbsent
from towpath.errors import BindingFailed
from towpath.framing import FramingOptions, encoder
from towpath.wording import plural
from towpath_broker.gateways.bridge.framer import Framer
from towpath_broker.gateways.bridge.losses import Losses
from towpath_broker.gateways.bridge.pipes import has_reader, pipe_capacity_bytes, take_unread, unread_bytes
from towpath_broker.gateways.bridge.ports import Carrier, ReceivedMessage
from towpath_broker.gateways.bridge.report import Tally
from towpath_broker.gateways.bridge.stop import Stop
from towpath_broker.gateways.bridge.tasks import cancel, put, raise_first_error

HELD_BYTES_MAX: Final = 1 << 20
"""How much waits here for the reader, before ``when_absent`` or back-pressure decides; two frames, if that is
more."""
RECEIVE_COUNT_MAX: Final = 4096
RECEIVE_BYTES_MAX: Final = 1 << 18
"""One batch from the channel."""
FLUSH_S: Final = 1.0
"""How long a reader may still take what is held, at the stop or when the subscription has ended."""
_MERGE_BYTES: Final = 1 << 16
"""Batches below this are joined: fewer system calls, and less memory than many small objects."""
_STATE: Final = struct.Struct("<QQ")
"""Before what is handed over: bytes of the first frame that were written, and how many frames there are."""
_BATCH_COST_BYTES: Final = 512
"""What a batch costs beyond its data, about."""


class _Batch:
    """Consecutive frames, joined.

    Attributes:
        data: their bytes.
        ends: where in ``data`` each frame ends.
        written: how many bytes of ``data`` are in the pipe, or went through it.
        counted: how many frames, from the front, have been counted as out.
    """

    __slots__ = ("counted", "data", "ends", "written")

    def __init__(self, data: bytes, ends: array[int], counted: int = 0) -> None:
        self.data = data
        self.ends = ends
        self.written = 0
        self.counted = counted

    @property
    def cost_bytes(self) -> int:
        return len(self.data) + len(self.ends) * self.ends.itemsize + _BATCH_COST_BYTES

    def append(self, other: _Batch) -> None:
        """Take another batch's frames behind one's own; both have been written equally."""
        shift = len(self.data)
        self.data += other.data
        self.ends.extend(end + shift for end in other.ends)
        self.counted += other.counted
        self.written += other.written

    def begin_of_unwritten(self) -> int:
        """Where the first frame begins that was not written whole."""
        done = bisect_right(self.ends, self.written)
        return self.ends[done - 1] if done else 0

    def rest(self, consumed_bytes: int) -> _Batch | None:
        """The frames of which not every byte was consumed, as a batch to be written anew."""
        done = bisect_right(self.ends, consumed_bytes)
        if done == len(self.ends):
            return None
        start = self.ends[done - 1] if done else 0
        ends = array("Q", (end - start for end in self.ends[done:]))
        return _Batch(self.data[start:], ends, max(self.counted - done, 0))


class Outflow:
    """One channel's way out through descriptors that come and go.

    Args:
        framing: how messages lie in the byte stream.
        carrier: the channel.
        tally: the binding's account.
        when_absent: what to do while no descriptor is attached and ``HELD_BYTES_MAX`` is reached.
        look: finds out whether there is a reader, and attaches or pauses. Called before anything is dropped,
            since a reader may have come a moment ago.
        hands_over: whether, at the stop, what is held is for a successor (:meth:`state`), who goes on with
            the same pipe.
    """

    def __init__(
        self,
        framing: FramingOptions,
        carrier: Carrier,
        tally: Tally,
        *,
        when_absent: WhenAbsent,
        look: Callable[[], None],
        hands_over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._framer = Framer(encoder(framing), carrier, tally)
        self._held_bytes_max = max(HELD_BYTES_MAX, 2 * framing.frame_bytes_max)
        self._carrier = carrier
        self._tally = tally
        self._losses = Losses(carrier, tally)
        # What is in a queue stays there rather than being dropped.
        self._when_absent = WhenAbsent.BLOCK if carrier.is_settled else when_absent
        self._unsettled: deque[ReceivedMessage] = deque()  # framed and not yet written whole; of a queue only
        self._look = look
        self._hands_over = hands_over
        self._descriptor: int | None = None
        self._is_read = False
        self._held: deque[_Batch] = deque()
        self._held_cost_bytes = 0
        self._flight: deque[_Batch] = deque()
        self._flight_bytes = 0
        self._has_work = asyncio.Event()
        self._has_room = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._writable: asyncio.Future[None] | None = None
        self._update()

    @property
    def is_read(self) -> bool:
        """Whether somebody reads, as far as is known."""
        return self._is_read

    async def run(self, *stops: Stop) -> None:
        """Carry until one of the stops is set, or the subscription ends.

        Then what is held is written as long as somebody reads it, at most ``FLUSH_S``; the rest is given up
        and counted, also when this is cancelled. No descriptor is attached afterwards. What is to be handed
        over is neither written nor given up.

        Raises:
            TowpathError: the subscription ended.
        """
        pulling = asyncio.create_task(self._pull())
        pushing = asyncio.create_task(self._push())
        waiting = [asyncio.create_task(stop.wait()) for stop in stops]
        try:
            await asyncio.wait({pulling, pushing, *waiting}, return_when=asyncio.FIRST_COMPLETED)
            await cancel(pulling)
            if self._hands_over():
                return
            waiting.append(asyncio.create_task(self._wait_idle()))
            await asyncio.wait({pushing, waiting[-1]}, timeout=FLUSH_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel(pulling, pushing, *waiting)
            if self._descriptor is not None and not has_reader(self._descriptor):
                self.detach()
            self._descriptor = None
            self._is_read = False
            if not self._hands_over():
                self._abandon()
        raise_first_error(pulling, pushing)

    def state(self) -> bytes:
        """What is held, for a successor's :meth:`restore`: frames, the first of them perhaps written in
        part.
        """
        written, whole = 0, _Batch(b"", array("Q"))
        for batch in self._held:
            if batch.written:  # the first, alone
                written = batch.written - batch.begin_of_unwritten()
            rest = batch.rest(batch.written)
            assert rest is not None
            whole.append(rest)
        return _STATE.pack(written, len(whole.ends)) + whole.ends.tobytes() + whole.data

    def restore(self, state: bytes) -> None:
        """Begin with what a predecessor has held; before anything is carried.

        Raises:
            ValueError: it is no state.
        """
        ends = array("Q")
        try:
            written, count = _STATE.unpack_from(state)
            begin = _STATE.size + count * ends.itemsize
            ends.frombytes(state[_STATE.size : begin])
            batch = _Batch(state[begin:], ends)
            if count != len(ends) or len(batch.data) != (ends[-1] if count else 0):
                raise ValueError("its lengths are not those of what is in it")
        except (struct.error, ValueError) as error:
            raise ValueError(f"what was held is not whole: {error}") from error
        if count:
            batch.written = written
            self._put_back(batch)
            self._update()

    # -- the channel's side ----------------------------------------------------------------------------------

    async def _pull(self) -> None:
        while True:
            await self._has_room.wait()
            self._hold(await self._carrier.receive_many(RECEIVE_COUNT_MAX, RECEIVE_BYTES_MAX))
            self._losses.count()
            # What comes without waiting must not keep the loop from the other bindings, or from push.
            await asyncio.sleep(0)

    def _frames_of(self, messages: Sequence[ReceivedMessage]) -> list[bytes]:
        """Frame what can be framed."""
        if not self._carrier.is_settled:
            return self._framer.frame(messages)
        frames: list[bytes] = []
        for message in messages:
            if framed := self._framer.frame([message]):
                self._unsettled.append(message)
                frames += framed
        return frames

    def _hold(self, messages: Sequence[ReceivedMessage]) -> None:
        frames = self._frames_of(messages)
        if frames:
            batch = _Batch(b"".join(frames), array("Q", accumulate(map(len, frames))))
            last = self._held[-1] if self._held else None
            if last is not None and not last.written and len(last.data) + len(batch.data) <= _MERGE_BYTES:
                self._held_cost_bytes -= last.cost_bytes
                last.append(batch)
                self._held_cost_bytes += last.cost_bytes
            else:
                self._held.append(batch)
                self._held_cost_bytes += batch.cost_bytes
        if not self._is_read and self._held_cost_bytes > self._held_bytes_max:
            self._look()
        self._update()

    # -- the descriptor's side -------------------------------------------------------------------------------

    def attach(self, descriptor: int) -> None:
        """Write to this descriptor (non-blocking, the write end of a pipe): somebody reads it."""
        assert self._descriptor in (None, descriptor)
        self._descriptor = descriptor
        self._is_read = True
        self._update()

    def pause(self) -> None:
        """Stop writing until the next ``attach``: nobody reads. Has no effect when somebody does, or none is
        attached."""
        if self._descriptor is None or not self._is_read:
            return
        left_bytes = unread_bytes(self._descriptor)
        if has_reader(self._descriptor):
            return  # one came, and may be reading: what lies in the pipe is for it
        if not self._is_between_frames(left_bytes):
            self._take_back(take_unread(self._descriptor))
        self._is_read = False
        self._wake_push()

    def detach(self) -> None:
        """Stop writing for good, and take back what nobody has read. The descriptor is open still, and has no
        reader.

        Nothing happens when none is attached.
        """
        if self._descriptor is None:
            return
        self._take_back(take_unread(self._descriptor))
        self._descriptor = None
        self._is_read = False
        self._wake_push()

    def settle(self, left_bytes: int) -> None:
        """After the end of ``run``: say how many of the last bytes nobody will read. Their messages count as
        refused."""
        self._take_back(left_bytes)
        self._abandon()

    def _wake_push(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._update()

    async def _push(self) -> None:
        while True:
            await self._has_work.wait()
            assert self._descriptor is not None
            batch = self._held[0]
            try:
                written = os.write(self._descriptor, memoryview(batch.data)[batch.written :])
            except BlockingIOError:
                await self._wait_writable(self._descriptor)
            except BrokenPipeError:
                self.pause()
            else:
                self._account(batch, written)
                await asyncio.sleep(0)

    # -- inside ----------------------------------------------------------------------------------------------

    def _abandon(self) -> None:
        count = sum(len(batch.ends) - bisect_right(batch.ends, batch.written) for batch in self._held)
        count -= len(self._unsettled)  # those go back into the queue
        self._unsettled.clear()
        if count > 0:
            self._tally.refuse(count, BindingFailed(f"{plural(count, 'message')} not read at the end"))
        self._held.clear()
        self._held_cost_bytes = 0
        self._update()

    def _account(self, batch: _Batch, written: int) -> None:
        """Note that bytes of the first held batch went into the pipe."""
        assert self._descriptor is not None
        batch.written += written
        whole = bisect_right(batch.ends, batch.written)
        if whole > batch.counted:
            before = batch.ends[batch.counted - 1] if batch.counted else 0
            self._tally.count_out(whole - batch.counted, batch.ends[whole - 1] - before)
            if self._unsettled:
                self._carrier.settle([self._unsettled.popleft() for _ in range(whole - batch.counted)])
            batch.counted = whole
        if batch.written < len(batch.data):
            return
        self._held.popleft()
        self._held_cost_bytes -= batch.cost_bytes
        self._flight_bytes += len(batch.data)
        if self._flight and len(self._flight[-1].data) + len(batch.data) <= _MERGE_BYTES // 8:
            self._flight[-1].append(batch)
        else:
            self._flight.append(batch)
        capacity_bytes = pipe_capacity_bytes(self._descriptor)
        while self._flight_bytes - len(self._flight[0].data) >= capacity_bytes:
            self._flight_bytes -= len(self._flight.popleft().data)
        self._update()

    def _is_between_frames(self, left_bytes: int) -> bool:
        """Whether a reader that left so many of the newest bytes stopped at the end of a frame."""
        started = [self._held[0]] if self._held and self._held[0].written else []
        for batch in (*started, *reversed(self._flight)):
            if left_bytes <= batch.written:
                consumed_bytes = batch.written - left_bytes
                return consumed_bytes == 0 or consumed_bytes in batch.ends
            left_bytes -= batch.written
        return True  # there are bytes of another program's before ours

    def _take_back(self, left_bytes: int) -> None:
        """Put in front of what is held every frame of which some of the newest ``left_bytes`` are a
        part."""
        rest: _Batch | None
        if self._held and self._held[0].written:
            batch = self._held.popleft()
            self._held_cost_bytes -= batch.cost_bytes
            rest = batch.rest(max(batch.written - left_bytes, 0))
            assert rest is not None  # it was not written whole
            self._put_back(rest)
            left_bytes -= batch.written
        while left_bytes > 0 and self._flight:
            batch = self._flight.pop()
            rest = batch.rest(max(len(batch.data) - left_bytes, 0))
            if rest is not None:
                self._put_back(rest)
            left_bytes -= len(batch.data)
        self._flight.clear()
        self._flight_bytes = 0

    def _put_back(self, batch: _Batch) -> None:
        self._held.appendleft(batch)
        self._held_cost_bytes += batch.cost_bytes

    def _update(self) -> None:
        """Bring the events into line with what is held and attached; drop what is too much."""
        is_dropping = not self._is_read and self._when_absent is WhenAbsent.DROP
        dropped = 0
        # The newest batch stays, however large: the bound is HELD_BYTES_MAX and one batch. So does one that
        # is partly in the pipe: its rest has to follow.
        first = 1 if self._held and self._held[0].written else 0
        while is_dropping and self._held_cost_bytes > self._held_bytes_max and len(self._held) > first + 1:
            batch = self._held[first]
            del self._held[first]
            self._held_cost_bytes -= batch.cost_bytes
            dropped += len(batch.ends)
        if dropped:
            self._tally.refuse(
                dropped,
                BindingFailed(
                    f"nobody reads: the {dropped} oldest messages that were held were dropped",
                    hint="when_absent=block makes publishers wait instead",
                ),
            )
        put(self._has_room, is_dropping or self._held_cost_bytes < self._held_bytes_max)
        has_work = self._is_read and bool(self._held)
        put(self._has_work, has_work)
        put(self._is_idle, not has_work)

    async def _wait_idle(self) -> None:
        await self._is_idle.wait()

    async def _wait_writable(self, descriptor: int) -> None:
        """Wait until there is room in the pipe, or its readers have gone, or it was detached."""
        loop = asyncio.get_running_loop()
        writable: asyncio.Future[None] = loop.create_future()
        self._writable = writable
        loop.add_writer(descriptor, lambda: None if writable.done() else writable.set_result(None))
        try:
            await writable
        finally:
            loop.remove_writer(descriptor)
            self._writable = None
