"""What the daemon tells of channels' and sessions' traffic, from real rings; and what lies in rings changes
figures only.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from towpath import _ring, wire
from towpath.model import Traffic
from towpath_broker.core.ids import ReaderId, SourceId
from towpath_broker.rings.traffic import COUNT_MAX, RingTraffic

SOURCE, READER = SourceId(7), ReaderId(9)


@pytest.fixture
def traffic() -> RingTraffic:
    return RingTraffic()


@pytest.fixture
def writer() -> Iterator[_ring.Writer]:
    writer = _ring.Writer(SOURCE, 4096)
    yield writer
    writer.close()


def shared(side: _ring.Writer | _ring.Reader) -> wire.Descriptor:
    return wire.Descriptor(side.share())


def test_figures_are_those_of_the_writer(traffic: RingTraffic, writer: _ring.Writer) -> None:
    traffic.begin(SOURCE, "a", shared(writer), is_resumed=False)
    assert traffic.by_channel(["a", "b"]) == {"a": Traffic(), "b": Traffic()}
    for _ in range(1000):  # laps many times: nobody reads
        assert writer.try_publish(b"x" * 100) > 0
    assert traffic.published([SOURCE]) == Traffic(writer.last_seq, writer.tail)
    assert traffic.by_channel(["a"]) == {"a": Traffic(1000, writer.tail)}


def test_a_closed_ring_keeps_its_figures(traffic: RingTraffic, writer: _ring.Writer) -> None:
    traffic.begin(SOURCE, "a", shared(writer), is_resumed=False)
    writer.try_publish(b"x")
    tail = writer.tail
    writer.close()
    assert traffic.by_channel(["a"]) == {"a": Traffic(1, tail)}


def test_what_a_source_published_stays_its_channels(traffic: RingTraffic) -> None:
    tails = 0
    for number in (1, 2, 3):
        writer = _ring.Writer(number, 4096)
        traffic.begin(SourceId(number), "a", shared(writer), is_resumed=False)
        writer.try_publish_many([b"x"] * number)
        tails += writer.tail
        if number < 3:
            traffic.end(SourceId(number))
        writer.close()
    assert traffic.by_channel(["a"]) == {"a": Traffic(6, tails)}


def test_a_channel_that_went_is_forgotten(traffic: RingTraffic, writer: _ring.Writer) -> None:
    traffic.begin(SOURCE, "a", shared(writer), is_resumed=False)
    writer.try_publish(b"x")
    traffic.end(SOURCE)
    assert traffic.by_channel([]) == {}
    assert traffic.by_channel(["a"]) == {"a": Traffic()}


def test_of_a_source_that_comes_back_only_what_follows_counts(
    traffic: RingTraffic, writer: _ring.Writer
) -> None:
    writer.try_publish(b"before")
    before = writer.tail
    traffic.begin(SOURCE, "a", shared(writer), is_resumed=True)
    assert traffic.by_channel(["a"]) == {"a": Traffic()}
    writer.try_publish(b"after")
    assert traffic.by_channel(["a"]) == {"a": Traffic(1, writer.tail - before)}


def test_a_source_that_was_refused_counts_nowhere(traffic: RingTraffic, writer: _ring.Writer) -> None:
    writer.try_publish(b"x")
    traffic.begin(SOURCE, "a", shared(writer), is_resumed=False)
    traffic.withdraw(SOURCE)
    traffic.end(SOURCE)
    assert traffic.by_channel(["a"]) == {"a": Traffic()}


def test_pending_is_what_a_reader_has_not_taken(traffic: RingTraffic, writer: _ring.Writer) -> None:
    reader = _ring.Reader(READER, 4)
    page, ring = shared(reader), shared(writer)
    traffic.begin(SOURCE, "a", ring, is_resumed=False)
    traffic.begin_reader(READER, page)
    of_reader = [(READER, {SOURCE: 3})]
    assert traffic.pending_bytes(of_reader) == 0
    writer.attach(READER, page.fd, 3, -1, True)
    reader.add(ring.fd, 3, SOURCE, "a", True)
    writer.try_publish_many([b"x"] * 5)
    assert traffic.pending_bytes(of_reader) == reader.pending_bytes == writer.tail
    assert len(reader.receive(2, 1 << 20, 0)) == 2
    # The cursor moves when the batch has been copied out; what it says is what is told.
    assert traffic.pending_bytes(of_reader) == reader.pending_bytes
    reader.receive(3, 1 << 20, 0)
    assert traffic.pending_bytes(of_reader) == 0
    traffic.end(SOURCE)
    traffic.end_reader(READER)
    assert traffic.pending_bytes(of_reader) == 0
    reader.close()


class Forged:
    """A ring or page with a header in which anything may stand: what a program could make of its own."""

    def __init__(self, size: int) -> None:
        self.descriptor = wire.Descriptor(os.memfd_create("forged"))
        os.ftruncate(self.descriptor.fd, size)
        self._memory = mmap.mmap(self.descriptor.fd, size)

    def put(self, offset: int, *numbers: int) -> None:
        struct.pack_into(f"<{len(numbers)}Q", self._memory, offset, *numbers)


@pytest.mark.parametrize("tail, seq", [(2**64 - 1, 2**64 - 1), (8, 0), (0, 5), (2**63, 2**63)])
def test_lies_are_bounded(traffic: RingTraffic, tail: int, seq: int) -> None:
    ring, page = Forged(8192), Forged(8192)
    ring.put(128, 4096, 10)
    page.put(256, 1, SOURCE)
    for number in range(3):
        traffic.begin(SourceId(SOURCE + number), "a", ring.descriptor, is_resumed=True)
        traffic.begin_reader(ReaderId(number), page.descriptor)
    ring.put(128, tail, seq)
    sources = [SourceId(SOURCE + number) for number in range(3)]
    readers = [(ReaderId(number), {SOURCE: 0}) for number in range(3)]
    figures = [traffic.by_channel(["a"])["a"], traffic.published(sources)]
    for figure in figures:
        assert 0 <= figure.messages <= COUNT_MAX and 0 <= figure.ring_bytes <= COUNT_MAX
    assert 0 <= traffic.pending_bytes(readers) <= COUNT_MAX
    for source in sources:
        traffic.end(source)
    after = traffic.by_channel(["a"])["a"]
    assert 0 <= after.messages <= COUNT_MAX and 0 <= after.ring_bytes <= COUNT_MAX


def test_where_one_ring_has_all_the_others_count_for_their_sessions_alone(
    traffic: RingTraffic, writer: _ring.Writer
) -> None:
    whole = _ring.Writer(8, 4096)
    traffic.begin(SourceId(8), "a", shared(whole), is_resumed=False, is_whole=True)
    traffic.begin(SOURCE, "a", shared(writer), is_resumed=False)
    writer.try_publish_many([b"1", b"2"])
    whole.try_publish_many([b"1", b"2", b"over the socket"])
    assert traffic.by_channel(["a"]) == {"a": Traffic(3, whole.tail)}
    assert traffic.published([SOURCE]) == Traffic(2, writer.tail)
    traffic.end(SOURCE)
    assert traffic.by_channel(["a"]) == {"a": Traffic(3, whole.tail)}
    tail = whole.tail
    traffic.end(SourceId(8))
    whole.close()
    assert traffic.by_channel(["a"]) == {"a": Traffic(3, tail)}
