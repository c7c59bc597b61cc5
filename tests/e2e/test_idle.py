"""A daemon with nothing to do, and programs that wait, do nothing at all: no thread of theirs wakes up.

The exception are gRPC's own threads (``tests.bench.footprint.LIBRARY_THREADS``).
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import towpath
from tests.bench.footprint import processes_below, wakings
from tests.support.daemon import DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S

QUIET_S = 3.0
"""Whatever wakes more often than this is found."""

RECEIVES = """
import sys, towpath
with towpath.connect() as client, client.subscribe("idle.topic") as subscription:
    subscription.receive()
    print("received", flush=True)
    subscription.receive()
"""
RECEIVES_ASYNC = """
import asyncio, towpath.aio
async def main():
    async with await towpath.aio.connect() as client, await client.subscribe("idle.topic") as subscription:
        await subscription.receive()
        print("received", flush=True)
        await subscription.receive()
asyncio.run(main())
"""
HOLDS = """
import sys, towpath
with towpath.connect() as client, client.lock("idle.lock").acquire():
    with client.consume("idle.queue") as consumer:
        consumer.receive().ack()
        print("received", flush=True)
        consumer.receive()
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path) as running:
        yield running


def quiet(pids: Callable[[], list[int]]) -> tuple[Callable[[], bool], Callable[[], str]]:
    """The condition that no thread has woken for QUIET_S, and what keeps it from being true."""
    last = wakings(pids())
    since = time.monotonic()
    woke: dict[str, int] = {}

    def is_quiet() -> bool:
        nonlocal last, since
        now = wakings(pids())
        if now != last:
            for thread, count in now.items():
                woke[thread] = woke.get(thread, 0) + count - last.get(thread, 0)
            last, since = now, time.monotonic()
        return time.monotonic() - since >= QUIET_S

    return is_quiet, lambda: f"these woke: { {thread: count for thread, count in woke.items() if count} }"


def start(daemon: DaemonHandle, program: str) -> subprocess.Popen[str]:
    """Start a program that waits."""
    return subprocess.Popen(
        [sys.executable, "-c", program], env=daemon.environment, stdout=subprocess.PIPE, text=True
    )


def test_nobody_wakes_while_nothing_happens(daemon: DaemonHandle) -> None:
    """Everything has been used: topics, a durable queue, locks, a lock lane, by programs of both kinds."""
    with ExitStack() as stack:
        client = stack.enter_context(towpath.connect(str(daemon.socket)))
        client.declare("idle.topic")
        client.declare("idle.queue", kind="queue", durable=True)
        topic, queue = client.publisher("idle.topic"), client.publisher("idle.queue")
        waiting = [stack.enter_context(start(daemon, each)) for each in (RECEIVES, RECEIVES_ASYNC, HOLDS)]
        for program in waiting:
            stack.callback(program.terminate)
        wait_until(lambda: sum(c.subscribers for c in client.channels("idle.topic")) == 2, daemon.log)
        for _ in range(100):
            client.semaphore("idle.permits", 1).acquire().release()
        topic.publish(b"one")
        queue.publish(b"one")
        for program in waiting:
            assert program.stdout is not None and program.stdout.readline() == "received\n"

        ours = [program.pid for program in waiting]
        is_quiet, woke = quiet(lambda: [*processes_below(daemon.process.pid), *ours])
        wait_until(is_quiet, woke)

        topic.publish(b"two")
        queue.publish(b"two")
        assert [program.wait(DEADLINE_S) for program in waiting] == [0, 0, 0]


WAITS = """
import sys, towpath
with towpath.connect(sys.argv[1]) as client:
    if not sys.argv[1].startswith("unix:"):
        client.set_lock_lease(3_600)  # it says that it is there every third of that
    client.lock("idle.lock").acquire().release()
"""


def test_nobody_wakes_while_a_lock_is_waited_for(daemon: DaemonHandle) -> None:
    """From afar as on the host: nobody asks again and again."""
    urls = [
        f"unix:{daemon.socket}",
        f"grpc://{daemon.endpoint('grpc', 'listen')}",
        f"zmq://{daemon.endpoint('zeromq', 'rpc').removeprefix('tcp://')}",
    ]
    with ExitStack() as stack:
        client = stack.enter_context(towpath.connect(str(daemon.socket)))
        guard = client.lock("idle.lock").acquire()
        waiting = [
            stack.enter_context(subprocess.Popen([sys.executable, "-c", WAITS, url], env=daemon.environment))
            for url in urls
        ]
        for program in waiting:
            stack.callback(program.terminate)
        wait_until(lambda: len(client.list_locks("idle.lock").locks[0].waiters) == len(urls), daemon.log)

        ours = [program.pid for program in waiting]
        is_quiet, woke = quiet(lambda: [*processes_below(daemon.process.pid), *ours])
        wait_until(is_quiet, woke)

        guard.release()
        assert [program.wait(DEADLINE_S) for program in waiting] == [0, 0, 0]
