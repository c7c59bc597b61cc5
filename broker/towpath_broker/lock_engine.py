"""The lock machine's engine: rounds of commands, their journal, and time.

Theory of operation
    Whoever has a command calls :meth:`LockEngine.submit`. In the event loop's next turn all that wait are
    applied, the records of those that changed something are appended in one transaction, and then the effects
    are emitted. Nothing is emitted before the append that covers it has returned; where that fails
    :meth:`run` fails, and the process ends. What comes of one read of a connection, while no other is ready,
    has its turn at the end of that read: nothing more would come meanwhile.

    A record need not be on the disk: locks of the host end with the host, and what the kernel has been given
    survives the core. So most appends are short, and made right there, in the loop's turn: a task that would
    have to be woken for it costs as much again. Some rounds wait for the disk, in a worker thread, and the
    line behind them with them; they are the task's, :meth:`run`: those with a ``Reserve`` (tokens must grow
    over a loss of power too), those that define a lock space, those that write a value whose writer asked for
    it, and snapshots.

    Time enters as ``Tick``, which one timer submits when the machine has something due.

Invariants
    Effects are emitted in the order in which commands were submitted. Times in the journal never go back.

Not here: what commands mean (``core.locks``), who is connected (``local.lock_calls``).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from towpath.errors import InvalidConfiguration

from .core.locks import codec, snapshot
from .core.locks import commands as c
from .core.locks.effects import LockEffect
from .core.locks.limits import LockLimits
from .core.locks.machine import LockMachine
from .ports import Clock, Journal
from .timer import DueTimer

BATCH_MAX: Final = 256
SNAPSHOT_EVERY_RECORDS: Final = 20_000
"""Bounds the replay at start, and the journal's log, which has a page for each append."""
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

Look = Callable[[LockMachine], None]


@dataclass(frozen=True, slots=True)
class LockEngineStatistics:
    """What the engine has done in this run."""

    commands: int
    records: int
    appends: int
    syncs: int
    snapshots: int


class LockEngine:
    """Runs a lock machine on a journal.

    Args:
        machine: one that was just made.
        journal: stays the caller's, who closes it after :meth:`run` has returned.
        clock: tells the time of commands.
        emit: carries out effects; called from the event loop, by one at a time.
        limits: the bounds that hold from this run on.
        is_single: whether the loop has one event to see to just now, and a turn would bring nothing more.
    """

    def __init__(
        self,
        machine: LockMachine,
        journal: Journal,
        clock: Clock,
        emit: Callable[[LockEffect], None],
        limits: LockLimits,
        is_single: Callable[[], bool] = bool,
    ) -> None:
        self._machine = machine
        self._limits = limits
        self._journal = journal
        self._clock = clock
        self._emit = emit
        self._line: deque[c.LockCommand | Look] = deque()
        self._is_running = self._is_stopping = self._is_over = False
        self._is_due = False  # a turn is
        self._is_reading = False
        self._is_single = is_single
        self._at_disk: list[c.LockCommand] | None = None  # a round of the task's
        self._failure: BaseException | None = None
        self._wanted = asyncio.Event()  # the task is
        self._timer = DueTimer(clock, machine.next_deadline_ns, lambda: self.submit(c.Tick()))
        self._uncovered = 0
        self._commands = self._records = self._appends = self._syncs = self._snapshots = 0
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="lock-journal")

    # ---- for the daemon ------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Bring the machine to where the journal says it was, and begin a run of it. Nothing is emitted.

        Raises:
            InvalidConfiguration: the journal is of a later version, or damaged.
            OSError, sqlite3.Error: the journal failed.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._worker, self._replay)
            boot = (await loop.run_in_executor(self._worker, BOOT_ID.read_text)).strip()
            begin = c.Begin(boot, self._limits)
            now_ns = self._now_ns()
            self._machine.apply(begin, now_ns)
            await self._append_synced([codec.encode_command(begin, now_ns)])
        except BaseException:
            self._end()
            raise

    def _replay(self) -> None:
        machine = self._machine
        position = 0
        saved = self._journal.load_snapshot()
        if saved is not None:
            position, state = saved
            snapshot.restore(machine, state)
        for expected, (found, record) in enumerate(self._journal.replay(position), position + 1):
            if found != expected:
                raise InvalidConfiguration(
                    f"record {expected} of the locks' journal is missing",
                    hint="restore the state directory from a backup",
                )
            command, now_ns = codec.decode_command(record)
            machine.apply(command, now_ns)
            self._uncovered += 1

    async def run(self) -> None:
        """Carry out commands until :meth:`stop`, and then those that still wait; at last take a snapshot.

        Raises:
            OSError, sqlite3.Error: the journal failed. The machine must not be used any more.
        """
        self._is_running = True
        self._wake()
        try:
            while True:
                await self._wanted.wait()
                self._wanted.clear()
                if self._failure is not None:
                    raise self._failure
                if self._at_disk is not None:
                    if self._uncovered >= SNAPSHOT_EVERY_RECORDS:
                        await self._save_snapshot()
                    await self._round_at_disk(self._at_disk)
                    self._at_disk = None
                    self._wake()
                elif self._is_stopping and not self._line:
                    break
            if self._uncovered:
                await self._save_snapshot()
        finally:
            self._end()

    def stop(self) -> None:
        """Let :meth:`run` return when the line is empty."""
        self._is_stopping = True
        self._wake()

    def submit(self, command: c.LockCommand) -> None:
        """Put a command in line. After :meth:`run` has returned commands are ignored."""
        if not self._is_over:
            self._line.append(command)
            self._wake()

    def look(self, what: Look) -> None:
        """Have something look at the machine, when what was submitted before has been emitted."""
        if not self._is_over:
            self._line.append(what)
            self._wake()

    def statistics(self) -> LockEngineStatistics:
        """Return counts of what was done in this run."""
        return LockEngineStatistics(
            commands=self._commands,
            records=self._records,
            appends=self._appends,
            syncs=self._syncs,
            snapshots=self._snapshots,
        )

    # ---- rounds --------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Have a turn, unless the task will."""
        if not self._is_due and self._is_running and self._at_disk is None:
            self._is_due = True
            if not self._is_reading:
                asyncio.get_running_loop().call_soon(self._turn)

    def reading(self, is_begun: bool) -> None:
        """What comes until this is told False is of one read."""
        if is_begun:
            self._is_reading = not self._is_due
        elif self._is_reading:
            self._is_reading = False
            if self._is_due and self._is_single():
                self._turn()
            elif self._is_due:
                asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Carry out the first that wait; then others of the loop have a turn."""
        self._is_due = False
        if self._is_over or self._at_disk is not None:
            return
        try:
            if self._line:
                self._go_on()
        except BaseException as error:
            self._failure = error  # the task raises it
            self._wanted.set()
            return
        if self._at_disk is not None:
            self._wanted.set()
        elif self._line:
            self._wake()
        else:
            self._timer.set()
            if self._is_stopping:
                self._wanted.set()

    def _go_on(self) -> None:
        """Carry out the commands that wait, up to the first who only looks; or let that one look. What needs
        the disk is left to the task."""
        line = self._line
        first = line[0]
        if not isinstance(first, c.LockCommand):
            line.popleft()
            first(self._machine)
            return
        commands: list[c.LockCommand] = []
        while line and len(commands) < BATCH_MAX and isinstance(next_ := line[0], c.LockCommand):
            commands.append(next_)
            line.popleft()
        if (
            self._uncovered >= SNAPSHOT_EVERY_RECORDS
            or self._machine.reservation(commands) is not None
            or any(map(_must_be_on_disk, commands))
        ):
            self._at_disk = commands
            return
        effects, records = self._apply(commands, self._now_ns())
        if records:
            self._count(records)
            self._journal.append_unsynced(records)
        for effect in effects:
            self._emit(effect)

    async def _round_at_disk(self, commands: list[c.LockCommand]) -> None:
        """A round whose records, if there are any, must be on the disk before anything is emitted."""
        machine = self._machine
        now_ns = self._now_ns()
        reserved: list[bytes] = []
        if (reserve := machine.reservation(commands)) is not None:
            machine.apply(reserve, now_ns)
            reserved.append(codec.encode_command(reserve, now_ns))
        effects, records = self._apply(commands, now_ns)
        if reserved or records:
            await self._append_synced(reserved + records)
        for effect in effects:
            self._emit(effect)

    def _apply(self, commands: list[c.LockCommand], now_ns: int) -> tuple[list[LockEffect], list[bytes]]:
        """Return what is to be emitted, and the records of the commands that have changed something."""
        machine = self._machine
        effects: list[LockEffect] = []
        records: list[bytes] = []
        for each in commands:
            before = machine.revision
            effects += machine.apply(each, now_ns)
            if machine.revision != before:
                records.append(codec.encode_command(each, now_ns))
        self._commands += len(commands)
        return effects, records

    def _count(self, records: list[bytes]) -> None:
        self._appends += 1
        self._records += len(records)
        self._uncovered += len(records)

    async def _append_synced(self, records: list[bytes]) -> None:
        self._count(records)
        self._syncs += 1
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._worker, self._journal.append, records)

    async def _save_snapshot(self) -> None:
        state = snapshot.encode(self._machine)
        position = self._journal.last_position
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._worker, self._journal.save_snapshot, position, state)
        self._uncovered = 0
        self._snapshots += 1

    # ---- time ----------------------------------------------------------------------------------------------

    def _now_ns(self) -> int:
        return max(self._clock.now_ns(), self._machine.now_ns)

    def _end(self) -> None:
        self._is_over = True
        self._line.clear()
        self._timer.stop()
        self._worker.shutdown(wait=True)


def _must_be_on_disk(command: c.LockCommand) -> bool:
    """Whether a command's record must survive a loss of power."""
    if isinstance(command, (c.Release, c.WriteGuarded)):
        return command.is_durable
    return isinstance(command, c.DefineSpace)
