"""What a queue refuses: what is told is certain, and the hint is one that helps, on every carrier."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import towpath
from tests.support.daemon import DaemonHandle, running_daemon
from tests.support.deadlines import DEADLINE_S

CARRIERS = ("unix", "grpc", "zeromq")
REQUEST_BYTES = 1_044_480


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon")) as running:
        yield running


@pytest.fixture(params=CARRIERS)
def client(daemon: DaemonHandle, request: pytest.FixtureRequest) -> Iterator[towpath.Client]:
    urls = {
        "unix": str(daemon.socket),
        "grpc": f"grpc://{daemon.endpoint('grpc', 'listen')}",
        "zeromq": f"zmq://{daemon.endpoint('zeromq', 'rpc').removeprefix('tcp://')}",
    }
    with towpath.connect(urls[request.param], name=request.param) as client:
        yield client
        for info in client.channels():
            client.undeclare(info.name, force=True)


def test_a_message_too_large_for_any_ring(client: towpath.Client) -> None:
    client.declare("jobs", kind="queue", ring_bytes=64 << 20)
    with client.publisher("jobs") as publisher, client.consume("jobs") as consumer:
        assert publisher.message_bytes_max == REQUEST_BYTES
        publisher.publish(bytes(REQUEST_BYTES), timeout=DEADLINE_S)
        assert len(consumer.receive(timeout=DEADLINE_S).payload) == REQUEST_BYTES
        with pytest.raises(towpath.MessageTooLarge, match=f"at most {REQUEST_BYTES} are allowed") as caught:
            publisher.publish(bytes(REQUEST_BYTES + 1), timeout=DEADLINE_S)
        assert caught.value.hint.startswith("no ring_bytes makes this larger")


def test_a_message_that_a_larger_ring_would_take(client: towpath.Client) -> None:
    client.declare("jobs", kind="queue", ring_bytes=4096)
    with client.publisher("jobs") as publisher, pytest.raises(towpath.MessageTooLarge) as caught:
        publisher.publish(bytes(1000), timeout=DEADLINE_S)
    assert "declare the channel with a larger ring_bytes" in caught.value.hint


def test_a_full_queue_has_refused_it_for_certain(client: towpath.Client) -> None:
    client.declare("jobs", kind="queue", capacity=1, overflow="reject")
    with client.publisher("jobs") as publisher:
        publisher.publish(b"1", timeout=DEADLINE_S)
        with pytest.raises(towpath.QueueFull) as caught:
            publisher.publish(b"2", timeout=DEADLINE_S)
    assert "not known" not in caught.value.message


def test_a_queue_without_room_is_said_to_be_full(client: towpath.Client) -> None:
    client.declare("jobs", kind="queue", capacity=1)
    with client.publisher("jobs") as publisher:
        publisher.publish(b"1", timeout=DEADLINE_S)
        with pytest.raises(towpath.Timeout, match="queue jobs is full"):
            publisher.publish(b"2", timeout=0.1)


def test_a_queue_in_use_is_in_use_by_consumers(client: towpath.Client) -> None:
    client.declare("jobs", kind="queue")
    with client.consume("jobs"), pytest.raises(towpath.ChannelInUse, match="in use by 1 consumer"):
        client.undeclare("jobs")


@pytest.mark.parametrize("option", [{"history": 3}, {"order": "total"}, {"retain_ms": 5}])
def test_options_of_topics_are_not_for_queues(client: towpath.Client, option: dict[str, Any]) -> None:
    with pytest.raises(towpath.InvalidArgument, match="says nothing of a queue") as caught:
        client.declare("jobs", kind="queue", **option)
    assert caught.value.hint == "it is for a topic"
    assert client.channels() == []
