"""Columns in and out: what a request may hold, and how received messages become responses."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from towpath._message import Message
from towpath.v1.channels_pb2 import PublishRequest
from towpath.v1.message_pb2 import Headers
from towpath_broker.gateways._forwarding import _pieces
from towpath_broker.gateways.grpc.batches import pack


def message(source: int, seq: int, payload: bytes = b"", headers_raw: bytes = b"") -> Message:
    return Message(
        payload, seq=seq, source=source, time_ns=1_000 * seq + source, channel="a.b", headers_raw=headers_raw
    )


def test_one_source_in_order_is_one_response() -> None:
    messages = [message(7, seq, b"%d" % seq) for seq in range(5, 300)]
    [response], unreadable = pack(messages)
    assert unreadable == 0
    batch = response.batch
    assert (batch.channel, batch.source, batch.first_seq) == ("a.b", 7, 5)
    assert list(batch.payloads) == [each.payload for each in messages]
    assert list(batch.publish_times_ns) == [each.time_ns for each in messages]
    assert not batch.headers


def test_headers_of_one_message_make_a_column_for_its_run() -> None:
    headers = Headers(content_type="text/plain")
    messages = [message(1, 1), message(1, 2, headers_raw=headers.SerializeToString()), message(2, 1)]
    (first, second), unreadable = pack(messages)
    assert unreadable == 0
    assert list(first.batch.headers) == [Headers(), headers]
    assert not second.batch.headers


def test_headers_that_cannot_be_read_are_left_out_and_counted() -> None:
    good = Headers(key=b"k").SerializeToString()
    messages = [message(1, 1, b"a", good), message(1, 2, b"b", b"\xff\xff"), message(1, 3, b"c", good[:-1])]
    [response], unreadable = pack(messages)
    assert unreadable == 2
    assert list(response.batch.headers) == [Headers(key=b"k"), Headers(), Headers()]
    assert list(response.batch.payloads) == [b"a", b"b", b"c"]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=60))
def test_every_message_comes_out_once_in_order_with_its_number(steps: list[tuple[int, int]]) -> None:
    # Any interleaving of sources, with gaps, as long as seq grows within each source.
    last: dict[int, int] = {}
    messages = []
    for source, step in steps:
        last[source] = last.get(source, 0) + step
        messages.append(message(source, last[source], b"%d/%d" % (source, last[source])))
    told = []
    runs, _ = pack(messages)
    for response in runs:
        batch = response.batch
        assert len(batch.payloads) == len(batch.publish_times_ns)
        for index, payload in enumerate(batch.payloads):
            told.append((batch.source, batch.first_seq + index, payload))
    assert told == [(each.source, each.seq, each.payload) for each in messages]
    # No run could have been longer.
    for before, after in itertools.pairwise(runs):
        end = before.batch.first_seq + len(before.batch.payloads)
        assert (before.batch.source, end) != (after.batch.source, after.batch.first_seq)


def test_each_piece_of_a_large_batch_has_its_fence_and_headers() -> None:
    request = PublishRequest(
        channel="a", payloads=[bytes(300_000)] * 5, headers=[Headers(key=b"%d" % at) for at in range(5)]
    )
    assert len(_pieces(request)) > 1 and not any(piece.HasField("fence") for piece in _pieces(request))
    request.fence.lock, request.fence.token = "lock", 7
    pieces = _pieces(request)
    assert {(piece.fence.lock, piece.fence.token) for piece in pieces} == {("lock", 7)}
    assert [each.key for piece in pieces for each in piece.headers] == [b"%d" % at for at in range(5)]
