"""Every command that an advice prints is run, as it stands, with a daemon; and what is sent arrives.

What is changed before: /tmp, the ports, the names of message queues, so that runs do not meet; and which
Python.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import towpath
from tests.support.daemon import DEADLINE_S, DaemonHandle, running_daemon, wait_until
from towpath.advise.model import MECHANISMS, Requirements
from towpath.advise.recipes import CHANNEL, REPLIES, Line, recipe

SENT = "1\n2\n3\n"
ANSWER = "done: order 1"
DURABLE = [name for name, each in MECHANISMS.items() if each.is_durable]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon")) as running:
        yield running


class Reader:
    """Somebody who carries out an advice."""

    def __init__(self, daemon: DaemonHandle, place: Path) -> None:
        self.daemon = daemon
        self._changes = {
            "/tmp/": f"{place}/",
            "/orders-": f"/orders-{os.getpid()}-",
            "python3 ": f"{sys.executable} ",
            "127.0.0.1:5558": daemon.endpoint("zeromq", "rpc").removeprefix("tcp://"),
            "127.0.0.1:50551": daemon.endpoint("grpc", "listen"),
        }
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        self._environment = {**daemon.environment, "PATH": path}

    def start(self, command: str) -> subprocess.Popen[str]:
        for old, new in self._changes.items():
            command = command.replace(old, new)
        return subprocess.Popen(
            ["bash", "-euc", command],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: str) -> str:
        process = self.start(command)
        output, _ = process.communicate(timeout=2 * DEADLINE_S)
        assert process.returncode == 0, f"{command}\n{output}"
        return output


class Receiver:
    """What a receiver prints."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._lines.extend(iter(self._process.stdout.readline, ""))

    def text(self) -> str:
        return "".join(self._lines)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(DEADLINE_S)
        self._thread.join(DEADLINE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()


def commands(lines: list[Line], role: str) -> list[str]:
    return [line.command for line in lines if line.role == role]


def carry_out(lines: list[Line], daemon: DaemonHandle, place: Path, *, is_asked: bool) -> None:
    """Do all that it says, and have the sender's messages reach the receiver."""
    reader = Reader(daemon, place)
    with towpath.connect(str(daemon.socket)) as client:
        receiver: Receiver | None = None
        try:
            for command in commands(lines, "once"):
                reader.run(command)
            if not commands(lines, "receiver"):
                return
            (receive,), (send,) = commands(lines, "receiver"), commands(lines, "sender")
            is_binding = client.channel_info(CHANNEL).bindings > 0
            receiver = Receiver(reader.start(receive))
            if not is_binding:
                wait_until(lambda: is_joined(client), receiver.text)
            sent = reader.run(send)
            if is_asked:
                assert ANSWER in sent
            else:
                wait_until(partial(has_printed, receiver, SENT), receiver.text)
        finally:
            if receiver is not None:
                receiver.end()
            for channel in (CHANNEL, REPLIES):
                with contextlib.suppress(towpath.ChannelNotFound):
                    client.undeclare(channel, force=True)


def has_printed(receiver: Receiver, text: str) -> bool:
    return receiver.text() == text


def is_joined(client: towpath.Client) -> bool:
    """Whether the receiver has come; a server of a service counts as a subscriber."""
    return client.channel_info(CHANNEL).subscribers > 0


@pytest.mark.parametrize("name", [name for name in MECHANISMS if name != "zmq-ipc"])
def test_a_plain_conversation(daemon: DaemonHandle, tmp_path: Path, name: str) -> None:
    lines = recipe(name, Requirements())
    assert commands(lines, "daemon") == ["towpath serve"]
    carry_out(lines, daemon, tmp_path, is_asked=False)


def test_large_messages(daemon: DaemonHandle, tmp_path: Path) -> None:
    lines = recipe("ring", Requirements(size_bytes=1_000_000))
    assert commands(lines, "once") == ["towpath declare orders --ring-bytes 4M"]
    carry_out(lines, daemon, tmp_path, is_asked=False)


@pytest.mark.parametrize("name", DURABLE)
def test_a_durable_conversation(daemon: DaemonHandle, tmp_path: Path, name: str) -> None:
    carry_out(recipe(name, Requirements(is_durable=True)), daemon, tmp_path, is_asked=False)


@pytest.mark.parametrize("name", [name for name in MECHANISMS if name != "zmq-ipc"])
def test_questions_and_answers(daemon: DaemonHandle, tmp_path: Path, name: str) -> None:
    carry_out(recipe(name, Requirements(is_sync=True)), daemon, tmp_path, is_asked=True)


@pytest.mark.parametrize("name", DURABLE)
def test_durable_questions_and_answers(daemon: DaemonHandle, tmp_path: Path, name: str) -> None:
    lines = recipe(name, Requirements(is_sync=True, is_durable=True))
    carry_out(lines, daemon, tmp_path, is_asked=True)


def test_zeromq_over_ipc_with_a_daemon_that_listens_there(tmp_path: Path) -> None:
    lines = recipe("zmq-ipc", Requirements())
    (serve,) = commands(lines, "daemon")
    words = serve.replace("/tmp/", f"{tmp_path}/").split()
    assert words[:2] == ["towpath", "serve"]
    config = '[zeromq]\nrpc = "tcp://127.0.0.1:0"\n[grpc]\nlisten = "127.0.0.1:0"\n'
    config = config.replace("[zeromq]", '[zeromq]\nsub = "tcp://127.0.0.1:0"\npush = "tcp://127.0.0.1:0"')
    (tmp_path / "daemon").mkdir()
    with running_daemon(tmp_path / "daemon", config, arguments=tuple(words[2:])) as daemon:
        carry_out(lines, daemon, tmp_path, is_asked=False)
