"""Publishing and receiving through both clients, over real shared memory."""

from __future__ import annotations

import threading
import time
import zlib
from typing import Any

import pytest

from towpath import Headers, errors

DEADLINE_S = 30.0


def receive_exactly(subscription: Any, count: int) -> list[Any]:
    messages: list[Any] = []
    while len(messages) < count:
        batch = subscription.receive_many(count - len(messages), timeout=DEADLINE_S)
        assert batch, f"{len(messages)} of {count} messages came"
        messages += batch
    return messages


def test_a_message_arrives_whole(client: Any, name: str) -> None:
    client.declare(name)
    subscription, publisher = client.subscribe(name), client.publisher(name)
    headers = Headers(content_type="text/plain", key=b"\x00k", priority=31, user={"a": "b"})
    assert publisher.publish(b"hello", headers=headers) == 1
    message = subscription.receive(timeout=DEADLINE_S)
    assert (message.payload, message.seq, message.source) == (b"hello", 1, publisher.source)
    assert message.channel == name
    assert message.headers == headers
    assert abs(message.time_ns - time.time_ns()) < 60 * 10**9


@pytest.mark.parametrize("payload", [b"", bytearray(b"abc"), memoryview(b"view"), bytes(range(256)) * 4])
def test_any_bytes_like_object(client: Any, name: str, payload: Any) -> None:
    client.declare(name)
    with client.subscribe(name) as subscription, client.publisher(name) as publisher:
        publisher.publish(payload)
        assert subscription.receive(timeout=DEADLINE_S).payload == bytes(payload)


def test_nothing_published_after_subscribe_is_missed_and_nothing_before_is_seen(
    client: Any, name: str
) -> None:
    client.declare(name)
    publisher = client.publisher(name)
    publisher.publish(b"before")
    subscription = client.subscribe(name)
    publisher.publish(b"after")
    message = subscription.receive(timeout=DEADLINE_S)
    assert (message.payload, message.seq) == (b"after", 2)


def test_a_publisher_that_comes_later_is_heard_from_its_first_message(client: Any, name: str) -> None:
    client.declare(name)
    with client.subscribe(name) as subscription:
        for number in range(20):
            with client.publisher(name) as publisher:
                publisher.publish_many([b"%d.%d" % (number, index) for index in range(3)])
        got = [message.payload for message in receive_exactly(subscription, 60)]
    for number in range(20):
        assert [each for each in got if each.startswith(b"%d." % number)] == [
            b"%d.%d" % (number, index) for index in range(3)
        ]


def test_every_subscriber_gets_every_message_in_each_sources_order(
    client: Any, connect: Any, name: str
) -> None:
    client.declare(name, ring_bytes=65536)
    subscriptions = [connect().subscribe(name) for _ in range(3)]
    publishers = [connect().publisher(name) for _ in range(2)]
    count = 2_000

    def publish(publisher: Any, label: bytes) -> None:
        for first in range(0, count, 100):
            publisher.publish_many([label + b"%d" % index for index in range(first, first + 100)])

    threads = [
        threading.Thread(target=publish, args=(publisher, b"%d:" % index))
        for index, publisher in enumerate(publishers)
    ]
    received: list[list[Any]] = [[] for _ in subscriptions]
    receivers = [
        threading.Thread(target=lambda s=s, r=r: r.extend(receive_exactly(s, 2 * count)))
        for s, r in zip(subscriptions, received, strict=True)
    ]
    for thread in threads + receivers:
        thread.start()
    for thread in threads + receivers:
        thread.join()
    for messages in received:
        for publisher, label in zip(publishers, (b"0:", b"1:"), strict=True):
            mine = [message for message in messages if message.source == publisher.source]
            assert [message.seq for message in mine] == list(range(1, count + 1))
            assert [message.payload for message in mine] == [label + b"%d" % i for i in range(count)]


def test_a_full_ring_makes_the_publisher_wait_and_time_out(client: Any, name: str) -> None:
    client.declare(name, ring_bytes=4096)
    subscription, publisher = client.subscribe(name), client.publisher(name)
    published = 0
    with pytest.raises(errors.Timeout, match="does not read"):
        while True:
            publisher.publish(b"x" * 500, timeout=0)
            published += 1
    assert published >= 3
    with pytest.raises(errors.Timeout, match="0 of 10 were published"):
        publisher.publish_many([b"x" * 500] * 10, timeout=0.01)
    assert [message.seq for message in receive_exactly(subscription, published)] == list(
        range(1, published + 1)
    )
    assert publisher.publish(b"goes on", timeout=DEADLINE_S) == published + 1
    assert subscription.receive(timeout=DEADLINE_S).payload == b"goes on"


def test_a_waiting_publisher_goes_on_when_the_subscriber_reads(client: Any, connect: Any, name: str) -> None:
    client.declare(name, ring_bytes=4096)
    subscription, publisher = client.subscribe(name), connect().publisher(name)
    count = 5_000
    thread = threading.Thread(target=lambda: publisher.publish_many([b"%d" % i for i in range(count)]))
    thread.start()
    assert [m.payload for m in receive_exactly(subscription, count)] == [b"%d" % i for i in range(count)]
    thread.join()


def test_a_waiting_publisher_goes_on_when_the_subscriber_leaves(client: Any, connect: Any, name: str) -> None:
    client.declare(name, ring_bytes=4096)
    idle = connect()
    idle.subscribe(name)
    publisher = client.publisher(name)
    thread = threading.Thread(target=lambda: publisher.publish_many([b"x" * 500] * 100))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    idle.close()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_messages_up_to_a_quarter_of_the_ring(client: Any, name: str) -> None:
    client.declare(name, ring_bytes=65536)
    subscription, publisher = client.subscribe(name), client.publisher(name)
    largest = publisher.message_bytes_max
    assert 16000 < largest <= 16384
    payload = bytes(i * 7 % 256 for i in range(largest))
    publisher.publish(payload)
    assert zlib.crc32(subscription.receive(timeout=DEADLINE_S).payload) == zlib.crc32(payload)
    with pytest.raises(errors.MessageTooLarge):
        publisher.publish(payload + b"x")
    with pytest.raises(errors.MessageTooLarge, match="1 of 2 were published"):
        publisher.publish_many([b"small", payload + b"x"])
    assert subscription.receive(timeout=DEADLINE_S).payload == b"small"


def test_headers_of_a_batch(client: Any, name: str) -> None:
    client.declare(name)
    subscription, publisher = client.subscribe(name), client.publisher(name)
    publisher.publish_many([b"a", b"b"], headers=[Headers(priority=1), None])
    publisher.publish_many([b"c", b"d"], headers=Headers(priority=2))
    assert [message.headers.priority for message in receive_exactly(subscription, 4)] == [1, 0, 2, 2]
    with pytest.raises(errors.InvalidArgument, match="1 headers for 2 payloads"):
        publisher.publish_many([b"a", b"b"], headers=[None])
    with pytest.raises(errors.InvalidArgument, match="priority"):
        publisher.publish(b"a", headers=Headers(priority=32))


def test_receiving_in_vain(client: Any, name: str) -> None:
    client.declare(name)
    subscription = client.subscribe(name)
    assert subscription.receive_many(timeout=0) == []
    assert subscription.receive_many(timeout=0.01) == []
    with pytest.raises(errors.Timeout):
        subscription.receive(timeout=0.01)
    with pytest.raises(errors.InvalidArgument, match="timeout"):
        subscription.receive(timeout=-1)


def test_no_echo(client: Any, name: str) -> None:
    client.declare(name)
    mine = client.publisher(name)
    origin = f"session:{client.session}"
    with client.subscribe(name, exclude_origin=origin) as others, client.subscribe(name) as everything:
        mine.publish(b"mine")
        assert everything.receive(timeout=DEADLINE_S).payload == b"mine"
        assert others.receive_many(timeout=0.05) == []


def test_a_channel_handle_publishes_through_one_source(client: Any, name: str) -> None:
    client.declare(name)
    channel = client.channel(name)
    with channel.subscribe() as subscription:
        channel.publish(b"1")
        channel.publish_many([b"2", b"3"])
        messages = receive_exactly(subscription, 3)
    assert len({message.source for message in messages}) == 1
    assert [message.seq for message in messages] == [1, 2, 3]
    channel.close()


def test_closing_a_subscription_ends_its_iteration(client: Any, name: str) -> None:
    client.declare(name)
    subscription, publisher = client.subscribe(name), client.publisher(name)
    publisher.publish_many([b"1", b"2"])
    got: list[bytes] = []
    has_two = threading.Event()

    def iterate() -> None:
        for message in subscription:
            got.append(message.payload)
            if len(got) == 2:
                has_two.set()

    thread = threading.Thread(target=iterate)
    thread.start()
    assert has_two.wait(DEADLINE_S)
    subscription.close()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert got == [b"1", b"2"]


def test_wait_drained(client: Any, name: str) -> None:
    client.declare(name)
    subscription, publisher = client.subscribe(name), client.publisher(name)
    publisher.publish(b"x")
    assert publisher.wait_drained(timeout=0.01) is False
    assert subscription.receive(timeout=DEADLINE_S).payload == b"x"
    assert publisher.wait_drained(timeout=DEADLINE_S) is True
