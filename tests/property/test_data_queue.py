"""A queue against a naive model: messages one by one in a list, looked through from the start each time.

Every round is first taken back and must leave no trace (``rig``). Durable queues are also restarted, with
windows so small that most of them is in the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.core.data.rig import MS, Rig
from towpath_broker.core.commands import ChannelOptions, Kind
from towpath_broker.core.data import commands as c
from towpath_broker.core.data import effects as e
from towpath_broker.core.data import window
from towpath_broker.core.ids import CallId, SessionId

ACK_MS = 100
CAPACITY = 40


@dataclass
class Message:
    """Attributes:
    state: ``ready``, ``delayed`` (until due_ns), ``out`` (with consumer, until due_ns), ``gone``.
    stored_attempts: what a restart remembers.
    is_late: when it falls due it is read from the store first, so others may go before it.
    first_due_ns: when it was to be delivered first; what is late is read in this order, as there is room.
    """

    seq: int
    payload: bytes
    priority: int
    state: str = "ready"
    due_ns: int = 0
    consumer: int = 0
    delivery: int = 0
    attempts: int = 0
    stored_attempts: int = 0
    is_late: bool = False
    first_due_ns: int = 0

    def is_read_with(self, other: Message) -> bool:
        """Whether this one is in memory when the other is."""
        mine, its = (self.first_due_ns, self.seq), (other.first_due_ns, other.seq)
        return self.is_late == other.is_late and (not self.is_late or mine <= its)


@dataclass
class Party:
    """A consumer of the model's."""

    session: int
    call: int
    prefetch: int
    next_delivery: int = 1
    is_silent: bool = False  # something of its expired, and it has said nothing since


class QueueMachine(RuleBasedStateMachine):
    """Both, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Message] = []
        self.parties: dict[int, Party] = {}
        self.dead: list[bytes] = []
        self.session = 1
        self.patch: Any = None

    @initialize(is_durable=st.booleans(), is_small=st.booleans(), max_deliveries=st.sampled_from([0, 2]))
    def begin(self, is_durable: bool, is_small: bool, max_deliveries: int) -> None:
        sizes = (20, 2) if is_small else (1 << 20, 1000)
        self.patch = patch.multiple(window, RESIDENT_BYTES_MAX=sizes[0], LOAD_COUNT_MAX=sizes[1])
        self.patch.start()
        options = ChannelOptions(
            kind=Kind.QUEUE,
            durable=is_durable,
            ack_ms=ACK_MS,
            max_deliveries=max_deliveries,
            dead_letter="dead",
            capacity=CAPACITY,
        )
        self.max_deliveries = max_deliveries
        dead = ChannelOptions(kind=Kind.QUEUE, durable=is_durable)
        self.rig = Rig({"q": options, "dead": dead}, is_durable=is_durable)

    def teardown(self) -> None:
        if self.patch is not None:
            self.patch.stop()

    # ---- what both do ----

    @rule(
        count=st.integers(1, 5),
        priority=st.sampled_from([0, 0, 7]),
        delay_ms=st.sampled_from([0, 0, 0, 30, 150]),
    )
    def publish(self, count: int, priority: int, delay_ms: int) -> None:
        if sum(message.state != "gone" for message in self.messages) + count > CAPACITY:
            return
        first = len(self.messages) + 1
        payloads = [b"%d" % seq for seq in range(first, first + count)]
        due_ns = self.rig.now_ns + delay_ms * MS if delay_ms else 0
        for seq, payload in enumerate(payloads, first):
            self.messages.append(Message(seq, payload, priority, "delayed" if delay_ms else "ready", due_ns))
            self.messages[-1].is_late = self.rig.is_durable and delay_ms > 0
            self.messages[-1].first_due_ns = due_ns
        self.rig.run(
            c.Publish(
                self.rig.caller(),
                "q",
                payloads,
                priorities=[priority] * count,
                deliver_at_ns=[due_ns] * count if due_ns else (),
            )
        )
        self.compare(self.rig.shown)

    @rule(prefetch=st.integers(1, 6))
    def consume(self, prefetch: int) -> None:
        if len(self.parties) == 3:
            return
        self.session += 1
        caller = self.rig.caller(self.session)
        shown = self.rig.run(c.Consume(caller, "q", prefetch))
        started = next(each for each in shown if isinstance(each, e.ConsumeStarted))
        self.parties[started.body.consumer] = Party(self.session, caller.call, prefetch)
        self.compare(shown)

    @precondition(lambda self: self.parties)
    @rule(data=st.data(), how=st.sampled_from(["ack", "ack", "nack", "delay", "reject", "extend"]))
    def settle(self, data: st.DataObject, how: str) -> None:
        consumer = data.draw(st.sampled_from(sorted(self.parties)))
        party = self.parties[consumer]
        if party.next_delivery == 1:
            return
        party.is_silent = False
        first = data.draw(st.integers(1, party.next_delivery - 1))
        last = data.draw(st.integers(first, party.next_delivery - 1))
        covered = c.Range(first, last)
        ways: dict[str, dict[str, Any]] = {
            "ack": {"acknowledged": [covered]},
            "nack": {"returned": [c.Returned(covered)]},
            "delay": {"returned": [c.Returned(covered, delay_ms=40)]},
            "reject": {"returned": [c.Returned(covered, is_rejected=True)]},
            "extend": {"extended": [c.Extended(covered, 170)]},
        }
        mine = [
            message
            for message in self.messages
            if message.state == "out" and message.consumer == consumer and first <= message.delivery <= last
        ]
        for message in mine:
            if how == "ack":
                message.state = "gone"
            elif how == "extend":
                message.due_ns = self.rig.now_ns + 170 * MS
            elif how == "reject":
                self.bury(message)
            else:
                self.give_back(message, 40 if how == "delay" else 0)
        told = self.rig.ask(c.Settle(self.rig.caller(party.session), consumer, **ways[how]), e.Settled)
        assert told.settled == len(mine)
        lost = sum(each.last - each.first + 1 for each in told.lost)
        assert lost == last - first + 1 - len(mine)
        self.compare(self.rig.shown)

    @precondition(lambda self: self.parties)
    @rule(data=st.data(), is_orderly=st.booleans())
    def leave(self, data: st.DataObject, is_orderly: bool) -> None:
        consumer = data.draw(st.sampled_from(sorted(self.parties)))
        party = self.parties.pop(consumer)
        for message in self.messages:
            if message.state == "out" and message.consumer == consumer:
                if is_orderly:
                    message.attempts -= 1
                    message.state = "ready"
                    message.stored_attempts = max(message.attempts, message.stored_attempts)
                    self.bury_if_spent(message)
                else:
                    self.give_back(message, 0)
        session = SessionId(party.session)
        self.compare(
            self.rig.run(c.CancelCall(session, CallId(party.call)) if is_orderly else c.EndSession(session))
        )

    @rule(ms=st.sampled_from([1, 20, 60, 110]))
    def advance(self, ms: int) -> None:
        until_ns = self.rig.now_ns + ms * MS
        while True:
            due = [
                message.due_ns
                for message in self.messages
                if message.state in ("out", "delayed") and message.due_ns <= until_ns
            ]
            before_ns = min(due, default=until_ns)
            self.rig.now_ns = max(self.rig.now_ns, before_ns)
            self.fall_due()
            self.compare(self.rig.run(c.Tick()))
            if before_ns == until_ns or not due:
                break
        self.rig.now_ns = until_ns

    @precondition(lambda self: self.rig.is_durable)
    @rule()
    def restart(self) -> None:
        self.parties.clear()
        for message in self.messages:
            if message.state == "out":
                message.state = "ready"
            message.attempts = message.stored_attempts
        self.fall_due()
        self.rig.start()

    # ---- the model ----

    def fall_due(self) -> None:
        for message in self.messages:
            if message.due_ns <= self.rig.now_ns:
                if message.state == "delayed":
                    message.state = "ready"
                elif message.state == "out":
                    self.parties[message.consumer].is_silent = True
                    self.give_back(message, 0)

    def give_back(self, message: Message, delay_ms: int) -> None:
        message.stored_attempts = message.attempts
        message.state = "delayed" if delay_ms else "ready"
        message.due_ns = self.rig.now_ns + delay_ms * MS
        self.bury_if_spent(message)

    def bury_if_spent(self, message: Message) -> None:
        if self.max_deliveries and message.attempts >= self.max_deliveries:
            self.bury(message)

    def bury(self, message: Message) -> None:
        message.state = "gone"
        self.dead.append(message.payload)

    def compare(self, shown: list[e.Effect]) -> None:
        """What was delivered is what was ready, in order; and whatever could be delivered was."""
        by_payload = {message.payload: message for message in self.messages}
        for consumer, delivery, payload, attempt in self.rig.delivered(shown):
            message, party = by_payload[payload], self.parties[consumer]
            assert not party.is_silent
            ready = [each for each in self.messages if each.state == "ready" and each.is_read_with(message)]
            assert message is min(ready, key=lambda each: (-each.priority, each.seq)), (message, ready)
            message.attempts += 1
            assert attempt == message.attempts
            assert delivery == party.next_delivery
            party.next_delivery += 1
            message.state, message.consumer, message.delivery = "out", consumer, delivery
            message.due_ns = self.rig.now_ns + ACK_MS * MS
        if any(message.state == "ready" for message in self.messages):
            for consumer, party in self.parties.items():
                assert party.is_silent or self.unsettled(consumer) == party.prefetch
        for consumer, party in self.parties.items():
            assert self.unsettled(consumer) <= party.prefetch

    def unsettled(self, consumer: int) -> int:
        return sum(message.state == "out" and message.consumer == consumer for message in self.messages)

    @invariant()
    def both_hold_the_same(self) -> None:
        if not hasattr(self, "rig"):
            return
        held = self.rig.machine.channel_statistics("q")
        assert held is not None
        assert held.messages == sum(message.state != "gone" for message in self.messages)
        assert held.unsettled == sum(message.state == "out" for message in self.messages)
        dead = self.rig.machine.channel_statistics("dead")
        assert dead is not None and dead.messages == len(self.dead)


def test_a_queue_is_as_the_naive_model_says() -> None:
    run_state_machine_as_test(
        QueueMachine, settings=settings(max_examples=120, stateful_step_count=40, deadline=None)
    )
