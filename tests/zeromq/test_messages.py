"""What travels on ``sub`` and ``push``, part by part."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath import Headers, Message
from towpath.convert import encode_headers
from towpath.errors import BadFrame, InvalidArgument, TowpathError
from towpath.v1.message_pb2 import Headers as HeadersProto
from towpath.v1.message_pb2 import MessageBatch
from towpath_broker.gateways.zeromq.messages import META, checked_headers, fill_batch, runs


def message(source: int, seq: int, headers: bytes = b"") -> Message:
    payload = f"{source}/{seq}".encode()
    return Message(payload, seq=seq, source=source, time_ns=seq * 10, channel="a", headers_raw=headers)


def test_meta_is_24_bytes_little_endian() -> None:
    assert META.pack(1, 2, 3) == bytes([1, *[0] * 7, 2, *[0] * 7, 3, *[0] * 7])


def test_headers_pass_as_they_are() -> None:
    raw = encode_headers(Headers(content_type="text/plain", priority=31, user={"a": "b"}))
    assert checked_headers(raw) == raw
    assert checked_headers(b"") == b""


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"\xff\xff\xff", BadFrame),
        (HeadersProto(priority=32).SerializeToString(), InvalidArgument),
        (HeadersProto(user={"": "x"}).SerializeToString(), InvalidArgument),
        (HeadersProto(user={"x" * 129: ""}).SerializeToString(), InvalidArgument),
        (HeadersProto(user={str(number): "" for number in range(65)}).SerializeToString(), InvalidArgument),
        (HeadersProto(content_type="x" * 20_000).SerializeToString(), InvalidArgument),
    ],
)
def test_bad_headers_are_refused(raw: bytes, error: type[TowpathError]) -> None:
    with pytest.raises(error):
        checked_headers(raw)


@given(st.binary(max_size=200))
def test_any_bytes_as_headers_are_taken_or_refused(raw: bytes) -> None:
    try:
        again = checked_headers(raw)
    except (BadFrame, InvalidArgument):
        return
    assert checked_headers(again) == again


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(1, 3)), max_size=12))
def test_runs_keep_the_order_and_are_as_long_as_they_can_be(keys: list[tuple[int, int]]) -> None:
    messages = [message(source, seq) for source, seq in keys]
    cut = [list(run) for run in runs(messages)]
    assert [each for run in cut for each in run] == messages
    for run in cut:
        assert [each.seq for each in run] == list(range(run[0].seq, run[0].seq + len(run)))
        assert {each.source for each in run} == {run[0].source}
    for before, after in itertools.pairwise(cut):
        assert (after[0].source, after[0].seq) != (before[-1].source, before[-1].seq + 1)


def test_a_batch_has_a_column_of_headers_only_when_there_are_some() -> None:
    plain, mixed = MessageBatch(), MessageBatch()
    fill_batch(plain, [message(7, 1), message(7, 2)])
    assert (plain.channel, plain.source, plain.first_seq) == ("a", 7, 1)
    assert (list(plain.payloads), list(plain.publish_times_ns)) == ([b"7/1", b"7/2"], [10, 20])
    assert not plain.headers
    fill_batch(mixed, [message(7, 1), message(7, 2, encode_headers(Headers(priority=4)))])
    assert [headers.priority for headers in mixed.headers] == [0, 4]
