"""What is drained and what is not: `wait_drained` while readers change, and publishers that left unread."""

from __future__ import annotations

from typing import Any

import pytest

from tests.client.conftest import Connect
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.ends import SLOTS


def test_a_reader_that_comes_takes_and_leaves_between_two_looks(client: Any, connect: Any, name: str) -> None:
    client.declare(name)
    publisher = client.publisher(name)
    other = connect()
    for number in range(1, 21):
        subscription = other.subscribe(name)
        publisher.publish(b"x")
        if number % 2:
            assert subscription.receive(timeout=DEADLINE_S).seq == number
        subscription.close()
        assert publisher.wait_drained(timeout=DEADLINE_S)


def test_a_reader_that_leaves_without_reading_is_not_waited_for(client: Any, connect: Any, name: str) -> None:
    client.declare(name)
    publisher = client.publisher(name)
    subscription = connect().subscribe(name)
    publisher.publish(b"x")
    assert not publisher.wait_drained(timeout=0)
    subscription.close()
    assert publisher.wait_drained(timeout=DEADLINE_S)


def test_more_unread_publishers_than_slots_end_a_subscription_after_all_they_left(
    client: Any, connect: Connect, name: str
) -> None:
    client.declare(name, ring_bytes=4096)
    slow, other = client.subscribe(name), connect().subscribe(name)
    before = client.status().counters.get("subscriptions_out_of_slots", 0)
    for number in range(SLOTS + 1):
        with client.publisher(name) as publisher:
            publisher.publish(b"%d" % number, timeout=DEADLINE_S)
        assert other.receive(timeout=DEADLINE_S).payload == b"%d" % number
    payloads: list[bytes] = []
    with pytest.raises(errors.LimitExceeded, match="slot"):
        while True:
            payloads.append(slow.receive(timeout=DEADLINE_S).payload)
    assert sorted(payloads, key=int) == [b"%d" % number for number in range(SLOTS)]
    assert client.status().counters["subscriptions_out_of_slots"] == before + 1
    with client.publisher(name) as publisher:
        publisher.publish(b"on", timeout=DEADLINE_S)
    assert other.receive(timeout=DEADLINE_S).payload == b"on"
