"""What is sent on one connection without waiting for answers is carried out in its order: what uses a
channel, behind what declares it.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.door.raw import RawClient
from tests.support.daemon import DaemonHandle
from towpath.errors import Code
from towpath.v1 import channels_pb2, queues_pb2, registry_pb2, store_pb2, values_pb2
from towpath.v1.frame_pb2 import Frame
from towpath_broker.local.connection import CALLS_MAX

KINDS = [("topic", False), ("topic", True), ("queue", False), ("queue", True)]


def declaring(call: int, name: str, kind: str, *, durable: bool = False) -> Frame:
    options = registry_pb2.ChannelOptions(
        kind=registry_pb2.Kind.Value(f"KIND_{kind.upper()}"), durable=durable
    )
    request = registry_pb2.DeclareChannelRequest(name=name, options=options)
    return Frame(id=call, declare_channel_request=request)


def undeclaring(call: int, name: str) -> Frame:
    request = registry_pb2.UndeclareChannelRequest(name=name, force=True)
    return Frame(id=call, undeclare_channel_request=request)


def publishing(call: int, name: str, *payloads: bytes) -> Frame:
    return Frame(id=call, publish_request=channels_pb2.PublishRequest(channel=name, payloads=payloads))


def answers(client: RawClient, frames: list[Frame]) -> dict[int, Frame]:
    """Send frames in one go, and wait for the first answer to each."""
    for frame in frames:
        client.send(frame)
    got: dict[int, Frame] = {}
    while len(got) < len(frames):
        frame = client.receive()
        got.setdefault(frame.id, frame)
    return got


def bodies(got: dict[int, Frame]) -> list[Any]:
    return [got[call].WhichOneof("body") for call in sorted(got)]


@pytest.mark.parametrize(("kind", "durable"), KINDS)
def test_a_publish_behind_its_declare(daemon: DaemonHandle, kind: str, durable: bool) -> None:
    name = f"behind.{kind}.{durable}"
    with RawClient(daemon.socket) as client:
        frames = [declaring(2, name, kind, durable=durable)]
        frames += [publishing(call, name, b"%d" % call) for call in range(3, 23)]
        got = answers(client, frames)
        assert bodies(got) == ["declare_channel_response"] + 20 * ["publish_response"]
        seqs = [got[call].publish_response.first_seq for call in range(3, 23)]
        assert seqs == list(range(1, 21))


def test_everything_of_a_channel_waits_for_its_declare(daemon: DaemonHandle) -> None:
    with RawClient(daemon.socket) as client:
        got = answers(
            client,
            [
                declaring(2, "waits.state", "state"),
                Frame(
                    id=3, set_value_request=values_pb2.SetValueRequest(channel="waits.state", payload=b"1")
                ),
                Frame(id=4, get_value_request=values_pb2.GetValueRequest(channel="waits.state")),
                declaring(5, "waits.queue", "queue"),
                publishing(6, "waits.queue", b"x"),
                Frame(id=7, consume_request=queues_pb2.ConsumeRequest(channel="waits.queue", prefetch=1)),
                declaring(8, "waits.log", "topic", durable=True),
                Frame(id=9, find_stored_request=store_pb2.FindStoredRequest(channel="waits.log")),
                declaring(10, "waits.kept", "queue", durable=True),
                Frame(
                    id=11,
                    commit_transaction_request=channels_pb2.CommitTransactionRequest(
                        transaction="t",
                        publishes=[
                            channels_pb2.PublishRequest(channel=name, payloads=[b"y"])
                            for name in ("waits.log", "waits.kept")
                        ],
                    ),
                ),
            ],
        )
        assert bodies(got) == [
            "declare_channel_response",
            "set_value_response",
            "get_value_response",
            "declare_channel_response",
            "publish_response",
            "consume_response",
            "declare_channel_response",
            "find_stored_response",
            "declare_channel_response",
            "commit_transaction_response",
        ]
        assert got[4].get_value_response.value.payload == b"1"


def test_an_undeclare_comes_where_it_was_sent(daemon: DaemonHandle) -> None:
    with RawClient(daemon.socket) as client:
        got = answers(
            client,
            [
                declaring(2, "again", "queue"),
                publishing(3, "again", b"x"),
                undeclaring(4, "again"),
                publishing(5, "again", b"x"),
                declaring(6, "again", "queue"),
                publishing(7, "again", b"x"),
                publishing(8, "elsewhere", b"x"),
            ],
        )
        assert int(got[8].error.code) == Code.CHANNEL_NOT_FOUND
        assert bodies(got)[:3] == [
            "declare_channel_response",
            "publish_response",
            "undeclare_channel_response",
        ]
        assert [int(got[5].error.code), got[7].WhichOneof("body")] == [
            Code.CHANNEL_NOT_FOUND,
            "publish_response",
        ]


def test_what_waits_can_be_cancelled_and_is_answered(daemon: DaemonHandle) -> None:
    with RawClient(daemon.socket) as client:
        cancel = Frame(id=3)
        cancel.cancel.SetInParent()
        client.send(declaring(2, "cancelled", "queue"))
        client.send(publishing(3, "cancelled", b"x"))
        client.send(cancel)
        client.send(publishing(4, "cancelled", b"y"))
        got = {frame.id: frame for frame in (client.receive() for _ in range(3))}
        assert got[2].WhichOneof("body") == "declare_channel_response"
        assert got[4].publish_response.count == 1
        # It was in the queue before it was cancelled, or it was not: the answer says which.
        stored = 1 if got[3].HasField("publish_response") else 0
        assert got[4].publish_response.first_seq == 1 + stored


def test_a_declare_that_is_refused_lets_go_of_what_waited(daemon: DaemonHandle) -> None:
    with RawClient(daemon.socket) as client:
        client.ask(declaring(2, "other.kind", "topic"))
        got = answers(client, [declaring(3, "other.kind", "queue"), publishing(4, "other.kind", b"x")])
        assert int(got[3].error.code) == Code.CHANNEL_CONFLICT
        assert got[4].publish_response.count == 1


def test_what_waits_is_bounded_like_all_calls(daemon: DaemonHandle) -> None:
    with RawClient(daemon.socket) as client:
        frames = [declaring(2, "many", "queue", durable=True)]
        frames += [publishing(call, "many", b"x") for call in range(3, 3 + 4 * CALLS_MAX)]
        got = answers(client, frames)
        assert {got[call].WhichOneof("body") for call in range(3, 3 + 4 * CALLS_MAX)} == {"publish_response"}


def test_one_way_requests_are_carried_out_in_order_and_not_answered(daemon: DaemonHandle) -> None:
    with RawClient(daemon.socket) as client:
        count = 3 * CALLS_MAX
        for call in range(2, 2 + count, 2):
            client.send(_one_way(declaring(call, f"one.way{call}", "topic")))
            client.send(_one_way(declaring(call + 1, "not a name", "topic")))  # refused, and nobody is told
        names = registry_pb2.ListChannelsRequest(prefix="one.way", page_size=2 * count)
        client.send(Frame(id=count + 2, list_channels_request=names))
        answer = client.receive()
        assert answer.id == count + 2
        assert len(answer.list_channels_response.channels) == count // 2


def _one_way(frame: Frame) -> Frame:
    frame.is_one_way = True
    return frame
