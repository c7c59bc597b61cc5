"""C programs and Python ones on one channel, each way, on every kind of topic; and the examples."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import towpath
from tests.c_client.conftest import COMPILERS, EXAMPLES, PROGRAMS, Running, build
from tests.support.daemon import DaemonHandle, wait_until
from tests.support.deadlines import DEADLINE_S

Start = Callable[..., Running]


# Both languages, and both compilers; the other two pairs with the long tests.
@pytest.mark.parametrize(
    "compiler",
    [
        name if name in ("gcc", "clang++") else pytest.param(name, marks=pytest.mark.long)
        for name in COMPILERS
    ],
)
def test_it_builds_without_a_warning_and_runs(
    tmp_path: Path, daemon: DaemonHandle, client: towpath.Client, name: str, compiler: str
) -> None:
    """From a producer to Python, and from Python to a consumer, both built by this compiler."""
    build(PROGRAMS / "client.c", tmp_path / "client", COMPILERS[compiler])
    producer, consumer = (
        build(EXAMPLES / f"{each}.c", tmp_path / each, COMPILERS[compiler])
        for each in ("producer", "consumer")
    )
    client.declare(name)
    with client.subscribe(name) as subscription:
        running = Running(producer, (name,), daemon.environment)
        running.tell("from C")
        assert subscription.receive(timeout=20).payload == b"from C"
        running.end()
    running = Running(consumer, (name, "1"), daemon.environment)
    wait_until(lambda: client.channel_info(name).subscribers == 1)
    client.channel(name).publish(b"from Python")
    assert running.end()[0] == f"{name} 1 [] from Python\n"


@pytest.mark.parametrize("name", ["producer.c", "consumer.c", "frames.c"])
def test_an_example_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 40


def test_c_to_python(start: Start, client: towpath.Client, name: str) -> None:
    client.declare(name)
    with client.subscribe(name) as subscription:
        producer = start(name, "text/csv", source=EXAMPLES / "producer.c")
        for line in ("a,1", "", "ü,2"):
            producer.tell(line)
        messages = [subscription.receive(timeout=DEADLINE_S) for _ in range(3)]
        producer.end()
    assert [message.payload for message in messages] == [b"a,1", b"", "ü,2".encode()]
    assert [message.seq for message in messages] == [1, 2, 3]
    assert {message.headers.content_type for message in messages} == {"text/csv"}


def test_python_to_c(start: Start, client: towpath.Client, name: str) -> None:
    client.declare(name)
    consumer = start(name, "2", source=EXAMPLES / "consumer.c")
    wait_until(lambda: client.channel_info(name).subscribers == 1)
    with client.publisher(name) as publisher:
        publisher.publish(b"plain")
        publisher.publish(b"{}", headers=towpath.Headers(content_type="application/json"))
        output, _ = consumer.end()
    assert output == f"{name} 1 [] plain\n{name} 2 [application/json] {{}}\n"


def test_c_to_c_through_the_shell(
    daemon: DaemonHandle, start: Start, programs: Callable[[Path], Path], name: str
) -> None:
    """A pattern follows a channel that is declared later, by the producer itself."""
    consumer = start(f"{name}.>", "3", source=EXAMPLES / "consumer.c")
    assert consumer.process.stderr is not None
    assert consumer.process.stderr.readline() == f"subscribed to {name}.>\n"
    for level in ("x", "y", "z"):
        subprocess.run(
            ["sh", "-c", f'echo "$1" | {programs(EXAMPLES / "producer.c")} {name}.$1', "-", level],
            check=True,
            timeout=DEADLINE_S,
            env=daemon.environment,
        )
    output, _ = consumer.end()
    assert output == "".join(f"{name}.{level} 1 [] {level}\n" for level in ("x", "y", "z"))


@pytest.mark.parametrize(
    "options", [{}, {"order": "total"}, {"durable": True}], ids=["plain", "total", "durable"]
)
@pytest.mark.parametrize("writer", ["c", "python"])
@pytest.mark.parametrize("reader", ["c", "python"])
def test_ten_thousand_in_order(
    start: Start, client: towpath.Client, name: str, options: dict[str, object], writer: str, reader: str
) -> None:
    """Through a ring smaller than what goes through it, so that writers wait for room."""
    # What a subscriber in C was too slow for on a durable topic is in the store, which it cannot read.
    client.declare(name, ring_bytes=1 << (20 if "durable" in options else 16), **options)  # type: ignore[arg-type]
    count = 10_000
    counting = start("count", name, str(count)) if reader == "c" else None
    if counting is not None:
        counting.expect("subscribed")
    subscription = client.subscribe(name)
    if writer == "c":
        program = start("many", name, str(count), "100")
        assert take(subscription, count) == [b"%d" % number for number in range(count)]
        program.expect("published")
        program.end()
    else:
        with client.publisher(name) as publisher:
            taken = 0
            for first in range(0, count, 100):
                publisher.publish_many(
                    [b"%d" % number for number in range(first, first + 100)], timeout=DEADLINE_S
                )
                while taken < first:
                    taken += len(subscription.receive_many(256, timeout=DEADLINE_S))
    if counting is not None:
        counting.expect(f"{count} numbers, none missed")
        counting.end()


def take(subscription: towpath.Subscription, count: int) -> list[bytes]:
    payloads: list[bytes] = []
    while len(payloads) < count:
        messages = subscription.receive_many(256, timeout=DEADLINE_S)
        assert messages, f"{len(payloads)} of {count}"
        payloads += [message.payload for message in messages]
    return payloads


def test_what_drop_loses_is_counted(start: Start, client: towpath.Client, name: str) -> None:
    client.declare(name, overflow="drop", ring_bytes=4096)
    reader = start("count", name, "50000")
    reader.expect("subscribed")
    writer = start("many", name, "50000", "256")
    # The last message always arrives, with the number of those that were lost before it.
    assert reader.line().startswith("50000 numbers")
    writer.expect("published")
    reader.end()
    writer.end()


def test_headers(start: Start, client: towpath.Client, name: str) -> None:
    client.declare(f"{name}.out")
    client.declare(f"{name}.in")
    with client.subscribe(f"{name}.out") as subscription, client.publisher(f"{name}.in") as publisher:
        program = start("headers", f"{name}.out", f"{name}.in")
        message = subscription.receive(timeout=DEADLINE_S)
        assert message.headers == towpath.Headers(
            content_type="text/plain",
            reply_to="answers.here",
            message_id="id-1",
            key=b"k\0y",
            priority=7,
            user={"machine": "M7", "empty": ""},
        )
        publisher.publish(
            b"x",
            headers=towpath.Headers(content_type="a/b", key=b"12\x003", user={"from": "Python"}, priority=31),
        )
        program.expect("type a/b", "key of 4", "from Python", "no such header: 0", "priority 31")
        program.expect("a priority is from 0 to 31")
        program.end()


def test_a_descriptor_to_poll(start: Start, client: towpath.Client, name: str) -> None:
    """A program that sleeps in poll(2) hears of publishers of both kinds, there before and after it."""
    client.declare(name)
    with client.publisher(name) as early:
        program = start("poll", name)
        program.expect("subscribed")
        for number in range(20):
            early.publish(b"early %d" % number)
            program.expect(f"early {number}")
        with client.publisher(name) as late:
            late.publish(b"late")
            program.expect("late")
        second = start("lines", name)
        second.expect("ready")
        second.tell("from C")
        program.expect("from C")
        second.expect("1")
        early.publish(b"end")
        program.expect("end")
        program.end()


def test_a_queue_can_be_published_to(start: Start, client: towpath.Client, name: str) -> None:
    client.declare(name, kind="queue")
    program = start("lines", name)
    program.expect("ready")
    with client.consume(name) as consumer:
        for number in range(1, 4):
            program.tell(f"job {number}")
            program.expect(str(number))
            delivery = consumer.receive(timeout=DEADLINE_S)
            assert delivery is not None
            assert delivery.payload == b"job %d" % number
            delivery.ack()


def test_drained_means_stored(start: Start, client: towpath.Client, name: str) -> None:
    """What the C program says is on disk is there for who asks the store."""
    client.declare(name, durable=True)
    program = start("lines", name)
    program.expect("ready")
    for number in range(1, 6):
        program.tell(f"kept {number}")
        program.expect(str(number))
        with client.subscribe(name, start="all") as subscription:
            assert [m.payload for m in (subscription.receive(timeout=DEADLINE_S) for _ in range(number))] == [
                b"kept %d" % each for each in range(1, number + 1)
            ]


def test_loans_from_c_to_python_and_back(start: Start, client: towpath.Client, name: str) -> None:
    """More than a publisher has to loan at a time, each looked at where it was made."""
    client.declare(name)
    watcher = start(name, "100", source=EXAMPLES / "frames.c")
    wait_until(lambda: client.channel_info(name).subscribers == 1)
    with client.subscribe(name) as subscription:
        publisher = start(name, source=EXAMPLES / "frames.c")
        for number in range(1, 101):
            payload = subscription.receive(timeout=DEADLINE_S).payload
            assert isinstance(payload, memoryview)
            assert payload == bytes([number]) * (1 << 20)
        publisher.end()
    assert watcher.end()[0] == "".join(f"1048576 bytes of {number}\n" for number in range(1, 101))
    watcher = start(name, "3", source=EXAMPLES / "frames.c")
    wait_until(lambda: client.channel_info(name).subscribers == 1)
    with client.publisher(name) as python:
        for number in range(2):
            loan = python.loan(5000)
            loan[0] = number
            loan.publish()
        python.publish(b"\7 copied")
        assert watcher.end()[0] == "5000 bytes of 0\n5000 bytes of 1\n8 bytes of 7\n"


def test_what_c_may_not_loan(start: Start, client: towpath.Client, name: str) -> None:
    client.declare(name, ring_bytes=4096)
    client.declare(f"{name}.durable", ring_bytes=4096, durable=True)
    client.declare(f"{name}.queue", kind="queue")
    with client.subscribe(f"{name}.durable") as stored, client.consume(f"{name}.queue") as consumer:
        program = start("loans", name)
        assert stored.receive(timeout=DEADLINE_S).payload == b"d" * 900
        delivery = consumer.receive(timeout=DEADLINE_S)
        assert delivery.payload == b"q" * 900
        delivery.ack()
        program.expect("ok")
        program.end()
