"""Messages through a real daemon and its gateway: every one, in order, both ways; and what slows whom."""

from __future__ import annotations

import queue
import signal
import time
from collections.abc import Iterable

import grpc
import pytest

import towpath
from tests.grpc.helpers import (
    StartPeer,
    code_of,
    error_of,
    finish,
    gateway_of,
    line,
    memory_bytes,
    wait_until,
)
from tests.grpc.peer import payload
from tests.support.deadlines import DEADLINE_S
from towpath.errors import Timeout
from towpath.v1 import channels_pb2, channels_pb2_grpc, error_pb2, message_pb2

COUNT = 10_000


def test_ten_thousand_messages_from_a_remote_program(
    client: towpath.Client, endpoint: str, channel: str, start_peer: StartPeer
) -> None:
    with client.subscribe(channel) as subscription:
        peer = start_peer("publish", endpoint, channel, COUNT)
        for number in range(COUNT):
            message = subscription.receive(DEADLINE_S)
            assert (message.seq, message.payload) == (number + 1, payload(number))
        finish(peer)


def test_ten_thousand_messages_to_a_remote_program(
    client: towpath.Client, endpoint: str, channel: str, start_peer: StartPeer
) -> None:
    peer = start_peer("subscribe", endpoint, channel, COUNT)
    assert line(peer) == "subscribed"
    with client.publisher(channel) as publisher:
        for number in range(COUNT):
            publisher.publish(payload(number), timeout=DEADLINE_S)
        finish(peer)


def test_unary_publishes_share_a_source_and_say_their_numbers(
    client: towpath.Client, remote: grpc.Channel, channel: str
) -> None:
    stub = channels_pb2_grpc.ChannelsStub(remote)
    headers = message_pb2.Headers(content_type="text/plain", key=b"k", user={"a": "b"})
    with client.subscribe(channel) as subscription:
        first = stub.Publish(channels_pb2.PublishRequest(channel=channel, payloads=[b"one"]))
        second = stub.Publish(
            channels_pb2.PublishRequest(
                channel=channel, payloads=[b"two", b""], headers=[headers, message_pb2.Headers()]
            )
        )
        assert (first.first_seq, first.count, second.first_seq, second.count) == (1, 1, 2, 2)
        assert first.source == second.source
        messages = [subscription.receive(DEADLINE_S) for _ in range(3)]
    assert [(each.source, each.seq, each.payload) for each in messages] == [
        (first.source, 1, b"one"),
        (first.source, 2, b"two"),
        (first.source, 3, b""),
    ]
    assert [bool(each.headers) for each in messages] == [False, True, False]
    assert (messages[1].headers.content_type, messages[1].headers.user) == ("text/plain", {"a": "b"})
    assert client.channel_info(channel).publishers == 1


def test_headers_and_times_arrive_at_a_remote_subscriber(
    client: towpath.Client, remote: grpc.Channel, channel: str
) -> None:
    call = channels_pb2_grpc.ChannelsStub(remote).Subscribe(
        iter([channels_pb2.SubscribeRequest(channel=channel)]), timeout=DEADLINE_S
    )
    assert next(call).subscribed.channel == channel
    before_ns = time.time_ns()
    with client.publisher(channel) as publisher:
        publisher.publish_many([b"plain", b"typed"], headers=[None, towpath.Headers(content_type="a/b")])
        batch = next(call).batch
        source = publisher.source
    assert (batch.channel, batch.source, batch.first_seq) == (channel, source, 1)
    assert list(batch.payloads) == [b"plain", b"typed"]
    assert list(batch.headers) == [message_pb2.Headers(), message_pb2.Headers(content_type="a/b")]
    assert all(before_ns <= at_ns <= time.time_ns() for at_ns in batch.publish_times_ns)
    call.cancel()


def test_a_window_lets_exactly_its_credit_through(
    client: towpath.Client, remote: grpc.Channel, channel: str
) -> None:
    requests: queue.SimpleQueue[channels_pb2.SubscribeRequest | None] = queue.SimpleQueue()
    requests.put(channels_pb2.SubscribeRequest(channel=channel, credit=3))
    call = channels_pb2_grpc.ChannelsStub(remote).Subscribe(iter(requests.get, None), timeout=DEADLINE_S)
    assert next(call).subscribed.channel == channel
    with client.publisher(channel) as publisher:
        publisher.publish_many([payload(number) for number in range(10)])
        assert take(call, 3) == [payload(number) for number in range(3)]
        requests.put(channels_pb2.SubscribeRequest(credit=2))
        requests.put(channels_pb2.SubscribeRequest(credit=2))
        assert take(call, 4) == [payload(number) for number in range(3, 7)]
        # No more credit can come: the call is over, and nothing above the credit came.
        requests.put(None)
        assert list(call) == []
        assert call.code() is grpc.StatusCode.OK


def take(call: Iterable[channels_pb2.SubscribeResponse], count: int) -> list[bytes]:
    """Read responses until there are ``count`` messages."""
    received: list[bytes] = []
    while len(received) < count:
        received.extend(next(iter(call)).batch.payloads)
    return received


def test_two_hundred_subscriptions_of_one_connection_all_hear(
    client: towpath.Client, remote: grpc.Channel, channel: str
) -> None:
    stub = channels_pb2_grpc.ChannelsStub(remote)
    calls = [
        stub.Subscribe(iter([channels_pb2.SubscribeRequest(channel=channel)]), timeout=DEADLINE_S)
        for _ in range(200)
    ]
    for call in calls:
        assert next(call).subscribed.channel == channel
    assert client.channel_info(channel).subscribers == 200
    client.channel(channel).publish(b"to all")
    for call in calls:
        assert list(next(call).batch.payloads) == [b"to all"]
        call.cancel()
    wait_until(lambda: client.channel_info(channel).subscribers == 0, "all subscriptions released")


def test_a_publish_that_finds_no_room_in_time_says_how_much_went_in(
    client: towpath.Client, remote: grpc.Channel
) -> None:
    channel = client.declare("test.full", ring_bytes=4096).name
    stub = channels_pb2_grpc.ChannelsStub(remote)
    payloads = [b"x" * 100] * 1000
    with client.subscribe(channel) as subscription:
        with pytest.raises(grpc.RpcError) as caught:
            stub.Publish(channels_pb2.PublishRequest(channel=channel, payloads=payloads), timeout=2.5)
        received = subscription.receive_many(1000)
        assert code_of(caught.value) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert error_of(caught.value).code == error_pb2.ERROR_CODE_TIMEOUT
        assert 0 < len(received) < 1000
        assert f"{len(received)} of 1000 were published" in error_of(caught.value).message


def test_a_cancelled_and_a_killed_subscriber_are_released(
    client: towpath.Client, endpoint: str, remote: grpc.Channel, channel: str, start_peer: StartPeer
) -> None:
    call = channels_pb2_grpc.ChannelsStub(remote).Subscribe(
        iter([channels_pb2.SubscribeRequest(channel=channel)])
    )
    next(call)
    peer = start_peer("subscribe", endpoint, channel, 1)
    assert line(peer) == "subscribed"
    assert client.channel_info(channel).subscribers == 2
    call.cancel()
    wait_until(lambda: client.channel_info(channel).subscribers == 1, "the cancelled one released")
    peer.send_signal(signal.SIGKILL)
    wait_until(lambda: client.channel_info(channel).subscribers == 0, "the killed one released")


def test_a_subscription_ends_at_its_deadline_and_is_released(
    client: towpath.Client, remote: grpc.Channel, channel: str
) -> None:
    call = channels_pb2_grpc.ChannelsStub(remote).Subscribe(
        iter([channels_pb2.SubscribeRequest(channel=channel)]), timeout=0.5
    )
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert code_of(caught.value) is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: client.channel_info(channel).subscribers == 0, "the subscription released")


def test_publishers_that_wait_for_room_are_released_when_their_peer_gives_up(
    client: towpath.Client, remote: grpc.Channel
) -> None:
    channel = client.declare("test.given-up", ring_bytes=4096).name
    stub = channels_pb2_grpc.ChannelsStub(remote)
    payloads = [b"x" * 100] * 1000
    with client.subscribe(channel) as subscription:
        streaming = stub.PublishStream(
            iter([channels_pb2.PublishStreamRequest(channel=channel, payloads=payloads)])
        )
        waiting = stub.Publish.future(channels_pb2.PublishRequest(channel=channel, payloads=payloads))
        wait_until(lambda: client.channel_info(channel).publishers == 2, "both publish")
        streaming.cancel()
        wait_until(lambda: client.channel_info(channel).publishers == 1, "the stream's source released")
        # The shared source stays; the next caller has its turn as soon as the one before has given up.
        waiting.cancel()
        following = stub.Publish.future(
            channels_pb2.PublishRequest(channel=channel, payloads=[b"next"]), timeout=DEADLINE_S
        )
        message = subscription.receive(DEADLINE_S)
        while message.payload != b"next":
            message = subscription.receive(DEADLINE_S)
        answer = following.result()
        assert (message.source, message.seq) == (answer.source, answer.first_seq)


def test_a_publish_stream_leaves_its_channels_when_it_ends(
    client: towpath.Client, remote: grpc.Channel, channel: str
) -> None:
    stub = channels_pb2_grpc.ChannelsStub(remote)
    other = client.declare(channel + ".other").name
    request = channels_pb2.PublishStreamRequest
    with client.subscribe(other) as subscription:
        answers = list(
            stub.PublishStream(
                iter(
                    [
                        request(channel=channel, payloads=[b"1"]),
                        request(channel=other, payloads=[b"2", b"3"]),
                        request(payloads=[b"4"]),
                        request(channel=channel, payloads=[b"5"]),
                    ]
                )
            )
        )
        assert [(each.channel, each.first_seq, each.count) for each in answers] == [
            (channel, 1, 1),
            (other, 1, 2),
            (other, 3, 1),
            (channel, 2, 1),
        ]
        assert answers[0].source == answers[3].source != answers[1].source == answers[2].source
        assert [subscription.receive(DEADLINE_S).payload for _ in range(3)] == [b"2", b"3", b"4"]
    wait_until(
        lambda: [client.channel_info(name).publishers for name in (channel, other)] == [0, 0],
        "sources released",
    )


def test_a_stalled_subscriber_holds_the_publisher_up_in_bounded_memory_and_loses_nothing(
    client: towpath.Client, endpoint: str, start_peer: StartPeer
) -> None:
    channel = client.declare("test.stalled", ring_bytes=1 << 20).name
    size = 16 << 10
    pid = gateway_of(client).pid
    with client.publisher(channel) as publisher:
        # 10,000 messages of 16 KiB are 160 MiB: what the peer does not take must be held up, not kept.
        peer = start_peer("stall", endpoint, channel, COUNT)
        assert line(peer) == "subscribed"
        before_bytes = memory_bytes(pid)
        published = 0
        with pytest.raises(Timeout):
            while published < COUNT:
                publisher.publish(payload(published).ljust(size, b" "), timeout=1.0)
                published += 1
        assert published < COUNT
        assert memory_bytes(pid) - before_bytes < 16 << 20
        assert peer.stdin is not None
        peer.stdin.write("go\n")
        peer.stdin.flush()
        for number in range(published, COUNT):
            publisher.publish(payload(number).ljust(size, b" "), timeout=DEADLINE_S)
        finish(peer)
    assert memory_bytes(pid) - before_bytes < 16 << 20


def test_undeclaring_ends_both_kinds_of_streams_with_the_reason(
    client: towpath.Client, remote: grpc.Channel, channel: str
) -> None:
    stub = channels_pb2_grpc.ChannelsStub(remote)
    subscribing = stub.Subscribe(iter([channels_pb2.SubscribeRequest(channel=channel)]), timeout=DEADLINE_S)
    next(subscribing)
    stub.Publish(channels_pb2.PublishRequest(channel=channel, payloads=[b"last"]))
    client.undeclare(channel, force=True)
    # What was published before comes out first.
    assert list(next(subscribing).batch.payloads) == [b"last"]
    with pytest.raises(grpc.RpcError) as caught:
        next(subscribing)
    assert code_of(caught.value) is grpc.StatusCode.NOT_FOUND
    assert error_of(caught.value).code == error_pb2.ERROR_CODE_CHANNEL_UNDECLARED
    with pytest.raises(grpc.RpcError) as caught:
        stub.Publish(channels_pb2.PublishRequest(channel=channel, payloads=[b"too late"]))
    assert code_of(caught.value) is grpc.StatusCode.NOT_FOUND
    assert error_of(caught.value).code == error_pb2.ERROR_CODE_CHANNEL_NOT_FOUND
    # Declared again it works at once, on a new source.
    client.declare(channel)
    with client.subscribe(channel) as subscription:
        stub.Publish(channels_pb2.PublishRequest(channel=channel, payloads=[b"again"]))
        assert subscription.receive(DEADLINE_S).payload == b"again"
