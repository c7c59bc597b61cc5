"""States, durable topics, transactions against a naive model: each command on a copy that is kept or not.

Every round is first taken back and must leave no trace (``rig``).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.core.data.rig import Rig
from towpath.errors import DeliveryLost, InvalidArgument, QueueFull, TowpathError, VersionConflict
from towpath_broker.core.commands import ChannelOptions, Kind, Overflow
from towpath_broker.core.data import commands as c
from towpath_broker.core.data import effects as e
from towpath_broker.core.data.rows import StoredValue
from towpath_broker.store.contents import unpack

CAPACITY = 6
CHANNELS = {
    "jobs": ChannelOptions(kind=Kind.QUEUE, durable=True),
    "out": ChannelOptions(kind=Kind.QUEUE, durable=True, capacity=CAPACITY, overflow=Overflow.REJECT),
    "a": ChannelOptions(kind=Kind.STATE, durable=True),
    "b": ChannelOptions(kind=Kind.STATE, durable=True),
    "log": ChannelOptions(kind=Kind.TOPIC, durable=True, retain_bytes=0),
}
states = st.sampled_from(["a", "b"])
part = st.one_of(
    st.tuples(st.just("set"), states, st.sampled_from([None, 0, 1, 2, -1])),
    st.tuples(st.just("set"), states, st.just(-1)),
    st.tuples(st.just("delete"), states, st.sampled_from([None, -1, 3])),
    st.tuples(st.just("publish"), st.sampled_from(["out", "log"]), st.integers(1, 3)),
    st.tuples(st.just("ack"), st.just("jobs"), st.integers(0, 3)),
    st.tuples(st.just("place"), st.just("log"), st.integers(1, 3)),
)
"""What to do, with what, and how: a version to expect (-1: the one that it has), a count, a delivery."""


@dataclass
class World:
    """The model's whole state.

    Attributes:
        values: version and payload of each state; None: it is not set.
        held: deliveries of jobs that are out.
    """

    values: dict[str, tuple[int, bytes | None]] = field(
        default_factory=lambda: {"a": (0, None), "b": (0, None)}
    )
    out: list[bytes] = field(default_factory=list)
    log: list[bytes] = field(default_factory=list)
    held: set[int] = field(default_factory=set)
    jobs: int = 0
    places: dict[str, int] = field(default_factory=dict)

    def change(self, state: str, payload: bytes | None, expected: int | None) -> int:
        version, _ = self.values[state]
        if expected is not None and expected != version:
            raise VersionConflict("")
        self.values[state] = (version + 1, payload)
        return version + 1


class TransactionMachine(RuleBasedStateMachine):
    """Both, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(CHANNELS, is_durable=True)
        self.world = World()
        self.done: dict[str, e.Committed] = {}
        self.serial = 0
        self.consumer, _ = self.rig.consume("jobs")

    def payload(self) -> bytes:
        self.serial += 1
        return b"%d" % self.serial

    @rule()
    def add_job(self) -> None:
        self.rig.publish("jobs", self.payload())
        self.world.jobs += 1
        self.world.held.update(delivery for _, delivery, _, _ in self.rig.delivered())

    @rule(parts=st.lists(part, min_size=1, max_size=5), repeats=st.booleans())
    def commit(self, parts: list[tuple[str, str, Any]], repeats: bool) -> None:
        command, made, error, world = self.expected(parts)
        self.serial += 1
        name = f"t{self.serial}"
        command = {**command, "transaction": name}
        if error is not None:
            self.rig.refused(c.CommitTransaction(self.rig.caller(), **command), type(error))
            return
        self.world = world
        committed = self.rig.ask(c.CommitTransaction(self.rig.caller(), **command), e.Committed)
        assert committed == made
        if repeats:
            again = self.rig.ask(c.CommitTransaction(self.rig.caller(), **command), e.Committed)
            assert (again.is_repeated, again.values) == (True, made.values)
        self.done[name] = made

    def expected(
        self, parts: list[tuple[str, str, Any]]
    ) -> tuple[dict[str, Any], e.Committed, TowpathError | None, World]:
        """Return the command, what it must be answered, or refused with, and what it leads to."""
        caller = self.rig.caller()
        world = deepcopy(self.world)
        command: dict[str, list[Any]] = {
            name: [] for name in ("publishes", "settlements", "values", "deletions", "places")
        }
        for what, name, how in parts:
            match what:
                case "set" | "delete":
                    expected = self.world.values[name][0] if how == -1 else how
                    if what == "set":
                        command["values"].append(c.SetValue(caller, name, self.payload(), b"", expected))
                    else:
                        command["deletions"].append(c.DeleteValue(caller, name, expected))
                case "publish":
                    payloads = [self.payload() for _ in range(how)]
                    command["publishes"].append(c.Publish(caller, name, payloads))
                case "ack":
                    delivery = (sorted(world.held) or [1])[0] + how
                    if delivery <= world.jobs:
                        done = [c.Range(delivery, delivery)]
                        command["settlements"].append(c.Settle(caller, self.consumer, done))
                case "place":
                    command["places"].append(c.SavePlace(caller, "log", "reader", how))
        if not any(command.values()):
            command["values"].append(c.SetValue(caller, "a", b"x"))
        try:
            return command, self.carry_out(world, command), None, world
        except TowpathError as error:
            return command, e.Committed(), error, self.world

    def carry_out(self, world: World, command: dict[str, list[Any]]) -> e.Committed:
        published = []
        for settlement in command["settlements"]:
            delivery = settlement.acknowledged[0].first
            if delivery not in world.held:
                raise DeliveryLost("")
            world.held.remove(delivery)
        for publish in command["publishes"]:
            target = world.out if publish.channel == "out" else world.log
            if publish.channel == "out" and len(target) + len(publish.payloads) > CAPACITY:
                raise QueueFull("")
            published.append(e.Published(publish.channel, len(target) + 1, len(publish.payloads)))
            target.extend(publish.payloads)
        values = [world.change(each.channel, each.payload, each.if_version) for each in command["values"]]
        deletions = [world.change(each.channel, None, each.if_version) for each in command["deletions"]]
        for place in command["places"]:
            if not 1 <= place.seq <= len(world.log) + 1:
                raise InvalidArgument("")
            world.places[place.name] = place.seq
        return e.Committed(tuple(published), tuple(values), tuple(deletions))

    @precondition(lambda self: self.done)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.done)))
        command = c.CommitTransaction(
            self.rig.caller(), name, values=[c.SetValue(self.rig.caller(), "a", b"twice")]
        )
        told = self.rig.ask(command, e.Committed)
        made = self.done[name]
        assert (told.is_repeated, told.published, told.values) == (True, made.published, made.values)

    @rule()
    def restart(self) -> None:
        self.rig.start()
        self.consumer, _ = self.rig.consume("jobs")
        left = len(self.world.held)
        assert len(self.rig.delivered()) == left
        self.world.held = set(range(1, left + 1))
        self.world.jobs = left

    @invariant()
    def both_hold_the_same(self) -> None:
        for state, (version, payload) in self.world.values.items():
            told = self.rig.ask(c.GetValue(self.rig.caller(), state), e.ValueTold).value
            assert (told.version, told.is_set, told.payload) == (version, payload is not None, payload or b"")
            assert isinstance(told, StoredValue)
        out = self.rig.machine.channel_statistics("out")
        jobs = self.rig.machine.channel_statistics("jobs")
        assert out is not None and out.messages == len(self.world.out)
        assert jobs is not None and jobs.messages == jobs.unsettled == len(self.world.held)
        stored = self.rig.store.read_parcels("log", 1, 1 << 20)
        log = [payload for each in stored for payload in unpack(each.data, each.first_seq, "log").payloads]
        assert log == self.world.log
        places = self.rig.ask(c.ListPlaces(self.rig.caller(), "log"), e.PlacesListed).places
        assert {name: seq for name, seq, _ in places} == self.world.places


def test_transactions_are_as_the_naive_model_says() -> None:
    run_state_machine_as_test(
        TransactionMachine, settings=settings(max_examples=80, stateful_step_count=25, deadline=None)
    )
