"""`make setup` where something is missing: one clear line, a non-zero exit, and nothing half done."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project.project_files import ROOT, copy_checkout
from tests.support.deadlines import DEADLINE_S, PROGRAM_S


@pytest.fixture
def bare_machine(tmp_path: Path) -> Path:
    """A checkout, and beside it a folder with the only programs that PATH will have: no apt, no compiler."""
    (tmp_path / "checkout").mkdir()
    copy_checkout(tmp_path / "checkout")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sh", "dirname", "id"):
        found = shutil.which(name)
        assert found
        (programs / name).symlink_to(found)
    return tmp_path


def set_up(machine: Path) -> subprocess.CompletedProcess[str]:
    """Run tools/setup.sh as it would be run on that machine."""
    return subprocess.run(
        [str(machine / "checkout" / "tools" / "setup.sh")],
        env={"PATH": str(machine / "programs"), "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def program(machine: Path, name: str, text: str) -> None:
    """Put a program on the machine's PATH."""
    path = machine / "programs" / name
    path.write_text(text)
    path.chmod(0o755)


def test_no_python_is_said_in_one_line(bare_machine: Path) -> None:
    run = set_up(bare_machine)
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1
    assert "Python 3.11 or newer is needed" in run.stderr


def test_old_python_is_passed_over_for_a_newer_one(bare_machine: Path) -> None:
    program(bare_machine, "python3", "#!/bin/sh\nexit 1\n")
    program(bare_machine, "python3.12", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    run = set_up(bare_machine)
    assert run.stderr.startswith("setup: using python3.12, because python3 is older than 3.11")


def test_missing_compiler_is_said_in_one_line_and_leaves_nothing(bare_machine: Path) -> None:
    program(bare_machine, "python3", f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    run = set_up(bare_machine)
    assert run.returncode == 1
    assert len(run.stderr.splitlines()) == 1
    assert "gcc" in run.stderr and "apt-get install" in run.stderr
    assert not (bare_machine / "checkout" / ".venv").exists()


def test_second_run_does_nothing() -> None:
    run = subprocess.run(
        [str(ROOT / "tools" / "setup.sh")], capture_output=True, text=True, timeout=PROGRAM_S
    )
    again = subprocess.run(
        [str(ROOT / "tools" / "setup.sh")], capture_output=True, text=True, timeout=PROGRAM_S
    )
    assert (run.returncode, again.returncode) == (0, 0)
    assert [line.partition(" (")[0] for line in again.stderr.splitlines()] == ["setup: ready in .venv"]
