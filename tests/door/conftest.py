"""A daemon for each module, which may say how it is configured."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon


@pytest.fixture(scope="module")
def config() -> str:
    return LOCAL_ONLY


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, config: str) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon"), config) as handle:
        yield handle
