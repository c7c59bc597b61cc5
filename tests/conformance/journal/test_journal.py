"""What every journal keeps to: one suite, run on each implementation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from towpath_broker.journal.logged import LoggedJournal
from towpath_broker.journal.memory import MemoryJournal
from towpath_broker.journal.sqlite import SqliteJournal
from towpath_broker.ports import Journal

Open = Callable[[], Journal]


def memory(_: Path) -> Open:
    """A journal in memory is the same one each time it is opened."""
    journal = MemoryJournal()
    return lambda: journal


def sqlite(directory: Path) -> Open:
    return lambda: SqliteJournal(directory / "state" / "journal.sqlite")


def logged(directory: Path) -> Open:
    return lambda: LoggedJournal(directory / "state" / "journal.sqlite")


@pytest.fixture(params=[memory, sqlite, logged])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the journal; what was opened before is closed first, as a restart does."""
    opener: Open = request.param(tmp_path)
    opened: list[Journal] = []

    def open_again() -> Journal:
        for journal in opened:
            journal.close()
        opened.append(opener())
        return opened[-1]

    yield open_again
    for journal in opened:
        journal.close()


def kept(journal: Journal, after: int = 0) -> list[tuple[int, bytes]]:
    return list(journal.replay(after))


def test_a_new_journal_is_empty(reopen: Open) -> None:
    journal = reopen()
    assert journal.last_position == 0
    assert journal.load_snapshot() is None
    assert kept(journal) == []


def test_records_come_back_in_order(reopen: Open) -> None:
    journal = reopen()
    assert journal.append([b"a"]) == 1
    assert journal.append([b"b", b"c"]) == 2
    assert journal.append([b"d"]) == 4
    assert journal.last_position == 4
    expected = [(1, b"a"), (2, b"b"), (3, b"c"), (4, b"d")]
    assert kept(journal) == expected
    for after in range(6):
        assert kept(journal, after) == expected[after:]


def test_what_is_synced_and_what_is_not_are_one_order(reopen: Open) -> None:
    journal = reopen()
    assert journal.append_unsynced([b"a", b"b"]) == 1
    assert journal.append([b"c"]) == 3
    assert journal.append_unsynced([b"d"]) == 4
    assert kept(journal) == [(1, b"a"), (2, b"b"), (3, b"c"), (4, b"d")]
    journal = reopen()
    assert journal.last_position == 4
    assert kept(journal, 1) == [(2, b"b"), (3, b"c"), (4, b"d")]


def test_everything_survives_a_restart(reopen: Open) -> None:
    journal = reopen()
    journal.append([b"a", b"b", b"c"])
    journal.save_snapshot(2, b"\x00state of two\xff")
    journal = reopen()
    assert journal.last_position == 3
    assert journal.load_snapshot() == (2, b"\x00state of two\xff")
    assert kept(journal) == [(3, b"c")]
    assert journal.append([b"d"]) == 4


def test_a_snapshot_takes_the_place_of_records_and_of_the_last(reopen: Open) -> None:
    journal = reopen()
    journal.append([b"a", b"b", b"c"])
    journal.save_snapshot(1, b"one")
    assert kept(journal) == [(2, b"b"), (3, b"c")]
    journal.save_snapshot(3, b"three")
    assert kept(journal) == []
    assert journal.load_snapshot() == (3, b"three")


def test_positions_go_on_when_no_record_is_left(reopen: Open) -> None:
    journal = reopen()
    journal.append([b"a", b"b"])
    journal.save_snapshot(2, b"two")
    journal = reopen()
    assert journal.last_position == 2
    assert journal.append([b"c"]) == 3
    assert kept(journal, 2) == [(3, b"c")]


def test_a_snapshot_of_nothing(reopen: Open) -> None:
    journal = reopen()
    journal.save_snapshot(0, b"")
    journal = reopen()
    assert journal.load_snapshot() == (0, b"")
    assert journal.append([b"a"]) == 1


def test_records_are_kept_byte_by_byte(reopen: Open) -> None:
    journal = reopen()
    records = ["é漢😀 \0 \\ ' \"".encode(), b"", b"x" * 1_000_000]
    journal.append(records)
    journal = reopen()
    assert [record for _, record in kept(journal)] == records


def test_a_replay_may_stop_half_way(reopen: Open) -> None:
    journal = reopen()
    journal.append([b"%d" % number for number in range(1000)])
    replay = journal.replay(0)
    assert next(replay) == (1, b"0")
    journal.append([b"more"])
    assert journal.last_position == 1001


def test_calls_come_from_any_thread(reopen: Open) -> None:
    journal = reopen()
    positions: list[int] = []
    for record in (b"a", b"b", b"c"):
        thread = threading.Thread(target=lambda record=record: positions.append(journal.append([record])))
        thread.start()
        thread.join()
    assert positions == [1, 2, 3]
    assert kept(journal) == [(1, b"a"), (2, b"b"), (3, b"c")]


def test_closing_twice_is_fine(reopen: Open) -> None:
    journal = reopen()
    journal.close()
    journal.close()
