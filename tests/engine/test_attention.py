"""When the event loop makes commits itself, and looks for events before it sleeps; and when it does not."""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence

import pytest

from tests.engine.test_data_engine import CHANNELS
from towpath.errors import StoreFull
from towpath_broker import attention
from towpath_broker.attention import (
    CALM_ROUNDS,
    HERE_BYTES_MAX,
    HERE_NS_MAX,
    SKIP_MAX,
    SLOW_NS,
    SLOW_ROUNDS,
    Attention,
    CommitPlace,
    WatchfulSelector,
)
from towpath_broker.core.commands import Caller
from towpath_broker.core.data import commands as c
from towpath_broker.core.data import effects as e
from towpath_broker.core.data.rows import Row, Run
from towpath_broker.core.effects import ChannelOpened
from towpath_broker.core.ids import CallId, SessionId
from towpath_broker.core.limits import Limits
from towpath_broker.data_engine import DataEngine
from towpath_broker.ports import WallClock
from towpath_broker.store.memory import MemoryStore


class Rounds:
    """A commit place, and rounds for it."""

    def __init__(self) -> None:
        self.events = 0
        self.place = CommitPlace(lambda: self.events)

    def round(self, *, others: int = 0, nbytes: int = 100, span_ns: int = 200_000) -> bool:
        self.events += 1 + others  # its publisher's doorbell, at least
        is_here = self.place.is_here(nbytes)
        self.place.begin(is_here=is_here)
        self.place.took(span_ns)
        self.events += not is_here  # the thread's word that it has done it
        return is_here

    def until_here(self) -> int:
        """How many rounds it takes until the loop commits itself."""
        return next(number for number in range(10_000) if self.round())


def test_a_publisher_that_is_alone_has_its_commits_made_by_the_loop() -> None:
    rounds = Rounds()
    assert rounds.until_here() == CALM_ROUNDS
    assert all(rounds.round() for _ in range(100))


def test_with_somebody_else_they_are_made_by_the_thread_until_he_is_gone() -> None:
    rounds = Rounds()
    rounds.until_here()
    assert not rounds.round(others=1)
    assert rounds.until_here() == CALM_ROUNDS
    busy = Rounds()
    assert not any(busy.round(others=number % (CALM_ROUNDS // 2) == 0) for number in range(1_000))


def test_a_large_round_goes_to_the_thread() -> None:
    rounds = Rounds()
    rounds.until_here()
    assert not rounds.round(nbytes=HERE_BYTES_MAX + 1)
    assert rounds.round(nbytes=HERE_BYTES_MAX)


def test_on_a_slow_disk_they_go_to_the_thread() -> None:
    slow = Rounds()
    assert not any(slow.round(span_ns=2 * HERE_NS_MAX) for _ in range(1_000))
    rounds = Rounds()
    rounds.until_here()
    here = [rounds.round(span_ns=2 * HERE_NS_MAX) for _ in range(100)]
    assert not here[-1] and rounds.until_here() < 200
    some = [rounds.round(span_ns=2 * HERE_NS_MAX if number % 5 == 0 else 200_000) for number in range(500)]
    assert all(some), "a few slow ones, as when the log is brought into the file, do not count"


def test_after_one_very_slow_commit_they_go_to_the_thread_for_long() -> None:
    rounds = Rounds()
    rounds.until_here()
    assert rounds.round(span_ns=SLOW_NS)
    assert rounds.until_here() == SLOW_ROUNDS + CALM_ROUNDS


class Looks:
    """Attention on a selector with one socket."""

    def __init__(self, selector: WatchfulSelector) -> None:
        self.attention = Attention(selector)
        self.finds: list[str | None] = []
        self.asked = 0

    def find(self) -> str | None:
        self.asked += 1
        return self.finds.pop(0) if self.finds else None

    def look(self) -> str | None:
        self.attention.committed_here()
        self.asked = 0
        return self.attention.look(self.find)


def test_events_are_counted_when_they_are_brought() -> None:
    here, there = socket.socketpair()
    with WatchfulSelector() as selector, here, there:
        selector.register(here, selectors.EVENT_READ)
        assert not selector.is_wanted() and selector.events == 0
        there.send(b"x")
        assert selector.is_wanted() and selector.is_wanted() and selector.events == 0
        assert len(selector.select(30)) == 1 and selector.events == 1


def test_the_loop_looks_once_after_each_commit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(attention, "LOOK_NS", 30_000_000_000)
    here, there = socket.socketpair()
    with WatchfulSelector() as selector, here, there:
        selector.register(here, selectors.EVENT_READ)
        looks = Looks(selector)
        assert looks.attention.look(looks.find) is None and looks.asked == 0, "nothing was committed"
        looks.finds = [None, None, "found"]
        assert looks.look() == "found" and looks.asked == 3
        assert looks.attention.look(looks.find) is None and looks.asked == 3, "once"
        there.send(b"x")
        assert looks.look() is None and looks.asked == 1, "somebody wants the loop"


def test_looks_in_vain_become_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with WatchfulSelector() as selector:
        looks = Looks(selector)
        looked = [looks.look() is None and looks.asked > 0 for _ in range(2 * SKIP_MAX)]
        assert sum(looked) == 11, "1, 3, 7, ... are left out between them"
        looks.finds = ["found"] * 99
        while looks.look() is None:
            pass
        assert looks.look() == "found", "it is worth it again"


def test_on_one_core_it_does_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with WatchfulSelector() as selector:
        looks = Looks(selector)
        assert looks.look() is None and looks.asked == 0


class NotingStore(MemoryStore):
    """Notes in which thread it commits; can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[threading.Thread] = []
        self.failure: Exception | None = None

    def commit(self, written: Sequence[Row]) -> None:
        self.threads.append(threading.current_thread())
        if self.failure is not None:
            raise self.failure
        super().commit(written)


class Scene:
    """An engine on a loop that knows whom it serves, and somebody else on that loop."""

    def __init__(self, selector: WatchfulSelector) -> None:
        self.store = NotingStore()
        self.shown: asyncio.Queue[e.Effect] = asyncio.Queue()
        self.engine = DataEngine(
            limits=Limits(),
            store=self.store,
            clock=WallClock(),
            emit=self.shown.put_nowait,
            kind_of=lambda name: None,
            first_consumer=1 << 40,
            attention=Attention(selector),
        )
        self.taken = 0

    async def begin(self) -> asyncio.Task[None]:
        await self.engine.recover([ChannelOpened("log", CHANNELS["log"], "uid:0", 5)])
        return asyncio.create_task(self.engine.run())

    def submit_publish(self) -> None:
        self.engine.submit(c.Publish(Caller("uid:7", session=SessionId(1), call=CallId(1)), "log", [b"x"]))

    async def publish(self) -> bool:
        """Whether the loop committed it, and then showed it."""
        self.submit_publish()
        while not isinstance(await asyncio.wait_for(self.shown.get(), 30), e.Reply):
            pass
        return store_is_here(self.store)

    async def become_alone(self) -> None:
        async with asyncio.timeout(30):
            while not await self.publish():
                pass
            for _ in range(3):  # the engine's task goes back to waiting
                await asyncio.sleep(0)

    def take_in(self) -> None:
        self.taken += 1
        run = Run([b"y"])
        taken = {9: (self.taken, self.taken)}
        self.engine.submit(c.TakeIn("log", self.taken, run, 1, 1, 5, 5, taken, ()))

    def at_once(self) -> list[e.Effect]:
        """What is shown now."""
        return [self.shown.get_nowait() for _ in range(self.shown.qsize())]


def store_is_here(store: NotingStore) -> bool:
    return store.threads[-1] is threading.main_thread()


def on_a_watched_loop(test: Callable[[Scene], Coroutine[None, None, None]]) -> None:
    selector = WatchfulSelector()

    async def main() -> None:
        await test(Scene(selector))

    with pytest.MonkeyPatch.context() as patch:
        for name in ("SLOW_NS", "HERE_NS_MAX"):  # a busy machine is no slow disk
            patch.setattr(attention, name, 1 << 60)
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            runner.run(main())


def test_the_engine_commits_where_it_is_told() -> None:
    async def run(scene: Scene) -> None:
        here, there = socket.socketpair()
        read = asyncio.Event()

        def receive() -> None:
            here.recv(1)
            read.set()

        with here, there:
            asyncio.get_running_loop().add_reader(here, receive)
            task = await scene.begin()
            assert not await scene.publish(), "it is not known yet who is there"
            await scene.become_alone()
            for _ in range(3):
                there.send(b"x")
                read.clear()
                await asyncio.wait_for(read.wait(), 30)
            assert not await scene.publish(), "somebody else was there"
            scene.engine.stop()
            await task
            asyncio.get_running_loop().remove_reader(here)

    on_a_watched_loop(run)


def test_what_comes_out_of_a_ring_is_stored_and_shown_at_once() -> None:
    async def run(scene: Scene) -> None:
        task = await scene.begin()
        scene.take_in()
        assert scene.at_once() == [], "it is not known yet who is there"
        await scene.become_alone()
        scene.at_once()
        scene.take_in()
        (shown,) = scene.at_once()
        assert isinstance(shown, e.Appended) and shown.ticket == scene.taken and store_is_here(scene.store)
        scene.submit_publish()
        scene.take_in()
        assert scene.at_once() == [], "it waits its turn"
        first, _, second = [await asyncio.wait_for(scene.shown.get(), 30) for _ in range(3)]
        assert isinstance(first, e.Appended) and first.ticket == 0
        assert isinstance(second, e.Appended) and second.ticket == scene.taken
        scene.engine.stop()
        await task

    on_a_watched_loop(run)


def test_a_full_store_refuses_it_and_goes_on() -> None:
    async def run(scene: Scene) -> None:
        task = await scene.begin()
        await scene.become_alone()
        scene.at_once()
        scene.store.failure = StoreFull("no room")
        scene.take_in()
        refused = await asyncio.wait_for(scene.shown.get(), 30)
        assert isinstance(refused, e.NotTaken) and refused.ticket == scene.taken
        scene.store.failure = None
        await scene.publish()
        scene.engine.stop()
        await task

    on_a_watched_loop(run)


def test_any_other_failure_ends_the_run_and_shows_nothing() -> None:
    async def run(scene: Scene) -> None:
        task = await scene.begin()
        await scene.become_alone()
        scene.at_once()
        scene.store.failure = OSError("no disk")
        scene.take_in()
        with pytest.raises(OSError, match="no disk"):
            await asyncio.wait_for(task, 30)
        assert scene.at_once() == [] and store_is_here(scene.store)

    on_a_watched_loop(run)
