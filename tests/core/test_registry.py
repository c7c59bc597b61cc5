"""Definitions: declaring, undeclaring, binding, unbinding; and every way to be refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.core.harness import RING_BYTES, Core, fingerprint, notices, refusal, reply
from towpath.errors import (
    BindingConflict,
    BindingNotFound,
    ChannelConflict,
    ChannelInUse,
    ChannelNotFound,
    ChannelUndeclared,
    InvalidArgument,
    InvalidName,
    LimitExceeded,
    PermissionDenied,
    QuotaExceeded,
    TowpathError,
)
from towpath_broker.core import commands as c
from towpath_broker.core import effects as e
from towpath_broker.core.codec import encode_state
from towpath_broker.core.commands import (
    Caller,
    ChannelOptions,
    Direction,
    Kind,
    Order,
    Overflow,
    StatedOptions,
)
from towpath_broker.core.ids import BindingId
from towpath_broker.core.limits import CELLS_MAX, Limits
from towpath_broker.core.machine import Machine

# ---- channels ----------------------------------------------------------------------------------------------


def test_declare_fills_in_the_defaults() -> None:
    core = Core(defaults=ChannelOptions(ring_bytes=8192))
    client = core.open("uid:7")
    body = reply(client.declare("plant.line1.temp"), e.ChannelDeclared)
    assert body == e.ChannelDeclared(
        e.ChannelView("plant.line1.temp", ChannelOptions(ring_bytes=8192), "uid:7", 0, 0, 0, core.now_ns),
        True,
    )


def test_redeclare_compares_what_came_with_version_2() -> None:
    core = Core()
    client = core.open()
    first = reply(client.declare("a", history=10, stall_ms_max=0), e.ChannelDeclared).channel
    assert (first.options.order, first.options.history, first.options.stall_ms_max) == (Order.SOURCE, 10, 0)
    assert reply(client.declare("a", order=Order.SOURCE, history=10), e.ChannelDeclared).channel == first
    refusal(client.declare("a", history=11), ChannelConflict, "history is 10, asked for 11")
    refusal(client.declare("a", stall_ms_max=5), ChannelConflict, "stall_ms_max is 0, asked for 5")


def test_redeclare_compares_only_what_is_stated() -> None:
    client = Core().open()
    client.declare("a", ring_bytes=8192)
    for options in ({}, {"ring_bytes": 8192}, {"kind": Kind.TOPIC, "durable": False}):
        body = reply(client.declare("a", **options), e.ChannelDeclared)
        assert not body.created and body.channel.options.ring_bytes == 8192


def test_conflict_names_each_option_with_both_values() -> None:
    core = Core()
    client = core.open()
    client.declare("a", ring_bytes=8192)
    before = fingerprint(core.machine)
    refusal(client.declare("a", ring_bytes=4096), ChannelConflict, "ring_bytes is 8192, asked for 4096")
    assert fingerprint(core.machine) == before


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("", {}, InvalidName, "empty"),
        ("a..b", {}, InvalidName, "a..b"),
        ("_towpath.x", {}, InvalidName, "kept for Towpath"),
        ("a" * 256, {}, InvalidName, "256 characters"),
        ("a", {"ring_bytes": 4095}, InvalidArgument, "ring_bytes cannot be 4095"),
        ("a", {"ring_bytes": 5000}, InvalidArgument, "a power of two"),
        ("a", {"ring_bytes": 2048}, InvalidArgument, "from 4096 to 1073741824"),
        ("a", {"ring_bytes": 1 << 31}, InvalidArgument, "from 4096 to 1073741824"),
        ("a", {"ring_bytes": 0}, InvalidArgument, "ring_bytes"),
        ("a", {"ring_bytes": 1 << 20}, LimitExceeded, "ring_bytes_max is 524288"),
        ("a", {"kind": Kind.QUEUE, "capacity": 0}, InvalidArgument, "capacity is 1 to 10000000"),
        ("a", {"kind": Kind.QUEUE, "ack_ms": 9}, InvalidArgument, "ack_ms is 10 to 86400000"),
        ("a", {"kind": Kind.QUEUE, "dead_letter": "a"}, InvalidArgument, "its own dead-letter channel"),
        ("a", {"kind": Kind.QUEUE, "dead_letter": "a..b"}, InvalidName, "a..b"),
        ("a", {"kind": Kind.QUEUE, "overflow": Overflow.DROP}, InvalidArgument, "a queue blocks, or rejects"),
        ("a", {"overflow": Overflow.REJECT}, InvalidArgument, "not for a topic"),
        ("a", {"capacity": 5}, InvalidArgument, "it is for a queue"),
        ("a", {"kind": Kind.STATE, "retain_ms": 5}, InvalidArgument, "it is for a topic"),
        ("a", {"kind": Kind.STATE, "dedupe_ms": 5}, InvalidArgument, "it is for a queue or topic"),
        ("a", {"kind": Kind.SERVICE, "durable": True}, InvalidArgument, "a service is not durable"),
        ("a", {"durable": True, "order": Order.SOURCE}, InvalidArgument, "order may be total"),
        ("a", {"history": 65_537}, InvalidArgument, "history is 0 to 65536"),
        ("a", {"history": -1}, InvalidArgument, "history cannot be -1"),
        ("a", {"stall_ms_max": 86_400_001}, InvalidArgument, "stall_ms_max is 0 to 86400000"),
        ("a.*", {}, InvalidName, "patterns are for subscribing"),
        (">", {}, InvalidName, "is a pattern"),
        ("a", {"replace": True}, PermissionDenied, "may not replace"),
    ],
)
def test_declare_is_refused(name: str, options: dict[str, Any], error: type[TowpathError], text: str) -> None:
    core = Core(Limits(ring_bytes_max=1 << 19), ChannelOptions(ring_bytes=4096))
    client = core.open()
    before = fingerprint(core.machine)
    refusal(client.declare(name, **options), error, text)
    assert fingerprint(core.machine) == before


@pytest.mark.parametrize("kind", [Kind.STATE, Kind.SERVICE])
def test_dead_letters_do_not_go_to_what_takes_none(kind: Kind) -> None:
    core = Core()
    client = core.open()
    client.declare("a", kind=kind)
    before = fingerprint(core.machine)
    refusal(client.declare("q", kind=Kind.QUEUE, dead_letter="a"), InvalidArgument, "takes no letters")
    assert fingerprint(core.machine) == before
    # What does not exist yet may become a queue or a topic.
    reply(client.declare("q", kind=Kind.QUEUE, dead_letter="later"), e.ChannelDeclared)
    reply(client.declare("later", kind=kind), e.ChannelDeclared)
    reply(client.declare("q", kind=Kind.QUEUE, dead_letter="later"), e.ChannelDeclared)


def test_channels_are_counted_against_their_owner() -> None:
    core = Core(Limits(channels_per_principal_max=2))
    client = core.open("uid:1")
    client.declare("a"), client.declare("b")
    refusal(client.declare("c"), QuotaExceeded, "channels_per_principal_max is 2")
    reply(client.declare("a"), e.ChannelDeclared)
    reply(core.open("uid:2").declare("c"), e.ChannelDeclared)
    client.undeclare("a")
    reply(client.declare("d"), e.ChannelDeclared)


def test_channels_in_all() -> None:
    core = Core(Limits(channels_max=1))
    core.open("uid:1").declare("a")
    refusal(core.open("uid:2").declare("b"), LimitExceeded, "channels_max is 1")


def test_there_are_never_more_channels_than_cells() -> None:
    """A restored machine stands for one in which so many were declared, which would take long."""
    core = Core(Limits(channels_per_principal_max=CELLS_MAX))
    client = core.open()
    reply(client.declare("first"), e.ChannelDeclared)
    [first] = core.machine.durable_state().channels
    others = (replace(first, name=f"c{number}") for number in range(CELLS_MAX - 2))
    full = replace(core.machine.durable_state(), channels=(first, *others))
    core = Core(Limits(channels_per_principal_max=CELLS_MAX))
    core.machine = Machine(full.limits, full.defaults)
    core.machine.restore(encode_state(full))
    core.apply(core.machine.start_command())
    client = core.open()
    reply(client.declare("last"), e.ChannelDeclared)
    refusal(
        client.declare("more"), LimitExceeded, f"there are {CELLS_MAX} channels: channels_max is {CELLS_MAX}"
    )
    reply(client.undeclare("last"), e.Done)
    reply(client.declare("more"), e.ChannelDeclared)  # its cell is free again


def test_defaults_that_cannot_be_are_refused_at_once() -> None:
    with pytest.raises(InvalidArgument):
        Machine(defaults=ChannelOptions(capacity=0))
    with pytest.raises(InvalidArgument):
        Machine(defaults=ChannelOptions(ring_bytes=5000))
    with pytest.raises(LimitExceeded):
        Machine(Limits(ring_bytes_max=4096), ChannelOptions(ring_bytes=8192))


def test_configuration_replaces_options_while_nobody_uses_the_channel() -> None:
    core = Core()
    core.open("uid:7").declare("a", ring_bytes=8192)
    config = Caller("config", is_admin=True)
    replace = c.DeclareChannel(config, "a", StatedOptions(ring_bytes=4096), replace=True)
    assert core.apply(replace) == []
    client = core.open()
    view = reply(core.apply(c.GetChannel(client.caller(), "a")), e.ChannelFound).channel
    assert (view.options.ring_bytes, view.owner) == (4096, "uid:7")
    assert core.apply(replace) == []

    client.subscribe("a")
    admin = core.admin()
    differs = c.DeclareChannel(config, "a", StatedOptions(ring_bytes=8192), replace=True)
    before = fingerprint(core.machine)
    (warned,) = core.apply(differs)
    assert isinstance(warned, e.Warn) and "while it is used: ring_bytes is 4096" in warned.message
    refusal(admin.declare("a", ring_bytes=8192, replace=True), ChannelConflict, "while it is used")
    assert core.apply(replace) == []
    assert fingerprint(core.machine) == before


def test_get_and_list() -> None:
    core = Core()
    client = core.open()
    for name in ("b.x", "a", "b.y"):
        client.declare(name)
    client.publish("a"), client.subscribe("a"), client.subscribe("a")
    core.admin().bind("a", "fifo:/x")
    view = reply(core.apply(c.GetChannel(client.caller(), "a")), e.ChannelFound).channel
    assert (view.publishers, view.subscribers, view.bindings) == (1, 2, 1)

    def listed(prefix: str) -> list[str]:
        body = reply(core.apply(c.ListChannels(client.caller(), prefix)), e.ChannelsListed)
        return [channel.name for channel in body.channels]

    assert listed("") == ["a", "b.x", "b.y"]
    assert listed("b.") == ["b.x", "b.y"]
    assert listed("c") == []
    refusal(core.apply(c.GetChannel(client.caller(), "c")), ChannelNotFound, "towpath declare c")
    refusal(core.apply(c.GetChannel(client.caller(), "c..d")), InvalidName)


# ---- undeclaring -------------------------------------------------------------------------------------------


def test_undeclare() -> None:
    core = Core()
    client = core.open()
    client.declare("a")
    reply(client.undeclare("a"), e.Done)
    refusal(client.undeclare("a"), ChannelNotFound)
    refusal(client.undeclare("a!"), InvalidName)
    assert reply(client.declare("a", ring_bytes=4096), e.ChannelDeclared).created


def test_a_channel_that_holds_messages_is_not_undeclared_without_force() -> None:
    core = Core()
    client = core.open()
    client.declare("q", kind=c.Kind.QUEUE)
    error = refusal(client.undeclare("q", messages_held=1), ChannelInUse)
    assert error.message == "channel 'q' holds 1 message"
    core.admin().bind("q", "fifo:/run/q")
    before = fingerprint(core.machine)
    error = refusal(client.undeclare("q", messages_held=2), ChannelInUse)
    assert error.message == "channel 'q' is in use by 1 binding, and holds 2 messages"
    assert "--force" in error.hint and not error.retryable
    assert fingerprint(core.machine) == before
    assert isinstance(client.undeclare("q", messages_held=2, force=True)[-1], e.Reply)


def test_the_configuration_takes_no_messages_away_by_changing_what_a_channel_is() -> None:
    core = Core()
    admin = core.admin()
    admin.declare("q", kind=c.Kind.QUEUE)
    before = fingerprint(core.machine)
    for options in ({"durable": True}, {"kind": c.Kind.TOPIC}):
        told = admin.declare("q", **options, replace=True, messages_held=3)
        refusal(told, ChannelConflict, "while it holds 3 messages")
    assert fingerprint(core.machine) == before
    reply(admin.declare("q", capacity=7, replace=True, messages_held=3), e.ChannelDeclared)
    reply(admin.declare("q", durable=True, replace=True), e.ChannelDeclared)


@pytest.mark.parametrize("option", ["retain_bytes", "retain_ms", "retain_messages"])
def test_what_is_kept_is_said_of_durable_topics_alone(option: str) -> None:
    core = Core()
    client = core.open()
    error = refusal(client.declare("t", **{option: 5}), InvalidArgument, f"{option} says nothing of a topic")
    assert "--durable" in error.hint
    client.declare("plain")
    refusal(client.declare("plain", **{option: 5}), InvalidArgument, "not durable")
    reply(client.declare("t", **{option: 5}, durable=True), e.ChannelDeclared)
    assert core.machine.kind_of("t") is c.Kind.TOPIC


def test_only_owner_and_admin_undeclare() -> None:
    core = Core()
    core.open("uid:1").declare("a")
    stranger = core.open("uid:2")
    error = refusal(
        stranger.undeclare("a", force=True), PermissionDenied, "uid:2 may not undeclare channel 'a'"
    )
    assert "belongs to uid:1" in error.hint
    reply(core.open("uid:1").undeclare("a"), e.Done)
    core.open("uid:1").declare("a")
    reply(core.admin().undeclare("a"), e.Done)


def test_channel_in_use_says_by_whom() -> None:
    core = Core()
    client, admin = core.open(), core.admin()
    client.declare("a")
    source, _ = client.publish("a")
    refusal(client.undeclare("a"), ChannelInUse, "in use by 1 publisher")
    one, _ = client.subscribe("a")
    two, _ = client.subscribe("a")
    admin.bind("a", "fifo:/x")
    before = fingerprint(core.machine)
    refusal(client.undeclare("a"), ChannelInUse, "by 1 publisher, 2 subscribers, 1 binding")
    assert fingerprint(core.machine) == before
    client.unpublish(source), client.unsubscribe(one), client.unsubscribe(two)
    refusal(client.undeclare("a"), ChannelInUse, "in use by 1 binding")
    admin.unbind(1)
    reply(client.undeclare("a"), e.Done)


def test_forced_undeclare_tells_everybody_and_wakes_writers() -> None:
    core = Core()
    owner, publisher, subscriber, admin = core.open(), core.open("uid:2"), core.open("uid:3"), core.admin()
    owner.declare("a")
    source, _ = publisher.publish("a")
    reader, _ = subscriber.subscribe("a")
    admin.bind("a", "fifo:/x"), admin.bind("a", "fifo:/y")
    generation = core.machine._topics._generations[0]
    effects = owner.undeclare("a", force=True)
    reply(effects, e.Done)
    (ended,) = notices(effects, publisher.session)
    assert isinstance(ended, e.PublicationEnded) and ended.source == source
    assert isinstance(ended.error, ChannelUndeclared)
    (over,) = notices(effects, subscriber.session)
    assert isinstance(over, e.SubscriptionEnded) and over.reader == reader
    assert isinstance(over.error, ChannelUndeclared)
    orders = [type(effect) for effect in effects if not isinstance(effect, e.Notice)]
    assert orders == [e.BumpGeneration, e.DropSource, e.DropReader, e.Reply]
    assert e.BumpGeneration(0, generation + 1) in effects
    statistics = core.machine.statistics()
    assert (statistics.channels, statistics.bindings, statistics.sources, statistics.readers) == (0, 0, 0, 0)
    core.machine.assert_consistent()
    reply(admin.declare("a"), e.ChannelDeclared)
    reply(admin.bind("a", "fifo:/x"), e.BindingCreated)


def test_a_cell_is_used_again_and_never_set_back() -> None:
    core = Core()
    client = core.open()
    client.declare("a")
    client.subscribe("a")
    client.undeclare("a", force=True)
    client.declare("b")
    body = reply(client.publish("b")[1], e.SourceAttached)
    assert (body.generation_index, body.generation) == (0, 2)
    client.declare("c")
    body = reply(client.publish("c")[1], e.SourceAttached)
    assert (body.generation_index, body.generation) == (1, 0)


# ---- bindings ----------------------------------------------------------------------------------------------


def test_bind() -> None:
    core = Core()
    admin = core.admin()
    admin.declare("a")
    stated = {"mode": "600", "framing": "raw"}
    body = reply(admin.bind("a", "fifo:/run/x", Direction.OUT, stated), e.BindingCreated)
    settled = {"framing": "raw", "mode": "0600"}
    view = e.BindingView(BindingId(1), "a", "fifo:/run/x", Direction.OUT, settled, "uid:0", c.BindingReport())
    assert body == e.BindingCreated(view, True)
    assert reply(admin.get_binding(1), e.BindingFound).binding == view


@pytest.mark.parametrize(
    ("url", "options"),
    [("fifo:/run/x", {}), ("fifo://run/./x", {"framing": "line"}), ("fifo:/run/x", {"mode": "600"})],
)
def test_the_same_binding_again(url: str, options: dict[str, str]) -> None:
    admin = Core().admin()
    admin.declare("a")
    admin.bind("a", "fifo:/run/x")
    body = reply(admin.bind("a", url, Direction.IN, options), e.BindingCreated)
    assert not body.created and body.binding.id == 1


@pytest.mark.parametrize(
    ("channel", "direction", "options"),
    [("b", Direction.IN, {}), ("a", Direction.OUT, {}), ("a", Direction.IN, {"framing": "raw"})],
)
def test_one_place_has_one_binding(channel: str, direction: Direction, options: dict[str, str]) -> None:
    core = Core()
    admin = core.admin()
    admin.declare("a"), admin.declare("b")
    admin.bind("a", "fifo:/run/x")
    before = fingerprint(core.machine)
    error = refusal(
        admin.bind(channel, "fifo:/run//x", direction, options), BindingConflict, "binding 1, channel 'a', in"
    )
    assert "towpath unbind 1" in error.hint
    assert fingerprint(core.machine) == before


@pytest.mark.parametrize(
    ("channel", "url", "direction", "options", "error", "text"),
    [
        ("none", "fifo:/x", Direction.IN, {}, ChannelNotFound, "towpath declare none"),
        ("no ne", "fifo:/x", Direction.IN, {}, InvalidName, "no ne"),
        ("a", "fifo:x", Direction.IN, {}, InvalidArgument, "not absolute"),
        ("a", "mq:x", Direction.IN, {}, InvalidArgument, "one slash"),
        ("a", "fifo:/x", Direction.BOTH, {}, InvalidArgument, "one way"),
        ("a", "fifo:/x", Direction.IN, {"mode": "rwx"}, InvalidArgument, "option mode"),
    ],
)
def test_bind_is_refused(
    channel: str,
    url: str,
    direction: Direction,
    options: dict[str, str],
    error: type[TowpathError],
    text: str,
) -> None:
    core = Core()
    admin = core.admin()
    admin.declare("a")
    before = fingerprint(core.machine)
    refusal(admin.bind(channel, url, direction, options), error, text)
    assert fingerprint(core.machine) == before


def test_only_admins_bind() -> None:
    core = Core()
    client, admin = core.open(), core.admin()
    client.declare("a")
    error = refusal(client.bind("a", "fifo:/x"), PermissionDenied, "uid:1 may not make or remove bindings")
    assert "admin group" in error.hint
    admin.bind("a", "fifo:/x")
    refusal(client.unbind(1), PermissionDenied)
    reply(client.get_binding(1), e.BindingFound)


def test_bindings_in_all() -> None:
    admin = Core(Limits(bindings_max=1)).admin()
    admin.declare("a")
    admin.bind("a", "fifo:/x")
    refusal(admin.bind("a", "fifo:/y"), LimitExceeded, "bindings_max is 1")
    assert not reply(admin.bind("a", "fifo:/x"), e.BindingCreated).created


def test_unbind_by_id_and_by_place() -> None:
    core = Core()
    admin = core.admin()
    admin.declare("a")
    for url in ("fifo:/x", "fifo:/y", "fifo:/z"):
        admin.bind("a", url)
    assert reply(admin.unbind(2), e.BindingDeleted).binding.url == "fifo:/y"
    assert reply(admin.unbind(channel="a", url="fifo://x"), e.BindingDeleted).binding.id == 1
    assert reply(admin.unbind(url="fifo:/z"), e.BindingDeleted).binding.id == 3
    refusal(admin.unbind(2), BindingNotFound, "no binding 2")
    refusal(admin.unbind(channel="a", url="fifo:/z"), BindingNotFound, "no binding of fifo:/z on channel 'a'")
    refusal(admin.unbind(), InvalidArgument, "by its id, or by channel and URL")
    refusal(admin.unbind(channel="a", url="nonsense"), InvalidArgument)
    admin.bind("a", "fifo:/x")
    refusal(admin.unbind(channel="b", url="fifo:/x"), BindingNotFound)


def test_binding_ids_are_never_used_again() -> None:
    admin = Core().admin()
    admin.declare("a")
    for expected in (1, 2, 3):
        assert reply(admin.bind("a", "fifo:/x"), e.BindingCreated).binding.id == expected
        admin.unbind(expected)


def test_list_bindings() -> None:
    core = Core()
    admin = core.admin()
    admin.declare("a"), admin.declare("b")
    admin.bind("a", "fifo:/x"), admin.bind("b", "fifo:/y"), admin.bind("a", "pipe:true")

    def listed(channel: str) -> list[int]:
        body = reply(core.apply(c.ListBindings(admin.caller(), channel)), e.BindingsListed)
        return [binding.id for binding in body.bindings]

    assert (listed(""), listed("a"), listed("b")) == ([1, 2, 3], [1, 3], [2])
    refusal(core.apply(c.ListBindings(admin.caller(), "c")), ChannelNotFound)


def test_the_daemon_is_warned_of_what_it_cannot_bind() -> None:
    core = Core()
    config = Caller("config", is_admin=True)
    (warned,) = core.apply(c.CreateBinding(config, "none", "fifo:/x", Direction.IN))
    assert isinstance(warned, e.Warn) and "no channel 'none'" in warned.message
    assert core.apply(c.DeclareChannel(config, "none")) == []
    assert core.apply(c.CreateBinding(config, "none", "fifo:/x", Direction.IN)) == []


def test_ring_of_another_size_is_refused() -> None:
    client = Core().open()
    client.declare("a")
    refusal(client.publish("a", ring_bytes=4096)[1], InvalidArgument, f"its rings have {RING_BYTES} bytes")
