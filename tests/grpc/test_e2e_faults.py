"""What goes wrong around the gateway: hostile bytes, its own death, its stop, the daemon's absence."""

from __future__ import annotations

import contextlib
import queue
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2

import towpath
from tests.grpc.helpers import (
    StartPeer,
    code_of,
    error_of,
    finish,
    gateway_of,
    health_of,
    line,
    wait_until,
)
from tests.grpc.peer import payload
from tests.support.daemon import DaemonHandle, running_daemon
from tests.support.deadlines import DEADLINE_S
from towpath.v1 import channels_pb2, channels_pb2_grpc, error_pb2, registry_pb2, registry_pb2_grpc

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# What each of the garbage clients sends; some say nothing, some stop in the middle.
GARBAGE = [
    b"",
    b"\0" * 1000,
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    PREFACE,
    PREFACE[:10],
    PREFACE + b"\0\0\0\4\0\0\0\0\0" + b"\xff" * 5000,
    PREFACE + b"\xff\xff\xff\4\0\0\0\0\0",
    PREFACE + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\5\1\5\0\0\0\1hello",
    bytes(range(256)) * 40,
]


def test_a_hundred_garbage_clients_disturb_no_one(
    client: towpath.Client, endpoint: str, channel: str, start_peer: StartPeer
) -> None:
    host, _, port = endpoint.rpartition(":")
    pid = gateway_of(client).pid
    peer = start_peer("subscribe", endpoint, channel, 2_000)
    assert line(peer) == "subscribed"
    sockets = []
    with client.publisher(channel) as publisher:
        for number in range(2_000):
            if number % 20 == 0:
                garbage = socket.create_connection((host, int(port)), DEADLINE_S)
                sockets.append(garbage)
                # It may have been closed on us already, which is as good an answer as any.
                with contextlib.suppress(ConnectionError):
                    garbage.sendall(GARBAGE[len(sockets) % len(GARBAGE)])
            publisher.publish(payload(number), timeout=DEADLINE_S)
        finish(peer)
    assert len(sockets) == 100
    for garbage in sockets:
        garbage.close()
    assert gateway_of(client).pid == pid
    assert gateway_of(client).restarts == 0


def test_a_killed_gateway_is_started_again_and_leaves_nothing_behind(
    daemon: DaemonHandle, client: towpath.Client, remote: grpc.Channel, channel: str
) -> None:
    call = channels_pb2_grpc.ChannelsStub(remote).Subscribe(
        iter([channels_pb2.SubscribeRequest(channel=channel)]), timeout=DEADLINE_S
    )
    next(call)
    before = gateway_of(client)
    daemon.kill_gateway("grpc")
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert code_of(caught.value) is grpc.StatusCode.UNAVAILABLE
    wait_until(lambda: client.channel_info(channel).subscribers == 0, "its subscription released")
    # The log says it first; the status follows.
    wait_until(
        lambda: gateway_of(client).state == "running" and gateway_of(client).pid != before.pid,
        "running again",
    )
    assert gateway_of(client).restarts == before.restarts + 1
    with (
        grpc.insecure_channel(daemon.endpoint("grpc", "listen")) as again,
        client.subscribe(channel) as subscription,
    ):
        channels_pb2_grpc.ChannelsStub(again).Publish(
            channels_pb2.PublishRequest(channel=channel, payloads=[b"back"])
        )
        assert subscription.receive(DEADLINE_S).payload == b"back"


def test_streams_outlive_the_core(
    daemon: DaemonHandle, client: towpath.Client, remote: grpc.Channel, channel: str
) -> None:
    stub = channels_pb2_grpc.ChannelsStub(remote)
    subscribing = stub.Subscribe(iter([channels_pb2.SubscribeRequest(channel=channel)]), timeout=DEADLINE_S)
    next(subscribing)
    requests: queue.SimpleQueue[channels_pb2.PublishStreamRequest | None] = queue.SimpleQueue()
    publishing = stub.PublishStream(iter(requests.get, None), timeout=DEADLINE_S)
    watching = registry_pb2_grpc.RegistryStub(remote).Watch(registry_pb2.WatchRequest(), timeout=DEADLINE_S)
    next(watching)
    received: list[bytes] = []
    for number in range(3):
        if number:
            daemon.kill_core()
        request = channels_pb2.PublishStreamRequest(channel=channel, payloads=[payload(number)])
        requests.put(request)
        assert next(publishing).first_seq == number + 1
        batch = next(subscribing).batch
        assert batch.first_seq == number + 1
        received.extend(batch.payloads)
    requests.put(None)
    assert list(publishing) == []
    assert received == [payload(number) for number in range(3)]
    subscribing.cancel()
    # What a watch was told belongs to one run of the core, so it ends and says so.
    with pytest.raises(grpc.RpcError) as caught:
        list(watching)
    assert error_of(caught.value).code == error_pb2.ERROR_CODE_CONNECTION_LOST


def gateway_command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "towpath_broker.gateways.grpc", *flags]


@contextlib.contextmanager
def by_hand(
    daemon_socket: str | Path, *flags: str, listen: str = "127.0.0.1:0"
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A gateway that nobody watches: its process, and where it says that it listens."""
    process = subprocess.Popen(
        gateway_command("--socket", str(daemon_socket), "--listen", listen, *flags),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for row in process.stderr:
            found = re.search(r'gateway\.listening .*listen=([^"\s]+)', row)
            if found:
                yield process, found[1]
                break
        else:
            raise AssertionError("it never listened")
    finally:
        process.kill()
        process.communicate()


def test_sigterm_ends_streams_and_the_process_in_order(client: towpath.Client, channel: str) -> None:
    with (
        by_hand(client.status().socket) as (process, endpoint),
        grpc.insecure_channel(endpoint) as remote,
    ):
        stub = channels_pb2_grpc.ChannelsStub(remote)
        call = stub.Subscribe(iter([channels_pb2.SubscribeRequest(channel=channel)]), timeout=DEADLINE_S)
        next(call)
        watch = health_of(remote).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert code_of(caught.value) is grpc.StatusCode.UNAVAILABLE
        assert error_of(caught.value).code == error_pb2.ERROR_CODE_UNAVAILABLE
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert process.wait(5) == 0
    wait_until(lambda: client.channel_info(channel).subscribers == 0, "its subscription released")


def test_a_unix_socket_is_for_its_owner_alone(client: towpath.Client, channel: str, tmp_path: Path) -> None:
    path = tmp_path / "grpc.sock"
    with by_hand(client.status().socket, listen=f"unix:{path}") as (_, endpoint):
        assert endpoint == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o600
        with grpc.insecure_channel(endpoint) as remote, client.subscribe(channel) as subscription:
            channels_pb2_grpc.ChannelsStub(remote).Publish(
                channels_pb2.PublishRequest(channel=channel, payloads=[b"local"])
            )
            assert subscription.receive(DEADLINE_S).payload == b"local"


def refusal(*flags: str) -> tuple[int, str]:
    """Run a gateway that cannot start; return its exit status and what it says."""
    run = subprocess.run(
        gateway_command(*flags), stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S, check=False
    )
    assert "Traceback" not in run.stderr
    return run.returncode, run.stderr


def test_a_place_in_use_is_said_so_and_left_alone(
    client: towpath.Client, endpoint: str, tmp_path: Path
) -> None:
    daemon_socket = client.status().socket
    status, words = refusal("--socket", daemon_socket, "--listen", endpoint)
    assert (status, endpoint in words) == (69, True)
    path = tmp_path / "grpc.sock"
    with by_hand(daemon_socket, listen=f"unix:{path}") as (_, taken):
        status, words = refusal("--socket", daemon_socket, "--listen", taken)
        assert (status, taken in words) == (69, True)
        with grpc.insecure_channel(taken) as remote:
            answer = health_of(remote).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
    # Its owner was killed; the socket that is left is in nobody's way.
    with by_hand(daemon_socket, listen=f"unix:{path}"):
        pass
    path.unlink()
    path.write_text("a file")
    status, words = refusal("--socket", daemon_socket, "--listen", f"unix:{path}")
    assert (status, str(path) in words) == (69, True)
    assert path.read_text() == "a file"


def test_an_address_that_others_reach_is_never_tried_again() -> None:
    status, words = refusal("--listen", "0.0.0.0:0")
    assert (status, "127.0.0.1" in words) == (78, True)


def test_a_peer_that_hangs_is_let_go(client: towpath.Client, channel: str, start_peer: StartPeer) -> None:
    flags = ("--keepalive-ms", "1000", "--keepalive-timeout-ms", "200")
    with by_hand(client.status().socket, *flags) as (_, endpoint):
        peer = start_peer("subscribe", endpoint, channel, 1)
        assert line(peer) == "subscribed"
        # A stopped process keeps its connection; only that it answers no ping tells that it is not there.
        peer.send_signal(signal.SIGSTOP)
        wait_until(lambda: client.channel_info(channel).subscribers == 0, "its subscription released")


def test_calls_above_the_bound_are_refused(client: towpath.Client, channel: str) -> None:
    with (
        by_hand(client.status().socket, "--calls-max", "2") as (_, endpoint),
        grpc.insecure_channel(endpoint) as remote,
    ):
        stub = channels_pb2_grpc.ChannelsStub(remote)

        def subscribe() -> Iterator[channels_pb2.SubscribeResponse]:
            request = channels_pb2.SubscribeRequest(channel=channel)
            call = stub.Subscribe(iter([request]), timeout=DEADLINE_S)
            assert next(call).subscribed.channel == channel
            return call

        first, _second = subscribe(), subscribe()
        with pytest.raises(grpc.RpcError) as caught:
            subscribe()
        assert code_of(caught.value) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert isinstance(first, grpc.Call)
        first.cancel()
        wait_until(lambda: client.channel_info(channel).subscribers == 1, "the first released")
        subscribe()


def test_connections_above_the_bound_are_closed(client: towpath.Client) -> None:
    with contextlib.ExitStack() as stack:
        _, endpoint = stack.enter_context(by_hand(client.status().socket, "--connections-max", "3"))
        host, _, port = endpoint.rpartition(":")
        idle = [
            stack.enter_context(socket.create_connection((host, int(port)), DEADLINE_S)) for _ in range(3)
        ]
        for each in idle:
            each.sendall(PREFACE + b"\0\0\0\4\0\0\0\0\0")
            assert each.recv(1)
        surplus = stack.enter_context(socket.create_connection((host, int(port)), DEADLINE_S))
        # It ends without a byte; whether by FIN or RST depends on what was read of it.
        with contextlib.suppress(ConnectionResetError):
            assert surplus.recv(1) == b""
        idle[0].close()
        remote = stack.enter_context(grpc.insecure_channel(endpoint))
        request = health_pb2.HealthCheckRequest()
        answer = health_of(remote).Check(request, timeout=DEADLINE_S, wait_for_ready=True)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_says_not_serving_while_the_daemon_is_away(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(running_daemon(tmp_path, "[grpc]\n"))
        _, endpoint = stack.enter_context(by_hand(daemon.socket))
        remote = stack.enter_context(grpc.insecure_channel(endpoint))
        watch = health_of(remote).Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        daemon.stop()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
