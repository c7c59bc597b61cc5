"""Channels that drop, and channels with a history, over each carrier and with both clients."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.clients.test_messages import receive_exactly
from tests.support.deadlines import DEADLINE_S
from towpath import errors


def drain(subscription: Any, publisher: Any) -> list[Any]:
    """Receive until the message that is published now."""
    last = publisher.publish(b"the end")
    got: list[Any] = []
    while not got or (got[-1].source, got[-1].seq) != (publisher.source, last):
        got += receive_exactly(subscription, 1)
    return got


def check_account(messages: list[Any], last: int) -> int:
    """Check that what a source published up to ``last`` was received or told of as missed, exactly; return
    how many were missed.
    """
    expected = 1
    for message in messages:
        assert message.seq == expected + message.missed
        expected = message.seq + 1
    assert expected == last + 1
    return sum(message.missed for message in messages)


def test_a_publisher_does_not_wait_and_losses_are_counted_exactly(
    client: Any, connect: Any, name: str
) -> None:
    client.declare(name, overflow="drop", ring_bytes=4096)
    subscription, publisher = client.subscribe(name), connect().publisher(name)
    count = 5_000
    for first in range(0, count, 100):
        payloads = [b"%d" % number for number in range(first, first + 100)]
        assert publisher.publish_many(payloads, timeout=DEADLINE_S) == first + 100
    messages = drain(subscription, publisher)
    missed = check_account(messages, count + 1)
    assert subscription.lost == missed
    assert all(message.payload == b"%d" % (message.seq - 1) for message in messages[:-1])


def test_nothing_is_lost_by_who_keeps_up(client: Any, name: str) -> None:
    client.declare(name, overflow="drop")
    subscription, publisher = client.subscribe(name), client.publisher(name)
    for number in range(200):
        publisher.publish(b"%d" % number)
        message = subscription.receive(timeout=DEADLINE_S)
        assert (message.payload, message.missed) == (b"%d" % number, 0)
    assert subscription.lost == 0


def test_a_late_subscriber_gets_the_last_messages_and_then_what_comes(
    client: Any, connect: Any, name: str
) -> None:
    client.declare(name, history=10)
    publisher = connect().publisher(name)
    publisher.publish_many([b"%d" % number for number in range(25)])
    with client.subscribe(name) as subscription:
        publisher.publish_many([b"25", b"26"])
        got = receive_exactly(subscription, 12)
        assert [message.payload for message in got] == [b"%d" % number for number in range(15, 27)]
        assert [message.seq for message in got] == list(range(16, 28))
        assert subscription.receive_many(timeout=0.02) == []
        assert subscription.lost == 0


def test_a_history_that_is_shorter_than_asked_for(client: Any, name: str) -> None:
    client.declare(name, history=10)
    with client.publisher(name) as publisher:
        publisher.publish_many([b"1", b"2", b"3"])
        with client.subscribe(name) as subscription:
            assert [message.payload for message in receive_exactly(subscription, 3)] == [b"1", b"2", b"3"]
            assert subscription.receive_many(timeout=0.02) == []


def test_each_publisher_has_a_history_of_its_own(client: Any, connect: Any, name: str) -> None:
    client.declare(f"{name}.a", history=3)
    client.declare(f"{name}.b")
    for channel in (f"{name}.a", f"{name}.b"):
        for _ in range(2):
            connect().publisher(channel).publish_many([b"%d" % number for number in range(10)])
    with client.subscribe(f"{name}.>") as subscription:
        sources: dict[int, list[bytes]] = {}
        for message in receive_exactly(subscription, 3 * len(_sources(client, f"{name}.a"))):
            assert message.channel == f"{name}.a"
            sources.setdefault(message.source, []).append(message.payload)
        assert subscription.receive_many(timeout=0.02) == []
        for payloads in sources.values():
            assert payloads == [b"7", b"8", b"9"]


def _sources(client: Any, channel: str) -> list[int]:
    return list(range(client.channel_info(channel).publishers))


def test_options_out_of_range(client: Any, name: str) -> None:
    for options in ({"history": 65_537}, {"history": -1}, {"stall_ms_max": 86_400_001}, {"order": "some"}):
        with pytest.raises(errors.InvalidArgument):
            client.declare(name, **options)
    info = client.declare(name, overflow="drop", history=65_536, stall_ms_max=0)
    assert (info.overflow, info.history, info.stall_ms_max, info.order) == ("drop", 65_536, 0, "source")
    with pytest.raises(errors.ChannelConflict, match="overflow is drop, asked for block"):
        client.declare(name, overflow="block")
