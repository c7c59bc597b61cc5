"""The data machine: what is in queues, states and durable topics, and the one place where that changes.

Theory of operation
    There are two machines of this class: one for the channels that are in memory alone, one for the durable
    ones. Each takes commands in *rounds*::

        apply(commands, now_ns) -> rows and effects;  then  keep()  or  undo()

    A round's rows are committed as a whole before its effects are emitted. If that fails, ``undo`` brings the
    machine back to where it was, and it is as if the round had never been.

    Within a round commands see what those before them did. Each is all or nothing: one that is refused is
    rolled back to where it began. That is all there is to a transaction, too: its parts are carried out one
    after the other (``committing``), and the first that is refused takes the others with it. Since rounds
    follow each other and commands within them do, transactions are serializable, in the order of their
    commits.

    What a command needs that is not in memory (a value, message ids, ids of transactions) is told by
    :meth:`needs` before; the engine reads it and applies it first.

Invariants
    Same commands, rounds and times, same rows and effects; nothing else goes in.
    Expected outcomes are effects, never exceptions. Each client command is answered once, except streams,
    publications that wait, and those whose session has ended.
    The machine's time never goes back.

Not here: rounds, commits and time (``data_engine``), who is connected (``core.machine``), how a command finds
its channel (``holdings``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from towpath.errors import (
    DeliveryLost,
    NotSupported,
    TowpathError,
)
from towpath.wording import plural
from towpath_broker.core.commands import Kind
from towpath_broker.core.limits import Limits
from towpath_broker.core.roles import wrong_kind

from . import commands as c
from . import effects as e
from .alarms import Alarms
from .committing import Committing
from .holdings import CLASSES, Holdings
from .logs import Log
from .parcels import NS_PER_MS
from .publishing import columns_of
from .queues import Queue
from .round import Round
from .rows import DropChannel, OpenChannel, Row, Run, StoredChannel
from .shared import Shared, refuse, reply
from .statistics import ChannelStatistics, Statistics
from .transactions import WINDOW_NS, Transactions
from .values import State


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round leads to.

    Attributes:
        rows: to commit, all or none.
        effects: to emit after that.
        changed: which of the commands, by index, changed something; the others found it done, say.
    """

    rows: Sequence[Row]
    effects: Sequence[e.Effect]
    changed: frozenset[int] = frozenset()


CheckFence = Callable[[str, int], None]
"""Of a lock and a token."""


class DataMachine:
    """The state of one lane and its only way to change.

    Args:
        limits: the bounds that hold.
        is_durable: what happens becomes rows.
        first_consumer: the number of the first consumer; the others follow in steps of 2.
        check_fence: raises Fenced unless a lock is held by a token now.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        is_durable: bool,
        first_consumer: int,
        check_fence: CheckFence | None = None,
    ) -> None:
        self._check_fence = check_fence
        self._shared = Shared(limits, is_durable=is_durable, first_consumer=first_consumer)
        self._shared.letterbox = self
        self._channels = Holdings()
        self._stored: dict[str, StoredChannel] = {}
        self._committing = Committing(self._channels, self._shared, self._settle_now, self._check_fences)
        self._round: Round | None = None
        self._now_ns = 0
        self._alarms = Alarms()
        self._finished: dict[str, None] = {}  # channels that the latest round has finished, or closed
        self._commands = self._refused = 0
        self._handlers: dict[type[c.DataCommand], Callable[[Any, Round], None]] = {
            c.OpenChannel: self._open_channel,
            c.CloseChannel: self._close_channel,
            c.EndSession: self._end_session,
            c.CancelCall: self._cancel_call,
            c.Tick: self._tick,
            c.Recovered: self._recovered,
            c.Publish: self._publish,
            c.TakeIn: self._take_in,
            c.ForgetSource: self._forget_source,
            c.PostLetters: lambda command, round_: self.post(
                command.channel, command.run, command.priority, round_
            ),
            c.Consume: lambda command, round_: self._channels.queue(command.channel).consume(command, round_),
            c.Settle: self._settle,
            c.GetValue: self._get_value,
            c.SetValue: self._set_value,
            c.DeleteValue: self._delete_value,
            c.WatchValue: lambda command, round_: self._channels.state(command.channel).watch(
                command, round_
            ),
            c.AttachValue: lambda command, round_: self._channels.state(command.channel).attach(
                command, round_
            ),
            c.FindStored: lambda command, round_: self._channels.log(command.channel).find(command, round_),
            c.ReadStored: lambda command, round_: self._channels.log(command.channel).read(command, round_),
            c.SavePlace: self._save_place,
            c.DeletePlace: self._delete_place,
            c.ListPlaces: self._list_places,
            c.CommitTransaction: self._committing.commit,
            c.ParcelsLoaded: self._parcels_loaded,
            c.HeadsLoaded: self._heads_loaded,
            c.ValueLoaded: self._value_loaded,
            c.IdsLoaded: self._ids_loaded,
            c.TransactionsLoaded: self._transactions_loaded,
        }

    # ---- rounds --------------------------------------------------------------------------------------------

    def restore(self, stored: Sequence[StoredChannel]) -> None:
        """Take what the store has, into a machine that was just made. ``OpenChannel`` for each channel that
        the registry knows, and ``Recovered``, come next."""
        assert not self._commands and self._shared.is_durable
        self._stored = {each.channel: each for each in stored}
        self._committing.known = Transactions(is_loaded=False)

    def apply(self, commands: Sequence[c.DataCommand], now_ns: int) -> Outcome:
        """Carry out commands, in order. ``keep`` or ``undo`` must follow.

        Args:
            now_ns: nanoseconds since the epoch; a time before the latest counts as the latest.
        """
        assert self._round is None
        self._now_ns = max(self._now_ns, now_ns)
        round_ = self._round = Round(self._now_ns)
        self._finished.clear()
        changed: list[int] = []
        for index, command in enumerate(commands):
            self._commands += 1
            mark = round_.mark()
            try:
                self._handlers[type(command)](command, round_)
            except TowpathError as error:
                round_.roll_back(mark)
                self._refuse(command, error, round_)
                self._hear(command, round_)
            if round_.undo.mark() > mark[0]:
                changed.append(index)
        while round_.touched:  # a queue's dead letters touch others
            name = next(iter(round_.touched))
            channel = self._channels.get(name)
            if round_.touched.pop(name) is channel:
                channel.finish(round_)
                self._finished[name] = None
        self._set_alarms()
        return Outcome(round_.rows, round_.effects, frozenset(changed))

    def keep(self) -> None:
        """The round's rows are committed."""
        assert self._round is not None
        self._round.undo.forget()
        self._round = None
        for name in self._finished:
            if name in self._channels:
                self._channels[name].keep(self._now_ns)
        self._committing.known.prune(self._now_ns)

    def undo(self) -> None:
        """The round's rows were not committed: be as before it."""
        assert self._round is not None
        self._round.undo.roll_back()
        self._round = None
        for name in self._finished:  # what the round did there may be due still
            self._alarms.set(name, self._now_ns if name in self._channels else None)

    def needs(self, command: c.DataCommand) -> e.Need | None:
        """Return what must be read from the store before a command can be applied; ask again after that."""
        if isinstance(command, c.CommitTransaction):
            if command.transaction and not self._committing.known.is_loaded:
                return e.NeedsTransactions(self._now_ns - WINDOW_NS)
            parts: list[c.DataCommand] = [*command.publishes, *command.values, *command.deletions]
            found = map(self.needs, parts)
            return next((need for need in found if need is not None), None)
        if isinstance(command, c.Publish | c.TakeIn) and any(command.message_ids):
            channel = self._channels.get(command.channel)
            if isinstance(channel, Queue | Log) and channel.ids.window_ns and not channel.ids.is_loaded:
                return e.NeedsIds(command.channel, self._now_ns - channel.ids.window_ns)
        elif isinstance(command, c.GetValue | c.SetValue | c.DeleteValue | c.WatchValue | c.AttachValue):
            state = self._channels.get(command.channel)
            if isinstance(state, State) and not state.is_loaded:
                return e.NeedsValue(command.channel)
        return None

    @property
    def now_ns(self) -> int:
        """The latest time that the machine has seen."""
        return self._now_ns

    def next_deadline_ns(self) -> int | None:
        """Return when a ``Tick`` is due; None: none is. It may come to nothing."""
        return self._alarms.next_ns()

    def _set_alarms(self) -> None:
        """Find out when something happens by itself in the channels that the round has finished."""
        for name in self._finished:
            channel = self._channels.get(name)
            self._alarms.set(name, channel.next_deadline_ns(self._now_ns) if channel is not None else None)

    def _tick(self, command: c.Tick, round_: Round) -> None:
        for name in self._alarms.take(round_.now_ns):
            if name in self._channels:
                round_.touch(self._channels[name])

    # ---- the outside ---------------------------------------------------------------------------------------

    def taken(self, channel: str) -> Mapping[int, int]:
        """Return up to where each source of a durable topic was taken in."""
        log = self._channels.get(channel)
        return dict(log.taken) if isinstance(log, Log) else {}

    def next_seq(self, channel: str) -> int:
        """Return what the next message of a durable topic, or queue, will have."""
        found = self._channels.get(channel)
        return found.next_seq if isinstance(found, Log | Queue) else 1

    def channel_statistics(self, name: str) -> ChannelStatistics | None:
        """Return what a channel holds; None: it is not one of this machine's."""
        return self._channels.statistics(name)

    def statistics(self) -> Statistics:
        """Return counts of what the machine holds and has done. O(channels)."""
        held = [each for each in self._channels.values() if not isinstance(each, State)]
        return Statistics(
            channels=len(self._channels),
            messages=sum(each.messages for each in held),
            content_bytes=self._shared.usage.total,
            value_bytes=self._shared.value_bytes.total,
            streams=self._shared.streams_count(),
            commands=self._commands,
            refused=self._refused,
            counters=dict(self._shared.counters),
        )

    def _refuse(self, command: c.DataCommand, error: TowpathError, round_: Round) -> None:
        self._refused += 1
        if isinstance(command, c.TakeIn):
            round_.effects.append(e.NotTaken(command.channel, command.ticket, error))
            return
        assert isinstance(command, c.ClientCommand), (command, error)
        refuse(round_, command.caller, error)

    # ---- channels and sessions -----------------------------------------------------------------------------

    def _open_channel(self, command: c.OpenChannel, round_: Round) -> None:
        name, options = command.name, command.options
        channel = self._channels.get(name)
        if channel is not None:
            assert channel.options.kind is options.kind, "the engine closes a channel before its kind changes"
            round_.undo.set(channel, "options", options)
            if not isinstance(channel, State):
                round_.undo.set(channel.ids, "window_ns", options.dedupe_ms * NS_PER_MS)
            round_.touch(channel)
            return
        stored = self._stored.get(name)
        if stored is not None:
            round_.undo.remove(self._stored, name)
            if stored.declared_at_ns != command.declared_at_ns or stored.kind != options.kind:
                round_.rows.append(DropChannel(name))
                stored = None
        if stored is None and self._shared.is_durable:
            round_.rows.append(OpenChannel(name, command.declared_at_ns, int(options.kind)))
        make = CLASSES[options.kind]
        made = make(name, options, command.owner, command.declared_at_ns, self._shared, stored)
        if stored is not None and stored.content_bytes:
            self._shared.usage.add(command.owner, stored.content_bytes, round_.undo)
        round_.undo.put(self._channels, name, made)
        round_.touch(made)

    def _close_channel(self, command: c.CloseChannel, round_: Round) -> None:
        channel = self._channels.get(command.name)
        if channel is None:
            return
        channel.close(round_)
        round_.undo.remove(self._channels, command.name)
        self._finished[command.name] = None
        if self._shared.is_durable:
            round_.rows.append(DropChannel(command.name))

    def _recovered(self, command: c.Recovered, round_: Round) -> None:
        for name in sorted(self._stored):
            round_.rows.append(DropChannel(name))
            round_.undo.remove(self._stored, name)

    def _end_session(self, command: c.EndSession, round_: Round) -> None:
        for stream in self._shared.streams_of(command.session):
            stream.leave(round_, is_orderly=False)

    def _cancel_call(self, command: c.CancelCall, round_: Round) -> None:
        stream = self._shared.stream(command.session, command.call)
        if stream is not None:
            stream.leave(round_, is_orderly=True)

    # ---- messages ------------------------------------------------------------------------------------------

    def _publish(self, command: c.Publish, round_: Round) -> None:
        channel = self._channels.require(command.channel)
        self._check_fences(command.fences)
        match channel:
            case Queue() if command.fences:
                published = channel.intake.publish_now(command, columns_of(command, round_.now_ns), round_)
            case Queue():
                waiting = channel.intake.publish(command, round_)
                if waiting is None:
                    return
                published = waiting
            case Log():
                published = channel.publish(command, round_)
            case _:
                raise wrong_kind(command.channel, Kind.STATE, "and takes no publisher")
        reply(round_, command.caller, published)

    def _take_in(self, command: c.TakeIn, round_: Round) -> None:
        self._channels.log(command.channel).take_in(command, round_)

    def _forget_source(self, command: c.ForgetSource, round_: Round) -> None:
        log = self._channels.get(command.channel)
        if isinstance(log, Log):
            log.forget_source(command.source, round_)

    def post(self, channel: str, run: Run, priority: int, round_: Round) -> None:
        """Take dead letters for a channel. What it has no room for, or never takes, is lost, and counted."""
        target = self._channels.get(channel)
        posted, why = True, f"there is no room in channel {channel!r}"
        match target:
            case Queue():
                posted = target.intake.post(run, priority, round_)
            case Log():
                mark = round_.mark()
                try:
                    target.post(run, round_)
                except TowpathError:
                    round_.roll_back(mark)
                    posted = False
            case State():
                posted, why = False, f"channel {channel!r} is a state, which takes none"
            case None:
                round_.effects.append(e.DeadLetters(channel, run, priority))
        if not posted:
            self._shared.count("dead_letters_lost", len(run.payloads), round_.undo)
            round_.effects.append(e.Warn(f"{plural(len(run.payloads), 'dead letter')} lost: {why}"))

    # ---- queues --------------------------------------------------------------------------------------------

    def _settle(self, command: c.Settle, round_: Round) -> None:
        reply(round_, command.caller, self._settle_now(command, round_, must_have_all=False))

    def is_patient(self, command: c.DataCommand) -> bool:
        """Whether nobody waits for a command: acknowledgements of a consumer that has more to do, of a queue
        in which no publisher waits for room."""
        if not isinstance(command, c.Settle) or command.returned or command.extended:
            return False
        queue = self._channels.get(self._shared.consumer_queue.get(command.consumer, ""))
        if not isinstance(queue, Queue) or queue.line.waiting:
            return False
        consumer = queue.consumers[command.consumer]
        done = sum(each.last - each.first + 1 for each in command.acknowledged)
        return consumer.unsettled - done >= max(consumer.prefetch // 2, 1)

    def _settle_now(self, command: c.Settle, round_: Round, *, must_have_all: bool) -> e.Settled:
        name = self._shared.consumer_queue.get(command.consumer)
        if name is None:
            raise DeliveryLost(
                f"there is no consumer {command.consumer}: what it had was given back",
                hint="consume again; others may have had the messages meanwhile",
            )
        queue = self._channels.queue(name)
        queue.check_consumer(command.caller, command.consumer)
        return queue.settle(command, round_, must_have_all=must_have_all)

    def _hear(self, command: c.DataCommand, round_: Round) -> None:
        """Consumers have spoken, though what they asked for was refused."""
        match command:
            case c.Settle():
                settlements: Sequence[c.Settle] = (command,)
            case c.CommitTransaction():
                settlements = command.settlements
            case _:
                return
        for settlement in settlements:
            queue = self._channels.get(self._shared.consumer_queue.get(settlement.consumer, ""))
            if isinstance(queue, Queue) and queue.has_consumer(settlement.caller, settlement.consumer):
                queue.hear(queue.consumers[settlement.consumer], round_)

    def _parcels_loaded(self, command: c.ParcelsLoaded, round_: Round) -> None:
        queue = self._channels.get(command.channel)
        if isinstance(queue, Queue) and queue.declared_at_ns == command.declared_at_ns:
            queue.loaded(command, round_)

    # ---- state ---------------------------------------------------------------------------------------------

    def _get_value(self, command: c.GetValue, round_: Round) -> None:
        reply(round_, command.caller, e.ValueTold(self._channels.state(command.channel).value))

    def _check_fences(self, fences: Sequence[c.Fence]) -> None:
        """Refuse what is written on behalf of a lock that is not held (any more) by the token that is shown.

        Raises:
            Fenced: so it is. NotSupported: there are no locks here.
        """
        for lock, token in fences:
            if self._check_fence is None:
                raise NotSupported("there are no locks here that a fence could be of")
            self._check_fence(lock, token)

    def _set_value(self, command: c.SetValue, round_: Round) -> None:
        self._check_fences(command.fences)
        reply(round_, command.caller, e.ValueSet(self._channels.state(command.channel).set(command, round_)))

    def _delete_value(self, command: c.DeleteValue, round_: Round) -> None:
        self._check_fences(command.fences)
        reply(
            round_,
            command.caller,
            e.ValueDeleted(self._channels.state(command.channel).delete(command, round_)),
        )

    def _value_loaded(self, command: c.ValueLoaded, round_: Round) -> None:
        self._channels.state(command.channel).load(command.value, round_)

    # ---- durable topics ------------------------------------------------------------------------------------

    def _save_place(self, command: c.SavePlace, round_: Round) -> None:
        self._channels.log(command.channel).save_place(command, round_)
        reply(round_, command.caller, e.PlaceSaved())

    def _delete_place(self, command: c.DeletePlace, round_: Round) -> None:
        self._channels.log(command.channel).delete_place(command.name, round_)
        reply(round_, command.caller, e.PlaceDeleted())

    def _list_places(self, command: c.ListPlaces, round_: Round) -> None:
        places = self._channels.log(command.channel).places
        told = tuple((name, *places[name]) for name in sorted(places))
        reply(round_, command.caller, e.PlacesListed(told))

    def _heads_loaded(self, command: c.HeadsLoaded, round_: Round) -> None:
        log = self._channels.get(command.channel)
        if isinstance(log, Log) and log.declared_at_ns == command.declared_at_ns:
            log.heads_loaded(command, round_)

    def _ids_loaded(self, command: c.IdsLoaded, round_: Round) -> None:
        channel = self._channels.require(command.channel)
        assert not isinstance(channel, State)
        channel.ids.load(command.ids, round_)

    # ---- transactions --------------------------------------------------------------------------------------

    def _transactions_loaded(self, command: c.TransactionsLoaded, round_: Round) -> None:
        self._committing.known.load(command.transactions, round_)
