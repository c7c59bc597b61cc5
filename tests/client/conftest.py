"""A daemon for the folder, and a client of either kind for each test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import towpath
from tests.support.blocking import BlockingClient
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon
from tests.support.deadlines import DEADLINE_S

Connect = Callable[[], Any]

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon"), LOCAL_ONLY) as handle:
        yield handle


@pytest.fixture(params=["sync", "aio"])
def connect(request: pytest.FixtureRequest, daemon: DaemonHandle) -> Iterator[Connect]:
    """Makes clients of one kind; they are closed after the test."""
    make = towpath.connect if request.param == "sync" else BlockingClient
    with ExitStack() as stack:
        yield lambda: stack.enter_context(make(str(daemon.socket), timeout=DEADLINE_S))


@pytest.fixture
def client(connect: Connect) -> Any:
    return connect()


@pytest.fixture
def name() -> str:
    """A channel's name that no other test uses."""
    return f"test.channel{next(_numbers)}"
