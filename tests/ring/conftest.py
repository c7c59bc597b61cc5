"""Building and running the C tests of the ring.

Each program of tests/ring/c is compiled once per build that a test asks for, and run as a
process with bounded time. Nothing of Python is in them.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ring.ring_helpers import connect
from tests.support.deadlines import PROGRAM_S
from towpath._ring import Reader, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
HEADERS = HERE.parents[1] / "clients" / "c"
FLAGS = ["-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
LIMIT_S = 200  # the programs' own, after which they end themselves


def compile_program(source: Path, program: Path, *flags: str) -> None:
    """Compile one C file to `program`; a warning is a failure."""
    command = ["gcc", *FLAGS, *flags, f"-I{HEADERS}", f"-I{HERE / 'c'}", str(source), "-o", str(program)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PROGRAM_S)
    assert compiled.returncode == 0, f"{' '.join(command)}\n{compiled.stderr}"


def run_program(program: Path, *arguments: str) -> str:
    """Run a test program; it must exit with 0 and print nothing to stderr. Gives its stdout."""
    ran = subprocess.run(
        [str(program), *arguments],
        env={**os.environ, "RING_LIMIT_S": str(LIMIT_S)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PROGRAM_S,
    )
    assert ran.returncode == 0, f"exit {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
    assert ran.stderr == ""
    return ran.stdout


@pytest.fixture(scope="session")
def c_program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Give a function that builds ``c/NAME.c`` with flags, once for each, and returns the program."""
    folder = tmp_path_factory.mktemp("ring")
    built: dict[tuple[str, tuple[str, ...]], Path] = {}

    def build(name: str, flags: tuple[str, ...] = ()) -> Path:
        if (name, flags) not in built:
            program = folder / f"{name}-{len(built)}"
            compile_program(HERE / "c" / f"{name}.c", program, *flags)
            built[name, flags] = program
        return built[name, flags]

    return build


@pytest.fixture(scope="session")
def c_test(c_program: Callable[..., Path]) -> Callable[..., str]:
    """Give a function that builds ``c/NAME.c`` with flags, runs it with arguments, returns its output."""

    def run(name: str, flags: tuple[str, ...] = (), *arguments: str) -> str:
        return run_program(c_program(name, flags), *arguments)

    return run


@pytest.fixture
def pair() -> Iterator[tuple[Writer, Reader]]:
    """A writer (source 7, 64 KiB) with one reader (9) attached."""
    writer, reader = Writer(7, 65536), Reader(9)
    connect(writer, reader)
    yield writer, reader
    writer.close()
    reader.close()
