"""Has each write and sync of a store fail, one after the other, under the shim; tells what became of it.

``fail_each.py DIRECTORY ERRNO STAY``: for n = 1, 2, ... a new store, whose n-th operation fails with that
errno, and with STAY 1 all after it. Prints one line for each n: what was acknowledged and what was refused.
Ends when nothing fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import shutil
import sqlite3
import sys
from pathlib import Path

from tests.faults import work
from towpath.errors import StoreDamaged, StoreFull
from towpath_broker.store.sqlite import SqliteStore

COMMITS = 6
SIZES = 3_000, 70_000
"""Of parcels, in turn: in a row, and in a segment."""


def attempt(path: Path) -> tuple[list[int], list[int], str]:
    """Commit until the host fails; return what was acknowledged and refused, and how it ended."""
    acknowledged: list[int] = []
    refused: list[int] = []
    try:
        store = SqliteStore(path)
    except (OSError, sqlite3.Error, StoreFull) as error:
        return acknowledged, refused, type(error).__name__
    try:
        store.load()
        store.commit(work.opening())
        number = 1
        for _ in range(COMMITS):
            try:
                store.commit(work.commit(number, SIZES[number % 2]))
                acknowledged.append(number)
                number += 1
                if number % 3:  # as the engine does where a publisher waits for each message
                    store.prepare()
            except StoreFull:
                refused.append(number)
    except (OSError, sqlite3.Error, StoreFull) as error:
        return acknowledged, refused, type(error).__name__
    finally:
        with contextlib.suppress(sqlite3.Error):
            store.close()
    return acknowledged, refused, "done"


def main() -> None:
    directory, code, stays = Path(sys.argv[1]), getattr(errno, sys.argv[2]), int(sys.argv[3])
    shim = ctypes.CDLL(None)
    for n in range(1, 10_000):
        path = directory / str(n) / "store.sqlite"
        path.parent.mkdir()
        before = shim.shim_count()
        shim.shim_fail_at(n, code, stays)
        acknowledged, refused, outcome = attempt(path)
        used = shim.shim_count() - before
        shim.shim_fail_at(0, 0, 0)
        try:
            last = work.examine(path)
        except StoreDamaged as error:
            last = -99
            outcome = f"{outcome} {error.message}"
        print(n, max(acknowledged, default=0), ",".join(map(str, refused)) or "-", last, outcome, flush=True)
        shutil.rmtree(path.parent)
        if used < n:
            return


main()
