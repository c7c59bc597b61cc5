"""Programs that know nothing of Towpath: small C programs, compiled once for a session of tests."""

from __future__ import annotations

import asyncio
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

PROGRAMS = Path(__file__).parent / "programs"


@cache
def _folder() -> Path:
    return Path(mkdtemp(prefix="towpath-foreign-"))


@cache
def program(name: str) -> str:
    """Compile tests/bridge/programs/NAME.c, and return where it is."""
    path = _folder() / name
    subprocess.run(
        ["gcc", "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", PROGRAMS / f"{name}.c", "-o", path, "-lrt"],
        check=True,
    )
    return str(path)


async def start(name: str, *arguments: str, reads: bool = False) -> asyncio.subprocess.Process:
    """Start a foreign program; its standard output is a pipe when it ``reads`` something to tell."""
    return await asyncio.create_subprocess_exec(
        program(name), *arguments, stdout=asyncio.subprocess.PIPE if reads else None
    )


async def run(name: str, *arguments: str) -> bytes:
    """Run a foreign program to its end, which must be a good one; return what it wrote."""
    process = await start(name, *arguments, reads=True)
    output, _ = await process.communicate()
    assert process.returncode == 0, f"{name} ended with {process.returncode}"
    return output
