"""When the event loop makes commits itself, and looks for events before it sleeps; and when it does not."""

from __future__ import annotations

import asyncio
import os
import selectors
import socket
import threading
from collections.abc import Sequence

import pytest

from tests.engine.test_data_engine import CHANNELS
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
from towpath_broker.core.data.rows import Row
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
        self.place.took(span_ns)
        self.events += not is_here  # the thread's word that it has done it
        return is_here

    def until_here(self) -> int:
        """How many rounds it takes until the loop commits itself."""
        return next(number for number in range(10_000) if self.round())


def test_a_publisher_that_is_alone_has_its_commits_made_by_the_loop() -> None:
    rounds = Rounds()
    assert rounds.until_here() == CALM_ROUNDS - 1
    assert all(rounds.round() for _ in range(100))


def test_with_somebody_else_they_are_made_by_the_thread_until_he_is_gone() -> None:
    rounds = Rounds()
    rounds.until_here()
    assert not rounds.round(others=1)
    assert rounds.until_here() == CALM_ROUNDS - 1
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
    assert rounds.until_here() == SLOW_ROUNDS + CALM_ROUNDS - 1


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
    """Notes in which thread it commits."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[threading.Thread] = []

    def commit(self, written: Sequence[Row]) -> None:
        self.threads.append(threading.current_thread())
        super().commit(written)


def test_the_engine_commits_where_it_is_told() -> None:
    selector = WatchfulSelector()
    store = NotingStore()
    here, there = socket.socketpair()

    async def main() -> None:
        shown: asyncio.Queue[e.Effect] = asyncio.Queue()
        engine = DataEngine(
            limits=Limits(),
            store=store,
            clock=WallClock(),
            emit=shown.put_nowait,
            kind_of=lambda name: None,
            first_consumer=1 << 40,
            attention=Attention(selector),
        )
        await engine.recover([ChannelOpened("log", CHANNELS["log"], "uid:0", 5)])
        task = asyncio.create_task(engine.run())
        read = asyncio.Event()

        def receive() -> None:
            here.recv(1)
            read.set()

        asyncio.get_running_loop().add_reader(here, receive)

        async def publish(number: int) -> bool:
            """Whether the loop committed it, and then showed it."""
            engine.submit(
                c.Publish(Caller("uid:7", session=SessionId(1), call=CallId(number)), "log", [b"x"])
            )
            while not isinstance(await asyncio.wait_for(shown.get(), 30), e.Reply):
                pass
            return store.threads[-1] is threading.main_thread()

        assert not await publish(1), "it is not known yet who is there"
        async with asyncio.timeout(30):
            while not await publish(2):  # it takes longer where the machine is busy
                pass
        for _ in range(3):
            there.send(b"x")
            read.clear()
            await asyncio.wait_for(read.wait(), 30)
        assert not await publish(3), "somebody else was there"
        engine.stop()
        await task

    with here, there, asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(main())
