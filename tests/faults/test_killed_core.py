"""kill -9 of the core under load on a durable topic, at random and before each write and sync of its commits:
every message is stored once and shown once, in one order, live and in a replay."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import towpath
from tests.door.total_load import Load
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import _ring, addresses, protocol
from towpath_broker.store.database import STORE_NAME
from towpath_broker.store.segments import directory_of

CHANNEL = "log"


def starts(daemon: DaemonHandle) -> int:
    return daemon.log().count(" core.listening ")


def check_replay(daemon: DaemonHandle, load: Load) -> None:
    """What is stored is what was shown."""
    with towpath.connect(str(daemon.socket)) as client, client.subscribe(CHANNEL, start="all") as replay:
        stored: list[tuple[int, int, int, bytes]] = []
        while len(stored) < len(load.seen[0]):
            batch = replay.receive_many(1024, timeout=DEADLINE_S)
            assert batch, f"{len(stored)} of {len(load.seen[0])} are stored"
            stored += [(m.seq, m.origin_source, m.origin_seq, m.payload) for m in batch]
        assert replay.receive_many(timeout=0) == [] and replay.lost == 0
    assert stored == [seen[1:] for seen in load.seen[0]]


def declare(daemon: DaemonHandle) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        client.declare(CHANNEL, durable=True, ring_bytes=1 << 16)


def kill_at_random(tmp_path: Path, kills: int, seed: int) -> None:
    generator = random.Random(seed)
    with running_daemon(tmp_path, LOCAL_ONLY) as daemon:
        declare(daemon)
        with Load(daemon, CHANNEL) as load:
            for _ in range(kills):
                load.wait_progress(generator.choice([0, 0, 50, 2000]))
                daemon.kill_core()
            load.wait_progress(2000)
            load.stop()
        load.check()
        check_replay(daemon, load)
    assert [*directory_of(tmp_path / "state" / STORE_NAME).iterdir()], "some parcels were large"


def kill_at_each_operation(tmp_path: Path, shim: Path, numbers: range, times: int) -> None:
    """Have each core die before its n-th write or sync, for each n in turn."""
    kill_file = tmp_path / "kill"
    environment = {
        "LD_PRELOAD": str(shim),
        "TOWPATH_SHIM_DIRECTORY": str(tmp_path / "state" / "store"),
        "TOWPATH_SHIM_KILL_FILE": str(kill_file),
    }
    with running_daemon(tmp_path, LOCAL_ONLY, env=environment) as daemon:
        declare(daemon)
        with Load(daemon, CHANNEL) as load:
            load.wait_progress(100)
            for number in numbers:
                before = starts(daemon)
                kill_file.write_text(str(number))
                wait_until(lambda: bool(load.failures) or starts(daemon) >= before + times)  # noqa: B023
            kill_file.unlink()
            load.wait_progress(100)
            load.stop()
        load.check()
        check_replay(daemon, load)
    assert [*directory_of(tmp_path / "state" / STORE_NAME).iterdir()], "some parcels were large"


def test_at_random(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 15, seed=1)


def test_before_each_write_and_sync_of_a_commit(tmp_path: Path, shim: Path) -> None:
    kill_at_each_operation(tmp_path, shim, range(8, 24, 2), 1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_hundreds_of_times(tmp_path: Path, seed: int) -> None:
    kill_at_random(tmp_path, 50, seed)


@pytest.mark.long
@pytest.mark.parametrize("first", range(3, 8))
def test_before_each_write_and_sync_of_many_commits(tmp_path: Path, shim: Path, first: int) -> None:
    kill_at_each_operation(tmp_path, shim, range(first, 300, 5), 2)


class DaemonOfItsOwn:
    """A daemon that is killed with all that it has started, and started again with the same directories."""

    def __init__(self, directory: Path) -> None:
        self._config = directory / "towpath.toml"
        self._config.write_text(
            "zeromq = false\ngrpc = false\n[daemon]\n"
            f'runtime_dir = "{directory}/run"\nstate_dir = "{directory}/state"\n'
        )
        self._log = (directory / "log").open("a")
        self.url = f"unix:{directory}/run/towpath.sock"
        self.start()
        wait_until(self._answers)

    def _answers(self) -> bool:
        try:
            addresses.open_socket(self.url).close()
        except towpath.errors.Unavailable:
            return False
        return True

    def start(self) -> None:
        command = [sys.executable, "-m", "towpath", "serve", "--config", str(self._config)]
        self.process = subprocess.Popen(command, stderr=self._log)

    def kill(self, core: int) -> None:
        self.process.kill()
        os.kill(core, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> DaemonOfItsOwn:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        self._log.close()


@pytest.mark.parametrize("before", [10, 300])
def test_the_whole_daemon_is_killed(tmp_path: Path, before: int) -> None:
    """Nobody keeps rings and pages then; but the publisher knows up to where it was read."""
    with DaemonOfItsOwn(tmp_path) as daemon, towpath.connect(daemon.url, timeout=DEADLINE_S) as client:
        client.declare(CHANNEL, durable=True, ring_bytes=1 << 16)
        publisher, live = client.publisher(CHANNEL), client.subscribe(CHANNEL)
        for number in range(before):
            publisher.publish(b"%d" % number + b"." * 500)
        publisher.flush(DEADLINE_S)
        core = client.status().pid
        os.kill(core, signal.SIGSTOP)
        for number in range(before, before + 20):
            publisher.publish(b"%d" % number)
        daemon.kill(core)
        daemon.start()
        publisher.flush(DEADLINE_S)
        expected = [*range(before + 20)]
        replay = client.subscribe(CHANNEL, start="all")
        for subscription in (replay, live):
            got = [subscription.receive(DEADLINE_S).payload for _ in expected]
            assert [int(payload.rstrip(b".")) for payload in got] == expected


def test_flush_fails_when_the_next_daemon_cannot_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publisher says from where on it was not read, and that cannot be: nothing of it is read then."""

    class Lying:
        def __getattr__(self, name: str) -> object:
            return getattr(_ring, name)

        def unread_from(self, writer: _ring.Writer) -> int:
            return _ring.unread_from(writer) + 12

    with DaemonOfItsOwn(tmp_path) as daemon, towpath.connect(daemon.url, timeout=DEADLINE_S) as client:
        client.declare(CHANNEL, durable=True, ring_bytes=1 << 16)
        publisher = client.publisher(CHANNEL)
        publisher.publish(b"stored")
        publisher.flush(DEADLINE_S)
        core = client.status().pid
        os.kill(core, signal.SIGSTOP)
        publisher.publish(b"lost")
        monkeypatch.setattr(protocol, "_ring", Lying())
        daemon.kill(core)
        daemon.start()
        with pytest.raises(towpath.errors.CorruptRing, match="cannot be read"):
            publisher.flush(DEADLINE_S)
        with client.publisher(CHANNEL) as another:
            another.publish(b"again")
            another.flush(DEADLINE_S)
        with client.subscribe(CHANNEL, start="all") as replay:
            assert [replay.receive(DEADLINE_S).payload for _ in range(2)] == [b"stored", b"again"]
