"""How the tests run ``towpath``: as its own process, or in a real bash that finds it on its PATH."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TIMEOUT_S = 30.0
"""No command of a test takes nearly so long; one that does is stuck, and fails."""


def environment(socket: Path | None, **more: str) -> dict[str, str]:
    """A command's environment: this Python first, and a daemon's socket (None: where nobody is)."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    where = str(socket) if socket is not None else "/nonexistent/towpath.sock"
    return {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8", "TOWPATH_SOCKET": where, **more}


def towpath(
    *arguments: str, env: Mapping[str, str], stdin: bytes = b"", timeout: float = TIMEOUT_S
) -> subprocess.CompletedProcess[bytes]:
    """Run one command line to its end, with no terminal anywhere."""
    return subprocess.run(
        command(*arguments), input=stdin, capture_output=True, env=env, timeout=timeout, check=False
    )


def bash(
    script: str, *, env: Mapping[str, str], cwd: Path | None = None, timeout: float = TIMEOUT_S
) -> subprocess.CompletedProcess[bytes]:
    """Run a script in bash, without anybody's start-up files."""
    words = ["bash", "--noprofile", "--norc", "-c", script]
    return subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, env=env, cwd=cwd, timeout=timeout, check=False
    )


def command(*arguments: str) -> Sequence[str]:
    """The words that run ``towpath`` with this Python."""
    return [sys.executable, "-m", "towpath", *arguments]
