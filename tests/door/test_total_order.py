"""Channels with order = "total", through the real daemon: one order, the same for everybody."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import towpath
import towpath.aio
from tests.support.blocking import BlockingClient
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import calls, errors
from towpath.sync.brief import BriefClient

PUBLISHERS = 4
SUBSCRIBERS = 3
COUNT = 3000


@pytest.fixture
def client(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    with towpath.connect(str(daemon.socket)) as connected:
        yield connected


@pytest.fixture
def channel(client: towpath.Client, request: pytest.FixtureRequest) -> str:
    name = f"total{abs(hash(request.node.name)) % 10**9}"
    client.declare(name, order="total", ring_bytes=16384)
    return name


def in_threads(works: Sequence[threading.Thread]) -> None:
    for work in works:
        work.start()
    for work in works:
        work.join(DEADLINE_S * 2)
        assert not work.is_alive()


def test_four_publishers_and_three_subscribers_see_one_order(
    daemon: DaemonHandle, client: towpath.Client, channel: str
) -> None:
    """Ring and socket, blocking and event loop, all at once; every publisher's own order is kept."""
    subscriptions = [client.subscribe(channel) for _ in range(SUBSCRIBERS - 1)]
    loop_client = BlockingClient(str(daemon.socket))
    subscriptions.append(loop_client.subscribe(channel))
    total = PUBLISHERS * COUNT
    seen: list[list[tuple[int, int, bytes]]] = [[] for _ in subscriptions]

    def publish(name: int) -> None:
        payloads = [b"%d:%d" % (name, number) for number in range(COUNT)]
        if name == 0:
            with BriefClient(str(daemon.socket)) as brief:
                for start in range(0, COUNT, 50):
                    brief.call(calls.publish(channel, payloads[start : start + 50]), DEADLINE_S)
            return
        with towpath.connect(str(daemon.socket)) as own, own.publisher(channel) as publisher:
            for start in range(0, COUNT, 10 * name):
                publisher.publish_many(payloads[start : start + 10 * name], timeout=DEADLINE_S)

    def receive(index: int) -> None:
        while len(seen[index]) < total:
            got = subscriptions[index].receive_many(256, timeout=DEADLINE_S)
            assert got, f"{len(seen[index])} of {total}"
            seen[index] += [(message.source, message.seq, message.payload) for message in got]

    in_threads(
        [
            *(threading.Thread(target=publish, args=(name,)) for name in range(PUBLISHERS)),
            *(threading.Thread(target=receive, args=(index,)) for index in range(SUBSCRIBERS)),
        ]
    )
    loop_client.close()
    assert seen[0] == seen[1] == seen[2]
    assert [seq for _, seq, _ in seen[0]] == list(range(1, total + 1))
    assert len({source for source, _, _ in seen[0]}) == 1
    for name in range(PUBLISHERS):
        own = [payload for _, _, payload in seen[0] if payload.startswith(b"%d:" % name)]
        assert own == [b"%d:%d" % (name, number) for number in range(COUNT)]


def test_messages_keep_their_headers_and_time(client: towpath.Client, channel: str) -> None:
    subscription = client.subscribe(channel)
    client.channel(channel).publish(b"x", headers=towpath.Headers(content_type="text/plain", key=b"k"))
    message = subscription.receive(DEADLINE_S)
    assert (message.payload, message.headers.content_type, message.headers.key) == (b"x", "text/plain", b"k")


def test_a_publisher_leaves_and_all_it_published_arrives(client: towpath.Client, channel: str) -> None:
    subscription = client.subscribe(channel)
    for turn in range(20):
        with client.publisher(channel) as publisher:
            publisher.publish_many([b"%d" % turn] * 3)
    got = [subscription.receive(DEADLINE_S).payload for _ in range(60)]
    assert got == [b"%d" % turn for turn in range(20) for _ in range(3)]
    assert client.channel_info(channel).publishers == 0


def test_a_full_ring_holds_publishers_up_through_the_core_and_nothing_is_lost(
    client: towpath.Client, channel: str
) -> None:
    subscription = client.subscribe(channel)
    publisher = client.publisher(channel)
    published = 0
    with pytest.raises(errors.Timeout):
        for published in range(1000):  # noqa: B007
            publisher.publish(b"x" * 500, timeout=0.2)
    assert 30 < published < 100  # two rings' worth
    got = [subscription.receive(DEADLINE_S) for _ in range(published)]
    assert [message.seq for message in got] == list(range(1, published + 1))
    publisher.publish(b"again", timeout=DEADLINE_S)
    assert subscription.receive(DEADLINE_S).payload == b"again"


def test_a_pattern_hears_each_message_once(client: towpath.Client, channel: str) -> None:
    subscription = client.subscribe(">")
    with client.publisher(channel) as publisher:
        publisher.publish_many([b"1", b"2"])
        assert [subscription.receive(DEADLINE_S).payload for _ in range(2)] == [b"1", b"2"]
    with pytest.raises(errors.Timeout):
        subscription.receive(0.1)


def test_an_event_loop_publishes_and_a_slow_subscriber_only_delays_it(
    daemon: DaemonHandle, client: towpath.Client, channel: str
) -> None:
    subscription = client.subscribe(channel)
    loop_client = BlockingClient(str(daemon.socket))
    publisher = loop_client.publisher(channel)
    sending = threading.Thread(
        target=lambda: [publisher.publish(b"%d" % n + b"." * 400, timeout=DEADLINE_S) for n in range(300)]
    )
    sending.start()
    got = [subscription.receive(DEADLINE_S).payload.partition(b".")[0] for _ in range(300)]
    sending.join(DEADLINE_S)
    loop_client.close()
    assert got == [b"%d" % n for n in range(300)]


def test_undeclaring_ends_publishers_and_subscribers(client: towpath.Client, channel: str) -> None:
    subscription = client.subscribe(channel)
    publisher = client.publisher(channel)
    publisher.publish(b"last")
    assert subscription.receive(DEADLINE_S).payload == b"last"
    client.undeclare(channel, force=True)
    with pytest.raises(errors.ChannelUndeclared):
        subscription.receive(DEADLINE_S)
    wait_until(lambda: _is_undeclared(publisher))
    assert client.status().counters["own_sources"] >= 0


def _is_undeclared(publisher: towpath.Publisher) -> bool:
    try:
        publisher.publish(b"x", timeout=1.0)
    except errors.ChannelUndeclared:
        return True
    return False


def test_what_is_dropped_is_counted_exactly_and_publishers_do_not_wait(client: towpath.Client) -> None:
    client.declare("drops", order="total", overflow="drop", ring_bytes=16384)
    subscription = client.subscribe("drops")
    publishers = [client.publisher("drops") for _ in range(2)]
    for number in range(1000):
        for publisher in publishers:
            publisher.publish(b"%d" % number, timeout=DEADLINE_S)
    assert all(publisher.wait_drained(DEADLINE_S) for publisher in publishers)
    got = [subscription.receive(DEADLINE_S)]
    while got[-1].seq < 2000:
        got.append(subscription.receive(DEADLINE_S))
    assert got[0].missed == got[0].seq - 1 > 1000
    assert [message.seq for message in got] == list(range(got[0].seq, 2001))
    assert subscription.lost == got[0].missed
    client.undeclare("drops", force=True)


def test_a_command_both_ways_does_not_get_back_what_it_brought(client: towpath.Client, channel: str) -> None:
    """What it brought comes to it in the core's ring, among the others', and is left out by its origin."""
    subscription, publisher = client.subscribe(channel), client.publisher(channel)
    client.bind(channel, "pipe:sed -u s/^/got-/", direction="both")
    for number in range(50):
        publisher.publish(b"%d" % number)
    received = [subscription.receive(DEADLINE_S) for _ in range(100)]
    assert sorted(message.payload for message in received) == sorted(
        payload for number in range(50) for payload in (b"%d" % number, b"got-%d" % number)
    )
    assert len({message.source for message in received}) == 1
    assert len({message.origin_source for message in received}) == 2
    publisher.publish(b"last")
    assert [subscription.receive(DEADLINE_S).payload for _ in range(2)] == [b"last", b"got-last"]
    client.unbind(client.bindings(channel)[0].id)


def test_a_loop_that_waits_for_room_since_before_a_restart_goes_on_by_its_doorbell(tmp_path: Path) -> None:
    """``stall_ms_max = 0``: it looks again for no other reason."""
    with (
        running_daemon(tmp_path, LOCAL_ONLY) as daemon,
        towpath.connect(str(daemon.socket)) as client,
    ):
        client.declare("slow", order="total", ring_bytes=4096, stall_ms_max=0)
        subscription = client.subscribe("slow")
        loop_client = BlockingClient(str(daemon.socket))
        publisher = loop_client.publisher("slow")
        sent: list[int] = []

        def send() -> None:
            for _ in range(60):
                sent.append(publisher.publish(b"x" * 400, timeout=DEADLINE_S))

        sending = threading.Thread(target=send)
        sending.start()
        wait_until(lambda: len(sent) >= 8)
        daemon.kill_core()
        wait_until(lambda: client.channel_info("slow").publishers == 1)
        assert sending.is_alive()
        assert [subscription.receive(DEADLINE_S).seq for _ in range(60)] == list(range(1, 61))
        sending.join(DEADLINE_S)
        assert sent == list(range(1, 61))
        loop_client.close()


def test_history_is_the_last_in_the_one_order(tmp_path: Path) -> None:
    """Also after the core was started again."""
    with (
        running_daemon(tmp_path, LOCAL_ONLY) as daemon,
        towpath.connect(str(daemon.socket)) as client,
    ):
        client.declare("past", order="total", history=5)
        publisher = client.publisher("past")
        publisher.publish_many([b"%d" % number for number in range(20)])
        assert publisher.wait_drained(DEADLINE_S)
        for _ in range(2):
            late = client.subscribe("past")
            got = [late.receive(DEADLINE_S) for _ in range(5)]
            assert [message.payload for message in got] == [b"15", b"16", b"17", b"18", b"19"]
            assert [message.seq for message in got] == list(range(16, 21))
            late.close()
            daemon.kill_core()
