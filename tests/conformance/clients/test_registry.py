"""Declaring, listing, undeclaring and watching, over each carrier and with both clients."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

import towpath
from tests.conformance.clients.carriers import Carrier
from tests.support.blocking import BlockingClient
from tests.support.daemon import wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.model import ChannelContents


def test_declare_returns_the_channel_with_every_option(client: Any, name: str) -> None:
    info = client.declare(name, ring_bytes=65536)
    assert (info.name, info.kind, info.durable, info.overflow) == (name, "topic", False, "block")
    assert info.ring_bytes == 65536
    assert client.channel_info(name) == info
    assert info in client.channels("test.")


def test_redeclaring_compares_only_what_is_stated(client: Any, name: str) -> None:
    first = client.declare(name, ring_bytes=65536)
    assert client.declare(name) == first
    assert client.declare(name, kind="topic", ring_bytes=65536) == first
    with pytest.raises(errors.ChannelConflict, match="ring_bytes"):
        client.declare(name, ring_bytes=131072)
    assert client.channel_info(name) == first


@pytest.mark.parametrize("bad", ["", "a..b", ".a", "a.", "a b", "ä", "a/b", "_towpath.x", "x" * 256])
def test_bad_names_are_refused(client: Any, bad: str) -> None:
    with pytest.raises(errors.InvalidName):
        client.declare(bad)


@pytest.mark.parametrize("bad", ["", "a..b", "a b", "_towpath.x"])
def test_nobody_publishes_or_subscribes_under_a_bad_name(client: Any, bad: str) -> None:
    with pytest.raises(errors.InvalidName):
        client.publisher(bad)
    with pytest.raises(errors.InvalidName):
        client.subscribe(bad)


@pytest.mark.parametrize("ring_bytes", [5000, 1024, 2**31, -1, 2**70])
def test_bad_ring_sizes_are_refused(client: Any, name: str, ring_bytes: int) -> None:
    with pytest.raises(errors.InvalidArgument, match="ring_bytes"):
        client.declare(name, ring_bytes=ring_bytes)
    with pytest.raises(errors.ChannelNotFound):
        client.channel_info(name)


def test_options_that_do_not_exist_are_refused(client: Any, name: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="one of"):
        client.declare(name, kind="stream")


def test_undeclare(client: Any, name: str) -> None:
    client.declare(name)
    client.undeclare(name)
    with pytest.raises(errors.ChannelNotFound, match=name):
        client.undeclare(name)


def test_undeclare_is_refused_while_the_channel_is_used(client: Any, name: str) -> None:
    client.declare(name)
    with client.subscribe(name), pytest.raises(errors.ChannelInUse, match="1 subscriber"):
        client.undeclare(name)
    client.undeclare(name)


@pytest.mark.parametrize("options", [{"kind": "queue"}, {"durable": True}])
def test_what_holds_messages_is_undeclared_by_force_alone(
    client: Any, name: str, options: dict[str, Any]
) -> None:
    client.declare(name, **options)
    with client.publisher(name) as publisher:
        publisher.publish_many([b"kept", b"too"])
        publisher.flush(timeout=30)
    with pytest.raises(errors.ChannelInUse, match="--force") as caught:
        client.undeclare(name)
    assert caught.value.message.endswith("holds 2 messages")
    assert client.channel_info(name).contents.messages == 2
    client.undeclare(name, force=True)
    client.declare(name, **options)
    client.undeclare(name)


def test_forced_undeclare_tells_publishers_and_subscribers(client: Any, name: str) -> None:
    client.declare(name)
    subscription, publisher = client.subscribe(name), client.publisher(name)
    publisher.publish(b"last")
    client.undeclare(name, force=True)
    assert subscription.receive(timeout=DEADLINE_S).payload == b"last"
    with pytest.raises(errors.ChannelUndeclared, match=name):
        subscription.receive(timeout=DEADLINE_S)
    with pytest.raises(errors.ChannelUndeclared, match=name):
        publisher.publish(b"too late")
    with pytest.raises(errors.ChannelUndeclared, match=name):
        publisher.publish_many([b"much", b"too late"])


def test_channels_that_are_not_there(client: Any, name: str) -> None:
    for use in (client.channel_info, client.publisher, client.subscribe):
        with pytest.raises(errors.ChannelNotFound, match=name):
            use(name)


def test_status_counts_who_uses_a_channel(client: Any, carrier: Carrier, name: str) -> None:
    client.declare(name)
    with client.publisher(name) as first, client.publisher(name) as second, client.subscribe(name):
        if carrier.deviates("a source when first used"):
            assert (first.source, client.channel_info(name).publishers) == (0, 0)
        first.publish(b"x")
        second.publish(b"x")
        assert first.source > 0
        info = next(channel for channel in client.status().channels if channel.name == name)
        assert (info.publishers, info.subscribers) == (1 if carrier.deviates("shared source") else 2, 1)
    info = client.channel_info(name)
    assert (info.publishers, info.subscribers) == (1 if carrier.deviates("shared source") else 0, 0)


def test_watch_tells_the_state_and_then_changes(client: Any, name: str) -> None:
    client.declare(name)
    watch = client.watch()
    events = iter(watch)
    before = []
    while (event := next(events)).kind != "current":
        before.append(event)
    assert name in [event.channel.name for event in before if event.kind == "channel_declared"]
    client.declare(name + ".later")
    event = next(events)
    assert (event.kind, event.channel.name) == ("channel_declared", name + ".later")
    client.undeclare(name + ".later")
    following = next(events)
    assert (following.kind, following.channel.name) == ("channel_undeclared", name + ".later")
    assert following.revision == event.revision + 1
    watch.close()
    assert list(events) == []


def test_two_watches_tell_the_same(client: Any, connect: Any, name: str) -> None:
    watches = [iter(client.watch()), iter(connect().watch())]
    for events in watches:
        while next(events).kind != "current":
            pass
    client.declare(name)
    first, second = (next(events) for events in watches)
    assert first == second


def test_watch_from_a_revision_tells_what_changed_since(client: Any, name: str) -> None:
    """A carrier that does not remember so far back says reset, and tells everything."""
    client.declare(name)
    watch = client.watch()
    events = iter(watch)
    while (event := next(events)).kind != "current":
        pass
    watch.close()
    client.declare(name + ".later")
    since = iter(client.watch(after_revision=event.revision))
    told = []
    while (following := next(since)).kind != "current":
        told.append(following)
    if told[0].kind == "reset":
        assert {name, name + ".later"} <= {each.channel.name for each in told[1:] if each.channel}
    else:
        (declared,) = told
        assert (declared.kind, declared.channel.name) == ("channel_declared", name + ".later")
    assert following.revision == event.revision + 1
    client.undeclare(name + ".later")
    assert next(since).kind == "channel_undeclared"


def test_a_binding_of_an_unknown_mechanism_is_refused(client: Any, carrier: Carrier, name: str) -> None:
    client.declare(name)
    if carrier.deviates("no bindings"):
        with pytest.raises(errors.PermissionDenied, match="bindings"):
            client.bind(name, "carrier-pigeon:coop", direction="out")
    else:
        with pytest.raises(errors.InvalidArgument, match="carrier-pigeon"):
            client.bind(name, "carrier-pigeon:coop", direction="out")
    assert client.bindings(name) == []


def test_what_a_client_says_of_itself(client: Any, carrier: Carrier) -> None:
    assert client.is_connected
    if carrier.deviates("no session"):
        assert client.session == 0
        assert client.principal == {"zmq": "zeromq:anonymous", "grpc": ""}[carrier.name]
    else:
        assert client.session > 0
        assert client.principal.startswith("uid:")
    client.close()
    assert not client.is_connected


def test_closing_twice_and_using_what_is_closed(client: Any, connect: Any, name: str) -> None:
    client.declare(name)
    publisher, subscription, watch = client.publisher(name), client.subscribe(name), client.watch()
    for handle in (publisher, subscription, watch):
        handle.close()
        handle.close()
    with pytest.raises(errors.ConnectionLost, match="closed"):
        publisher.publish(b"x")
    with pytest.raises(errors.ConnectionLost, match="closed"):
        subscription.receive(timeout=0)
    other = connect()
    late, reader = other.publisher(name), other.subscribe(name)
    other.close()
    other.close()
    with pytest.raises(errors.ConnectionLost, match="closed"):
        late.publish(b"x")
    with pytest.raises(errors.ConnectionLost, match="closed"):
        reader.receive(timeout=0)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port at which somebody takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def nobody(carrier: Carrier, port: int, path: str) -> str:
    return {"local": f"unix:{path}", "grpc": f"grpc://127.0.0.1:{port}", "zmq": f"zmq://127.0.0.1:{port}"}[
        carrier.name
    ]


@pytest.mark.parametrize("make", [towpath.connect, BlockingClient], ids=["sync", "aio"])
def test_nobody_is_there(make: Any, carrier: Carrier, tmp_path: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(errors.Unavailable, match="answers"):
            make(nobody(carrier, taken.getsockname()[1], str(tmp_path / "nobody")))


@pytest.mark.parametrize("make", [towpath.connect, BlockingClient], ids=["sync", "aio"])
def test_somebody_is_there_and_says_nothing(
    make: Any, carrier: Carrier, silent_port: int, tmp_path: Any
) -> None:
    path = tmp_path / "silent"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(errors.Unavailable, match="answer"):
            make(nobody(carrier, silent_port, str(path)), timeout=0.3)


def test_a_client_that_is_closed_leaves_its_channels(client: Any, connect: Any, name: str) -> None:
    client.declare(name)
    other = connect()
    other.subscribe(name)
    assert client.channel_info(name).subscribers == 1
    other.close()
    wait_until(lambda: client.channel_info(name).subscribers == 0)


# ---- what channels hold ------------------------------------------------------------------------------------


def contents(client: Any, name: str) -> ChannelContents:
    """What each of the three answers says a channel holds."""
    found = client.channel_info(name).contents
    assert [channel.contents for channel in client.channels(name)] == [found]
    status = {channel.name: channel for channel in client.status().channels}
    assert status[name].contents == found
    assert isinstance(found, ChannelContents)
    return found


def test_what_a_queue_holds(client: Any, name: str) -> None:
    assert client.declare(name, kind="queue").contents is None
    publisher = client.publisher(name)
    for _ in range(4):
        publisher.publish(b"12345")
    assert contents(client, name) == ChannelContents(messages=4, content_bytes=20, next_seq=5)
    with client.consume(name, prefetch=3) as consumer:
        first = consumer.receive(timeout=DEADLINE_S)
        assert contents(client, name) == ChannelContents(4, 20, unsettled=3, consumers=1, next_seq=5)
        first.ack()
        consumer.flush(30)
        assert contents(client, name) == ChannelContents(3, 15, unsettled=3, consumers=1, next_seq=5)


def test_what_a_durable_topic_holds(client: Any, name: str) -> None:
    client.declare(name, durable=True)
    publisher = client.publisher(name)
    publisher.publish_many([b"12345"] * 4)
    publisher.flush(30)
    assert contents(client, name) == ChannelContents(4, 20, oldest_seq=1, next_seq=5)


def test_what_a_state_and_a_plain_topic_hold(client: Any, name: str) -> None:
    client.declare(name, kind="state")
    client.state(name).set(b"12345")
    assert contents(client, name) == ChannelContents(1, 5)
    client.declare(f"{name}.topic")
    assert client.channel_info(f"{name}.topic").contents is None
