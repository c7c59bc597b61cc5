"""What a subscription has received: numbers, gaps, repetitions and bounds. No connection."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath import Headers, errors
from towpath.convert import headers_to_proto
from towpath.remote.inbox import BYTES_MAX, MESSAGES_MAX, SOURCES_MAX, Inbox
from towpath.v1.message_pb2 import MessageBatch


def batch(first: int, count: int, *, source: int = 1, missed: int = 0, size: int = 1) -> MessageBatch:
    numbers = range(first, first + count)
    return MessageBatch(
        channel="c",
        source=source,
        first_seq=first,
        payloads=[b"%d" % number + bytes(size - 1) for number in numbers],
        publish_times_ns=[1000 + number for number in numbers],
        missed=missed,
    )


def seqs(inbox: Inbox) -> list[int]:
    return [message.seq for message in inbox.take(1_000_000, 1 << 40)]


def test_messages_come_out_as_they_came_in() -> None:
    inbox = Inbox("c")
    made = batch(5, 2)
    made.headers.extend([headers_to_proto(Headers(priority=3)), headers_to_proto(Headers())])
    assert inbox.put(made) == 0
    first, second = inbox.take(10, 100)
    assert (first.payload, first.seq, first.source, first.time_ns, first.channel) == (b"5", 5, 1, 1005, "c")
    assert (first.headers.priority, second.headers) == (3, Headers())
    assert (first.missed, inbox.lost, len(inbox)) == (0, 0, 0)


def test_what_a_source_published_before_it_was_heard_of_is_not_missed() -> None:
    inbox = Inbox("c")
    inbox.put(batch(100, 3))
    assert (seqs(inbox), inbox.lost) == ([100, 101, 102], 0)


def test_a_gap_is_told_with_the_message_after_it() -> None:
    inbox = Inbox("c")
    inbox.put(batch(1, 3))
    inbox.put(batch(10, 2))
    inbox.put(batch(7, 1, source=2))
    assert [(m.source, m.seq, m.missed) for m in inbox.take(10, 100)] == [
        (1, 1, 0),
        (1, 2, 0),
        (1, 3, 0),
        (1, 10, 6),
        (1, 11, 0),
        (2, 7, 0),
    ]
    assert inbox.lost == 6


def test_what_the_gateway_missed_itself_counts_once() -> None:
    inbox = Inbox("c")
    inbox.put(batch(5, 1, missed=4))
    inbox.put(batch(9, 1, missed=3))
    assert [message.missed for message in inbox.take(10, 100)] == [4, 3]
    assert inbox.lost == 7


def test_what_was_seen_is_not_handed_out_again() -> None:
    inbox = Inbox("c")
    inbox.put(batch(1, 10))
    assert inbox.put(batch(6, 10)) == 5
    assert inbox.put(batch(3, 2)) == 2
    assert (seqs(inbox), inbox.lost) == (list(range(1, 16)), 0)


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 30), st.integers(1, 8)),
        max_size=40,
    )
)
def test_numbers_grow_and_everything_is_accounted_for(runs: list[tuple[int, int, int]]) -> None:
    inbox = Inbox("c")
    first_seen: dict[int, int] = {}
    highest: dict[int, int] = {}
    for source, first, count in runs:
        first_seen.setdefault(source, first)
        highest[source] = max(highest.get(source, 0), first + count - 1)
        inbox.put(batch(first, count, source=source))
    messages = inbox.take(1_000_000, 1 << 40)
    for source in highest:
        mine = [message for message in messages if message.source == source]
        assert all(a.seq + 1 + b.missed == b.seq for a, b in itertools.pairwise(mine))
        received = len(mine) + sum(message.missed for message in mine)
        assert received == highest[source] - first_seen[source] + 1
    assert inbox.lost == sum(message.missed for message in messages)


def test_bounds() -> None:
    inbox = Inbox("c")
    inbox.put(batch(1, MESSAGES_MAX - 1))
    assert inbox.has_room
    inbox.put(batch(MESSAGES_MAX, 1))
    assert not inbox.has_room
    inbox.take(1, 1)
    assert inbox.has_room
    inbox.put(batch(1, 1, source=2, size=BYTES_MAX))
    assert not inbox.has_room


def test_taking_within_bounds() -> None:
    inbox = Inbox("c")
    inbox.put(batch(1, 10, size=100))
    assert len(inbox.take(3, 1 << 20)) == 3
    assert len(inbox.take(10, 250)) == 2
    assert len(inbox.take(10, 1)) == 1
    assert len(inbox.take(10, 500)) == 4
    assert inbox.take(10, 400) == []


def test_silent_sources_are_forgotten_first() -> None:
    inbox = Inbox("c")
    for source in range(SOURCES_MAX):
        inbox.put(batch(1, 1, source=source + 1))
    inbox.put(batch(2, 1, source=1))
    inbox.put(batch(1, 1, source=SOURCES_MAX + 1))
    inbox.put(batch(5, 1, source=1))
    inbox.put(batch(5, 1, source=2))
    assert inbox.lost == 2


@pytest.mark.parametrize("column", ["publish_times_ns", "headers"])
def test_a_batch_whose_columns_do_not_fit_is_refused(column: str) -> None:
    inbox, broken = Inbox("c"), batch(1, 3)
    if column == "headers":
        broken.headers.add()
    else:
        broken.publish_times_ns.append(1)
    with pytest.raises(errors.ProtocolViolation):
        inbox.put(broken)
    assert len(inbox) == 0


def test_an_end_comes_after_what_is_held() -> None:
    inbox = Inbox("c")
    inbox.put(batch(1, 1))
    inbox.end(errors.ChannelUndeclared("gone"))
    inbox.end(errors.ConnectionLost("later"))
    assert not inbox.is_drained
    assert seqs(inbox) == [1]
    assert inbox.is_drained
    assert isinstance(inbox.ended, errors.ChannelUndeclared)
