"""The lock machine's engine: when commands have their turn, what waits for the disk, what is done at once,
and a journal that fails."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import AsyncIterator, Sequence

import pytest

from tests.support.deadlines import DEADLINE_S
from towpath.errors import Code, StoreFull
from towpath_broker import lock_engine
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks import snapshot
from towpath_broker.core.locks.limits import LockLimits
from towpath_broker.core.locks.machine import LockMachine
from towpath_broker.journal.memory import MemoryJournal
from towpath_broker.lock_engine import LockEngine
from towpath_broker.ports import WallClock


class Disk(MemoryJournal):
    """What is to be synced waits for the gate; what is not may fail. Notes what was appended how."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.failure: OSError | None = None
        self.synced: list[int] = []
        self.unsynced: list[int] = []

    def append(self, records: Sequence[bytes]) -> int:
        assert self.gate.wait(DEADLINE_S)
        self.synced.append(len(records))
        return super().append(records)

    def append_unsynced(self, records: Sequence[bytes]) -> int:
        if self.failure is not None:
            raise self.failure
        self.unsynced.append(len(records))
        return MemoryJournal.append(self, records)

    def is_full(self, error: Exception) -> bool:
        return isinstance(error, OSError) and error.errno == errno.ENOSPC


def acquiring(number: int) -> c.Acquire:
    return c.Acquire(1, 0, number, (c.Wanted(f"lock.{number}"),))


class Run:
    """An engine that runs, with a session open, and tokens reserved."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.effects: list[e.LockEffect] = []
        self.is_single = True
        self.news = asyncio.Event()
        self.machine = LockMachine()
        self.engine = LockEngine(
            self.machine, self.disk, WallClock(), self._tell, LockLimits(), lambda: self.is_single
        )

    async def begin(self) -> None:
        await self.engine.recover()
        self.running = asyncio.create_task(self.engine.run())
        self.engine.submit(c.OpenSession("uid:1", reference=1))
        self.acquire(1)
        await self.settled()
        self.engine.submit(c.Release(1, 1))
        await self.settled()
        self.effects.clear()
        self.disk.unsynced.clear()

    def acquire(self, number: int) -> None:
        self.engine.submit(acquiring(number))

    def state(self) -> tuple[bytes, int]:
        """What the machine is, and how far the journal is."""
        return snapshot.encode(self.machine), self.disk.last_position

    async def settled(self) -> None:
        """All that was submitted has been emitted."""
        done = asyncio.Event()
        self.engine.look(lambda _: done.set())
        async with asyncio.timeout(DEADLINE_S):
            await done.wait()

    async def told(self) -> None:
        """Something was emitted, by itself."""
        async with asyncio.timeout(DEADLINE_S):
            while not self.effects:
                self.news.clear()
                await self.news.wait()

    def _tell(self, effect: e.LockEffect) -> None:
        self.effects.append(effect)
        self.news.set()

    def granted(self) -> list[int]:
        return [effect.request for effect in self.effects if isinstance(effect, e.Granted)]


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Run]:
    run = Run()
    await run.begin()
    yield run
    run.disk.gate.set()
    run.engine.stop()
    if run.disk.failure is None:
        await run.running


def test_what_one_read_brings_has_its_turn_at_its_end() -> None:
    async def main() -> None:
        async with running() as run:
            run.engine.reading(True)
            run.acquire(2)
            run.acquire(3)
            assert not run.effects
            run.engine.reading(False)
            assert run.granted() == [2, 3]
            assert run.disk.unsynced == [2]  # in one append

    asyncio.run(main())


def test_while_others_are_ready_all_have_a_turn_together() -> None:
    async def main() -> None:
        async with running() as run:
            run.is_single = False
            for number in (2, 3):
                run.engine.reading(True)
                run.acquire(number)
                run.engine.reading(False)
            assert not run.effects
            await run.settled()
            assert run.granted() == [2, 3]
            assert run.disk.unsynced == [2]

    asyncio.run(main())


def test_what_comes_behind_a_round_at_the_disk_waits_for_it() -> None:
    async def main() -> None:
        async with running() as run:
            run.disk.gate.clear()
            run.engine.submit(c.DefineSpace("space", reference=7))
            run.engine.reading(True)
            run.acquire(2)
            run.engine.reading(False)
            run.engine.reading(True)
            run.acquire(3)
            run.engine.reading(False)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not run.effects
            run.disk.gate.set()
            await run.settled()
            assert isinstance(run.effects[0], e.Done)
            assert run.granted() == [2, 3]

    asyncio.run(main())


def test_nothing_is_emitted_that_the_journal_does_not_have() -> None:
    async def main() -> None:
        async with running() as run:
            run.disk.failure = OSError("the disk is gone")
            run.engine.reading(True)
            run.acquire(2)
            run.engine.reading(False)
            with pytest.raises(OSError, match="the disk is gone"):
                await run.running
            assert not run.effects
            run.acquire(3)  # nobody carries it out any more
            assert not run.effects

    asyncio.run(main())


def test_a_round_is_carried_out_at_once() -> None:
    async def main() -> None:
        async with running() as run:
            before = run.engine.statistics()
            effects = run.engine.try_now([acquiring(2)])
            assert effects is not None
            (granted,) = effects
            assert isinstance(granted, e.Granted) and granted.request == 2
            effects = run.engine.try_now((c.Release(1, 2, reference=9), acquiring(3), acquiring(3)))
            assert effects is not None
            assert [type(effect) for effect in effects] == [e.Released, e.Done, e.Granted, e.Granted]
            assert run.disk.unsynced == [1, 2]  # who asks again is told, and changes nothing
            assert run.engine.try_now([c.Release(1, 77)]) == [], "nobody is told of what it did not hold"
            assert run.disk.unsynced == [1, 2]
            assert not run.effects  # the caller's
            after = run.engine.statistics()
            assert (after.commands - before.commands, after.records - before.records) == (5, 3)

    asyncio.run(main())


def test_what_is_done_at_once_sets_the_clock() -> None:
    async def main() -> None:
        async with running() as run:
            waiting = c.Acquire(1, 1, 3, acquiring(2).locks, timeout_ms=1)
            effects = run.engine.try_now([acquiring(2), waiting])
            assert effects is not None and isinstance(effects[-1], e.Waiting)
            await run.told()
            (refused,) = run.effects
            assert isinstance(refused, e.Refused) and refused.error.code is Code.TIMEOUT

    asyncio.run(main())


def test_nothing_is_done_at_once_before_what_waits() -> None:
    """In line, for the disk, for a snapshot: then all stays as it is, and it can be submitted."""

    async def main() -> None:
        async with running() as run:
            engine = run.engine
            run.acquire(2)
            before = run.state()
            assert engine.try_now([acquiring(3)]) is None
            assert run.state() == before
            await run.settled()
            run.disk.gate.clear()
            before = run.state()
            for must_wait in (
                c.DefineSpace("space", reference=7),
                c.Release(1, 2, b"value", is_durable=True),
                c.OpenSession("uid:1", lease_ms=60_000, reference=8),
            ):
                assert engine.try_now([acquiring(3), must_wait]) is None
            assert run.state() == before
            engine.submit(c.DefineSpace("space", reference=7))
            await asyncio.sleep(0)  # it waits for the disk now
            assert engine.try_now([acquiring(3)]) is None
            run.acquire(3)
            run.disk.gate.set()
            await run.settled()
            assert run.granted() == [2, 3]
            assert engine.try_now([acquiring(4)])

    asyncio.run(main())


def test_nothing_is_done_at_once_while_effects_leave_nor_without_a_run() -> None:
    async def main() -> None:
        async with running() as run:
            within: list[object] = []
            run.engine._emit = lambda _: within.append(run.engine.try_now([acquiring(9)]))
            run.acquire(2)
            await run.settled()
            assert within == [None]
            run.engine._emit = run._tell
            assert run.engine.try_now([acquiring(3)])
            run.engine.stop()
            await run.running
            before = run.state()
            assert run.engine.try_now([acquiring(4)]) is None
            assert run.state() == before

    asyncio.run(main())


def test_at_once_without_room_is_told_later() -> None:
    async def main() -> None:
        async with running() as run:
            assert run.engine.try_now([acquiring(2)])
            before = run.state()
            run.disk.failure = OSError(errno.ENOSPC, "no room")
            release = c.Release(1, 2, reference=5)
            assert run.engine.try_now([release, acquiring(3)]) == ()
            assert run.engine.try_now([acquiring(4)]) is None
            await run.settled()
            (refused,) = run.effects  # what was given back is kept, until there is room
            assert isinstance(refused, e.Refused) and isinstance(refused.error, StoreFull)
            assert run.state() == before
            assert run.engine.try_now([acquiring(4)]) is None
            run.effects.clear()
            run.disk.failure = None
            await run.told()
            assert [type(effect) for effect in run.effects] == [e.Released, e.Done]
            assert run.engine.try_now([acquiring(4)])

    asyncio.run(main())


def test_at_once_on_a_journal_that_fails_ends_the_run() -> None:
    async def main() -> None:
        async with running() as run:
            run.disk.failure = OSError("the disk is gone")
            assert run.engine.try_now([acquiring(2)]) == ()
            assert run.engine.try_now([acquiring(2)]) is None
            with pytest.raises(OSError, match="the disk is gone"):
                await run.running
            assert not run.effects

    asyncio.run(main())


def test_others_have_their_turns_while_a_snapshot_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running() as run:
            writing = asyncio.Event()
            loop, gate, encode = asyncio.get_running_loop(), threading.Event(), snapshot.encode

            def slowly(machine: LockMachine) -> bytes:
                loop.call_soon_threadsafe(writing.set)
                assert gate.wait(DEADLINE_S), "the loop stands still"
                return encode(machine)

            monkeypatch.setattr(lock_engine, "SNAPSHOT_EVERY_BYTES", 1)
            monkeypatch.setattr(snapshot, "encode", slowly)
            run.acquire(2)
            async with asyncio.timeout(DEADLINE_S):
                await writing.wait()
            assert run.engine.try_now([acquiring(3)]) is None
            run.acquire(3)
            assert not run.effects
            monkeypatch.setattr(lock_engine, "SNAPSHOT_EVERY_BYTES", 1 << 20)
            gate.set()
            await run.settled()
            assert run.granted() == [2, 3]
            saved = run.disk.load_snapshot()
            assert saved is not None and saved[0] < run.disk.last_position

    asyncio.run(main())
