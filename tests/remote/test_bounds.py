"""What a remote client holds for a program that does not read, however much is published."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

import towpath
from tests.support.daemon import wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.remote import inbox, zeromq
from towpath.remote.blocking import RemoteSubscription

SIZE = 10_000
COUNT = 6_000


@pytest.fixture
def remote(carrier: str, relay: Any) -> Any:
    scheme = {"grpc": "grpc+unix", "zmq": "zmq+ipc"}[carrier]
    with towpath.connect(f"{scheme}://{relay.path}") as connected:
        yield connected


def test_a_program_that_does_not_read_is_held_within_bounds_and_loses_nothing(
    remote: Any, carrier: str, local: towpath.Client, name: str
) -> None:
    local.undeclare(name)
    local.declare(name, ring_bytes=1 << 18)
    publisher = local.publisher(name)
    subscription = remote.subscribe(name)
    assert isinstance(subscription, RemoteSubscription)
    stuck = threading.Event()

    def publish() -> None:
        payloads = [b"%06d" % number + bytes(SIZE - 6) for number in range(COUNT)]
        try:
            publisher.publish_many(payloads, timeout=1.0)
        except errors.Timeout as error:
            done = int(error.message.rpartition(";")[2].split()[0])
            stuck.set()
            publisher.publish_many(payloads[done:], timeout=DEADLINE_S)

    thread = threading.Thread(target=publish)
    thread.start()
    assert stuck.wait(DEADLINE_S), "all of it found room although nobody read"
    held = len(subscription._inner._inbox)
    stream: Any = subscription._inner._stream
    if carrier == "grpc":
        # One batch may come when there is room for one message: 256 KiB, or one message.
        assert held * SIZE <= inbox.BYTES_MAX + (1 << 18) + SIZE
    else:
        unread = sum(len(frame.subscribe_response.batch.payloads) for frame in stream._answers._frames)
        assert held + unread <= min(zeromq.WINDOW_BYTES // (1 << 16), zeromq.WINDOW_MESSAGES)
    for number in range(COUNT):
        message = subscription.receive(timeout=DEADLINE_S)
        assert (int(message.payload[:6]), message.missed) == (number, 0)
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_a_program_that_stalls_a_publisher_too_long_is_told_once_and_goes_on(
    client: Any, local: towpath.Client, name: str
) -> None:
    local.undeclare(name)
    local.declare(name, ring_bytes=1 << 18, stall_ms_max=300)
    publisher = local.publisher(name)
    subscription = client.subscribe(name)
    publisher.publish_many([bytes(SIZE)] * COUNT, timeout=DEADLINE_S)
    received = 0
    with pytest.raises(errors.SlowConsumer):
        while True:
            message = subscription.receive(timeout=DEADLINE_S)
            received += 1
            assert (message.seq, message.missed) == (received, 0)
    wait_until(lambda: local.channel_info(name).subscribers == 1)
    publisher.publish(b"again")
    message = subscription.receive(timeout=DEADLINE_S)
    assert (message.payload, message.missed) == (b"again", COUNT - received)
    assert subscription.lost == COUNT - received


def test_closing_does_not_wait_for_a_gateway_that_is_silent(client: Any, relay: Any, name: str) -> None:
    handles = [client.subscribe(name) for _ in range(20)] + [client.watch(), client.publisher(name)]
    relay.stop()
    began = time.monotonic()
    client.close()
    assert time.monotonic() - began < 10  # not a second for each
    assert len(handles) == 22
