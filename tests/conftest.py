"""What holds for every test: nothing that a test starts talks to the daemon of the person who runs it."""

from __future__ import annotations

import os

# Set before anything imports towpath; subprocesses inherit it. Tests that need a daemon start one of their own.
for name in [name for name in os.environ if name.startswith("TOWPATH_")]:
    del os.environ[name]
