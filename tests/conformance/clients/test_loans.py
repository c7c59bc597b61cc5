"""Loans: the same code over each carrier, with both clients; what is loaned arrives as what is published."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.deadlines import DEADLINE_S
from towpath import Headers, errors


def test_what_was_loaned_arrives(client: Any, name: str) -> None:
    client.declare(name)
    subscription, publisher = client.subscribe(name), client.publisher(name)
    for number, size in enumerate((5, 0, 70_000), 1):
        loan = publisher.loan(size)
        assert (len(loan), loan.nbytes) == (size, size)
        loan[:] = bytes([number]) * size
        if size:
            assert loan[0] == number
            assert bytes(loan[:2]) == bytes([number]) * 2
        headers = Headers(content_type="text/plain", user={"a": "b"})
        assert publisher.publish_loan(loan, headers=headers) == number
        message = subscription.receive(timeout=DEADLINE_S)
        assert bytes(message.payload) == bytes([number]) * size
        assert (message.seq, message.headers) == (number, headers)


def test_by_name(client: Any, name: str) -> None:
    client.declare(name)
    channel = client.channel(name)
    with client.subscribe(name) as subscription:
        loan = channel.loan(3)
        loan[:] = b"abc"
        channel.publish(loan, key=b"k")
        message = subscription.receive(timeout=DEADLINE_S)
        assert (bytes(message.payload), message.headers.key) == (b"abc", b"k")
    channel.close()


def test_it_is_published_once(client: Any, name: str) -> None:
    client.declare(name)
    publisher = client.publisher(name)
    loan = publisher.loan(10)
    view = memoryview(loan)
    with pytest.raises(BufferError):
        publisher.publish_loan(loan)
    with pytest.raises(BufferError):
        loan.release()
    view.release()
    publisher.publish_loan(loan)
    with pytest.raises(BufferError):
        publisher.publish_loan(loan)
    loan.release()  # nothing to give back
    with publisher.loan(10) as other:
        other[0] = 1
    with pytest.raises(BufferError):
        publisher.publish_loan(other)


def test_refusals(client: Any, name: str) -> None:
    client.declare(name)
    publisher, other = client.publisher(name), client.publisher(name)
    with pytest.raises(errors.MessageTooLarge):
        publisher.loan(1 << 40)
    with pytest.raises(errors.InvalidArgument):
        publisher.loan(-1)
    with pytest.raises(errors.InvalidArgument, match="no loan of this publisher"):
        other.publish_loan(publisher.loan(1))
    with pytest.raises(errors.InvalidArgument, match="no loan of this publisher"):
        publisher.publish_loan(b"bytes")
    with pytest.raises(errors.InvalidArgument, match="held_max"):
        client.subscribe(name, held_max=-1)


def test_on_a_queue(client: Any, name: str) -> None:
    client.declare(name, kind="queue")
    publisher, consumer = client.publisher(name), client.consume(name)
    loan = publisher.loan(3)
    loan[:] = b"abc"
    publisher.publish_loan(loan)
    delivery = consumer.receive(timeout=DEADLINE_S)
    assert delivery.payload == b"abc"
    delivery.ack()


@pytest.mark.parametrize("options", [{"durable": True}, {"order": "total"}], ids=["durable", "total"])
def test_where_the_core_takes_part(client: Any, name: str, options: dict[str, Any]) -> None:
    """It copies out of the publisher's memory; so a loan is no larger than a message."""
    client.declare(name, **options)
    publisher, subscription = client.publisher(name), client.subscribe(name)
    for number in range(1, 21):
        loan = publisher.loan(publisher.message_bytes_max)
        loan[:8] = b"%08d" % number
        publisher.publish_loan(loan)
        message = subscription.receive(timeout=DEADLINE_S)
        assert isinstance(message.payload, bytes)
        assert (message.payload[:8], len(message.payload)) == (b"%08d" % number, publisher.message_bytes_max)
    with pytest.raises(errors.MessageTooLarge):
        publisher.loan(publisher.message_bytes_max + 1)
    with pytest.raises(errors.MessageTooLarge):
        publisher.publish_loan(publisher.loan(publisher.message_bytes_max), headers=Headers(key=b"k"))
