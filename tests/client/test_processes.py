"""Publishers and subscribers in processes of their own: what the library is for."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import towpath
from tests.support.daemon import DaemonHandle
from tests.support.deadlines import DEADLINE_S
from towpath import errors

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
USES = ("call", "publisher", "publish", "receive", "watch", "consume", "take", "settle", "queue")


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(HERE / "programs" / program), *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    return output


@pytest.mark.parametrize("kind", ["sync", "aio"])
@pytest.mark.parametrize("count, size", [(100_000, 64), (2_000, 60_000)])
def test_every_message_in_order_between_processes(
    daemon: DaemonHandle, name: str, kind: str, count: int, size: int
) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        client.declare(name, ring_bytes=1 << 20)
    receivers = [start("receive.py", kind, daemon.socket, name, 2 * count) for _ in range(2)]
    for receiver in receivers:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "ready\n"
    publishers = [start("publish.py", kind, daemon.socket, name, count, size) for _ in range(2)]
    for publisher in publishers:
        finish(publisher)
    for receiver in receivers:
        assert finish(receiver) == f"{2 * count} messages of 2 sources\n"


def test_a_killed_publisher_leaves_what_it_published(daemon: DaemonHandle, name: str) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        client.declare(name)
        with client.subscribe(name) as subscription:
            publisher = start("publish_and_hang.py", daemon.socket, name, 1000)
            assert publisher.stdout is not None
            assert publisher.stdout.readline() == "published\n"
            publisher.kill()
            publisher.communicate()
            seqs: list[int] = []
            while len(seqs) < 1000:
                seqs += [message.seq for message in subscription.receive_many(timeout=DEADLINE_S)]
            assert seqs == list(range(1, 1001))
            while client.channel_info(name).publishers:
                pass


def test_a_killed_or_stopped_subscriber_does_not_hold_a_publisher_for_ever(
    daemon: DaemonHandle, name: str
) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        client.declare(name, ring_bytes=4096)
        subscriber = start("subscribe_and_hang.py", daemon.socket, name)
        assert subscriber.stdout is not None
        assert subscriber.stdout.readline() == "subscribed\n"
        with client.publisher(name) as publisher:
            subscriber.send_signal(signal.SIGSTOP)
            with pytest.raises(errors.Timeout):
                publisher.publish_many([b"x" * 500] * 100, timeout=0.05)
            subscriber.kill()
            publisher.publish_many([b"x" * 500] * 100, timeout=DEADLINE_S)
        subscriber.communicate()


def test_a_death_is_noticed_although_a_child_keeps_the_socket_open(daemon: DaemonHandle, name: str) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        client.declare(name)
        process = start("subscribe_and_fork.py", daemon.socket, name)
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert client.channel_info(name).subscribers == 1
            process.kill()
            process.wait(DEADLINE_S)
            while client.channel_info(name).subscribers:
                pass
            os.kill(child, 0)
        finally:
            os.kill(child, signal.SIGKILL)
            process.stdout.close()


def test_a_forked_child_cannot_use_the_parents_handles(daemon: DaemonHandle, name: str) -> None:
    process = start("use_after_fork.py", daemon.socket, name)
    raised = [f"{kind} {use}: ConnectionLost" for kind in ("sync", "aio") for use in USES]
    assert finish(process).splitlines() == [*raised, "parent: ok"]


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_a_program_at_its_limit_of_open_files_gets_an_error_and_goes_on(
    daemon: DaemonHandle, name: str, kind: str
) -> None:
    said = finish(start("at_the_limit.py", kind, daemon.socket, name)).splitlines()
    assert said == [f"{use}: LimitExceeded" for use in ("publisher", "subscribe", "connect")]


def test_a_closed_handle_leaves_no_descriptor_behind(client: Any, name: str) -> None:
    """Without a garbage collection: what is closed is in no cycle."""
    client.declare(name, ring_bytes=4096)

    def once() -> None:
        subscription, publisher = client.subscribe(name), client.publisher(name)
        publisher.publish(b"x")
        assert subscription.receive(timeout=DEADLINE_S).payload == b"x"
        publisher.close()
        subscription.close()
        for use in (lambda: publisher.publish(b"x"), subscription.receive):
            with pytest.raises(errors.ConnectionLost):
                use()

    once()
    client.status()  # what was sent before has been answered
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            once()
        client.status()
        assert len(os.listdir("/proc/self/fd")) <= before
    finally:
        gc.enable()
