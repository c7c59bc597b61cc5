"""Bindings' reports, those who wait for them, and watches of the registry."""

from __future__ import annotations

import pytest

from tests.core.harness import Client, Core, refusal, reply
from towpath.errors import BindingFailed, BindingNotFound, InvalidArgument, LimitExceeded, PermissionDenied
from towpath_broker.core import commands as c
from towpath_broker.core import effects as e
from towpath_broker.core.commands import BindingReport, BindingState, Caller, Direction
from towpath_broker.core.ids import BindingId, CallId
from towpath_broker.core.limits import Limits
from towpath_broker.core.watches import CHANGES_KEPT

RUNNING = BindingReport(BindingState.RUNNING, "pid 4711", messages_in=5)


@pytest.fixture
def core() -> Core:
    made = Core()
    admin = made.admin()
    admin.declare("a")
    admin.bind("a", "fifo:/x")
    return made


def state_of(client: Client, binding: int = 1) -> BindingReport:
    return reply(client.get_binding(binding), e.BindingFound).binding.report


def test_binding_is_pending_until_reported(core: Core) -> None:
    client, bridge = core.open(), core.bridge()
    assert state_of(client) == BindingReport()
    reply(bridge.report({1: RUNNING, 99: RUNNING}), e.Done)
    assert state_of(client) == RUNNING
    assert 99 not in core.machine._reports._reports


@pytest.mark.parametrize("gateway", ["", "zeromq"])
def test_only_the_bridge_reports(core: Core, gateway: str) -> None:
    refusal(core.open("uid:0", is_admin=True, gateway=gateway).report({1: RUNNING}), PermissionDenied)
    assert state_of(core.open()).state is BindingState.PENDING


@pytest.mark.parametrize("state", [state for state in BindingState if state is not BindingState.PENDING])
def test_wait_ends_when_the_binding_settles(core: Core, state: BindingState) -> None:
    one, two, bridge = core.open(), core.open(), core.bridge()
    assert one.get_binding(1, wait=True) == []
    assert two.get_binding(1, wait=True) == []
    reply(bridge.report({1: BindingReport(detail="soon")}), e.Done)
    effects = bridge.report({1: BindingReport(state)})
    reply_one, reply_two, done = effects
    assert isinstance(reply_one, e.Reply) and isinstance(reply_one.body, e.BindingFound)
    assert (reply_one.session, reply_one.call) == (one.session, one.calls)
    assert isinstance(reply_two, e.Reply) and reply_two.session == two.session
    assert reply_one.body.binding.report.state is state
    assert isinstance(done, e.Reply) and done.body == e.Done()
    assert len(bridge.report({1: RUNNING})) == 1
    assert reply(one.get_binding(1, wait=True), e.BindingFound).binding.report == RUNNING


def test_wait_ends_when_the_binding_is_deleted(core: Core) -> None:
    client, admin = core.open(), core.admin()
    client.get_binding(1, wait=True)
    effects = admin.unbind(1)
    refused = effects[0]
    assert isinstance(refused, e.Refuse) and isinstance(refused.error, BindingNotFound)
    assert (refused.session, refused.call) == (client.session, client.calls)
    reply(effects, e.BindingDeleted)
    refusal(client.get_binding(1, wait=True), BindingNotFound)
    assert core.machine.statistics().waits == 0


def test_wait_ends_without_an_answer_when_nobody_wants_it(core: Core) -> None:
    client, gone, bridge = core.open(), core.open(), core.bridge()
    client.get_binding(1, wait=True)
    assert core.apply(c.CancelCall(client.session, CallId(client.calls))) == []
    assert core.apply(c.CancelCall(client.session, CallId(client.calls))) == []
    gone.get_binding(1, wait=True)
    gone.close()
    assert core.apply(c.CancelCall(gone.session, CallId(gone.calls))) == []
    assert len(bridge.report({1: RUNNING})) == 1
    assert core.machine.statistics().waits == 0


def test_waits_are_bounded(core: Core) -> None:
    limited = Core(Limits(waits_per_session_max=2))
    admin = limited.admin()
    admin.declare("a"), admin.bind("a", "fifo:/x")
    for _ in range(2):
        assert admin.get_binding(1, wait=True) == []
    refusal(admin.get_binding(1, wait=True), LimitExceeded, "waits_per_session_max is 2")
    assert limited.open().get_binding(1, wait=True) == []


def test_a_call_number_in_use_is_refused(core: Core) -> None:
    client = core.open()
    client.get_binding(1, wait=True)
    caller = Caller("uid:1", False, client.session, CallId(client.calls))
    refusal(core.apply(c.GetBinding(caller, BindingId(1), True)), InvalidArgument, "is not over")
    refusal(core.apply(c.Watch(caller)), InvalidArgument, "is not over")


def test_end_of_the_bridge_sets_its_bindings_back_to_pending(core: Core) -> None:
    client, bridge, admin = core.open(), core.bridge(), core.admin()
    admin.bind("a", "fifo:/y")
    failed = BindingFailed("no such path")
    bridge.report({1: BindingReport(BindingState.RETRYING, "x", 1, 2, 3, 4, 5, 6, failed, 77), 2: RUNNING})
    other = core.bridge()
    other.report({2: RUNNING})
    bridge.close()
    assert state_of(client, 1) == BindingReport(last_error=failed, last_error_at_ns=77)
    assert state_of(client, 2) == RUNNING
    assert client.get_binding(1, wait=True) == []


def test_status_has_the_reports(core: Core) -> None:
    core.bridge().report({1: RUNNING})
    client = core.open()
    body = reply(core.apply(c.GetStatus(client.caller())), e.StatusTold)
    assert len(body.sessions) == 3
    assert [channel.name for channel in body.channels] == ["a"]
    assert [binding.report for binding in body.bindings] == [RUNNING]


def test_status_has_who_is_connected_and_by_what(core: Core) -> None:
    bridge, client = core.bridge(), core.open()
    source, reader = client.next_id(), bridge.next_id()
    client.publish("a", source)
    bridge.subscribe("a", reader)
    body = reply(core.apply(c.GetStatus(client.caller())), e.StatusTold)
    _, of_bridge, of_client = body.sessions
    assert (of_bridge.id, of_bridge.gateway, of_bridge.sources) == (bridge.session, "bridge", ())
    assert of_bridge.readers == ((reader, {source: 0}),)
    assert (of_client.id, of_client.principal, of_client.sources) == (client.session, "uid:1", (source,))
    assert of_client.readers == ()


# ---- watches -----------------------------------------------------------------------------------------------


def told(effects: list[e.Effect], client: Client) -> list[tuple[int, str]]:
    return [
        (effect.revision, type(effect.body).__name__)
        for effect in effects
        if isinstance(effect, e.StreamItem) and effect.session == client.session
    ]


def test_watch_tells_the_state_and_then_every_change(core: Core) -> None:
    client, admin = core.open(), core.admin()
    assert told(client.watch(), client) == [
        (2, "WatchChannelDeclared"),
        (2, "WatchBindingCreated"),
        (2, "WatchCurrent"),
    ]
    assert told(admin.declare("b"), client) == [(3, "WatchChannelDeclared")]
    assert told(admin.declare("b"), client) == []
    assert told(admin.declare("b", ring_bytes=4096, replace=True), client) == [(4, "WatchChannelDeclared")]
    assert told(admin.bind("b", "pipe:true", Direction.BOTH), client) == [(5, "WatchBindingCreated")]
    assert told(admin.bind("b", "pipe:true", Direction.BOTH), client) == []
    assert told(admin.bind("b", "fifo:/y"), client) == [(6, "WatchBindingCreated")]
    assert told(admin.unbind(2), client) == [(7, "WatchBindingDeleted")]
    assert told(admin.undeclare("b"), client) == []
    assert told(admin.undeclare("b", force=True), client) == [
        (8, "WatchBindingDeleted"),
        (9, "WatchChannelUndeclared"),
    ]
    assert told(core.bridge().report({1: RUNNING}), client) == []
    assert core.machine.statistics().revision == 9


def test_watch_from_a_revision_tells_only_what_changed_since(core: Core) -> None:
    client, admin = core.open(), core.admin()
    admin.declare("b"), admin.bind("b", "fifo:/y"), admin.undeclare("b", force=True)
    assert told(client.watch(2), client) == [
        (3, "WatchChannelDeclared"),
        (4, "WatchBindingCreated"),
        (5, "WatchBindingDeleted"),
        (6, "WatchChannelUndeclared"),
        (6, "WatchCurrent"),
    ]
    assert told(client.watch(6), client) == [(6, "WatchCurrent")]
    assert told(admin.declare("c"), client) == [(7, "WatchChannelDeclared")] * 2


def test_watch_from_a_revision_that_is_not_known_begins_anew(core: Core) -> None:
    client, admin = core.open(), core.admin()
    whole = ["WatchReset", "WatchChannelDeclared", "WatchBindingCreated", "WatchCurrent"]
    assert told(client.watch(99), client) == [(2, kind) for kind in whole]
    for _ in range(CHANGES_KEPT // 2):
        admin.declare("b"), admin.undeclare("b")
    revision = 2 + CHANGES_KEPT
    assert [at for at, _ in told(client.watch(2), client)] == [*range(3, revision + 1), revision]
    assert told(client.watch(1), client) == [(revision, kind) for kind in whole]


def test_revisions_go_on_over_restarts_and_snapshots(core: Core) -> None:
    core.admin().declare("b")
    fresh = Core()
    fresh.machine = type(core.machine)()
    fresh.machine.restore(core.machine.snapshot())
    fresh.apply(fresh.machine.start_command())
    client = fresh.open()
    assert told(client.watch(3), client) == [(3, "WatchCurrent")]
    assert told(client.watch(2), client)[0] == (3, "WatchReset")
    assert told(fresh.admin().declare("c"), client) == [(4, "WatchChannelDeclared")] * 2


def test_watch_of_a_fresh_registry() -> None:
    client = Core().open()
    assert told(client.watch(), client) == [(0, "WatchCurrent")]


def test_watch_ends(core: Core) -> None:
    client, other, admin = core.open(), core.open(), core.admin()
    client.watch(), other.watch()
    assert core.apply(c.CancelCall(client.session, CallId(client.calls))) == []
    other.close()
    assert not [effect for effect in admin.declare("b") if isinstance(effect, e.StreamItem)]
    assert core.machine.statistics().watches == 0


def test_watches_are_bounded(core: Core) -> None:
    client = core.open()
    for _ in range(4):
        client.watch()
    refusal(client.watch(), LimitExceeded, "watches_per_session_max is 4")
    core.open().watch()
