"""``sub`` and ``push`` with a real daemon, and with peers that know nothing of Towpath."""

from __future__ import annotations

import zmq

import towpath
from tests.support.daemon import DaemonHandle
from tests.support.deadlines import DEADLINE_S
from tests.zeromq.peers import (
    counters_of,
    lines_of,
    plain_peer,
    plain_socket,
    plain_subscriber,
    subscribers_of,
    wait_until,
)
from tests.zeromq.plain_peer import HEADERS

COUNT = 10_000


def test_ten_thousand_messages_out_in_order(daemon: DaemonHandle, client: towpath.Client) -> None:
    client.declare("out.many")
    with plain_subscriber("sub", daemon.endpoint("zeromq", "sub"), "out.many", COUNT) as peer:
        publisher = client.publisher("out.many")
        for start in range(0, COUNT, 100):
            publisher.publish_many([b"%d" % number for number in range(start, start + 100)])
        received = lines_of(peer)
    assert received == [["out.many", str(number + 1), str(number), "-"] for number in range(COUNT)]


def test_headers_travel_behind_the_meta(daemon: DaemonHandle, client: towpath.Client) -> None:
    client.declare("out.headers")
    with plain_subscriber("sub", daemon.endpoint("zeromq", "sub"), "out.headers", 2) as peer:
        publisher = client.publisher("out.headers")
        publisher.publish(b"with", headers=towpath.Headers(content_type="text/plain"))
        publisher.publish(b"without")
        received = lines_of(peer)
    assert received == [
        ["out.headers", "1", "with", HEADERS.hex()],
        ["out.headers", "2", "without", "-"],
    ]


def test_ten_thousand_messages_in_in_order(daemon: DaemonHandle, client: towpath.Client) -> None:
    client.declare("in.many")
    with (
        client.subscribe("in.many") as subscription,
        plain_peer("push", daemon.endpoint("zeromq", "push"), "in.many", COUNT),
    ):
        received: list[towpath.Message] = []
        while len(received) < COUNT:
            received += subscription.receive_many(1_000, timeout=DEADLINE_S) or [subscription.receive(0)]
    assert [message.payload for message in received] == [b"%d" % number for number in range(COUNT)]
    assert [message.seq for message in received] == list(range(received[0].seq, received[0].seq + COUNT))
    assert [message.headers_raw for message in received] == [
        HEADERS if number % 10 == 0 else b"" for number in range(COUNT)
    ]


def test_what_is_pushed_is_heard_by_plain_subscribers_and_local_ones(
    daemon: DaemonHandle, client: towpath.Client
) -> None:
    # The gateway is publisher and subscriber of one channel here, and not the only subscriber.
    client.declare("through")
    with (
        client.subscribe("through") as subscription,
        plain_subscriber("sub", daemon.endpoint("zeromq", "sub"), "through", COUNT) as peer,
        plain_peer("push", daemon.endpoint("zeromq", "push"), "through", COUNT),
    ):
        heard = 0
        while heard < COUNT:
            heard += len(subscription.receive_many(1_000, timeout=DEADLINE_S) or [subscription.receive(0)])
        received = lines_of(peer)
    assert [line[2] for line in received] == [str(number) for number in range(COUNT)]


def test_a_subscription_is_a_prefix(daemon: DaemonHandle, client: towpath.Client) -> None:
    names = ["prefix.line1", "prefix.line10", "prefix.line2"]
    for name in names:
        client.declare(name)
    with plain_subscriber("sub", daemon.endpoint("zeromq", "sub"), "prefix.line1", 2) as peer:
        assert [subscribers_of(daemon, name) for name in names] == [1, 1, 0]
        for name in reversed(names):
            client.channel(name).publish(name.encode())
        received = lines_of(peer)
    assert sorted(line[2] for line in received) == names[:2]


def test_a_channel_declared_later_is_heard(daemon: DaemonHandle, client: towpath.Client) -> None:
    with plain_subscriber("sub", daemon.endpoint("zeromq", "sub"), "late", 1) as peer:
        client.declare("late.comer")
        wait_until(lambda: subscribers_of(daemon, "late.comer") == 1, "the channel was not read")
        client.channel("late.comer").publish(b"here")
        assert [line[2] for line in lines_of(peer)] == ["here"]


def test_a_channel_is_read_only_while_somebody_subscribes(
    daemon: DaemonHandle, client: towpath.Client
) -> None:
    client.declare("wanted")
    assert subscribers_of(daemon, "wanted") == 0
    endpoint = daemon.endpoint("zeromq", "sub")
    with plain_subscriber("sub", endpoint, "wanted", 1):
        with plain_subscriber("sub", endpoint, "wante", 1):
            assert subscribers_of(daemon, "wanted") == 1
        assert subscribers_of(daemon, "wanted") == 1
    wait_until(lambda: subscribers_of(daemon, "wanted") == 0, "the channel is still read")


def test_a_channel_that_comes_back_is_heard_again(daemon: DaemonHandle, client: towpath.Client) -> None:
    client.declare("phoenix")
    with plain_subscriber("sub", daemon.endpoint("zeromq", "sub"), "phoenix", 2) as peer:
        client.channel("phoenix").publish(b"first")
        client.undeclare("phoenix", force=True)
        client.declare("phoenix")
        wait_until(lambda: subscribers_of(daemon, "phoenix") == 1, "the channel was not read again")
        client.channel("phoenix").publish(b"second")
        assert [line[2] for line in lines_of(peer)] == ["first", "second"]


def test_a_push_finds_a_channel_that_comes_back(daemon: DaemonHandle, client: towpath.Client) -> None:
    with plain_socket(zmq.PUSH, daemon.endpoint("zeromq", "push")) as socket:
        for payload in (b"one", b"two"):
            client.declare("push.phoenix")
            with client.subscribe("push.phoenix") as subscription:
                socket.send_multipart([b"push.phoenix", payload])
                assert subscription.receive(20).payload == payload
            client.undeclare("push.phoenix", force=True)


def test_what_is_refused_is_counted_by_reason_and_harms_nothing(
    daemon: DaemonHandle, client: towpath.Client
) -> None:
    client.declare("strict", ring_bytes=4_096)
    before = counters_of(daemon)
    with (
        client.subscribe("strict") as subscription,
        plain_socket(zmq.PUSH, daemon.endpoint("zeromq", "push")) as socket,
    ):
        for parts in (
            [b"strict"],
            [b"strict", b"", b"", b""],
            [b"", b"x"],
            [b"not a name", b"x"],
            [b"\xff\xfe", b"x"],
            [b"strict", b"x", b"\xff\xff"],
            [b"no.such.channel", b"x"],
            [b"strict", b"x" * 5_000],
            [b"strict", b"good"],
        ):
            socket.send_multipart(parts)
        assert subscription.receive(20).payload == b"good"
    wanted = {
        "push_refused_parts": 2,
        "push_refused_name": 3,
        "push_refused_headers": 1,
        "push_refused_channel": 1,
        "push_refused_size": 1,
    }

    def grown() -> dict[str, int]:
        now = counters_of(daemon)
        return {name: now.get(name, 0) - before.get(name, 0) for name in wanted}

    wait_until(lambda: grown() == wanted, "the refusals were not reported")
    assert "zeromq.push_refused" in daemon.log()


def test_a_channel_refused_a_moment_ago_is_found_once_it_is_declared(
    daemon: DaemonHandle, client: towpath.Client
) -> None:
    refused = counters_of(daemon).get("push_refused_channel", 0)
    with plain_socket(zmq.PUSH, daemon.endpoint("zeromq", "push")) as socket:
        socket.send_multipart([b"not.yet", b"early"])
        wait_until(lambda: counters_of(daemon).get("push_refused_channel", 0) > refused, "it was not refused")
        client.declare("not.yet")
        with client.subscribe("not.yet") as subscription:
            socket.send_multipart([b"not.yet", b"in time"])
            assert subscription.receive(20).payload == b"in time"
