"""The zeromq gateway in bad company: peers that stop, talk nonsense or vanish, a gateway that is killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest
import zmq

import towpath
from tests.support.daemon import DaemonHandle, running_daemon
from tests.support.deadlines import DEADLINE_S
from tests.zeromq.peers import (
    counters_of,
    dealer,
    lines_of,
    plain_peer,
    plain_socket,
    plain_subscriber,
    subscribers_of,
    wait_until,
)
from towpath.errors import Code

ENDPOINTS = ("sub", "push", "rpc")

# What a peer of ZMTP 3.0 without security says before its first frame; see rfc.zeromq.org/spec/23.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


def ready_command(socket_type: bytes) -> bytes:
    body = b"\x05READY" + b"\x0bSocket-Type" + len(socket_type).to_bytes(4, "big") + socket_type
    return bytes([4, len(body)]) + body


@contextlib.contextmanager
def garbage_peers(daemon: DaemonHandle, count: int) -> Iterator[None]:
    """So many connections to each endpoint, which send nonsense of several kinds and stay."""
    rng = random.Random(20261122)
    kinds = {"sub": b"SUB", "push": b"PUSH", "rpc": b"DEALER"}
    with contextlib.ExitStack() as stack:
        for number in range(count):
            for name in ENDPOINTS:
                address = urlparse(daemon.endpoint("zeromq", name))
                peer = stack.enter_context(socket.create_connection((address.hostname, address.port)))
                noise = rng.randbytes(rng.randint(1, 2_000))
                preambles = (
                    b"",  # not ZMTP at all
                    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                    b"\xff" + bytes(7) + b"\x01\x7f",  # half a greeting
                    b"\x01\x00",  # ZMTP 1.0
                    GREETING,  # noise instead of READY
                    GREETING + ready_command(kinds[name]),  # a good handshake, then noise
                    GREETING
                    + ready_command(kinds[name])
                    + b"\x00\x05\xff\xff\xff\xff\xff",  # a frame of noise
                    GREETING + ready_command(kinds[name]) + b"\x02" + (1 << 62).to_bytes(8, "big"),
                )
                with contextlib.suppress(ConnectionError):
                    peer.sendall(preambles[number % len(preambles)] + noise)
        yield


def test_garbage_at_every_endpoint_disturbs_nobody(tmp_path: Path) -> None:
    count = 10_000
    with running_daemon(tmp_path, "[zeromq]\n") as daemon, towpath.connect(str(daemon.socket)) as client:
        client.declare("calm")
        pid = daemon.gateway("zeromq").pid
        with plain_subscriber("sub", daemon.endpoint("zeromq", "sub"), "calm", count) as peer:
            with garbage_peers(daemon, 100), dealer(daemon.endpoint("zeromq", "rpc")) as caller:
                publisher = client.publisher("calm")
                for start in range(0, count, 100):
                    publisher.publish_many([b"%d" % number for number in range(start, start + 100)])
                assert caller.call("get_channel_request", name="calm").channel.name == "calm"
                received = lines_of(peer)
            assert [line[2] for line in received] == [str(number) for number in range(count)]
        assert daemon.gateway("zeromq").pid == pid
        assert "Traceback" not in daemon.log()


def test_nonsense_in_good_frames_is_answered(daemon: DaemonHandle) -> None:
    with dealer(daemon.endpoint("zeromq", "rpc")) as peer:
        rng = random.Random(1)
        for _ in range(100):
            peer.socket.send_multipart([b"\xff" + rng.randbytes(rng.randint(1, 100)), rng.randbytes(10)])
            frame = peer.receive()
            assert (frame.id, Code(frame.error.code)) == (0, Code.PROTOCOL_VIOLATION)
        assert peer.call("get_status_request").version == towpath.__version__


def test_a_subscriber_that_stops_reading_costs_the_others_no_message(tmp_path: Path) -> None:
    count, payload = 2_000, bytes(16_384)
    # Always the whole stall, so that a busy machine does not make a subscriber that keeps up look slow.
    config = "[zeromq]\nsub_hwm = 100\nsub_stall_ms = 2000\nsub_lossy_ms = 0\n"
    with running_daemon(tmp_path, config) as daemon, towpath.connect(str(daemon.socket)) as client:
        client.declare("busy")
        endpoint = daemon.endpoint("zeromq", "sub")
        with (
            plain_subscriber("count", endpoint, "busy") as stuck,
            plain_subscriber("count", endpoint, "busy") as good,
        ):
            assert good.stdout is not None and stuck.stdout is not None
            os.kill(stuck.pid, signal.SIGSTOP)
            publisher = client.publisher("busy")
            for _ in range(2):
                for _ in range(0, count, 50):
                    publisher.publish_many([payload] * 50)
                publisher.publish(b"end")
                received, missing = map(int, good.stdout.readline().split())
                assert missing == 0
            assert received == 2 * (count + 1)
            wait_until(lambda: counters_of(daemon).get("sub_overruns") == 1, "one overrun was expected")
            assert "zeromq.slow_subscriber" in daemon.log()
            # It goes on, knows what it missed, and is served again.
            os.kill(stuck.pid, signal.SIGCONT)
            told: list[str] = []
            while not told:
                publisher.publish(b"end")
                if wait_readable(stuck):
                    told = stuck.stdout.readline().split()
            assert int(told[1]) > 0


def test_a_publisher_that_went_on_without_the_gateway_is_followed_again(tmp_path: Path) -> None:
    config = "[zeromq]\nsub_hwm = 10\nsub_stall_ms = 600\n"
    with running_daemon(tmp_path, config) as daemon, towpath.connect(str(daemon.socket)) as client:
        client.declare("hasty", stall_ms_max=100)
        with plain_subscriber("count", daemon.endpoint("zeromq", "sub"), "hasty") as slow:
            assert slow.stdout is not None
            os.kill(slow.pid, signal.SIGSTOP)
            publisher = client.publisher("hasty")
            for _ in range(40):
                publisher.publish_many([bytes(16_384)] * 50)
            os.kill(slow.pid, signal.SIGCONT)
            wait_until(lambda: counters_of(daemon).get("sub_parted", 0) >= 1, "it was to be left behind")
            told: list[str] = []
            while not told:
                publisher.publish(b"end")
                if wait_readable(slow):
                    told = slow.stdout.readline().split()
            assert int(told[1]) > 0
            assert subscribers_of(daemon, "hasty") == 1
            assert "subscribe_failed" not in daemon.log()


def wait_readable(process: subprocess.Popen[str]) -> bool:
    """Whether the process prints something within a moment."""
    assert process.stdout is not None
    poller = zmq.Poller()
    poller.register(process.stdout, zmq.POLLIN)
    return bool(poller.poll(50))


def test_a_channel_that_stands_still_stops_the_others_only_for_a_while(tmp_path: Path) -> None:
    config = "[zeromq]\npush_stall_ms = 100\npush_queue = 10\n"
    with running_daemon(tmp_path, config) as daemon, towpath.connect(str(daemon.socket)) as client:
        client.declare("still", ring_bytes=4_096)
        client.declare("moving")
        with (
            client.subscribe("still") as still,
            client.subscribe("moving") as moving,
            plain_socket(zmq.PUSH, daemon.endpoint("zeromq", "push")) as pusher,
        ):
            count = 1_000
            for number in range(count):
                pusher.send_multipart([b"still", b"%04d" % number])
                pusher.send_multipart([b"moving", b"%04d" % number])
            assert [moving.receive(20).payload for _ in range(count)] == [b"%04d" % n for n in range(count)]
            wait_until(lambda: counters_of(daemon).get("push_refused_stalled", 0) > 0, "nothing was refused")
            # What was not refused is there, in order; and the channel is of use again once it is read.
            kept = [message.payload for message in still.receive_many(count, timeout=DEADLINE_S)]
            while messages := still.receive_many(count, timeout=0.2):
                kept += [message.payload for message in messages]
            assert kept == [b"%04d" % n for n in range(len(kept))]
            wait_until(
                lambda: counters_of(daemon).get("push_refused_stalled", 0) + len(kept) == count,
                "published and refused do not add up",
            )
            pusher.send_multipart([b"still", b"again"])
            assert still.receive(20).payload == b"again"


def test_sources_give_way_to_each_other(tmp_path: Path) -> None:
    with (
        running_daemon(tmp_path, "[zeromq]\nsources_max = 2\n") as daemon,
        towpath.connect(str(daemon.socket)) as client,
        plain_socket(zmq.PUSH, daemon.endpoint("zeromq", "push")) as pusher,
    ):
        names = [f"turn{number}" for number in range(6)]
        subscriptions = []
        for name in names:
            client.declare(name)
            subscriptions.append(client.subscribe(name))
        for payload in (b"1", b"2", b"3"):
            for name, subscription in zip(names, subscriptions, strict=True):
                pusher.send_multipart([name.encode(), payload])
                assert subscription.receive(20).payload == payload
        wait_until(
            lambda: sum(info.publishers for info in client.channels("turn")) <= 2, "more sources than allowed"
        )


def test_a_peer_that_never_reads_its_batches_is_bounded_and_others_go_on(tmp_path: Path) -> None:
    config = "[zeromq]\nrpc_hwm = 4\nrpc_stall_ms = 100\n"
    with running_daemon(tmp_path, config) as daemon, towpath.connect(str(daemon.socket)) as client:
        client.declare("flood", ring_bytes=1 << 20)
        with (
            dealer(daemon.endpoint("zeromq", "rpc")) as greedy,
            dealer(daemon.endpoint("zeromq", "rpc")) as other,
        ):
            greedy.socket.setsockopt(zmq.RCVHWM, 1)
            greedy.send(1, "subscribe_request", channel="flood", credit=1 << 31)
            assert greedy.receive().subscribe_response.subscribed.channel == "flood"
            publisher = client.publisher("flood")
            published = 0
            # The ring fills at last, because the gateway stops reading it: overflow is `block`.
            with pytest.raises(towpath.errors.Timeout):
                for _ in range(10_000):
                    publisher.publish(bytes(100_000), timeout=2)
                    published += 1
            assert other.call("get_channel_request", name="flood").channel.subscribers == 1
            received = 0
            while received < published:
                batch = greedy.receive().subscribe_response.batch
                assert batch.first_seq == received + 1
                received += len(batch.payloads)


def test_the_gateway_is_killed_and_everyone_finds_its_successor(tmp_path: Path) -> None:
    runtime = tmp_path / "s"
    runtime.mkdir()
    config = "[zeromq]\n" + "".join(f'{name} = "ipc://{runtime}/{name}"\n' for name in ENDPOINTS)
    if len(f"{runtime}/push") > 100:
        pytest.fail(f"the path of the test is too long for a socket: {runtime}")
    with running_daemon(tmp_path, config) as daemon, towpath.connect(str(daemon.socket)) as client:
        client.declare("lasting")
        assert (runtime / "rpc").stat().st_mode & 0o777 == 0o600
        with (
            plain_socket(zmq.SUB, f"ipc://{runtime}/sub") as subscriber,
            plain_socket(zmq.PUSH, f"ipc://{runtime}/push") as pusher,
            dealer(f"ipc://{runtime}/rpc") as caller,
            client.subscribe("lasting") as local,
        ):
            subscriber.subscribe("lasting")
            for payload in (b"before", b"after"):
                # A SUB socket sends its subscriptions to a new connection when its program next calls it.
                wait_until(
                    lambda: subscriber.poll(0) == 0 and subscribers_of(daemon, "lasting") == 2,
                    "nobody reads the channel",
                )
                pusher.send_multipart([b"lasting", payload])
                assert local.receive(20).payload == payload
                assert subscriber.recv_multipart()[1] == payload
                assert caller.call("get_channel_request", name="lasting").channel.publishers == 1
                if payload == b"before":
                    daemon.kill_gateway("zeromq")
        assert daemon.gateway("zeromq").restarts == 1


def test_messages_flow_on_while_the_core_is_replaced(tmp_path: Path) -> None:
    with running_daemon(tmp_path, "[zeromq]\n") as daemon, towpath.connect(str(daemon.socket)) as client:
        client.declare("through.restart")
        count = 6_000
        with (
            plain_subscriber("sub", daemon.endpoint("zeromq", "sub"), "through.restart", count) as peer,
            dealer(daemon.endpoint("zeromq", "rpc")) as watcher,
        ):
            watcher.send(1, "watch_request")
            while watcher.receive().watch_response.WhichOneof("event") != "current":
                pass
            publisher = client.publisher("through.restart")
            for start in range(0, count, 100):
                publisher.publish_many([b"%d" % number for number in range(start, start + 100)])
                if start == count // 2:
                    daemon.kill_core()
            assert [line[2] for line in lines_of(peer)] == [str(number) for number in range(count)]
            frame = watcher.receive()
            assert (frame.id, Code(frame.error.code)) == (1, Code.CONNECTION_LOST)
            watcher.send(1, "watch_request")
            assert watcher.receive().watch_response.channel_declared.name == "through.restart"
        # A channel of the new core is known to the gateway's endpoints.
        client.declare("new.core")
        with plain_subscriber("sub", daemon.endpoint("zeromq", "sub"), "new.core", 1) as peer:
            client.channel("new.core").publish(b"heard")
            assert [line[2] for line in lines_of(peer)] == ["heard"]


def test_it_stops_in_time_with_a_peer_that_does_not_read(tmp_path: Path) -> None:
    with running_daemon(tmp_path, "[zeromq]\n") as daemon, towpath.connect(str(daemon.socket)) as client:
        client.declare("stuck")
        with plain_subscriber("count", daemon.endpoint("zeromq", "sub"), "stuck") as stuck:
            os.kill(stuck.pid, signal.SIGSTOP)
            client.publisher("stuck").publish_many([bytes(16_384)] * 1_000)
            assert daemon.stop() == 0
        assert "gateway.stopped gateway=zeromq" in daemon.log()
        assert "gateway.killed" not in daemon.log()


FREE = [word for name in ENDPOINTS for word in (f"--{name}", "tcp://127.0.0.1:0")]


def run_by_hand(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "towpath_broker.gateways.zeromq", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_other_hosts_are_refused_with_status_78(daemon: DaemonHandle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for flag, address in (
        ("--sub", "tcp://0.0.0.0:0"),
        ("--rpc", "tcp://[::]:0"),
        ("--push", f"ipc://{tmp_path}/file"),
        ("--push", f"ipc://{tmp_path}/no/directory"),
    ):
        process = run_by_hand("--socket", str(daemon.socket), *FREE, flag, address)
        _, log = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 78, log
        assert "INVALID_CONFIGURATION" in log and "Traceback" not in log
    assert (tmp_path / "file").read_text() == "mine"


def test_it_can_be_run_by_hand_and_says_when_a_port_is_taken(daemon: DaemonHandle) -> None:
    process = run_by_hand("--socket", str(daemon.socket), *FREE)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "gateway.listening" in line
        taken = line.split("sub=")[1].split(",")[0]
        rival = run_by_hand("--socket", str(daemon.socket), *FREE, "--sub", taken)
        _, log = rival.communicate(timeout=DEADLINE_S)
        assert rival.returncode == 69, log
        assert "another program has it" in log
        with towpath.connect(str(daemon.socket)) as client:
            client.declare("by.hand")
            with plain_subscriber("sub", taken, "by.hand", 1) as peer:
                client.channel("by.hand").publish(b"x")
                assert [each[2] for each in lines_of(peer)] == ["x"]
        process.terminate()
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_pushing_program_that_is_killed_leaves_what_it_sent(
    daemon: DaemonHandle, client: towpath.Client
) -> None:
    client.declare("killed.pusher")
    with (
        client.subscribe("killed.pusher") as subscription,
        plain_peer("push", daemon.endpoint("zeromq", "push"), "killed.pusher", 1_000_000) as peer,
    ):
        heard = 0
        while heard < 1_000:
            for message in subscription.receive_many(1_000, timeout=DEADLINE_S) or [subscription.receive(0)]:
                assert message.payload == b"%d" % heard
                heard += 1
        peer.kill()
        while messages := subscription.receive_many(1_000, timeout=0.3):
            for message in messages:
                assert message.payload == b"%d" % heard
                heard += 1


def test_channels_beyond_the_limit_are_refused_until_there_is_a_place(tmp_path: Path) -> None:
    with (
        running_daemon(tmp_path, "[zeromq]\nsub_channels_max = 1\n") as daemon,
        towpath.connect(str(daemon.socket)) as client,
    ):
        names = ["limit.one", "limit.two"]
        for name in names:
            client.declare(name)
        endpoint = daemon.endpoint("zeromq", "sub")
        with contextlib.ExitStack() as waiting:
            with plain_subscriber("sub", endpoint, "limit.two", 1):
                first = waiting.enter_context(plain_subscriber("sub", endpoint, "limit.one", 1))
                assert [subscribers_of(daemon, name) for name in names] == [0, 1]
                assert "limit=sub_channels_max" in daemon.log()
            wait_until(lambda: subscribers_of(daemon, "limit.one") == 1, "the place was not taken")
            client.channel("limit.one").publish(b"x")
            assert [line[2] for line in lines_of(first)] == ["x"]
        wait_until(lambda: counters_of(daemon).get("sub_refused") == 1, "the refusal was not counted")


def test_prefixes_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    with (
        running_daemon(tmp_path, "[zeromq]\nsub_prefixes_max = 1\n") as daemon,
        towpath.connect(str(daemon.socket)) as client,
    ):
        client.declare("few")
        endpoint = daemon.endpoint("zeromq", "sub")
        with (
            plain_subscriber("sub", endpoint, "few", 1) as peer,
            plain_subscriber("sub", endpoint, "more", 1),
        ):
            wait_until(lambda: counters_of(daemon).get("sub_refused") == 1, "nothing was refused")
            client.channel("few").publish(b"x")
            assert [line[2] for line in lines_of(peer)] == ["x"]
        assert "limit=sub_prefixes_max" in daemon.log()


def test_a_stop_ends_calls_with_an_error(tmp_path: Path) -> None:
    with running_daemon(tmp_path, "[zeromq]\n") as daemon, towpath.connect(str(daemon.socket)) as client:
        client.declare("until.stop")
        with dealer(daemon.endpoint("zeromq", "rpc")) as peer:
            peer.send(3, "subscribe_request", channel="until.stop", credit=1)
            assert peer.receive().id == 3
            assert daemon.stop() == 0
            frame = peer.receive()
            assert (frame.id, Code(frame.error.code)) == (3, Code.UNAVAILABLE)
