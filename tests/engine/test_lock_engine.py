"""The lock machine's engine: when commands have their turn, what waits for the disk, and a journal that
fails."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence

import pytest

from tests.support.deadlines import DEADLINE_S
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
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


class Run:
    """An engine that runs, with a session open, and tokens reserved."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.effects: list[e.LockEffect] = []
        self.is_single = True
        self.engine = LockEngine(
            LockMachine(), self.disk, WallClock(), self.effects.append, LockLimits(), lambda: self.is_single
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
        self.engine.submit(c.Acquire(1, 0, number, (c.Wanted(f"lock.{number}"),)))

    async def settled(self) -> None:
        """All that was submitted has been emitted."""
        done = asyncio.Event()
        self.engine.look(lambda _: done.set())
        async with asyncio.timeout(DEADLINE_S):
            await done.wait()

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
