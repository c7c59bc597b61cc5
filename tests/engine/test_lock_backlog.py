"""Locks while their journal has no room: who is refused, what is kept, and that all is as is journaled."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Sequence

import pytest

from tests.support.deadlines import DEADLINE_S
from towpath.errors import Code, StoreFull
from towpath_broker import lock_engine
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks import snapshot
from towpath_broker.core.locks.delegating import page_request
from towpath_broker.core.locks.effects import LockEffect
from towpath_broker.core.locks.limits import LockLimits
from towpath_broker.core.locks.machine import LockMachine
from towpath_broker.journal.memory import MemoryJournal
from towpath_broker.lock_engine import LockEngine
from towpath_broker.ports import WallClock

ONE, TWO = 1, 2  # sessions


class SmallDisk(MemoryJournal):
    """Has no room while that is said."""

    def __init__(self) -> None:
        super().__init__()
        self.is_out = False

    def append(self, records: Sequence[bytes]) -> int:
        if self.is_out:
            raise OSError(errno.ENOSPC, "no room")
        return super().append(records)

    def save_snapshot(self, position: int, state: bytes) -> None:
        if self.is_out:
            raise OSError(errno.ENOSPC, "no room")
        super().save_snapshot(position, state)

    def is_full(self, error: Exception) -> bool:
        return isinstance(error, OSError) and error.errno == errno.ENOSPC

    def has_room(self) -> bool:
        return not self.is_out


class Run:
    """An engine with two sessions: one has the lock ``held``, the other waits for it."""

    def __init__(self) -> None:
        self.disk = SmallDisk()
        self.machine = LockMachine()
        self.told: list[LockEffect] = []
        self.news = asyncio.Event()
        self.engine = LockEngine(self.machine, self.disk, WallClock(), self._tell, LockLimits())

    def _tell(self, effect: LockEffect) -> None:
        self.told.append(effect)
        self.news.set()

    async def begin(self) -> None:
        await self.engine.recover()
        self.running = asyncio.create_task(self.engine.run())
        await self.do(c.OpenSession("uid:1", reference=1), c.OpenSession("uid:1", reference=2))
        await self.do(acquire(ONE, 1, "held"), acquire(TWO, 1, "held"))
        self.told.clear()

    async def do(self, *commands: c.LockCommand) -> list[LockEffect]:
        """Submit commands in one round; return what they brought."""
        before = len(self.told)
        for command in commands:
            self.engine.submit(command)
        looked = asyncio.Event()
        self.engine.look(lambda _: looked.set())
        async with asyncio.timeout(DEADLINE_S):
            await looked.wait()
        return self.told[before:]

    async def heard(self, kind: type[LockEffect]) -> LockEffect:
        """Wait for an effect that has not been asked for yet."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                for effect in self.told:
                    if isinstance(effect, kind):
                        self.told.remove(effect)
                        return effect
                self.news.clear()
                await self.news.wait()

    def check(self) -> None:
        """The machine is what the journal says."""
        replayed = LockMachine()
        LockEngine(replayed, self.disk, WallClock(), self.told.append, LockLimits())._replay(replayed)
        assert snapshot.encode(replayed) == snapshot.encode(self.machine)


def acquire(session: int, number: int, name: str, owner: int = 0) -> c.Acquire:
    return c.Acquire(session, owner, number, (c.Wanted(name),))


@contextlib.asynccontextmanager
async def running(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Run]:
    monkeypatch.setattr(lock_engine, "RETRY_S", 0.01)
    run = Run()
    await run.begin()
    yield run
    run.engine.stop()
    await run.running


def test_who_asks_for_something_new_is_refused_and_all_else_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running(monkeypatch) as run:
            run.disk.is_out = True
            new: list[c.LockCommand] = [
                acquire(ONE, 2, "new"),
                c.ArriveBarrier(ONE, 0, 3, "barrier", 2),
                c.Downgrade(ONE, 1, reference=11),
                c.WaitCondition(ONE, 1, "", c.NO_TIMEOUT),
                c.ForceRelease("uid:0", "held", 0, "", reference=12),
                c.DefineSpace("space", reference=13),
                c.OpenSession("uid:1", reference=14),
                c.Delegate(ONE, "page", 0, reference=15),
            ]
            for at_once in (new, new[::-1]):  # the first finds out
                effects = await run.do(*at_once)
                errors = [effect.error for effect in effects if isinstance(effect, e.Refused | e.Failed)]
                assert len(errors) == len(effects) == len(new)
                assert {error.code for error in errors} == {Code.STORE_FULL}
                run.check()
            (holder,) = run.machine.table.locks["held"].holders
            assert holder.owner.session.id == ONE and list(run.machine.table.locks) == ["held"]
            run.disk.is_out = False
            while isinstance((await run.do(acquire(ONE, 2, "new")))[0], e.Refused):
                pass
            run.check()

    asyncio.run(main())


def test_what_only_asks_how_things_stand_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running(monkeypatch) as run:
            run.disk.is_out = True
            await run.do(acquire(ONE, 2, "new"))
            effects = await run.do(acquire(ONE, 1, "held"), acquire(TWO, 1, "held"), acquire(9, 1, "held"))
            assert [type(effect) for effect in effects] == [e.Granted, e.Waiting, e.Refused]
            assert isinstance(effects[2], e.Refused) and effects[2].error.code is Code.SESSION_LOST
            effects = await run.do(c.Release(ONE, 7, reference=1), c.EndSession(9, c.EndReason.SESSION_DIED))
            assert isinstance(effects[0], e.Failed) and effects[0].error.code is Code.NOT_HELD

    asyncio.run(main())


def test_how_a_wait_ended_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running(monkeypatch) as run:
            arrival = c.ArriveBarrier(ONE, 0, 3, "barrier", 1, ask=1)
            waiting = c.WaitCondition(ONE, 4, "full", c.NO_TIMEOUT, 2)
            await run.do(arrival, acquire(ONE, 4, "other"), waiting, acquire(TWO, 5, "other", 1))
            await run.do(c.NotifyCondition(TWO, 5, "full"))
            run.disk.is_out = True
            (refused,) = await run.do(acquire(ONE, 2, "new", 1))
            assert isinstance(refused, e.Refused) and isinstance(refused.error, StoreFull)
            assert await run.do(arrival, waiting) == [e.BarrierOpened(ONE, 3, 0, True), e.Waiting(ONE, 4)]
            run.check()

    asyncio.run(main())


def test_what_nobody_can_be_refused_is_done_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running(monkeypatch) as run:
            run.disk.is_out = True
            assert await run.do(c.Release(ONE, 1, reference=5)) == []
            (again,) = await run.do(c.Release(ONE, 1, reference=6))
            assert isinstance(again, e.Failed) and isinstance(again.error, StoreFull)
            run.check()
            run.disk.is_out = False
            granted = await run.heard(e.Granted)
            assert isinstance(granted, e.Granted) and granted.session == TWO
            done = await run.heard(e.Done)
            assert isinstance(done, e.Done) and done.reference == 5
            run.check()

    asyncio.run(main())


def test_the_ends_of_sessions_and_withdrawn_waits_are_kept_in_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with running(monkeypatch) as run:
            run.disk.is_out = True
            await run.do(c.Cancel(TWO, 1), c.EndSession(ONE, c.EndReason.SESSION_DIED))
            assert not run.told and len(run.machine.table.sessions) == 2
            run.disk.is_out = False
            ended = await run.heard(e.SessionEnded)
            assert isinstance(ended, e.SessionEnded) and ended.session == ONE
            assert not any(isinstance(effect, e.Granted) for effect in run.told)  # it waited no more
            assert not run.machine.table.locks
            run.check()

    asyncio.run(main())


def test_what_was_found_in_a_page_waits_with_who_had_it_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running(monkeypatch) as run:
            (given,) = await run.do(c.Delegate(ONE, "page", 0, reference=9))
            assert isinstance(given, e.Delegated)
            run.disk.is_out = True
            found = c.PageHolder(ONE, 1, 0)
            recall = c.Recall("page", 3, found, (c.PageWaiter(TWO, 1, 44, c.NO_TIMEOUT),))
            looked: list[bool] = []
            run.engine.submit(recall)
            run.engine.look(
                lambda machine: looked.append(bool(machine.table.locks["page"].holders)), is_patient=True
            )
            number = page_request(given.base + 3)
            (refused,) = await run.do(
                acquire(TWO, 44, "page")
            )  # who waited there is told, and asks for itself
            assert isinstance(refused, e.Refused) and isinstance(refused.error, StoreFull)
            (nothing,) = await run.do(c.Release(ONE, number + 1, reference=3), c.Release(ONE, number))
            assert isinstance(nothing, e.Failed) and nothing.error.code is Code.NOT_HELD
            assert not looked
            run.disk.is_out = False
            await run.heard(e.Released)
            await run.do()
            assert looked == [True]
            lock = run.machine.table.locks.get("page")
            assert lock is None or not (lock.holders or lock.queue), "nobody has what it was refused"
            run.check()

    asyncio.run(main())


def test_a_snapshot_that_finds_no_room_is_taken_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(lock_engine, "SNAPSHOT_EVERY_BYTES", 200)
        async with running(monkeypatch) as run:
            save = SmallDisk.save_snapshot
            failed: list[int] = []

            def fail(self: SmallDisk, position: int, state: bytes) -> None:
                failed.append(position)
                raise OSError(errno.ENOSPC, "no room")

            monkeypatch.setattr(SmallDisk, "save_snapshot", fail)
            for number in range(20, 30):
                (granted,) = await run.do(acquire(ONE, number, f"l{number}"))
                assert isinstance(granted, e.Granted)
            assert 1 < len(failed) < 5
            monkeypatch.setattr(SmallDisk, "save_snapshot", save)
            before = run.engine.statistics().snapshots
            for number in range(30, 36):
                await run.do(acquire(ONE, number, f"l{number}"))
            assert run.engine.statistics().snapshots > before
            run.check()

    asyncio.run(main())
