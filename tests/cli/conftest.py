"""One daemon for the tests of the command line that need one."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import towpath as library
from tests.cli.shell import Start, command, environment
from tests.support.daemon import DaemonHandle, running_daemon


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    """The running daemon."""
    with running_daemon(tmp_path_factory.mktemp("daemon")) as service:
        yield service


@pytest.fixture(scope="session")
def daemon(service: DaemonHandle) -> Path:
    """The running daemon's socket."""
    return service.socket


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
