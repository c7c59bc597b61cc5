"""What a history's processes agree upon."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Final

PLAIN: Final = ["history.a", "history.b", "history.c"]
"""Locks, taken exclusively and shared; each fences the state of its name with ``.value``."""
SEMAPHORE: Final = "history.permits"
PERMITS: Final = 3
TIMEOUT_S: Final = (None, 0.0, 0.02, 5.0)
GRACE_MS: Final = 600
"""For how long the core waits, after its restart, for those who held locks, and clients rely on that. Less
than usual, so that some come too late."""
KEPT_S: Final = 0.3
"""How long one keeps what it has, when it is asked to; time enough for others to come for it."""


class Ask(Enum):
    """What a worker may be asked to do to itself with its next grant of a mode: to stop, or to keep it for
    KEPT_S. It is asked by a file beside its own, which it removes."""

    STOP = ".stop"
    KEEP_LOCK = ".keep_lock"
    KEEP_PERMITS = ".keep_permits"

    def of(self, file: Path) -> Path:
        """Return the file by which the worker with this one is asked."""
        return file.with_suffix(self.value)
