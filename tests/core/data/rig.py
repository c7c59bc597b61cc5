"""A data machine with its store and nothing else: rounds are committed at once, loads are read at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from tests.core.data.dump import assert_consistent, dump
from towpath.errors import TowpathError
from towpath_broker.core.commands import Caller, ChannelOptions
from towpath_broker.core.data import commands as c
from towpath_broker.core.data import effects as e
from towpath_broker.core.data.machine import DataMachine
from towpath_broker.core.ids import CallId, SessionId
from towpath_broker.core.limits import Limits
from towpath_broker.data_reading import read
from towpath_broker.store.memory import MemoryStore

START_NS = 1_700_000_000_000_000_000
MS = 1_000_000
B = TypeVar("B", bound=e.ReplyBody)


class Rig:
    """Attributes: shown: the effects of the last round, and of what it led to."""

    def __init__(
        self, channels: dict[str, ChannelOptions], *, is_durable: bool, limits: Limits | None = None
    ) -> None:
        self.channels = channels
        self.is_durable = is_durable
        self.limits = limits or Limits()
        self.store = MemoryStore()
        self.now_ns = START_NS
        self.calls = 0
        self.lives = 0
        self.shown: list[e.Effect] = []
        self.checks_undo = True
        self.start()

    def start(self) -> None:
        """A run begins, with what the store has."""
        self.lives += 1
        self.machine = DataMachine(
            self.limits, is_durable=self.is_durable, first_consumer=(self.lives << 40) + self.is_durable
        )
        if self.is_durable:
            self.machine.restore(self.store.load())
        opened = [c.OpenChannel(name, options, "uid:0", 5) for name, options in self.channels.items()]
        self.run(*opened, *([c.Recovered()] if self.is_durable else []))

    def run(self, *commands: c.DataCommand, undo_first: bool = True) -> list[e.Effect]:
        """Live through a round; every one is first taken back, and must leave no trace."""
        for command in commands:
            while (need := self.machine.needs(command)) is not None:
                self._apply([self._brought(need)])
        if undo_first and self.checks_undo:
            before, due_ns = dump(self.machine), self.machine.next_deadline_ns()
            self.machine.apply(commands, self.now_ns)
            self.machine.undo()
            after = dump(self.machine)
            assert after == before, {
                part: (after[part], before[part]) for part in before if after[part] != before[part]
            }
            # An alarm may ring for nothing, but none may be missed.
            if due_ns is not None:
                at_ns = self.machine.next_deadline_ns()
                assert at_ns is not None and at_ns <= max(due_ns, self.now_ns)
        self.shown = self._apply(commands)
        assert_consistent(self.machine)
        return self.shown

    def _apply(self, commands: Sequence[c.DataCommand]) -> list[e.Effect]:
        outcome = self.machine.apply(commands, self.now_ns)
        if outcome.rows:
            assert self.is_durable
            self.store.commit(outcome.rows)
        self.machine.keep()
        shown = list(outcome.effects)
        for effect in tuple(shown):
            if isinstance(effect, e.LoadParcels | e.LoadHeads):
                brought = read(self.store, effect)
                assert isinstance(brought, c.DataCommand)
                shown += self._apply([brought])
        return shown

    def _brought(self, need: e.Need) -> c.DataCommand:
        match need:
            case e.NeedsValue():
                return c.ValueLoaded(need.channel, self.store.read_value(need.channel))
            case e.NeedsIds():
                return c.IdsLoaded(need.channel, self.store.read_ids(need.channel, need.since_ns))
            case e.NeedsTransactions():
                return c.TransactionsLoaded(self.store.read_transactions(need.since_ns))

    def advance(self, ms: float) -> list[e.Effect]:
        """Let time pass; what happens by itself does, at its time."""
        until_ns = self.now_ns + int(ms * MS)
        shown: list[e.Effect] = []
        while (due_ns := self.machine.next_deadline_ns()) is not None and due_ns <= until_ns:
            self.now_ns = max(self.now_ns, due_ns)
            shown += self.run(c.Tick())
        self.now_ns = until_ns
        return shown

    # ---- asking ----

    def caller(self, session: int = 1, principal: str = "uid:7") -> Caller:
        self.calls += 1
        return Caller(principal, session=SessionId(session), call=CallId(self.calls))

    def ask(self, command: c.ClientCommand, body: type[B]) -> B:
        """Return the answer to a call, which must be of a kind."""
        answers = [
            each
            for each in self.run(command)
            if isinstance(each, e.Reply | e.Refuse) and each.call == command.caller.call
        ]
        assert len(answers) == 1, answers
        (answer,) = answers
        assert isinstance(answer, e.Reply), answer
        assert isinstance(answer.body, body)
        return answer.body

    def refused(self, command: c.ClientCommand, error: type[TowpathError]) -> TowpathError:
        """Return why a call was refused."""
        answers = [each for each in self.run(command) if isinstance(each, e.Reply | e.Refuse)]
        assert len(answers) == 1 and isinstance(answers[0], e.Refuse), answers
        assert isinstance(answers[0].error, error), answers
        return answers[0].error

    def publish(self, channel: str, *payloads: bytes, **columns: Sequence[object]) -> e.Published:
        return self.ask(c.Publish(self.caller(), channel, payloads, **columns), e.Published)  # type: ignore[arg-type]

    def consume(self, channel: str, prefetch: int = 100, session: int = 1) -> tuple[int, Caller]:
        """Return a consumer's number and the caller that it consumes by."""
        caller = self.caller(session)
        started = [
            each
            for each in self.run(c.Consume(caller, channel, prefetch))
            if isinstance(each, e.ConsumeStarted)
        ]
        return started[0].body.consumer, caller

    def ack(self, consumer: int, first: int, last: int = 0, session: int = 1) -> e.Settled:
        done = [c.Range(first, last or first)]
        return self.ask(c.Settle(self.caller(session), consumer, done), e.Settled)

    def give_back(
        self, consumer: int, first: int, last: int = 0, *, session: int = 1, **how: object
    ) -> e.Settled:
        returned = c.Returned(c.Range(first, last or first), **how)  # type: ignore[arg-type]
        return self.ask(c.Settle(self.caller(session), consumer, returned=[returned]), e.Settled)

    def delivered(self, shown: Sequence[e.Effect] | None = None) -> list[tuple[int, int, bytes, int]]:
        """Return what was delivered: consumer, delivery, payload, attempt."""
        return [
            (effect.consumer, number, payload, attempt)
            for effect in (self.shown if shown is None else shown)
            if isinstance(effect, e.Deliver)
            for number, (payload, attempt) in enumerate(
                ((payload, piece.attempt) for piece in effect.pieces for payload in piece.payloads),
                effect.first_delivery,
            )
        ]

    def payloads(self, shown: Sequence[e.Effect] | None = None) -> list[bytes]:
        return [payload for _, _, payload, _ in self.delivered(shown)]
