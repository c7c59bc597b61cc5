"""``towpath run``: programs with their standard streams on channels."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

import towpath
from tests.support.daemon import DaemonHandle, wait_until
from tests.support.deadlines import DEADLINE_S

Run = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run(daemon: DaemonHandle) -> Iterator[Run]:
    """Starts ``towpath run`` with arguments; killed at the end of the test."""
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        running.append(
            subprocess.Popen(
                [sys.executable, "-m", "towpath", "run", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=daemon.environment,
                start_new_session=True,
            )
        )
        return running[-1]

    # What is ignored when a shell begins it cannot trap; whoever runs the tests may ignore SIGHUP (nohup).
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield start
    signal.signal(signal.SIGHUP, before)
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its program, too, which has our pipes
        process.communicate()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, complaints = process.communicate(timeout=DEADLINE_S)
    return process.returncode, output, complaints


def test_out(run: Run, client: towpath.Client, name: str) -> None:
    client.declare(name)
    with client.subscribe(name) as subscription:
        process = run("--out", name, "--", "sh", "-c", "echo one; echo to stderr >&2; echo two; exit 7")
        assert [subscription.receive(timeout=DEADLINE_S).payload for _ in range(2)] == [b"one", b"two"]
        assert ended(process) == (7, "", "to stderr\n")


def test_in(run: Run, client: towpath.Client, name: str) -> None:
    client.declare(name)
    process = run("--in", name, "--count", "3", "--", "sort")
    wait_until(lambda: client.channel_info(name).subscribers == 1)
    with client.publisher(name) as publisher:
        publisher.publish_many([b"c", b"a", b"b", b"not given"])
        assert ended(process) == (0, "a\nb\nc\n", "")


def test_both(run: Run, client: towpath.Client, name: str) -> None:
    """A filter between two channels, which leaves by itself although more might come."""
    client.declare(f"{name}.in")
    client.declare(f"{name}.out")
    with client.subscribe(f"{name}.out") as subscription, client.publisher(f"{name}.in") as publisher:
        process = run("--in", f"{name}.in", "--out", f"{name}.out", "--", "sed", "-u", "s/^/got /; /3/q")
        wait_until(lambda: client.channel_info(f"{name}.in").subscribers == 1)
        for number in range(1, 4):
            publisher.publish(b"%d" % number)
            assert subscription.receive(timeout=DEADLINE_S).payload == b"got %d" % number
        assert ended(process) == (0, "", "")


def test_framing(run: Run, client: towpath.Client, name: str) -> None:
    client.declare(name)
    with client.subscribe(name) as subscription:
        process = run("--out", name, "--frame", "netstring", "--", "printf", "4:a\\nb\\n,0:,")
        assert [subscription.receive(timeout=DEADLINE_S).payload for _ in range(2)] == [b"a\nb\n", b""]
        assert ended(process)[0] == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_program(
    run: Run, client: towpath.Client, name: str, number: signal.Signals
) -> None:
    """Which says so, and decides what comes of it."""
    client.declare(name)
    with client.subscribe(name) as subscription:
        trap = f"trap 'echo caught; exit 5' {number.name[3:]}"
        script = f"{trap}; echo ready; while :; do sleep 1 & wait; done"
        process = run("--out", name, "--", "sh", "-c", script)
        assert subscription.receive(timeout=DEADLINE_S).payload == b"ready"
        process.send_signal(number)
        assert subscription.receive(timeout=DEADLINE_S).payload == b"caught"
        assert ended(process)[0] == 5


def test_a_program_ended_by_a_signal(run: Run, client: towpath.Client, name: str) -> None:
    client.declare(name)
    assert ended(run("--out", name, "--", "sh", "-c", "kill -9 $$"))[0] == 128 + 9


def test_a_queue_gets_back_what_was_not_taken(run: Run, client: towpath.Client, name: str) -> None:
    client.declare(name, kind="queue")
    assert ended(run("--in", name, "--", "true"))[0] == 0
    with client.publisher(name) as publisher:
        publisher.publish(b"job")
    with client.consume(name) as consumer:
        delivery = consumer.receive(timeout=DEADLINE_S)
        assert (delivery.payload, delivery.attempt) == (b"job", 1)
        delivery.ack()


def test_a_channel_that_goes(run: Run, client: towpath.Client, name: str) -> None:
    """The program loses its streams; the exit code and a line say what happened."""
    client.declare(name)
    with client.subscribe(name) as subscription:
        process = run("--out", name, "--", "sh", "-c", "echo first; while echo more; do sleep 0.05; done")
        assert subscription.receive(timeout=DEADLINE_S).payload == b"first"
        client.undeclare(name, force=True)
        status, _, complaints = ended(process)
    assert status == towpath.errors.ChannelUndeclared("").row.exit_code
    assert "undeclared" in complaints


def test_bad_use(run: Run, client: towpath.Client, name: str) -> None:
    client.declare(name)
    status, _, complaints = ended(run("--", "true"))
    assert (status, "--out" in complaints) == (2, True)
    status, _, complaints = ended(run("--out", name, "--", "no-such-program"))
    assert (status != 0, "no program 'no-such-program'" in complaints) == (True, True)
    status, _, complaints = ended(run("--out", "no.such", "--", "echo", "x"))
    assert (status, "no channel 'no.such'" in complaints) == (towpath.ChannelNotFound("").row.exit_code, True)
    status, _, complaints = ended(run("--out", name))
    assert (status, "CMD" in complaints) == (2, True)
