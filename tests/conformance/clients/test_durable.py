"""Durable topics over each carrier and with both clients: replay, places, who is too slow for the ring."""

from __future__ import annotations

import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.conformance.clients.carriers import Carrier
from tests.conformance.clients.test_messages import receive_exactly
from tests.support.daemon import DaemonHandle, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.model import Headers


def numbers(messages: list[Any]) -> list[int]:
    return [int(message.payload) for message in messages]


def publish_numbers(publisher: Any, first: int, count: int) -> None:
    """Publish ``first``, ``first`` + 1, ...; returns when all are on disk."""
    for begin in range(first, first + count, 100):
        end = min(begin + 100, first + count)
        publisher.publish_many([b"%d" % number for number in range(begin, end)], timeout=DEADLINE_S)
    publisher.flush(DEADLINE_S)


def test_everything_is_replayed_and_then_comes_what_is_new(client: Any, connect: Any, name: str) -> None:
    client.declare(name, durable=True)
    publisher = client.publisher(name)
    publish_numbers(publisher, 1, 500)
    late = connect().subscribe(name, start="all")
    assert late.next_seq == 1 and late.is_stored
    publish_numbers(publisher, 501, 500)
    messages = receive_exactly(late, 1000)
    assert numbers(messages) == [message.seq for message in messages] == [*range(1, 1001)]
    assert late.lost == 0 and all(message.missed == 0 for message in messages)
    assert late.next_seq == 1001


def test_what_is_new_alone_is_what_is_given_unless_told_otherwise(client: Any, name: str) -> None:
    client.declare(name, durable=True)
    publisher = client.publisher(name)
    publish_numbers(publisher, 1, 10)
    plain, new = client.subscribe(name), client.subscribe(name, start="new")
    publish_numbers(publisher, 11, 5)
    for subscription in (plain, new):
        assert numbers(receive_exactly(subscription, 5)) == [*range(11, 16)]


def test_what_is_confirmed_is_stored(client: Any, connect: Any, name: str) -> None:
    client.declare(name, durable=True)
    other, publisher, channel = connect(), client.publisher(name), client.channel(name)
    for number in range(1, 40, 2):
        assert channel.publish(b"%d" % number, confirm=True, timeout=DEADLINE_S) > 0
        assert other.channel_info(name).contents.next_seq == number + 1
        assert publisher.publish_many([b"%d" % (number + 1)], confirm=True, timeout=DEADLINE_S) > 0
        assert other.channel_info(name).contents.next_seq == number + 2
    assert numbers(receive_exactly(other.subscribe(name, start="all"), 40)) == [*range(1, 41)]


@pytest.mark.parametrize("kind", ["topic", "queue"])
def test_where_nothing_is_stored_there_is_nothing_to_confirm(client: Any, name: str, kind: str) -> None:
    client.declare(name, kind=kind)
    assert client.channel(name).publish(b"1", confirm=True, timeout=DEADLINE_S) == 1
    assert client.channel(name).publish_many([b"2", b"3"], confirm=True, timeout=DEADLINE_S) == 3


def test_who_asks_for_confirmation_does_not_wait_for_what_others_publish(client: Any, name: str) -> None:
    client.declare(name, durable=True)
    channel, is_over = client.channel(name), threading.Event()
    channel.publish(b"first")

    def publish() -> None:
        while not is_over.is_set():
            channel.publish_many([b"x" * 100] * 50, timeout=DEADLINE_S)

    others = [threading.Thread(target=publish) for _ in range(2)]
    for thread in others:
        thread.start()
    try:
        for _ in range(20):
            seq = channel.publish(b"mine", confirm=True, timeout=DEADLINE_S)
            assert client.channel_info(name).contents.next_seq > seq
    finally:
        is_over.set()
        for thread in others:
            thread.join()


def test_what_is_not_confirmed_in_time_is_told_and_stored_later(
    client: Any, carrier: Carrier, daemon: DaemonHandle, name: str
) -> None:
    client.declare(name, durable=True)
    channel, core = client.channel(name), daemon.core_pid
    channel.publish(b"before", confirm=True, timeout=DEADLINE_S)
    os.kill(core, signal.SIGSTOP)
    try:
        with pytest.raises(errors.Timeout):
            channel.publish(b"late", confirm=True, timeout=0.2)
    finally:
        os.kill(core, signal.SIGCONT)
    channel.publish(b"after", confirm=True, timeout=DEADLINE_S)
    last = client.channel_info(name).contents.next_seq
    stored = [each.payload for each in receive_exactly(client.subscribe(name, start="all"), last - 1)]
    expected = [[b"before", b"late", b"after"]]
    if carrier.name != "local":  # from afar it may not even have left
        expected.append([b"before", b"after"])
    assert stored in expected


@pytest.mark.parametrize("seq", [1, 7, 20, 21, 400])
def test_a_seq_to_start_with(client: Any, name: str, seq: int) -> None:
    client.declare(name, durable=True)
    publisher = client.publisher(name)
    publish_numbers(publisher, 1, 20)
    subscription = client.subscribe(name, start=seq)
    publish_numbers(publisher, 21, 5)
    begin = min(seq, 21)
    assert numbers(receive_exactly(subscription, 26 - begin)) == [*range(begin, 26)]


def test_a_time_to_start_with(client: Any, name: str) -> None:
    client.declare(name, durable=True)
    publisher = client.publisher(name)
    publish_numbers(publisher, 1, 5)
    publish_numbers(publisher, 6, 5)
    messages = receive_exactly(client.subscribe(name, start="all"), 10)
    sixth = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=messages[5].time_ns // 1000)
    expected = next(
        message.seq for message in messages if message.time_ns >= messages[5].time_ns // 1000 * 1000
    )
    assert receive_exactly(client.subscribe(name, start=sixth), 1)[0].seq == expected
    tomorrow = client.subscribe(name, start=datetime.now(UTC) + timedelta(days=1))
    publish_numbers(publisher, 11, 1)
    assert numbers(receive_exactly(tomorrow, 1)) == [11], "none is so late: with what comes"


def test_who_is_too_slow_for_the_ring_goes_on_from_the_store(client: Any, connect: Any, name: str) -> None:
    client.declare(name, durable=True, ring_bytes=4096)
    slow, publisher = client.subscribe(name), connect().publisher(name)
    publish_numbers(publisher, 1, 3_000)
    messages = receive_exactly(slow, 3_000)
    assert numbers(messages) == [message.seq for message in messages] == [*range(1, 3_001)]
    assert slow.lost == 0 and all(message.missed == 0 for message in messages)


def test_what_is_stored_comes_however_short_the_timeouts_are(client: Any, name: str) -> None:
    client.declare(name, durable=True)
    with client.publisher(name) as publisher:
        publisher.publish_many([b"%d" % n for n in range(500)])
        publisher.flush(DEADLINE_S)
    with client.subscribe(name, start="all") as subscription:
        got: list[bytes] = []

        def receive() -> bool:
            got.extend(m.payload for m in subscription.receive_many(100, timeout=0))
            return len(got) >= 500

        wait_until(receive)
        assert got == [b"%d" % n for n in range(500)]


def test_what_is_kept_no_more_is_counted_as_missed(client: Any, name: str) -> None:
    client.declare(name, durable=True, retain_messages=50)
    publisher = client.publisher(name)
    for first in range(1, 301, 10):
        publish_numbers(publisher, first, 10)
    subscription = client.subscribe(name, start=1)
    first = receive_exactly(subscription, 1)[0]
    assert first.seq > 200 and first.missed == first.seq - 1 == subscription.lost
    everything = receive_exactly(client.subscribe(name, start="all"), 1)[0]
    assert (everything.seq, everything.missed) == (first.seq, 0), "that is all there is"


def test_all_see_one_order(client: Any, connect: Any, name: str) -> None:
    client.declare(name, durable=True)
    subscription = client.subscribe(name)
    publishers = [connect().publisher(name) for _ in range(3)]
    for _ in range(20):
        for number, publisher in enumerate(publishers):
            publisher.publish_many([b"%d" % number] * 5, timeout=DEADLINE_S)
    for publisher in publishers:
        publisher.flush(DEADLINE_S)
    live, stored = (
        receive_exactly(subscription, 300),
        receive_exactly(connect().subscribe(name, start="all"), 300),
    )
    assert [(m.seq, m.payload, m.time_ns) for m in live] == [(m.seq, m.payload, m.time_ns) for m in stored]


def test_headers_are_stored(client: Any, name: str) -> None:
    client.declare(name, durable=True)
    publisher = client.publisher(name)
    headers = Headers(content_type="text/plain", key=b"k", user={"a": "b"})
    publisher.publish(b"with", headers=headers)
    publisher.publish(b"without")
    publisher.flush(DEADLINE_S)
    first, second = receive_exactly(client.subscribe(name, start="all"), 2)
    assert (first.headers, second.headers_raw) == (headers, b"")


def test_a_named_subscription_goes_on_where_it_was(client: Any, connect: Any, name: str) -> None:
    client.declare(name, durable=True)
    publish_numbers(client.publisher(name), 1, 100)
    other = connect()
    subscription = other.subscribe(name, start="all", place="nightly")
    assert numbers([subscription.receive(DEADLINE_S) for _ in range(10)]) == [*range(1, 11)]
    subscription.save_place(DEADLINE_S)
    subscription.close()
    (place,) = client.places(name)
    assert (place.name, place.seq) == ("nightly", 11) and place.saved_at_ns > 0
    again = connect().subscribe(name, start="all", place="nightly")
    assert again.next_seq == 11
    assert again.receive(DEADLINE_S).seq == 11
    # Where it begins is saved in the background; from afar that could overtake what follows.
    wait_until(lambda: client.places(name)[0].saved_at_ns > place.saved_at_ns)
    client.delete_place(name, "nightly")
    assert client.places(name) == []
    with pytest.raises(errors.SubscriptionNotFound):
        client.delete_place(name, "nightly")


def test_a_place_is_saved_when_the_next_is_received(client: Any, name: str) -> None:
    client.declare(name, durable=True)
    publisher = client.publisher(name)
    publish_numbers(publisher, 1, 5)
    subscription = client.subscribe(name, start="all", place="p")
    assert len(receive_exactly(subscription, 5)) == 5
    assert subscription.receive_many(timeout=0) == []
    while not client.places(name) or client.places(name)[0].seq != 6:
        publisher.flush(DEADLINE_S)
    subscription.close()
    publish_numbers(publisher, 6, 1)
    assert receive_exactly(client.subscribe(name, place="p"), 1)[0].seq == 6


def test_one_subscription_at_a_time_goes_by_a_name(client: Any, connect: Any, name: str) -> None:
    client.declare(name, durable=True)
    publish_numbers(client.publisher(name), 1, 20)
    first, other = client.subscribe(name, place="me", start="all"), connect()
    for again in (client, other):
        with pytest.raises(errors.SubscriptionInUse, match="'me'"):
            again.subscribe(name, place="me", start="all")
    with other.subscribe(name, place="you", start="all") as another:
        assert numbers(receive_exactly(another, 20)) == [*range(1, 21)]
    assert numbers(receive_exactly(first, 20)) == [*range(1, 21)]
    first.save_place(DEADLINE_S)
    first.close()
    with wait_subscribed(other, name, "me") as successor:
        publish_numbers(client.publisher(name), 21, 5)
        assert numbers(receive_exactly(successor, 5)) == [*range(21, 26)]


def wait_subscribed(client: Any, name: str, place: str) -> Any:
    """Subscribe, as soon as the core has heard that the name is free."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            return client.subscribe(name, place=place)
        except errors.SubscriptionInUse:
            assert time.monotonic() < deadline


def test_a_name_is_taken_over_by_who_says_so(client: Any, connect: Any, name: str) -> None:
    client.declare(name, durable=True)
    publish_numbers(client.publisher(name), 1, 100)
    first = connect().subscribe(name, place="me", start="all")
    assert numbers(first.receive_many(10, timeout=DEADLINE_S)) == [*range(1, 11)]
    first.save_place(DEADLINE_S)
    second = client.subscribe(name, place="me", take_over=True)
    with pytest.raises(errors.SubscriptionInUse, match="took over"):
        while True:  # at most what was in hand already
            first.receive(timeout=DEADLINE_S)
    with pytest.raises(errors.SubscriptionInUse):
        first.save_place(DEADLINE_S)
    assert numbers(receive_exactly(second, 90)) == [*range(11, 101)]
    first.close()
    publish_numbers(client.publisher(name), 101, 1)
    assert numbers(receive_exactly(second, 1)) == [101]
    second.save_place(DEADLINE_S)
    assert [place.seq for place in client.places(name)] == [102]


def test_a_message_with_an_id_is_stored_once(client: Any, name: str) -> None:
    client.declare(name, durable=True)
    publisher = client.publisher(name)
    for _ in range(3):
        publisher.publish(b"once", headers=Headers(message_id="order-1"), timeout=DEADLINE_S)
    publisher.publish(b"other", timeout=DEADLINE_S)
    publisher.flush(DEADLINE_S)
    messages = receive_exactly(client.subscribe(name, start="all"), 2)
    assert [(message.seq, message.payload) for message in messages] == [(1, b"once"), (2, b"other")]


def test_a_start_or_a_place_is_for_durable_topics(client: Any, name: str) -> None:
    client.declare(name)
    for options in ({"start": "all"}, {"place": "p"}):
        with pytest.raises(errors.InvalidArgument):
            client.subscribe(name, **options)
    with pytest.raises((errors.InvalidArgument, errors.InvalidName)):
        client.subscribe("test.>", start="all")
    for start in (0, -1, "oldest", datetime(2026, 1, 1), True):
        with pytest.raises(errors.InvalidArgument):
            client.subscribe(name, start=start)
    with pytest.raises(errors.InvalidArgument):
        client.subscribe(name).save_place()
    client.publisher(name).flush(0)


def test_who_replays_is_told_that_the_channel_is_gone(client: Any, connect: Any, name: str) -> None:
    client.declare(name, durable=True)
    publish_numbers(client.publisher(name), 1, 10)
    subscription = connect().subscribe(name, start="all")
    assert len(receive_exactly(subscription, 10)) == 10
    client.undeclare(name, force=True)
    with pytest.raises(errors.ChannelUndeclared):
        subscription.receive(DEADLINE_S)
    client.declare(name, durable=True)
    publish_numbers(client.publisher(name), 1, 1)
    assert receive_exactly(connect().subscribe(name, start="all"), 1)[0].seq == 1
