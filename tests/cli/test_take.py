"""`towpath take`: messages of a queue to standard output, or each to a program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import towpath
from tests.support.daemon import LOCAL_ONLY, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S

Take = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def take(daemon: Path) -> Take:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "towpath", "take", "--socket", str(daemon), *arguments],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    return run


def left_in(client: towpath.Client, queue: str) -> list[tuple[bytes, int]]:
    with client.consume(queue) as consumer:
        found = []
        while batch := consumer.receive_many(timeout=0.1):
            found += [(delivery.payload, delivery.attempt) for delivery in batch]
        return found


def test_messages_are_printed_and_done(client: towpath.Client, take: Take) -> None:
    client.declare("take.plain", kind="queue")
    client.publisher("take.plain").publish_many([b"one", b"two", b"three"])
    run = take("take.plain", "--count", "2")
    assert (run.returncode, run.stdout) == (0, "one\ntwo\n")
    run = take("take.plain", "--json", "--count", "1")
    document = json.loads(run.stdout)
    # It may have been on its way to the one before.
    assert (document["payload"], document["seq"]) == ("three", 3)
    assert document["attempt"] >= 1
    run = take("take.plain", "--timeout", "0.05")
    assert (run.returncode, run.stdout) == (124, "")
    assert left_in(client, "take.plain") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_whoever_is_asked_to_leave_has_acknowledged_what_it_printed(
    client: towpath.Client, daemon: Path, number: signal.Signals
) -> None:
    """In the midst of 20,000 messages, most of which do not fit into the pipe."""
    name, count = f"take.asked.{number.name}", 20_000
    client.declare(name, kind="queue")
    with client.publisher(name) as publisher:
        publisher.publish_many([b"%d" % each for each in range(count)])
    command = [sys.executable, "-m", "towpath", "take", name, "--socket", str(daemon)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        printed = [process.stdout.readline() for _ in range(5_000)]
        process.send_signal(number)
        printed += process.stdout.readlines()
        assert process.wait(60) == -number
    assert printed == [b"%d\n" % each for each in range(len(printed))]
    assert left_in(client, name)[0][0] == b"%d" % len(printed)
    contents = client.channel_info(name).contents
    assert contents is not None and contents.messages == count - len(printed)


def test_whoever_is_asked_to_leave_does_not_wait_for_a_reader_for_ever(
    client: towpath.Client, daemon: Path
) -> None:
    client.declare("take.stuck", kind="queue")
    with client.publisher("take.stuck") as publisher:
        publisher.publish_many([bytes(1000)] * 1000)
    command = [sys.executable, "-m", "towpath", "take", "take.stuck", "--socket", str(daemon)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"\0"
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM


def test_each_message_is_given_to_a_program(client: towpath.Client, take: Take) -> None:
    client.declare("take.program", kind="queue")
    headers = towpath.Headers(key=b"k", content_type="text/plain")
    client.publisher("take.program").publish_many([b"a", b"b"], headers=headers)
    script = (
        'read x; echo "$x $TOWPATH_CHANNEL $TOWPATH_SEQ $TOWPATH_ATTEMPT $TOWPATH_KEY $TOWPATH_CONTENT_TYPE"'
    )
    run = take("take.program", "--count", "2", "--", "sh", "-c", script)
    assert run.returncode == 0
    assert run.stdout.splitlines() == ["a take.program 1 1 k text/plain", "b take.program 2 1 k text/plain"]
    assert left_in(client, "take.program") == []


def test_the_exit_status_settles_the_message(client: towpath.Client, take: Take) -> None:
    client.declare("take.dead", kind="queue")
    client.declare("take.status", kind="queue", dead_letter="take.dead")
    client.publisher("take.status").publish_many([b"0", b"65", b"7"])
    script = 'read status; echo "it is $status" >&2; exit $status'
    run = take("take.status", "--count", "3", "--delay", "0", "--", "sh", "-c", script)
    assert run.returncode == 0
    assert "exit status 7: it is 7" in run.stderr
    ((payload, attempt),) = left_in(client, "take.status")
    assert payload == b"7" and attempt >= 2  # it may have been on its way to the one that left
    with client.consume("take.dead") as dead:
        letter = dead.receive(timeout=DEADLINE_S)
        assert letter.payload == b"65"
        assert "it is 65" in letter.headers.user["towpath-dead-letter-reason"]


def test_a_program_may_take_longer_than_the_queues_deadline(client: towpath.Client, take: Take) -> None:
    client.declare("take.slow", kind="queue", ack_ms=900)
    client.publisher("take.slow").publish(b"x")
    run = take("take.slow", "--count", "1", "--", "sleep", "2")
    assert (run.returncode, run.stderr) == (0, "")
    assert left_in(client, "take.slow") == []


def test_several_programs_run_at_a_time(client: towpath.Client, take: Take) -> None:
    client.declare("take.many", kind="queue")
    client.publisher("take.many").publish_many([b"%d" % number for number in range(6)])
    run = take("take.many", "--count", "6", "--concurrency", "3", "--", "sh", "-c", "read x; echo $x")
    assert run.returncode == 0
    assert sorted(run.stdout.split()) == [str(number) for number in range(6)]
    assert left_in(client, "take.many") == []


def test_what_is_no_queue_and_what_is_no_program(client: towpath.Client, take: Take) -> None:
    client.declare("take.topic")
    assert take("take.topic", "--count", "1").returncode == 2
    run = take("take.topic", "--", "no-such-program-at-all")
    assert run.returncode == 2
    assert "no-such-program-at-all" in run.stderr


def test_what_pub_says_of_its_messages(client: towpath.Client, take: Take, daemon: Path) -> None:
    client.declare("take.pub", kind="queue")

    def pub(*arguments: str) -> int:
        command = [sys.executable, "-m", "towpath", "pub", "--socket", str(daemon), "take.pub", *arguments]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S
        ).returncode

    assert pub("low") == 0
    assert pub("high", "--priority", "9") == 0
    assert pub("once", "--message-id", "m") == pub("once more", "--message-id", "m") == 0
    assert pub("late", "--delay", "0.1") == 0
    assert take("take.pub", "--count", "4").stdout.splitlines() == ["high", "low", "once", "late"]
    assert pub("a", "b", "--message-id", "m") == 2
    assert pub("x", "--priority", "32") == 2


def test_a_worker_goes_on_when_the_core_is_killed(tmp_path: Path) -> None:
    with running_daemon(tmp_path, LOCAL_ONLY) as daemon, towpath.connect(str(daemon.socket)) as client:
        client.declare("jobs", kind="queue", durable=True)
        client.publisher("jobs").publish(b"first")
        fifo, done = tmp_path / "fifo", tmp_path / "done"
        os.mkfifo(fifo)
        script = f"read job; echo $job > {fifo}; cat {fifo} > /dev/null; echo $job >> {done}"
        command = [sys.executable, "-m", "towpath", "take", "--socket", str(daemon.socket), "jobs"]
        with subprocess.Popen([*command, "--", "sh", "-c", script], stderr=subprocess.PIPE) as worker:
            assert fifo.read_text() == "first\n"  # it is being worked on
            daemon.kill_core()
            fifo.write_text("")
            assert fifo.read_text() == "first\n"  # it came again
            fifo.write_text("")
            wait_until(lambda: done.exists() and done.read_text() == "first\nfirst\n")
            wait_until(lambda: left_in(client, "jobs") == [])
            worker.terminate()
            assert worker.stderr is not None and b"went back" in worker.stderr.read()
