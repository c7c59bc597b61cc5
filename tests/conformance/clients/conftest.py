"""A daemon for the folder, and for each test a client of either kind over each carrier."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import towpath
from tests.conformance.clients.carriers import CARRIERS, SHELLS, Carrier
from tests.support.blocking import BlockingClient
from tests.support.daemon import DaemonHandle, running_daemon
from tests.support.deadlines import DEADLINE_S

Connect = Callable[[], Any]

CLOSED, LENT = "closed", "lent"
"""Below these names are locks that only administrators may take and see, and such that everybody may take
away."""
CONFIG = f"""
[lock_permissions.{CLOSED}]
take = []
see = []
[lock_permissions.{LENT}]
force_release = ["uid:*", "grpc:*", "zeromq:anonymous"]
"""

HERE = Path(__file__).parent

_numbers = itertools.count(1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """No carrier may leave a case out: one that is skipped has failed."""
    report = yield
    if report.skipped and item.path.is_relative_to(HERE):
        report.outcome = "failed"
        report.longrepr = f"a case of the conformance suite was skipped: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("conformance"), CONFIG) as handle:
        yield handle


@pytest.fixture(scope="session")
def urls(daemon: DaemonHandle) -> dict[str, str]:
    """Where each carrier finds the daemon."""
    return {carrier.name: carrier.url(daemon) for carrier in CARRIERS}


@pytest.fixture(params=CARRIERS, ids=lambda carrier: carrier.name)
def carrier(request: pytest.FixtureRequest) -> Carrier:
    found: Carrier = request.param
    return found


@pytest.fixture(params=SHELLS)
def connect(request: pytest.FixtureRequest, carrier: Carrier, urls: dict[str, str]) -> Iterator[Connect]:
    """Makes clients of one kind; they are closed after the test."""
    make = towpath.connect if request.param == "sync" else BlockingClient
    with ExitStack() as stack:
        yield lambda: stack.enter_context(make(urls[carrier.name], timeout=DEADLINE_S))


@pytest.fixture
def client(connect: Connect) -> Any:
    return connect()


@pytest.fixture
def name() -> str:
    """A channel's name that no other test uses."""
    return f"test.channel{next(_numbers)}"
