"""Being told that a file may be gone from its place: inotify(7), on the directory.

For the door's socket. A daemon whose socket somebody has deleted runs on, and nobody can reach it.

Not here: what is done then (supervisor.py).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

_IN_MOVED_FROM: Final = 0x040
_IN_DELETE: Final = 0x200
_IN_DELETE_SELF: Final = 0x400
_IN_MOVE_SELF: Final = 0x800
_EVENTS: Final = _IN_MOVED_FROM | _IN_DELETE | _IN_DELETE_SELF | _IN_MOVE_SELF
_READ_BYTES: Final = 4_096


class PlaceWatch:
    """Calls back when a file that is there now may be there no longer. Used on one event loop.

    Args:
        path: of the file.
        on_gone: called once, with the file gone, or another in its place; the watch is over then.

    Raises:
        OSError: the user has no inotify instance or watch left, or the directory is gone.
    """

    def __init__(self, path: Path, on_gone: Callable[[], None]) -> None:
        self._path = path
        self._on_gone = on_gone
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = _checked(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            _checked(libc.inotify_add_watch(self._descriptor, os.fsencode(path.parent), _EVENTS))
            self._file = path.lstat()
        except OSError:
            os.close(self._descriptor)
            raise
        asyncio.get_running_loop().add_reader(self._descriptor, self._look)

    def _look(self) -> None:
        os.read(self._descriptor, _READ_BYTES)  # what happened is seen better at the place itself
        try:
            is_there = os.path.samestat(self._path.lstat(), self._file)
        except OSError:
            is_there = False
        if not is_there:
            self.close()
            self._on_gone()

    def close(self) -> None:
        """Watch no longer. More than once is fine."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result
