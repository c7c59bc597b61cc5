"""Transactions, over each carrier and with both clients."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.clients.test_queues import payloads, take
from tests.support.deadlines import DEADLINE_S
from towpath import Headers, calls, errors
from towpath.result import Err, Ok
from towpath.v1.values_pb2 import GetValueRequest


@pytest.fixture
def orders(client: Any, name: str) -> str:
    client.declare(f"{name}.orders", kind="queue", durable=True)
    return f"{name}.orders"


@pytest.fixture
def bills(client: Any, name: str) -> str:
    client.declare(f"{name}.bills", kind="queue", durable=True)
    return f"{name}.bills"


@pytest.fixture
def total(client: Any, name: str) -> str:
    client.declare(f"{name}.total", kind="state", durable=True)
    return f"{name}.total"


def value(client: Any, name: str) -> tuple[int, bytes]:
    """A state's version and payload."""
    call = calls.Call(
        "get_value_request",
        GetValueRequest(channel=name),
        "get_value_response",
        lambda response: (int(response.value.version), bytes(response.value.payload)),
    )
    found: tuple[int, bytes] = client._call(call)
    return found


def contents(client: Any, queue: str) -> list[bytes]:
    """What is in a queue; it stays there."""
    with client.consume(queue) as consumer:
        found = []
        while batch := consumer.receive_many(timeout=0.1):
            found += payloads(batch)
        return found


def test_all_of_it_is_done_together(client: Any, orders: str, bills: str, total: str) -> None:
    client.publisher(orders).publish_many([b"1", b"2"])
    with client.consume(orders) as consumer:
        deliveries = take(consumer, 2)
        with client.transaction() as transaction:
            transaction.ack(deliveries[0])
            transaction.publish(bills, b"bill 1", headers=Headers(key=b"k"))
            transaction.publish_many(bills, [b"bill 2", b"bill 3"])
            transaction.set(total, b"3", if_version=0)
        done = transaction.result
        assert [(each.first_seq, each.count) for each in done.published] == [(1, 1), (2, 2)]
        assert (done.versions, done.deletions, done.is_repeated) == ((1,), (), False)
        assert deliveries[0].is_settled and not deliveries[1].is_settled
    assert value(client, total) == (1, b"3")
    assert contents(client, bills) == [b"bill 1", b"bill 2", b"bill 3"]
    assert contents(client, orders) == [b"2"]


def test_a_body_that_raises_does_nothing(client: Any, orders: str, bills: str) -> None:
    client.publisher(orders).publish(b"1")
    with client.consume(orders) as consumer:
        delivery = consumer.receive(timeout=DEADLINE_S)
        with pytest.raises(ZeroDivisionError), client.transaction() as transaction:
            transaction.ack(delivery)
            transaction.publish(bills, b"bill")
            raise ZeroDivisionError
        assert not delivery.is_settled
        delivery.ack()
        consumer.flush(DEADLINE_S)
    assert contents(client, bills) == []


def test_a_version_that_differs_refuses_all_of_it(client: Any, orders: str, bills: str, total: str) -> None:
    client.publisher(orders).publish(b"1")
    with client.transaction() as transaction:
        transaction.set(total, b"0")
    with client.consume(orders) as consumer:
        delivery = consumer.receive(timeout=DEADLINE_S)
        with pytest.raises(errors.VersionConflict), client.transaction() as transaction:
            transaction.ack(delivery)
            transaction.publish(bills, b"bill")
            transaction.set(total, b"1", if_version=7)
        assert not delivery.is_settled
    assert contents(client, bills) == []
    assert contents(client, orders) == [b"1"]
    assert value(client, total) == (1, b"0")


def test_a_delivery_that_is_lost_refuses_all_of_it(client: Any, name: str, bills: str) -> None:
    client.declare(name, kind="queue", durable=True, ack_ms=50)
    client.publisher(name).publish(b"1")
    with client.consume(name, prefetch=1) as consumer, client.consume(name, prefetch=1) as other:
        late = consumer.receive(timeout=DEADLINE_S)
        again = other.receive(timeout=DEADLINE_S)
        assert again.attempt == 2
        with pytest.raises(errors.DeliveryLost), client.transaction() as transaction:
            transaction.publish(bills, b"bill")
            transaction.ack(late)
    assert contents(client, bills) == []


def test_what_is_not_durable_is_in_no_transaction(client: Any, name: str, bills: str) -> None:
    client.declare(name, kind="queue")
    with pytest.raises((errors.InvalidArgument, errors.NotSupported)), client.transaction() as transaction:
        transaction.publish(bills, b"bill")
        transaction.publish(name, b"x")
    assert contents(client, bills) == []


def test_the_same_transaction_is_carried_out_once(client: Any, bills: str) -> None:
    """As when the answer to the first was lost."""
    first, second = client.transaction(), client.transaction()
    for transaction in (first, second):
        transaction.publish(bills, b"bill")
        transaction._request.transaction = first.id
    assert not first.commit().is_repeated
    assert second.commit().is_repeated
    assert second.result.published == first.result.published
    assert contents(client, bills) == [b"bill"]


def test_a_transaction_of_nothing(client: Any) -> None:
    with client.transaction() as transaction:
        pass
    assert transaction.result.published == ()


def test_a_transaction_ends_once(client: Any, bills: str) -> None:
    with client.transaction() as transaction:
        transaction.publish(bills, b"a")
        transaction.commit()
    with pytest.raises(errors.InvalidArgument):
        transaction.publish(bills, b"b")
    given_up = client.transaction()
    given_up.publish(bills, b"c")
    given_up.abort()
    with pytest.raises(errors.InvalidArgument):
        given_up.commit()
    assert contents(client, bills) == [b"a"]


def test_a_transaction_that_is_too_large(client: Any, bills: str) -> None:
    transaction = client.transaction()
    for _ in range(3):
        transaction.publish(bills, bytes(400_000))
    assert isinstance(transaction.try_commit(), Err)
    assert contents(client, bills) == []


def test_a_channel_that_is_not_there(client: Any, name: str, bills: str) -> None:
    transaction = client.transaction()
    transaction.publish(bills, b"a")
    transaction.publish(f"{name}.nowhere", b"b")
    outcome = transaction.try_commit()
    assert isinstance(outcome, Err) and isinstance(outcome.error, errors.ChannelNotFound)
    assert contents(client, bills) == []


def test_consume_transform_publish(client: Any, connect: Any, orders: str, bills: str, total: str) -> None:
    """The recipe of GUARANTEES.md, with two workers that meet at one value."""
    client.publisher(orders).publish_many([b"%d" % number for number in range(20)])
    workers = [connect() for _ in range(2)]
    consumers = [worker.consume(orders, prefetch=3) for worker in workers]
    done = 0
    while done < 20:
        for worker, consumer in zip(workers, consumers, strict=True):
            for delivery in consumer.receive_many(timeout=0.05):
                transaction = worker.transaction()
                transaction.ack(delivery)
                transaction.publish(bills, b"bill " + delivery.payload)
                version, so_far = value(worker, total)
                transaction.set(total, b"%d" % (int(so_far or b"0") + 1), if_version=version)
                assert isinstance(transaction.try_commit(), Ok)
                done += 1
    for consumer in consumers:
        consumer.close()
    assert value(client, total) == (20, b"20")
    assert sorted(contents(client, bills)) == sorted(b"bill %d" % number for number in range(20))
    assert contents(client, orders) == []
