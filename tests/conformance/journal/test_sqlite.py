"""What the SQLite journal keeps to beyond the port: files, locks, versions, and death at any instant."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from towpath.errors import InvalidConfiguration
from towpath_broker.journal.sqlite import APPLICATION_ID, SCHEMA_VERSION, SqliteJournal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.sqlite"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_are_for_their_owner_only(path: Path) -> None:
    previous = os.umask(0)
    try:
        journal = SqliteJournal(path)
        journal.append([b"secret"])
        assert mode_of(path.parent) == 0o700
        assert [mode_of(file) for file in path.parent.iterdir()] == [0o600] * len(list(path.parent.iterdir()))
        journal.close()
    finally:
        os.umask(previous)


def test_every_commit_is_synced(path: Path) -> None:
    journal = SqliteJournal(path)

    def pragma(name: str) -> object:
        return journal._database.execute(f"PRAGMA {name}").fetchone()[0]

    assert (pragma("journal_mode"), pragma("synchronous"), pragma("locking_mode")) == ("wal", 2, "exclusive")
    journal.close()


def test_a_second_daemon_is_kept_out(path: Path) -> None:
    journal = SqliteJournal(path)
    with pytest.raises(InvalidConfiguration) as caught:
        SqliteJournal(path)
    assert "in use by another daemon" in str(caught.value) and "state_dir" in caught.value.hint
    journal.append([b"a"])
    journal.close()
    second = SqliteJournal(path)
    assert list(second.replay(0)) == [(1, b"a")]
    second.close()


def test_a_journal_of_a_later_version(path: Path) -> None:
    SqliteJournal(path).close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    database.close()
    with pytest.raises(InvalidConfiguration, match=f"of version {SCHEMA_VERSION + 1}"):
        SqliteJournal(path)


def test_a_database_of_somebody_else_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE theirs (x)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(InvalidConfiguration, match="is a database, but not a journal of Towpath"):
        SqliteJournal(path)
    assert path.read_bytes() == before


def test_a_file_of_somebody_else_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("dear diary " * 1000)
    with pytest.raises(InvalidConfiguration, match="is not a journal of Towpath"):
        SqliteJournal(path)
    assert path.read_text() == "dear diary " * 1000


def test_a_directory_in_the_way_is_the_hosts_own_error(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        SqliteJournal(path)


def test_records_can_be_read_by_people(path: Path) -> None:
    journal = SqliteJournal(path)
    journal.append(['{"command":"declare_channel","name":"é"}'.encode()])
    journal.close()
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        ((data,),) = database.execute("SELECT data FROM record").fetchall()
    database.close()
    assert json.loads(data)["name"] == "é"


def test_an_append_that_fails_keeps_nothing_of_it(path: Path) -> None:
    journal = SqliteJournal(path)
    journal.append([b"a"])
    with pytest.raises(UnicodeDecodeError):
        journal.append([b"b", b"\xff"])
    assert journal.last_position == 1
    assert journal.append([b"c"]) == 2
    assert list(journal.replay(0)) == [(1, b"a"), (2, b"c")]
    journal.close()


def test_a_full_disk_is_the_hosts_own_error(path: Path) -> None:
    journal = SqliteJournal(path)
    journal.append([b"a"])
    pages = journal._database.execute("PRAGMA page_count").fetchone()[0]
    journal._database.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        journal.append([b"x" * 100_000])
    assert list(journal.replay(0)) == [(1, b"a")]
    journal.close()


# A child that appends batches of 1 to 3 records, takes snapshots, and says what was acknowledged.
APPENDER = """
import sys
from towpath_broker.journal.sqlite import SqliteJournal
journal = SqliteJournal(sys.argv[1])
turn = 0
while True:
    turn += 1
    count = turn % 3 + 1
    first = journal.last_position + 1
    records = [b"%d:" % position + b"x" * 2000 for position in range(first, first + count)]
    assert journal.append(records) == first
    print("appended", first + count - 1, count, flush=True)
    if turn % 7 == 0:
        journal.save_snapshot(first, b"state of %d" % first)
        print("saved", first, 0, flush=True)
"""


@pytest.mark.parametrize("lines", [1, 2, 8, 30, 61])
def test_death_loses_nothing_that_was_acknowledged(path: Path, lines: int) -> None:
    """Killed at whatever instant it is in after so many acknowledgements, twice in a row on one journal."""
    for _ in range(2):
        command = [sys.executable, "-c", APPENDER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            heard = [child.stdout.readline() for _ in range(lines)]
            child.send_signal(signal.SIGKILL)
            heard += child.stdout.read().splitlines(keepends=True)
        told = [line.split() for line in heard if line.endswith("\n")]
        appended = max(int(position) for what, position, _ in told if what == "appended")
        saved = max((int(position) for what, position, _ in told if what == "saved"), default=0)

        journal = SqliteJournal(path)
        snapshot = journal.load_snapshot()
        covered = 0 if snapshot is None else snapshot[0]
        assert covered >= saved
        assert snapshot is None or snapshot[1] == b"state of %d" % covered
        found = list(journal.replay(covered))
        assert [position for position, _ in found] == list(range(covered + 1, journal.last_position + 1))
        assert all(record == b"%d:" % position + b"x" * 2000 for position, record in found)
        assert journal.last_position >= appended
        # What was not acknowledged is there whole or not at all: at most the one batch that was under way.
        assert journal.last_position - appended <= 3
        journal.close()
