"""The public API is typed: programs that use it well pass mypy --strict, and misuse is pointed out."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.deadlines import PROGRAM_S

HERE = Path(__file__).parent / "public_api"
ROOT = HERE.parents[2]


def mypy(file: Path, cache: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(cache), str(file)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PROGRAM_S)
    return run.returncode, run.stdout


def test_good_use_passes(tmp_path: Path) -> None:
    assert mypy(HERE / "good.py", tmp_path) == (0, "Success: no issues found in 1 source file\n")


def test_each_misuse_is_pointed_out(tmp_path: Path) -> None:
    file = HERE / "bad.py"
    wrong = {
        number for number, line in enumerate(file.read_text().splitlines(), 1) if line.endswith("# wrong")
    }
    status, output = mypy(file, tmp_path)
    assert status == 1
    assert {int(number) for number in re.findall(r"bad\.py:([0-9]+): error", output)} == wrong
