"""Subscriptions to patterns: which channels they follow, now and later, and how they end."""

from __future__ import annotations

import pytest

from tests.core.harness import Client, Core, fingerprint, notices, refusal, reply
from towpath.errors import (
    ChannelInUse,
    ChannelUndeclared,
    InvalidName,
    LimitExceeded,
    QuotaExceeded,
    SubscriptionNotFound,
)
from towpath_broker.core import effects as e
from towpath_broker.core.effects import Effect
from towpath_broker.core.ids import ReaderId, SourceId
from towpath_broker.core.limits import Limits

NAMES = ("plant.line1.temp", "plant.line2.temp", "plant.line1.speed", "other")


@pytest.fixture
def core() -> Core:
    made = Core()
    owner = made.open("uid:9")
    for name in NAMES:
        owner.declare(name)
    return made


def added_channels(effects: list[Effect], client: Client) -> list[str]:
    return [body.channel for body in notices(effects, client.session) if isinstance(body, e.SourceAdded)]


def bumped(effects: list[Effect]) -> list[int]:
    return [effect.index for effect in effects if isinstance(effect, e.BumpGeneration)]


def test_sources_of_all_channels_that_match_are_followed(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    sources = {name: publisher.publish(name)[0] for name in NAMES}
    reader, effects = subscriber.subscribe("plant.*.temp")
    reply(effects, e.Done)
    # The cells first, of the channels that have a source; channel "other" is not disturbed.
    assert bumped(effects[:2]) == [0, 1]
    assert added_channels(effects, subscriber) == ["plant.line1.temp", "plant.line2.temp"]
    (added,) = notices(publisher.fetch(sources["plant.line2.temp"]), publisher.session)
    assert isinstance(added, e.ReaderAdded) and (added.reader, added.slot) == (reader, 1)
    assert notices(publisher.fetch(sources["other"]), publisher.session) == []
    core.machine.assert_consistent()


def test_sources_that_come_later_are_followed(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    reader, effects = subscriber.subscribe("plant.>")
    assert bumped(effects) == []
    source, effects = publisher.publish("plant.line1.speed")
    (added,) = notices(effects, subscriber.session)
    assert isinstance(added, e.SourceAdded)
    assert (added.reader, added.source, added.start) == (reader, source, e.StartAt.START)
    assert notices(publisher.publish("other")[1], subscriber.session) == []


def test_channels_declared_later_are_followed(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    subscriber.subscribe("plant.*.temp")
    view = reply(publisher.declare("plant.line3.temp"), e.ChannelDeclared).channel
    assert view.subscribers == 1
    _, effects = publisher.publish("plant.line3.temp")
    assert added_channels(effects, subscriber) == ["plant.line3.temp"]
    core.machine.assert_consistent()


def test_pattern_without_any_channel(core: Core) -> None:
    subscriber = core.open("uid:2")
    reader, effects = subscriber.subscribe("nothing.>")
    reply(effects, e.Done)
    reply(subscriber.unsubscribe(reader), e.Done)
    refusal(subscriber.unsubscribe(reader), SubscriptionNotFound)


def test_one_source_for_a_name_and_two_patterns_of_one_session(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    readers = [subscriber.subscribe(name)[0] for name in ("other", "*", ">")]
    _, effects = publisher.publish("other")
    told = [body.reader for body in notices(effects, subscriber.session) if isinstance(body, e.SourceAdded)]
    assert told == readers
    assert reply(subscriber.declare("other"), e.ChannelDeclared).channel.subscribers == 3


def test_leaving_raises_the_cells_of_followed_sources_only(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    source, _ = publisher.publish("plant.line2.temp")
    reader, _ = subscriber.subscribe("plant.>")
    publisher.fetch(source)
    effects = subscriber.unsubscribe(reader)
    assert effects[:-1] == [e.BumpGeneration(1, 2), e.DropReader(ReaderId(reader))]
    assert notices(publisher.fetch(source), publisher.session) == [
        e.ReaderGone(SourceId(source), ReaderId(reader))
    ]
    core.machine.assert_consistent()


def test_pattern_does_not_keep_a_channel(core: Core) -> None:
    owner, subscriber = core.open("uid:9"), core.open("uid:2")
    reader, _ = subscriber.subscribe(">")
    effects = owner.undeclare("other")
    reply(effects, e.Done)
    assert notices(effects, subscriber.session) == []
    subscriber.subscribe("plant.line1.temp")
    refusal(owner.undeclare("plant.line1.temp"), ChannelInUse, "in use by 1 subscriber")
    reply(subscriber.unsubscribe(reader), e.Done)


def test_forced_undeclare_ends_only_its_part_of_a_pattern(core: Core) -> None:
    owner, publisher, subscriber = core.open("uid:9"), core.open("uid:1"), core.open("uid:2")
    kept, _ = publisher.publish("plant.line1.temp")
    source, _ = publisher.publish("plant.line2.temp")
    reader, _ = subscriber.subscribe("plant.*.temp", slots=2)
    named, _ = subscriber.subscribe("plant.line2.temp")
    effects = owner.undeclare("plant.line2.temp", force=True)
    gone, ended = notices(effects, subscriber.session)
    assert gone == e.SourceGone(ReaderId(reader), SourceId(source))
    assert isinstance(ended, e.SubscriptionEnded) and ended.reader == named
    assert isinstance(ended.error, ChannelUndeclared)
    assert e.DropReader(ReaderId(reader)) not in effects
    # Its slot is in use until what was published there is read.
    owner.declare("plant.line2.temp")
    reply(subscriber.release(reader, source), e.Done)
    _, effects = publisher.publish("plant.line2.temp")
    (added,) = notices(effects, subscriber.session)
    assert isinstance(added, e.SourceAdded) and (added.reader, added.slot) == (reader, 1)
    assert len(notices(publisher.fetch(kept), publisher.session)) == 1
    core.machine.assert_consistent()


def test_no_echo(core: Core) -> None:
    bridge = core.bridge()
    bridge.subscribe(">", exclude_origin="binding:7")
    assert notices(bridge.publish("other", origin="binding:7")[1], bridge.session) == []
    assert added_channels(bridge.publish("other", origin="binding:8")[1], bridge) == ["other"]


def test_coming_back(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    publisher.publish("plant.line1.temp")
    source, _ = publisher.publish("plant.line2.temp")
    reader, effects = subscriber.subscribe("plant.*.temp")
    held = {body.source: body.slot for body in notices(effects, subscriber.session)}  # type: ignore[union-attr]
    subscriber.close()
    publisher.close()
    core.machine.assert_consistent()
    again, publisher = core.open("uid:2"), core.open("uid:1")
    _, effects = again.subscribe("plant.*.temp", reader, resumed=True, held=held)
    assert notices(effects, again.session) == []
    _, effects = publisher.publish("plant.line2.temp", source, resumed=True)
    (added,) = notices(effects, again.session)
    assert isinstance(added, e.SourceAdded) and (added.slot, added.start) == (held[source], e.StartAt.TAIL)


def test_pattern_reader_without_a_slot_left_loses_its_subscription(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    reader, _ = subscriber.subscribe("plant.>", slots=1)
    first, _ = publisher.publish("plant.line1.temp")
    _, effects = publisher.publish("plant.line2.temp")
    (ended,) = notices(effects, subscriber.session)
    assert isinstance(ended, e.SubscriptionEnded) and isinstance(ended.error, LimitExceeded)
    assert "'plant.>'" in str(ended.error)
    assert notices(publisher.fetch(first), publisher.session) == [
        e.ReaderGone(SourceId(first), ReaderId(reader))
    ]
    core.machine.assert_consistent()


@pytest.mark.parametrize(
    "pattern", ["a.>.b", "a*", "*a.b", ">.", "a..*", "_towpath.>", "", "a." * 127 + ">>"]
)
def test_what_is_no_pattern(core: Core, pattern: str) -> None:
    client = core.open()
    before = fingerprint(core.machine)
    refusal(client.subscribe(pattern)[1], InvalidName)
    assert fingerprint(core.machine) == before


def test_bounds() -> None:
    core = Core(Limits(patterns_max=3, patterns_per_principal_max=2, subscribers_per_channel_max=1))
    client, other = core.open("uid:1"), core.open("uid:2")
    client.declare("a")
    first, _ = client.subscribe("*")
    client.subscribe(">")
    refusal(client.subscribe("a.>")[1], QuotaExceeded, "patterns_per_principal_max is 2")
    other.subscribe("a")  # those to patterns do not count
    refusal(other.subscribe("a")[1], LimitExceeded, "subscribers_per_channel_max is 1")
    other.subscribe("*")
    refusal(other.subscribe("*")[1], LimitExceeded, "patterns_max is 3")
    client.unsubscribe(first)
    reply(other.subscribe("*")[1], e.Done)
    core.machine.assert_consistent()
