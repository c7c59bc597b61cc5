"""One daemon for the tests of the command line that need one."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import towpath as library
from tests.cli.shell import TIMEOUT_S, Start, command, environment, towpath

FREE_PORTS = (
    "zeromq.sub=tcp://127.0.0.1:0",
    "zeromq.push=tcp://127.0.0.1:0",
    "zeromq.rpc=tcp://127.0.0.1:0",
    "grpc.listen=127.0.0.1:0",
)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running daemon, by its socket."""
    folder = tmp_path_factory.mktemp("daemon")
    socket = folder / "run" / "towpath.sock"
    words = ["serve", "--runtime-dir", str(socket.parent), "--state-dir", str(folder / "state")]
    words += [word for endpoint in FREE_PORTS for word in ("--set", endpoint)]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(
            command(*words), env=environment(None), stdin=subprocess.DEVNULL, stderr=log
        ) as process,
    ):
        try:
            deadline = time.monotonic() + TIMEOUT_S
            while b'"running"' not in towpath("status", "--json", env=environment(socket)).stdout:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            yield socket
        finally:
            process.terminate()
            process.wait(TIMEOUT_S)


@pytest.fixture
def client(daemon: Path) -> Iterator[library.Client]:
    """A client of the daemon, in the test's own process."""
    with library.connect(f"unix:{daemon}") as client:
        yield client


@pytest.fixture
def env(daemon: Path) -> dict[str, str]:
    """The environment of a command that finds the daemon."""
    return environment(daemon)


@pytest.fixture
def channel(client: library.Client, request: pytest.FixtureRequest) -> str:
    """A channel that no other test has."""
    name = "t." + "".join(letter if letter.isalnum() else "_" for letter in request.node.name)[:80]
    client.declare(name)
    return name


@pytest.fixture
def start(env: dict[str, str]) -> Iterator[Start]:
    """Start ``towpath`` in the background; whatever is still there at the end is killed."""
    with contextlib.ExitStack() as stack:

        def start(
            *arguments: str,
            stdin: int = subprocess.DEVNULL,
            stdout: int = subprocess.PIPE,
            stderr: int = subprocess.PIPE,
        ) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                command(*arguments), env=env, stdin=stdin, stdout=stdout, stderr=stderr
            )
            stack.callback(_end, process)
            return process

        yield start


def _end(process: subprocess.Popen[bytes]) -> None:
    with process:  # closes its pipes and waits
        process.kill()
