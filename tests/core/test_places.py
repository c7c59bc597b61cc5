"""Subscriptions that go by a name: one at a time, and who may take it over."""

from __future__ import annotations

import pytest

from tests.core.harness import Client, Core, fingerprint, notices, refusal, reply
from towpath.errors import InvalidArgument, PermissionDenied, SubscriptionInUse
from towpath_broker.core import effects as e
from towpath_broker.core.effects import Effect
from towpath_broker.core.ids import ReaderId


@pytest.fixture
def core() -> Core:
    made = Core()
    owner = made.open("uid:9")
    owner.declare("a")
    owner.declare("b")
    return made


def named(client: Client, channel: str = "a", *, takes_over: bool = False) -> tuple[int, list[Effect]]:
    return client.subscribe(channel, place="me", takes_over=takes_over)


def test_a_name_is_one_subscriptions_until_it_leaves(core: Core) -> None:
    first, second = core.open("uid:1"), core.open("uid:1")
    reader, effects = named(first)
    reply(effects, e.Done)
    before = fingerprint(core.machine)
    for client in (first, second):
        refusal(named(client)[1], SubscriptionInUse, "by test (pid 4711)")
    assert fingerprint(core.machine) == before
    reply(named(second, "b")[1], e.Done)
    reply(second.subscribe("a", place="you")[1], e.Done)
    reply(second.subscribe("a")[1], e.Done)
    first.unsubscribe(reader)
    reply(named(second)[1], e.Done)
    core.machine.assert_consistent()


def test_the_end_of_a_session_frees_its_names(core: Core) -> None:
    first, second = core.open("uid:1"), core.open("uid:2")
    named(first)
    first.close()
    reply(named(second)[1], e.Done)
    core.machine.assert_consistent()


def test_who_takes_over_ends_the_other(core: Core) -> None:
    first, second = core.open("uid:1"), core.open("uid:1")
    reader, _ = named(first)
    successor, effects = named(second, takes_over=True)
    reply(effects, e.Done)
    (ended,) = notices(effects, first.session)
    assert isinstance(ended, e.SubscriptionEnded) and ended.reader == reader
    assert isinstance(ended.error, SubscriptionInUse)
    assert core.machine._topics.topics["a"].readers.keys() == {successor}
    assert e.DropReader(ReaderId(reader)) in effects
    core.machine.assert_consistent()
    reply(named(core.open("uid:1"), "b", takes_over=True)[1], e.Done)  # nobody had it


@pytest.mark.parametrize(
    ("principal", "is_admin", "gateway", "error"),
    [
        ("uid:1", False, "", None),
        ("uid:2", False, "", PermissionDenied),
        ("uid:0", True, "", None),
        ("uid:1", False, "zeromq", PermissionDenied),
        ("uid:0", True, "zeromq", PermissionDenied),
    ],
)
def test_another_users_name_is_not_taken_over(
    core: Core, principal: str, is_admin: bool, gateway: str, error: type[PermissionDenied] | None
) -> None:
    holder = core.open("uid:1")
    named(holder)
    client = core.open(principal, is_admin=is_admin, gateway=gateway)
    _, effects = named(client, takes_over=True)
    if error is None:
        reply(effects, e.Done)
    else:
        refusal(effects, error, "uid:1")
    core.machine.assert_consistent()


def test_peers_of_gateways_take_over_each_others_names(core: Core) -> None:
    named(core.open("uid:0", is_admin=True, gateway="grpc"))
    reply(named(core.open("uid:0", is_admin=True, gateway="zeromq"), takes_over=True)[1], e.Done)


def test_who_resumes_has_his_name_back_unless_somebody_was_quicker(core: Core) -> None:
    late, quick = core.open("uid:1"), core.open("uid:1")
    reader, _ = named(late)
    late.close()
    again = core.open("uid:1")
    reply(again.subscribe("a", reader, resumed=True, place="me")[1], e.Done)
    again.unsubscribe(reader)
    named(quick)
    refusal(core.open("uid:1").subscribe("a", reader, resumed=True, place="me")[1], SubscriptionInUse)


def test_a_name_is_of_a_bounded_length(core: Core) -> None:
    client = core.open("uid:1")
    reply(client.subscribe("a", place="x" * 128)[1], e.Done)
    refusal(client.subscribe("a", place="é" * 65)[1], InvalidArgument, "1 to 128")
