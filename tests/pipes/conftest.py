"""A daemon for the folder, a client for each test, and a look at the pumps that run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import towpath
from tests.support.daemon import DaemonHandle, running_daemon

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon")) as handle:
        yield handle


@pytest.fixture
def client(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    with towpath.connect(str(daemon.socket)) as made:
        yield made


@pytest.fixture
def name() -> str:
    """A channel's name that no other test uses."""
    return f"pipes.channel{next(_numbers)}"


@pytest.fixture
def pumps(daemon: DaemonHandle) -> Callable[[], list[int]]:
    """Gives the processes that carry between pipes and this daemon's channels."""

    def look() -> list[int]:
        found = []
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = line.read_bytes().decode(errors="replace")
            except OSError:
                continue  # it has ended
            if "towpath.pipes.pump" in text and str(daemon.socket) in text:
                found.append(int(line.parent.name))
        return found

    return look
