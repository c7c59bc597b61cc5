"""Room that is kept on the disk for a core that starts when it is full.

Theory of operation
    A core that starts writes that a run begins, and SQLite what it needs to open what a killed one left. On a
    full disk that would fail; and who cannot start can neither refuse what needs room nor serve what needs
    none. So there is a file in the state directory that nobody reads. Whoever starts removes it, and makes it
    anew when it has written what it had to, before anybody can ask for anything: as large as there is room.

    Other programs may take the room in between; then the core ends, and is started again, as ever.

Sources: posix_fallocate(3).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

NAME: Final = "reserve"
BYTES_MAX: Final = 1 << 20
"""Of which a start takes some tens of thousands, so that it lasts for many."""
_STEP_BYTES: Final = 1 << 16
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Reserve:
    """The file in a state directory.

    Args:
        directory: must be there when something is done.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / NAME

    def release(self) -> None:
        """Give the room back to the disk."""
        self._path.unlink(missing_ok=True)

    def keep(self) -> int:
        """Take as much room as there is, up to ``BYTES_MAX``; return how much that is."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            for nbytes in range(BYTES_MAX, 0, -_STEP_BYTES):
                try:
                    os.posix_fallocate(descriptor, 0, nbytes)
                    return nbytes
                except OSError as error:
                    if error.errno not in _NO_ROOM:
                        raise
                os.ftruncate(descriptor, 0)
            return 0
        finally:
            os.close(descriptor)
