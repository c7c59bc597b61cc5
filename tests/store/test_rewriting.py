"""A store's file that is written anew: without what it does not use, and from an earlier version."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import work
from towpath import _ring
from towpath.errors import InvalidConfiguration, StoreFull, Unavailable
from towpath_broker.core.commands import Kind
from towpath_broker.core.data import rows
from towpath_broker.store import check, rewriting
from towpath_broker.store.sqlite import SqliteStore

VERSION_1 = Path(__file__).with_name("version_1.sql").read_text()


def packed(*payloads: bytes) -> bytes:
    return _ring.pack(payloads, (), 5, (), ()).data


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Of version 1, as a daemon that was killed left it: two topics whose parcels came in turn, and an
    empty one; a queue, a state, and what is left of a channel that was dropped."""
    path = tmp_path / "store.sqlite"
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(VERSION_1)
    database.executemany(
        "INSERT INTO channel VALUES (?, ?, 7, ?, ?, ?, ?, ?)",
        [
            (1, "t", Kind.TOPIC, 3, 7, 4, 12),
            (3, "u", Kind.TOPIC, 1, 4, 3, 3),
            (4, "empty", Kind.TOPIC, 9, 9, 0, 0),
            (5, "q", Kind.QUEUE, 1, 8, 4, 4),
            (6, "s", Kind.STATE, 1, 1, 0, 0),
        ],
    )
    parcel = "INSERT INTO parcel (channel, first_seq, count, content_bytes, last_time_ns, until_ns, data)"
    for number, first_seq, count, payload in (
        (3, 1, 1, b"x"),
        (1, 3, 2, b"abc"),
        (2, 1, 1, b"left"),
        (3, 2, 2, b"y"),
        (1, 5, 2, b"def"),
    ):
        data = packed(*[payload] * count)
        values = (number, first_seq, count, count * len(payload), 5, 5, data)
        database.execute(f"{parcel} VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    columns = "channel, first_seq, count, content_bytes, priority, deliver_at_ns, settled, data"
    queued = f"INSERT INTO queued ({columns})"
    database.execute(f"{queued} VALUES (5, 1, 4, 4, 3, 0, x'06', ?)", (packed(b"1", b"2", b"3", b"4"),))
    database.execute(f"{queued} VALUES (5, 5, 1, 1, 3, 99, x'', ?)", (packed(b"5"),))
    database.execute(f"{queued} VALUES (5, 7, 1, 1, 0, 0, x'', ?)", (packed(b"7"),))
    database.execute("INSERT INTO attempt VALUES (5, 4, 1, 2)")
    database.execute("INSERT INTO taken VALUES (1, -5, 6)")
    database.execute("INSERT INTO place VALUES (1, 'p', 4, 9)")
    database.execute("INSERT INTO value VALUES (6, 3, 1, x'aa', x'', 8)")
    database.execute("INSERT INTO message_id VALUES (5, 'id', 7, 4)")
    database.execute("INSERT INTO committed VALUES ('uid:1', 'x', x'bb', 4)")
    database.execute("INSERT INTO dropped VALUES (2)")
    killed = path.with_name("killed")
    wal = path.with_name("store.sqlite-wal").read_bytes()
    killed.write_bytes(path.read_bytes())
    database.close()
    killed.replace(path)
    path.with_name("store.sqlite-wal").write_bytes(wal)
    return path


def test_a_store_of_version_1_is_brought_up_to_date(old: Path) -> None:
    with pytest.raises(InvalidConfiguration, match="of version 1; this Towpath reads 3"):
        check.check(old)
    store = SqliteStore(old)
    assert store.load() == [
        rows.StoredChannel("t", 7, Kind.TOPIC, 3, 7, 4, 12, taken={(1 << 64) - 5: 6}, places={"p": (4, 9)}),
        rows.StoredChannel("u", 7, Kind.TOPIC, 1, 4, 3, 3),
        rows.StoredChannel("empty", 7, Kind.TOPIC, 9, 9),
        rows.StoredChannel("q", 7, Kind.QUEUE, 1, 8, 4, 4, priorities=[0, 3], next_due_ns=99),
        rows.StoredChannel("s", 7, Kind.STATE),
    ]
    found = [(each.first_seq, each.count, each.data) for each in store.read_parcels("t", 1, 999)]
    assert found == [(3, 2, packed(b"abc", b"abc")), (5, 2, packed(b"def", b"def"))]
    (high,) = store.read_queue("q", 3, 1, 9, 999)
    assert (high.run.payloads, high.settled, high.attempts) == (
        [b"1", b"2", b"3", b"4"],
        b"\x06",
        [(4, 1, 2, 0)],
    )
    assert [each.first_seq for each in store.read_due("q", (0, 0), 99, 9, 99)[0]] == [5]
    assert store.read_value("s").version == 3 and store.read_ids("q", 0) == {"id": (7, 4)}
    assert [each.response for each in store.read_transactions(0)] == [b"\xbb"]
    store.commit([rows.Taken("t", 8, 1), rows.AddParcel("t", 7, 1, 1, 6, 6, packed(b"g"))])
    store.close()
    assert check.check(old).findings == []
    assert sorted(each.name for each in old.parent.iterdir()) == [
        "store.sqlite",
        "store.sqlite-lock",
        "store.sqlite-parcels",
    ]


@pytest.mark.parametrize("is_compacted", [False, True])
def test_a_store_of_version_2_goes_on_with_what_is_in_it(tmp_path: Path, is_compacted: bool) -> None:
    path = tmp_path / "store.sqlite"
    store = SqliteStore(path)
    store.commit(work.opening())
    for number in range(1, 5):
        store.commit(work.commit(number, 50_000))
    store.close()
    with sqlite3.connect(path) as database:
        for column in ("segment", "start", "nbytes"):
            database.execute(f"ALTER TABLE parcel DROP COLUMN {column}")
        database.execute("UPDATE parcel SET data = ? WHERE first_seq = 3", (packed(b"large" * 50_000),))
        database.execute("PRAGMA user_version=2")
    database.close()
    with pytest.raises(InvalidConfiguration, match="of version 2; this Towpath reads 3"):
        check.summarize(path)
    if is_compacted:
        rewriting.compact(path)
    store = SqliteStore(path)
    store.commit(work.commit(5, 100_000))
    found = store.read_parcels("t", 1, 1 << 30)
    assert [each.first_seq for each in found] == [1, 2, 3, 4, 5]
    assert found[2].data == packed(b"large" * 50_000)
    store.close()


def test_an_old_store_is_left_alone_when_there_is_no_room(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = old.read_bytes()

    def full(*_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(rewriting, "_copy_topic", full)
        with pytest.raises(StoreFull):
            SqliteStore(old)
    assert len(old.read_bytes()) >= len(before) and not old.with_name("store.sqlite-new").exists()
    store = SqliteStore(old)
    assert len(store.load()) == 5
    store.close()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A store most of which was let go."""
    path = tmp_path / "store.sqlite"
    store = SqliteStore(path)
    store.commit(work.opening())
    for number in range(1, 100):
        store.commit(work.commit(number, 50_000 if number < 79 else 70_000 if number % 2 else 100))
    store.close()
    return path


def test_compact_gives_room_back(large: Path) -> None:
    with sqlite3.connect(large) as database:
        content = database.execute("SELECT * FROM parcel").fetchall()
    database.close()
    large.with_name("store.sqlite-new").write_bytes(b"of a try that was cut short")
    before, after = rewriting.compact(large)
    assert before > 1_000_000 and after == large.stat().st_size < 300_000
    assert check.check(large).findings == [] and large.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(large) as database:
        assert database.execute("SELECT * FROM parcel").fetchall() == content
    database.close()
    assert work.examine(large) == 99, "and the daemon goes on with it"


def test_compact_leaves_a_store_alone_that_is_in_use(large: Path) -> None:
    before = large.stat().st_size
    store = SqliteStore(large)
    with pytest.raises(InvalidConfiguration, match="in use by another daemon"):
        rewriting.compact(large)
    store.close()
    reader = sqlite3.connect(large, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM channel").fetchone()
    with pytest.raises(Unavailable, match="is being read"):
        rewriting.compact(large)
    reader.close()
    assert large.stat().st_size == before
    with pytest.raises(InvalidConfiguration, match="no store"):
        rewriting.compact(large.with_name("missing"))


def test_the_verb(large: Path) -> None:
    words = ["store", "compact", "--state-dir", str(large.parent)]
    done = subprocess.run(
        [sys.executable, "-m", "towpath", *words], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0 and " before, " in done.stderr, done
    assert check.check(large).findings == []
