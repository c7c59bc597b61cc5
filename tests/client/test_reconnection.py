"""The daemon is killed and comes back; sessions, publishers and subscriptions go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import towpath
from tests.client.conftest import Connect
from tests.support.blocking import BlockingClient
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon
from tests.support.deadlines import DEADLINE_S
from towpath import errors


@pytest.fixture(scope="module")
def own_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("killed"), LOCAL_ONLY) as handle:
        yield handle


@pytest.fixture(params=["sync", "aio"])
def make(request: pytest.FixtureRequest, own_daemon: DaemonHandle) -> Connect:
    kind: Any = towpath.connect if request.param == "sync" else BlockingClient
    return lambda: kind(str(own_daemon.socket), timeout=DEADLINE_S)


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0)


def test_messages_flow_on_without_a_gap_while_the_core_is_killed(
    own_daemon: DaemonHandle, make: Connect
) -> None:
    with make() as publishing, make() as subscribing:
        publishing.declare("flow")
        subscription, publisher = subscribing.subscribe("flow"), publishing.publisher("flow")
        stop = threading.Event()
        sent = 0

        def publish() -> None:
            nonlocal sent
            while not stop.is_set():
                publisher.publish(b"%d" % sent)
                sent += 1

        thread = threading.Thread(target=publish)
        thread.start()
        received = 0

        def take() -> None:
            nonlocal received
            for message in subscription.receive_many(1024, timeout=0.05):
                assert message.payload == b"%d" % received
                received += 1

        take()
        killer = threading.Thread(target=own_daemon.kill_core)
        killer.start()
        while killer.is_alive():
            take()
        while not (publishing.is_connected and subscribing.is_connected):
            take()
        # who comes now is met by the publisher that was there before
        with subscribing.subscribe("flow") as late:
            take_late = threading.Thread(target=lambda: late.receive(timeout=DEADLINE_S))
            take_late.start()
            while take_late.is_alive():
                take()
        stop.set()
        while thread.is_alive() or received < sent:
            take()
        assert received == sent
        info = publishing.channel_info("flow")
        assert (info.publishers, info.subscribers) == (1, 1)


def test_registry_calls_wait_for_the_daemon_to_come_back(own_daemon: DaemonHandle, make: Connect) -> None:
    with make() as client:
        client.declare("kept", ring_bytes=8192)
        with ThreadPoolExecutor(1) as pool:
            with own_daemon.without_core():
                wait_until(lambda: not client.is_connected)
                asked = pool.submit(client.channel_info, "kept")
            assert asked.result(DEADLINE_S).ring_bytes == 8192


def test_a_watch_starts_again(own_daemon: DaemonHandle, make: Connect) -> None:
    with make() as client:
        client.declare("watched")
        events = iter(client.watch())
        while next(events).kind != "current":
            pass
        own_daemon.kill_core()
        assert next(events).kind == "reset"
        names = set()
        while (event := next(events)).kind != "current":
            names.add(event.channel.name)
        assert "watched" in names


def test_a_publisher_whose_subscriber_died_with_the_core_goes_on_after_the_grace(
    own_daemon: DaemonHandle, make: Connect
) -> None:
    with make() as publishing:
        publishing.declare("grace", ring_bytes=4096)
        publisher = publishing.publisher("grace")
        lost = make()
        lost.subscribe("grace")
        publisher.publish(b"x")
        own_daemon.kill_core()
        lost.close()
        wait_until(lambda: publishing.is_connected)
        publisher.publish_many([b"x" * 500] * 100, timeout=DEADLINE_S)


def test_no_daemon_at_all(tmp_path: Path) -> None:
    for connect in (towpath.connect, BlockingClient):
        with pytest.raises(errors.Unavailable, match=r"no daemon answers.*towpath serve"):
            connect(str(tmp_path / "nobody.sock"))


def test_addresses_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidArgument):
        towpath.connect("http://example")
    with pytest.raises(errors.InvalidArgument, match="gateway"):
        towpath.connect("grpc://")
