"""Subscribers that do not move while a publisher waits for them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import towpath
from tests.client.conftest import Connect
from tests.support.blocking import BlockingClient
from tests.support.daemon import DaemonHandle
from tests.support.deadlines import DEADLINE_S
from towpath import errors

HERE = Path(__file__).parent
STALL_MS = 50
MORE_THAN_THE_RING = [b"x" * 500] * 40


def declare(client: Any, name: str, *, stall_ms_max: int = STALL_MS) -> None:
    client.declare(name, ring_bytes=4096, stall_ms_max=stall_ms_max)


def test_a_publisher_goes_on_without_a_subscriber_that_does_not_move(
    client: Any, connect: Connect, name: str
) -> None:
    declare(client, name)
    other = connect()
    subscription, publisher = other.subscribe(name), client.publisher(name)
    began = time.monotonic()
    publisher.publish_many(MORE_THAN_THE_RING, timeout=DEADLINE_S)
    assert time.monotonic() - began >= STALL_MS / 1000
    with pytest.raises(errors.SlowConsumer, match="subscribe again"):
        subscription.receive(timeout=DEADLINE_S)
    # It is told once, and the subscription goes on with other publishers.
    assert subscription.receive_many(timeout=0) == []
    client.publisher(name).publish(b"of another")
    assert subscription.receive(timeout=DEADLINE_S).payload == b"of another"
    with other.subscribe(name) as again:
        publisher.publish(b"of the same")
        assert again.receive(timeout=DEADLINE_S).payload == b"of the same"
    assert subscription.receive_many(timeout=0) == []
    info = client.channel_info(name)
    assert (info.publishers, info.subscribers) == (2, 1)


def test_what_was_received_already_is_handed_out_before_the_error(
    client: Any, connect: Connect, name: str
) -> None:
    declare(client, name)
    subscription, publisher = connect().subscribe(name), client.publisher(name)
    publisher.publish_many([b"%d" % number for number in range(5)])
    assert subscription.receive(timeout=DEADLINE_S).payload == b"0"
    publisher.publish_many(MORE_THAN_THE_RING, timeout=DEADLINE_S)
    for number in range(1, 5):
        assert subscription.receive(timeout=DEADLINE_S).payload == b"%d" % number
    with pytest.raises(errors.SlowConsumer):
        subscription.receive(timeout=DEADLINE_S)


def test_others_get_everything(client: Any, connect: Connect, name: str) -> None:
    declare(client, name)
    idle, busy = connect().subscribe(name), connect().subscribe(name)
    publisher = client.publisher(name)
    received: list[int] = []

    def receive() -> None:
        while len(received) < 500:
            received.extend(message.seq for message in busy.receive_many(timeout=DEADLINE_S))

    thread = threading.Thread(target=receive)
    thread.start()
    publisher.publish_many([b"x" * 500] * 500, timeout=DEADLINE_S)
    thread.join(DEADLINE_S)
    assert received == list(range(1, 501))
    with pytest.raises(errors.SlowConsumer):
        idle.receive(timeout=DEADLINE_S)


def test_several_are_left_behind_together(client: Any, connect: Connect, name: str) -> None:
    declare(client, name, stall_ms_max=400)
    idle = [connect().subscribe(name) for _ in range(8)]
    publisher = client.publisher(name)
    began = time.monotonic()
    publisher.publish_many(MORE_THAN_THE_RING, timeout=DEADLINE_S)
    # One after the other would take eight times as long.
    assert 0.4 <= time.monotonic() - began < 8 * 0.4
    for subscription in idle:
        with pytest.raises(errors.SlowConsumer):
            subscription.receive(timeout=DEADLINE_S)


def test_who_moves_is_waited_for_however_slowly(client: Any, connect: Connect, name: str) -> None:
    declare(client, name)
    subscription, publisher = connect().subscribe(name), client.publisher(name)
    published = received = 0
    until = time.monotonic() + 5 * STALL_MS / 1000
    while time.monotonic() < until:
        try:
            publisher.publish(b"x" * 500, timeout=0)
            published += 1
        except errors.Timeout:
            received += len(subscription.receive_many(1, timeout=DEADLINE_S))
    while received < published:
        received += len(subscription.receive_many(timeout=DEADLINE_S))
    assert published > 10


def test_who_tries_without_waiting_goes_on_too(client: Any, connect: Connect, name: str) -> None:
    declare(client, name)
    connect().subscribe(name)
    publisher = client.publisher(name)
    published = 0
    deadline = time.monotonic() + DEADLINE_S
    while published < 40:
        assert time.monotonic() < deadline
        try:
            publisher.publish(b"x" * 500, timeout=0)
            published += 1
        except errors.Timeout:
            pass


def test_nobody_is_left_behind_where_publishers_wait_for_ever(
    client: Any, connect: Connect, name: str
) -> None:
    declare(client, name, stall_ms_max=0)
    subscription, publisher = connect().subscribe(name), client.publisher(name)
    with pytest.raises(errors.Timeout):
        publisher.publish_many(MORE_THAN_THE_RING, timeout=0.3)
    seqs = [message.seq for message in subscription.receive_many(timeout=DEADLINE_S)]
    assert seqs == list(range(1, len(seqs) + 1))


def test_a_pattern_keeps_the_other_channels(client: Any, connect: Connect, name: str) -> None:
    declare(client, f"{name}.a")
    declare(client, f"{name}.b")
    subscription = connect().subscribe(f"{name}.*")
    kept = client.publisher(f"{name}.b")
    client.publisher(f"{name}.a").publish_many(MORE_THAN_THE_RING, timeout=DEADLINE_S)
    with pytest.raises(errors.SlowConsumer, match=f"{name}.a"):
        subscription.receive(timeout=DEADLINE_S)
    kept.publish(b"goes on")
    assert subscription.receive(timeout=DEADLINE_S).payload == b"goes on"


@pytest.mark.parametrize("kind", ["sync", "aio"])
@pytest.mark.parametrize("publishing", ["sync", "aio"])
def test_a_stopped_process_is_left_behind_and_told_when_it_goes_on(
    daemon: DaemonHandle, name: str, publishing: str, kind: str
) -> None:
    connect: Any = towpath.connect if publishing == "sync" else BlockingClient
    with connect(str(daemon.socket)) as client:
        declare(client, name)
        process = subprocess.Popen(
            [
                sys.executable,
                str(HERE / "programs" / "subscribe_and_tell.py"),
                kind,
                str(daemon.socket),
                name,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "subscribed\n"
        with client.publisher(name) as publisher:
            publisher.publish_many([bytes([number % 256]) * 500 for number in range(100)])
            process.send_signal(signal.SIGSTOP)
            publisher.publish_many(
                [bytes([number % 256]) * 500 for number in range(1_000)], timeout=DEADLINE_S
            )
            process.send_signal(signal.SIGCONT)
            assert process.stdout.readline() == "SlowConsumer\n"
        with client.publisher(name) as publisher:
            publisher.publish(b"end")
            output, _ = process.communicate(timeout=DEADLINE_S)
    assert (output, process.returncode) == ("end\n", 0)
