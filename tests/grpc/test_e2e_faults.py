"""What goes wrong around the gateway: hostile bytes, its own death, its stop, the daemon's absence."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.support.daemon import running_daemon

import towpath
from tests.grpc.helpers import DEADLINE_S, StartPeer, error_of, finish, gateway_of, line, wait_until
from tests.grpc.peer import payload
from towpath.v1 import channels_pb2, channels_pb2_grpc, error_pb2

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
    client: towpath.Client, remote: grpc.Channel, channel: str
) -> None:
    call = channels_pb2_grpc.ChannelsStub(remote).Subscribe(
        iter([channels_pb2.SubscribeRequest(channel=channel)]), timeout=DEADLINE_S
    )
    next(call)
    before = gateway_of(client)
    os.kill(before.pid, signal.SIGKILL)
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    wait_until(lambda: client.channel_info(channel).subscribers == 0, "its subscription released")
    wait_until(
        lambda: gateway_of(client).state == "running" and gateway_of(client).pid != before.pid, "restarted"
    )
    assert gateway_of(client).restarts == before.restarts + 1
    with (
        grpc.insecure_channel(gateway_of(client).endpoints["listen"]) as again,
        client.subscribe(channel) as subscription,
    ):
        channels_pb2_grpc.ChannelsStub(again).Publish(
            channels_pb2.PublishRequest(channel=channel, payloads=[b"back"])
        )
        assert subscription.receive(DEADLINE_S).payload == b"back"


def gateway_command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "towpath_broker.gateways.grpc", *flags]


@contextlib.contextmanager
def by_hand(socket_path: Path, listen: str = "127.0.0.1:0") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A gateway that nobody watches: its process, and where it says that it listens."""
    process = subprocess.Popen(
        gateway_command("--socket", str(socket_path), "--listen", listen), stderr=subprocess.PIPE, text=True
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
        by_hand(Path(client.status().socket)) as (process, endpoint),
        grpc.insecure_channel(endpoint) as remote,
    ):
        stub = channels_pb2_grpc.ChannelsStub(remote)
        call = stub.Subscribe(iter([channels_pb2.SubscribeRequest(channel=channel)]), timeout=DEADLINE_S)
        next(call)
        watch = health_pb2_grpc.HealthStub(remote).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert error_of(caught.value).code == error_pb2.ERROR_CODE_UNAVAILABLE
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert process.wait(5) == 0
    wait_until(lambda: client.channel_info(channel).subscribers == 0, "its subscription released")


def test_a_unix_socket_is_for_its_owner_alone(client: towpath.Client, channel: str, tmp_path: Path) -> None:
    path = tmp_path / "grpc.sock"
    with by_hand(Path(client.status().socket), f"unix:{path}") as (_, endpoint):
        assert endpoint == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o600
        with grpc.insecure_channel(endpoint) as remote, client.subscribe(channel) as subscription:
            channels_pb2_grpc.ChannelsStub(remote).Publish(
                channels_pb2.PublishRequest(channel=channel, payloads=[b"local"])
            )
            assert subscription.receive(DEADLINE_S).payload == b"local"


def test_a_port_in_use_is_said_so(client: towpath.Client, endpoint: str) -> None:
    run = subprocess.run(
        gateway_command("--socket", client.status().socket, "--listen", endpoint),
        stderr=subprocess.PIPE,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert run.returncode == 69
    assert endpoint in run.stderr
    assert "Traceback" not in run.stderr


def test_an_address_that_others_reach_is_never_tried_again() -> None:
    run = subprocess.run(
        gateway_command("--listen", "0.0.0.0:0"),
        stderr=subprocess.PIPE,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert run.returncode == 78
    assert "127.0.0.1" in run.stderr
    assert "Traceback" not in run.stderr


def test_health_says_not_serving_while_the_daemon_is_away(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        daemon = stack.enter_context(running_daemon(tmp_path, "[grpc]\nlisten = '127.0.0.1:0'\n"))
        _, endpoint = stack.enter_context(by_hand(Path(daemon.socket)))
        remote = stack.enter_context(grpc.insecure_channel(endpoint))
        watch = health_pb2_grpc.HealthStub(remote).Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        daemon.stop()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
