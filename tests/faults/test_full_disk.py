"""A full disk, for real: a small one, mounted where the daemon keeps its state."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NAMESPACES = ("unshare", "--user", "--map-root-user", "--mount")


def test_publishers_are_told_and_it_goes_on_when_there_is_room(tmp_path: Path) -> None:
    command = [*NAMESPACES, sys.executable, str(HERE / "programs" / "fill_disk.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=110)
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.split("\n")[:-1] == ["ring refused", "socket refused", "goes on", "whole", "done"]
