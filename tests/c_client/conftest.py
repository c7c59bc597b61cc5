"""Building C programs against ``clients/c``, and a daemon for them to talk through."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

import pytest

import towpath
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon
from tests.support.deadlines import DEADLINE_S

HERE: Final = Path(__file__).parent
HEADERS: Final = HERE.parents[1] / "clients" / "c"
PROGRAMS: Final = HERE / "programs"
EXAMPLES: Final = HEADERS / "examples"

SANITIZED: Final = (
    "gcc",
    "-x",
    "c",
    "-std=c11",
    "-g",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
)
CLANG: Final = (sys.executable, "-m", "ziglang", "cc")
CLANG_CACHE: Final = str(Path(sys.prefix, ".zig"))
"""Where `zig cc` keeps what it has built of the C library's start-up code; with the environment, not with the
user."""
COMPILERS: Final = {
    "gcc": ("gcc", "-x", "c", "-std=c11", "-O2"),
    "g++": ("g++", "-x", "c++", "-std=c++11", "-O2"),
    "clang": (*CLANG, "-x", "c", "-std=c11", "-O2"),
    "clang++": (*CLANG, "-x", "c++", "-std=c++11", "-O2"),
}
"""Of C and of C++, each by gcc and by clang."""

_numbers = itertools.count(1)


def build(source: Path, program: Path, compiler: tuple[str, ...] = SANITIZED, *flags: str) -> Path:
    """Compile one file; a warning is a failure."""
    command = [*compiler, "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{HEADERS}", str(source), *flags]
    done = subprocess.run(
        [*command, "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
        env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": CLANG_CACHE},
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return program


class Running:
    """A C program that runs, spoken to line by line."""

    def __init__(self, program: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    @property
    def _output(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def line(self) -> str:
        """The next line that it says; empty at its end. The test's own time limit bounds the wait."""
        return self._output.readline().rstrip("\n")

    def expect(self, *lines: str) -> None:
        for line in lines:
            said = self.line()
            assert said == line, said or self.end()[1]

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def end(self, status: int = 0) -> tuple[str, str]:
        """Wait for its end; returns the rest of what it said, and its complaints."""
        output, complaints = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == status, f"exit {self.process.returncode}\n{output}\n{complaints}"
        return output, complaints


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Gives a program of a source, built once, with sanitizers."""
    folder = tmp_path_factory.mktemp("c_client")
    built: dict[Path, Path] = {}

    def program(source: Path) -> Path:
        if source not in built:
            built[source] = build(source, folder / source.stem)
        return built[source]

    return program


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon"), LOCAL_ONLY) as handle:
        yield handle


@pytest.fixture
def client(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    with towpath.connect(str(daemon.socket)) as made:
        yield made


@pytest.fixture
def start(daemon: DaemonHandle, programs: Callable[[Path], Path]) -> Iterator[Callable[..., Running]]:
    """Starts a program: of a source, or of ``client.c`` with a command. Killed at the end of the test."""
    running: list[Running] = []

    def run(*arguments: str, source: Path = PROGRAMS / "client.c") -> Running:
        running.append(Running(programs(source), arguments, daemon.environment))
        return running[-1]

    yield run
    for each in running:
        if each.process.poll() is None:
            each.process.kill()
        each.process.communicate()


@pytest.fixture
def name() -> str:
    """A channel's name that no other test uses."""
    return f"c.channel{next(_numbers)}"
