"""`wait_drained` when the readers change while nobody publishes."""

from __future__ import annotations

from typing import Any

DEADLINE_S = 30.0


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
