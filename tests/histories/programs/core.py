"""The core process, which does not wait long for those who held locks, and may have a bug.

``TOWPATH_HISTORY_BUG`` names one of ``BUGS``; nothing: there is none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Final
from unittest.mock import patch

from tests.histories import plan
from towpath_broker import daemon
from towpath_broker.core.locks import acquiring, grants, queue
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks.grants import Claim
from towpath_broker.core.locks.machine import LockMachine
from towpath_broker.core.locks.table import Table
from towpath_broker.local import lock_calls


def granted_before_it_is_released() -> None:
    """A lock is often free again as soon as somebody has it."""
    acquire = acquiring.acquire

    def acquire_and_forget(table: Table, command: c.Acquire) -> None:
        acquire(table, command)
        request = table.session(command.session).requests[command.request]
        if request.state == grants.HELD and request.claims[0].token % 2 == 0:
            acquiring.release(table, request, c.EndReason.RELEASED)

    patch.object(acquiring, "acquire", acquire_and_forget).start()


def one_permit_too_many() -> None:
    """A semaphore has one more than was said."""

    def generous(claim: Claim) -> bool:
        lock = claim.lock
        return grants.is_free(claim) or (lock.capacity > 0 and lock.used + claim.weight == lock.capacity + 1)

    patch.object(queue, "is_free", generous).start()


def fences_are_not_checked() -> None:
    """Whoever shows a token may write."""
    patch.object(daemon, "check_fence", lambda *_: None).start()


def tokens_begin_anew() -> None:
    """With each start of the core."""
    begin = LockMachine._begin

    def begin_and_forget(self: LockMachine, command: c.Begin) -> Any:
        result = begin(self, command)
        self.table.next_token = 1
        return result

    patch.object(LockMachine, "_begin", begin_and_forget).start()


BUGS: Final[dict[str, Callable[[], None]]] = {
    bug.__name__: bug
    for bug in (
        granted_before_it_is_released,
        one_permit_too_many,
        fences_are_not_checked,
        tokens_begin_anew,
    )
}

if __name__ == "__main__":
    lock_calls.GRACE_MS = plan.GRACE_MS  # type: ignore[misc]
    if name := os.environ.get("TOWPATH_HISTORY_BUG"):
        BUGS[name]()
    sys.exit(daemon.main())
