"""How a subscription counts seqs: what it drops, what it fetches from the store, what it tells as missed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, cast

import pytest

from towpath import _ring
from towpath._message import Message
from towpath.asking import Asking
from towpath.calls import Call, StoredRead
from towpath.errors import StoreDamaged, TowpathError, Unavailable
from towpath.stored import SavedPlace, StoredLog

OWN, NEXT_OWN, OTHER = 7, 8, 9
STORED = {OWN, NEXT_OWN}


def message(seq: int, *, source: int = OWN, missed: int = 0, channel: str = "c", origin: int = 0) -> Message:
    return Message(
        b"%d" % seq,
        seq=seq,
        source=source,
        time_ns=1,
        channel=channel,
        missed=missed,
        origin_source=origin,
        origin_seq=seq if origin else 0,
    )


def run(first: int, end: int, **options: int) -> list[Message]:
    return [message(seq, **options) for seq in range(first, end)]  # type: ignore[arg-type]


def parcels(*ranges: tuple[int, int], origin: int = 0) -> list[bytes]:
    return [
        _ring.pack(
            [b"%d" % seq for seq in range(*each)], (), 1, (), [(origin, seq) for seq in range(*each)]
        ).data
        for each in ranges
    ]


def seqs(messages: list[Message]) -> list[int]:
    return [each.seq for each in messages]


def take_all(log: StoredLog) -> list[Message]:
    """Everything that waits, one visit after the other."""
    taken: list[Message] = []
    while batch := log.take(3, 1 << 20):
        taken += batch
    return taken


def test_what_follows_is_handed_out_at_once() -> None:
    log = StoredLog()
    assert seqs(log.sort(run(1, 5), STORED)) == [1, 2, 3, 4]
    assert seqs(log.sort(run(5, 8), STORED)) == [5, 6, 7]
    assert not log.is_waiting and log.next_seq("c") == 8


def test_a_replay_goes_over_into_the_ring_without_gap_or_duplicate() -> None:
    log = StoredLog()
    log.begin("c", 1, 10, source=OWN)
    assert log.wanted == ("c", 1) and log.take(9, 9) == []
    log.read(StoredRead(1, parcels((1, 4), (4, 8))))
    assert seqs(take_all(log)) == [1, 2, 3, 4, 5, 6, 7]
    assert log.wanted == ("c", 8)
    log.read(StoredRead(4, parcels((4, 8), (8, 14))))
    assert seqs(take_all(log)) == [8, 9], "not beyond the log's end as it was: the ring has that"
    assert log.sort(run(6, 10), STORED) == [], "had already"
    assert seqs(log.sort(run(9, 13), STORED)) == [10, 11, 12]
    assert (log.missed, log.regained) == (0, 0)


def test_who_was_lapped_reads_the_store_first() -> None:
    log = StoredLog()
    log.sort(run(1, 3), STORED)
    assert log.sort([message(9, missed=6), message(10)], STORED) == []
    assert log.wanted == ("c", 3) and log.regained == 6
    log.read(StoredRead(2, parcels((2, 9))))
    taken = take_all(log)
    assert seqs(taken) == [3, 4, 5, 6, 7, 8, 9, 10] and {each.missed for each in taken} == {0}
    assert {each.source for each in taken} == {OWN}


def test_what_the_store_has_no_more_is_missed_and_told_once() -> None:
    log = StoredLog()
    log.begin("c", 5, 9, asked_seq=3)
    log.read(StoredRead(7, parcels((7, 9))))
    taken = take_all(log)
    assert [(each.seq, each.missed) for each in taken] == [(7, 4), (8, 0)] and log.missed == 4
    log.sort([message(20, missed=11)], STORED)
    log.read(StoredRead(9, []))
    assert [(each.seq, each.missed) for each in take_all(log)] == [(20, 11)] and log.missed == 15


def test_a_successor_that_is_read_first_does_not_hide_what_its_core_had_shown() -> None:
    log = StoredLog(begins={"c": 1})
    assert log.sort(run(5, 7, source=NEXT_OWN), STORED) == []
    assert log.sort(run(1, 5), STORED) == [], "they come from the store by now"
    log.read(StoredRead(1, parcels((1, 5))))
    assert seqs(take_all(log)) == [1, 2, 3, 4, 5, 6]


def test_what_nobody_shows_any_more_is_looked_for_when_a_ring_is_joined() -> None:
    log = StoredLog(begins={"c": 1})
    log.sort(run(1, 3), STORED)
    joined = deque([("c", NEXT_OWN, 6)])
    log.join(joined)
    assert not joined and log.wanted == ("c", 3)
    log.read(StoredRead(1, parcels((1, 6))))
    assert seqs(take_all(log)) == [3, 4, 5]
    assert seqs(log.sort(run(6, 8, source=NEXT_OWN), STORED)) == [6, 7]
    log.join(deque([("c", NEXT_OWN, 8)]))
    assert not log.is_waiting, "nothing was missed there"


def test_other_channels_of_a_pattern_go_on_beside() -> None:
    log = StoredLog()
    log.sort([message(1), message(1, source=OTHER, channel="d")], STORED)
    batch = [
        message(2, source=OTHER, channel="d"),
        message(4, missed=2),
        message(3, source=OTHER, channel="d"),
    ]
    assert log.sort(batch, STORED) == []
    assert [(each.channel, each.seq) for each in log.take(9, 1 << 20)] == [("d", 2)]
    log.read(StoredRead(2, parcels((2, 4))))
    assert [(each.channel, each.seq) for each in take_all(log)] == [("c", 2), ("c", 3), ("c", 4), ("d", 3)]


def test_an_echo_is_left_out_wherever_it_is_found() -> None:
    log = StoredLog(excluded={OTHER})
    assert seqs(log.sort([message(1), message(5), message(6)], STORED)) == [1, 5, 6], (
        "the ring passed it over"
    )
    log.sort([message(9, missed=2)], STORED)
    log.read(StoredRead(7, parcels((7, 8), origin=OTHER) + parcels((8, 9))))
    assert seqs(take_all(log)) == [8, 9] and log.missed == 0


def test_damage_is_told() -> None:
    log = StoredLog()
    log.begin("c", 1, 5)
    with pytest.raises(StoreDamaged):
        log.read(StoredRead(1, [b"no parcel"]))
    log.read(StoredRead(1, parcels((1, 5))))
    assert seqs(take_all(log)) == [1, 2, 3, 4]


class Asked:
    """What a place asks for; the answers are given by the test."""

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.answer: Callable[[TowpathError | None], None] = lambda _: None

    def _post(self, call: Call[Any], then: Callable[[TowpathError | None], None]) -> Callable[[], object]:
        self.seqs.append(call.body.seq)
        self.answer = then
        return lambda: None


def test_a_place_is_saved_by_one_call_at_a_time_and_what_could_be_overtaken_waits() -> None:
    asked = Asked()
    place = SavedPlace(cast(Asking, asked), "c", "nightly")
    idle: list[list[int]] = []
    place.when_idle(lambda: idle.append([]))
    assert idle == [[]]  # at once
    place.dealt(1)
    place.dealt(4)
    place.dealt(9)
    place.when_idle(lambda: idle.append(list(asked.seqs)))
    assert asked.seqs == [1] and len(idle) == 1
    asked.answer(None)
    assert asked.seqs == [1, 9] and len(idle) == 1  # what was dealt with meanwhile goes first
    asked.answer(None)
    assert asked.seqs == [1, 9] and idle == [[], [1, 9]]


def test_a_place_that_could_not_be_saved_goes_with_what_is_dealt_with_next() -> None:
    asked = Asked()
    place = SavedPlace(cast(Asking, asked), "c", "nightly")
    idle: list[str] = []
    place.dealt(3)
    place.when_idle(lambda: idle.append("idle"))
    asked.answer(Unavailable("the core is away"))
    assert asked.seqs == [3] and idle == ["idle"]
    place.dealt(3)
    assert asked.seqs == [3, 3]
    asked.answer(None)
    place.stop()
    place.dealt(5)
    assert asked.seqs == [3, 3]
