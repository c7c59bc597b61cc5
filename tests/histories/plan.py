"""What a history's processes agree upon."""

from __future__ import annotations

from typing import Final

PLAIN: Final = ["history.a", "history.b", "history.c"]
"""Locks, taken exclusively and shared; each fences the state of its name with ``.value``."""
SEMAPHORE: Final = "history.permits"
PERMITS: Final = 3
TIMEOUT_S: Final = (None, 0.0, 0.02, 5.0)
GRACE_MS: Final = 600
"""For how long the core waits, after its restart, for those who held locks, and clients rely on that. Less
than usual, so that some come too late."""
