"""Publishing and receiving, over each carrier and with both clients."""

from __future__ import annotations

import itertools
import threading
import time
import zlib
from typing import Any

import pytest

from tests.conformance.clients.carriers import Carrier
from tests.conformance.clients.conftest import Connect
from tests.support.daemon import wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import Headers, errors


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


@pytest.mark.parametrize("payload", ["text", 5, None])
def test_what_is_no_bytes_like_object(client: Any, name: str, payload: Any) -> None:
    client.declare(name)
    with client.subscribe(name) as subscription, client.publisher(name) as publisher:
        with pytest.raises(TypeError):
            publisher.publish(payload)
        publisher.publish(b"goes on")
        assert subscription.receive(timeout=DEADLINE_S).payload == b"goes on"


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
    sources = {publisher.source for publisher in publishers}
    assert len(sources) == 2
    for messages in received:
        for source in sources:
            seqs = [message.seq for message in messages if message.source == source]
            assert seqs == list(range(1, 2 * count // len(sources) + 1))
        for label in (b"0:", b"1:"):
            mine = [message.payload for message in messages if message.payload.startswith(label)]
            assert mine == [label + b"%d" % index for index in range(count)]


def test_a_subscriber_that_does_not_read_holds_the_publisher_up(
    client: Any, connect: Any, carrier: Carrier, name: str
) -> None:
    client.declare(name, ring_bytes=65536)
    subscription, publisher = client.subscribe(name), connect().publisher(name)
    numbers = itertools.count()
    # Far more than a ring alone holds, since from afar there are windows to fill.
    batches = [[b"%d " % next(numbers) + b"x" * 8_000 for _ in range(100)] for _ in range(100)]
    acknowledged = 0
    with pytest.raises(errors.Timeout, match="does not read") as failure:
        for batch in batches:
            publisher.publish_many(batch, timeout=1.0)
            acknowledged += len(batch)
    assert ("perhaps" in failure.value.message) == carrier.deviates("windows")
    subscription_end = threading.Thread(target=lambda: publisher.publish(b"end", timeout=DEADLINE_S))
    subscription_end.start()
    received: list[int] = []
    while True:
        payload = subscription.receive(timeout=DEADLINE_S).payload
        if payload == b"end":
            break
        received.append(int(payload.split()[0]))
    subscription_end.join()
    assert received == list(range(len(received)))
    assert acknowledged <= len(received) <= acknowledged + 100


def test_a_waiting_publisher_goes_on_when_the_subscriber_reads(client: Any, connect: Any, name: str) -> None:
    client.declare(name, ring_bytes=4096)
    subscription, publisher = client.subscribe(name), connect().publisher(name)
    count = 5_000
    thread = threading.Thread(target=lambda: publisher.publish_many([b"%d" % i for i in range(count)]))
    thread.start()
    assert [m.payload for m in receive_exactly(subscription, count)] == [b"%d" % i for i in range(count)]
    thread.join()


def test_a_waiting_publisher_goes_on_when_the_subscriber_leaves(client: Any, connect: Any, name: str) -> None:
    client.declare(name, ring_bytes=65536)
    idle = connect()
    idle.subscribe(name)
    publisher = client.publisher(name)
    payloads = [b"x" * 8_000] * 10_000
    thread = threading.Thread(target=lambda: publisher.publish_many(payloads))
    thread.start()
    thread.join(1.0)
    assert thread.is_alive()
    idle.close()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_messages_up_to_a_quarter_of_the_ring(client: Any, name: str) -> None:
    client.declare(name, ring_bytes=65536)
    subscription, publisher = client.subscribe(name), client.publisher(name)
    largest = publisher.message_bytes_max
    assert largest == 65536 // 4 - 32
    payload = bytes(i * 7 % 256 for i in range(largest))
    publisher.publish(payload)
    assert zlib.crc32(subscription.receive(timeout=DEADLINE_S).payload) == zlib.crc32(payload)
    with pytest.raises(errors.MessageTooLarge):
        publisher.publish(payload + b"x")
    with pytest.raises(errors.MessageTooLarge):
        publisher.publish(payload, headers=Headers(content_type="x"))
    with pytest.raises(errors.MessageTooLarge, match="1 of 2 were published"):
        publisher.publish_many([b"small", payload + b"x"])
    assert subscription.receive(timeout=DEADLINE_S).payload == b"small"
    assert publisher.publish(b"goes on") == 3


def test_messages_up_to_what_the_carrier_takes(client: Any, carrier: Carrier, name: str) -> None:
    client.declare(name, ring_bytes=1 << 27)
    subscription, publisher = client.subscribe(name), client.publisher(name)
    largest = publisher.message_bytes_max
    if carrier.deviates("message bytes"):
        assert largest == {"grpc": 4_190_208, "zmq": 16_773_120}[carrier.name]
    else:
        assert largest == (1 << 27) // 4 - 32
    payload = bytes(range(256)) * (largest // 256) + bytes(largest % 256)
    publisher.publish(payload)
    assert zlib.crc32(subscription.receive(timeout=DEADLINE_S).payload) == zlib.crc32(payload)
    with pytest.raises(errors.MessageTooLarge):
        publisher.publish(payload + b"x")


def test_many_messages_in_one_batch(client: Any, name: str) -> None:
    client.declare(name)
    subscription, publisher = client.subscribe(name), client.publisher(name)
    count = 25_000
    thread = threading.Thread(target=lambda: publisher.publish_many([b"%d" % i for i in range(count)]))
    thread.start()
    messages = receive_exactly(subscription, count)
    thread.join()
    assert [message.payload for message in messages] == [b"%d" % i for i in range(count)]
    assert [message.seq for message in messages] == list(range(1, count + 1))
    assert publisher.publish_many([]) == count


def test_several_threads_publish_at_once(client: Any, name: str) -> None:
    client.declare(name)
    subscription, publisher = client.subscribe(name), client.publisher(name)
    seqs: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: seqs.extend(publisher.publish(b"%d" % n) for _ in range(50)))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    messages = receive_exactly(subscription, 400)
    for thread in threads:
        thread.join()
    assert sorted(seqs) == list(range(1, 401))
    assert [message.seq for message in messages] == list(range(1, 401))


def test_headers_of_a_batch(client: Any, name: str) -> None:
    client.declare(name)
    subscription, publisher = client.subscribe(name), client.publisher(name)
    publisher.publish_many([b"a", b"b"], headers=[Headers(priority=1), None])
    publisher.publish_many([b"c", b"d"], headers=Headers(priority=2))
    publisher.publish(b"e")
    assert [message.headers.priority for message in receive_exactly(subscription, 5)] == [1, 0, 2, 2, 0]
    with pytest.raises(errors.InvalidArgument, match="1 headers for 2 payloads"):
        publisher.publish_many([b"a", b"b"], headers=[None])
    with pytest.raises(errors.InvalidArgument, match="priority"):
        publisher.publish(b"a", headers=Headers(priority=32))


def test_every_header_travels(client: Any, name: str) -> None:
    client.declare(name)
    headers = Headers(
        content_type="application/json",
        key=bytes(range(256)),
        priority=7,
        reply_to="answers.here",
        origin="binding:4",
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        tracestate="vendor=value",
        user={"größe": "klein", "b": ""},
    )
    subscription, publisher = client.subscribe(name), client.publisher(name)
    publisher.publish(b"x", headers=headers)
    assert subscription.receive(timeout=DEADLINE_S).headers == headers


def test_receiving_in_vain(client: Any, name: str) -> None:
    client.declare(name)
    subscription = client.subscribe(name)
    assert subscription.receive_many(timeout=0) == []
    assert subscription.receive_many(timeout=0.01) == []
    with pytest.raises(errors.Timeout):
        subscription.receive(timeout=0.01)
    with pytest.raises(errors.InvalidArgument, match="timeout"):
        subscription.receive(timeout=-1)


def test_receiving_within_bounds(client: Any, name: str) -> None:
    client.declare(name)
    subscription, publisher = client.subscribe(name), client.publisher(name)
    publisher.publish_many([b"x" * 100] * 50)
    first = receive_exactly(subscription, 1)
    few = subscription.receive_many(10, timeout=DEADLINE_S)
    assert 1 <= len(few) <= 10
    small = subscription.receive_many(100, bytes_max=250, timeout=DEADLINE_S)
    assert 1 <= len(small) <= 2
    one = subscription.receive_many(100, bytes_max=1, timeout=DEADLINE_S)
    assert len(one) == 1
    rest = receive_exactly(subscription, 50 - len(first + few + small + one))
    assert [message.seq for message in first + few + small + one + rest] == list(range(1, 51))


def test_no_echo(client: Any, carrier: Carrier, name: str) -> None:
    client.declare(name)
    mine = client.publisher(name)
    if carrier.deviates("origins"):
        with pytest.raises(errors.NotSupported):
            client.subscribe(name, exclude_origin="session:1")
        with pytest.raises(errors.NotSupported):
            client.publisher(name, origin="binding:1")
        return
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


def test_wait_drained(client: Any, carrier: Carrier, name: str) -> None:
    client.declare(name)
    subscription, publisher = client.subscribe(name), client.publisher(name)
    publisher.publish(b"x")
    if carrier.deviates("drained"):
        with pytest.raises(errors.NotSupported):
            publisher.wait_drained(timeout=0.01)
        return
    assert publisher.wait_drained(timeout=0.01) is False
    assert subscription.receive(timeout=DEADLINE_S).payload == b"x"
    assert publisher.wait_drained(timeout=DEADLINE_S) is True


def test_messages_cross_between_carriers(client: Any, urls: dict[str, str], name: str) -> None:
    import towpath

    client.declare(name)
    with client.subscribe(name) as mine:
        for number, url in enumerate(urls.values()):
            with towpath.connect(url) as other, other.subscribe(name) as theirs:
                other.channel(name).publish(b"to %d" % number)
                assert mine.receive(timeout=DEADLINE_S).payload == b"to %d" % number
                assert theirs.receive(timeout=DEADLINE_S).payload == b"to %d" % number
                client.channel(name).publish(b"from %d" % number)
                assert theirs.receive(timeout=DEADLINE_S).payload == b"from %d" % number
                assert mine.receive(timeout=DEADLINE_S).payload == b"from %d" % number


def test_all_handles_of_one_name_are_one_source(client: Any, name: str) -> None:
    client.declare(name)
    with client.subscribe(name) as subscription:
        for _ in range(300):  # more than there may be publishers
            client.channel(name).publish(b"x", timeout=DEADLINE_S)
        received: list[Any] = []
        while len(received) < 300:
            received += subscription.receive_many(timeout=DEADLINE_S)
        assert len({message.source for message in received}) == 1
        assert client.channel_info(name).publishers == 1


def test_the_last_handle_that_is_closed_gives_the_source_up(carrier: Carrier, client: Any, name: str) -> None:
    client.declare(name)
    first, second = client.channel(name), client.channel(name)
    first.publish(b"x", timeout=DEADLINE_S)
    second.publish(b"x", timeout=DEADLINE_S)
    first.close()
    assert client.channel_info(name).publishers == 1
    second.publish(b"x", timeout=DEADLINE_S)
    second.close()
    if not carrier.deviates("shared source"):
        wait_until(lambda: client.channel_info(name).publishers == 0)
    first.publish(b"x", timeout=DEADLINE_S)
    assert client.channel_info(name).publishers == 1


def test_a_handle_goes_on_when_its_channel_is_back(client: Any, connect: Connect, name: str) -> None:
    client.declare(name)
    channel = client.channel(name)
    channel.publish(b"x", timeout=DEADLINE_S)
    connect().undeclare(name, force=True)
    with pytest.raises((errors.ChannelNotFound, errors.ChannelUndeclared)):
        while True:
            channel.publish(b"x", timeout=DEADLINE_S)
    client.declare(name)
    with client.subscribe(name) as subscription:
        channel.publish(b"again", timeout=DEADLINE_S)
        assert subscription.receive(timeout=DEADLINE_S).payload == b"again"
