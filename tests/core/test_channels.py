"""Publishers and subscribers of a channel: who is told of whom, slots, and the generation."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.harness import Client, Core, fingerprint, notices, refusal, reply
from towpath.errors import (
    ChannelNotFound,
    InvalidArgument,
    LimitExceeded,
    PermissionDenied,
    QuotaExceeded,
    SourceNotFound,
    SubscriptionNotFound,
    TowpathError,
)
from towpath_broker.core import effects as e
from towpath_broker.core.effects import Effect
from towpath_broker.core.ids import ReaderId, SourceId
from towpath_broker.core.limits import Limits
from towpath_broker.core.parts import RETURN_MS


@pytest.fixture
def core() -> Core:
    made = Core()
    made.open("uid:9").declare("a")
    return made


def generation(core: Core) -> int:
    return core.machine._topics._generations[0]


def bumps(effects: list[Effect]) -> list[int]:
    return [effect.generation for effect in effects if isinstance(effect, e.BumpGeneration)]


def source_added(
    reader: ReaderId, source: SourceId, slot: int, start: e.StartAt, publisher: Client, channel: str = "a"
) -> e.SourceAdded:
    origin = f"session:{publisher.session}"
    return e.SourceAdded(reader, source, slot, start, origin, channel, publisher.session)


# ---- attaching ---------------------------------------------------------------------------------------------


def test_source_that_comes_after_the_reader(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    reader, effects = subscriber.subscribe("a", wants_doorbell=True)
    assert effects[:-1] == [e.BumpGeneration(0, 1)]
    reply(effects, e.Done)
    source, effects = publisher.publish("a")
    r, s = ReaderId(reader), SourceId(source)
    assert effects[:-1] == [
        e.Notice(publisher.session, e.ReaderAdded(s, r, 0, e.StartAt.START, subscriber.session, True)),
        e.Notice(subscriber.session, source_added(r, s, 0, e.StartAt.START, publisher)),
    ]
    assert reply(effects, e.SourceAttached) == e.SourceAttached(0, 1)
    assert reply(publisher.fetch(source), e.ReadersFetched).generation == 1
    assert notices(publisher.fetch(source), publisher.session) == []


def test_reader_that_comes_after_the_source(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    source, effects = publisher.publish("a")
    assert reply(effects, e.SourceAttached) == e.SourceAttached(0, 0)
    assert len(effects) == 1
    reader, effects = subscriber.subscribe("a")
    r, s = ReaderId(reader), SourceId(source)
    # The cell first: after it no publisher writes past a reader that it does not know.
    assert effects[:-1] == [
        e.BumpGeneration(0, 1),
        e.Notice(subscriber.session, source_added(r, s, 0, e.StartAt.TAIL, publisher)),
    ]
    reply(effects, e.Done)
    effects = publisher.fetch(source)
    assert effects[:-1] == [
        e.Notice(publisher.session, e.ReaderAdded(s, r, 0, e.StartAt.TAIL, subscriber.session, False))
    ]
    assert reply(effects, e.ReadersFetched).generation == 1
    assert len(publisher.fetch(source)) == 1


def test_reader_leaves(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    source, _ = publisher.publish("a")
    reader, _ = subscriber.subscribe("a")
    publisher.fetch(source)
    effects = subscriber.unsubscribe(reader)
    assert effects[:-1] == [e.BumpGeneration(0, 2), e.DropReader(ReaderId(reader))]
    reply(effects, e.Done)
    effects = publisher.fetch(source)
    assert effects[0] == e.Notice(publisher.session, e.ReaderGone(SourceId(source), ReaderId(reader)))
    assert reply(effects, e.ReadersFetched).generation == 2
    refusal(subscriber.unsubscribe(reader), SubscriptionNotFound)


def test_reader_of_a_binding_whose_bridge_has_gone_is_waited_for(core: Core) -> None:
    publisher, bridge = core.open("uid:1"), core.bridge()
    source, _ = publisher.publish("a")
    out, _ = bridge.subscribe("a", exclude_origin="binding:1")
    other, _ = bridge.subscribe("a")
    unbound, _ = bridge.subscribe("a", exclude_origin="binding:2")
    publisher.fetch(source)
    bridge.unsubscribe(unbound)
    bridge.close()
    assert notices(publisher.fetch(source), publisher.session) == [
        e.ReaderGone(SourceId(source), ReaderId(each), return_ms=return_ms)
        for each, return_ms in ((out, RETURN_MS), (other, 0), (unbound, 0))
    ]
    again = core.bridge()
    again.subscribe("a", out, resumed=True, held={source: 0}, exclude_origin="binding:1")
    assert notices(publisher.fetch(source), publisher.session) == [
        e.ReaderAdded(SourceId(source), ReaderId(out), 0, e.StartAt.TAIL, again.session, False)
    ]
    again.unsubscribe(out)
    assert notices(publisher.fetch(source), publisher.session) == [
        e.ReaderGone(SourceId(source), ReaderId(out))
    ]


def test_source_leaves(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    reader, _ = subscriber.subscribe("a")
    source, _ = publisher.publish("a")
    effects = publisher.unpublish(source)
    assert effects[:-1] == [
        e.Notice(subscriber.session, e.SourceGone(ReaderId(reader), SourceId(source))),
        e.DropSource(SourceId(source)),
    ]
    reply(effects, e.Done)
    refusal(publisher.unpublish(source), SourceNotFound)
    refusal(publisher.fetch(source), SourceNotFound)


def test_reader_that_came_and_went_between_two_fetches_is_not_mentioned(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    source, _ = publisher.publish("a")
    reader, _ = subscriber.subscribe("a")
    subscriber.unsubscribe(reader)
    assert notices(publisher.fetch(source), publisher.session) == []


def test_reader_that_was_resumed_between_two_fetches_is_told_again(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    source, _ = publisher.publish("a")
    reader, _ = subscriber.subscribe("a")
    publisher.fetch(source)
    subscriber.close()
    again = core.open("uid:2")
    again.subscribe("a", reader, resumed=True, held={source: 0})
    gone, added = notices(publisher.fetch(source), publisher.session)
    assert gone == e.ReaderGone(SourceId(source), ReaderId(reader))
    assert added == e.ReaderAdded(SourceId(source), ReaderId(reader), 0, e.StartAt.TAIL, again.session, False)


def test_sessions_own_what_they_attach(core: Core) -> None:
    owner, other = core.open("uid:1"), core.open("uid:1")
    source, _ = owner.publish("a")
    reader, _ = owner.subscribe("a")
    before = fingerprint(core.machine)
    refusal(other.unpublish(source), SourceNotFound, f"no source {source}")
    refusal(other.fetch(source), SourceNotFound)
    refusal(other.unsubscribe(reader), SubscriptionNotFound, f"no subscription {reader}")
    refusal(other.release(reader, source), SubscriptionNotFound)
    assert fingerprint(core.machine) == before


def test_end_of_a_session_frees_everything(core: Core) -> None:
    client, other = core.open("uid:1"), core.open("uid:2")
    source, _ = client.publish("a")
    own, _ = client.subscribe("a")
    reader, _ = other.subscribe("a")
    kept, _ = other.publish("a")
    client.watch()
    effects = client.close()
    assert notices(effects, client.session) == []
    assert notices(effects, other.session) == [e.SourceGone(ReaderId(reader), SourceId(source))]
    assert e.DropSource(SourceId(source)) in effects and e.DropReader(ReaderId(own)) in effects
    assert bumps(effects) == [generation(core)]
    assert notices(other.fetch(kept), other.session) == [e.ReaderGone(SourceId(kept), ReaderId(own))]
    statistics = core.machine.statistics()
    assert (statistics.sources, statistics.readers, statistics.watches) == (1, 1, 0)
    core.machine.assert_consistent()


# ---- slots -------------------------------------------------------------------------------------------------


def test_slot_stays_taken_until_it_is_released(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    reader, _ = subscriber.subscribe("a", slots=2)
    first, _ = publisher.publish("a")
    refusal(subscriber.release(reader, first), InvalidArgument, "still publishes")
    publisher.unpublish(first)
    second, effects = publisher.publish("a")
    (added,) = notices(effects, subscriber.session)
    assert isinstance(added, e.SourceAdded) and added.slot == 1
    reply(subscriber.release(reader, first), e.Done)
    reply(subscriber.release(reader, first), e.Done)
    reply(subscriber.release(reader, 12345), e.Done)
    _, effects = publisher.publish("a")
    (added,) = notices(effects, subscriber.session)
    assert isinstance(added, e.SourceAdded) and added.slot == 0
    refusal(subscriber.release(reader, second), InvalidArgument)


def test_reader_without_a_slot_left_loses_its_subscription(core: Core) -> None:
    publisher, subscriber, other = core.open("uid:1"), core.open("uid:2"), core.open("uid:3")
    reader, _ = subscriber.subscribe("a", slots=1)
    wide, _ = other.subscribe("a", slots=2)
    first, _ = publisher.publish("a")
    source, effects = publisher.publish("a")
    (ended,) = notices(effects, subscriber.session)
    assert isinstance(ended, e.SubscriptionEnded) and ended.reader == reader
    assert isinstance(ended.error, LimitExceeded)
    assert e.DropReader(ReaderId(reader)) in effects
    body = reply(effects, e.SourceAttached)
    assert [body.generation] == bumps(effects)
    (added,) = notices(effects, publisher.session)
    assert isinstance(added, e.ReaderAdded) and (added.reader, added.source) == (wide, source)
    assert notices(publisher.fetch(first), publisher.session) == [
        e.ReaderGone(SourceId(first), ReaderId(reader))
    ]
    refusal(subscriber.unsubscribe(reader), SubscriptionNotFound)
    core.machine.assert_consistent()


def test_page_with_too_few_slots(core: Core) -> None:
    publisher = core.open("uid:1")
    publisher.publish("a"), publisher.publish("a")
    before = fingerprint(core.machine)
    refusal(publisher.subscribe("a", slots=1)[1], LimitExceeded, "2 publishers; of 1 slots 1 are free")
    assert fingerprint(core.machine) == before
    reply(publisher.subscribe("a", slots=2)[1], e.Done)


@pytest.mark.parametrize("slots", [0, -1, 4097, 1 << 40])
def test_slots_out_of_range(core: Core, slots: int) -> None:
    refusal(core.open().subscribe("a", slots=slots)[1], InvalidArgument, "1 to 4096")


@pytest.mark.parametrize("slots", [1, 4096])
def test_slots_in_range(core: Core, slots: int) -> None:
    reply(core.open().subscribe("a", slots=slots)[1], e.Done)


# ---- origins -----------------------------------------------------------------------------------------------


def test_no_echo(core: Core) -> None:
    bridge, other = core.bridge(), core.open("uid:2")
    reader, _ = bridge.subscribe("a", exclude_origin="binding:7", slots=1)
    source, effects = bridge.publish("a", origin="binding:7")
    assert notices(effects, bridge.session) == []
    heard, effects = other.publish("a")
    assert isinstance(notices(effects, bridge.session)[0], e.SourceAdded)
    late, effects = bridge.subscribe("a", exclude_origin="binding:7")
    (added,) = notices(effects, bridge.session)
    assert isinstance(added, e.SourceAdded) and added.source == heard
    assert notices(bridge.fetch(source), bridge.session) == []
    _, effects = other.subscribe("a")
    origins = [body.origin for body in notices(effects, other.session) if isinstance(body, e.SourceAdded)]
    assert origins == ["binding:7", f"session:{other.session}"]
    bridge.unsubscribe(reader), bridge.unsubscribe(late)
    core.machine.assert_consistent()


def test_only_gateways_state_an_origin(core: Core) -> None:
    refusal(core.open().publish("a", origin="binding:7")[1], PermissionDenied, "state an origin")
    refusal(core.admin().publish("a", origin="binding:7")[1], PermissionDenied)
    reply(core.bridge().publish("a", origin="x" * 128)[1], e.SourceAttached)
    refusal(core.bridge().publish("a", origin="x" * 129)[1], InvalidArgument, "at most 128")
    refusal(core.open().subscribe("a", exclude_origin="x" * 129)[1], InvalidArgument, "at most 128")


# ---- coming back -------------------------------------------------------------------------------------------


def restarted(core: Core) -> Core:
    fresh = Core()
    fresh.machine = type(core.machine)()
    fresh.machine.restore(core.machine.snapshot())
    fresh.apply(fresh.machine.start_command())
    return fresh


@pytest.mark.parametrize("reader_is_first", [True, False])
def test_both_come_back_after_a_restart(core: Core, reader_is_first: bool) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    publisher.publish("a")
    reader, _ = subscriber.subscribe("a")
    source, _ = publisher.publish("a")
    core = restarted(core)
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    if reader_is_first:
        _, effects = subscriber.subscribe("a", reader, resumed=True, held={source: 5})
        assert notices(effects, subscriber.session) == []
        _, effects = publisher.publish("a", source, resumed=True)
        told = notices(effects, publisher.session)
    else:
        publisher.publish("a", source, resumed=True)
        _, effects = subscriber.subscribe("a", reader, resumed=True, held={source: 5})
        told = notices(publisher.fetch(source), publisher.session)
    r, s = ReaderId(reader), SourceId(source)
    assert told == [e.ReaderAdded(s, r, 5, e.StartAt.TAIL, subscriber.session, False)]
    assert notices(effects, subscriber.session) == [source_added(r, s, 5, e.StartAt.TAIL, publisher)]
    core.machine.assert_consistent()


def test_reader_that_comes_back_keeps_slots_of_sources_that_do_not(core: Core) -> None:
    core.open().publish("a")
    core = restarted(core)
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    gone, reader = 1 << 40 | 50, 1 << 40 | 51
    subscriber.subscribe("a", reader, resumed=True, slots=2, held={gone: 0})
    _, effects = publisher.publish("a")
    (added,) = notices(effects, subscriber.session)
    assert isinstance(added, e.SourceAdded) and (added.slot, added.start) == (1, e.StartAt.START)
    reply(subscriber.release(reader, gone), e.Done)
    _, effects = publisher.publish("a")
    (added,) = notices(effects, subscriber.session)
    assert isinstance(added, e.SourceAdded) and added.slot == 0


def test_source_that_comes_back_finds_new_readers_at_its_tail(core: Core) -> None:
    first = core.open("uid:1")
    source, _ = first.publish("a")
    first.close()
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    reader, _ = subscriber.subscribe("a")
    _, effects = publisher.publish("a", source, resumed=True)
    for body in notices(effects, publisher.session) + notices(effects, subscriber.session):
        assert isinstance(body, e.ReaderAdded | e.SourceAdded)
        assert (body.reader, body.start) == (reader, e.StartAt.TAIL)


def test_source_that_comes_back_before_its_slot_was_released_keeps_it(core: Core) -> None:
    subscriber, first = core.open("uid:2"), core.open("uid:1")
    reader, _ = subscriber.subscribe("a", slots=2)
    first.publish("a")
    source, _ = first.publish("a")
    first.close()
    publisher = core.open("uid:1")
    _, effects = publisher.publish("a", source, resumed=True)
    (added,) = notices(effects, subscriber.session)
    assert isinstance(added, e.SourceAdded) and (added.slot, added.start) == (1, e.StartAt.TAIL)
    refusal(subscriber.release(reader, source), InvalidArgument, "still publishes")


@pytest.mark.parametrize(
    ("held", "text"),
    [
        ({5: 8}, "cannot hold slot 8: the page has 8 slots"),
        ({5: -1}, "cannot hold slot -1"),
        ({5: 3, 6: 3}, "slot 3 is held for two sources"),
    ],
)
def test_held_slots_are_checked(core: Core, held: dict[int, int], text: str) -> None:
    first = core.open()
    reader, _ = first.subscribe("a")
    first.close()
    client = core.open()
    before = fingerprint(core.machine)
    refusal(client.subscribe("a", reader, resumed=True, held=held)[1], InvalidArgument, text)
    assert fingerprint(core.machine) == before
    refusal(client.subscribe("a", held={5: 0})[1], InvalidArgument, "only a subscription that is resumed")


# ---- limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        ({"publishers_per_channel_max": 2}, LimitExceeded),
        ({"sources_per_principal_max": 2}, QuotaExceeded),
        ({"subscribers_per_channel_max": 2}, LimitExceeded),
        ({"readers_per_principal_max": 2}, QuotaExceeded),
    ],
)
def test_limits(limits: dict[str, Any], error: type[TowpathError]) -> None:
    core = Core(Limits(**limits))
    client = core.open("uid:1")
    client.declare("a")
    (name,) = limits
    attach = client.publish if name.startswith(("publishers", "sources")) else client.subscribe
    detach = client.unpublish if name.startswith(("publishers", "sources")) else client.unsubscribe
    first, _ = attach("a")
    attach("a")
    refusal(attach("a")[1], error, f"{name} is 2")
    detach(first)
    assert isinstance(attach("a")[1][-1], e.Reply)
    other = core.open("uid:2")
    effects = (other.publish if attach == client.publish else other.subscribe)("a")[1]
    assert isinstance(effects[-1], e.Reply) is (error is QuotaExceeded)


def test_channel_that_is_not_there(core: Core) -> None:
    client = core.open()
    refusal(client.publish("b")[1], ChannelNotFound)
    refusal(client.subscribe("b")[1], ChannelNotFound)
