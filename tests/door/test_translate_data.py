"""Between frames and the data plane, without a daemon."""

from __future__ import annotations

import pytest

from towpath import convert
from towpath.errors import InvalidArgument
from towpath.v1 import channels_pb2, frame_pb2, message_pb2, queues_pb2, store_pb2
from towpath_broker.core.commands import Caller
from towpath_broker.core.data import commands as c
from towpath_broker.core.data import effects as e
from towpath_broker.core.data.rows import PackedParcel
from towpath_broker.core.ids import CallId, SessionId
from towpath_broker.local import translate_data as t

CALLER = Caller("uid:7", session=SessionId(1), call=CallId(2))


def publish(*headers: message_pb2.Headers, count: int = 2) -> c.Publish:
    request = channels_pb2.PublishRequest(channel="q", payloads=[b"x"] * count, headers=headers)
    command = t.command_from(CALLER, "publish_request", request)
    assert isinstance(command, c.Publish)
    return command


def test_what_the_machine_must_know_of_headers_stands_in_columns() -> None:
    command = publish(
        message_pb2.Headers(priority=5, message_id="1"),
        message_pb2.Headers(deliver_at_ns=77, user={"a": "b"}),
    )
    assert command.priorities == [5, 0]
    assert command.deliver_at_ns == [0, 77]
    assert command.message_ids == ["1", ""]
    assert [message_pb2.Headers.FromString(raw).user for raw in command.headers] == [{}, {"a": "b"}]


def test_columns_that_say_nothing_are_empty() -> None:
    command = publish(message_pb2.Headers(), message_pb2.Headers())
    assert (command.headers, command.priorities, command.deliver_at_ns, command.message_ids) == ((),) * 4
    command = publish(message_pb2.Headers(key=b"k"), message_pb2.Headers())
    assert (command.priorities, command.deliver_at_ns, command.message_ids) == ((),) * 3
    assert command.headers[1] == b""


@pytest.mark.parametrize(
    "request_",
    [
        channels_pb2.PublishRequest(channel="q"),
        channels_pb2.PublishRequest(channel="q", payloads=[b""] * 10_001),
        channels_pb2.PublishRequest(channel="q", payloads=[b"", b""], headers=[message_pb2.Headers()]),
        channels_pb2.PublishRequest(
            channel="q",
            payloads=[b""],
            headers=[message_pb2.Headers(key=b"x" * convert.HEADERS_BYTES_MAX)],
        ),
        channels_pb2.PublishRequest(
            channel="q",
            payloads=[b""],
            headers=[message_pb2.Headers(user={str(each): "" for each in range(65)})],
        ),
    ],
    ids=["none", "many", "fewer headers", "long headers", "many headers"],
)
def test_what_cannot_be_published_is_refused(request_: channels_pb2.PublishRequest) -> None:
    with pytest.raises(InvalidArgument):
        t.command_from(CALLER, "publish_request", request_)


def test_ranges_are_bounded() -> None:
    ranges = [queues_pb2.DeliveryRange(first=1, last=1)] * (t.RANGES_MAX + 1)
    with pytest.raises(InvalidArgument, match="ranges"):
        t.command_from(CALLER, "settle_request", queues_pb2.SettleRequest(acknowledged=ranges))


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ({}, (c.StartAt.PLACE, 0)),
        ({"is_new": True}, (c.StartAt.NEW, 0)),
        ({"is_all": True}, (c.StartAt.ALL, 0)),
        ({"seq": 7}, (c.StartAt.SEQ, 7)),
        ({"time_ns": 8}, (c.StartAt.TIME, 8)),
    ],
)
def test_where_to_start(start: dict[str, int], expected: tuple[c.StartAt, int]) -> None:
    request = store_pb2.FindStoredRequest(channel="log", start=store_pb2.Start(**start))  # type: ignore[arg-type]
    command = t.command_from(CALLER, "find_stored_request", request)
    assert isinstance(command, c.FindStored)
    assert (command.start, command.value) == expected


def test_deliveries_of_several_pieces_make_one_batch() -> None:
    header = message_pb2.Headers(key=b"k").SerializeToString()
    pieces = [e.Piece(5, [b"a", b"b"], (), 100, 1), e.Piece(9, [b"c"], [header], 200, 3)]
    frame = t.deliver_frame(e.Deliver(SessionId(1), CallId(2), 3, "q", 11, pieces))
    batch = frame.consume_response.batch
    assert (frame.id, batch.consumer, batch.channel, batch.first_delivery) == (2, 3, "q", 11)
    assert list(batch.payloads) == [b"a", b"b", b"c"]
    assert list(batch.seqs) == [5, 6, 9]
    assert list(batch.publish_times_ns) == [100, 100, 200]
    assert list(batch.attempts) == [1, 1, 3]
    assert [each.key for each in batch.headers] == [b"", b"", b"k"]


def test_first_deliveries_without_headers_carry_no_columns_of_nothing() -> None:
    frame = t.deliver_frame(e.Deliver(SessionId(1), CallId(2), 3, "q", 1, [e.Piece(1, [b"a"], (), 100, 1)]))
    batch = frame.consume_response.batch
    assert (list(batch.headers), list(batch.attempts)) == ([], [])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (e.Published("q", 1, 2, 1), "publish_response"),
        (e.Settled(0), "settle_response"),
        (e.ValueSet(1), "set_value_response"),
        (e.ValueDeleted(1), "delete_value_response"),
        (e.Found(1, 1, 1), "find_stored_response"),
        (e.PlaceSaved(), "save_place_response"),
        (e.PlaceDeleted(), "delete_place_response"),
        (e.PlacesListed(()), "list_places_response"),
        (e.Committed(), "commit_transaction_response"),
        (e.ParcelsRead("log", 1, 2, 3, [PackedParcel(1, 1, b"")]), "read_stored_response"),
    ],
)
def test_each_answer_has_its_frame_even_if_it_says_nothing(body: e.ReplyBody, field: str) -> None:
    frame = t.reply_frame(9, body)
    assert isinstance(frame, frame_pb2.Frame)
    assert (frame.id, frame.WhichOneof("body")) == (9, field)
