"""Durable topics: order, retention, what is taken in, places, where a reader begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.core.data.rig import MS, Rig
from towpath.errors import InvalidArgument, LimitExceeded, NotSupported, SubscriptionNotFound
from towpath_broker.core.commands import ChannelOptions
from towpath_broker.core.data import commands as c
from towpath_broker.core.data import effects as e
from towpath_broker.core.data import logs
from towpath_broker.core.data.rows import Run
from towpath_broker.core.limits import Limits


def rig(limits: Limits | None = None, **options: int) -> Rig:
    return Rig({"log": ChannelOptions(durable=True, **options)}, is_durable=True, limits=limits)  # type: ignore[arg-type]


def bounds(it: Rig) -> tuple[int, int]:
    found = it.ask(c.FindStored(it.caller(), "log", c.StartAt.NEW), e.Found)
    return found.oldest_seq, found.next_seq


def take_in(
    it: Rig,
    taken: Mapping[int, tuple[int, int]],
    *payloads: bytes,
    ticket: int = 1,
    ids: tuple[str, ...] = (),
) -> e.Appended | e.NotTaken:
    origins = [(source, seq) for source, (first, last) in taken.items() for seq in range(first, last + 1)]
    run = Run(payloads, time_ns=it.now_ns, origins=origins)
    size = sum(map(len, payloads))
    shown = it.run(c.TakeIn("log", ticket, run, len(payloads), size, it.now_ns, it.now_ns, taken, ids))
    (answer,) = [each for each in shown if isinstance(each, e.Appended | e.NotTaken)]
    return answer


def test_what_is_published_is_shown_before_it_is_answered() -> None:
    it = rig()
    shown = it.run(c.Publish(it.caller(), "log", [b"a", b"b"]))
    assert [type(each) for each in shown] == [e.Appended, e.Reply]
    assert shown[0] == e.Appended("log", 1, 2, Run([b"a", b"b"], (), it.now_ns))


def test_what_comes_out_of_rings_is_taken_in_once() -> None:
    it = rig()
    first = take_in(it, {7: (1, 2), 8: (1, 1)}, b"a", b"b", b"c")
    assert isinstance(first, e.Appended) and (first.first_seq, first.count) == (1, 3)
    again = take_in(it, {7: (1, 2), 8: (1, 1)}, b"a", b"b", b"c", ticket=2)
    assert isinstance(again, e.Appended) and (again.count, again.ticket) == (0, 2)
    partly = take_in(it, {7: (2, 3)}, b"b", b"c")
    assert isinstance(partly, e.NotTaken) and isinstance(partly.error, InvalidArgument)
    it.start()
    assert it.machine.taken("log") == {7: 2, 8: 1}
    assert isinstance(take_in(it, {7: (1, 2)}, b"a", b"b"), e.Appended) and it.machine.next_seq("log") == 4
    it.run(c.ForgetSource("log", 7))
    it.start()
    assert it.machine.taken("log") == {8: 1}


def test_message_ids_out_of_rings() -> None:
    it = rig()
    it.publish("log", b"a", message_ids=["1"])
    shown = take_in(it, {7: (1, 3)}, b"A", b"b", b"B", ids=("1", "2", "2"))
    assert isinstance(shown, e.Appended)
    assert isinstance(shown.content, Run) and list(shown.content.payloads) == [b"b"]
    assert it.machine.taken("log") == {7: 3}
    known = take_in(it, {7: (4, 4)}, b"b", ids=("2",))
    assert isinstance(known, e.Appended) and known.count == 0 and it.machine.taken("log") == {7: 4}


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"retain_messages": 4}, (5, 9)),  # two parcels of two
        ({"retain_bytes": 50}, (5, 9)),
        ({"retain_bytes": 1}, (7, 9)),  # the newest parcel stays
        ({"retain_bytes": 0}, (1, 9)),
    ],
)
def test_retention_lets_go_of_the_oldest_parcels(options: dict[str, Any], kept: tuple[int, int]) -> None:
    it = rig(**options)
    for _ in range(4):
        it.publish("log", b"x" * 10, b"y" * 10)
    assert bounds(it) == kept
    stored = it.store.read_parcels("log", 1, 1 << 20)
    assert (stored[0].first_seq, sum(each.count for each in stored)) == (kept[0], kept[1] - kept[0])


def test_retention_by_age_needs_nobody_to_ask() -> None:
    it = rig(retain_ms=1000)
    it.publish("log", b"a")
    it.advance(400)
    it.publish("log", b"b")
    it.advance(600)
    assert bounds(it) == (2, 3)
    it.advance(400)
    assert bounds(it) == (3, 3)
    assert it.store.read_parcels("log", 1, 1 << 20) == []
    it.start()
    assert it.publish("log", b"c").first_seq == 3


def test_retention_knows_old_parcels_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "HEADS_MAX", 3)
    it = rig(retain_messages=10)
    for index in range(10):
        it.publish("log", b"%d" % index)
    it.start()
    for index in range(10):
        it.publish("log", b"%d" % index)
        it.run(c.Tick())
    oldest, following = bounds(it)
    assert following == 21 and 10 <= following - oldest <= 11
    assert it.store.read_parcels("log", 1, 1 << 20)[0].first_seq == oldest


def test_where_a_reader_begins() -> None:
    it = rig(retain_messages=2)
    for index in range(4):
        it.publish("log", b"%d" % index)

    def begins(start: c.StartAt, value: int = 0, name: str = "") -> int:
        return it.ask(c.FindStored(it.caller(), "log", start, value, name), e.Found).seq

    assert begins(c.StartAt.NEW) == begins(c.StartAt.PLACE, name="me") == 5
    assert begins(c.StartAt.ALL) == begins(c.StartAt.SEQ, 1) == 3
    assert begins(c.StartAt.SEQ, 4) == 4 and begins(c.StartAt.SEQ, 99) == 5
    it.ask(c.SavePlace(it.caller(), "log", "me", 4), e.PlaceSaved)
    assert begins(c.StartAt.NEW, name="me") == 4
    it.start()
    assert begins(c.StartAt.ALL, name="me") == 4
    caller = it.caller()
    (asked,) = it.run(c.FindStored(caller, "log", c.StartAt.TIME, it.now_ns))
    assert asked == e.FindByTime(caller.session or 0, caller.call, "log", it.now_ns, 3, 5)  # type: ignore[arg-type]


def test_places_are_bounded_and_forgotten() -> None:
    it = rig(Limits(places_per_channel_max=1))
    it.publish("log", b"a")
    it.ask(c.SavePlace(it.caller(), "log", "me", 2), e.PlaceSaved)
    it.refused(c.SavePlace(it.caller(), "log", "you", 1), LimitExceeded)
    it.refused(c.SavePlace(it.caller(), "log", "me", 3), InvalidArgument)
    it.refused(c.SavePlace(it.caller(), "log", "", 1), InvalidArgument)
    assert it.ask(c.ListPlaces(it.caller(), "log"), e.PlacesListed).places == (("me", 2, it.now_ns),)
    it.ask(c.DeletePlace(it.caller(), "log", "me"), e.PlaceDeleted)
    it.refused(c.DeletePlace(it.caller(), "log", "me"), SubscriptionNotFound)


def test_a_topic_delivers_at_once() -> None:
    it = rig()
    late = c.Publish(it.caller(), "log", [b"a"], deliver_at_ns=[it.now_ns + MS])
    it.refused(late, NotSupported)
