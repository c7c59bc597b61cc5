"""Subscriptions to patterns, over each carrier and with both clients."""

from __future__ import annotations

from typing import Any

import pytest

import towpath
from tests.conformance.clients.test_messages import receive_exactly
from tests.support.daemon import DaemonHandle
from tests.support.deadlines import DEADLINE_S
from towpath import errors


def test_a_pattern_follows_what_it_stands_for_and_nothing_else(client: Any, name: str) -> None:
    inside, outside = (f"{name}.a.temp", f"{name}.b.temp"), (f"{name}.a.speed", f"{name}.temp", name)
    for channel in (*inside, *outside):
        client.declare(channel)
    publishers = {channel: client.publisher(channel) for channel in (*inside, *outside)}
    with client.subscribe(f"{name}.*.temp") as subscription:
        for channel, publisher in publishers.items():
            publisher.publish_many([b"%s %d" % (channel.encode(), number) for number in range(3)])
        got = receive_exactly(subscription, 6)
        assert subscription.receive_many(timeout=0.05) == []
    for channel in inside:
        mine = [message for message in got if message.channel == channel]
        assert [message.payload for message in mine] == [b"%s %d" % (channel.encode(), n) for n in range(3)]
        assert {message.source for message in mine} == {publishers[channel].source}
        assert [message.seq for message in mine] == [1, 2, 3]


def test_the_rest_of_the_levels(client: Any, name: str) -> None:
    names = [f"{name}.x", f"{name}.x.y.z", name]
    for channel in names:
        client.declare(channel)
    with client.subscribe(f"{name}.>") as subscription:
        for channel in names:
            client.channel(channel).publish(channel.encode())
        assert {message.channel for message in receive_exactly(subscription, 2)} == set(names[:2])


def test_channels_that_are_declared_later_are_followed_from_their_first_message(
    client: Any, connect: Any, name: str
) -> None:
    other = connect()
    with client.subscribe(f"{name}.>") as subscription:
        for number in range(5):
            other.declare(f"{name}.{number}")
            with other.publisher(f"{name}.{number}") as publisher:
                publisher.publish_many([b"1", b"2"])
        got = receive_exactly(subscription, 10)
    for number in range(5):
        mine = [message.payload for message in got if message.channel == f"{name}.{number}"]
        assert mine == [b"1", b"2"]


def test_a_pattern_does_not_hold_a_channel_and_survives_its_end(
    client: Any, daemon: DaemonHandle, name: str
) -> None:
    # The publisher is one of this host: gateways keep theirs open for a while.
    with towpath.connect(str(daemon.socket)) as other, client.subscribe(f"{name}.*") as subscription:
        for round_ in (b"first", b"second"):
            other.declare(f"{name}.a")
            publisher = other.publisher(f"{name}.a")
            publisher.publish(round_)
            assert subscription.receive(timeout=DEADLINE_S).payload == round_
            publisher.close()
            other.undeclare(f"{name}.a")


def test_forced_undeclare_ends_only_one_part(client: Any, connect: Any, name: str) -> None:
    other = connect()
    for channel in (f"{name}.a", f"{name}.b"):
        other.declare(channel)
    publisher, kept = other.publisher(f"{name}.a"), other.publisher(f"{name}.b")
    with client.subscribe(f"{name}.*") as subscription:
        publisher.publish(b"last")
        other.undeclare(f"{name}.a", force=True)
        kept.publish(b"goes on")
        assert {message.payload for message in receive_exactly(subscription, 2)} == {b"last", b"goes on"}
        with pytest.raises(errors.ChannelUndeclared):
            publisher.publish(b"x")
        kept.publish(b"still")
        assert subscription.receive(timeout=DEADLINE_S).payload == b"still"


@pytest.mark.parametrize("pattern", ["a.>.b", "a*", "*a", "a..*", ".>", "_towpath.>", "", "a b.*"])
def test_what_is_no_pattern(client: Any, pattern: str) -> None:
    with pytest.raises(errors.InvalidName):
        client.subscribe(pattern)


def test_patterns_are_for_subscribing_only(client: Any, name: str) -> None:
    for use in (client.declare, client.channel_info, client.publisher):
        with pytest.raises(errors.InvalidName, match="pattern"):
            use(f"{name}.*")
