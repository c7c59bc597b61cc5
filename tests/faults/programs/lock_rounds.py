"""Runs a lock engine on a journal under the shim; says what became of it.

``lock_rounds.py DIRECTORY tell COUNT``: so many commands; each effect that was emitted is appended to a file
beside.

``lock_rounds.py DIRECTORY fail ERRNO STAY``: for n = 1, 2, ... a new journal whose n-th operation fails with
that errno, and with STAY 1 all after it. Afterwards everybody must hold what he was told, and tokens must
grow. Prints a line for each n. Ends when nothing fails.

``lock_rounds.py DIRECTORY kill``: the same, but that the process is killed before its n-th operation.

Blocks of tokens and the span between snapshots are small, so that there are many of both.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import pickle
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.faults import lock_work
from tests.faults.lock_work import Told
from towpath.errors import StoreFull
from towpath_broker.core.locks import machine
from towpath_broker.core.locks.effects import LockEffect

FAIL_COUNT = 40
machine.TOKENS_PER_BLOCK = 8  # type: ignore[misc]


def tell(directory: Path, count: int) -> None:
    """Tell each grant and each release in a file."""
    file = os.open(directory / "acknowledged", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def heard(effect: LockEffect) -> None:
        for line in lock_work.lines(effect):
            os.write(file, line.encode())

    asyncio.run(lock_work.run(directory / "locks.sqlite", random.Random(1), count, heard))


def attempt(path: Path, heard: Callable[[LockEffect], None]) -> str:
    """Run an engine until the host fails; return how it ended."""
    try:
        asyncio.run(lock_work.run(path, random.Random(1), FAIL_COUNT, heard))
    except (OSError, sqlite3.Error, StoreFull) as error:
        return type(error).__name__
    return "done"


def fail(directory: Path, code: int, stays: int) -> None:
    """Have each operation fail in turn."""
    shim = ctypes.CDLL(None)
    for n in range(1, 10_000):
        path = directory / str(n) / "locks.sqlite"
        path.parent.mkdir()
        told = Told()
        before = shim.shim_count()
        shim.shim_fail_at(n, code, stays)
        outcome = attempt(path, told.heard)
        used = shim.shim_count() - before
        shim.shim_fail_at(0, 0, 0)
        asyncio.run(lock_work.examine_after_failure(path, told))
        print(n, outcome, len(told.held), told.highest, flush=True)
        with contextlib.suppress(OSError):
            shutil.rmtree(path.parent)
        if used < n:
            return


def kill(directory: Path) -> None:
    """Have a process be killed before each operation in turn. What it was told comes by a pipe."""
    order = directory.parent / "kill"
    os.environ["TOWPATH_SHIM_KILL_FILE"] = str(order)
    for n in range(1, 10_000):
        path = directory / str(n) / "locks.sqlite"
        path.parent.mkdir()
        order.write_text(str(n))
        inlet, outlet = os.pipe()
        child = os.fork()
        if not child:
            with open(outlet, "wb", buffering=0) as telling:
                attempt(path, partial(pickle.dump, file=telling))
            os._exit(0)
        os.close(outlet)
        told = Told()
        with open(inlet, "rb") as effects, contextlib.suppress(EOFError):
            while True:
                told.heard(pickle.load(effects))
        _, status = os.waitpid(child, 0)
        order.unlink()
        asyncio.run(lock_work.examine_after_failure(path, told))
        print(n, "killed" if os.WIFSIGNALED(status) else "done", len(told.held), told.highest, flush=True)
        shutil.rmtree(path.parent)
        if not os.WIFSIGNALED(status):
            return


def main() -> None:
    directory = Path(sys.argv[1])
    if sys.argv[2] == "kill":
        kill(directory)
        return
    if sys.argv[2] == "tell":
        tell(directory, int(sys.argv[3]))
    else:
        fail(directory, getattr(errno, sys.argv[3]), int(sys.argv[4]))


main()
