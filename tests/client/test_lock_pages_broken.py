"""Locks that are in shared memory while connections break and the core is killed.

A session of a local program ends with its connection, and what it had in the page goes to who is next; a core
that is killed ends none. What is shown by chance here: each is told what became of its lock, nobody waits for
ever, and what is written on a lock's behalf lands in the order of tokens.
"""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import towpath
from tests.client.test_lock_pages import is_out
from tests.support.daemon import DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors

BREAKS = 6
PAIRS = 20
"""That each is to come to between two breaks."""
BROKEN = (errors.SessionLost, errors.LockRevoked, errors.ConnectionLost, errors.Unavailable)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path, "zeromq = false\ngrpc = false\n") as handle:
        yield handle


@pytest.fixture
def clients(daemon: DaemonHandle) -> Iterator[tuple[Any, Any]]:
    with towpath.connect(str(daemon.socket)) as one, towpath.connect(str(daemon.socket)) as two:
        yield one, two


def cut(client: Any) -> None:
    """End a client's connection, as if by somebody else; it makes another by itself."""
    with contextlib.suppress(OSError, AttributeError):  # it has none at the moment
        client._connection.sock.shutdown(socket.SHUT_RDWR)


def test_who_is_cut_off_has_lost_what_it_held(clients: tuple[Any, Any]) -> None:
    holder, other = clients
    told: list[errors.TowpathError] = []
    holder.on_lock_lost(told.append)
    lock, wanted = holder.lock("broken.holder"), other.lock("broken.holder")
    assert is_out(wanted) and is_out(lock)
    guard = lock.acquire(DEADLINE_S)
    assert guard.look()[0]
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(wanted.acquire, DEADLINE_S)
        cut(holder)
        got = waits.result(DEADLINE_S)
    assert got.token > guard.token and got.is_valid
    wait_until(lambda: bool(told), lambda: "the holder was not told")
    assert not guard.is_valid
    with pytest.raises((errors.SessionLost, errors.LockRevoked)):
        guard.release()
    got.release()
    assert is_out(lock) and is_out(wanted)
    with lock.acquire(DEADLINE_S) as again:
        assert again.token > got.token


def test_who_waits_and_is_cut_off_is_in_nobodys_way(clients: tuple[Any, Any]) -> None:
    """It is told, or waits again in a session of its own."""
    holder, other = clients
    lock, wanted = holder.lock("broken.waiter"), other.lock("broken.waiter")
    assert is_out(wanted) and is_out(lock)
    guard = lock.acquire(DEADLINE_S)
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(wanted.try_acquire, DEADLINE_S)
        cut(other)
        guard.release()
        result = waits.result(DEADLINE_S)
    if isinstance(result, towpath.Ok):
        result.value.release()
    else:
        assert isinstance(result.error, BROKEN)
    assert is_out(lock) and is_out(wanted)


class Worker:
    """Takes a lock again and again, and writes its token on its behalf.

    Attributes:
        landed: versions of the value, and the tokens by which they were written.
        in_page: how often it had the lock in the page.
        pairs: how often it gave the lock back, and was told of nothing that had been wrong.
    """

    def __init__(self, client: Any) -> None:
        self.landed: list[tuple[int, int]] = []
        self.in_page = self.pairs = 0
        self.is_over = threading.Event()
        self._lock = client.lock("broken.random")
        self._value = client.state("broken.value")

    def run(self) -> None:
        while not self.is_over.is_set():
            with contextlib.suppress(*BROKEN):
                with self._lock.acquire(DEADLINE_S) as guard:
                    self.in_page += hasattr(guard, "look") and guard.look()[0]
                    with contextlib.suppress(errors.Fenced):
                        version = self._value.set(b"%d" % guard.token, fence=guard.fence)
                        self.landed.append((version, guard.token))
                self.pairs += 1


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_breaks_writes_land_in_the_order_of_tokens(
    daemon: DaemonHandle, clients: tuple[Any, Any], seed: int
) -> None:
    chance = random.Random(seed)
    clients[0].declare("broken.value", kind="state", durable=True)
    workers = [Worker(client) for client in clients for _ in range(2)]

    def all_go_on() -> None:
        goals = [worker.pairs + PAIRS for worker in workers]
        wait_until(
            lambda: all(worker.pairs >= goal for worker, goal in zip(workers, goals, strict=True)),
            lambda: f"{[worker.pairs for worker in workers]} have not come to {goals}",
        )

    with ThreadPoolExecutor(len(workers)) as threads:
        running = [threads.submit(worker.run) for worker in workers]
        try:
            all_go_on()
            for _ in range(BREAKS):
                for broken in chance.choice([[0], [1], [0, 1], [2], [2, 0]]):
                    if broken == 2:
                        daemon.kill_core()
                    else:
                        cut(clients[broken])
                all_go_on()
        finally:
            for worker in workers:
                worker.is_over.set()
        for each in running:
            each.result(DEADLINE_S)
    landed = sorted(pair for worker in workers for pair in worker.landed)
    tokens = [token for _, token in landed]
    assert tokens == sorted(set(tokens))
    assert all(worker.in_page for worker in workers)
    assert is_out(clients[0].lock("broken.random"))
