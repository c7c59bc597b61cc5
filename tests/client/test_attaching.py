"""Publishers and subscriptions that are made just when the core dies.

With a daemon of their own: each kill makes the supervisor wait longer before the next start.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import towpath
from tests.client.conftest import Connect
from tests.support.blocking import BlockingClient
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S


@pytest.fixture(scope="module")
def own_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("killed"), LOCAL_ONLY) as handle:
        yield handle


@pytest.fixture(params=["sync", "aio"])
def make(request: pytest.FixtureRequest, own_daemon: DaemonHandle) -> Connect:
    kind: Any = towpath.connect if request.param == "sync" else BlockingClient
    return lambda: kind(str(own_daemon.socket))


def test_what_is_being_attached_when_the_core_dies_is_attached_anew(
    own_daemon: DaemonHandle, make: Connect
) -> None:
    with make() as client, ThreadPoolExecutor(2) as threads:
        client.declare("attached.anew")
        stopped = own_daemon.core_pid
        os.kill(stopped, signal.SIGSTOP)
        subscribing = threads.submit(client.subscribe, "attached.anew")
        publishing = threads.submit(client.publisher, "attached.anew")
        wait_until(lambda: len(client._protocol.readers) == 1)  # it is asked for, and not answered
        own_daemon.kill_core()
        subscription, publisher = subscribing.result(DEADLINE_S), publishing.result(DEADLINE_S)
        publisher.publish(b"x")
        assert subscription.receive(timeout=DEADLINE_S).payload == b"x"
        info = client.channel_info("attached.anew")
        assert (info.publishers, info.subscribers) == (1, 1)


def test_who_comes_and_goes_while_the_core_is_killed_notices_nothing(
    own_daemon: DaemonHandle, make: Connect
) -> None:
    with make() as client, ThreadPoolExecutor(1) as threads:
        client.declare("restless")
        killing = threads.submit(own_daemon.kill_core)
        rounds_after = 0
        while rounds_after < 10:
            rounds_after += killing.done()
            with client.subscribe("restless") as subscription, client.publisher("restless") as publisher:
                publisher.publish(b"x")
                assert subscription.receive(timeout=DEADLINE_S).payload == b"x"
        killing.result()
