"""Recordings are read back equal; a cut file is used to its last whole record, a damaged one is told of."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath._message import PurePythonMessage
from towpath.convert import encode_headers
from towpath.errors import BadFrame
from towpath.model import Headers
from towpath.recording import (
    MAGIC,
    RECORD_BYTES_MAX,
    Batcher,
    Gaps,
    Recording,
    encode_batch,
    encode_header,
    headers_column,
    runs,
)

U64 = 2**64 - 1


def message(seq: int, source: int = 1, payload: bytes = b"x", headers_raw: bytes = b"") -> PurePythonMessage:
    return PurePythonMessage(
        payload, seq=seq, source=source, time_ns=seq * 1000, channel=f"c{source}", headers_raw=headers_raw
    )


def recorded(messages: list[PurePythonMessage]) -> bytes:
    gaps, batcher = Gaps(), Batcher()
    records = [encode_batch(batcher.batch(run, gaps.before(run))) for run in runs(messages)]
    return encode_header("c.>", 77) + b"".join(records)


def replayed(data: bytes) -> list[PurePythonMessage]:
    messages = []
    for batch in Recording(io.BytesIO(data)):
        column = headers_column(batch) or [b""] * len(batch.payloads)
        messages += [
            PurePythonMessage(
                payload,
                seq=batch.first_seq + index,
                source=batch.source,
                time_ns=batch.publish_times_ns[index],
                channel=batch.channel,
                headers_raw=column[index],
            )
            for index, payload in enumerate(batch.payloads)
        ]
    return messages


SOME_HEADERS = encode_headers(Headers(content_type="text/plain", key=b"\xff", user={"a": "b"}))


@given(
    st.lists(
        st.tuples(
            st.integers(1, U64),
            st.integers(1, 3),
            st.binary(max_size=20),
            st.sampled_from([b"", SOME_HEADERS]),
        ),
        max_size=30,
    )
)
def test_what_was_recorded_is_read_back_equal(parts: list[tuple[int, int, bytes, bytes]]) -> None:
    messages = [
        PurePythonMessage(payload, seq=seq, source=source, time_ns=seq, channel="a.b", headers_raw=raw)
        for seq, source, payload, raw in parts
    ]
    assert replayed(recorded(messages)) == messages


def test_the_header_says_what_it_is() -> None:
    header = Recording(io.BytesIO(encode_header("plant.>", 77))).header
    assert (header.version, header.started_at_ns, header.channel) == (1, 77, "plant.>")


def test_what_is_missing_is_counted_once_and_kept() -> None:
    gaps = Gaps()
    found = [gaps.before(run) for run in runs([message(5), message(6), message(9), message(3, source=2)])]
    found += [gaps.before(run) for run in runs([message(4, source=2), message(20)])]
    assert (found, gaps.missed) == ([0, 2, 0, 0, 10], 12)
    batches = list(Recording(io.BytesIO(recorded([message(1), message(4)]))))
    assert [batch.missed for batch in batches] == [0, 2]


def test_headers_that_are_none_are_left_out_and_counted() -> None:
    batcher = Batcher()
    batch = batcher.batch([message(1, headers_raw=b"\xff\xff"), message(2, headers_raw=SOME_HEADERS)], 0)
    assert headers_column(batch) == [b"", SOME_HEADERS]
    assert batcher.unreadable == 1


WHOLE = recorded([message(1), message(2), message(1, source=2), message(3)])


@pytest.mark.parametrize("cut", range(len(encode_header("c.>", 77)), len(WHOLE)))
def test_a_recording_cut_anywhere_is_used_to_its_last_whole_record(cut: int) -> None:
    recording = Recording(io.BytesIO(WHOLE[:cut]))
    batches = list(recording)
    assert recording.position + recording.lost_bytes == cut
    assert batches == list(Recording(io.BytesIO(WHOLE)))[: len(batches)]
    assert WHOLE[: recording.position] + b"".join(
        encode_batch(batch) for batch in list(Recording(io.BytesIO(WHOLE)))[len(batches) :]
    ) == WHOLE  # fmt: skip


@pytest.mark.parametrize("place", range(len(WHOLE)))
def test_a_changed_bit_is_noticed(place: int) -> None:
    damaged = bytearray(WHOLE)
    damaged[place] ^= 0x10
    whole = list(Recording(io.BytesIO(WHOLE)))
    read = []
    with pytest.raises(BadFrame):
        recording = Recording(io.BytesIO(bytes(damaged)))
        for batch in recording:
            read.append(batch)
        # A length that now reaches behind the end is as if the end had been cut off.
        assert recording.lost_bytes > 0
        raise BadFrame("cut short")
    assert read == whole[: len(read)]


def record(body: bytes) -> bytes:
    return struct.pack("<II", len(body), zlib.crc32(body)) + body


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "not a recording"),
        (b"TOWPREC", "not a recording"),
        (MAGIC, "ends before it begins"),
        (MAGIC + record(b"\x08\x02"), "of version 2"),
        (MAGIC + record(b""), "of version 0"),
        (MAGIC + record(b"\xff\xff"), "damaged"),
        (MAGIC + struct.pack("<II", RECORD_BYTES_MAX + 1, 0), "damaged"),
        (encode_header("a", 1) + record(b""), "damaged"),
        (encode_header("a", 1) + record(b"\xff"), "damaged"),
        (encode_header("a", 1) + record(b"\x0a\x01a\x22\x01x"), "damaged"),  # a payload without its time
        (encode_header("a", 1) + record(b"\x0a\x01*\x22\x01x\x2a\x08" + bytes(8)), "damaged"),  # a bad name
    ],
)
def test_what_is_no_recording_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(BadFrame, match=text):
        list(Recording(io.BytesIO(data)))


def test_a_length_without_its_bytes_takes_no_memory() -> None:
    recording = Recording(io.BytesIO(encode_header("a", 1) + struct.pack("<II", RECORD_BYTES_MAX, 0) + b"xy"))
    assert list(recording) == []
    assert recording.lost_bytes == 10
