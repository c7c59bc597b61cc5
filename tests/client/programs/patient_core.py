"""The core process, which waits longer for those who had locks before it."""

from __future__ import annotations

import sys

from tests.support.deadlines import DEADLINE_S
from towpath_broker import daemon
from towpath_broker.local import lock_calls

if __name__ == "__main__":
    lock_calls.GRACE_MS = int(DEADLINE_S * 1e3)  # type: ignore[misc]
    sys.exit(daemon.main())
