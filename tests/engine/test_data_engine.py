"""The data plane's engine: lanes, group commit, a disk that is slow, full or broken, time, and ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import wraps

import pytest

from tests.support.deadlines import DEADLINE_S
from towpath.errors import ChannelNotFound, InvalidArgument, StoreFull
from towpath_broker import data_engine
from towpath_broker.core.commands import Caller, ChannelOptions, Kind
from towpath_broker.core.data import commands as c
from towpath_broker.core.data import effects as e
from towpath_broker.core.data.rows import Row
from towpath_broker.core.effects import ChannelClosed, ChannelOpened
from towpath_broker.core.ids import CallId, SessionId
from towpath_broker.core.limits import Limits
from towpath_broker.data_engine import DataEngine
from towpath_broker.ports import WallClock
from towpath_broker.store.memory import MemoryStore

CHANNELS = {
    "fast": ChannelOptions(kind=Kind.QUEUE, ack_ms=10, max_deliveries=2, dead_letter="kept"),
    "kept": ChannelOptions(kind=Kind.QUEUE, durable=True, ack_ms=60_000),
    "lost": ChannelOptions(kind=Kind.QUEUE, max_deliveries=1, dead_letter="plain"),
    "mode": ChannelOptions(kind=Kind.STATE, durable=True),
    "log": ChannelOptions(durable=True),
}


def on_a_loop(test: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    """Run a test to its end on a loop of its own."""

    @wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


class GatedStore(MemoryStore):
    """A disk that can be made slow, full, or to fail: a commit waits for the gate, then raises."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.failure: Exception | None = None
        self.commits: list[int] = []

    def forget(self) -> None:
        """Begin to count anew."""
        self.commits.clear()
        while self.entered.acquire(blocking=False):
            pass

    def commit(self, written: Sequence[Row]) -> None:
        failure = self.failure
        self.entered.release()
        assert self.gate.wait(DEADLINE_S)
        if failure is not None:
            raise failure
        super().commit(written)
        self.commits.append(len(written))


class Bench:
    """An engine that runs, and what it shows."""

    def __init__(self, store: GatedStore) -> None:
        self.store = store
        self.shown: list[e.Effect] = []
        self.calls = 0
        self._news = asyncio.Event()
        self.engine = DataEngine(
            limits=Limits(),
            store=store,
            clock=WallClock(),
            emit=self._emit,
            kind_of=lambda name: Kind.TOPIC if name == "plain" else None,
            first_consumer=1 << 40,
        )

    def _emit(self, effect: e.Effect) -> None:
        self.shown.append(effect)
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def entered(self) -> None:
        """Wait until a commit has begun."""
        assert await asyncio.to_thread(self.store.entered.acquire, timeout=DEADLINE_S)

    def caller(self, session: int = 1) -> Caller:
        self.calls += 1
        return Caller("uid:7", session=SessionId(session), call=CallId(self.calls))

    def submit(self, command: c.DataCommand) -> None:
        self.engine.submit(command)

    def publish(self, channel: str, *payloads: bytes) -> int:
        caller = self.caller()
        self.submit(c.Publish(caller, channel, payloads))
        return caller.call

    def answer(self, call: int) -> e.ReplyBody | Exception | None:
        for effect in self.shown:
            if isinstance(effect, e.Reply | e.Refuse) and effect.call == call:
                return effect.body if isinstance(effect, e.Reply) else effect.error
        return None

    async def answered(self, call: int) -> e.ReplyBody | Exception:
        await self.until(lambda: self.answer(call) is not None)
        answer = self.answer(call)
        assert answer is not None
        return answer

    def delivered(self) -> list[bytes]:
        deliveries = [effect for effect in self.shown if isinstance(effect, e.Deliver)]
        return [payload for each in deliveries for piece in each.pieces for payload in piece.payloads]


@asynccontextmanager
async def running(store: GatedStore | None = None) -> AsyncIterator[Bench]:
    bench = Bench(store or GatedStore())
    await bench.engine.recover(
        [ChannelOpened(name, options, "uid:0", 5) for name, options in CHANNELS.items()]
    )
    task = asyncio.create_task(bench.engine.run())
    await bench.answered(bench.publish("fast", b"") and bench.publish("log", b"begin"))
    bench.store.forget()
    bench.shown.clear()
    try:
        yield bench
    finally:
        bench.store.gate.set()
        bench.engine.stop()
        await asyncio.wait([task], timeout=DEADLINE_S)
    if bench.store.failure is None:
        task.result()
    else:
        task.exception()


@on_a_loop
async def test_nothing_is_shown_before_its_commit_and_what_waits_shares_the_next() -> None:
    async with running() as bench:
        bench.store.gate.clear()
        first = bench.publish("kept", b"a")
        await bench.entered()
        others = [bench.publish("kept", b"%d" % index) for index in range(5)]
        assert bench.shown == []
        bench.store.gate.set()
        await bench.answered(first)
        for call in others:
            assert isinstance(await bench.answered(call), e.Published)
        assert len(bench.store.commits) == 2
        assert [each.call for each in bench.shown if isinstance(each, e.Reply)] == [first, *others]


@on_a_loop
async def test_the_memory_lane_does_not_wait_for_the_disk() -> None:
    async with running() as bench:
        bench.store.gate.clear()
        bench.publish("kept", b"a")
        await bench.entered()
        assert await bench.answered(bench.publish("fast", b"a")) == e.Published("fast", 2, 1)
        assert not any(isinstance(effect, e.Reply) and effect.call == 1 for effect in bench.shown)


@on_a_loop
async def test_a_full_disk_refuses_who_writes_and_nobody_else() -> None:
    async with running() as bench:
        await bench.answered(bench.publish("kept", b"a"))
        consume = bench.caller(2)
        bench.submit(c.Consume(consume, "kept", 1))
        await bench.until(lambda: bench.delivered() == [b"a"])
        bench.store.failure = StoreFull("the disk is full")
        get, taken = bench.caller(), c.TakeIn("log", 9, b"", 0, 0, 0, 0, {7: (1, 1)})
        put = bench.publish("kept", b"b")
        bench.submit(c.GetValue(get, "mode"))
        bench.submit(taken)
        bench.submit(c.EndSession(SessionId(2)))  # a died consumer's attempts are to be written
        assert isinstance(await bench.answered(put), StoreFull)
        assert isinstance(await bench.answered(get.call), e.ValueTold)
        await bench.until(lambda: any(isinstance(each, e.NotTaken) for each in bench.shown))
        other = bench.caller(3)
        bench.store.failure = None
        bench.submit(c.Consume(other, "kept", 5))
        await bench.until(lambda: bench.delivered() == [b"a", b"a"])
        assert bench.engine.statistics().store_full >= 1


@on_a_loop
async def test_what_nobody_can_be_refused_is_tried_again_by_itself() -> None:
    async with running() as bench:
        await bench.answered(bench.publish("kept", b"a"))
        bench.submit(c.Consume(bench.caller(2), "kept", 1))
        bench.submit(c.Consume(bench.caller(3), "kept", 1))
        await bench.until(lambda: bench.delivered() == [b"a"])
        bench.store.forget()
        bench.store.failure = StoreFull("the disk is full")
        bench.submit(c.EndSession(SessionId(2)))
        await bench.entered()
        bench.store.failure = None
        await bench.until(lambda: bench.delivered() == [b"a", b"a"])
        assert bench.engine.statistics().store_full == 1


@on_a_loop
async def test_any_other_failure_ends_the_run_and_shows_nothing() -> None:
    bench = Bench(GatedStore())
    await bench.engine.recover([ChannelOpened("kept", CHANNELS["kept"], "uid:0", 5)])
    bench.store.failure = OSError(5, "Input/output error")
    bench.publish("kept", b"a")
    with pytest.raises(OSError, match="Input/output error"):
        await asyncio.wait_for(bench.engine.run(), 20)
    assert bench.shown == []
    bench.publish("kept", b"b")  # ignored: those who could be answered are being disconnected


@on_a_loop
async def test_a_bug_in_the_memory_lane_ends_the_run() -> None:
    bench = Bench(GatedStore())
    await bench.engine.recover([ChannelOpened("fast", CHANNELS["fast"], "uid:0", 5)])

    def broken(effect: e.Effect) -> None:
        raise AssertionError("a bug")

    bench.engine._emit = broken
    bench.publish("fast", b"a")
    with pytest.raises(AssertionError, match="a bug"):
        await asyncio.wait_for(bench.engine.run(), 20)


@asynccontextmanager
async def consuming(gather_s: float, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Bench, int]]:
    """A consumer that may have four messages of a durable queue, and has them."""
    monkeypatch.setattr(data_engine, "GATHER_S", gather_s)
    async with running() as bench:
        bench.submit(c.Consume(bench.caller(2), "kept", 4))
        await bench.answered(bench.publish("kept", *[b"x"] * 8))
        await bench.until(lambda: len(bench.delivered()) == 4)
        bench.store.commits.clear()
        (consumer,) = {effect.consumer for effect in bench.shown if isinstance(effect, e.Deliver)}
        yield bench, consumer


def acknowledge(bench: Bench, consumer: int, first: int, last: int) -> int:
    caller = bench.caller(2)
    bench.submit(c.Settle(caller, consumer, [c.Range(first, last)]))
    return caller.call


def test_acknowledgements_of_who_has_more_to_do_share_the_next_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @on_a_loop
    async def run() -> None:
        async with consuming(DEADLINE_S, monkeypatch) as (bench, consumer):
            first, second = acknowledge(bench, consumer, 1, 1), acknowledge(bench, consumer, 2, 2)
            for _ in range(10):
                await asyncio.sleep(0)
            assert not bench.store.commits and bench.answer(first) is None
            published = bench.publish("kept", b"y")
            for call in (published, first, second):
                assert not isinstance(await bench.answered(call), Exception)
            assert len(bench.store.commits) == 1
            acknowledge(bench, consumer, 3, 3)
            # The engine's end carries it out.

    run()


def test_acknowledgements_of_who_waits_for_more_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    @on_a_loop
    async def run() -> None:
        async with consuming(10 * DEADLINE_S, monkeypatch) as (bench, consumer):
            await bench.answered(acknowledge(bench, consumer, 1, 3))
            caller = bench.caller(2)
            bench.submit(c.Settle(caller, consumer, (), [c.Returned(c.Range(4, 4), 0, False, "")]))
            await bench.answered(caller.call)
            assert len(bench.delivered()) >= 8

    run()


def test_acknowledgements_are_carried_out_when_nothing_else_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    @on_a_loop
    async def run() -> None:
        async with consuming(0.001, monkeypatch) as (bench, consumer):
            await bench.answered(acknowledge(bench, consumer, 1, 1))
            await bench.answered(acknowledge(bench, consumer, 2, 2))

    run()


@on_a_loop
async def test_a_deadline_passes_without_anybody_asking() -> None:
    async with running() as bench:
        # It goes to the one and then to the other: who has let a deadline pass is dealt nothing more.
        bench.submit(c.Consume(bench.caller(2), "fast", 1))
        bench.submit(c.Consume(bench.caller(4), "fast", 1))
        await bench.until(lambda: bench.delivered() == [b"", b""])
        # Delivered twice, and not settled: a dead letter now, in a queue of the other lane.
        bench.submit(c.Consume(bench.caller(3), "kept", 1))
        await bench.until(lambda: len(bench.delivered()) == 3)


@on_a_loop
async def test_dead_letters_for_what_the_data_plane_does_not_have_go_to_the_door() -> None:
    async with running() as bench:
        bench.publish("lost", b"a")
        bench.submit(c.Consume(bench.caller(2), "lost", 1))
        await bench.until(lambda: bench.delivered() == [b"a"])
        bench.submit(c.EndSession(SessionId(2)))
        await bench.until(lambda: any(isinstance(each, e.DeadLetters) for each in bench.shown))


@on_a_loop
async def test_what_the_data_plane_does_not_have_is_refused() -> None:
    async with running() as bench:
        assert isinstance(await bench.answered(bench.publish("none", b"a")), ChannelNotFound)
        asked = bench.caller()
        bench.submit(c.GetValue(asked, "plain"))
        assert isinstance(await bench.answered(asked.call), InvalidArgument)


@on_a_loop
async def test_a_channel_that_becomes_durable_begins_anew() -> None:
    async with running() as bench:
        bench.submit(c.Consume(bench.caller(2), "lost", 5))
        bench.engine.open_channel(ChannelOpened("lost", CHANNELS["kept"], "uid:0", 5))
        await bench.until(lambda: any(isinstance(each, e.StreamEnded) for each in bench.shown))
        assert await bench.answered(bench.publish("lost", b"a")) == e.Published("lost", 1, 1)
        assert bench.store.commits
        bench.engine.close_channel(ChannelClosed("lost"))
        assert isinstance(await bench.answered(bench.publish("lost", b"a")), ChannelNotFound)


@on_a_loop
async def test_the_end_carries_out_what_waits() -> None:
    async with running() as bench:
        bench.store.gate.clear()
        calls = [bench.publish("kept", b"%d" % index) for index in range(3)]
        await bench.entered()
        bench.engine.stop()
        bench.store.gate.set()
        for call in calls:
            assert isinstance(await bench.answered(call), e.Published)


@on_a_loop
async def test_what_is_stored_of_channels_that_are_no_more_is_let_go() -> None:
    store = GatedStore()
    async with running(store) as bench:
        await bench.answered(bench.publish("kept", b"a"))
    after = Bench(store)
    await after.engine.recover([ChannelOpened("kept", CHANNELS["kept"], "uid:0", 6)])  # declared anew
    after.engine.stop()
    await asyncio.wait_for(after.engine.run(), 20)
    assert [(each.channel, each.messages) for each in store.load()] == [("kept", 0)]


@on_a_loop
async def test_reading_what_is_stored() -> None:
    async with running() as bench:
        await bench.answered(bench.publish("log", b"a", b"b"))
        read, found = bench.caller(), bench.caller()
        bench.submit(c.ReadStored(read, "log", 2))
        bench.submit(c.FindStored(found, "log", c.StartAt.TIME, 1))
        told = await bench.answered(read.call)
        assert isinstance(told, e.ParcelsRead)
        assert (told.first_seq, told.next_seq, told.end_seq, len(told.parcels)) == (2, 4, 4, 1)
        assert await bench.answered(found.call) == e.Found(1, 1, 4)
