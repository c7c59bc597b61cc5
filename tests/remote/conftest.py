"""A daemon whose gateways listen at paths, so that they are found again after a restart, and remote
clients of either kind over each carrier.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import towpath
from tests.remote.relay import Relay
from tests.support.blocking import BlockingClient
from tests.support.daemon import DaemonHandle, running_daemon
from tests.support.deadlines import DEADLINE_S

Connect = Callable[..., Any]

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def sockets() -> Iterator[Path]:
    """A directory with a short name."""
    directory = Path(tempfile.mkdtemp(prefix="towpath-remote-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, sockets: Path) -> Iterator[DaemonHandle]:
    config = f"""
        [grpc]
        listen = "unix:{sockets}/grpc"
        [zeromq]
        rpc = "ipc://{sockets}/zmq"
    """
    with running_daemon(tmp_path_factory.mktemp("remote"), config) as handle:
        yield handle


@pytest.fixture(params=["grpc", "zmq"])
def carrier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def relay(carrier: str, daemon: DaemonHandle, sockets: Path) -> Iterator[Relay]:
    """Between the remote clients of a test and the gateway."""
    with Relay(sockets / f"relay-{next(_numbers)}", sockets / carrier) as relay:
        yield relay


@pytest.fixture(params=["sync", "aio"])
def connect(request: pytest.FixtureRequest, carrier: str, relay: Relay) -> Iterator[Connect]:
    """Makes remote clients of one kind, which reach the gateway through the relay."""
    make = towpath.connect if request.param == "sync" else BlockingClient
    scheme = {"grpc": "grpc+unix", "zmq": "zmq+ipc"}[carrier]
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(
            make(f"{scheme}://{relay.path}", **{"timeout": DEADLINE_S, **options})
        )


@pytest.fixture
def client(connect: Connect) -> Any:
    return connect()


@pytest.fixture
def local(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    """A client on the daemon's own host."""
    with towpath.connect(str(daemon.socket)) as connected:
        yield connected


@pytest.fixture
def name(local: towpath.Client) -> str:
    """A channel of this test's own."""
    channel = f"remote.channel{next(_numbers)}"
    local.declare(channel)
    return channel
