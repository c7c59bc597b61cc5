"""The data plane's engine: two lanes of commands, each with its machine; rounds, commits, time.

Theory of operation
    Whoever has a command calls :meth:`DataEngine.submit`, which puts it in line at the lane that has its
    channel. The *memory lane* applies what waits in one round per turn of the event loop, and emits at once.
    The *durable lane* applies what waits, commits the round's rows in a worker thread, and then emits. While
    a commit waits for the disk commands gather in line and share the next: group commit. So the memory lane
    does not wait for a disk. A publisher that is alone with the core waits for less if the event loop commits
    itself: when it does, and what that means for others, is ``attention``'s.

    Acknowledgements are often for nobody to wait for: their consumer has more to do. They wait, ``GATHER_S``
    at most, for something else that is committed (:meth:`DataMachine.is_patient`); where messages come and go
    there is then one commit where there were two.

    If the store has no room, the machine takes the round back. Clients whose commands write are refused
    (StoreFull), as are rings that were to be taken in; what nobody can be refused (the end of a session, say)
    is tried again with each later round, and after ``RETRY_S``. Any other failure of the store ends
    :meth:`run`, and the process with it: nothing was shown that was not committed.

    What a command needs from the store before it can be applied is read then; what machines ask for by
    ``Load*`` is read by another thread, while rounds go on, and comes back as a command.

    Each machine says when something happens by itself; one timer per lane brings it a ``Tick`` then. There
    is no polling; the timer is set anew at least every ``TIMER_S_MAX``, in case the host's clock was set.

Invariants
    Nothing is emitted before the commit that covers it has returned. Effects are emitted in the order in
    which a lane's commands were submitted.
    There is one round of the durable lane under way at most.

Not here: what commands mean (``core.data.machine``), who is connected, descriptors and frames (the door).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from towpath.errors import ChannelNotFound, StoreFull, TowpathError

from .attention import Attention
from .core.commands import Kind
from .core.data import commands as c
from .core.data import effects as e
from .core.data.machine import CheckFence, DataMachine, Outcome
from .core.data.rows import Row
from .core.data.statistics import ChannelStatistics, Statistics
from .core.effects import ChannelClosed, ChannelOpened
from .core.limits import Limits
from .data_lane import Lane
from .data_reading import Asked, read
from .data_refusals import foreign, hindrance
from .ports import Clock, Store

RETRY_S: Final = 0.5
GATHER_S: Final = 0.001
"""How long acknowledgements wait for more that is to be committed, while their consumer has enough to do."""

EmitData = Callable[[e.Effect], None]
"""Carries out one effect, at once and without waiting; called in order, from the event loop."""


@dataclass(frozen=True, slots=True)
class DataEngineStatistics:
    """What the engine has done in this run, and what its machines hold."""

    rounds: int
    commits: int
    rows: int
    store_full: int
    loads: int
    waiting: int
    memory: Statistics
    durable: Statistics


class DataEngine:
    """Runs both machines.

    Args:
        limits: the bounds that hold.
        store: stays the caller's, who closes it after :meth:`run` has returned.
        clock: tells the time of rounds.
        emit: carries out effects.
        kind_of: the kind of a channel that the registry has; None: it has none of that name. For refusals.
        first_consumer: of the numbers of consumers, which must never have been used before.
        attention: knows whether commits may be made by the event loop; None: never.
        check_fence: raises Fenced unless a lock is held by a token now; None: there are no locks.
    """

    def __init__(
        self,
        *,
        limits: Limits,
        store: Store,
        clock: Clock,
        emit: EmitData,
        kind_of: Callable[[str], Kind | None],
        first_consumer: int,
        attention: Attention | None = None,
        check_fence: CheckFence | None = None,
    ) -> None:
        self._store = store
        self._attention = attention
        self._emit = emit
        self._kind_of = kind_of
        first_consumer += first_consumer % 2
        memory = DataMachine(limits, is_durable=False, first_consumer=first_consumer, check_fence=check_fence)
        durable = DataMachine(
            limits, is_durable=True, first_consumer=first_consumer + 1, check_fence=check_fence
        )
        self._memory = Lane(memory, clock, self._wake_memory)
        self._durable = Lane(durable, clock, self._wake_durable)
        self._lane_of: dict[str, Lane] = {}
        self._kinds: dict[str, Kind] = {}
        self._memory_due = False
        self._arrived = asyncio.Event()
        self._stuck: list[c.DataCommand] = []
        self._retry: asyncio.TimerHandle | None = None
        self._loads: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._is_stopping = False
        self._is_gathering = False
        self._is_over = False
        self._is_busy = True  # with a round of the durable lane, or before the first
        self._commits = self._rows = self._full = self._loaded = 0
        # One thread each: commits never queue behind reading, and never run two at a time.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store-writer")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="store-reader")

    # ---- for the daemon ------------------------------------------------------------------------------------

    async def recover(self, channels: Sequence[ChannelOpened]) -> None:
        """Take up what is stored, of the channels that the registry has. Once, before :meth:`run`.

        Raises:
            StoreDamaged, InvalidConfiguration: the store cannot be used.
            OSError, sqlite3.Error: it failed.
        """
        loop = asyncio.get_running_loop()
        self._durable.machine.restore(await loop.run_in_executor(self._reader, self._store.load))
        for channel in channels:
            self.open_channel(channel)
        self._durable.submit(c.Recovered())
        while self._durable.line:  # from now on channels can be asked about
            await self._durable_round(self._durable.take())

    async def run(self) -> None:
        """Carry out commands until :meth:`stop`, and then those that still wait.

        Raises:
            OSError, sqlite3.Error, StoreDamaged: the store failed. Nothing may be submitted any more.
        """
        lane = self._durable
        try:
            while not self._failure:
                if lane.line:
                    self._is_busy = True
                    if lane.is_patient() and not self._is_stopping:
                        await self._gather(lane)
                    await self._durable_round(lane.take())
                    await asyncio.sleep(0)
                elif self._is_stopping and not self._loads:
                    break
                else:
                    self._arrived.clear()
                    self._is_busy = False
                    await self._arrived.wait()
            if self._failure:
                raise self._failure
        finally:
            await self._end()

    async def _gather(self, lane: Lane) -> None:
        """Wait a moment for what may share the commit of acknowledgements, for which nobody waits."""
        until = asyncio.get_running_loop().call_later(GATHER_S, self._gathered)
        self._is_gathering = True
        while self._is_gathering and lane.is_patient() and not (self._is_stopping or self._failure):
            self._arrived.clear()
            await self._arrived.wait()
        self._is_gathering = False
        until.cancel()

    def _gathered(self) -> None:
        self._is_gathering = False
        self._arrived.set()

    def stop(self) -> None:
        """Let :meth:`run` return when the line is empty."""
        self._is_stopping = True
        self._arrived.set()

    async def _end(self) -> None:
        self._is_over = True
        if self._retry is not None:
            self._retry.cancel()
        for lane in (self._memory, self._durable):
            lane.stop()
        for task in tuple(self._loads):
            task.cancel()
        # What is under way is let finish: the caller may close the store next.
        self._writer.shutdown(wait=True)
        self._reader.shutdown(wait=True)

    def open_channel(self, effect: ChannelOpened) -> None:
        """The registry has a channel; or has it with other options."""
        lane = self._durable if effect.options.durable else self._memory
        before = self._lane_of.get(effect.name)
        if before is not None and (before is not lane or self._kinds[effect.name] is not effect.options.kind):
            before.submit(c.CloseChannel(effect.name))
        self._lane_of[effect.name] = lane
        self._kinds[effect.name] = effect.options.kind
        lane.submit(c.OpenChannel(effect.name, effect.options, effect.owner, effect.declared_at_ns))

    def close_channel(self, effect: ChannelClosed) -> None:
        """The registry has it no more."""
        del self._kinds[effect.name]
        self._lane_of.pop(effect.name).submit(c.CloseChannel(effect.name))

    def has(self, channel: str) -> bool:
        """Whether a channel is of the data plane."""
        return channel in self._lane_of

    def channel_statistics(self, channel: str) -> ChannelStatistics | None:
        """Return what a channel holds; None: it is not of the data plane."""
        lane = self._lane_of.get(channel)
        return lane.machine.channel_statistics(channel) if lane is not None else None

    def taken(self, channel: str) -> dict[int, int]:
        """Return up to where each source of a durable topic was taken in, and committed or under way."""
        return dict(self._durable.machine.taken(channel))

    def next_seq(self, channel: str) -> int:
        """Return what the next message of a durable topic will have."""
        return self._durable.machine.next_seq(channel)

    def submit(self, command: c.DataCommand) -> None:
        """Put a command in line, at the lane or lanes that it concerns. After :meth:`run` has returned
        commands are ignored: those who could be answered are being disconnected."""
        if self._is_over:
            return
        match command:
            case c.EndSession() | c.CancelCall():
                self._memory.submit(command)
                self._durable.submit(command)
            case c.CommitTransaction():
                if (why := hindrance(command, self._is_durable, self._kind_of)) is not None:
                    self._refuse(command, why)
                else:
                    self._durable.submit(command)
            case c.TakeIn() if self._is_taken_in_now(command):
                pass
            case c.Settle():
                (self._durable if command.consumer % 2 else self._memory).submit(command)
            case _:
                self._submit_to(command.channel, command)  # type: ignore[attr-defined]

    def _is_durable(self, channel: str) -> bool:
        return self._lane_of.get(channel) is self._durable

    def _submit_to(self, channel: str, command: c.DataCommand) -> None:
        lane = self._lane_of.get(channel)
        if lane is not None:
            lane.submit(command)
        elif isinstance(command, c.ClientCommand):
            self._refuse(command, foreign(channel, command, self._kind_of))
        elif isinstance(command, c.TakeIn):
            self._emit(e.NotTaken(channel, command.ticket, ChannelNotFound(f"no durable topic {channel!r}")))

    def _refuse(self, command: c.ClientCommand, error: TowpathError) -> None:
        caller = command.caller
        if caller.session is not None:
            self._emit(e.Refuse(caller.session, caller.call, error))

    def statistics(self) -> DataEngineStatistics:
        """Return counts of what was done in this run. O(channels)."""
        return DataEngineStatistics(
            rounds=self._memory.rounds + self._durable.rounds,
            commits=self._commits,
            rows=self._rows,
            store_full=self._full,
            loads=self._loaded,
            waiting=len(self._memory.line) + len(self._durable.line),
            memory=self._memory.machine.statistics(),
            durable=self._durable.machine.statistics(),
        )

    # ---- the memory lane -----------------------------------------------------------------------------------

    def _wake_memory(self) -> None:
        if not self._memory_due and not self._is_over:
            self._memory_due = True
            asyncio.get_running_loop().call_soon(self._memory_round)

    def _memory_round(self) -> None:
        self._memory_due = False
        if self._memory.line and not self._is_over:
            try:
                self._carry_out_memory(self._memory)
            except Exception as failure:  # a bug: it ends the run, as it would in the other lane
                self._failure = failure
                self._arrived.set()

    def _carry_out_memory(self, lane: Lane) -> None:
        outcome = lane.apply(lane.take())
        assert not outcome.rows
        lane.machine.keep()
        for effect in outcome.effects:
            self._carry_out(effect)
        lane.set_timer()
        if lane.line:
            self._wake_memory()

    # ---- the durable lane ----------------------------------------------------------------------------------

    def _wake_durable(self) -> None:
        self._arrived.set()

    async def _durable_round(self, commands: Sequence[c.DataCommand]) -> None:
        """Apply, commit, emit."""
        lane = self._durable
        if self._stuck:
            commands = [*self._stuck, *commands]
            self._stuck = []
        for command in commands:
            while (need := lane.machine.needs(command)) is not None:
                await self._bring(need)
        outcome = lane.apply(commands)
        if outcome.rows:
            try:
                await self._commit(outcome.rows)
            except StoreFull as error:
                lane.machine.undo()
                self._full += 1
                await self._without_room(commands, outcome.changed, error)
                return
        self._finish(outcome)

    def _is_taken_in_now(self, command: c.TakeIn) -> bool:
        """Take in what came out of a ring, at once, if nothing else waits and the loop makes the commit."""
        lane, attention = self._durable, self._attention
        if (
            self._is_busy
            or attention is None
            or lane.line
            or self._stuck
            or self._lane_of.get(command.channel) is not lane
            or not attention.place.is_here(command.content_bytes)
            or lane.machine.needs(command) is not None
        ):
            return False
        outcome = lane.apply([command])
        try:
            if outcome.rows:
                self._commit_here(outcome.rows, attention)
        except StoreFull:
            lane.machine.undo()
            return False  # a round by itself has an answer to that
        except Exception as failure:  # it ends the run, as it would there
            self._failure = failure
            self._is_busy = True
            self._arrived.set()
            return True
        self._finish(outcome)
        self._store.prepare()
        return True

    def _commit_here(self, rows: Sequence[Row], attention: Attention) -> None:
        began_ns = time.monotonic_ns()
        attention.place.begin(is_here=True)
        self._store.commit(rows)
        attention.committed_here()
        attention.place.took(time.monotonic_ns() - began_ns)
        self._commits += 1
        self._rows += len(rows)

    def _finish(self, outcome: Outcome) -> None:
        """A round is committed: show what it led to."""
        for effect in outcome.effects:  # first: somebody waits for them
            self._carry_out(effect)
        self._durable.machine.keep()
        self._durable.set_timer()

    async def _commit(self, rows: Sequence[Row]) -> None:
        """Commit rows, in the thread for that; or here, while nobody could have to wait for it."""
        attention = self._attention
        if attention is not None and attention.place.is_here(self._durable.round_bytes):
            self._commit_here(rows, attention)
            return
        began_ns = time.monotonic_ns()
        if attention is not None:
            attention.place.begin(is_here=False)
        await asyncio.get_running_loop().run_in_executor(self._writer, self._store.commit, rows)
        if attention is not None:
            attention.place.took(time.monotonic_ns() - began_ns)
        self._commits += 1
        self._rows += len(rows)

    async def _without_room(
        self, commands: Sequence[c.DataCommand], changed: frozenset[int], error: StoreFull
    ) -> None:
        """Refuse who can be refused; carry out the others, those that write nothing at once. What had been
        done before (a transaction that is asked for again) is among these: it is not to be refused."""
        rest: list[c.DataCommand] = []
        for index, command in enumerate(commands):
            if isinstance(command, c.TakeIn) and index in changed:
                self._emit(e.NotTaken(command.channel, command.ticket, error.again()))
            elif isinstance(command, c.ClientCommand) and command.WRITES and index in changed:
                self._refuse(command, error.again())
            else:
                rest.append(command)
        if rest and len(rest) < len(commands):
            await self._durable_round(rest)
            return
        # Even so there is no room: clients' own go in a round without the others, which wait.
        asked = [command for command in rest if isinstance(command, c.ClientCommand)]
        kept = [command for command in rest if not isinstance(command, c.ClientCommand | c.Tick)]
        if asked and len(asked) < len(rest):
            await self._durable_round(asked)
            self._stuck = [*kept, *self._stuck]
        else:
            self._stuck = [*(kept or asked), *self._stuck]
        if self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(RETRY_S, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._durable.submit(c.Tick())

    async def _bring(self, need: e.Need) -> None:
        """Read what a command needs, and apply it."""
        store, loop = self._store, asyncio.get_running_loop()
        self._loaded += 1
        brought: c.DataCommand
        match need:
            case e.NeedsValue():
                value = await loop.run_in_executor(self._reader, store.read_value, need.channel)
                brought = c.ValueLoaded(need.channel, value)
            case e.NeedsIds():
                ids = await loop.run_in_executor(self._reader, store.read_ids, need.channel, need.since_ns)
                brought = c.IdsLoaded(need.channel, ids)
            case e.NeedsTransactions():
                known = await loop.run_in_executor(self._reader, store.read_transactions, need.since_ns)
                brought = c.TransactionsLoaded(known)
        outcome = self._durable.apply([brought])
        assert not outcome.rows and not outcome.effects, outcome
        self._durable.machine.keep()

    # ---- effects -------------------------------------------------------------------------------------------

    def _carry_out(self, effect: e.Effect) -> None:
        match effect:
            case e.LoadParcels() | e.LoadHeads() | e.ReadParcels() | e.FindByTime():
                self._loaded += 1
                task = asyncio.get_running_loop().create_task(self._load(effect))
                self._loads.add(task)
                task.add_done_callback(self._load_ended)
            case e.DeadLetters():
                self._post(effect)
            case _:
                self._emit(effect)

    def _post(self, letters: e.DeadLetters) -> None:
        lane = self._lane_of.get(letters.channel)
        if lane is not None:
            lane.submit(c.PostLetters(letters.channel, letters.run, letters.priority))
        else:
            self._emit(letters)

    async def _load(self, effect: Asked) -> None:
        brought = await asyncio.get_running_loop().run_in_executor(self._reader, read, self._store, effect)
        if self._is_over:
            return
        if isinstance(brought, c.DataCommand):
            self._durable.submit(brought)
        else:
            self._emit(brought)

    def _load_ended(self, task: asyncio.Task[None]) -> None:
        self._loads.discard(task)
        if not task.cancelled() and (failure := task.exception()) is not None:
            self._failure = failure
        self._arrived.set()
