"""States read in shared memory while writers write, and while the core is killed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import towpath
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors

READER = """
import sys, towpath
with towpath.connect(sys.argv[1]) as client:
    state = client.state("board")
    newest = reads = 0
    print("ready", flush=True)
    while newest < int(sys.argv[2]):
        value = state.get()
        reads += 1
        assert value.version >= newest, (value.version, newest)
        assert value.payload == bytes([value.version % 251]) * (value.version * 37 % 9000)
        newest = value.version
    print(reads, flush=True)
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path, LOCAL_ONLY) as handle:
        yield handle


def content(version: int) -> bytes:
    return bytes([version % 251]) * (version * 37 % 9000)


def test_readers_see_whole_values_in_order(daemon: DaemonHandle) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        client.declare("board", kind="state")
        state = client.state("board")
        state.set(content(1))
        readers = [
            subprocess.Popen(
                [sys.executable, "-c", READER, str(daemon.socket), "2000"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for _ in range(2)
        ]
        for reader in readers:
            assert reader.stdout is not None and reader.stdout.readline() == b"ready\n"
        for version in range(2, 2001):
            assert state.set(content(version)) == version
        for reader in readers:
            reads, errors_told = reader.communicate(timeout=DEADLINE_S)
            assert reader.returncode == 0, errors_told
            assert int(reads) > 1000


def test_what_was_set_durably_outlives_the_core(daemon: DaemonHandle) -> None:
    with towpath.connect(str(daemon.socket)) as client, towpath.connect(str(daemon.socket)) as other:
        client.declare("board", kind="state", durable=True)
        state, reading = client.state("board"), other.state("board")
        with other.state("board").watch() as watch:
            version = 0
            for _ in range(3):
                version = state.set(b"before %d" % version)
                assert reading.get() == state.get()
                while watch.receive(DEADLINE_S).version != version:
                    pass  # it had been told the one before
                daemon.kill_core()
                wait_until(lambda: client.is_connected and other.is_connected)
                value = reading.get()
                assert value is not None and value.version == version


def test_the_last_value_is_read_while_there_is_no_core(daemon: DaemonHandle) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        client.declare("board", kind="state", durable=True)
        state = client.state("board")
        state.set(b"last")
        assert state.get() is not None
        reads = 0
        done = threading.Event()
        failures: list[BaseException] = []

        def read() -> None:
            nonlocal reads
            while not done.is_set():
                try:
                    value = state.get()
                    assert value is not None and value.payload == b"last"
                    reads += 1
                except errors.ConnectionLost:
                    continue  # it asked the core just as that was killed
                except BaseException as error:
                    failures.append(error)
                    return

        thread = threading.Thread(target=read)
        thread.start()
        for _ in range(2):
            daemon.kill_core()
            seen = reads
            wait_until(lambda seen=seen: reads > seen + 100 or bool(failures))  # type: ignore[misc]
        done.set()
        thread.join(DEADLINE_S)
        assert not failures


def test_compare_and_set_among_processes_loses_nothing(daemon: DaemonHandle) -> None:
    program = """
import sys, towpath
with towpath.connect(sys.argv[1]) as client:
    state = client.state("count")
    for _ in range(100):
        state.update(lambda value: b"%d" % (1 + int(value.payload if value else 0)))
"""
    with towpath.connect(str(daemon.socket)) as client:
        client.declare("count", kind="state")
        counting = [subprocess.Popen([sys.executable, "-c", program, str(daemon.socket)]) for _ in range(3)]
        for process in counting:
            assert process.wait(DEADLINE_S) == 0
        value = client.state("count").get()
        assert value is not None and (value.payload, value.version) == (b"300", 300)
