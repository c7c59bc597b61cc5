"""Builds the shim that stands for a disk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.deadlines import PROGRAM_S

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

UnderShim = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shim, compiled."""
    library = tmp_path_factory.mktemp("shim") / "disk_shim.so"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run(["gcc", *flags, "-o", library, HERE / "disk_shim.c", "-ldl", "-pthread"], check=True)
    return library


@pytest.fixture
def under_shim(shim: Path) -> UnderShim:
    """Runs a program of ``programs`` whose files under a directory are watched."""

    def run(program: str, directory: Path, *arguments: object, log: Path | None = None) -> object:
        environment = {
            **os.environ,
            "LD_PRELOAD": str(shim),
            "TOWPATH_SHIM_DIRECTORY": str(directory),
            "PYTHONPATH": str(ROOT),
        }
        if log is not None:
            environment["TOWPATH_SHIM_LOG"] = str(log)
        command = [sys.executable, str(HERE / "programs" / program), str(directory), *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PROGRAM_S)

    return run  # type: ignore[return-value]
