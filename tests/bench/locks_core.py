"""What the lock service's core costs alone: with many waiters, circles and resources; and to replay its
journal.

Theory of operation
    The machine is fed by hand, in one process, as the engine does it. What is timed is one further command
    after another, each undone before the next, so that all meet the same state. Sessions are those of a
    gateway: one connection may carry thousands, so thousands wait here. Nothing waits for anything but the
    processor, so it is the processor's time that is told.

    The journal is a real one, of locks taken and given back over and over by some sessions, replayed by the
    engine at its start. A round that gives back a lock and takes it anew is timed through the engine, from
    commands to effects, on such a journal; and its parts by themselves. The engine itself takes a snapshot
    now and then, and replays only what came after that; how much that was at most is told too.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from tests.bench.locks import percentile
from tests.bench.results import Results
from towpath_broker.core.locks import codec
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks.commands import LockCommand, Policy, Wanted
from towpath_broker.core.locks.effects import Done, Failed, Granted, LockEffect, Refused, SessionOpened
from towpath_broker.core.locks.limits import LockLimits
from towpath_broker.core.locks.machine import LockMachine
from towpath_broker.core.locks.modes import EXCLUSIVE, PERMITS
from towpath_broker.journal.logged import LoggedJournal
from towpath_broker.lock_engine import BOOT_ID, LockEngine
from towpath_broker.ports import WallClock

WAITERS: Final = (100, 1_000, 10_000)
BANKERS: Final = (10, 30, 100)
RESOURCES: Final = 20
UNITS: Final = 30
MANY: Final = 1 << 30
LIMITS: Final = LockLimits()
BATCH: Final = 1_000
SESSIONS: Final = 8


def measure(results: Results, *, samples: int, records: int) -> None:
    """Measure everything.

    Args:
        samples: how many commands each time.
        records: how many the largest journal has.
    """
    _waiters(results, samples)
    _bankers(results, samples)
    asyncio.run(_pairs(results, 2 + records // 100_000, 20 * samples))
    _parts(results, 20 * samples)
    asyncio.run(_replays(results, records))
    asyncio.run(_tail(results, records // 4))


class Core:
    """A machine that has begun, and its time."""

    def __init__(self) -> None:
        self.machine = LockMachine()
        self._now_ns = time.time_ns()
        self._requests = 0
        self.apply(c.Begin("bench", LIMITS))
        self.apply(c.Reserve(MANY, 0))

    def apply(self, command: LockCommand) -> list[LockEffect]:
        """Carry out a command a moment later.

        Raises:
            RuntimeError: it was refused.
        """
        effects = self._apply(command)
        for effect in effects:
            if isinstance(effect, Failed | Refused):
                raise RuntimeError(f"{command} was refused: {effect.error}")
        return effects

    def _apply(self, command: LockCommand) -> list[LockEffect]:
        self._now_ns += 1_000
        return self.machine.apply(command, self._now_ns)

    def open(self) -> int:
        """Open a session; return its number."""
        (opened,) = self.apply(c.OpenSession("gateway", reference=1))
        assert isinstance(opened, SessionOpened)
        return opened.session

    def acquiring(self, session: int, *wanted: Wanted) -> c.Acquire:
        """Return a request that waits if it must."""
        self._requests += 1
        return c.Acquire(session, 0, self._requests, wanted)

    def timed_ms(self, command: c.Acquire) -> float:
        """Judge a request, and undo it; return how long judging it took."""
        began_ns = time.process_time_ns()
        self.apply(command)
        took_ns = time.process_time_ns() - began_ns
        self._apply(c.Cancel(command.session, command.request))
        return took_ns / 1e6

    def refused_ms(self, command: c.Acquire) -> float:
        """Judge a request that is refused; return how long that took."""
        began_ns = time.process_time_ns()
        effects = self._apply(command)
        took_ns = time.process_time_ns() - began_ns
        if not any(isinstance(effect, Refused) for effect in effects):
            raise RuntimeError("a circle was not found")
        return took_ns / 1e6


def _waiters(results: Results, samples: int) -> None:
    """Requests, while many wait: on one lock, and in one long chain of sessions that wait for each other."""
    points = []
    for count in WAITERS:
        core = Core()
        holder = core.open()
        core.apply(core.acquiring(holder, Wanted("l.0")))
        tail = holder
        for number in range(1, count + 1):
            session = core.open()
            if number % 2:
                core.apply(core.acquiring(session, Wanted("l.0")))
            else:  # a link of the chain
                core.apply(core.acquiring(session, Wanted(f"l.{number}")))
                core.apply(core.acquiring(tail, Wanted(f"l.{number}")))
                tail = session
        others = [core.open() for _ in range(samples)]
        times_ms = [core.timed_ms(core.acquiring(other, Wanted("l.0"))) for other in others]
        # The end of the chain asks for its beginning: the whole circle must be found.
        circle_ms = core.refused_ms(core.acquiring(tail, Wanted("l.0")))
        name = f"{count:,} waiters"
        results.singles[f"{name}: a further request, p99 ms"] = percentile(times_ms, 0.99)
        results.singles[f"{name}: a request that closes a circle of half of them, ms"] = circle_ms
        points.append((float(count), 1e6 * sum(times_ms) / len(times_ms)))
    results.curves["cost of a request against waiters"] = points


def _bankers(results: Results, samples: int) -> None:
    """Requests in a lock space with the banker's algorithm, while all hold a half of their claims."""
    points = []
    for count in BANKERS:
        core = Core()
        names = [f"bank.r{number}" for number in range(RESOURCES)]
        claimed = [{name: 2 + (i + at) % UNITS for at, name in enumerate(names)} for i in range(count)]
        # All that is claimed by the greatest is left: so much that each may finish, after the one before.
        resources = {name: 1 + UNITS + sum((claims[name] + 1) // 2 for claims in claimed) for name in names}
        core.apply(c.DefineSpace("bank", Policy.BANKER, resources=resources, reference=1))
        sessions = [core.open() for _ in range(count)]
        for session, claims in zip(sessions, claimed, strict=True):
            core.apply(c.DeclareClaims(session, 0, claims, reference=1))
            for name in names:
                core.apply(core.acquiring(session, Wanted(name, PERMITS, (claims[name] + 1) // 2)))
        times_ms: list[float] = []
        while len(times_ms) < samples:
            for session in sessions[: samples - len(times_ms)]:
                at = len(times_ms) % RESOURCES
                times_ms.append(core.timed_ms(core.acquiring(session, Wanted(names[at], PERMITS, 1))))
        results.singles[f"banker's, {count} sessions, {RESOURCES} resources: a request, p99 ms"] = percentile(
            times_ms, 0.99
        )
        points.append((float(count), 1e6 * sum(times_ms) / len(times_ms)))
    results.curves["cost of a banker's request against sessions"] = points


# ---- a pair ------------------------------------------------------------------------------------------------


def _pair(session: int, number: int) -> list[LockCommand]:
    """A round: what the last one took is given back, and taken anew."""
    return [
        c.Release(session, number),
        c.Acquire(session, 1, number + 1, (Wanted("bench.one", PERMITS, 1, 1),)),
    ]


class _Running(NamedTuple):
    """An engine that runs on a real journal, with a session open."""

    engine: LockEngine
    journal: LoggedJournal
    emitted: asyncio.Queue[LockEffect]
    session: int


@contextlib.asynccontextmanager
async def _running() -> AsyncIterator[_Running]:
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(LoggedJournal(Path(folder) / "l.sqlite")) as journal,
    ):
        emitted: asyncio.Queue[LockEffect] = asyncio.Queue()
        engine = LockEngine(LockMachine(), journal, WallClock(), emitted.put_nowait, LIMITS)
        await engine.recover()
        task = asyncio.create_task(engine.run())
        engine.submit(c.OpenSession("gateway", reference=1))
        opened = await emitted.get()
        assert isinstance(opened, SessionOpened)
        yield _Running(engine, journal, emitted, opened.session)
        engine.stop()
        await task


async def _pairs(results: Results, rounds: int, count: int) -> None:
    """Time pairs on an engine that runs; what stands in the way of a few (a snapshot, more tokens) is done in
    between."""
    times_us: list[float] = []
    async with _running() as run:
        held = 0  # the request's number
        for _ in range(rounds):
            first, began = held, time.thread_time()
            while held < first + count and run.engine.try_now(_pair(run.session, held)) is not None:
                held += 1
            if held > first:
                times_us.append((time.thread_time() - began) / (held - first) * 1e6)
            for command in _pair(run.session, held):
                run.engine.submit(command)
            held += 1
            while not (isinstance(effect := await run.emitted.get(), Granted) and effect.request == held):
                pass
    results.singles["a pair in the core, from commands to effects, us of a processor"] = median(times_us)


def _parts(results: Results, count: int) -> None:
    """Time what a pair is made of."""
    core = Core()
    session = core.open()
    core.apply(core.acquiring(session, Wanted("bench.one", PERMITS, 1, 1)))
    rounds = [_pair(session, number) for number in range(1, count + 1)]
    now_ns = time.time_ns()
    records = [[codec.encode_command(each, now_ns) for each in commands] for commands in rounds]

    def judge() -> None:
        for commands in rounds:
            for each in commands:
                core.machine.apply(each, now_ns)

    def encode() -> None:
        for commands in rounds:
            for each in commands:
                codec.encode_command(each, now_ns)

    with tempfile.TemporaryDirectory() as folder:
        journal = LoggedJournal(Path(folder) / "locks.sqlite")

        def append() -> None:
            for each in records:
                journal.append_unsynced(each)

        for name, part in (("judged", judge), ("made records", encode), ("appended", append)):
            began = time.thread_time()
            part()
            took_us = (time.thread_time() - began) / count * 1e6
            results.singles[f"a pair in the core: {name}, us of a processor"] = took_us
        journal.close()


# ---- the journal -------------------------------------------------------------------------------------------


def _commands(core: Core, count: int) -> Iterator[LockCommand]:
    """Yield so many commands of some sessions that take and give back."""
    sessions = [core.open() for _ in range(SESSIONS)]
    yield from (c.OpenSession("gateway") for _ in sessions)
    for number in range((count - len(sessions)) // 2):
        session = sessions[number % len(sessions)]
        yield c.Acquire(session, 0, number + 1, (Wanted(f"l.{number % 100}", EXCLUSIVE),))
        yield c.Release(session, number + 1)


def _write(journal: LoggedJournal, count: int) -> None:
    core = Core()
    now_ns = time.time_ns()
    records = [
        codec.encode_command(c.Begin(BOOT_ID.read_text().strip(), LIMITS), now_ns),
        codec.encode_command(c.Reserve(MANY, 0), now_ns),
    ]
    for command in _commands(core, count - len(records)):
        now_ns += 1_000
        records.append(codec.encode_command(command, now_ns))
        if len(records) == BATCH:
            journal.append_unsynced(records)
            records.clear()
    if records:
        journal.append_unsynced(records)


async def _replays(results: Results, records: int) -> None:
    """Time the engine's start on journals of several lengths."""
    points = []
    for count in (records // 100, records // 10, records):
        with tempfile.TemporaryDirectory() as folder:
            journal = LoggedJournal(Path(folder) / "locks.sqlite")
            _write(journal, count)
            machine = LockMachine()
            engine = LockEngine(machine, journal, WallClock(), lambda _: None, LIMITS)
            began, began_cpu = time.perf_counter(), time.process_time()
            await engine.recover()
            took, took_cpu = time.perf_counter() - began, time.process_time() - began_cpu
            engine.stop()
            await engine.run()
            journal.close()
            if len(machine.table.sessions) != SESSIONS:
                raise RuntimeError("a journal was not replayed")
        points.append((float(count), took_cpu / count * 1e9))
    results.singles["replay of a million lock commands, s"] = took / records * 1e6
    results.singles["replay of a million lock commands, s of a processor"] = took_cpu / records * 1e6
    results.curves["time to replay a lock command against the journal's length"] = points


async def _tail(results: Results, pairs: int) -> None:
    """Have an engine carry out commands; note the longest tail that its journal ever had after a snapshot."""
    longest = 0
    async with _running() as run:
        for first in range(0, pairs, SESSIONS):
            for number in range(first + 1, first + 1 + SESSIONS):
                run.engine.submit(c.Acquire(run.session, 0, number, (Wanted("l"),)))
                run.engine.submit(c.Release(run.session, number, reference=number))
            while not (isinstance(effect := await run.emitted.get(), Done) and effect.reference == number):
                pass
            saved = run.journal.load_snapshot()
            longest = max(longest, run.journal.last_position - (saved[0] if saved else 0))
    results.singles["longest tail of the lock journal, commands"] = float(longest)
    results.singles["replay of the longest tail of the lock journal, s"] = (
        longest * results.singles["replay of a million lock commands, s"] / 1e6
    )
