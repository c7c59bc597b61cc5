"""Queues and transactions, over each carrier and with both clients, while core, gateways and programs die."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import towpath
from tests.client.conftest import Connect
from tests.conformance.clients.test_queues import payloads, take
from tests.support.blocking import BlockingClient
from tests.support.daemon import DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import Headers, errors
from towpath.result import Err

PROGRAMS = Path(__file__).parent / "programs"

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def sockets() -> Iterator[Path]:
    """A directory with a short name."""
    directory = Path(tempfile.mkdtemp(prefix="towpath-queues-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def own_daemon(tmp_path_factory: pytest.TempPathFactory, sockets: Path) -> Iterator[DaemonHandle]:
    config = f"""
        [grpc]
        listen = "unix:{sockets}/grpc"
        [zeromq]
        rpc = "ipc://{sockets}/zmq"
    """
    with running_daemon(tmp_path_factory.mktemp("queues"), config) as handle:
        yield handle


@pytest.fixture(params=["sync-local", "aio-local", "sync-grpc", "aio-zmq"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each client and each carrier; the conformance suite has all pairs."""
    return str(request.param)


@pytest.fixture
def url(kind: str, own_daemon: DaemonHandle, sockets: Path) -> str:
    return {
        "local": f"unix:{own_daemon.socket}",
        "grpc": f"grpc+unix://{sockets}/grpc",
        "zmq": f"zmq+ipc://{sockets}/zmq",
    }[kind.partition("-")[2]]


@pytest.fixture
def connect(kind: str, url: str) -> Iterator[Connect]:
    make = towpath.connect if kind.startswith("sync") else BlockingClient
    with ExitStack() as stack:
        yield lambda: stack.enter_context(make(url))


@pytest.fixture
def queue(connect: Connect) -> str:
    name = f"queue{next(_numbers)}"
    connect().declare(name, kind="queue", durable=True)
    return name


def test_a_consumer_comes_back_when_the_core_was_killed(
    connect: Connect, own_daemon: DaemonHandle, queue: str
) -> None:
    client = connect()
    publisher = client.publisher(queue)
    publisher.publish_many([b"a", b"b", b"c"])
    with client.consume(queue, prefetch=2) as consumer:
        first, second = take(consumer, 2)
        first.ack()
        consumer.flush(DEADLINE_S)
        own_daemon.kill_core()
        again = take(consumer, 2)
        assert payloads(again) == [b"b", b"c"]
        with pytest.raises(errors.DeliveryLost):
            second.ack()
        assert publisher.publish(b"d") == 4
        consumer.ack(again)
        assert payloads(take(consumer, 1)) == [b"d"]
        consumer.flush(DEADLINE_S)


def test_an_acknowledgement_that_was_on_its_way_is_told_to_be_uncertain(
    connect: Connect, own_daemon: DaemonHandle, queue: str
) -> None:
    client = connect()
    client.publisher(queue).publish_many([b"%d" % number for number in range(100)])
    with client.consume(queue) as consumer:
        deliveries = take(consumer, 100)
        pid, mark = own_daemon.core_pid, own_daemon.mark()
        os.kill(pid, signal.SIGSTOP)
        consumer.ack(deliveries)
        os.kill(pid, signal.SIGKILL)
        own_daemon.wait_log(r" core\.ready ", after=mark)
        outcome = consumer.try_flush(DEADLINE_S)
        assert isinstance(outcome, Err) and isinstance(outcome.error, errors.DeliveryLost)
        assert consumer.lost == 100
        assert sorted(payloads(take(consumer, 100))) == sorted(payloads(deliveries))


def test_no_message_is_lost_and_none_doubled_while_the_core_is_killed_again_and_again(
    connect: Connect, own_daemon: DaemonHandle, queue: str
) -> None:
    """A publisher that gives its messages ids tries each again until it is in; a worker settles and publishes
    in one transaction: each message is there exactly once at the end.
    """
    client, worker = connect(), connect()
    client.declare(f"{queue}.done", kind="queue", durable=True)
    count, kills = 60, 3
    problems: list[BaseException] = []
    publisher, consumer = client.publisher(queue), worker.consume(queue, prefetch=5)

    def publish() -> None:
        for number in range(count):
            while True:
                try:
                    publisher.publish(b"%d" % number, headers=Headers(message_id=f"{queue}-{number}"))
                    break
                except (errors.ConnectionLost, errors.Timeout, errors.Unavailable):
                    continue

    def work() -> None:
        done = 0
        while done < count:
            for delivery in consumer.receive_many(timeout=DEADLINE_S):
                try:
                    with worker.transaction() as transaction:
                        transaction.ack(delivery)
                        transaction.publish(f"{queue}.done", delivery.payload)
                except errors.DeliveryLost:
                    continue
                done += 1

    def guarded(task: Any) -> None:
        try:
            task()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=guarded, args=(task,)) for task in (publish, work)]
    for thread in threads:
        thread.start()
    for _ in range(kills):
        own_daemon.kill_core()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert problems == []
    consumer.close()
    with client.consume(f"{queue}.done") as consumer:
        assert sorted(int(each) for each in payloads(take(consumer, count))) == list(range(count))
        assert consumer.receive_many(timeout=0.05) == []
    with client.consume(queue) as consumer:
        assert consumer.receive_many(timeout=0.05) == []


def test_what_a_program_had_goes_to_others_when_it_is_killed(connect: Connect, url: str, queue: str) -> None:
    client = connect()
    client.publisher(queue).publish_many([b"a", b"b"])
    program = subprocess.Popen(
        [sys.executable, PROGRAMS / "hold_deliveries.py", url, queue, "2"], stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    with program:
        assert program.stdout.readline() == "holds 2\n"
        with client.consume(queue) as consumer:
            assert consumer.receive_many(timeout=0.02) == []
            program.kill()
            assert payloads(take(consumer, 2)) == [b"a", b"b"]


def test_a_program_that_is_stopped_makes_no_dead_letters(connect: Connect, url: str) -> None:
    client = connect()
    queue, dead, clock = (f"{what}{next(_numbers)}" for what in ("stopped", "dead", "clock"))
    client.declare(queue, kind="queue", ack_ms=500, max_deliveries=2, dead_letter=dead)
    for name in (dead, clock):
        client.declare(name, kind="queue")
    messages = [b"%d" % number for number in range(10)]
    client.publisher(queue).publish_many(messages)
    client.publisher(clock).publish(b"")
    program = subprocess.Popen(
        [sys.executable, PROGRAMS / "hold_deliveries.py", url, queue, "10"], stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    with program, ExitStack() as stack:
        stack.callback(program.kill)  # one that is stopped does not end otherwise
        assert program.stdout.readline() == "holds 10\n"
        program.send_signal(signal.SIGSTOP)
        with client.consume(clock) as consumer:  # time for two deadlines, one after the other
            consumer.receive(timeout=DEADLINE_S).nack(delay=1.2)
            consumer.receive(timeout=DEADLINE_S).ack()
            consumer.flush(DEADLINE_S)
        with client.consume(queue, prefetch=1) as consumer:
            for message in messages:
                delivery = consumer.receive(timeout=DEADLINE_S)
                assert (delivery.payload, delivery.attempt) == (message, 2)
                delivery.ack()
            consumer.flush(DEADLINE_S)
        with client.consume(dead) as consumer:
            assert consumer.receive_many(timeout=0.05) == []


def test_a_consumer_behind_a_gateway_comes_back_when_that_was_killed(
    connect: Connect, url: str, own_daemon: DaemonHandle, queue: str
) -> None:
    gateway = {"unix": "bridge", "grpc+unix": "grpc", "zmq+ipc": "zeromq"}[url.partition(":")[0]]
    client = connect()
    with client.consume(queue) as consumer:
        own_daemon.kill_gateway(gateway)
        with towpath.connect(str(own_daemon.socket)) as local:
            local.publisher(queue).publish(b"a")
        delivery = consumer.receive(timeout=DEADLINE_S)
        delivery.ack()
        consumer.flush(DEADLINE_S)
        assert delivery.payload == b"a"


def test_publishing_waits_for_the_core_where_nothing_was_sent_yet(
    connect: Connect, own_daemon: DaemonHandle, queue: str
) -> None:
    client = connect()
    publisher = client.publisher(queue)
    own_daemon.kill_core()
    for number in range(20):
        publisher.publish(b"%d" % number)
    with client.consume(queue) as consumer:
        assert payloads(take(consumer, 20)) == [b"%d" % number for number in range(20)]


def test_a_client_that_is_closed_ends_what_waits(connect: Connect, queue: str) -> None:
    client = connect()
    consumer = client.consume(queue)
    ended: list[BaseException] = []

    def receive() -> None:
        try:
            consumer.receive(timeout=DEADLINE_S)
        except errors.TowpathError as error:
            ended.append(error)

    thread = threading.Thread(target=receive)
    thread.start()
    client.close()
    thread.join(DEADLINE_S)
    wait_until(lambda: len(ended) == 1)
    assert isinstance(ended[0], errors.ConnectionLost)
    with pytest.raises(errors.ConnectionLost):
        client.consume(queue)
    transaction = client.transaction()
    transaction.publish(queue, b"x")
    with pytest.raises(errors.ConnectionLost):
        transaction.commit()
