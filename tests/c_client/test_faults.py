"""What a C program is told when something fails: bad input, a full ring, a fork, a signal, a dead daemon."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import towpath
from tests.c_client.conftest import PROGRAMS, Running
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S

Start = Callable[..., Running]


def test_bad_input(start: Start, name: str) -> None:
    program = start("errors", name)
    program.expect("UNAVAILABLE", "INVALID_ARGUMENT", "CHANNEL_NOT_FOUND", "INVALID_NAME")
    program.expect("CHANNEL_CONFLICT", "INVALID_ARGUMENT")
    program.end()


def test_a_full_ring(start: Start, client: towpath.Client, name: str) -> None:
    client.declare(name, ring_bytes=4096)
    program = start("full", name)
    program.expect(f"TIMEOUT: the ring of {name} stayed full", "all there", "MESSAGE_TOO_LARGE")
    program.end()


def test_a_stopped_subscriber_is_left_behind(start: Start, client: towpath.Client, name: str) -> None:
    client.declare(name, ring_bytes=4096, stall_ms_max=200)
    stopped = start("count", name, "1000")
    stopped.expect("subscribed")
    stopped.process.send_signal(signal.SIGSTOP)
    program = start("stalled", name)
    program.expect("publishing", "went on without it")
    program.end()
    stopped.process.send_signal(signal.SIGCONT)
    _, complaints = stopped.end(status=1)
    assert "too slow" in complaints


def test_a_bridge_that_is_away_is_waited_for(
    start: Start, daemon: DaemonHandle, client: towpath.Client, name: str, tmp_path: Path
) -> None:
    """What is more than the ring holds comes out of the binding, too, whole and in order."""
    lines = [f"message {number:05}\n" for number in range(10_000)]
    client.declare(name, ring_bytes=65536)
    client.bind(name, f"fifo:{tmp_path}/out", direction="out")
    program = start("feed", name)
    with open(tmp_path / "out") as reader:
        program.tell("first")
        assert reader.readline() == "first\n"
        daemon.process.send_signal(signal.SIGSTOP)  # so that it does not come back at once
        os.kill(daemon.gateway("bridge").pid, signal.SIGKILL)
        assert reader.readline() == ""
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(program.tell, "".join(lines).removesuffix("\n"))
        wait_until(lambda: sleeps(program) and not told.done())  # the ring is full, and so is the pipe
        daemon.process.send_signal(signal.SIGCONT)
        with open(tmp_path / "out") as reader:
            assert [reader.readline() for _ in lines] == lines
        told.result(DEADLINE_S)
    program.end()
    client.undeclare(name, force=True)


def test_a_fork(start: Start, client: towpath.Client, name: str) -> None:
    client.declare(name)
    program = start("fork", name)
    assert sorted(program.line() for _ in range(3)) == ["after", "before", "child"]
    program.end()


def test_a_signal_ends_a_wait(start: Start, client: towpath.Client, name: str) -> None:
    client.declare(name)
    program = start("signal", name)
    program.expect("waiting")
    wait_until(lambda: "poll" in Path(f"/proc/{program.process.pid}/wchan").read_text() or sleeps(program))
    program.process.send_signal(signal.SIGUSR1)
    program.expect("CANCELLED 1")
    program.end()


def sleeps(program: Running) -> bool:
    stat = Path(f"/proc/{program.process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "S"


def test_an_undeclared_channel(start: Start, client: towpath.Client, name: str) -> None:
    client.declare(name)
    program = start("undeclared", name)
    program.expect("ready", "last words")
    client.undeclare(name, force=True)
    program.expect("CHANNEL_UNDECLARED", "CHANNEL_UNDECLARED")
    program.end()


def test_a_killed_publisher(start: Start, client: towpath.Client, name: str) -> None:
    """What it had published is all there, and its slot is free again: 300 of them, one after the other."""
    client.declare(name)
    reader = start("poll", name)
    reader.expect("subscribed")
    for number in range(3):
        writer = start("lines", name)
        writer.expect("ready")
        writer.tell(f"from {number}")
        reader.expect(f"from {number}")
        writer.process.kill()
        writer.process.wait()
    for number in range(300):
        with client.publisher(name) as publisher:
            publisher.publish(b"again %d" % number)
            reader.expect(f"again {number}")
    with client.publisher(name) as publisher:
        publisher.publish(b"end")
        reader.expect("end")
    reader.end()


@pytest.fixture
def own_daemon(tmp_path: Path) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path, LOCAL_ONLY) as handle:
        yield handle


@contextlib.contextmanager
def running(program: Path, arguments: tuple[str, ...], daemon: DaemonHandle) -> Iterator[Running]:
    """A program beside a daemon of the test's own; killed at the end."""
    started = Running(program, arguments, daemon.environment)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.kill()
        started.process.communicate()


def test_a_subscriber_dies_with_the_core(own_daemon: DaemonHandle, programs: Callable[[Path], Path]) -> None:
    """Nobody is left to say that it is gone: its publisher waits for it for three seconds, and goes on."""
    with towpath.connect(str(own_daemon.socket)) as client:
        client.declare("there")
    program = programs(PROGRAMS / "client.c")
    with (
        running(program, ("poll", "there"), own_daemon) as reader,
        running(program, ("lines", "there"), own_daemon) as writer,
    ):
        reader.expect("subscribed")
        writer.expect("ready")
        writer.tell("both are there")
        writer.expect("1")
        reader.expect("both are there")
        reader.process.send_signal(signal.SIGSTOP)
        own_daemon.kill_core()
        reader.process.kill()
        writer.tell("nobody is")
        writer.expect("2")
        writer.end()


def test_a_publisher_that_was_stopped_while_the_core_was_started_again(
    own_daemon: DaemonHandle, programs: Callable[[Path], Path]
) -> None:
    """After three seconds it is taken for dead; it goes on where it was, and what was not seen is missed."""
    program = programs(PROGRAMS / "client.c")
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(towpath.connect(str(own_daemon.socket)))
        client.declare("there")
        reader = stack.enter_context(running(program, ("seqs", "there"), own_daemon))
        writer = stack.enter_context(running(program, ("lines", "there"), own_daemon))
        reader.expect("subscribed")
        writer.expect("ready")
        writer.tell("1")
        writer.expect("1")
        reader.expect("1 0")
        writer.process.send_signal(signal.SIGSTOP)
        own_daemon.kill_core()
        maps = Path(f"/proc/{reader.process.pid}/maps")
        wait_until(lambda: maps.read_text().count("memfd:towpath-ring") == 0)
        writer.process.send_signal(signal.SIGCONT)
        seq = 1
        while client.channel_info("there").publishers == 0:
            seq += 1
            writer.tell("is anybody there?")
            writer.expect(f"{seq}")
        writer.tell("end")
        writer.expect(f"{seq + 1}")
        heard = 1
        while heard <= seq:
            now, missed = map(int, reader.line().split())
            assert now == heard + missed + 1
            heard = now
        reader.end()


def test_the_core_is_killed(own_daemon: DaemonHandle, programs: Callable[[Path], Path]) -> None:
    """Traffic goes on while the core is away, and after it is back with newcomers too."""
    with towpath.connect(str(own_daemon.socket)) as client:
        for channel in ("there", "back"):
            client.declare(channel)
        arguments = ("echo", "there", "back")
        with running(programs(PROGRAMS / "client.c"), arguments, own_daemon) as program:
            program.expect("ready")
            subscription, publisher = client.subscribe("back"), client.publisher("there")
            number = 0

            def goes_round() -> None:
                nonlocal number
                number += 1
                publisher.publish(b"%d" % number, timeout=DEADLINE_S)
                answer = subscription.receive(timeout=DEADLINE_S)
                assert answer is not None
                assert answer.payload == b"%d" % number
                assert answer.seq == number

            goes_round()
            for _ in range(3):
                pid = own_daemon.core_pid
                own_daemon.kill_core()
                for _ in range(10):
                    goes_round()
                wait_until(lambda pid=pid: own_daemon.core_pid not in (0, pid))  # type: ignore[misc]
                with towpath.connect(str(own_daemon.socket)) as other:
                    wait_until(lambda other=other: other.channel_info("there").subscribers == 1)  # type: ignore[misc]
                    wait_until(lambda other=other: other.channel_info("back").publishers == 1)  # type: ignore[misc]
                    with other.subscribe("back") as newcomer:
                        goes_round()
                        heard = newcomer.receive(timeout=DEADLINE_S)
                        assert heard is not None
                        assert heard.seq == number
            with towpath.connect(str(own_daemon.socket)) as other, other.publisher("there") as late:
                late.publish(b"end")
                last = subscription.receive(timeout=DEADLINE_S)
                assert last is not None
                assert last.payload == b"end"
                program.expect("ended")
            program.end()
