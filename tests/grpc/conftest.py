"""One real daemon with its grpc gateway for a whole module; each test has channels of its own."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

import towpath
from tests.support.daemon import DaemonHandle, running_daemon

PEER = Path(__file__).with_name("peer.py")

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon"), "[grpc]\n") as running:
        yield running
        assert "grpc.call_failed" not in running.log(), "a call met a bug"


@pytest.fixture
def client(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    """A local program's connection."""
    with towpath.connect(str(daemon.socket)) as connected:
        yield connected


@pytest.fixture
def endpoint(daemon: DaemonHandle) -> str:
    """Where the gateway listens now."""
    return daemon.endpoint("grpc", "listen")


@pytest.fixture
def remote(endpoint: str) -> Iterator[grpc.Channel]:
    """A remote program's connection."""
    with grpc.insecure_channel(endpoint) as connection:
        yield connection


@pytest.fixture
def channel(client: towpath.Client) -> str:
    """A channel that nobody else uses."""
    return client.declare(f"test.c{next(_numbers)}").name


@pytest.fixture
def start_peer() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``peer.py``; what still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(mode: str, endpoint: str, channel: str, count: int) -> subprocess.Popen[str]:
        command = [sys.executable, str(PEER), mode, endpoint, channel, str(count)]
        environment = {**os.environ, "GRPC_VERBOSITY": "NONE"}
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
