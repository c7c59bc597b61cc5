"""Queues, over each carrier and with both clients."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from tests.conformance.clients.carriers import Carrier
from tests.support.deadlines import DEADLINE_S
from towpath import Headers, errors
from towpath.result import Err, Ok


def take(consumer: Any, count: int) -> list[Any]:
    """Receive exactly so many."""
    deliveries: list[Any] = []
    while len(deliveries) < count:
        batch = consumer.receive_many(count - len(deliveries), timeout=DEADLINE_S)
        assert batch, f"{len(deliveries)} of {count} came"
        deliveries += batch
    return deliveries


def payloads(deliveries: list[Any]) -> list[bytes]:
    return [delivery.payload for delivery in deliveries]


@pytest.fixture
def queue(client: Any, name: str) -> str:
    client.declare(name, kind="queue")
    return name


# ---- delivering --------------------------------------------------------------------------------------------


def test_a_message_arrives_whole(client: Any, queue: str) -> None:
    headers = Headers(content_type="text/plain", key=b"\x00k", priority=3, user={"a": "b"}, message_id="m1")
    assert client.publisher(queue).publish(b"hello", headers=headers) == 1
    with client.consume(queue) as consumer:
        delivery = consumer.receive(timeout=DEADLINE_S)
        assert (delivery.payload, delivery.seq, delivery.attempt) == (b"hello", 1, 1)
        assert (delivery.channel, delivery.headers) == (queue, headers)
        assert abs(delivery.time_ns - time.time_ns()) < 60 * 10**9
        assert not delivery.is_settled
        delivery.ack()
        assert delivery.is_settled


def test_what_is_published_before_anybody_consumes_is_kept_in_order(client: Any, queue: str) -> None:
    sent = [b"%d" % number for number in range(5_000)]
    assert client.publisher(queue).publish_many(sent) == 5_000
    with client.consume(queue) as consumer:
        got: list[Any] = []
        while len(got) < len(sent):
            batch = consumer.receive_many(timeout=DEADLINE_S)
            got += batch
            consumer.ack(batch)
        assert payloads(got) == sent
        assert [delivery.seq for delivery in got] == list(range(1, 5_001))
        consumer.flush(DEADLINE_S)
        assert consumer.lost == 0


def test_a_channels_handle_publishes_and_consumes(client: Any, queue: str) -> None:
    channel = client.channel(queue)
    channel.publish(b"x")
    with channel.consume() as consumer:
        assert consumer.receive(timeout=DEADLINE_S).payload == b"x"


def test_what_is_stated_beside_a_message(client: Any, queue: str) -> None:
    channel = client.channel(queue)
    channel.publish(b"low", headers=Headers(content_type="text/plain"), key=b"k", message_id="one")
    channel.publish(b"high", priority=31)
    channel.publish(b"again", message_id="one")
    due = time.time() + 0.2
    channel.publish(b"late", deliver_at=due)
    with channel.consume() as consumer:
        deliveries = take(consumer, 3)
        assert payloads(deliveries) == [b"high", b"low", b"late"]
        assert time.time() >= due
        assert deliveries[1].headers == Headers(content_type="text/plain", key=b"k", message_id="one")
    for wrong in (
        {"priority": 32},
        {"message_id": "x" * 129},
        {"deliver_at": -1.0},
        {"deliver_at": float("nan")},
    ):
        with pytest.raises(errors.InvalidArgument):
            channel.publish(b"x", **wrong)


def test_each_message_goes_to_one_consumer(client: Any, connect: Any, queue: str) -> None:
    consumers = [connect().consume(queue, prefetch=10) for _ in range(3)]
    client.publisher(queue).publish_many([b"%d" % number for number in range(300)])
    got: list[list[bytes]] = [[] for _ in consumers]
    left = threading.Semaphore(0)

    def work(consumer: Any, mine: list[bytes]) -> None:
        while True:
            try:
                delivery = consumer.receive(timeout=DEADLINE_S)
            except errors.ConnectionLost:
                return
            mine.append(delivery.payload)
            delivery.ack()
            left.release()

    threads = [
        threading.Thread(target=work, args=(consumer, mine))
        for consumer, mine in zip(consumers, got, strict=True)
    ]
    for thread in threads:
        thread.start()
    for _ in range(300):
        assert left.acquire(timeout=DEADLINE_S)
    for consumer in consumers:
        consumer.close()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert sorted(int(each) for mine in got for each in mine) == list(range(300))
    for mine in got:
        assert [int(each) for each in mine] == sorted(int(each) for each in mine)


def test_consumers_that_are_equally_fast_share_evenly(client: Any, connect: Any, queue: str) -> None:
    consumers = [connect().consume(queue, prefetch=100) for _ in range(4)]
    client.publisher(queue).publish_many([b"x"] * 400)
    shares = [len(take(consumer, 100)) for consumer in consumers]
    assert shares == [100] * 4


def test_the_higher_priority_goes_first_and_within_one_the_order_stays(client: Any, queue: str) -> None:
    publisher = client.publisher(queue)
    for number, priority in enumerate((0, 31, 5, 31, 0, 5)):
        publisher.publish(b"%d" % number, headers=Headers(priority=priority))
    with client.consume(queue) as consumer:
        assert payloads(take(consumer, 6)) == [b"1", b"3", b"2", b"5", b"0", b"4"]


def test_a_message_is_not_delivered_before_its_time(client: Any, queue: str) -> None:
    publisher = client.publisher(queue)
    publisher.publish(b"in an hour", headers=Headers(deliver_at_ns=time.time_ns() + 3_600_000_000_000))
    publisher.publish(b"now")
    with client.consume(queue) as consumer:
        assert consumer.receive(timeout=DEADLINE_S).payload == b"now"
        due_ns = time.time_ns() + 200_000_000
        publisher.publish(b"soon", headers=Headers(deliver_at_ns=due_ns))
        assert consumer.receive(timeout=DEADLINE_S).payload == b"soon"
        assert time.time_ns() >= due_ns


def test_the_same_message_id_is_published_once(client: Any, queue: str) -> None:
    publisher = client.publisher(queue)
    ids = [Headers(message_id=each) for each in ("a", "b", "a")]
    assert publisher.publish(b"first", headers=ids[0]) == 1
    assert publisher.publish(b"second", headers=ids[1]) == 2
    assert publisher.publish(b"first again", headers=ids[2]) == 1
    with client.consume(queue) as consumer:
        assert payloads(take(consumer, 2)) == [b"first", b"second"]
        assert consumer.receive_many(timeout=0) == []


def test_prefetch_bounds_what_is_unsettled(client: Any, queue: str) -> None:
    client.publisher(queue).publish_many([b"%d" % number for number in range(10)])
    with client.consume(queue, prefetch=3) as consumer:
        first = take(consumer, 3)
        assert consumer.receive_many(timeout=0.05) == []
        consumer.ack(first[0])
        assert payloads(take(consumer, 1)) == [b"3"]


# ---- settling ----------------------------------------------------------------------------------------------


def test_what_was_acknowledged_does_not_come_again(client: Any, queue: str) -> None:
    client.publisher(queue).publish_many([b"a", b"b", b"c", b"d"])
    with client.consume(queue) as consumer:
        deliveries = take(consumer, 4)
        consumer.ack([deliveries[2], deliveries[0]])
        deliveries[3].ack()
        consumer.flush(DEADLINE_S)
    with client.consume(queue) as consumer:
        assert payloads(take(consumer, 1)) == [b"b"]
        assert consumer.receive_many(timeout=0.02) == []


def test_what_is_given_back_comes_again_and_says_so(client: Any, queue: str) -> None:
    client.publisher(queue).publish_many([b"a", b"b"])
    with client.consume(queue) as consumer:
        first, second = take(consumer, 2)
        first.nack()
        again = consumer.receive(timeout=DEADLINE_S)
        assert (again.payload, again.attempt, again.seq) == (b"a", 2, first.seq)
        consumer.ack([again, second])
        consumer.flush(DEADLINE_S)


def test_what_is_given_back_with_a_delay_comes_when_that_is_over(client: Any, queue: str) -> None:
    client.publisher(queue).publish(b"a")
    with client.consume(queue) as consumer:
        began = time.monotonic()
        consumer.receive(timeout=DEADLINE_S).nack(delay=0.2)
        assert consumer.receive(timeout=DEADLINE_S).attempt == 2
        assert time.monotonic() - began >= 0.19


def test_what_is_rejected_becomes_a_dead_letter_that_says_why(client: Any, name: str) -> None:
    client.declare(f"{name}.dead", kind="queue")
    client.declare(name, kind="queue", dead_letter=f"{name}.dead")
    client.publisher(name).publish(b"poison", headers=Headers(user={"own": "1"}))
    with client.consume(name) as consumer, client.consume(f"{name}.dead") as dead:
        consumer.receive(timeout=DEADLINE_S).nack(reject=True, reason="it is no JSON")
        letter = dead.receive(timeout=DEADLINE_S)
        assert letter.payload == b"poison"
        user = letter.headers.user
        assert user["own"] == "1"
        assert "it is no JSON" in user["towpath-dead-letter-reason"]
        assert user["towpath-dead-letter-queue"] == name
        assert consumer.receive_many(timeout=0.02) == []


def test_what_was_delivered_too_often_becomes_a_dead_letter(client: Any, name: str) -> None:
    client.declare(f"{name}.dead", kind="queue")
    client.declare(name, kind="queue", dead_letter=f"{name}.dead", max_deliveries=2)
    client.publisher(name).publish(b"poison")
    with client.consume(name) as consumer, client.consume(f"{name}.dead") as dead:
        for attempt in (1, 2):
            delivery = consumer.receive(timeout=DEADLINE_S)
            assert delivery.attempt == attempt
            delivery.nack()
        letter = dead.receive(timeout=DEADLINE_S)
        assert letter.headers.user["towpath-dead-letter-attempts"] == "2"


def test_what_is_not_settled_in_time_goes_back_and_the_consumer_is_told(client: Any, name: str) -> None:
    client.declare(name, kind="queue", ack_ms=100)
    client.publisher(name).publish(b"a")
    with client.consume(name) as consumer:
        late = consumer.receive(timeout=DEADLINE_S)
        with client.consume(name) as other:
            again = other.receive(timeout=DEADLINE_S)
            assert (late.seq, late.attempt + 1) == (again.seq, again.attempt)
            late.ack()
            with pytest.raises(errors.DeliveryLost):
                consumer.flush(DEADLINE_S)
            assert consumer.lost == 1
            consumer.flush(DEADLINE_S)  # it was told once
        # The other one has left; this one has spoken, and is dealt to again.
        assert consumer.receive(timeout=DEADLINE_S).seq == late.seq


def test_a_deadline_is_set_anew(client: Any, name: str) -> None:
    client.declare(name, kind="queue", ack_ms=60_000)
    client.publisher(name).publish_many([b"a", b"b"])
    with client.consume(name) as consumer, client.consume(name) as other:
        assert consumer.ack_ms == 60_000
        first, second = take(consumer, 2)
        second.extend()
        first.extend(0.05)
        again = other.receive(timeout=DEADLINE_S)
        assert (again.payload, again.attempt) == (b"a", 2)
        other.ack([again])
        consumer.ack([second])
        for each in (other, consumer):
            each.flush(DEADLINE_S)
            assert each.lost == 0


def test_a_delivery_is_settled_once_and_by_its_own_consumer(client: Any, queue: str) -> None:
    client.publisher(queue).publish_many([b"a", b"b"])
    with client.consume(queue, prefetch=1) as one, client.consume(queue, prefetch=1) as other:
        first, second = one.receive(timeout=DEADLINE_S), other.receive(timeout=DEADLINE_S)
        with pytest.raises(errors.InvalidArgument):
            one.ack([first, second])
        assert not first.is_settled
        first.ack()
        for settle in (first.ack, first.nack, first.extend):
            with pytest.raises(errors.InvalidArgument):
                settle()


# ---- leaving -----------------------------------------------------------------------------------------------


def test_what_a_consumer_has_not_settled_goes_back_when_it_is_closed(client: Any, queue: str) -> None:
    client.publisher(queue).publish_many([b"a", b"b", b"c"])
    with client.consume(queue) as consumer:
        deliveries = take(consumer, 3)
        deliveries[1].ack()
    with client.consume(queue) as consumer:
        assert payloads(take(consumer, 2)) == [b"a", b"c"]
    with pytest.raises(errors.ConnectionLost):
        deliveries[0].ack()


def test_what_a_client_has_not_settled_goes_back_when_it_leaves(
    client: Any, connect: Any, queue: str
) -> None:
    client.publisher(queue).publish_many([b"a", b"b"])
    other = connect()
    take(other.consume(queue), 2)
    with client.consume(queue) as consumer:
        assert consumer.receive_many(timeout=0.02) == []
        other.close()
        assert payloads(take(consumer, 2)) == [b"a", b"b"]


def test_an_iteration_ends_when_the_consumer_is_closed(client: Any, queue: str) -> None:
    client.publisher(queue).publish_many([b"a", b"b"])
    consumer = client.consume(queue)
    got = []
    for delivery in consumer:
        delivery.ack()
        got.append(delivery.payload)
        if len(got) == 2:
            consumer.close()
    assert got == [b"a", b"b"]
    consumer.close()


def test_a_consumer_is_told_that_its_queue_is_gone(client: Any, queue: str) -> None:
    with client.consume(queue) as consumer:
        client.undeclare(queue, force=True)
        with pytest.raises(errors.ChannelUndeclared):
            consumer.receive(timeout=DEADLINE_S)


# ---- a full queue ------------------------------------------------------------------------------------------


def test_a_full_queue_makes_publishers_wait(client: Any, connect: Any, carrier: Carrier, name: str) -> None:
    client.declare(name, kind="queue", capacity=2)
    publisher = client.publisher(name)
    publisher.publish_many([b"a", b"b"])
    with pytest.raises(errors.Timeout) as raised:
        publisher.publish(b"late", timeout=0.1)
    # From afar it is on its way, and waits in the queue's line.
    late = [b"late"] if carrier.deviates("windows") else []
    assert ("not known" in raised.value.message) == bool(late)
    waiting = connect().publisher(name)
    thread = threading.Thread(target=waiting.publish, args=(b"c",))
    thread.start()
    with client.consume(name) as consumer:
        for expected in (b"a", b"b", *late, b"c"):
            delivery = consumer.receive(timeout=DEADLINE_S)
            assert delivery.payload == expected
            delivery.ack()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def test_a_full_queue_refuses_where_it_is_declared_so(client: Any, name: str) -> None:
    client.declare(name, kind="queue", capacity=2, overflow="reject")
    publisher = client.publisher(name)
    publisher.publish_many([b"a", b"b"])
    with pytest.raises(errors.QueueFull) as raised:
        publisher.publish(b"c")
    assert raised.value.retryable
    with client.consume(name) as consumer:
        consumer.receive(timeout=DEADLINE_S).ack()
        consumer.flush(DEADLINE_S)
    assert publisher.publish(b"c") > 0


# ---- mistakes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, -1, 65_537])
def test_a_prefetch_out_of_its_range(client: Any, queue: str, prefetch: int) -> None:
    with pytest.raises(errors.InvalidArgument):
        client.consume(queue, prefetch=prefetch)


def test_what_is_no_queue_is_not_consumed_and_a_queue_not_subscribed_to(client: Any, name: str) -> None:
    client.declare(name)
    client.declare(f"{name}.queue", kind="queue")
    with pytest.raises((errors.InvalidArgument, errors.NotSupported)):
        client.consume(name)
    with pytest.raises((errors.InvalidArgument, errors.NotSupported)):
        client.subscribe(f"{name}.queue")
    with pytest.raises(errors.ChannelNotFound):
        client.consume(f"{name}.nowhere")


def test_a_message_that_is_too_large(client: Any, name: str) -> None:
    client.declare(name, kind="queue", ring_bytes=4096)
    publisher = client.publisher(name)
    with pytest.raises(errors.MessageTooLarge):
        publisher.publish_many([b"fits", bytes(publisher.message_bytes_max + 1), b"not reached"])
    publisher.publish(bytes(publisher.message_bytes_max))
    with client.consume(name) as consumer:
        assert [len(each) for each in payloads(take(consumer, 2))] == [4, publisher.message_bytes_max]


def test_a_delay_or_a_deadline_out_of_its_range(client: Any, queue: str) -> None:
    client.publisher(queue).publish(b"a")
    with client.consume(queue) as consumer:
        delivery = consumer.receive(timeout=DEADLINE_S)
        for options in ({"delay": 86_401}, {"delay": -1}, {"reject": True, "reason": "x" * 1_025}):
            with pytest.raises(errors.InvalidArgument):
                delivery.nack(**options)
        with pytest.raises(errors.InvalidArgument):
            delivery.extend(86_401)
        delivery.ack()


def test_errors_as_values(client: Any, queue: str) -> None:
    assert isinstance(client.try_consume(f"{queue}.nowhere"), Err)
    match client.try_consume(queue):
        case Ok(consumer):
            outcome = consumer.try_receive(timeout=0)
            assert isinstance(outcome, Err) and isinstance(outcome.error, errors.Timeout)
            client.channel(queue).publish(b"x")
            outcome = consumer.try_receive(timeout=DEADLINE_S)
            assert isinstance(outcome, Ok) and outcome.value.payload == b"x"
            consumer.close()
        case Err(error):
            raise AssertionError(error)
