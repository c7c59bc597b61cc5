"""What ``towpath store`` finds: a whole store, and each kind of damage."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import work
from towpath.errors import InvalidConfiguration, StoreDamaged
from towpath_broker.core.commands import Kind
from towpath_broker.core.data import rows
from towpath_broker.store import check
from towpath_broker.store.sqlite import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with a topic, a queue and a state, closed in order."""
    path = tmp_path / "state" / "store.sqlite"
    store = SqliteStore(path)
    store.commit(work.opening())
    for number in range(1, 31):
        store.commit(work.commit(number, 50))
    run = rows.Run([b"job"] * 5)
    store.commit(
        [
            rows.OpenChannel("q", 1, Kind.QUEUE),
            rows.AddParcel("q", 1, 5, 15, 1, 1, run),
            rows.Settle("q", 1, b"\x03"),
            rows.Totals("q", 1, 6, 3, 9),
        ]
    )
    store.close()
    return path


def damage(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as database:
        for statement in statements:
            assert database.execute(statement).rowcount != 0, statement
    database.close()


def found(path: Path) -> list[str]:
    return [f"{each.channel}: {each.text}" for each in check.check(path).findings]


def test_a_whole_store_is_whole(path: Path) -> None:
    told: list[tuple[int, int]] = []
    report = check.check(path, lambda done, total: told.append((done, total)))
    assert report.findings == []
    assert [(each.name, each.kind, each.messages) for each in report.channels] == [
        ("q", "queue", 3),
        ("s", "state", 0),
        ("t", "topic", 21),
    ]
    assert told[-1][0] == told[-1][1] > 0, "progress ends with everything"
    assert check.summarize(path).channels == report.channels


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "UPDATE parcel SET data = zeroblob(length(data)) WHERE first_seq = 20",
            "t: the messages of 't' from 20",
        ),
        ("DELETE FROM parcel WHERE first_seq = 20", "t: messages 20 to 20 are missing"),
        ("UPDATE parcel SET id = id + 5 WHERE first_seq = 30", "t: the messages from 30 on do not follow"),
        ("UPDATE parcel SET end_bytes = 1 WHERE first_seq = 20", "t: the messages from 20 on do not follow"),
        ("UPDATE channel SET messages = 99 WHERE name = 'q'", "q: 3 messages are there, 99 should be"),
        ("UPDATE parcel SET count = 2 WHERE first_seq = 30", "t: the messages from 30 on are not those"),
        ("UPDATE parcel SET until_ns = 0 WHERE first_seq = 30", "t: from 30 on times cannot be searched for"),
        ("UPDATE settled SET bits = x'FF'", "q: of the messages from 1 on more are settled"),
        ("UPDATE queued SET lane = 7", "q: the messages from 1 on are not where they belong"),
        ("UPDATE queued SET first_seq = 2", "q: messages from 2 on have numbers that cannot be"),
        ("UPDATE settled SET channel = 77", ": 1 channels have rows in settled and are not there"),
        ("UPDATE parcel SET id = id << 9", ": 1 channels have rows in parcel and are not there"),
    ],
)
def test_damage_is_found_and_named(path: Path, statement: str, expected: str) -> None:
    damage(path, statement)
    assert any(text.startswith(expected) for text in found(path)), found(path)


def test_damaged_pages_are_found(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        for place in range(16_384 * 3, size, 16_384):
            file.seek(place)
            file.write(b"\xa5" * 512)
    with pytest.raises(StoreDamaged):
        raise StoreDamaged(found(path)[0])


def test_a_damaged_tail_stops_the_daemon_at_its_start(path: Path) -> None:
    damage(path, "UPDATE parcel SET data = zeroblob(length(data)) WHERE first_seq = 30")
    store = SqliteStore(path)
    with pytest.raises(StoreDamaged, match="from 30 on"):
        store.load()
    store.close()


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    text, other, later = tmp_path / "text", tmp_path / "other", tmp_path / "later"
    text.write_text("no database at all, but longer than its header would be" * 20)
    with sqlite3.connect(other) as database:
        database.execute("CREATE TABLE x (y)")
    SqliteStore(later).close()
    damage(later, "PRAGMA user_version=99")
    for path in (tmp_path / "missing", text, other, later):
        with pytest.raises(InvalidConfiguration):
            check.check(path)
    for path in (text, other, later):
        with pytest.raises(InvalidConfiguration):
            SqliteStore(path)


def test_two_daemons_cannot_have_one_store(path: Path) -> None:
    store = SqliteStore(path)
    with pytest.raises(InvalidConfiguration, match="in use"):
        SqliteStore(path)
    assert found(path) == [], "it can be read all the same"
    store.close()
    SqliteStore(path).close()


def test_a_backup_is_one_moment_while_the_store_is_written(path: Path, tmp_path: Path) -> None:
    store = SqliteStore(path)
    store.load()
    is_over = threading.Event()
    last = [30]

    def write() -> None:
        while not is_over.is_set():
            store.commit(work.commit(last[0] + 1, 20_000))
            last[0] += 1
            store.prepare()  # as the engine does for a publisher that waits for each message

    writer = threading.Thread(target=write)
    writer.start()
    target = tmp_path / "backup" / "store.sqlite"
    target.parent.mkdir()
    try:
        for _ in range(5):
            target.unlink(missing_ok=True)
            before = last[0]
            assert check.backup(path, target) == target.stat().st_size
            assert check.check(target).findings == []
            assert work.examine(target) >= before
            target.with_name("store.sqlite-lock").unlink()
    finally:
        is_over.set()
        writer.join()
        store.close()
    assert target.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        check.backup(path, target)


def test_start_up_does_not_read_what_is_stored(path: Path) -> None:
    """Its work does not grow with what is stored: SQLite reads no more pages."""

    def pages_read_to_load() -> int:
        store = SqliteStore(path)
        store.load()
        with open("/proc/self/io") as io:
            before = int(io.read().split("rchar: ")[1].split()[0])
        store.close()
        store = SqliteStore(path)
        store.load()
        with open("/proc/self/io") as io:
            after = int(io.read().split("rchar: ")[1].split()[0])
        store.close()
        return after - before

    small = pages_read_to_load()
    store = SqliteStore(path)
    first = 31
    for _ in range(20):
        run = rows.Run([b"x" * 50_000] * 10)
        store.commit(
            [
                rows.AddParcel("t", first, 10, 500_000, 1, 1, run),
                rows.Totals("t", 10, first + 10, first + 1, 0),
                rows.Taken("t", 1, first),
            ]
        )
        first += 10
    store.close()
    assert check.summarize(path).file_bytes > 10_000_000
    assert pages_read_to_load() < small + 1_000_000, "the newest parcel, and some more levels of an index"


# ---- the command line --------------------------------------------------------------------------------------


@pytest.fixture
def towpath(path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "towpath", "store", *map(str, words)]
        return subprocess.run(
            [*command, "--state-dir", str(path.parent)], capture_output=True, text=True, timeout=30
        )

    return run


def test_the_verbs(
    towpath: Callable[..., subprocess.CompletedProcess[str]], path: Path, tmp_path: Path
) -> None:
    shown = towpath("show")
    assert shown.returncode == 0 and shown.stdout.splitlines()[2].split()[:3] == [
        "CHANNEL",
        "KIND",
        "MESSAGES",
    ]
    checked = towpath("check")
    assert checked.returncode == 0 and checked.stdout.endswith("everything is whole\n")
    as_json = json.loads(towpath("check", "--json").stdout)
    assert as_json["is_whole"] and [each["name"] for each in as_json["channels"]] == ["q", "s", "t"]
    copied = towpath("backup", tmp_path / "copy")
    assert copied.returncode == 0 and check.check(tmp_path / "copy").findings == []
    assert towpath("backup", tmp_path / "copy").returncode == 74, "it is there already"
    assert towpath("backup").returncode == 2 and towpath("show", "x").returncode == 2


def test_the_exit_code_of_a_damaged_store(
    towpath: Callable[..., subprocess.CompletedProcess[str]], path: Path
) -> None:
    damage(path, "UPDATE parcel SET data = zeroblob(length(data)) WHERE first_seq = 20")
    checked = towpath("check")
    assert checked.returncode == 74 and "from 20 on" in checked.stdout
    assert not json.loads(towpath("check", "--json").stdout)["is_whole"]
    path.unlink()
    assert towpath("check").returncode == 78
