"""Declaring, listing and undeclaring through both clients, against the real daemon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from towpath import Headers, errors


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


@pytest.mark.parametrize("options", [{"ring_bytes": 5000}, {"ring_bytes": 1024}, {"ring_bytes": 2**31}])
def test_bad_ring_sizes_are_refused(client: Any, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidArgument, match="ring_bytes"):
        client.declare(name, **options)
    with pytest.raises(errors.ChannelNotFound):
        client.channel_info(name)


@pytest.mark.parametrize("options", [{"kind": "queue"}, {"durable": True}, {"overflow": "drop"}])
def test_what_is_not_built_yet_is_said_plainly(client: Any, name: str, options: dict[str, Any]) -> None:
    with pytest.raises(errors.NotSupported):
        client.declare(name, **options)


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


def test_forced_undeclare_tells_publishers_and_subscribers(client: Any, name: str) -> None:
    client.declare(name)
    subscription, publisher = client.subscribe(name), client.publisher(name)
    publisher.publish(b"last")
    client.undeclare(name, force=True)
    assert subscription.receive(timeout=10).payload == b"last"
    with pytest.raises(errors.ChannelUndeclared, match=name):
        subscription.receive(timeout=10)
    with pytest.raises(errors.ChannelUndeclared, match=name):
        publisher.publish(b"too late")


def test_channels_that_are_not_there(client: Any, name: str) -> None:
    for use in (client.channel_info, client.publisher, client.subscribe):
        with pytest.raises(errors.ChannelNotFound, match=name):
            use(name)


def test_status_counts_who_uses_a_channel(client: Any, name: str) -> None:
    client.declare(name)
    with client.publisher(name), client.publisher(name), client.subscribe(name):
        info = next(channel for channel in client.status().channels if channel.name == name)
        assert (info.publishers, info.subscribers) == (2, 1)
    info = client.channel_info(name)
    assert (info.publishers, info.subscribers) == (0, 0)


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


def test_a_binding_of_an_unknown_mechanism_is_refused(client: Any, name: str) -> None:
    client.declare(name)
    with pytest.raises(errors.InvalidArgument, match="carrier-pigeon"):
        client.bind(name, "carrier-pigeon:coop", direction="out")
    assert client.bindings(name) == []


def test_closing_twice_and_using_a_closed_client(connect: Any, name: str) -> None:
    client = connect()
    publisher = None
    client.declare(name)
    publisher = client.publisher(name)
    publisher.close()
    publisher.close()
    with pytest.raises(errors.ConnectionLost):
        publisher.publish(b"x")


NOT_UNICODE = "\udcff"


def test_text_that_is_no_unicode_and_numbers_out_of_range_are_refused(client: Any, name: str) -> None:
    client.declare(name)
    for bad_name in (client.declare, client.channel_info, client.subscribe, client.publisher):
        with pytest.raises(errors.InvalidName):
            bad_name(NOT_UNICODE)
    bad_calls: tuple[Callable[[], object], ...] = (
        lambda: client.channels(NOT_UNICODE),
        lambda: client.undeclare(NOT_UNICODE),
        lambda: client.bind(name, "fifo:/" + NOT_UNICODE, direction="in"),
        lambda: client.unbind(10**23),
        lambda: client.unbind(),
        lambda: client.publisher(name).publish(b"", headers=Headers(content_type=NOT_UNICODE)),
        lambda: client.publisher(name).publish(b"", headers=Headers(user={NOT_UNICODE: ""})),
    )
    for call in bad_calls:
        with pytest.raises(errors.InvalidArgument):
            call()
    assert client.channel_info(name).name == name
