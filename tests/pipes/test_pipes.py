"""Pipes and sockets that clients open: real programs at one end, a channel at the other."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import towpath
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath.framing import Framing, FramingOptions

Pumps = Callable[[], list[int]]


def payloads(subscription: towpath.Subscription, count: int) -> list[bytes]:
    return [subscription.receive(timeout=DEADLINE_S).payload for _ in range(count)]


def test_what_a_program_writes_is_published(client: towpath.Client, name: str, pumps: Pumps) -> None:
    client.declare(name)
    with client.subscribe(name) as subscription:
        with client.open_pipe(name, "w") as pipe:
            assert stat.S_ISFIFO(os.fstat(pipe.fileno()).st_mode)
            subprocess.run(
                ["sh", "-c", "echo one; echo; printf last"], stdout=pipe, check=True, timeout=DEADLINE_S
            )
        assert payloads(subscription, 3) == [b"one", b"", b"last"]
    wait_until(lambda: pumps() == [])


def test_what_is_published_a_program_reads(client: towpath.Client, name: str, pumps: Pumps) -> None:
    client.declare(f"{name}.a")
    with client.open_pipe(f"{name}.>", "r") as pipe, client.publisher(f"{name}.a") as publisher:
        head = subprocess.Popen(["head", "-n2"], stdin=pipe, stdout=subprocess.PIPE)
        pipe.close()
        publisher.publish_many([b"one", b"two"])
        assert head.communicate(timeout=DEADLINE_S)[0] == b"one\ntwo\n"
    wait_until(lambda: pumps() == [])  # nothing was published since: it heard of the end by itself


def test_it_outlives_the_client_that_opened_it(
    daemon: DaemonHandle, client: towpath.Client, name: str
) -> None:
    """The program that opened both pipes is gone when the one that holds them begins."""
    client.declare(f"{name}.in")
    client.declare(f"{name}.out")
    opener = f"""
import subprocess, sys, towpath
with towpath.connect() as client:
    source, drain = client.open_pipe("{name}.in", "r"), client.open_pipe("{name}.out", "w")
    upper = ["sh", "-c", "read word; echo got $word; exec tr a-z A-Z"]
    print(subprocess.Popen(upper, stdin=source, stdout=drain, stderr=subprocess.DEVNULL).pid)
"""
    with client.subscribe(f"{name}.out") as subscription, client.publisher(f"{name}.in") as publisher:
        ran = subprocess.run(
            [sys.executable, "-c", opener],
            env=daemon.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=DEADLINE_S,
        )
        publisher.publish(b"it")
        assert payloads(subscription, 1) == [b"got it"]
        os.kill(int(ran.stdout), signal.SIGKILL)


def test_a_pair_goes_both_ways(client: towpath.Client, name: str, pumps: Pumps) -> None:
    client.declare(f"{name}.ask")
    client.declare(f"{name}.tell")
    with client.subscribe(f"{name}.ask") as asked, client.publisher(f"{name}.tell") as teller:
        sock = client.open_pair(f"{name}.ask", f"{name}.tell")
        script = "read answer; echo heard $answer; echo bye"
        program = subprocess.Popen(["sh", "-c", script], stdin=sock.fileno(), stdout=sock.fileno())
        teller.publish(b"hello")
        assert payloads(asked, 2) == [b"heard hello", b"bye"]
        assert program.wait(DEADLINE_S) == 0
        # Ours is open still. One direction ends, and the other goes on.
        sock.sendall(b"mine")
        sock.shutdown(1)
        assert payloads(asked, 1) == [b"mine"]
        teller.publish(b"still there")
        assert sock.recv(100) == b"still there\n"
        sock.close()
    wait_until(lambda: pumps() == [])


@pytest.mark.parametrize(
    ("framing", "written"),
    [
        ("length", b"\0\0\0\2a\n\0\0\0\0\0\0\0\1b"),
        ("netstring", b"2:a\n,0:,1:b,"),
        (FramingOptions(Framing.DELIMITER, delimiter=b"\r\0"), b"a\n\r\0\r\0b\r\0"),
    ],
)
def test_framing(client: towpath.Client, name: str, framing: FramingOptions | str, written: bytes) -> None:
    """Cut apart on the way in, and put together on the way out, as bindings do."""
    client.declare(name)
    with client.subscribe(name) as subscription, client.open_pipe(name, "r", framing=framing) as reading:
        with client.open_pipe(name, "w", framing=framing) as writing:
            writing.write(written)
        assert payloads(subscription, 3) == [b"a\n", b"", b"b"]
        assert read_exactly(reading.fileno(), len(written)) == written


def read_exactly(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        assert select.select([fd], [], [], 20)[0], data
        chunk = os.read(fd, count - len(data))
        assert chunk, data
        data += chunk
    return data


def test_ten_thousand_lines_through_both(client: towpath.Client, name: str) -> None:
    """In through one pipe and out through another, with a ring that both wait for, in order."""
    client.declare(name, ring_bytes=4096)
    count = 10_000
    with client.open_pipe(name, "r") as reading:
        head = subprocess.Popen(["head", f"-n{count}"], stdin=reading, stdout=subprocess.PIPE)
    with client.open_pipe(name, "w") as writing:
        subprocess.run(["seq", str(count)], stdout=writing, check=True, timeout=DEADLINE_S)
    output, _ = head.communicate(timeout=DEADLINE_S)
    assert output.split() == [b"%d" % number for number in range(1, count + 1)]


def test_a_queue_both_ways(client: towpath.Client, name: str) -> None:
    """What is in the pipe counts as acknowledged; what is not, is not."""
    client.declare(name, kind="queue")
    with client.open_pipe(name, "w") as writing:
        writing.write(b"1\n2\n3\n")
    with client.open_pipe(name, "r") as reading:
        assert read_exactly(reading.fileno(), 6) == b"1\n2\n3\n"
    with client.publisher(name) as publisher, client.consume(name) as consumer:
        publisher.publish(b"4")
        assert consumer.receive(timeout=DEADLINE_S).payload == b"4"


def test_a_frame_too_long_is_left_out(client: towpath.Client, name: str) -> None:
    client.declare(name, ring_bytes=4096)
    with client.subscribe(name) as subscription, client.open_pipe(name, "w") as writing:
        writing.write(b"x" * 2000 + b"\nshort\n")
        assert payloads(subscription, 1) == [b"short"]


def test_a_channel_that_goes_closes_the_pipe(client: towpath.Client, name: str, pumps: Pumps) -> None:
    client.declare(name)
    with client.open_pipe(name, "r") as reading, client.open_pipe(name, "w") as writing:
        client.undeclare(name, force=True)
        assert select.select([reading], [], [], 20)[0]
        assert reading.read(1) == b""
        with pytest.raises(BrokenPipeError):
            while True:
                select.select([], [writing], [], 20)
                writing.write(b"x\n")
    wait_until(lambda: pumps() == [])


def test_a_pump_that_is_killed(client: towpath.Client, name: str, pumps: Pumps) -> None:
    """Who holds the pipe sees what it would see of any program at the far end that died."""
    client.declare(name)
    with client.open_pipe(name, "r") as reading, client.open_pipe(name, "w") as writing:
        found = pumps()
        assert len(found) == 2
        for pump in found:
            os.kill(pump, signal.SIGKILL)
        assert reading.read(1) == b""
        broken = select.poll()
        broken.register(writing, 0)
        assert broken.poll(20_000) == [(writing.fileno(), select.POLLERR)]
        with pytest.raises(BrokenPipeError):
            writing.write(b"x\n")


def test_a_reader_that_dies_while_it_is_behind(client: towpath.Client, name: str, pumps: Pumps) -> None:
    """The pump is stuck in a write, with the ring full behind it; then publishers go on."""
    client.declare(name, ring_bytes=4096)
    with client.publisher(name) as publisher:
        reading = client.open_pipe(name, "r")
        with pytest.raises(towpath.Timeout):
            while True:  # more than pipe and ring take
                publisher.publish(b"x" * 500, timeout=0.5)
        reading.close()
        for _ in range(20):
            publisher.publish(b"x" * 500, timeout=DEADLINE_S)
    wait_until(lambda: pumps() == [])


def test_the_core_is_killed(tmp_path: Path) -> None:
    """Pipes go on while it is away and when it is back."""
    with running_daemon(tmp_path, LOCAL_ONLY) as daemon, towpath.connect(str(daemon.socket)) as client:
        client.declare("there")
        with client.open_pipe("there", "w") as writing, client.open_pipe("there", "r") as reading:
            for number in range(3):
                line = b"%d\n" % number
                writing.write(b"before " + line)
                assert read_exactly(reading.fileno(), 9) == b"before " + line
                pid = daemon.core_pid
                daemon.kill_core()
                writing.write(b"during " + line)
                assert read_exactly(reading.fileno(), 9) == b"during " + line
                wait_until(lambda pid=pid: daemon.core_pid not in (0, pid))  # type: ignore[misc]


def test_what_cannot_be_opened(client: towpath.Client, name: str, pumps: Pumps) -> None:
    client.declare(name)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(towpath.ChannelNotFound):
        client.open_pipe("no.such", "w")
    with pytest.raises(towpath.ChannelNotFound):
        client.open_pipe("no.such", "r")
    with pytest.raises(towpath.ChannelNotFound):
        client.open_pair(name, "no.such")
    with pytest.raises(towpath.InvalidArgument):
        client.open_pipe(name, "rw")  # type: ignore[arg-type]
    with pytest.raises(towpath.InvalidArgument):
        client.open_pipe(name, "r", framing="lines")
    with pytest.raises(towpath.InvalidArgument):
        client.open_pipe(
            name, "w", framing=FramingOptions(Framing.FIXED, frame_bytes=1 << 20, frame_bytes_max=1 << 20)
        )
    assert set(os.listdir("/proc/self/fd")) == before
    assert isinstance(client.try_open_pipe("no.such", "w"), towpath.Err)
    assert pumps() == []


def test_from_asyncio(daemon: DaemonHandle, client: towpath.Client, name: str) -> None:
    client.declare(name)

    async def main() -> bytes:
        async with await towpath.aio.connect(str(daemon.socket)) as asynchronous:
            reading = await asynchronous.open_pipe(name, "r")
            with reading, await asynchronous.open_pair(name, name) as pair:
                pair.sendall(b"echo\n")
                return await asyncio.to_thread(read_exactly, reading.fileno(), 5)

    assert asyncio.run(main()) == b"echo\n"


@pytest.mark.parametrize(
    ("gateway", "endpoint", "scheme"), [("grpc", "listen", "grpc"), ("zeromq", "rpc", "zmq")]
)
def test_from_afar(
    daemon: DaemonHandle, client: towpath.Client, name: str, gateway: str, endpoint: str, scheme: str
) -> None:
    """The pump has the client's address, and reaches the daemon by the same carrier."""
    client.declare(name)
    address = daemon.endpoint(gateway, endpoint).removeprefix("tcp://")
    remote = towpath.connect(f"{scheme}://{address}")
    with remote, client.subscribe(name) as subscription, remote.open_pipe(name, "r") as reading:
        with remote.open_pipe(name, "w") as writing:
            writing.write(b"far\n")
        assert payloads(subscription, 1) == [b"far"]
        assert read_exactly(reading.fileno(), 4) == b"far\n"
