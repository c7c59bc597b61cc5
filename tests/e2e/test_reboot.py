"""After the host was started anew: locks of local holders are free, those of remote ones not before their
leases are over. The host is not, but the journal is that of another boot."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

import towpath
from tests.support.daemon import DaemonHandle, running_daemon
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath_broker.journal.log import Log
from towpath_broker.journal.logged import LoggedJournal
from towpath_broker.lock_engine import BOOT_ID

CONFIG = "zeromq = false\n"
LEASE_S = 3.0
BEFORE = "00000000-0000-0000-0000-000000000000"


def reboot(directory: Path, daemon: DaemonHandle) -> None:
    """End the daemon without notice, and have its journal say that it was another boot."""
    daemon.process.kill()
    daemon.wait()
    now, before = BOOT_ID.read_text().strip().encode(), BEFORE.encode()
    assert len(now) == len(before)
    path = directory / "state" / "locks.sqlite"
    with closing(LoggedJournal(path)) as journal:
        saved = journal.load_snapshot()
        records = [record for _, record in journal.replay(0)]
        position = journal.last_position
    changed = [record.replace(now, before) for record in records]
    assert changed != records or (saved is not None and now in saved[1])
    with closing(Log(path.with_name(f"{path.name}-log"))) as log:
        log.clear()
        if changed:
            log.append(changed, position + 1 - len(changed))
    if saved is not None:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE snapshot SET data = ?", (saved[1].replace(now, before),))


def test_locks_of_local_holders_are_free_at_once(tmp_path: Path) -> None:
    with running_daemon(tmp_path, CONFIG) as daemon, towpath.connect(str(daemon.socket)) as client:
        token = client.lock("local").acquire().token
        reboot(tmp_path, daemon)
    with running_daemon(tmp_path, CONFIG) as daemon, towpath.connect(str(daemon.socket)) as client:
        guard = client.lock("local").acquire_nowait()
        assert guard is not None and guard.token > token


def test_nothing_is_granted_before_the_longest_lease_has_passed(tmp_path: Path) -> None:
    with running_daemon(tmp_path, CONFIG) as daemon:
        address = daemon.endpoint("grpc", "listen")
        with towpath.connect(f"grpc://{address}") as remote:
            remote.set_lock_lease(LEASE_S)
            guard = remote.lock("remote").acquire()
            token = guard.token
            began = time.monotonic()  # the holder cannot be told; its lease runs from here at the latest
            reboot(tmp_path, daemon)
            restarted = time.monotonic()
    with running_daemon(tmp_path, CONFIG) as daemon, towpath.connect(str(daemon.socket)) as client:
        lock = client.lock("remote")
        with pytest.raises(errors.LockHeld, match="lately"):
            lock.acquire(0)
        granted = lock.acquire(DEADLINE_S)
        assert time.monotonic() - restarted >= LEASE_S
        assert time.monotonic() - began >= LEASE_S
        assert granted.token > token
