"""Subscribers that do not move, and where new ones begin."""

from __future__ import annotations

import pytest

from tests.core.harness import Client, Core, fingerprint, notices, refusal, reply
from towpath.errors import PermissionDenied, SlowConsumer, SourceNotFound, SubscriptionNotFound
from towpath_broker.core import effects as e
from towpath_broker.core.ids import ReaderId, SourceId


@pytest.fixture
def core() -> Core:
    made = Core()
    owner = made.open("uid:9")
    owner.declare("a", stall_ms_max=250)
    owner.declare("patient", stall_ms_max=0)
    owner.declare("old", history=10)
    return made


def pair(core: Core, channel: str = "a") -> tuple[Client, int, Client, int]:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    reader, _ = subscriber.subscribe(channel)
    source, _ = publisher.publish(channel)
    return publisher, source, subscriber, reader


def test_a_stalled_pair_is_parted(core: Core) -> None:
    publisher, source, subscriber, reader = pair(core)
    other, _ = publisher.publish("a")
    effects = publisher.detach_stalled(source, reader)
    reply(effects, e.Done)
    assert notices(effects, publisher.session) == [
        e.ReaderGone(SourceId(source), ReaderId(reader), is_parted=True)
    ]
    (detached,) = notices(effects, subscriber.session)
    assert isinstance(detached, e.SourceDetached)
    assert (detached.reader, detached.source) == (reader, source)
    assert isinstance(detached.error, SlowConsumer) and "250 ms" in str(detached.error)
    assert not any(isinstance(effect, e.BumpGeneration | e.DropReader) for effect in effects)
    # Nothing is left to tell, and the subscription goes on with the other source.
    assert notices(publisher.fetch(source), publisher.session) == []
    refusal(publisher.detach_stalled(source, reader), SubscriptionNotFound)
    assert core.machine._topics.sources[SourceId(other)].paired.keys() == {reader}
    core.machine.assert_consistent()


def test_a_source_hears_when_a_reader_that_it_was_parted_from_has_gone(core: Core) -> None:
    """It may have held loaned messages until then."""
    publisher, source, subscriber, reader = pair(core)
    ended, _ = publisher.publish("a")
    for each in (source, ended):
        publisher.detach_stalled(each, reader)
    reply(subscriber.release(reader, source), e.Done)
    publisher.unpublish(ended)
    effects = subscriber.unsubscribe(reader)
    assert notices(effects, publisher.session) == [e.ReaderGone(SourceId(source), ReaderId(reader))]
    core.machine.assert_consistent()


def test_its_slot_is_freed_by_the_reader(core: Core) -> None:
    publisher, source, subscriber, reader = pair(core)
    publisher.detach_stalled(source, reader)
    _, effects = publisher.publish("a")
    (added,) = notices(effects, subscriber.session)
    assert isinstance(added, e.SourceAdded) and added.slot == 1
    reply(subscriber.release(reader, source), e.Done)
    _, effects = publisher.publish("a")
    (added,) = notices(effects, subscriber.session)
    assert isinstance(added, e.SourceAdded) and added.slot == 0


def test_a_new_subscription_follows_the_source_again(core: Core) -> None:
    publisher, source, subscriber, reader = pair(core)
    publisher.detach_stalled(source, reader)
    again, effects = subscriber.subscribe("a")
    (added,) = notices(effects, subscriber.session)
    assert isinstance(added, e.SourceAdded) and (added.reader, added.source) == (again, source)


def test_a_reader_that_the_source_was_not_told_of_is_not_told_of_after(core: Core) -> None:
    publisher, source, _, _ = pair(core)
    late, _ = core.open("uid:3").subscribe("a")
    effects = publisher.detach_stalled(source, late)
    assert notices(effects, publisher.session) == []
    assert notices(publisher.fetch(source), publisher.session) == []
    core.machine.assert_consistent()


def test_who_may_part_whom(core: Core) -> None:
    publisher, source, subscriber, reader = pair(core)
    stranger, admin = core.open("uid:1"), core.admin()
    before = fingerprint(core.machine)
    refusal(stranger.detach_stalled(source, reader), SourceNotFound)
    refusal(subscriber.detach_stalled(source, reader), SourceNotFound)
    refusal(admin.detach_stalled(source, reader), SourceNotFound)
    refusal(publisher.detach_stalled(source, 12345), SubscriptionNotFound)
    refusal(publisher.detach_stalled(reader, source), SourceNotFound)
    assert fingerprint(core.machine) == before


def test_not_where_publishers_wait_for_ever(core: Core) -> None:
    publisher, source, _, reader = pair(core, "patient")
    refusal(publisher.detach_stalled(source, reader), PermissionDenied, "wait for ever")


def test_a_pattern_keeps_its_other_channels(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    reader, _ = subscriber.subscribe(">")
    source, _ = publisher.publish("a")
    other, _ = publisher.publish("old")
    publisher.detach_stalled(source, reader)
    assert core.machine._topics.sources[SourceId(other)].paired.keys() == {reader}
    effects = subscriber.unsubscribe(reader)
    assert [effect.index for effect in effects if isinstance(effect, e.BumpGeneration)] == [2]
    core.machine.assert_consistent()


# ---- history -----------------------------------------------------------------------------------------------


def test_a_new_reader_begins_with_the_history_and_both_are_told_so(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    source, _ = publisher.publish("old")
    _, effects = subscriber.subscribe("old")
    (added,) = notices(effects, subscriber.session)
    assert isinstance(added, e.SourceAdded) and added.start is e.StartAt.HISTORY
    (told,) = notices(publisher.fetch(source), publisher.session)
    assert isinstance(told, e.ReaderAdded) and told.start is e.StartAt.HISTORY


def test_a_pattern_begins_with_the_history_where_there_is_one(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    publisher.publish("a"), publisher.publish("old")
    _, effects = subscriber.subscribe(">")
    starts = {body.channel: body.start for body in notices(effects, subscriber.session)}  # type: ignore[union-attr]
    assert starts == {"a": e.StartAt.TAIL, "old": e.StartAt.HISTORY}


def test_a_reader_that_comes_back_does_not_get_it_twice(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    source, _ = publisher.publish("old")
    reader, _ = subscriber.subscribe("old")
    subscriber.close()
    again = core.open("uid:2")
    for held in ({}, {source: 0}):
        _, effects = again.subscribe("old", reader, resumed=True, held=held)
        (added,) = notices(effects, again.session)
        assert isinstance(added, e.SourceAdded) and added.start is e.StartAt.TAIL
        again.close()
        again = core.open("uid:2")


def test_a_source_that_comes_after_the_reader_is_read_from_its_start(core: Core) -> None:
    publisher, subscriber = core.open("uid:1"), core.open("uid:2")
    subscriber.subscribe("old")
    _, effects = publisher.publish("old")
    (added,) = notices(effects, subscriber.session)
    assert isinstance(added, e.SourceAdded) and added.start is e.StartAt.START
