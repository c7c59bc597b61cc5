"""The core process, which is killed when something about locks is in its journal and has not been told.

The file that ``TOWPATH_MUTE`` names has the effect's name; it is taken away with the core.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from unittest.mock import patch

from towpath_broker import daemon
from towpath_broker.core.locks.effects import LockEffect
from towpath_broker.lock_engine import LockEngine

ORDER: Final = Path(os.environ["TOWPATH_MUTE"])
emit_all: Final = LockEngine._emit_all


def emit_or_die(self: LockEngine, effects: Iterable[LockEffect]) -> None:
    """Tell nothing of what was ordered."""
    told = list(effects)
    if ORDER.exists() and ORDER.read_text() in {type(effect).__name__ for effect in told}:
        ORDER.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    emit_all(self, told)


if __name__ == "__main__":
    patch.object(LockEngine, "_emit_all", emit_or_die).start()
    sys.exit(daemon.main())
