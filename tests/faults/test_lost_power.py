"""A crash of the host at any moment: what was not synced may be there, in part, or not. Killing a process
proves nothing about that, because the kernel keeps what it has written.

Some parcels are in rows, some in segments.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.faults import work
from tests.faults.conftest import UnderShim
from tests.faults.disks import SYNC, Disk, recorded


def crash_and_examine(disk: Disk, directory: Path, seed: int, share: float) -> None:
    directory.mkdir()
    disk.crash(directory, random.Random(seed), share)
    if not disk.is_made and disk.acknowledged == 0:
        return  # the file was not made yet
    last = work.examine(directory / "store.sqlite")
    assert last in (disk.acknowledged, disk.acknowledged + 1) or (last == -1 and not disk.acknowledged), (
        f"{last} is there, {disk.acknowledged} was acknowledged (seed {seed}, share {share})"
    )
    shutil.rmtree(directory)  # there are thousands


def run_crashes(under_shim: UnderShim, tmp_path: Path, commits: int, every: int) -> int:
    """Crash after each ``every``-th operation, and around each sync; return how often."""
    watched = tmp_path / "watched"
    watched.mkdir()
    run = under_shim("commit_and_tell.py", watched, commits, 400_000, log=tmp_path / "log")
    assert run.returncode == 0, run.stderr
    disk, crashes, syncs = Disk("store.sqlite"), 0, 0
    for place, operation in enumerate(recorded(tmp_path / "log", watched)):
        if operation.kind == SYNC or place % every == 0 or disk.syncs != syncs:
            for share in (0.0, 0.5, 1.0) if place % 3 == 0 else (0.5,):
                crash_and_examine(disk, tmp_path / f"crash{crashes}", crashes, share)
                crashes += 1
            syncs = disk.syncs
        disk.do(operation)
    assert disk.acknowledged == commits
    return crashes


def test_nothing_acknowledged_is_missing_after_a_loss_of_power(under_shim: UnderShim, tmp_path: Path) -> None:
    assert run_crashes(under_shim, tmp_path, 24, 60) > 80


@pytest.mark.long
def test_nothing_acknowledged_is_missing_wherever_the_power_is_lost(
    under_shim: UnderShim, tmp_path: Path
) -> None:
    assert run_crashes(under_shim, tmp_path, 120, 3) > 1_000


def test_a_store_that_does_not_sync_is_found_out(under_shim: UnderShim, tmp_path: Path) -> None:
    """The test of the test: without its syncs the same crashes lose what was acknowledged."""
    watched = tmp_path / "watched"
    watched.mkdir()
    run = under_shim("commit_and_tell.py", watched, 6, 100_000, log=tmp_path / "log")
    assert run.returncode == 0, run.stderr
    disk = Disk("store.sqlite")
    with pytest.raises(AssertionError, match="was acknowledged"):
        for place, operation in enumerate(recorded(tmp_path / "log", watched)):
            if operation.kind != SYNC or disk.acknowledged < 2:
                disk.do(operation)
            if operation.name == "acknowledged" and disk.acknowledged > 2:
                crash_and_examine(disk, tmp_path / f"crash{place}", place, 0.0)
