"""What the locks' journal keeps to beyond the port: its log, cut and damaged anywhere, and older files."""

from __future__ import annotations

import resource
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from towpath.errors import InvalidConfiguration
from towpath_broker.journal.log import Log, LogFull
from towpath_broker.journal.logged import LoggedJournal
from towpath_broker.journal.sqlite import SqliteJournal

ROUNDS = ([b"a"], [b"bb", b"", b"x" * 300], [b"ccc"], [b"dddd", b"e"])
"""Records of so many appends."""
ENDS = (1, 4, 5, 7)
"""The positions of their last records."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "locks.sqlite"


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-log")


def write(path: Path) -> list[int]:
    """Append the rounds; return the log's length after each."""
    sizes = []
    with closing(LoggedJournal(path)) as journal:
        for records in ROUNDS:
            journal.append_unsynced(records)
            sizes.append(log_of(path).stat().st_size)
    return sizes


def found(path: Path) -> list[bytes]:
    with closing(LoggedJournal(path)) as journal:
        positions, records = zip(*journal.replay(0), strict=True) if journal.last_position else ((), ())
        assert positions == tuple(range(1, journal.last_position + 1))
        return list(records)


def rounds(count: int) -> list[bytes]:
    return [record for records in ROUNDS[:count] for record in records]


def test_a_log_that_is_cut_anywhere_has_whole_rounds_and_goes_on(path: Path) -> None:
    sizes = write(path)
    content = log_of(path).read_bytes()
    assert len(content) == sizes[-1]
    for length in range(len(content) + 1):
        log_of(path).write_bytes(content[:length])
        whole = sum(size <= length for size in sizes)
        assert found(path) == rounds(whole)
        assert log_of(path).stat().st_size == ([0, *sizes])[whole]
        with closing(LoggedJournal(path)) as journal:
            assert journal.append([b"more"]) == ([0, *ENDS])[whole] + 1
        assert found(path) == [*rounds(whole), b"more"]


def test_what_is_damaged_ends_the_log(path: Path) -> None:
    sizes = write(path)
    content = log_of(path).read_bytes()
    for place in range(sizes[1], sizes[2]):
        for bit in (1, 128):
            damaged = bytearray(content)
            damaged[place] ^= bit
            log_of(path).write_bytes(damaged)
            assert found(path) == rounds(2)
    log_of(path).write_bytes(content[: sizes[1]] + bytes(1 << 16))  # as some file systems leave it
    assert found(path) == rounds(2)


def test_what_once_stood_there_is_not_what_comes_next(path: Path) -> None:
    """After a loss of power a round may be lost, and one behind it not; and the next has the same length."""
    sizes = write(path)
    before = log_of(path).read_bytes()
    log_of(path).write_bytes(before[: sizes[1]])
    with closing(LoggedJournal(path)) as journal:
        journal.append([b"CCC"])
    log = log_of(path).read_bytes()
    assert len(log) == sizes[2]
    log_of(path).write_bytes(log + before[sizes[2] :])
    assert found(path) == [*rounds(2), b"CCC"]


def test_a_snapshot_is_kept_and_the_log_was_not_cleared(path: Path) -> None:
    """The process ended in between."""
    write(path)
    kept = log_of(path).read_bytes()
    with closing(LoggedJournal(path)) as journal:
        journal.append([b"f"])
        journal.save_snapshot(8, b"all")
        assert log_of(path).stat().st_size == 0
    log_of(path).write_bytes(kept)  # nor is the last record there
    with closing(LoggedJournal(path)) as journal:
        assert journal.last_position == 8 and journal.load_snapshot() == (8, b"all")
        assert [*journal.replay(0)] == []
        assert journal.append_unsynced([b"g"]) == 9
    with closing(LoggedJournal(path)) as journal:
        assert [*journal.replay(8)] == [(9, b"g")]


def test_a_journal_with_records_in_its_file_goes_on_in_the_log(path: Path) -> None:
    with closing(SqliteJournal(path)) as older:
        older.append([b"a", b"b", b"c"])
        older.save_snapshot(1, b"one")
    with closing(LoggedJournal(path)) as journal:
        assert journal.append([b"d"]) == 4
    with closing(LoggedJournal(path)) as journal:
        assert journal.load_snapshot() == (1, b"one")
        assert [*journal.replay(1)] == [(2, b"b"), (3, b"c"), (4, b"d")]
        assert [*journal.replay(2)] == [(3, b"c"), (4, b"d")]
        journal.save_snapshot(4, b"four")
        assert [*journal.replay(1)] == []


def test_who_does_not_know_of_the_log_refuses_the_journal(path: Path) -> None:
    write(path)
    with pytest.raises(InvalidConfiguration, match="of version 2"):
        SqliteJournal(path)
    assert found(path) == rounds(4)


def test_a_second_daemon_is_kept_from_the_log(path: Path) -> None:
    with closing(LoggedJournal(path)) as journal:
        journal.append_unsynced([b"a"])
        before = log_of(path).read_bytes()
        with pytest.raises(InvalidConfiguration, match="in use by another daemon"):
            LoggedJournal(path)
        assert log_of(path).read_bytes() == before
        journal.append([b"b"])
    assert found(path) == [b"a", b"b"]


def test_the_log_is_for_its_owner_only(path: Path) -> None:
    write(path)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_an_append_that_finds_no_room_keeps_nothing_of_it(tmp_path: Path) -> None:
    """The kernel takes what there is room for, and then refuses: both are undone."""
    path = tmp_path / "log"
    log = Log(path)
    log.append([b"first"], 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
    try:
        for position in (2, 2):
            with pytest.raises(LogFull):
                log.append([b"second"] * 3, position)
            assert log.last_position == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.stat().st_size > len(b"first")
    log.append([b"2"], 2)
    log.append([b"3"], 3)
    expected = [(1, b"first"), (2, b"2"), (3, b"3")]
    assert [*log.read(0)] == expected
    log.close()
    log.close()
    with closing(Log(path)) as again:
        assert [*again.read(0)] == expected and [*again.read(2)] == expected[2:]


def test_no_room_for_a_record_is_known_from_other_failures(path: Path) -> None:
    with closing(LoggedJournal(path)) as journal:
        assert journal.is_full(LogFull(28, "no room"))
        assert not journal.is_full(OSError(28, "a sync that failed"))
        assert not journal.is_full(sqlite3.OperationalError("disk I/O error"))
        assert journal.has_room()


def test_a_copy_of_both_files_is_the_journal(path: Path, tmp_path: Path) -> None:
    write(path)
    copy = tmp_path / "copy"
    shutil.copytree(path.parent, copy)
    assert found(copy / path.name) == rounds(4)
