"""The lock machine's engine: rounds of commands, their journal, and time.

Theory of operation
    Whoever has a command calls :meth:`LockEngine.submit`. In the event loop's next turn all that wait are
    applied, the records of those that changed something are appended in one transaction, and then the effects
    are emitted. Nothing is emitted before the append that covers it has returned; where that fails for
    another reason than want of room :meth:`run` fails, and the process ends. What comes of one read of a
    connection, while no other is ready, has its turn at the end of that read: nothing more would come
    meanwhile. Who can carry out effects by itself may ask :meth:`LockEngine.try_now` instead, which does the
    same at once where nothing is in the way.

    A record need not be on the disk: locks of the host end with the host, and what the kernel has been given
    survives the core. So most appends are short, and made right there, in the loop's turn: a task that would
    have to be woken for it costs as much again. Some rounds wait for the disk, in a worker thread, and the
    line behind them with them; they are the task's, :meth:`run`: those with a ``Reserve`` (tokens must grow
    over a loss of power too), those that define a lock space, those that write a value whose writer asked for
    it, and snapshots.

    Where the journal has no room, what was applied is undone: the machine becomes what the journal has. Until
    there is room, which is tried every ``RETRY_S``, it stays as it is, and a ``Backlog`` says who is refused
    and what is kept.

    Time enters as ``Tick``, which one timer submits when the machine has something due.

Invariants
    Effects are emitted in the order in which commands were submitted. Times in the journal never go back.

Not here: what commands mean (``core.locks``), who is connected (``local.lock_calls``).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from towpath.errors import InvalidConfiguration, StoreFull

from .core.locks import codec, snapshot
from .core.locks import commands as c
from .core.locks.effects import LockEffect
from .core.locks.limits import LockLimits
from .core.locks.machine import LockMachine
from .lock_backlog import Backlog, Look
from .ports import Clock, Journal
from .timer import DueTimer

BATCH_MAX: Final = 256
SNAPSHOT_EVERY_BYTES: Final = 16 << 20
"""Of records: some 200,000 that take and give back a lock. Bounds the replay at start, and the log's size."""
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
RETRY_S: Final = 0.5
"""How often it is tried whether there is room again."""


@dataclass(frozen=True, slots=True)
class _Patient:
    """Looks at the machine when what was submitted before is in it, be that when there is room again."""

    look: Look

    def __call__(self, machine: LockMachine) -> None:
        self.look(machine)


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
        self._backlog: Backlog | None = None  # None: there is room
        self._retry: asyncio.TimerHandle | None = None
        self._is_retrying = False
        self._is_running = self._is_stopping = self._is_over = False
        self._is_due = False  # a turn is
        self._is_emitting = False
        self._is_reading = False
        self._is_single = is_single
        self._at_disk: list[c.LockCommand] | None = None  # a round of the task's
        self._failure: BaseException | None = None
        self._wanted = asyncio.Event()  # the task is
        self._timer = DueTimer(clock, machine.next_deadline_ns, lambda: self.submit(c.Tick()))
        self._uncovered_bytes = 0  # of records that no snapshot covers
        self._snapshot_failed_at_bytes = 0  # so many were uncovered then
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
            self._uncovered_bytes = await loop.run_in_executor(self._worker, self._replay, self._machine)
            boot = (await loop.run_in_executor(self._worker, BOOT_ID.read_text)).strip()
            begin = c.Begin(boot, self._limits)
            now_ns = self._now_ns()
            self._machine.apply(begin, now_ns)
            await self._append_synced([codec.encode_command(begin, now_ns)])
        except BaseException:
            self._end()
            raise

    def _replay(self, machine: LockMachine) -> int:
        """Make a new machine what the journal has; return how many bytes of records no snapshot covers."""
        position = uncovered_bytes = 0
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
            uncovered_bytes += len(record)
        return uncovered_bytes

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
                    if self._is_snapshot_due():
                        await self._save_snapshot()
                    await self._round_at_disk(self._at_disk)
                    self._at_disk = None
                    self._wake()
                elif self._is_retrying:
                    await self._try_again()
                elif self._is_stopping and not self._line:
                    break
            self._at_disk = []  # nothing is appended any more
            if self._uncovered_bytes and self._backlog is None:
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

    def try_now(self, commands: Sequence[c.LockCommand]) -> Sequence[LockEffect] | None:
        """Carry out a round at once, if nothing is in its way: nothing waits in line or for the disk, the
        journal has room, and the round itself need not wait for the disk.

        Args:
            commands: 1 to ``BATCH_MAX``, which are the engine's from now on, unless None is returned. The
                list is not kept.

        Returns:
            The effects, in order; the journal has the round. They are not emitted: the caller carries them
            out, before it gives the event loop or the engine anything else to do. There are none, too, where
            the journal had no room just now (what comes of the round is emitted later, as of one that was
            submitted) or failed (:meth:`run` fails, and the process ends).
            None: nothing was done, and nothing has changed. :meth:`submit` them, in the same turn of the
            loop. So it is always within ``emit``, and while :meth:`run` does not.
        """
        if (
            self._line
            or self._at_disk is not None
            or self._backlog is not None
            or self._is_emitting
            or self._is_over
            or not self._is_running
            or self._must_wait(commands)
        ):
            return None
        try:
            effects = self._carry_out(commands)
        except BaseException as error:
            self._fail(error)
            return ()
        if self._at_disk is not None:
            self._wanted.set()
        else:
            self._timer.set()
        return effects

    def look(self, what: Look, *, is_patient: bool = False) -> None:
        """Have something look at the machine, when what was submitted before has been emitted.

        Args:
            is_patient: it waits, too, for what waits until the journal has room.
        """
        if not self._is_over:
            self._line.append(_Patient(what) if is_patient else what)
            self._wake()

    def is_at_disk(self) -> bool:
        """Whether a round waits for the disk, and all that is submitted behind it."""
        return self._at_disk is not None

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
            self._fail(error)
            return
        if self._at_disk is not None:
            self._wanted.set()
        elif self._line:
            self._wake()
        else:
            if self._backlog is None:  # with one nothing happens by itself
                self._timer.set()
            if self._is_stopping or self._is_retrying:
                self._wanted.set()

    def _go_on(self) -> None:
        """Carry out the commands that wait, up to the first who only looks; or let that one look. What needs
        the disk is left to the task."""
        line = self._line
        first = line[0]
        if not isinstance(first, c.LockCommand):
            line.popleft()
            if self._backlog is not None and isinstance(first, _Patient):
                self._backlog.kept.append(first)
            else:
                first(self._machine)
            return
        commands: list[c.LockCommand] = []
        while line and len(commands) < BATCH_MAX and isinstance(next_ := line[0], c.LockCommand):
            commands.append(next_)
            line.popleft()
        if self._backlog is not None:
            self._emit_all(self._backlog.take(commands))
            return
        if self._must_wait(commands):
            self._at_disk = commands
            return
        self._emit_all(self._carry_out(commands))

    def _must_wait(self, commands: Sequence[c.LockCommand]) -> bool:
        """Whether a round must wait for the disk, or something before it."""
        for command in commands:
            if _must_be_on_disk(command):
                return True
        return self._is_snapshot_due() or self._machine.reservation(commands) is not None

    def _carry_out(self, commands: Sequence[c.LockCommand]) -> Sequence[LockEffect]:
        """Apply a round, and append it; return its effects. If there is no room it is the task's."""
        effects, records = self._apply(commands, self._now_ns())
        if records:
            try:
                self._journal.append_unsynced(records)
            except Exception as error:
                if not self._journal.is_full(error):
                    raise
                self._backlog = Backlog(self._machine, _full(error))
                self._at_disk = list(commands)
                return ()
            self._count(records)
        return effects

    def _fail(self, error: BaseException) -> None:
        """Have the task raise an error; nothing is carried out any more."""
        self._is_over = True
        self._failure = error
        self._wanted.set()

    def _emit_all(self, effects: Iterable[LockEffect]) -> None:
        self._is_emitting = True
        for effect in effects:
            self._emit(effect)
        self._is_emitting = False

    async def _round_at_disk(self, commands: list[c.LockCommand]) -> None:
        """A round whose records, if there are any, must be on the disk before anything is emitted."""
        if self._backlog is not None:
            await self._undo(self._backlog, commands)
            return
        machine = self._machine
        now_ns = self._now_ns()
        reserved: list[bytes] = []
        if (reserve := machine.reservation(commands)) is not None:
            machine.apply(reserve, now_ns)
            reserved.append(codec.encode_command(reserve, now_ns))
        effects, records = self._apply(commands, now_ns)
        if reserved or records:
            try:
                await self._append_synced(reserved + records)
            except Exception as error:
                if not self._journal.is_full(error):
                    raise
                self._backlog = Backlog(machine, _full(error))
                await self._undo(self._backlog, commands)
                return
        self._emit_all(effects)

    def _apply(self, commands: Sequence[c.LockCommand], now_ns: int) -> tuple[list[LockEffect], list[bytes]]:
        """Return what is to be emitted, and the records of the commands that have changed something."""
        machine, table = self._machine, self._machine.table
        effects: list[LockEffect] = []
        records: list[bytes] = []
        for each in commands:
            before = table.revision
            effects += machine.apply(each, now_ns)
            if table.revision != before:
                records.append(codec.encode_command(each, now_ns))
        self._commands += len(commands)
        return effects, records

    def _count(self, records: list[bytes]) -> None:
        self._appends += 1
        self._records += len(records)
        self._uncovered_bytes += sum(map(len, records))

    async def _append_synced(self, records: list[bytes]) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._worker, self._journal.append, records)
        self._count(records)
        self._syncs += 1

    def _is_snapshot_due(self) -> bool:
        return self._uncovered_bytes - self._snapshot_failed_at_bytes >= SNAPSHOT_EVERY_BYTES

    async def _save_snapshot(self) -> None:
        """Take a snapshot. Without room for it the records stay, which say the same.

        All of it is the worker's, so that the loop has others' work done meanwhile: no round is carried out
        until it has returned, so nothing changes in the machine.
        """
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._worker, self._write_snapshot)
        except Exception as error:
            if not self._journal.is_full(error):
                raise
            self._snapshot_failed_at_bytes = self._uncovered_bytes
            return
        self._uncovered_bytes = self._snapshot_failed_at_bytes = 0
        self._snapshots += 1

    def _write_snapshot(self) -> None:
        self._journal.save_snapshot(self._journal.last_position, snapshot.encode(self._machine))

    # ---- without room --------------------------------------------------------------------------------------

    async def _undo(self, backlog: Backlog, commands: list[c.LockCommand]) -> None:
        """Become what the journal has, and refuse or keep a round that it has not."""
        before = LockMachine()
        loop = asyncio.get_running_loop()
        self._uncovered_bytes = await loop.run_in_executor(self._worker, self._replay, before)
        self._machine.become(before)
        self._emit_all(backlog.take(commands))
        self._retry_later()

    def _retry_later(self) -> None:
        self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._retry_now)

    def _retry_now(self) -> None:
        self._is_retrying = True
        self._wanted.set()

    async def _try_again(self) -> None:
        """If there is room, go on with what was kept."""
        self._is_retrying = False
        loop = asyncio.get_running_loop()
        if not await loop.run_in_executor(self._worker, self._journal.has_room):
            self._retry_later()
        elif self._backlog is not None:
            self._line.extendleft(reversed(self._backlog.kept))
            self._backlog = None
            self._wake()

    # ---- time ----------------------------------------------------------------------------------------------

    def _now_ns(self) -> int:
        return max(self._clock.now_ns(), self._machine.now_ns)

    def _end(self) -> None:
        self._is_over = True
        self._line.clear()
        self._timer.stop()
        if self._retry is not None:
            self._retry.cancel()
        self._worker.shutdown(wait=True)


def _must_be_on_disk(command: c.LockCommand) -> bool:
    """Whether a command's record must survive a loss of power."""
    if isinstance(command, (c.Release, c.WriteGuarded)):
        return command.is_durable
    return isinstance(command, c.DefineSpace)


def _full(error: Exception) -> StoreFull:
    return StoreFull(f"there is no room for the journal of the locks: {error}")
