"""The machine as a whole: time, runs, snapshots, verdicts, and that every command has a handler."""

from __future__ import annotations

import inspect

import pytest

from tests.core.harness import Core, reply
from towpath.errors import InvalidConfiguration
from towpath_broker.core import commands as c
from towpath_broker.core import effects as e
from towpath_broker.core.commands import Caller, ChannelOptions, Command, Direction, StatedOptions
from towpath_broker.core.ids import BindingId, ConnectionId, first_id
from towpath_broker.core.limits import Limits
from towpath_broker.core.machine import Machine, Verdict

ADMIN = Caller("uid:0", is_admin=True)


def test_every_command_has_a_handler() -> None:
    every = {
        value
        for value in vars(c).values()
        if inspect.isclass(value) and issubclass(value, Command) and value is not Command
    }
    assert set(Machine()._handlers) == every


def test_time_never_goes_back() -> None:
    core = Core()
    client = core.open()
    core.now_ns = 5_000_000
    client.declare("a")
    core.now_ns = 17
    channel = reply(client.declare("b"), e.ChannelDeclared).channel
    assert channel.declared_at_ns == core.machine.now_ns == 5_000_001


def test_same_commands_and_times_same_effects() -> None:
    def run() -> list[str]:
        core = Core()
        admin, client = core.admin(), core.open()
        effects = [*admin.declare("a"), *admin.watch(), *client.publish("a")[1], *client.subscribe("a")[1]]
        effects += [*admin.bind("a", "fifo:/x"), *client.undeclare("a"), *admin.undeclare("a", force=True)]
        return [repr(effect) for effect in [*effects, *client.close()]]

    assert run() == run()


def test_start_counts_runs_and_begins_the_ids_of_each() -> None:
    machine = Machine()
    for incarnation in (1, 2, 3):
        assert machine.apply(machine.start_command(), 1) == []
        assert machine.incarnation == incarnation
        (opened,) = machine.apply(c.OpenSession(ConnectionId(1), "uid:1", False, 1, ""), 1)
        assert isinstance(opened, e.SessionOpened)
        assert (opened.incarnation, opened.session) == (incarnation, first_id(incarnation))
        machine.apply(c.CloseSession(opened.session), 1)


def test_a_run_begins_with_nobody_connected() -> None:
    core = Core()
    core.open()
    with pytest.raises(AssertionError, match="nobody connected"):
        core.apply(core.machine.start_command())


def test_a_run_begins_with_a_table_of_zeros() -> None:
    core = Core()
    client = core.open()
    client.declare("a"), client.subscribe("a")
    client.close()
    core.apply(core.machine.start_command())
    client = core.open()
    assert reply(client.publish("a")[1], e.SourceAttached) == e.SourceAttached(0, 0)


def test_limits_and_defaults_come_from_the_start() -> None:
    old = Machine(Limits(channels_max=1), ChannelOptions(ring_bytes=4096))
    old.apply(old.start_command(), 1)
    new = Machine(Limits(channels_max=2), ChannelOptions(ring_bytes=8192))
    new.restore(old.snapshot())
    new.apply(c.DeclareChannel(ADMIN, "a"), 2)
    new.apply(c.DeclareChannel(ADMIN, "refused"), 2)
    new.apply(new.start_command(), 3)
    new.apply(c.DeclareChannel(ADMIN, "b"), 4)
    channels = new.durable_state().channels
    assert [(channel.name, channel.options.ring_bytes) for channel in channels] == [("a", 4096), ("b", 8192)]


def test_snapshot_holds_what_is_durable_and_nothing_else() -> None:
    core = Core()
    admin = core.admin()
    admin.declare("a", ring_bytes=8192), admin.declare("b")
    admin.bind("a", "fifo:/x", Direction.OUT, {"mode": "640"}), admin.bind("b", "pipe:true")
    admin.unbind(2)
    admin.publish("a"), admin.subscribe("a"), admin.watch()
    restored = Machine()
    restored.restore(core.machine.snapshot())
    assert restored.durable_state() == core.machine.durable_state()
    restored.assert_consistent()
    statistics = restored.statistics()
    assert (statistics.channels, statistics.bindings) == (2, 1)
    assert (statistics.sessions, statistics.sources, statistics.readers, statistics.watches) == (0, 0, 0, 0)
    restored.apply(restored.start_command(), core.now_ns)
    restored.apply(c.CreateBinding(ADMIN, "a", "fifo:/y", Direction.IN), core.now_ns)
    assert list(restored._registry.bindings) == [1, 3]


@pytest.mark.parametrize(
    ("snapshot", "text"),
    [
        (b"", "damaged"),
        (b"\xff", "damaged"),
        (b"[]", "damaged"),
        (b"{}", "damaged"),
        (b'{"v":1}', "damaged"),
        (b'{"v":2}', "damaged"),
        (b'{"v":4}', "machine version 4; this one reads 1 to 3"),
    ],
)
def test_snapshot_that_cannot_be_read(snapshot: bytes, text: str) -> None:
    with pytest.raises(InvalidConfiguration, match=text):
        Machine().restore(snapshot)


def test_statistics_count() -> None:
    core = Core()
    before = core.machine.statistics()
    client = core.open()
    client.declare("a"), client.declare("a!")
    client.publish("a"), client.subscribe("a"), client.watch()
    after = core.machine.statistics()
    assert before.commands == 0
    assert (after.commands, after.refused, after.incarnation) == (6, 1, 1)
    assert (after.sessions, after.channels, after.sources, after.readers, after.watches) == (1, 1, 1, 1, 1)


def declare(name: str, *, replace: bool = False, **options: int) -> c.DeclareChannel:
    return c.DeclareChannel(ADMIN, name, StatedOptions(ring_bytes=options.get("ring_bytes")), replace)


def bind(url: str, **options: str) -> c.CreateBinding:
    return c.CreateBinding(ADMIN, "a", url, Direction.IN, options)


@pytest.mark.parametrize(
    ("command", "verdict"),
    [
        (c.Start(), Verdict.CHANGES),
        (declare("new"), Verdict.CHANGES),
        (declare("a"), Verdict.NOT_NOW),
        (declare("a", ring_bytes=4096), Verdict.NOT_NOW),
        (declare("a", ring_bytes=4096, replace=True), Verdict.CHANGES),
        (declare("used", ring_bytes=4096, replace=True), Verdict.NOT_NOW),
        (declare("a!"), Verdict.NEVER),
        (declare("new", ring_bytes=5), Verdict.NEVER),
        (c.UndeclareChannel(ADMIN, "a"), Verdict.NOT_NOW),
        (c.UndeclareChannel(ADMIN, "a", force=True), Verdict.CHANGES),
        (c.UndeclareChannel(ADMIN, "used"), Verdict.NOT_NOW),
        (c.UndeclareChannel(Caller("uid:5"), "idle"), Verdict.NOT_NOW),
        (c.UndeclareChannel(ADMIN, "idle"), Verdict.CHANGES),
        (c.UndeclareChannel(ADMIN, "none"), Verdict.NOT_NOW),
        (c.UndeclareChannel(ADMIN, "no ne"), Verdict.NEVER),
        (bind("fifo:/new"), Verdict.CHANGES),
        (bind("fifo:/x"), Verdict.NOT_NOW),
        (bind("fifo:/x", mode="640"), Verdict.NOT_NOW),
        (bind("fifo:x"), Verdict.NEVER),
        (c.CreateBinding(Caller("uid:5"), "a", "fifo:/z", Direction.IN), Verdict.NEVER),
        (c.DeleteBinding(ADMIN, BindingId(1)), Verdict.CHANGES),
        (c.DeleteBinding(ADMIN, BindingId(2)), Verdict.NOT_NOW),
        (c.DeleteBinding(ADMIN), Verdict.NEVER),
        (c.DeleteBinding(Caller("uid:5"), BindingId(1)), Verdict.NEVER),
    ],
)
def test_verdict_foretells_what_apply_does(command: Command, verdict: Verdict) -> None:
    core = Core()
    admin = core.admin()
    admin.declare("a"), admin.declare("used"), admin.declare("idle")
    admin.bind("a", "fifo:/x")
    admin.subscribe("used")
    before = core.machine.durable_state()
    assert core.machine.verdict(command) is verdict
    assert core.machine.durable_state() == before
    if isinstance(command, c.Start):
        return
    core.machine.apply(command, core.now_ns)
    assert (core.machine.durable_state() != before) is (verdict is Verdict.CHANGES)
