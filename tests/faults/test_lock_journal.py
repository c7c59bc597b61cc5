"""The locks' journal on a disk that fails, and when the power is lost: tokens grow all the same, who was told
that he holds a lock does, and nobody is given what another has."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from pathlib import Path

import pytest

from tests.faults import lock_work
from tests.faults.conftest import UnderShim
from tests.faults.disks import SYNC, Disk, recorded
from towpath.errors import InvalidConfiguration
from towpath_broker import lock_engine

ONCE, FOR_GOOD = 0, 1


@pytest.mark.parametrize(("error", "stay"), [("ENOSPC", ONCE), ("ENOSPC", FOR_GOOD), ("EIO", FOR_GOOD)])
def test_each_write_and_sync_fails(under_shim: UnderShim, tmp_path: Path, error: str, stay: int) -> None:
    run = under_shim("lock_rounds.py", tmp_path, "fail", error, stay)
    assert run.returncode == 0, run.stderr
    found = [line.split() for line in run.stdout.splitlines()]
    assert [int(each[0]) for each in found] == [*range(1, len(found) + 1)] and len(found) > 50
    assert {each[1] for each in found} >= {"OperationalError", "done"}
    assert sum(int(each[2]) > 0 for each in found) > 10, "somebody held something when the disk failed"


def test_killed_before_each_write_and_sync(under_shim: UnderShim, tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    run = under_shim("lock_rounds.py", watched, "kill")
    assert run.returncode == 0, run.stderr
    found = [line.split() for line in run.stdout.splitlines()]
    assert len(found) > 50 and [each[1] for each in found] == ["killed"] * (len(found) - 1) + ["done"]
    assert sum(int(each[2]) > 0 for each in found) > 10, "somebody held something when it was killed"


def run_crashes(
    under_shim: UnderShim,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    every: int,
    *,
    drops: bool,
) -> int:
    """Lose the power around each sync and after each ``every``-th operation; return how often.

    Args:
        drops: syncs do nothing from the first token on.
    """
    watched, boots = tmp_path / "watched", tmp_path / "boot"
    watched.mkdir()
    run = under_shim("lock_rounds.py", watched, "tell", count, log=tmp_path / "log")
    assert run.returncode == 0, run.stderr
    boots.write_text("another boot\n")
    monkeypatch.setattr(lock_engine, "BOOT_ID", boots)
    disk, crashes, highest = Disk("locks.sqlite"), 0, 0
    for place, operation in enumerate(recorded(tmp_path / "log", watched)):
        if operation.name == "acknowledged":
            highest = max(highest, int(operation.data))
        elif not (drops and highest and operation.kind == SYNC):
            disk.do(operation)
        if disk.is_made and (operation.kind == SYNC or place % every == 0):
            directory = tmp_path / f"crash{crashes}"
            directory.mkdir()
            disk.crash(directory, random.Random(crashes), (0.0, 0.5, 1.0)[crashes % 3])
            asyncio.run(lock_work.examine_after_power_loss(directory / "locks.sqlite", highest))
            crashes += 1
    assert highest > count // 4
    return crashes


def test_tokens_grow_over_a_loss_of_power(
    under_shim: UnderShim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_crashes(under_shim, tmp_path, monkeypatch, 200, 20, drops=False) > 50


@pytest.mark.long
def test_tokens_grow_wherever_the_power_is_lost(
    under_shim: UnderShim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_crashes(under_shim, tmp_path, monkeypatch, 2_000, 2, drops=False) > 1_000


def test_a_journal_that_does_not_sync_is_found_out(
    under_shim: UnderShim, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of the test: tokens go back, or the file is none any more, or records are missing."""
    found = (AssertionError, sqlite3.DatabaseError, InvalidConfiguration)
    with pytest.raises(found, match=r"token|malformed|is missing"):
        run_crashes(under_shim, tmp_path, monkeypatch, 200, 5, drops=True)
