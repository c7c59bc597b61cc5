"""UNIX sockets through the real daemon: the three ways to declare, what status says, and a killed bridge."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import towpath
from tests.bridge.foreign import program
from tests.bridge.test_daemon import COUNT, receive, wait_report
from tests.bridge.unix_rig import TYPES, raw
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath.errors import BindingFailed, InvalidArgument


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon"), LOCAL_ONLY) as handle:
        yield handle


@pytest.fixture
def client(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    with towpath.connect(str(daemon.socket), timeout=DEADLINE_S) as client:
        yield client


@pytest.fixture
def channel(client: towpath.Client) -> Iterator[str]:
    name = f"test.{os.urandom(4).hex()}"
    client.declare(name)
    yield name
    client.undeclare(name, force=True)


def connected(place: Path, kind: str = "stream") -> socket.socket:
    """Connect, and wait for whatever is waited for."""
    end = socket.socket(socket.AF_UNIX, TYPES[kind])
    end.settimeout(DEADLINE_S)
    end.connect(raw(place))
    return end


def run_cli(daemon: DaemonHandle, *arguments: str) -> str:
    command = [sys.executable, "-m", "towpath", *arguments]
    return subprocess.run(
        command, env=daemon.environment, stdout=subprocess.PIPE, text=True, timeout=DEADLINE_S, check=True
    ).stdout


def test_by_the_command_line_and_what_status_says(
    daemon: DaemonHandle, client: towpath.Client, channel: str, place: Path
) -> None:
    options = ("--option", "socket=seqpacket", "--option", "mode=0620", "--option", "peers_max=3")
    run_cli(daemon, "bind", channel, f"unix:{place}", "--direction", "both", *options)
    assert os.lstat(place).st_mode & 0o777 == 0o620
    with client.subscribe(channel) as subscription, client.publisher(channel) as publisher:
        with connected(place, "seqpacket") as end:
            end.send(b"question")
            assert receive(subscription, 1) == [b"question"]
            publisher.publish(b"answer")
            assert end.recv(100) == b"answer"
            wait_until(lambda: shown(daemon, channel)["report"]["messages_out"] == 1, daemon.log)
            told = shown(daemon, channel)
            assert told["options"] == {"mode": "0620", "peers_max": "3", "socket": "seqpacket"}
            assert told["report"]["state"] == "running"
            assert told["report"]["detail"] == f"listening, 1 peer (pid {os.getpid()})"
            assert (told["report"]["messages_in"], told["report"]["bytes_in"]) == (1, 8)
        wait_until(lambda: shown(daemon, channel)["report"]["state"] == "waiting", daemon.log)
    run_cli(daemon, "unbind", channel, f"unix:{place}")
    wait_until(lambda: not os.path.lexists(place), daemon.log)


def shown(daemon: DaemonHandle, channel: str) -> dict[str, dict[str, object]]:
    """What ``towpath status --json`` says of the channel's binding."""
    bindings = json.loads(run_cli(daemon, "status", "--json"))["bindings"]
    [found] = [each for each in bindings if each["channel"] == channel]
    return found  # type: ignore[no-any-return]


def test_by_configuration(tmp_path: Path, place: Path) -> None:
    config = f"""{LOCAL_ONLY}
[channels."configured"]
[[bindings]]
channel = "configured"
url = "unix:{place}"
direction = "in"
socket = "dgram"
mode = "0622"
packet_bytes_max = 1024
"""
    with (
        running_daemon(tmp_path, config) as daemon,
        towpath.connect(str(daemon.socket), timeout=DEADLINE_S) as client,
        client.subscribe("configured") as subscription,
    ):
        [binding] = client.bindings("configured")
        wait_report(daemon, binding.id, lambda report: report.state == "running")
        with connected(place, "dgram") as end:
            end.send(b"x" * 1025)
            end.send(b"x" * 1024)
            assert receive(subscription, 1) == [b"x" * 1024]
        report = wait_report(daemon, binding.id, lambda report: report.refused == 1)
        assert report.last_error is not None and "1024 are allowed" in report.last_error.message
    assert not os.path.lexists(place)


@pytest.mark.parametrize("kind", ["stream", "seqpacket"])
def test_of_a_queue_all_is_handed_over_though_the_bridge_is_killed(
    daemon: DaemonHandle, client: towpath.Client, place: Path, kind: str
) -> None:
    """A message is acknowledged after it was handed over: some may come twice, and none is missing."""
    name = f"test.{os.urandom(4).hex()}"
    client.declare(name, kind="queue")
    try:
        client.bind(name, f"unix:{place}", direction="out", options={"socket": kind})
        with client.publisher(name) as publisher:
            publisher.publish_many([b"%d" % number for number in range(COUNT)])
        seen: set[int] = set()
        bridge = daemon.gateway("bridge").pid
        has_killed = False
        while len(seen) < COUNT:
            with connected(place, kind) as end:
                buffer = b""
                while len(seen) < COUNT and (data := end.recv(1 << 16)):
                    buffer += data if kind == "stream" else data + b"\n"
                    *lines, buffer = buffer.split(b"\n")
                    seen.update(map(int, lines))
                    if not has_killed and len(seen) > COUNT // 4:
                        os.kill(bridge, signal.SIGKILL)
                        has_killed = True
        daemon.wait_gateway("bridge", but_not=bridge)
        assert seen == set(range(COUNT))
    finally:
        client.undeclare(name, force=True)


def test_who_connects_while_the_bridge_is_dead_waits_and_loses_nothing(
    daemon: DaemonHandle, client: towpath.Client, channel: str, place: Path
) -> None:
    with client.subscribe(channel) as subscription:
        client.bind(channel, f"unix:{place}", direction="in")
        for _ in range(2):
            killed = daemon.gateway("bridge").pid
            os.kill(killed, signal.SIGSTOP)
            os.kill(killed, signal.SIGKILL)
            sender = subprocess.Popen(
                [program("unix_peer"), "stream", "connect", "send", str(place), str(COUNT)]
            )
            got = [int(payload) for payload in receive(subscription, COUNT)]
            assert got == list(range(COUNT)) and sender.wait(DEADLINE_S) == 0
            daemon.wait_gateway("bridge", but_not=killed)


def test_what_cannot_be_is_refused_with_its_reason(
    client: towpath.Client, channel: str, place: Path, tmp_path: Path
) -> None:
    precious = tmp_path / "x"
    precious.write_text("precious")
    with pytest.raises(InvalidArgument, match="options are not part of a URL"):
        client.bind(channel, f"unix:{place}?socket=dgram", direction="in")
    with pytest.raises(InvalidArgument, match="carries in only"):
        client.bind(channel, f"unix:{place}", direction="out", options={"socket": "dgram"})
    with pytest.raises(BindingFailed, match="nobody owns it"):
        client.bind(channel, "unix:@towpath-test", direction="in", options={"owner": "0"})
    os.link(precious, place)
    with pytest.raises(BindingFailed, match="is not a socket"):
        client.bind(channel, f"unix:{place}", direction="in")
    assert client.bindings(channel) == [] and precious.read_text() == "precious"
