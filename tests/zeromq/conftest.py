"""One daemon with the zeromq gateway for all tests of a file; each test uses channels of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import towpath
from tests.support.daemon import DaemonHandle, running_daemon


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    """A daemon whose only network gateway is zeromq, on free ports."""
    with running_daemon(tmp_path_factory.mktemp("daemon"), "[zeromq]\n") as handle:
        yield handle


@pytest.fixture
def client(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    """A local client of it."""
    with towpath.connect(str(daemon.socket)) as connected:
        yield connected
