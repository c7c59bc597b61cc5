"""Connections that break, stop and come back: what remote clients see, over each carrier, of each kind."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest

import towpath
from tests.remote.relay import Relay
from tests.support.daemon import DaemonHandle, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.remote import following


def receive_exactly(subscription: Any, count: int) -> list[Any]:
    messages: list[Any] = []
    while len(messages) < count:
        batch = subscription.receive_many(count - len(messages), timeout=DEADLINE_S)
        assert batch, f"{len(messages)} of {count} messages came"
        messages += batch
    return messages


def wait_subscribers(local: towpath.Client, name: str, count: int) -> None:
    wait_until(lambda: local.channel_info(name).subscribers == count)


def stream_of(subscription: Any) -> Any:
    """A remote subscription's stream on its present connection; None while it has none."""
    return subscription._inner._stream


def wait_subscribed_anew(subscription: Any, before: Any) -> None:
    """Wait until a subscription has another stream. That the core counts a subscriber is too early: what is
    published before that has seen to its rings may be missed.
    """
    wait_until(lambda: stream_of(subscription) not in (None, before))


def test_a_subscription_goes_on_and_tells_what_it_missed(
    client: Any, relay: Relay, local: towpath.Client, name: str
) -> None:
    publisher = local.publisher(name)
    with client.subscribe(name) as subscription:
        publisher.publish_many([b"%d" % n for n in range(1, 11)])
        assert [message.seq for message in receive_exactly(subscription, 10)] == list(range(1, 11))
        before = stream_of(subscription)
        relay.cut()
        wait_subscribers(local, name, 0)
        publisher.publish_many([b"%d" % n for n in range(11, 21)])
        relay.mend()
        wait_subscribed_anew(subscription, before)
        publisher.publish_many([b"%d" % n for n in range(21, 31)])
        messages = receive_exactly(subscription, 10)
        assert [message.seq for message in messages] == list(range(21, 31))
        assert [message.missed for message in messages] == [10] + 9 * [0]
        assert subscription.lost == 10


def test_what_was_received_before_is_handed_out_and_nothing_twice(
    client: Any, relay: Relay, local: towpath.Client, name: str
) -> None:
    publisher = local.publisher(name)
    subscription = client.subscribe(name)
    publisher.publish_many([b"x" * 100] * 5_000)  # more than the windows hold of it, perhaps
    first = subscription.receive(timeout=DEADLINE_S)
    assert first.seq == 1
    before = stream_of(subscription)
    relay.cut()
    wait_subscribers(local, name, 0)
    relay.mend()
    wait_subscribed_anew(subscription, before)
    publisher.publish_many([b"y"] * 10)
    messages = [first]
    while messages[-1].seq < 5_010:
        messages += receive_exactly(subscription, 1)
    for one, after in itertools.pairwise(messages):
        assert one.seq + 1 + after.missed == after.seq
    assert len(messages) + subscription.lost == 5_010


def test_nothing_is_lost_silently_while_the_connection_breaks_again_and_again(
    client: Any, relay: Relay, local: towpath.Client, name: str
) -> None:
    publisher = local.publisher(name)
    subscription = client.subscribe(name)
    received: list[Any] = []
    is_over = threading.Event()

    def publish() -> None:
        while not is_over.is_set():
            publisher.publish_many([b"x" * 200] * 50)
        publisher.publish(b"end")

    thread = threading.Thread(target=publish)
    thread.start()
    for _ in range(5):
        received += receive_exactly(subscription, 500)
        before = stream_of(subscription)
        relay.cut()
        wait_subscribers(local, name, 0)
        relay.mend()
        wait_subscribed_anew(subscription, before)
    is_over.set()
    while not received or received[-1].payload != b"end":
        received += receive_exactly(subscription, 1)
    thread.join()
    assert received[0].seq == 1
    for one, after in itertools.pairwise(received):
        assert one.seq + 1 + after.missed == after.seq
    assert len(received) + subscription.lost == received[-1].seq
    assert subscription.lost > 0


def test_a_subscription_with_a_name_gets_it_back(
    client: Any, relay: Relay, local: towpath.Client, name: str
) -> None:
    kept = f"{name}.kept"
    local.declare(kept, durable=True)
    publisher = local.publisher(kept)
    with client.subscribe(kept, place="me", start="all") as subscription:
        for round_ in range(5):
            publisher.publish_many([b"%d" % (100 * round_ + n) for n in range(100)])
            messages = receive_exactly(subscription, 100)
            assert [int(message.payload) for message in messages] == [
                *range(100 * round_, 100 * round_ + 100)
            ]
            relay.cut()
            relay.mend()  # the gateway may not have noticed when the client is back
            wait_until(lambda: client.is_connected)
        publisher.publish(b"500")
        assert receive_exactly(subscription, 1)[0].payload == b"500"
        with pytest.raises(errors.SubscriptionInUse):
            local.subscribe(kept, place="me")
        assert subscription.lost == 0


def test_what_the_gateway_has_sent_is_not_dealt_with(
    client: Any, relay: Relay, local: towpath.Client, name: str
) -> None:
    """The place is where the program has come to: what was on its way when that broke comes again."""
    kept = f"{name}.kept"
    local.declare(kept, durable=True)
    with client.subscribe(kept, place="me", start="all") as subscription, local.publisher(kept) as publisher:
        for number in range(3):  # the gateway takes each before it takes the next
            publisher.publish(b"%d" % number)
            wait_until(lambda: len(subscription._inner._inbox) > number)  # noqa: B023
        relay.cut()
        wait_subscribers(local, kept, 0)
        assert [place for place in local.places(kept) if place.seq > 1] == []
        relay.mend()
        assert [int(message.payload) for message in receive_exactly(subscription, 3)] == [0, 1, 2]


def test_who_has_lost_his_name_meanwhile_is_told(
    client: Any, relay: Relay, local: towpath.Client, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PLACE_S", 0.2)
    kept = f"{name}.kept"
    local.declare(kept, durable=True)
    subscription = client.subscribe(kept, place="me")
    relay.cut()
    wait_subscribers(local, kept, 0)
    with local.subscribe(kept, place="me"):
        relay.mend()
        with pytest.raises(errors.SubscriptionInUse):
            subscription.receive(timeout=DEADLINE_S)


def test_a_publisher_goes_on(client: Any, relay: Relay, local: towpath.Client, name: str) -> None:
    with local.subscribe(name) as subscription, client.publisher(name) as publisher:
        publisher.publish(b"before")
        relay.cut()
        wait_until(lambda: not client.is_connected)
        with pytest.raises(errors.Unavailable):
            publisher.publish(b"never", timeout=0.05)
        thread = threading.Thread(target=lambda: publisher.publish(b"after", timeout=DEADLINE_S))
        thread.start()
        relay.mend()
        thread.join()
        assert [m.payload for m in receive_exactly(subscription, 2)] == [b"before", b"after"]


def test_a_publish_that_was_on_its_way_is_told_to_be_uncertain(
    client: Any, relay: Relay, local: towpath.Client, name: str
) -> None:
    with local.subscribe(name) as subscription, client.publisher(name) as publisher:
        publisher.publish(b"before")
        relay.stop()
        with pytest.raises(errors.Timeout, match="not known whether"):
            publisher.publish(b"late", timeout=0.05)
        failures: list[errors.TowpathError] = []

        def publish() -> None:
            try:
                publisher.publish(b"waits behind it")
            except errors.TowpathError as error:
                failures.append(error)

        thread = threading.Thread(target=publish)
        thread.start()
        relay.cut()
        wait_until(lambda: not client.is_connected)
        relay.mend()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        assert publisher.publish(b"after", timeout=DEADLINE_S) > 0
        payloads = [subscription.receive(timeout=DEADLINE_S).payload]
        while payloads[-1] != b"after":
            payloads.append(subscription.receive(timeout=DEADLINE_S).payload)
        expected = [b"before", b"waits behind it", b"after"]
        assert payloads == [each for each in expected if each != b"waits behind it" or not failures]


def test_calls_wait_for_the_connection(client: Any, relay: Relay, name: str) -> None:
    relay.cut()
    wait_until(lambda: not client.is_connected)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(client.channel_info(name)))
    thread.start()
    relay.mend()
    thread.join(DEADLINE_S)
    assert [answer.name for answer in answers] == [name]


def test_a_call_that_was_on_its_way_fails(client: Any, relay: Relay, name: str) -> None:
    relay.stop()
    failures: list[errors.TowpathError] = []

    def call() -> None:
        try:
            client.channel_info(name)
        except errors.TowpathError as error:
            failures.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(0.1)
    relay.cut()
    thread.join(DEADLINE_S)
    assert [type(failure) for failure in failures] == [errors.ConnectionLost]


def test_a_watch_starts_again(client: Any, relay: Relay, name: str) -> None:
    watch = client.watch()
    events = iter(watch)
    while next(events).kind != "current":
        pass
    relay.cut()
    assert next(events).kind == "reset"
    relay.mend()
    names = set()
    while (event := next(events)).kind != "current":
        if event.channel is not None:
            names.add(event.channel.name)
    assert name in names
    watch.close()
    assert list(events) == []


def test_a_channel_that_is_gone_when_the_connection_is_back(
    client: Any, relay: Relay, local: towpath.Client, name: str
) -> None:
    subscription, publisher = client.subscribe(name), client.publisher(name)
    publisher.publish(b"x")
    assert subscription.receive(timeout=DEADLINE_S).payload == b"x"
    relay.cut()
    wait_until(lambda: not client.is_connected)
    local.undeclare(name, force=True)
    relay.mend()
    with pytest.raises(errors.ChannelUndeclared):
        subscription.receive(timeout=DEADLINE_S)
    with pytest.raises(errors.ChannelUndeclared):
        publisher.publish(b"y", timeout=DEADLINE_S)


def test_closing_while_there_is_no_connection(client: Any, relay: Relay, name: str) -> None:
    subscription, publisher, watch = client.subscribe(name), client.publisher(name), client.watch()
    failures: list[type[Exception]] = []

    def wait_for(wait: Any) -> None:
        try:
            wait()
        except errors.TowpathError as error:
            failures.append(type(error))

    waits = (subscription.receive, lambda: publisher.publish(b"x"), lambda: client.channel_info(name))
    relay.cut()
    wait_until(lambda: not client.is_connected)
    threads = [threading.Thread(target=wait_for, args=(wait,)) for wait in waits]
    for thread in threads:
        thread.start()
    threads[0].join(0.05)
    client.close()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert failures == 3 * [errors.ConnectionLost]
    watch.close()


def test_the_gateway_is_killed(
    client: Any, carrier: str, daemon: DaemonHandle, local: towpath.Client, name: str
) -> None:
    mine = local.publisher(name)
    subscription, publisher = client.subscribe(name), client.publisher(name)
    mine.publish(b"1")
    assert subscription.receive(timeout=DEADLINE_S).payload == b"1"
    before = stream_of(subscription)
    daemon.kill_gateway({"grpc": "grpc", "zmq": "zeromq"}[carrier])
    wait_subscribed_anew(subscription, before)
    mine.publish(b"2")
    assert subscription.receive(timeout=DEADLINE_S).payload == b"2"
    publisher.publish(b"3", timeout=DEADLINE_S)
    assert subscription.receive(timeout=DEADLINE_S).payload == b"3"
    assert subscription.lost == 0


def test_the_core_is_killed(client: Any, daemon: DaemonHandle, local: towpath.Client, name: str) -> None:
    subscription, publisher = client.subscribe(name), client.publisher(name)
    publisher.publish(b"1")
    watch = client.watch()
    events = iter(watch)
    while next(events).kind != "current":
        pass
    daemon.kill_core()
    publisher.publish(b"2")
    assert client.channel_info(name).name == name
    assert [message.payload for message in receive_exactly(subscription, 2)] == [b"1", b"2"]
    assert next(events).kind == "reset"
    while next(events).kind != "current":
        pass
    watch.close()
