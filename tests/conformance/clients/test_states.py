"""States: get, set, compare-and-set, delete and watch, over each carrier and with both clients."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

import towpath
from tests.support.blocking import BlockingClient
from tests.support.daemon import DaemonHandle
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.result import Err, Ok


@pytest.fixture
def state(client: Any, name: str) -> Any:
    client.declare(name, kind="state")
    return client.state(name)


def test_nothing_was_ever_set(state: Any) -> None:
    assert state.get() is None
    value = state.look()
    assert (value.version, value.is_set, value.payload) == (0, False, b"")


def test_what_is_set_is_got(state: Any) -> None:
    before = time.time_ns()
    assert state.set(b"one") == 1
    value = state.get()
    assert (value.payload, value.version, value.is_set) == (b"one", 1, True)
    assert before <= value.changed_at_ns <= time.time_ns()
    assert state.set(bytearray(b"two")) == 2
    assert state.get().payload == b"two"
    assert state.set(b"") == 3
    assert (state.get().payload, state.get().is_set) == (b"", True)


def test_headers_are_kept(state: Any) -> None:
    assert not state.look().headers.user
    state.set(b"{}", headers=towpath.Headers(content_type="application/json", user={"a": "b"}))
    value = state.get()
    assert value.headers.content_type == "application/json"
    assert dict(value.headers.user) == {"a": "b"}


def test_compare_and_set(state: Any) -> None:
    assert state.set(b"first", if_version=0) == 1
    with pytest.raises(errors.VersionConflict, match="version 1, not 0"):
        state.set(b"again", if_version=0)
    assert state.set(b"second", if_version=1) == 2
    match state.try_set(b"late", if_version=1):
        case Err(errors.VersionConflict()):
            pass
        case other:
            pytest.fail(f"it was quicker: {other}")
    assert state.try_get() == Ok(state.get())
    with pytest.raises(errors.InvalidArgument):
        state.set(b"x", if_version=-1)


def test_delete(state: Any) -> None:
    assert state.delete() == 1
    state.set(b"there")
    with pytest.raises(errors.VersionConflict):
        state.delete(if_version=1)
    assert state.delete(if_version=2) == 3
    assert state.get() is None
    assert state.look().version == 3
    with pytest.raises(errors.VersionConflict):
        state.set(b"x", if_version=0)  # something was set once
    assert state.set(b"back", if_version=3) == 4


def test_values_of_every_size(state: Any) -> None:
    for size in (1, 4096, 262_144, 262_145, 1_000_000):  # the page takes 262,144
        payload = bytes(range(256)) * (size // 256 + 1)
        version = state.set(payload[:size])
        value = state.get()
        assert (value.payload, value.version) == (payload[:size], version)
    assert state.set(b"small again") == state.get().version
    with pytest.raises(errors.MessageTooLarge, match="a value of 1048577 bytes"):
        state.set(bytes((1 << 20) + 1))
    assert state.get().payload == b"small again"


def test_every_client_sees_what_one_has_set(connect: Any, daemon: DaemonHandle, name: str) -> None:
    mine = connect()
    mine.declare(name, kind="state")
    with towpath.connect(str(daemon.socket)) as local:
        here, there = local.state(name), mine.state(name)
        for number in range(50):
            writer, reader = (here, there) if number % 2 else (there, here)
            version = writer.set(b"%d" % number)
            value = reader.look()
            assert (value.payload, value.version) == (b"%d" % number, version)


def test_update_counts_every_change(connect: Any, name: str) -> None:
    client = connect()
    client.declare(name, kind="state")

    def count() -> None:
        state = connect().state(name)
        for _ in range(20):
            state.update(lambda value: b"%d" % (1 + int(value.payload if value else 0)))

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    value = client.state(name).get()
    assert (value.payload, value.version) == (b"60", 60)
    assert client.state(name).update(lambda _: None) == 61  # deletes it
    assert client.state(name).get() is None


def test_many_who_update_at_once_all_come_through(connect: Any, name: str) -> None:
    """Everybody's compare-and-set is in everybody's way."""
    connect().declare(name, kind="state")
    failures: list[BaseException] = []

    def count(state: Any) -> None:
        try:
            for _ in range(15):
                state.update(lambda value: b"%d" % (1 + int(value.payload if value else 0)))
        except errors.TowpathError as error:
            failures.append(error)

    states = [connect().state(name) for _ in range(8)]
    threads = [threading.Thread(target=count, args=(state,)) for state in states]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not failures
    assert states[0].get().payload == b"120"


def test_watch_begins_with_the_value_and_tells_each_change(state: Any) -> None:
    with state.watch() as watch:
        assert watch.receive(DEADLINE_S).version == 0
        for number in range(1, 6):
            state.set(b"%d" % number)
            value = watch.receive(DEADLINE_S)
            assert (value.payload, value.version) == (b"%d" % number, number)
        state.delete()
        gone = watch.receive(DEADLINE_S)
        assert (gone.version, gone.is_set) == (6, False)
        with pytest.raises(errors.Timeout):
            watch.receive(0.05)


def test_watch_from_a_version(state: Any) -> None:
    state.set(b"one")
    state.set(b"two")
    with state.watch(2) as watch:
        with pytest.raises(errors.Timeout):
            watch.receive(0.05)
        state.set(b"three")
        assert watch.receive(DEADLINE_S).payload == b"three"
    with state.watch(1) as watch:
        assert watch.receive(DEADLINE_S).payload == b"three"
    with pytest.raises(errors.InvalidArgument):
        state.watch(-1)


def test_a_slow_watcher_is_told_the_newest(state: Any) -> None:
    with state.watch() as watch:
        watch.receive(DEADLINE_S)
        for number in range(200):
            state.set(b"%d" % number)
        versions: list[int] = []
        while not versions or versions[-1] < 200:
            versions.append(watch.receive(DEADLINE_S).version)
        assert versions == sorted(set(versions))


def test_a_watch_that_is_closed_ends_its_iteration(state: Any) -> None:
    watch = state.watch()
    seen: list[int] = []
    reading = threading.Thread(target=lambda: seen.extend(value.version for value in watch))
    reading.start()
    state.set(b"x")
    deadline = time.monotonic() + DEADLINE_S
    while 1 not in seen and time.monotonic() < deadline:
        time.sleep(0.01)
    watch.close()
    reading.join(DEADLINE_S)
    assert not reading.is_alive() and 1 in seen


def test_the_channel_goes_away(client: Any, state: Any, name: str) -> None:
    state.set(b"x")
    assert state.get().payload == b"x"
    watch = state.watch()
    assert watch.receive(DEADLINE_S).payload == b"x"
    client.undeclare(name, force=True)
    with pytest.raises((errors.ChannelUndeclared, errors.ChannelNotFound)):
        watch.receive(DEADLINE_S)
    with pytest.raises(errors.ChannelNotFound):
        state.get()
    client.declare(name, kind="state")
    assert state.get() is None
    state.set(b"new")
    assert state.get().payload == b"new"


def test_other_kinds_have_no_value(client: Any, name: str) -> None:
    client.declare(name)
    state = client.state(name)
    with pytest.raises(errors.InvalidArgument):
        state.set(b"x")
    with pytest.raises(errors.InvalidArgument):
        state.get()
    with client.state("test.of.no.such.state").watch() as watch, pytest.raises(errors.ChannelNotFound):
        watch.receive(DEADLINE_S)
    with pytest.raises(errors.InvalidName):
        client.state("no name")


def test_states_are_not_published_on(client: Any, name: str) -> None:
    client.declare(name, kind="state")
    with pytest.raises(errors.InvalidArgument, match="state"):
        client.channel(name).publish(b"x")
    with pytest.raises(errors.InvalidArgument, match="state"):
        client.subscribe(name)


def test_a_closed_client_reads_no_page(connect: Any, client: Any, name: str) -> None:
    client.declare(name, kind="state")
    other = connect()
    state = other.state(name)
    state.set(b"x")
    assert state.get().payload == b"x"
    if isinstance(other, BlockingClient):
        other._thread.run(other._inner.close())
    else:
        other.close()
    with pytest.raises((errors.ConnectionLost, errors.Unavailable)):
        state.get()
