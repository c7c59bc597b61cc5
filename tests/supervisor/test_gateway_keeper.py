"""One gateway kept running: its states, its connections, its end. The processes are real, what they do is
not."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.deadlines import DEADLINE_S
from towpath_broker import gateway_keeper
from towpath_broker.gateway_keeper import GatewayKeeper
from towpath_broker.host.children import STABLE_S, Backoff

STAND_INS = Path(__file__).parent / "stand_ins"


class Watched:
    """A keeper, and what it told of itself."""

    def __init__(self, table: dict[str, Any], missing: str) -> None:
        self.changed = asyncio.Event()
        self.seen: list[str] = []
        self.connections: list[tuple[str, int, int]] = []
        self.keeper = GatewayKeeper(
            "zeromq",
            table,
            module="stand_in_gateway",
            missing=missing,
            socket_address="/nowhere",
            on_change=self._note,
            on_connection=lambda name, pid, descriptor: self.connections.append((name, pid, descriptor)),
        )

    def _note(self) -> None:
        self.seen.append(self.keeper.state)
        self.changed.set()

    async def until(self, condition: Callable[[GatewayKeeper], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition(self.keeper):
                self.changed.clear()
                await self.changed.wait()


@contextlib.asynccontextmanager
async def kept(table: dict[str, Any], *, missing: str = "") -> AsyncIterator[Watched]:
    watched = Watched(table, missing)
    running = asyncio.ensure_future(watched.keeper.run())
    try:
        yield watched
    finally:
        await watched.keeper.stop()
        async with asyncio.timeout(DEADLINE_S):
            await running


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(STAND_INS))


def test_it_runs_once_it_says_where_it_listens() -> None:
    async def scenario() -> None:
        async with kept({"detail": "fine"}) as watched:
            await watched.until(lambda keeper: keeper.state == "running")
            view = watched.keeper.view()
            assert view["endpoints"] == {"in": "here"}
            assert view["detail"] == "fine"
            assert view["restarts"] == 0
            os.kill(view["pid"], 0)
            pid = view["pid"]
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(scenario())


def test_killed_it_is_started_again() -> None:
    async def scenario() -> None:
        async with kept({}) as watched:
            await watched.until(lambda keeper: keeper.state == "running")
            first = watched.keeper.pid
            os.kill(first, signal.SIGKILL)
            await watched.until(lambda keeper: keeper.state == "backing_off")
            assert watched.keeper.detail == "killed by SIGKILL, again in 0.1 s"
            await watched.until(lambda keeper: keeper.state == "running" and keeper.pid != first)
            assert watched.keeper.restarts == 1

    asyncio.run(scenario())


def test_78_is_not_started_again_until_it_is_reconfigured() -> None:
    async def scenario() -> None:
        async with kept({"exit": 78}) as watched:
            await watched.until(lambda keeper: keeper.state == "failed")
            assert watched.keeper.settled.is_set()
            assert watched.seen == ["starting", "failed"]
            await watched.keeper.retry({}, "")
            await watched.until(lambda keeper: keeper.state == "running")

    asyncio.run(scenario())


def test_a_missing_package_is_a_failure_that_says_so() -> None:
    async def scenario() -> None:
        async with kept({}, missing="zmq not installed; try: ...") as watched:
            await watched.until(lambda keeper: keeper.state == "failed")
            assert watched.keeper.detail == "zmq not installed; try: ..."
            assert watched.keeper.pid == 0

    asyncio.run(scenario())


def test_a_changed_table_restarts_it_at_once() -> None:
    async def scenario() -> None:
        async with kept({"detail": "old"}) as watched:
            await watched.until(lambda keeper: keeper.state == "running")
            await watched.keeper.retry({"detail": "new"}, "")
            await watched.until(lambda keeper: keeper.state == "running" and keeper.detail == "new")
            assert "backing_off" not in watched.seen

    asyncio.run(scenario())


def test_deaths_that_lie_far_apart_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(gateway_keeper, "Backoff", functools.partial(Backoff, lambda: now_s))

    async def scenario() -> None:
        nonlocal now_s
        async with kept({}) as watched:
            pauses = []
            for worked_s in (0, 0, STABLE_S, STABLE_S):
                await watched.until(lambda keeper: keeper.state == "running")
                now_s += worked_s
                os.kill(watched.keeper.pid, signal.SIGKILL)
                await watched.until(lambda keeper: keeper.state == "backing_off")
                pauses.append(watched.keeper.detail.rpartition("again in ")[2])
            assert pauses == ["0.1 s", "0.2 s", "0.1 s", "0.1 s"]

    asyncio.run(scenario())


def test_a_connection_is_handed_on() -> None:
    async def scenario() -> None:
        async with kept({"connect": True}) as watched:
            await watched.until(lambda keeper: keeper.state == "running")
            [(name, pid, descriptor)] = watched.connections
            assert (name, pid) == ("zeromq", watched.keeper.pid)
            with socket.socket(fileno=descriptor) as connection:
                assert connection.recv(10) == b"hello"

    asyncio.run(scenario())


def test_garbage_on_the_control_socket_disturbs_nothing() -> None:
    async def scenario() -> None:
        for garbage in ("not json", "[]", '{"type":"unheard of"}', '{"type":"connect"}'):
            async with kept({"garbage": garbage}) as watched:
                await watched.until(lambda keeper: keeper.state == "running")
                assert watched.connections == []

    asyncio.run(scenario())


def test_one_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_keeper, "STOP_SECONDS", 0.1)

    async def scenario() -> None:
        async with kept({"ignore_sigterm": True}) as watched:
            await watched.until(lambda keeper: keeper.state == "running")
            pid = watched.keeper.pid
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(scenario())


def test_one_that_the_host_cannot_start_is_tried_again() -> None:
    async def scenario() -> None:
        async with kept({"detail": "fine"}) as watched:
            await watched.until(lambda keeper: keeper.state == "running")
            pid = watched.keeper.pid
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                os.kill(pid, signal.SIGKILL)
                await watched.until(lambda keeper: keeper.detail.startswith("could not be started: Too many"))
                assert watched.keeper.state == "backing_off"
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await watched.until(lambda keeper: keeper.state == "running")
            assert watched.keeper.pid != pid

    asyncio.run(scenario())
