"""What a commit to a durable topic writes, and what is known of its sources after a restart."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conformance.store.test_store import parcel
from towpath.errors import StoreFull
from towpath_broker.core.commands import Kind
from towpath_broker.core.data import rows
from towpath_broker.store.database import PAGE_BYTES, WAL_PAGES
from towpath_broker.store.sqlite import SqliteStore
from towpath_broker.store.topics import TAKEN_PARCELS

OPENING = [rows.OpenChannel("t", 1, Kind.TOPIC), rows.OpenChannel("q", 1, Kind.QUEUE)]


def taken_in(seq: int, source: int = 1) -> Sequence[rows.Row]:
    return [rows.Taken("t", source, seq), parcel("t", seq, 1), rows.Totals("t", 1, seq + 1, seq, seq * 8)]


def test_a_small_commit_writes_one_page_to_a_topic_and_two_to_a_queue(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.sqlite")
    store.commit(OPENING)
    store.commit([])  # looks what is left of channels that were dropped

    other = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)

    def pages(written: Sequence[rows.Row]) -> int:
        store.commit(written)
        _, logged, _ = other.execute("PRAGMA wal_checkpoint").fetchone()  # the next commit begins it anew
        return int(logged)

    pages([])
    assert [pages(taken_in(seq)) for seq in range(1, 30)] == [1] * 29
    queued = rows.AddParcel("q", 1, 1, 8, 1, 1, rows.Run([b"x" * 8]))
    assert pages([queued, rows.Totals("q", 1, 2, 1, 8)]) == 2
    assert pages([rows.Settle("q", 1, None), rows.Totals("q", 1, 2, 0, 0)]) == 2
    other.close()
    store.close()


def test_the_log_has_its_length_from_the_beginning(tmp_path: Path) -> None:
    """So fdatasync writes nothing about the file."""
    path = tmp_path / "store.sqlite"
    log = tmp_path / "store.sqlite-wal"
    lengths = set()
    for seq in range(1, 4):
        store = SqliteStore(path)
        if seq == 1:
            store.commit(OPENING)
        lengths.add(log.stat().st_size)
        store.commit(taken_in(seq))
        lengths.add(log.stat().st_size)
        assert store.load()[0].next_seq == seq + 1
        store.close()
    assert lengths == {32 + WAL_PAGES * (PAGE_BYTES + 24)}


def test_what_was_taken_in_is_known_whenever_the_store_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    store = SqliteStore(path)
    store.commit(OPENING)
    expected: dict[int, int] = {}
    for seq in range(1, 3 * TAKEN_PARCELS):
        source = seq % 7
        store.commit(taken_in(seq, source))
        expected[source] = seq
        if seq % 5 == 0:  # retention: now a few are left, now many
            store.commit([rows.DropParcels("t", seq - seq % 60), rows.Totals("t", 1, 2, 1, 0)])
        if seq % 50 == 0:
            store.commit([rows.ForgetTaken("t", source)])
            del expected[source]
        if seq % 11 == 0:
            store.close()
            store = SqliteStore(path)
        assert store.load()[0].taken == expected, seq
    store.commit([rows.DropParcels("t", seq + 1), rows.Totals("t", seq + 1, seq + 1, 0, 0)])
    store.close()
    store = SqliteStore(path)
    assert store.load()[0].taken == expected, "though no parcel is left"
    store.commit(taken_in(seq + 1, 99))
    assert store.load()[0].taken == expected | {99: seq + 1}
    store.close()


def test_after_a_commit_that_was_refused_nothing_of_it_is_known(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.sqlite", bytes_max=40 * PAGE_BYTES)
    store.commit(OPENING)
    store.commit(taken_in(1))
    large = parcel("t", 2, 1, size=40 * PAGE_BYTES)
    with pytest.raises(StoreFull):
        store.commit([rows.Taken("t", 2, 7), large, rows.Totals("t", 1, 3, 2, 0)])
    store.commit([rows.Taken("t", 1, 2), parcel("t", 2, 1), rows.Totals("t", 1, 3, 2, 16)])
    (topic, _) = store.load()
    assert (topic.taken, topic.next_seq, topic.content_bytes) == ({1: 2}, 3, 16)
    store.close()


def test_a_channels_number_is_given_again_when_nothing_is_left(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.sqlite")
    store.commit(OPENING)
    for declared_at_ns in range(2, 30):
        store.commit([rows.DropChannel("t"), rows.OpenChannel("t", declared_at_ns, Kind.TOPIC)])
        assert store.read_parcels("t", 1, 1 << 20) == []
        store.commit([parcel("t", seq, 1) for seq in range(1, 100)])
    store.close()
