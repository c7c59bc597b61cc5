"""What holds in shared memory alone, to the message. What every carrier does: tests/conformance/clients."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.deadlines import DEADLINE_S
from towpath import errors


def receive_exactly(subscription: Any, count: int) -> list[Any]:
    messages: list[Any] = []
    while len(messages) < count:
        batch = subscription.receive_many(count - len(messages), timeout=DEADLINE_S)
        assert batch, f"{len(messages)} of {count} messages came"
        messages += batch
    return messages


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
