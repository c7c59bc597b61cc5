"""A daemon for the folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.daemon import DaemonHandle, running_daemon


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon")) as handle:
        yield handle
