"""A registry of very many long names can be listed and watched, from everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import towpath
from tests.conformance.clients.carriers import CARRIERS
from tests.support.daemon import DaemonHandle, running_daemon
from towpath_broker.core.limits import Limits
from towpath_broker.local.connection import CALLS_MAX, OUTBOX_BYTES_MAX

COUNT = Limits().channels_per_principal_max
PADDING = "." + "x" * 245
assert COUNT * (260 + len("owner and options")) > OUTBOX_BYTES_MAX, "they fit into one connection's outbox"
NAMES = [f"many{number:05}{PADDING}" for number in range(COUNT)]


async def declare_all(url: str) -> None:
    async with await towpath.aio.connect(url) as client:
        names = iter(NAMES)

        async def declare() -> None:
            for name in names:
                await client.declare(name)

        await asyncio.gather(*(declare() for _ in range(CALLS_MAX)))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("many")) as handle:
        asyncio.run(declare_all(str(handle.socket)))
        yield handle


@pytest.fixture(scope="module")
def urls(daemon: DaemonHandle) -> dict[str, str]:
    return {carrier.name: carrier.url(daemon) for carrier in CARRIERS}


def test_a_prefix_is_listed_alone(client: Any) -> None:
    assert [channel.name for channel in client.channels("many0000")] == NAMES[:10]


def test_all_are_listed_by_name(client: Any) -> None:
    assert [channel.name for channel in client.channels()] == NAMES
    assert len(client.status().channels) == COUNT


def test_a_watch_is_told_all_of_them(client: Any) -> None:
    told = []
    with client.watch() as watch:
        while (event := watch.receive()).kind != "current":
            assert event.kind == "channel_declared"
            told.append(event.channel.name)
    assert sorted(told) == NAMES
