"""The engine: append, apply, emit; which commands get a record; group commit; recovery."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import towpath_broker.engine as engine_module
from tests.support.deadlines import DEADLINE_S
from towpath.errors import ChannelInUse, InvalidConfiguration, Unavailable
from towpath_broker.core import commands as c
from towpath_broker.core import effects as e
from towpath_broker.core.codec import decode_command
from towpath_broker.core.commands import Caller, ChannelOptions, StatedOptions
from towpath_broker.core.effects import Effect
from towpath_broker.core.ids import BindingId, CallId, ConnectionId, ReaderId, SessionId
from towpath_broker.core.limits import Limits
from towpath_broker.core.machine import Machine
from towpath_broker.engine import BATCH_MAX, Engine
from towpath_broker.journal.memory import MemoryJournal
from towpath_broker.journal.sqlite import SqliteJournal
from towpath_broker.ports import Journal

ADMIN = Caller("uid:0", is_admin=True)


class SteppingClock:
    """Tells what it is set to."""

    def __init__(self) -> None:
        self.time_ns = 1_000

    def now_ns(self) -> int:
        return self.time_ns


class GatedJournal(MemoryJournal):
    """A disk that can be made slow, or to fail: an append waits for the gate, then raises what it shall."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.appends: list[int] = []
        self.entered = threading.Event()

    def append(self, records: Sequence[bytes]) -> int:
        self.entered.set()
        assert self.gate.wait(DEADLINE_S)
        if self.failure is not None:
            raise self.failure
        self.appends.append(len(records))
        return super().append(records)

    async def wait_entered(self) -> None:
        """Wait until an append is under way."""
        assert await asyncio.to_thread(self.entered.wait, 30)


class Run:
    """An engine that recovered and runs, and what it emitted."""

    def __init__(self, journal: Journal, clock: SteppingClock, machine: Machine) -> None:
        self.journal = journal
        self.clock = clock
        self.machine = machine
        self.emitted: list[Effect] = []
        self.engine = Engine(machine, journal, clock, self.emitted.append)
        self.session = SessionId(0)
        self.first_id = 0
        self.calls = 0

    def caller(self) -> Caller:
        self.calls += 1
        return Caller("uid:0", True, self.session, CallId(self.calls))

    async def open(self) -> None:
        await self.engine.execute(c.OpenSession(ConnectionId(1), "uid:0", True, 1, "test"))
        opened = self.emitted.pop()
        assert isinstance(opened, e.SessionOpened)
        self.session, self.first_id = opened.session, opened.first_id

    async def settle(self) -> None:
        """Wait until all that was submitted is done."""
        await self.engine.execute(c.CancelCall(SessionId(0), CallId(0)))

    def recorded(self, after: int = 1) -> list[str]:
        """The commands that have a record, after the first Start."""
        return [type(decode_command(record)[0]).__name__ for _, record in self.journal.replay(after)]


@asynccontextmanager
async def running(
    journal: Journal, *, clock: SteppingClock | None = None, machine: Machine | None = None
) -> AsyncIterator[Run]:
    """Recover and run an engine with one session; at the end, stop it and let it finish."""
    run = Run(journal, clock or SteppingClock(), machine or Machine())
    await run.engine.recover()
    task = asyncio.create_task(run.engine.run())
    try:
        await run.open()
        yield run
    finally:
        run.engine.stop()
        await task


def replayed(journal: Journal) -> Machine:
    """What a restart would make of the journal, before it begins a run of its own."""
    machine = Machine()
    saved = journal.load_snapshot()
    if saved is not None:
        machine.restore(saved[1])
    for _, record in journal.replay(saved[0] if saved else 0):
        machine.apply(*decode_command(record))
    return machine


def test_first_run() -> None:
    async def main() -> None:
        journal = MemoryJournal()
        run = Run(journal, SteppingClock(), Machine())
        await run.engine.recover()
        assert run.machine.incarnation == 1
        assert run.recorded(0) == ["Start"]
        assert run.emitted == []
        run.engine.stop()
        await run.engine.run()

    asyncio.run(main())


# ---- persist before emit -----------------------------------------------------------------------------------


def test_nothing_is_applied_or_emitted_before_the_append_returns() -> None:
    async def main() -> None:
        journal = GatedJournal()
        async with running(journal) as run:
            journal.gate.clear()
            journal.entered.clear()
            done: list[str] = []
            run.engine.submit(c.DeclareChannel(run.caller(), "a"), lambda: done.append("declare"))
            run.engine.submit(c.GetChannel(run.caller(), "a"), lambda: done.append("get"))
            await journal.wait_entered()
            for _ in range(10):
                await asyncio.sleep(0)
            assert run.emitted == [] and done == []
            assert run.machine.statistics().channels == 0
            journal.gate.set()
            await run.settle()
            assert [type(effect.body) for effect in run.emitted if isinstance(effect, e.Reply)] == [
                e.ChannelDeclared,
                e.ChannelFound,
            ]
            assert done == ["declare", "get"]

    asyncio.run(main())


def test_an_append_that_fails_ends_the_run_and_emits_nothing() -> None:
    async def main() -> None:
        journal = GatedJournal()
        run = Run(journal, SteppingClock(), Machine())
        await run.engine.recover()
        task = asyncio.create_task(run.engine.run())
        await run.open()
        journal.failure = OSError(28, "No space left on device")
        waiting = asyncio.create_task(run.engine.execute(c.DeclareChannel(run.caller(), "a")))
        with pytest.raises(OSError, match="No space left"):
            await task
        with pytest.raises(Unavailable):
            await waiting
        assert run.emitted == []
        assert run.machine.statistics().channels == 0
        run.engine.submit(c.GetChannel(run.caller(), "a"))
        with pytest.raises(Unavailable, match="stopping"):
            await run.engine.execute(c.GetChannel(run.caller(), "a"))
        assert run.emitted == []

    asyncio.run(main())


def test_a_run_that_is_cancelled_lets_the_append_finish() -> None:
    async def main() -> None:
        journal = GatedJournal()
        run = Run(journal, SteppingClock(), Machine())
        await run.engine.recover()
        task = asyncio.create_task(run.engine.run())
        await run.open()
        journal.gate.clear()
        journal.entered.clear()
        run.engine.submit(c.DeclareChannel(run.caller(), "a"))
        await journal.wait_entered()
        task.cancel()
        journal.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert run.emitted == []
        assert [channel.name for channel in replayed(journal).durable_state().channels] == ["a"]

    asyncio.run(main())


def test_effects_keep_the_order_of_commands() -> None:
    async def main() -> None:
        async with running(MemoryJournal()) as run:
            for number in range(1000):
                if number % 3 == 0:
                    run.engine.submit(c.DeclareChannel(run.caller(), f"a{number}"))
                else:
                    run.engine.submit(c.ListBindings(run.caller()))
            await run.settle()
            calls = [effect.call for effect in run.emitted if isinstance(effect, e.Reply)]
            assert calls == list(range(1, 1001))
            statistics = run.engine.statistics()
            assert statistics.appends == 1 + -(-1000 // BATCH_MAX)
            assert (statistics.commands, statistics.waiting) == (1003, 0)

    asyncio.run(main())


# ---- group commit, and which commands get a record ---------------------------------------------------------


def test_commands_that_arrive_together_are_committed_together() -> None:
    async def main() -> None:
        journal = GatedJournal()
        async with running(journal) as run:
            journal.gate.clear()
            journal.entered.clear()
            run.engine.submit(c.DeclareChannel(run.caller(), "first"))
            await journal.wait_entered()
            for number in range(100):
                run.engine.submit(c.DeclareChannel(run.caller(), f"a{number}"))
                run.engine.submit(c.GetChannel(run.caller(), "first"))
            journal.gate.set()
            await run.settle()
            assert journal.appends == [1, 1, 100]
            assert run.machine.statistics().channels == 101

            for number in range(100):
                run.engine.submit(c.UndeclareChannel(run.caller(), f"a{number}"))
            await run.settle()
            assert journal.appends == [1, 1, 100, 100]

    asyncio.run(main())


def test_what_changes_nothing_touches_no_journal() -> None:
    async def main() -> None:
        async with running(MemoryJournal()) as run:
            await run.engine.execute(c.DeclareChannel(run.caller(), "a"))
            await run.engine.execute(c.CreateBinding(run.caller(), "a", "fifo:/x", c.Direction.IN))
            before = run.engine.statistics()
            for command in (
                c.DeclareChannel(run.caller(), "a"),
                c.DeclareChannel(run.caller(), "a", StatedOptions(ring_bytes=4096)),
                c.DeclareChannel(run.caller(), "not a name"),
                c.UndeclareChannel(run.caller(), "none"),
                c.UndeclareChannel(run.caller(), "a"),
                c.CreateBinding(run.caller(), "a", "fifo:/x", c.Direction.IN),
                c.CreateBinding(run.caller(), "a", "fifo:/x", c.Direction.OUT),
                c.DeleteBinding(run.caller(), BindingId(7)),
                c.GetStatus(run.caller()),
                c.AttachReader(run.caller(), "a", ReaderId(run.first_id), 8),
            ):
                await run.engine.execute(command)
            after = run.engine.statistics()
            assert (after.appends, after.records) == (before.appends, before.records)
            answers = [type(effect) for effect in run.emitted if isinstance(effect, e.Reply | e.Refuse)]
            assert answers[2:] == [e.Reply, *[e.Refuse] * 4, e.Reply, *[e.Refuse] * 2, e.Reply, e.Reply]

    asyncio.run(main())


def test_a_bad_command_between_good_ones_gets_no_record() -> None:
    async def main() -> None:
        async with running(MemoryJournal()) as run:
            for name in ("a", "no name", "b", "", "c"):
                run.engine.submit(c.DeclareChannel(run.caller(), name))
            await run.settle()
            assert run.recorded() == ["DeclareChannel"] * 3
            answers = [type(effect) for effect in run.emitted]
            assert answers == [e.Reply, e.Refuse, e.Reply, e.Refuse, e.Reply]

    asyncio.run(main())


def test_a_channel_that_comes_into_use_in_the_same_batch_is_not_undeclared_by_a_replay() -> None:
    async def main() -> None:
        journal = MemoryJournal()
        async with running(journal) as run:
            run.engine.submit(c.DeclareChannel(run.caller(), "a"))
            run.engine.submit(c.AttachReader(run.caller(), "a", ReaderId(run.first_id), 8))
            run.engine.submit(c.DeclareChannel(run.caller(), "b"))
            run.engine.submit(c.UndeclareChannel(run.caller(), "a"))
            await run.settle()
            refused = run.emitted[-1]
            assert isinstance(refused, e.Refuse) and isinstance(refused.error, ChannelInUse)
            assert run.recorded() == ["DeclareChannel", "DeclareChannel"]
            run.engine.submit(c.DetachReader(run.caller(), ReaderId(run.first_id)))
            run.engine.submit(c.UndeclareChannel(run.caller(), "a"))
            run.engine.submit(c.DeclareChannel(run.caller(), "c"))
            run.engine.submit(c.UndeclareChannel(run.caller(), "c"))
            await run.settle()
            assert isinstance(run.emitted[-1], e.Reply)
            assert replayed(journal).durable_state().channels == run.machine.durable_state().channels
            assert [channel.name for channel in run.machine.durable_state().channels] == ["b"]

    asyncio.run(main())


def test_a_channel_in_use_is_not_undeclared_by_a_replay_whatever_waits_before_it() -> None:
    async def main() -> None:
        journal = MemoryJournal()
        async with running(journal) as run:
            await run.engine.execute(c.DeclareChannel(run.caller(), "a"))
            await run.engine.execute(c.AttachReader(run.caller(), "a", ReaderId(run.first_id), 8))
            run.engine.submit(c.DeclareChannel(run.caller(), "b"))
            run.engine.submit(c.UndeclareChannel(run.caller(), "a"))
            await run.settle()
            assert isinstance(run.emitted[-1], e.Refuse)
            assert run.recorded() == ["DeclareChannel", "DeclareChannel"]
            run.engine.submit(c.UndeclareChannel(run.caller(), "a", force=True))
            run.engine.submit(c.DeclareChannel(run.caller(), "a"))
            run.engine.submit(c.UndeclareChannel(run.caller(), "a"))
            run.engine.submit(c.DeclareChannel(run.caller(), "a", StatedOptions(ring_bytes=4096)))
            await run.settle()
            assert isinstance(run.emitted[-1], e.Reply)
            assert replayed(journal).durable_state().channels == run.machine.durable_state().channels
            assert [channel.name for channel in run.machine.durable_state().channels] == ["b", "a"]

    asyncio.run(main())


# ---- time, snapshots, recovery -----------------------------------------------------------------------------


def test_times_in_the_journal_never_go_back() -> None:
    async def main() -> None:
        journal, clock = MemoryJournal(), SteppingClock()
        async with running(journal, clock=clock) as run:
            for number, time_ns in enumerate((5_000, 7_000, 6_000, 1, 8_000)):
                clock.time_ns = time_ns
                await run.engine.execute(c.DeclareChannel(run.caller(), f"a{number}"))
            times = [decode_command(record)[1] for _, record in journal.replay(1)]
            assert times == [5_000, 7_000, 7_000, 7_000, 8_000]
            live = run.machine.durable_state().channels
            assert [channel.declared_at_ns for channel in live] == times
            assert replayed(journal).durable_state().channels == live

    asyncio.run(main())


def test_snapshots_bound_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "SNAPSHOT_EVERY_RECORDS", 5)

    async def main() -> None:
        journal = MemoryJournal()
        async with running(journal) as run:
            for number in range(23):
                await run.engine.execute(c.DeclareChannel(run.caller(), f"a{number}"))
            assert run.engine.statistics().snapshots == 4
            saved = journal.load_snapshot()
            assert saved is not None and saved[0] == 20
            assert len(list(journal.replay(0))) == 4
            assert replayed(journal).durable_state() == run.machine.durable_state()

    asyncio.run(main())


@pytest.mark.parametrize("is_clean", [True, False])
def test_definitions_survive_a_restart(tmp_path: Path, is_clean: bool) -> None:
    async def first() -> Machine:
        journal = SqliteJournal(tmp_path / "journal.sqlite")
        run = Run(journal, SteppingClock(), Machine())
        await run.engine.recover()
        task = asyncio.create_task(run.engine.run())
        await run.open()
        for command in (
            c.DeclareChannel(run.caller(), "a", StatedOptions(ring_bytes=4096)),
            c.DeclareChannel(run.caller(), "b"),
            c.CreateBinding(run.caller(), "a", "fifo:/x", c.Direction.IN, {"mode": "0640"}),
            c.CreateBinding(run.caller(), "a", "fifo:/y", c.Direction.IN),
            c.UndeclareChannel(run.caller(), "b"),
            c.DeleteBinding(run.caller(), channel="a", url="fifo:/x"),
        ):
            await run.engine.execute(command)
        if is_clean:
            run.engine.stop()
            await task
            assert list(journal.replay(0)) == []
        else:
            task.cancel()
            await asyncio.wait([task])
            assert journal.load_snapshot() is None
        journal.close()
        return run.machine

    async def second(before: Machine) -> None:
        journal = SqliteJournal(tmp_path / "journal.sqlite")
        async with running(journal) as run:
            now, then = run.machine.durable_state(), before.durable_state()
            assert (now.channels, now.bindings, now.next_binding) == (then.channels, then.bindings, 3)
            assert now.incarnation == then.incarnation + 1 == 2
            assert run.session > 2 << 40
            await run.engine.execute(c.CreateBinding(run.caller(), "a", "fifo:/z", c.Direction.IN))
            created = run.emitted[-1]
            assert isinstance(created, e.Reply) and isinstance(created.body, e.BindingCreated)
            assert created.body.binding.id == 3
        journal.close()

    asyncio.run(second(asyncio.run(first())))


def test_records_of_several_runs_are_judged_by_the_limits_of_each() -> None:
    journal = MemoryJournal()
    for run_number, (channels_max, ring_bytes) in enumerate([(2, 4096), (3, 8192), (1, 16_384)]):

        async def main(limits: Limits, defaults: ChannelOptions, prefix: str) -> None:
            run = Run(journal, SteppingClock(), Machine(limits, defaults))
            await run.engine.recover()
            task = asyncio.create_task(run.engine.run())
            await run.open()
            for name in ("x", "y", "z"):
                run.engine.submit(c.DeclareChannel(run.caller(), prefix + name))
            await run.settle()
            task.cancel()
            await asyncio.wait([task])

        asyncio.run(
            main(Limits(channels_max=channels_max), ChannelOptions(ring_bytes=ring_bytes), f"r{run_number}")
        )
    channels = replayed(journal).durable_state().channels
    assert [(channel.name, channel.options.ring_bytes) for channel in channels] == [
        ("r0x", 4096),
        ("r0y", 4096),
        ("r1x", 8192),
    ]


@pytest.mark.parametrize(
    ("record", "text"), [(b"{}", "damaged"), (b'{"v":9,"command":"declare_channel"}', "machine version 9")]
)
def test_a_journal_that_cannot_be_read_stops_the_start(record: bytes, text: str) -> None:
    async def main() -> None:
        journal = MemoryJournal()
        journal.append([record])
        run = Run(journal, SteppingClock(), Machine())
        with pytest.raises(InvalidConfiguration, match=text):
            await run.engine.recover()
        assert journal.last_position == 1

    asyncio.run(main())


def test_a_journal_with_a_hole_stops_the_start(tmp_path: Path) -> None:
    async def main() -> None:
        journal = SqliteJournal(tmp_path / "journal.sqlite")
        async with running(journal) as run:
            await run.engine.execute(c.DeclareChannel(run.caller(), "a"))
            await run.engine.execute(c.DeclareChannel(run.caller(), "b"))
            journal._database.execute("DELETE FROM record WHERE position = 2")
            again = Run(journal, SteppingClock(), Machine())
            with pytest.raises(InvalidConfiguration, match="record 2 of the journal is missing"):
                await again.engine.recover()
        journal.close()

    asyncio.run(main())


def test_stop_carries_out_what_waits() -> None:
    async def main() -> None:
        async with running(MemoryJournal()) as run:
            for number in range(600):
                run.engine.submit(c.DeclareChannel(ADMIN, f"a{number}"))
            run.engine.stop()
        assert run.machine.statistics().channels == 600
        saved = run.journal.load_snapshot()
        assert saved is not None and saved[0] == run.journal.last_position == 601

    asyncio.run(main())
