"""Whether a disk is full, where SQLite says that it could not write.

Source: https://www.sqlite.org/rescode.html
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from pathlib import Path
from typing import Final

PROBE_BYTES: Final = 65_536
_WRITE_ERRORS: Final = (
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_TRUNCATE,
    sqlite3.SQLITE_IOERR_SHMSIZE,
)


def why_full(error: sqlite3.DatabaseError, path: Path) -> str | None:
    """Say for want of which room a database could not be written; None: not for that."""
    code = getattr(error, "sqlite_errorcode", 0)  # errors of the Python module itself have none
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return "its bound, or that of the disk, is reached"
    # A quota is an input/output error to SQLite. A failed sync is another: what became of it is unknown.
    return why_not_written(path) if code in _WRITE_ERRORS else None


def why_not_written(path: Path) -> str | None:
    """Try to write beside a file; say what is wrong if that is a lack of room, else None."""
    probe = f"{path}-probe"
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            written = os.write(descriptor, bytes(PROBE_BYTES))
        finally:
            os.close(descriptor)
    except OSError as error:
        return os.strerror(error.errno or 0) if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(probe)
    return None if written == PROBE_BYTES else os.strerror(errno.ENOSPC)
