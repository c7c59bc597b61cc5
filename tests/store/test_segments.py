"""Large parcels, which lie in segments beside the store's file."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conformance.store.test_store import parcel, payloads
from towpath.errors import StoreDamaged, StoreFull
from towpath_broker.core.commands import Kind
from towpath_broker.core.data import rows
from towpath_broker.store import check, rewriting, segments
from towpath_broker.store.segments import APART_BYTES, SEGMENT_BYTES, directory_of
from towpath_broker.store.sqlite import SWEEP_PARCELS, SqliteStore

OPENING = [rows.OpenChannel("t", 1, Kind.TOPIC), rows.OpenChannel("u", 1, Kind.TOPIC)]
LARGE = 2 * APART_BYTES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "store.sqlite"


def added(seq: int, *, channel: str = "t", size: int = LARGE, oldest: int = 1) -> Sequence[rows.Row]:
    return [
        parcel(channel, seq, 1, time_ns=seq, size=size),
        rows.DropParcels(channel, oldest),
        rows.Totals(channel, oldest, seq + 1, seq + 1 - oldest, size),
    ]


def opened(path: Path) -> SqliteStore:
    store = SqliteStore(path)
    if not store.load():
        store.commit(OPENING)
    return store


def files(path: Path) -> dict[str, int]:
    return {each.name: each.stat().st_size for each in sorted(directory_of(path).iterdir())}


def seqs(store: SqliteStore, channel: str = "t") -> list[int]:
    found = store.read_parcels(channel, 1, 1 << 40)
    assert payloads(store, channel, 1, 1 << 40) == [
        bytes(len(p)) for p in payloads(store, channel, 1, 1 << 40)
    ]
    return [each.first_seq for each in found]


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two large parcels fill a segment."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 2 * LARGE)


def test_large_parcels_are_beside_the_file_and_small_ones_in_it(path: Path) -> None:
    store = opened(path)
    for seq, size in enumerate((LARGE, 100, LARGE, APART_BYTES // 2, LARGE), 1):
        store.commit(added(seq, size=size))
    store.commit(added(1, channel="u"))
    assert [*files(path)] == ["1-1", "2-1"] and files(path)["1-1"] > 3 * LARGE
    for _ in range(2):
        assert seqs(store) == [1, 2, 3, 4, 5]
        assert [store.find_time("t", time_ns) for time_ns in (1, 3, 5, 6)] == [1, 3, 5, None]
        store.close()
        assert check.check(path).findings == []
        assert check.summarize(path).file_bytes == path.stat().st_size + sum(files(path).values())
        store = opened(path)
    store.close()


def test_a_segment_is_let_go_when_none_of_its_parcels_is_left(path: Path, small_segments: None) -> None:
    store = opened(path)
    for seq in range(1, 8):
        store.commit(added(seq))
    assert [*files(path)] == ["1-1", "1-3", "1-5", "1-7"]
    store.commit(added(8, oldest=4))
    assert [*files(path)] == ["1-3", "1-5", "1-7"] and seqs(store) == [4, 5, 6, 7, 8]
    store.commit(added(9, oldest=9))
    assert [*files(path)] == ["1-9"] and seqs(store) == [9]
    store.commit([rows.DropParcels("t", 10), rows.Totals("t", 10, 10, 0, 0)])
    assert not files(path) and seqs(store) == []
    store.commit(added(10, oldest=10))
    assert [*files(path)] == ["1-a"] and seqs(store) == [10]
    store.close()
    store = opened(path)
    store.commit(added(11, oldest=11))
    assert [*files(path)] == ["1-b"] and seqs(store) == [11], "a new one after each start"
    store.close()


def test_the_segments_of_a_topic_that_is_dropped_go_with_later_commits(
    path: Path, small_segments: None
) -> None:
    store = opened(path)
    for seq in range(1, 3 * SWEEP_PARCELS + 1):
        store.commit(added(seq, channel="u", size=LARGE if seq % 2 else APART_BYTES))
    before = len(files(path))
    assert before > 20
    store.commit([rows.DropChannel("u"), rows.OpenChannel("u", 2, Kind.TOPIC)])
    assert len(files(path)) == before - segments.UNLINKED_MAX
    store.close()  # most of its parcels still have rows
    store = opened(path)  # lets some go too
    while left := len(files(path)):
        assert store.read_parcels("u", 1, 1) == []
        store.commit([])
        assert len(files(path)) == max(left - segments.UNLINKED_MAX, 0)
    for _ in range(3):
        store.commit([])
    store.close()
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM dropped").fetchone() == (0,)
    database.close()
    store = opened(path)
    store.close()


def test_a_number_is_not_given_again_while_segments_are_there(path: Path, small_segments: None) -> None:
    store = opened(path)
    for round_ in range(2, 12):
        for seq in range(1, 20):
            store.commit(added(seq, channel="u"))
        with segments.held(path):
            store.commit([rows.DropChannel("u"), rows.OpenChannel("u", round_, Kind.TOPIC)])
            assert len(files(path)) >= 10, "somebody reads"
        assert store.read_parcels("u", 1, 1 << 30) == []
        store.commit(added(1, channel="u"))
        assert seqs(store, "u") == [1]
        store.commit([rows.DropChannel("u"), rows.OpenChannel("u", round_, Kind.TOPIC)])
    store.close()
    assert check.check(path).findings == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_what_is_refused_leaves_no_bytes(path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    store = opened(path)
    store.commit(added(1))
    before = files(path)
    real = os.pwrite

    def half(descriptor: int, data: memoryview, offset: int) -> int:
        if offset % 7 == 0:
            raise OSError(code, os.strerror(code))
        return real(descriptor, data[: len(data) // 2 | 1], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        for _ in range(3):
            with pytest.raises(StoreFull, match="no room"):
                store.commit([*added(1, channel="u"), *added(2), rows.DropParcels("t", 2)])
            assert files(path) == before
    store.commit([*added(2), *added(1, channel="u")])
    assert seqs(store) == [1, 2] and seqs(store, "u") == [1]
    store.close()
    assert check.check(path).findings == []


def test_what_a_crash_left_is_no_parcel(path: Path) -> None:
    store = opened(path)
    store.commit(added(1))
    store.close()
    directory = directory_of(path)
    with (directory / "1-1").open("ab") as file:
        file.write(b"of a commit that was cut short")
    (directory / "1-2").write_bytes(b"the same, in a segment of its own")
    (directory / "9-1").write_bytes(b"the same, of a channel that is not there")
    (directory / "note.txt").write_text("not a segment at all")
    store = opened(path)
    assert [*files(path)] == ["1-1", "note.txt"]
    (directory / "1-2").write_bytes(b"and if it cannot be unlinked, it is written over" * 9_999)
    store.commit(added(2))
    assert seqs(store) == [1, 2] and files(path)["1-2"] < LARGE + 1_000
    store.close()


def test_a_commit_that_failed_in_an_unknown_way_is_not_written_over(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be there after all, at the next start."""
    store = opened(path)
    store.commit(added(1))

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="broken"):
            store.commit(added(2))
    assert files(path)["1-1"] > 2 * LARGE
    store.close()


def test_what_is_missing_is_named(path: Path) -> None:
    store = opened(path)
    store.commit(added(1))
    store.close()
    store = opened(path)
    store.commit(added(2))
    (directory_of(path) / "1-1").unlink()
    with pytest.raises(StoreDamaged, match="1-1 is missing"):
        store.read_parcels("t", 1, 1)
    with pytest.raises(StoreDamaged, match="1-1 is missing"):
        store.find_time("t", 1)
    assert [each.first_seq for each in store.read_parcels("t", 2, 1)] == [2]
    assert "1-1 is missing" in check.check(path).findings[0].text
    os.truncate(directory_of(path) / "1-2", LARGE)
    with pytest.raises(StoreDamaged, match="1-2 ends before"):
        store.read_parcels("t", 2, 1)
    assert "1-2 ends before" in check.check(path).findings[1].text
    store.close()
    store = SqliteStore(path)
    with pytest.raises(StoreDamaged, match="1-2 ends before"):
        store.load()
    (directory_of(path) / "1-2").unlink()
    with pytest.raises(StoreDamaged, match="1-2 is missing"):
        store.load()
    store.close()


def test_a_damaged_segment_is_found(path: Path) -> None:
    store = opened(path)
    for seq in (1, 2, 3):
        store.commit(added(seq))
    store.close()
    with (directory_of(path) / "1-1").open("r+b") as file:
        file.seek(LARGE + LARGE // 2)
        file.write(b"\xff")
    (finding,) = check.check(path).findings
    assert (finding.channel, finding.text.startswith("the messages of 't' from 2")) == ("t", True)


def test_a_copy_is_whole_in_one_file_and_compaction_leaves_segments(path: Path, tmp_path: Path) -> None:
    store = opened(path)
    for seq in range(1, 6):
        store.commit(added(seq, size=LARGE if seq % 2 else 100))
    target = tmp_path / "copy"
    told: list[tuple[int, int]] = []
    assert check.backup(path, target, lambda done, total: told.append((done, total))) > 3 * LARGE
    assert told[-1][0] == told[-1][1] > 3 * LARGE
    store.commit([*added(6, oldest=7), rows.DropParcels("t", 7), rows.Totals("t", 7, 7, 0, 0)])
    store.close()
    assert not files(path) and not directory_of(target).exists()
    assert check.check(target).findings == []
    target.replace(path)
    rewriting.compact(path)
    store = opened(path)
    assert seqs(store) == [1, 2, 3, 4, 5]
    store.commit(added(6))
    store.close()
    rewriting.compact(path)
    store = opened(path)
    assert seqs(store) == [1, 2, 3, 4, 5, 6]
    store.close()


def test_who_reads_is_not_disturbed_by_what_is_let_go(
    path: Path, small_segments: None, tmp_path: Path
) -> None:
    """Readers, checks and copies while each commit lets go of a parcel, and every second of a segment."""
    store = opened(path)
    for seq in range(1, 9):
        store.commit(added(seq))
    is_over = threading.Event()

    def write() -> None:
        seq = 9
        while not is_over.is_set():
            store.commit(added(seq, oldest=seq - 7))
            seq += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(10):
            for _ in range(20):
                found = store.read_parcels("t", 1, 1 << 30)
                first = found[0].first_seq
                assert [each.first_seq for each in found] == [*range(first, first + 8)]
                assert store.find_time("t", first) is not None
            assert check.check(path).findings == []
            check.backup(path, tmp_path / str(number))
            assert check.check(tmp_path / str(number)).findings == []
    finally:
        is_over.set()
        writer.join()
        store.close()
    store = opened(path)
    while len(files(path)) > 5:
        store.commit([])
    assert len(seqs(store)) == 8
    store.close()


def test_a_large_commit_writes_its_bytes_once(path: Path) -> None:
    """That is what segments are for: SQLite gets a row."""
    store = opened(path)
    store.commit(added(1, size=100))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA wal_checkpoint").fetchone()
    store.commit(added(2, size=SEGMENT_BYTES // 8))
    _, logged, _ = other.execute("PRAGMA wal_checkpoint").fetchone()
    assert logged == 1
    other.close()
    store.close()
