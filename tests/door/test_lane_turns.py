"""The core's look into lock lanes: for how long, and what stays there while the engine waits for the disk."""

from __future__ import annotations

import asyncio
import os
import select
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from tests.support.deadlines import DEADLINE_S
from towpath import _ring
from towpath.errors import PermissionDenied
from towpath.v1 import locks_pb2
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks.limits import LockLimits
from towpath_broker.core.locks.machine import LockMachine
from towpath_broker.journal.memory import MemoryJournal
from towpath_broker.local.lock_answers import Call, Kept
from towpath_broker.local.lock_lanes import ATTENDED_MAX, LOOK_NS, SKIPS_MAX, Lane, LockLanes
from towpath_broker.lock_engine import LockEngine
from towpath_broker.ports import WallClock


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    return run


class SlowJournal(MemoryJournal):
    """Its disk takes as long as the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()
        self.goes_on.set()

    def append(self, records: Sequence[bytes]) -> int:
        assert self.goes_on.wait(DEADLINE_S)
        return super().append(records)


class Site:
    """Lanes with an engine behind them, and clients that write into them by hand."""

    def __init__(self) -> None:
        self.journal = SlowJournal()
        self.told: list[e.LockEffect] = []
        self.kept: dict[int, Kept] = {}
        machine = LockMachine()
        self.engine = LockEngine(machine, self.journal, WallClock(), self._emit, LockLimits())
        self.lanes = LockLanes(
            self.engine,
            before=lambda command: None,
            emit=self._emit,
            kept=self.kept,
            check=self._check,
        )

    @staticmethod
    def _check(principal: str, command: c.Acquire) -> None:
        if command.locks[0].name == "turn.denied":
            raise PermissionDenied(f"{principal} may not")

    def _emit(self, effect: e.LockEffect) -> None:
        self.told.append(effect)
        if isinstance(effect, e.Granted):
            kept = self.kept[effect.session]
            self.lanes.answer(kept, kept.waits.pop(effect.request), effect)

    async def client(self) -> tuple[Any, _ring.LaneClient]:
        """A connection with a session and a lane, and its client's end."""
        before = len(self.told)
        self.engine.submit(c.OpenSession("uid:1", "", 1, "", 0, 0, 1))
        await self.until(lambda: len(self.told) > before)
        opened = self.told[-1]
        assert isinstance(opened, e.SessionOpened)
        connection: Any = SimpleNamespace(
            lane=None,
            frames=0,
            is_admin=True,
            peer=SimpleNamespace(principal="uid:1"),
            gateway="",
            closed=[],
            close=lambda error: None,
        )
        self.kept[opened.session] = Kept("uid:1", 0, Call(connection, 1, "keep", opened.session))  # type: ignore[arg-type]
        fd = self.lanes.open(connection, opened.session)
        return connection, _ring.LaneClient(fd.fd)

    @staticmethod
    async def until(condition: Any) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0)


@asynccontextmanager
async def running() -> AsyncIterator[Site]:
    site = Site()
    await site.engine.recover()
    task = asyncio.create_task(site.engine.run())
    try:
        yield site
    finally:
        site.journal.goes_on.set()
        site.engine.stop()
        await task


def acquire(name: str) -> bytes:
    request = locks_pb2.AcquireRequest(owner=locks_pb2.LockOwner(owner=1))
    request.locks.add(name=name, mode=locks_pb2.LOCK_MODE_EXCLUSIVE)
    return request.SerializeToString()


@on_a_loop
async def test_nothing_is_taken_while_the_disk_is_waited_for() -> None:
    """But all of it afterwards, in its order."""
    async with running() as site:
        connection, client = await site.client()
        lane: Lane = connection.lane
        site.lanes.attend(lane)
        with select.epoll() as poll:
            asking = asyncio.to_thread(client.ask, 1, 0, acquire("turn.first"))
            first = asyncio.ensure_future(asking)
            await site.until(lambda: lane.memory.has_news)
            site.lanes.look(poll.fileno(), 0)  # tokens are reserved first, which must be on the disk
            await first
            await site.until(lambda: not site.engine.is_at_disk())
            site.journal.goes_on.clear()
            site.engine.submit(c.DefineSpace("turn.space", c.Policy.NO_WAIT, reference=1))
            await site.until(site.engine.is_at_disk)
            site.lanes.attend(lane)
            assert client.give_back(1, 0)
            for _ in range(3):
                site.lanes.look(poll.fileno(), 0)
                await asyncio.sleep(0)
            assert lane.is_stalled
            assert not any(isinstance(effect, e.Released) for effect in site.told)
            site.journal.goes_on.set()
            await site.until(lambda: any(isinstance(effect, e.Released) for effect in site.told))
            assert not lane.is_stalled


@on_a_loop
async def test_who_may_not_take_a_lock_is_told_by_the_socket() -> None:
    """Administrators may."""
    async with running() as site:
        connection, client = await site.client()
        for number, is_admin in ((1, False), (2, True)):
            connection.is_admin = is_admin
            connection.lane.skips = connection.lane.left_out = 0
            site.lanes.attend(connection.lane)
            asking = asyncio.ensure_future(asyncio.to_thread(client.ask, number, 0, acquire("turn.denied")))
            await site.until(lambda: connection.lane.memory.has_news)
            site.lanes.empty(connection.lane)
            (kept,) = site.kept.values()
            assert list(kept.waits) == ([number] if is_admin else [])  # tokens are to be reserved first
            await asking


@on_a_loop
async def test_a_look_that_comes_to_nothing_is_made_more_and_more_seldom() -> None:
    async with running() as site:
        connection, client = await site.client()
        lane: Lane = connection.lane
        looks = 0
        with select.epoll() as poll:
            for _ in range(1000):
                site.lanes.attend(lane)
                if lane.is_attended:
                    looks += 1
                    assert not site.lanes.look(poll.fileno(), None)
                    assert not lane.is_attended
                    assert not client.give_back(1, 0)  # the core sleeps
        assert 8 < looks < 16
        assert lane.skips == SKIPS_MAX


@on_a_loop
async def test_a_look_ends_for_others() -> None:
    async with running() as site:
        connection, _ = await site.client()
        told, tells = os.pipe()
        with select.epoll() as poll:
            poll.register(told, select.EPOLLIN)
            os.write(tells, b".")
            site.lanes.attend(connection.lane)
            assert site.lanes.look(poll.fileno(), None)  # it must not sleep
            assert connection.lane.is_attended
            site.lanes.stop()
            assert not site.lanes.look(poll.fileno(), None)
        os.close(told)
        os.close(tells)


@on_a_loop
async def test_so_many_are_looked_into_and_the_longest_there_makes_room() -> None:
    async with running() as site:
        clients = [await site.client() for _ in range(ATTENDED_MAX + 1)]
        for connection, _ in clients:
            site.lanes.attend(connection.lane)
        assert [connection.lane.is_attended for connection, _ in clients] == [False] + [True] * ATTENDED_MAX
        assert not clients[0][1].give_back(1, 0)
        assert clients[1][1].give_back(1, 0)
        site.lanes.attend(clients[0][0].lane)  # passed by once, since its look came to nothing
        site.lanes.attend(clients[0][0].lane)  # whoever is to make room has said something just now
        assert not clients[0][0].lane.is_attended
    assert LOOK_NS < 1_000_000
