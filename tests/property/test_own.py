"""Channels in total order against a naive model: who was told of whom, at every step and in every run.

Ordinary publishers must know the core's reader and nobody else, ordinary subscribers the core's source and no
other; the core's own ends must know exactly who is there, at once, each at the slot that the other was told.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.core.harness import Client, Core
from towpath_broker.core import commands as c
from towpath_broker.core import effects as e
from towpath_broker.core.commands import Caller, Order, OwnFound
from towpath_broker.core.effects import Effect
from towpath_broker.core.ids import SessionId, SourceId
from towpath_broker.core.machine import Machine

NAMES = ("t", "u")
pick = st.integers(0, 1 << 16)


class TotalOrder(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.core = Core()
        self.forget()
        owner = self.core.admin()
        for name in NAMES:
            owner.declare(name, order=Order.TOTAL)
        self.owner = owner

    def forget(self) -> None:
        """Nobody is connected."""
        self.clients: list[Client] = []
        self.publishers: dict[int, tuple[Client, str]] = {}
        self.subscribers: dict[int, tuple[Client, str]] = {}
        self.gone: dict[int, str] = {}  # publishers that the core still has a slot for
        self.own: dict[str, e.OpenOwnSource] = {}
        self.intake: dict[str, e.OpenOwnReader] = {}
        self.own_session = SessionId(0)
        self.heard: dict[int, dict[int, int]] = {}  # by subscriber or intake: its live sources, with slots
        self.told: dict[int, dict[int, int]] = {}  # by source: its readers, with slots

    # ---- learning ------------------------------------------------------------------------------------------

    def learn(self, effects: list[Effect]) -> list[Effect]:
        for effect in effects:
            assert not isinstance(effect, e.Refuse), effect
            match effect:
                case e.OpenOwnSource():
                    assert effect.channel not in self.own
                    self.own[effect.channel] = effect
                    self.own_session = effect.session
                case e.OpenOwnReader():
                    assert effect.channel in self.own and effect.channel not in self.intake
                    self.intake[effect.channel] = effect
                case e.Notice():
                    self.learn_notice(effect)
        return effects

    def learn_notice(self, notice: e.Notice) -> None:
        body = notice.body
        match body:
            case e.SourceAdded():
                self.heard.setdefault(body.reader, {})[body.source] = body.slot
            case e.SourceGone():
                del self.heard[body.reader][body.source]
            case e.ReaderAdded():
                self.told.setdefault(body.source, {})[body.reader] = body.slot
            case e.ReaderGone():
                del self.told[body.source][body.reader]
            case _:
                raise AssertionError(body)

    def a_client(self, number: int) -> Client:
        while len(self.clients) < 3:
            self.clients.append(self.core.open())
        return self.clients[number % 3]

    # ---- what happens --------------------------------------------------------------------------------------

    @rule(number=pick, name=st.sampled_from(NAMES))
    def publish(self, number: int, name: str) -> None:
        client = self.a_client(number)
        source, effects = client.publish(name)
        self.learn(effects)
        self.publishers[source] = client, name

    @rule(number=pick, name=st.sampled_from((*NAMES, "*", ">")))
    def subscribe(self, number: int, name: str) -> None:
        client = self.a_client(number)
        reader, effects = client.subscribe(name)
        self.heard.setdefault(reader, {})
        self.learn(effects)
        self.subscribers[reader] = client, name

    @rule(number=pick, name=st.sampled_from(NAMES))
    def publish_by_socket(self, number: int, name: str) -> None:
        client = self.a_client(number)
        effects = self.learn(self.core.apply(c.Publish(client.caller(), name, (b"x",))))
        assert isinstance(effects[-1], e.WriteMessages)
        assert effects[-1].source == self.own[name].source

    @precondition(lambda self: self.publishers)
    @rule(number=pick)
    def unpublish(self, number: int) -> None:
        source = list(self.publishers)[number % len(self.publishers)]
        client, name = self.publishers.pop(source)
        self.learn(client.unpublish(source))
        self.gone[source] = name

    @precondition(lambda self: self.subscribers)
    @rule(number=pick)
    def unsubscribe(self, number: int) -> None:
        reader = list(self.subscribers)[number % len(self.subscribers)]
        client, _ = self.subscribers.pop(reader)
        self.learn(client.unsubscribe(reader))

    @precondition(lambda self: self.clients)
    @rule(number=pick)
    def close(self, number: int) -> None:
        client = self.clients.pop(number % len(self.clients))
        self.gone.update({s: name for s, (owner, name) in self.publishers.items() if owner is client})
        self.publishers = {s: each for s, each in self.publishers.items() if each[0] is not client}
        self.subscribers = {r: each for r, each in self.subscribers.items() if each[0] is not client}
        self.learn(client.close())

    @precondition(lambda self: self.gone)
    @rule(number=pick)
    def release(self, number: int) -> None:
        """The shell has read a publisher that is gone to the end."""
        source = list(self.gone)[number % len(self.gone)]
        name = self.gone.pop(source)
        caller = Caller("core", session=self.own_session)
        assert self.core.apply(c.ReleaseSlot(caller, self.intake[name].reader, SourceId(source))) == []

    @rule(number=pick)
    def run_again(self, number: int) -> None:
        """The core is killed; the next one finds what was kept, and some come back."""
        found = [
            OwnFound(
                name,
                own.source,
                own.options.ring_bytes,
                self.intake[name].reader,
                {SourceId(s): slot for s, slot in self.heard.get(self.intake[name].reader, {}).items()},
            )
            for name, own in self.own.items()
            if name in self.intake
        ]
        publishers, subscribers, heard = self.publishers, self.subscribers, self.heard
        machine = Machine()
        machine.restore(self.core.machine.snapshot())
        self.core.machine = machine
        self.core.apply(machine.start_command())
        self.forget()
        self.learn(self.core.apply(c.RecoverOwn(found)))
        assert {name: own.source for name, own in self.own.items()} == {f.channel: f.source for f in found}
        slots = {source: slot for f in found for source, slot in f.held.items()}
        for source, (_, name) in publishers.items():
            if (source + number) % 3:
                client = self.a_client(source)
                self.learn(client.publish(name, source, resumed=True)[1])
                self.publishers[source] = client, name
                if source in slots:
                    assert self.heard[self.intake[name].reader][source] == slots[SourceId(source)]
            elif name in self.intake:
                self.gone[source] = name
        for reader, (_, name) in subscribers.items():
            if (reader + number) % 4:
                client = self.a_client(reader)
                self.heard.setdefault(reader, {})
                held = heard.get(reader, {})
                self.learn(client.subscribe(name, reader, resumed=True, held=held)[1])
                self.subscribers[reader] = client, name
                assert all(
                    self.heard[reader][source] == slot for source, slot in held.items() if source in slots
                )

    # ---- what must be so -----------------------------------------------------------------------------------

    @invariant()
    def publishers_and_the_core_know_each_other(self) -> None:
        for source, (_, name) in self.publishers.items():
            intake = self.intake[name].reader
            assert list(self.told[source]) == [intake]
            assert self.heard[intake][source] == self.told[source][intake]
        for name, opened in self.intake.items():
            live = {source for source, (_, on) in self.publishers.items() if on == name}
            assert set(self.heard.get(opened.reader, {})) == live

    @invariant()
    def subscribers_and_the_core_know_each_other(self) -> None:
        for reader, (_, name) in self.subscribers.items():
            wanted = {own.source for channel, own in self.own.items() if name in (channel, "*", ">")}
            assert set(self.heard[reader]) == wanted
            assert all(self.told[source][reader] == self.heard[reader][source] for source in wanted)
        for name, own in self.own.items():
            there = {reader for reader, (_, to) in self.subscribers.items() if to in (name, "*", ">")}
            assert set(self.told.get(own.source, {})) == there

    @invariant()
    def nobody_counts_the_core(self) -> None:
        for name in NAMES:
            presence = self.core.machine._topics.presence(name)
            assert presence.publishers == sum(on == name for _, on in self.publishers.values())
            assert presence.subscribers == sum(to == name for _, to in self.subscribers.values())
        self.core.machine.assert_consistent()


TotalOrder.TestCase.settings = settings(max_examples=60, deadline=None, stateful_step_count=30)
TestTotalOrder = TotalOrder.TestCase
