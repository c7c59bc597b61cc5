"""Parcels: what goes in comes out; out of rings, into rings; what is damaged is refused."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from towpath import _ring
from towpath._ring import Packed, Parcel, Reader, RingError, Writer


@pytest.fixture
def pair() -> Iterator[tuple[Writer, Reader]]:
    """A publisher's ring, and the core's reader of it."""
    writer, reader = Writer(7, 1 << 16), Reader(9, 4)
    connect(writer, reader, 0)
    yield writer, reader
    writer.close()
    reader.close()


def connect(writer: Writer, reader: Reader, slot: int) -> None:
    ring, page = writer.share(), reader.share()
    writer.attach(reader.reader, page, slot, -1, "start")
    reader.add(ring, slot, writer.source, "c", "start")
    os.close(ring)
    os.close(page)


def take(reader: Reader, count_max: int = 1 << 20, bytes_max: int = 1 << 20) -> Packed | None:
    return _ring.take(reader, count_max, bytes_max, 1 << 20)


def test_columns_come_out_as_they_went_in() -> None:
    generator = random.Random(1)
    for _ in range(50):
        count = generator.randint(1, 40)
        payloads = [generator.randbytes(generator.randrange(200)) for _ in range(count)]
        headers = [generator.randbytes(generator.choice((0, 0, 9))) for _ in range(count)]
        times = [generator.randrange(1 << 62) for _ in range(count)]
        origins = [generator.choice(((0, 0), (3, n + 1))) for n in range(count)]
        packed = _ring.pack(payloads, headers, 0, times, origins)
        assert packed.message_count == count and packed.taken == {}
        assert packed.content_bytes == sum(map(len, payloads)) + sum(map(len, headers))
        assert packed.headers_bytes == sum(map(len, headers))
        assert (packed.first_time_ns, packed.last_time_ns) == (min(times), max(times))
        assert Parcel(packed.data, 1).unpack() == (payloads, headers, times, origins)


def test_messages_are_handed_out_with_their_seqs() -> None:
    data = _ring.pack([b"%d" % n for n in range(100)], (), 5).data
    parcel = Parcel(data, 1001, "c", 3, 4)
    first = parcel.receive(10, 1 << 20)
    assert [(m.seq, m.payload) for m in first] == [(1001 + n, b"%d" % n) for n in range(10)]
    assert (first[0].channel, first[0].source, first[0].time_ns) == ("c", 3, 5)
    assert [m.missed for m in first] == [4] + [0] * 9
    assert (parcel.first_seq, parcel.count, parcel.next_seq, parcel.end_seq) == (1001, 100, 1011, 1101)
    parcel.skip_to(1050)
    assert parcel.receive(1, 1)[0].seq == 1050
    assert [m.seq for m in parcel.receive(1000, 5)] == [1051, 1052], "bytes are bounded"
    parcel.skip_to(5000)
    assert parcel.receive(1, 1) == [] and parcel.next_seq == 1101


def test_what_is_taken_is_released_later(pair: tuple[Writer, Reader]) -> None:
    writer, reader = pair
    writer.try_publish_many([b"a", b"b"], headers=b"\x0a\x01t")
    packed = take(reader)
    assert packed is not None and packed.taken == {7: (1, 2)}
    assert take(reader) is None, "it is taken once"
    assert not writer.drained(), "but the publisher does not see that yet"
    writer.try_publish(b"c")
    more = take(reader)
    assert more is not None and more.taken == {7: (3, 3)}
    _ring.release(reader)
    assert writer.drained()
    payloads, headers, times, origins = Parcel(packed.data, 1).unpack()
    assert (payloads, headers, origins) == ([b"a", b"b"], [b"\x0a\x01t"] * 2, [(7, 1), (7, 2)])
    assert packed.first_time_ns == times[0] > 0


def test_what_a_dead_core_had_stored_is_passed_over(pair: tuple[Writer, Reader]) -> None:
    writer, reader = pair
    writer.try_publish_many([b"%d" % n for n in range(10)])
    assert take(reader) is not None
    page, ring = reader.keep(), writer.share()
    successor = Reader.recover(page)
    successor.add(ring, 0, 7, "c", "cursor")
    assert successor.pass_over(7, 6)
    packed = take(successor)
    assert packed is not None and packed.taken == {7: (7, 10)}
    assert Parcel(packed.data, 1).unpack()[0] == [b"6", b"7", b"8", b"9"]
    os.close(page)
    os.close(ring)
    successor.close()


def test_sources_take_turns_and_bounds_are_kept() -> None:
    writers = [Writer(source, 1 << 16) for source in (1, 2, 3)]
    reader = Reader(9, 4)
    for slot, writer in enumerate(writers):
        connect(writer, reader, slot)
        writer.try_publish_many([b"%d" % writer.source * 50] * 100)
    seen: dict[int, int] = {}
    while (packed := take(reader, 70, 4_000)) is not None:
        assert packed.message_count <= 70 and len(packed.data) < 4_200
        for source, (first, last) in packed.taken.items():
            assert first == seen.get(source, 0) + 1
            seen[source] = last
    assert seen == {1: 100, 2: 100, 3: 100}
    for writer in writers:
        writer.close()
    reader.close()


def test_a_message_that_is_too_large_is_its_sources_violation(pair: tuple[Writer, Reader]) -> None:
    writer, reader = pair
    writer.try_publish_many([b"small", b"x" * 2_000, b"never read"])
    packed = _ring.take(reader, 100, 1 << 20, 1_000)
    assert packed is not None and packed.taken == {7: (1, 1)}
    assert [source for source, _ in reader.take_violations()] == [7]


def test_a_ring_goes_on_with_the_logs_seqs() -> None:
    own, reader = Writer(11, 1 << 16, overflow="drop"), Reader(9, 4)
    _ring.begin_at(own, 501)
    connect(own, reader, 0)
    first = _ring.pack([b"a", b"b"], (), 5, (), [(7, 1), (0, 0)])
    assert _ring.show(own, first.data, 501) == len(first.data)
    own.try_publish(b"c")
    messages = reader.receive(10, 1 << 20, 0)
    assert [(m.seq, m.payload, m.origin_source, m.missed) for m in messages] == [
        (501, b"a", 7, 0),
        (502, b"b", 0, 0),
        (503, b"c", 0, 0),
    ]
    assert messages[0].time_ns == messages[1].time_ns == 5
    with pytest.raises(RingError):
        _ring.show(own, first.data, 501)
    with pytest.raises(ValueError):
        _ring.begin_at(own, 9)
    own.close()
    reader.close()


def test_a_ring_of_a_log_is_recovered() -> None:
    own = Writer(11, 1 << 16, overflow="drop")
    _ring.begin_at(own, 501)
    kept = own.keep()
    recovered = Writer.recover(kept)
    assert recovered.last_seq == 500
    os.close(kept)
    own.close()
    recovered.close()


def test_part_of_a_parcel_is_shown_from_where_it_was_left() -> None:
    own = Writer(11, 1 << 16, overflow="drop")
    packed = _ring.pack([b"a", b"b", b"c"], (), 5)
    _ring.begin_at(own, 2)
    parcel = Parcel(packed.data, 1)
    parcel.skip_to(2)
    assert _ring.show(own, packed.data, 1, parcel.offset) == len(packed.data) and own.last_seq == 3
    for at in (1, 33, len(packed.data) + 8):
        with pytest.raises((ValueError, RingError)):
            _ring.show(own, packed.data, 1, at)
    own.close()


def test_every_changed_bit_is_noticed() -> None:
    data = _ring.pack([b"abc", b"d" * 20], [b"\x0a\x01t", b""], 5, (), [(7, 1), (7, 2)]).data
    for place in range(len(data) * 8):
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(RingError):
            Parcel(bytes(changed), 1)
    for cut in range(len(data)):
        with pytest.raises(RingError):
            Parcel(data[:cut], 1)
    for seq in (0, (1 << 64) - 1):
        with pytest.raises(RingError):
            Parcel(data, seq)


def test_crc32c_is_the_one_of_the_standard() -> None:
    assert _ring.crc32c(b"123456789") == 0xE3069283
    assert _ring.crc32c(bytes(32)) == 0x8A9136AA and _ring.crc32c(b"\xff" * 32) == 0x62A8AB43, "RFC 3720 B.4"
    assert _ring.crc32c(b"") == 0


@pytest.mark.parametrize(
    "columns",
    [
        ([], (), 0),
        ([b"a"], [b"", b""], 0),
        ([b"a"], (), -1),
        ([b"a"], (), 0, [1, 2]),
        ([b"a"], (), 0, (), [(1,)]),
        ([b"a"], (), 0, (), [5]),
        (["a"], (), 0),
        ([b"a"], [5], 0),
    ],
)
def test_bad_columns_are_refused(columns: tuple[object, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        _ring.pack(*columns)  # type: ignore[arg-type]
