"""How the tests run ``towpath``: as its own process, or in bash, and wait."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import towpath as library
from tests.support.deadlines import DEADLINE_S


def environment(socket: Path | None, **more: str) -> dict[str, str]:
    """A command's environment: this Python first, and a daemon's socket (None: where nobody is)."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    where = str(socket) if socket is not None else "/nonexistent/towpath.sock"
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    return {**inherited, "PATH": path, "LC_ALL": "C.UTF-8", "TOWPATH_SOCKET": where, **more}


def towpath(
    *arguments: str, env: Mapping[str, str], stdin: bytes = b"", timeout: float = DEADLINE_S
) -> subprocess.CompletedProcess[bytes]:
    """Run one command line to its end, with no terminal anywhere."""
    return subprocess.run(
        command(*arguments), input=stdin, capture_output=True, env=env, timeout=timeout, check=False
    )


def bash(
    script: str, *, env: Mapping[str, str], cwd: Path | None = None, timeout: float = DEADLINE_S
) -> subprocess.CompletedProcess[bytes]:
    """Run a script in bash, without anybody's start-up files."""
    words = ["bash", "--noprofile", "--norc", "-c", script]
    return subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, env=env, cwd=cwd, timeout=timeout, check=False
    )


def command(*arguments: str) -> Sequence[str]:
    """The words that run ``towpath`` with this Python."""
    return [sys.executable, "-m", "towpath", *arguments]


class Start(Protocol):
    """Starts ``towpath`` in the background; what the fixture ``start`` gives."""

    def __call__(
        self, *arguments: str, stdin: int = ..., stdout: int = ..., stderr: int = ...
    ) -> subprocess.Popen[bytes]: ...


def output(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    """Wait for a process to end: its exit status, standard output and standard error."""
    out, errors = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, errors


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; fail when it does not come true."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.01)


def subscribed(client: library.Client, channel: str, count: int = 1) -> None:
    """Wait until the channel has so many subscribers: nothing published from then on is missed."""
    until(lambda: client.channel_info(channel).subscribers == count, f"{count} subscribers of {channel}")
