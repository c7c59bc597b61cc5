"""``shm:/NAME`` and ``shm:KEY``: a region of shared memory that a foreign program owns.

Theory of operation, inward
    When something tells of a change, a snapshot of the region becomes a message::

        semaphore=S           each post of a semaphore, POSIX or System V
        futex_offset=N        the word there changes and is woken (FUTEX_WAKE, not FUTEX_PRIVATE)
        neither               the generation, if there is one, else the bytes, looked at every ``poll_ms``

    With ``generation_offset`` the writer counts: one before a change, so that the count is odd, and one
    after it. A snapshot holds when the count was even and the same before and after (a seqlock); otherwise
    it is taken again. So no message is torn. Without it, one that is told by a semaphore or a futex is as
    whole as the writer leaves it until it is taken; one that is found by looking was read twice alike.

Theory of operation, outward
    Each message is written into the region under the same discipline: the generation made odd, the bytes,
    zeros behind them (or their length at ``length_offset``), the generation made even; then the futex word
    is advanced and woken, the semaphore posted. A count that a killed writer left odd is made even again.

What users should know
    *Only the latest*: a region holds one message, and who is slow sees the last. What was overwritten unseen
    is counted as refused, as far as the count or the posts tell. With ``free`` nothing is overwritten:
    inward that semaphore is posted when a message was taken, outward it is taken before each is written.
    So its owner makes it with the value 1, and one writer and one reader carry everything, in order.
    *At the start* what is in the region is a message if something is (generation or futex word above 0, or a
    byte other than 0), except where a semaphore tells. After a restart of the bridge it may come again.
    *One writer.* Two writers of one region are not kept apart here.
    *The segment's owner* makes, resizes and removes it. One that is not there is tried again, as every
    retryable failure; one that is removed, replaced or too short meanwhile is an error on the binding (told
    by inotify; for System V, which tells nobody, within ``LOOK_S``) and then tried again.
    *No headers*: there is no place for any.
    *Words* are 32 bits, in the machine's order, at a multiple of 4. Of a 64-bit count name the lower half.
    *A semaphore's file* that is cut short while it is used would raise SIGBUS in any of its users: the C
    library works on it in place.

Sources: shm_overview(7), sem_overview(7), futex(2), "Can seqlocks get along with programming language memory
models?" (Boehm 2012).
"""

from __future__ import annotations

import asyncio
from typing import Final

from towpath.bindings.shm import ShmOptions, ShmPlace, parse_shm
from towpath.errors import BadFrame, BindingFailed, MessageTooLarge
from towpath.model import Direction
from towpath_broker.gateways.bridge.inotify import IN_ATTRIB, PathWatcher
from towpath_broker.gateways.bridge.keeping import BindingKeeping
from towpath_broker.gateways.bridge.messages import MessageOutflow
from towpath_broker.gateways.bridge.ports import Carrier, ReceivedMessage
from towpath_broker.gateways.bridge.publishing import Publishing
from towpath_broker.gateways.bridge.report import Tally
from towpath_broker.gateways.bridge.segments import WORD, Segment
from towpath_broker.gateways.bridge.stop import Stop
from towpath_broker.gateways.bridge.tasks import cancel
from towpath_broker.gateways.bridge.words import Semaphore, Words, open_semaphore

LOOK_S: Final = 1.0
"""How often it is looked whether a System V segment is still there."""
SNAPSHOT_TRIES: Final = 64
"""Before a pause, while the region is being written."""
_PAUSE_S_MIN: Final = 0.0005
_PAUSE_S_MAX: Final = 0.1
STUCK_S: Final = 1.0
"""After so long inside one change, the writer is said to have stopped."""
_IN_MODIFY: Final = 0x0002


class ShmAdapter:
    """One region, one way.

    Args:
        place: as :func:`parse_shm` takes it.
        direction: ``in`` or ``out``.
        options: as parsed.
        carrier: the channel.
        tally: the binding's account.
        keeping: what outlives an attempt.
    """

    def __init__(
        self,
        place: str,
        direction: Direction,
        options: ShmOptions,
        carrier: Carrier,
        tally: Tally,
        keeping: BindingKeeping,
    ) -> None:
        self._place = parse_shm(f"shm:{place}", place)
        self._direction = direction
        self._options = options
        self._carrier = carrier
        self._tally = tally
        self._keeping = keeping

    async def run(self, stop: Stop) -> None:
        """As :meth:`Adapter.run`.

        Raises:
            BindingFailed: the segment or a semaphore is not there, not ours to use, removed, or too short.
            LimitExceeded, NotSupported: see ``words``.
            TowpathError: the channel takes or gives no more.
        """
        site = _Region(self._place, self._options, is_written=self._direction == "out")
        ending = stop.child()
        watcher: PathWatcher | None = None
        looking: asyncio.Task[None] | None = None
        try:
            watcher = site.watch(ending)
            looking = (
                asyncio.create_task(site.look_again_and_again(ending)) if not site.segment.path else None
            )
            self._tally.set_state("running", f"{site.length} bytes of {self._place.segment}")
            if self._direction == "in":
                await _Inward(site, self._carrier, self._tally, self._keeping).run(ending)
            else:
                await self._run_out(site, ending)
            if site.error is not None and not stop.is_set:
                raise site.error
        finally:
            if looking is not None:
                await cancel(looking)
            if watcher is not None:
                watcher.close()
            site.close()

    async def _run_out(self, site: _Region, ending: Stop) -> None:
        sink = _Outward(site)
        outflow = MessageOutflow(self._carrier, self._tally, sink.prepare)
        try:
            await outflow.run(sink, ending)
            if site.error is None:
                await outflow.flush(sink)
        finally:
            outflow.abandon()
            sink.close()


class _Region:
    """The segment, the semaphores, and where in it what lies.

    Attributes:
        error: why it is of no use any longer.
        ready: tells of a change; posted by the writer. None for none.
        free: see the option.

    Raises:
        BindingFailed, LimitExceeded, NotSupported: something of it is not there.
    """

    def __init__(self, place: ShmPlace, options: ShmOptions, *, is_written: bool) -> None:
        self.offset = place.offset
        self.options = options
        self.error: BindingFailed | None = None
        self.ready: Semaphore | None = None
        self.free: Semaphore | None = None
        self.words = Words.shared()
        self.segment = self._open(place, is_written)
        try:
            self.length = options.length or self.segment.size_bytes - self.offset
            words = (options.length_offset, options.generation_offset, options.futex_offset)
            ends = [each + WORD.size for each in words if each is not None]
            self._end = max(self.offset + max(self.length, 1), *ends, 0)
            self.segment.check(self._end)
            if options.semaphore is not None:
                self.ready = open_semaphore(options.semaphore, is_waited_for=not is_written)
            if options.free is not None:
                self.free = open_semaphore(options.free, is_waited_for=is_written)
        except BaseException:
            self.close()
            raise

    def _open(self, place: ShmPlace, is_written: bool) -> Segment:
        try:
            return Segment(place, is_writable=is_written)
        except BaseException:
            self.words.release()
            raise

    def watch(self, ending: Stop) -> PathWatcher:
        """Have ``ending`` set when the segment or a semaphore is removed, or the segment too short."""
        watcher = (
            PathWatcher()
        )  # of our own: a file has one watch in each, and a segment may have many regions
        try:
            if self.segment.path:
                mask = (
                    IN_ATTRIB | _IN_MODIFY
                )  # removed; or its size changed, which a mapping's user cannot do
                watcher.watch(self.segment.link, mask, lambda: self.look(ending))
            for path in {each.path for each in (self.ready, self.free) if each is not None and each.path}:
                watcher.watch(path, IN_ATTRIB, lambda path=path: self._lost(path, ending))  # type: ignore[misc]
        except BaseException:
            watcher.close()
            raise
        return watcher

    def look(self, ending: Stop) -> None:
        """See whether the segment is there and long enough."""
        try:
            self.segment.check(self._end)
        except BindingFailed as error:
            self.error = error
            ending.set()

    async def look_again_and_again(self, ending: Stop) -> None:
        """For what tells nobody."""
        while await ending.sleep(LOOK_S):
            self.look(ending)

    def _lost(self, path: str, ending: Stop) -> None:
        self.error = BindingFailed(f"the semaphore {path} was removed or replaced", retryable=True)
        ending.set()

    def close(self) -> None:
        """Let go of everything."""
        for semaphore in (self.ready, self.free):
            if semaphore is not None:
                semaphore.close()
        self.segment.close()
        self.words.release()


class _Inward:
    """From a region into a channel."""

    def __init__(self, region: _Region, carrier: Carrier, tally: Tally, keeping: BindingKeeping) -> None:
        self._region = region
        self._segment = region.segment
        self._options = region.options
        self._publishing = Publishing(carrier, tally)
        self._tally = tally
        self._keeping = keeping
        self._generation: int | None = None
        self._word = 0
        self._data: bytes | None = None

    async def run(self, stop: Stop) -> None:
        """Carry until stopped.

        Raises:
            BindingFailed: the segment is too short now, or a semaphore gone.
            TowpathError: the channel takes no more.
        """
        if self._region.ready is not None:
            await self._run_by_semaphore(self._region.ready, stop)
            return
        is_first = True
        while not stop.is_set:
            futex = self._options.futex_offset
            if futex is not None:
                self._word = self._segment.word(futex)  # before the snapshot: what changes after it, wakes
            taken = await self._snapshot(stop)
            if taken is not None:
                await self._publish_if_new(*taken, is_first)
                is_first = False
            if futex is not None:
                await self._region.words.changed(self._segment.address_of(futex), self._word, stop)
            else:
                await stop.sleep(self._options.poll_ms / 1000)

    async def _run_by_semaphore(self, ready: Semaphore, stop: Stop) -> None:
        while not stop.is_set:
            count = ready.take()
            if not count:
                await ready.wait(stop)
                continue
            if count > 1:
                self._missed(count - 1)
            taken = await self._snapshot(stop)
            if taken is None:
                ready.post()  # stopped inside a change: for who comes next
                return
            await self._publish(taken[1])
            if self._region.free is not None:
                self._region.free.post()

    async def _publish_if_new(self, generation: int | None, data: bytes, is_first: bool) -> None:
        mark = f"{self._segment.identity} {generation if generation is not None else self._word}"
        is_written = bool(generation or self._word) if self._has_count else any(data)
        if is_first:
            is_new = is_written and (not self._has_count or self._keeping.note != mark)
        elif generation is not None:
            is_new = generation != self._generation
        else:
            is_new = self._options.futex_offset is not None or data != self._data
        if generation is not None and self._generation is not None and is_new:
            missed = ((generation - self._generation) & 0xFFFF_FFFF) // 2 - 1
            if 0 < missed < 1 << 30:  # beyond, the writer has begun anew
                self._missed(missed)
        self._generation, self._data = generation, data
        self._keeping.note = mark
        if is_new:
            await self._publish(data)

    @property
    def _has_count(self) -> bool:
        return self._options.generation_offset is not None or self._options.futex_offset is not None

    async def _publish(self, data: bytes) -> None:
        length_offset = self._options.length_offset
        if length_offset is not None:
            length = WORD.unpack_from(data)[0]
            if length > self._region.length:
                self._tally.refuse(
                    1, BadFrame(f"the length says {length} bytes; the region has {self._region.length}")
                )
                return
            data = data[WORD.size : WORD.size + length]
        await self._publishing.publish([data])

    def _missed(self, count: int) -> None:
        self._tally.refuse(
            count,
            BindingFailed(
                f"{count} changes were overwritten before they were seen", hint="option free prevents it"
            ),
        )

    async def _snapshot(self, stop: Stop) -> tuple[int | None, bytes] | None:
        """Take a snapshot that is not torn; None when stopped meanwhile."""
        loop = asyncio.get_running_loop()
        began_s, pause_s = loop.time(), _PAUSE_S_MIN
        detail = self._tally.detail
        is_stuck = False
        while True:
            for _ in range(SNAPSHOT_TRIES):
                taken = self._try_snapshot()
                if taken is not None:
                    if is_stuck:
                        self._tally.set_state("running", detail)
                    return taken
            if loop.time() - began_s > STUCK_S and not is_stuck:
                is_stuck = True
                self._tally.set_state("waiting", f"a writer is inside a change; {detail}")
            if not await stop.sleep(pause_s):
                return None
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    def _try_snapshot(self) -> tuple[int | None, bytes] | None:
        offset = self._options.generation_offset
        if offset is not None:
            before = self._segment.word(offset)
            if before & 1:
                return None
            data = self._read()
            return (before, data) if self._segment.word(offset) == before else None
        data = self._read()
        is_told = self._region.ready is not None or self._options.futex_offset is not None
        return (None, data) if is_told or self._read() == data else None

    def _read(self) -> bytes:
        """The region; in front of it the length, where there is one."""
        data = self._segment.read(self._region.offset, self._region.length)
        length_offset = self._options.length_offset
        return data if length_offset is None else self._segment.read(length_offset, WORD.size) + data


class _Outward:
    """Writes a region; a :class:`Sink`."""

    def __init__(self, region: _Region) -> None:
        self._region = region
        self._segment = region.segment
        self._options = region.options
        self._free = 0  # what was taken of the semaphore and is not used yet

    def prepare(self, message: ReceivedMessage) -> tuple[list[bytes], int]:
        """As :class:`MessageOutflow` asks.

        Raises:
            MessageTooLarge: the region does not hold it.
        """
        if len(message.payload) > self._region.length:
            raise MessageTooLarge(
                f"a message has {len(message.payload)} bytes; the region {self._region.length}"
            )
        return [message.payload], 0

    def send_nowait(self, data: bytes, mark: int) -> bool:
        """As :meth:`Sink.send_nowait`."""
        if self._region.free is not None:
            if not self._free:
                self._free = self._region.free.take()
            if not self._free:
                return False
            self._free -= 1
        self._write(data)
        return True

    async def send_waiting(self, data: bytes, mark: int, stop: Stop) -> bool:
        """As :meth:`Sink.send_waiting`."""
        assert self._region.free is not None
        while not stop.is_set:
            if self.send_nowait(data, mark):
                return True
            await self._region.free.wait(stop)
        return False

    def close(self) -> None:
        """Give back what was taken and not used."""
        if self._free and self._region.free is not None:
            self._region.free.post(self._free)

    def _write(self, data: bytes) -> None:
        segment, options, length = self._segment, self._options, self._region.length
        generation = options.generation_offset
        if generation is not None and not segment.word(generation) & 1:
            segment.advance(generation)
        if options.length_offset is not None:
            segment.write(options.length_offset, WORD.pack(len(data)))
        else:
            data = data.ljust(length, b"\0")
        if data:
            segment.write(self._region.offset, data)
        if generation is not None:
            segment.advance(generation)
        if options.futex_offset is not None and options.futex_offset != generation:
            segment.advance(options.futex_offset)
        if self._region.ready is not None:
            self._region.ready.post()
