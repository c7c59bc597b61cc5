"""A full disk, for real: a small one, mounted where the daemon keeps its state."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.deadlines import PROGRAM_S

HERE = Path(__file__).parent
NAMESPACES = ("unshare", "--user", "--map-root-user", "--mount")


def on_small_disk(program: str, directory: Path) -> list[str]:
    """Run a program that mounts one; return what it printed."""
    command = [*NAMESPACES, sys.executable, str(HERE / "programs" / program), str(directory)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROGRAM_S)
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stdout.splitlines()


def test_publishers_are_told_and_it_goes_on_when_there_is_room(tmp_path: Path) -> None:
    printed = on_small_disk("fill_disk.py", tmp_path)
    assert printed == ["ring refused", "socket refused", "goes on", "whole", "done"]


def test_who_asks_for_locks_is_told_and_holders_keep_theirs(tmp_path: Path) -> None:
    printed = on_small_disk("fill_disk_locks.py", tmp_path)
    assert printed == ["refused", "held all the while", "goes on when there is room"]


def test_a_core_that_is_killed_starts_on_it_and_refuses(tmp_path: Path) -> None:
    assert on_small_disk("fill_disk_start.py", tmp_path) == [
        "starts, and refuses",
        "goes on when there is room",
    ]
