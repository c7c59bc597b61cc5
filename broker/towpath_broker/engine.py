"""The engine: the one task that feeds the machine. Append, then apply, then emit.

Theory of operation
    Whoever has a command calls :meth:`Engine.submit`, which only puts it in line. The engine's task takes
    all that are waiting (up to ``BATCH_MAX``), cuts them into *rounds*, and for each round appends the
    records of its durable commands in one transaction, in a worker thread; then applies its commands in
    order and emits the effects of each. While one append waits for the disk, commands gather in line and
    share the next: group commit. A round without a record touches no journal.

Which commands get a record
    Only those that may change the durable state. One that the machine would certainly refuse, or that would
    change nothing, gets none, so nobody can fill the disk with what is refused. Certain is what holds in
    any state (a bad name), and, while nothing with a record waits before it, what holds in the present one
    (a channel redeclared as it is). Otherwise the record is written and the machine decides when it applies
    it; a replay decides the same, from the log alone.

    Some commands are also judged by who is connected: a channel in use is not undeclared. A replay cannot
    know that, so it must be decided before the record is written: such a command begins a round of its own
    when something waits before it that could change the answer, and if it is refused it gets no record.

Invariants
    Nothing is emitted before the append that covers it has returned; where that fails, nothing is emitted,
    and the failure ends :meth:`Engine.run`.
    Effects are emitted in the order in which commands were submitted.
    Times in the journal never go back. Recovery leads to the durable state that the run had.

Not here: how commands are bounded. Whoever submits for others (the door) stops reading a connection that
has many outstanding; an answer, or ``done``, tells it when one is over.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, TypeGuard

from towpath.errors import InvalidConfiguration, Unavailable

from .core.codec import decode_command, encode_command, encode_state
from .core.commands import Command, DeclareChannel, UndeclareChannel
from .core.effects import Effect
from .core.machine import Machine, Verdict
from .ports import Clock, Emit, Journal

BATCH_MAX: Final = 256
"""Commands taken from the line at once; bounds how long others of the event loop wait."""
SNAPSHOT_EVERY_RECORDS: Final = 10_000
"""Records after which a snapshot is taken; bounds the replay at start."""


class _Waiting(NamedTuple):
    command: Command
    done: Callable[[], object] | None


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """What the engine has done in this run."""

    commands: int
    records: int
    appends: int
    snapshots: int
    effects: int
    waiting: int


class Engine:
    """Runs a machine on a journal.

    Args:
        machine: one that was just made.
        journal: stays the caller's, who closes it after :meth:`run` has returned.
        clock: tells the time of commands.
        emit: carries out effects; called from the engine's task only.
        messages_of: how many messages a channel holds, which the machine does not know; asked when a
            command is judged by it.
    """

    def __init__(
        self,
        machine: Machine,
        journal: Journal,
        clock: Clock,
        emit: Emit,
        messages_of: Callable[[str], int] = lambda _: 0,
    ) -> None:
        self._machine = machine
        self._journal = journal
        self._clock = clock
        self._emit = emit
        self._messages_of = messages_of
        self._line: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._executing: set[asyncio.Future[None]] = set()
        self._pulses: list[asyncio.Future[None]] = []
        self._is_stopping = False
        self._is_over = False
        self._uncovered = 0  # records since the last snapshot
        self._commands = self._records = self._appends = self._snapshots = self._effects = 0
        # One thread of its own: appends never queue behind other work, and never run two at a time.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="journal")

    # ---- for the daemon ------------------------------------------------------------------------------------

    async def recover(self) -> None:
        """Bring the machine to where the journal says it was, then begin a new run of it.

        Nothing is emitted: nobody is connected who could be told. To be called once, before :meth:`run`.

        Raises:
            InvalidConfiguration: the journal is of a later version, or damaged.
            OSError, sqlite3.Error: the journal failed.
        """
        try:
            await self._recover()
        except BaseException:
            self._end()
            raise

    async def _recover(self) -> None:
        loop = asyncio.get_running_loop()
        saved = await loop.run_in_executor(self._worker, self._journal.load_snapshot)
        position = 0
        if saved is not None:
            position, snapshot = saved
            self._machine.restore(snapshot)
        records = await loop.run_in_executor(self._worker, lambda: list(self._journal.replay(position)))
        for expected, (found, record) in enumerate(records, position + 1):
            if found != expected:
                raise InvalidConfiguration(
                    f"record {expected} of the journal is missing",
                    hint="restore the state directory from a backup",
                )
            command, now_ns = decode_command(record)
            assert command.DURABLE
            self._machine.apply(command, now_ns)
        self._uncovered = len(records)
        await self._commit([_Waiting(self._machine.start_command(), None)], {0})

    async def run(self) -> None:
        """Carry out commands until :meth:`stop`, and then those that still wait; at last take a snapshot.

        Raises:
            OSError, sqlite3.Error: the journal failed. The machine must not be used any more.
        """
        try:
            while self._line or not self._is_stopping:
                self._answer_pulses()
                if not self._line:
                    self._arrived.clear()
                    await self._arrived.wait()
                    continue
                batch = [self._line.popleft() for _ in range(min(len(self._line), BATCH_MAX))]
                await self._carry_out(batch)
                if self._uncovered >= SNAPSHOT_EVERY_RECORDS:
                    await self._save_snapshot()
                # A batch without durable commands has not waited for anything: let others run.
                await asyncio.sleep(0)
            if self._uncovered:
                await self._save_snapshot()
        finally:
            self._end()

    def stop(self) -> None:
        """Let :meth:`run` return when the line is empty."""
        self._is_stopping = True
        self._arrived.set()

    def submit(self, command: Command, done: Callable[[], object] | None = None) -> None:
        """Put a command in line.

        Args:
            command: carried out after all that were submitted before. After :meth:`run` has returned,
                commands are ignored: those who could be answered are being disconnected.
            done: called from the engine's task when the command's effects have been emitted.
        """
        if self._is_over:
            return
        self._line.append(_Waiting(command, done))
        self._arrived.set()

    async def execute(self, command: Command) -> None:
        """Submit a command and wait until its effects have been emitted; for the daemon's own.

        Raises:
            Unavailable: the engine ended before it came to the command.
        """
        if self._is_over:
            raise _stopped()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._executing.add(future)
        future.add_done_callback(self._executing.discard)
        self.submit(command, lambda: None if future.done() else future.set_result(None))
        await future

    async def pulse(self) -> None:
        """Wait until :meth:`run` has come round once more: proof that it moves, for a watchdog.

        It does not while an append waits for a disk that stands still, or an effect does not return.

        Raises:
            Unavailable: the engine has ended.
        """
        if self._is_over:
            raise _stopped()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pulses.append(future)
        self._arrived.set()
        await future

    def _answer_pulses(self) -> None:
        pulses, self._pulses = self._pulses, []
        for future in pulses:
            if not future.done():
                future.set_result(None)

    def statistics(self) -> EngineStatistics:
        """Return counts of what was done in this run."""
        return EngineStatistics(
            commands=self._commands,
            records=self._records,
            appends=self._appends,
            snapshots=self._snapshots,
            effects=self._effects,
            waiting=len(self._line),
        )

    # ---- rounds --------------------------------------------------------------------------------------------

    async def _carry_out(self, batch: list[_Waiting]) -> None:
        """Cut a batch into rounds and commit each."""
        round_: list[_Waiting] = []
        durable: set[int] = set()  # places in the round of those that get a record
        for waiting in batch:
            command = waiting.command
            if command.DURABLE:
                if _is_judged_by_presence(command):
                    command = replace(command, messages_held=self._messages_of(command.name))
                    waiting = _Waiting(command, waiting.done)
                    if not self._can_judge(command, round_, durable):
                        await self._commit(round_, durable)
                        round_, durable = [], set()
                verdict = self._machine.verdict(command)
                # Only what waits before it with a record can change the definitions it was judged by.
                is_certain = verdict is not Verdict.NOT_NOW or not durable
                if verdict is Verdict.CHANGES or not is_certain:
                    durable.add(len(round_))
            round_.append(waiting)
        await self._commit(round_, durable)

    def _can_judge(self, command: Command, round_: list[_Waiting], durable: set[int]) -> bool:
        """Whether a command that is judged by presence can be, while a round waits before it.

        It can while nothing in the round brings somebody to a channel or takes somebody away, if it is then
        accepted (nobody uses the channel, so a replay sees the same) or if no definitions wait to be changed.
        """
        if not all(waiting.command.DURABLE for waiting in round_):
            return False
        return not durable or self._machine.verdict(command) is not Verdict.NOT_NOW

    async def _commit(self, round_: list[_Waiting], durable: set[int]) -> None:
        """Append, apply, emit."""
        now_ns = max(self._clock.now_ns(), self._machine.now_ns)
        if durable:
            records = [
                encode_command(waiting.command, now_ns)
                for place, waiting in enumerate(round_)
                if place in durable
            ]
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._worker, self._journal.append, records)
            self._appends += 1
            self._records += len(records)
            self._uncovered += len(records)
        for waiting in round_:
            effects: list[Effect] = self._machine.apply(waiting.command, now_ns)
            for effect in effects:
                self._emit(effect)
            self._commands += 1
            self._effects += len(effects)
            if waiting.done is not None:
                waiting.done()

    async def _save_snapshot(self) -> None:
        """Keep the durable state and drop the records that led to it."""
        state = self._machine.durable_state()
        position = self._journal.last_position

        def save() -> None:
            self._journal.save_snapshot(position, encode_state(state))

        await asyncio.get_running_loop().run_in_executor(self._worker, save)
        self._uncovered = 0
        self._snapshots += 1

    def _end(self) -> None:
        self._is_over = True
        self._line.clear()
        for future in (*self._executing, *self._pulses):
            if not future.done():
                future.set_exception(_stopped())
        # An append that was cut off by a cancellation is let finish: its caller may close the journal next.
        self._worker.shutdown(wait=True)


def _stopped() -> Unavailable:
    return Unavailable("the daemon is stopping")


def _is_judged_by_presence(command: Command) -> TypeGuard[UndeclareChannel | DeclareChannel]:
    """Whether a durable command is refused while somebody uses the channel, or messages are in it."""
    return (isinstance(command, UndeclareChannel) and not command.force) or (
        isinstance(command, DeclareChannel) and command.replace
    )
