"""Deadlines, and what else both clients agree on. Pure but for the monotonic clock, and chance in pauses."""

from __future__ import annotations

import os
import random
import sys
import time
from typing import Final

from towpath import model
from towpath.errors import BindingFailed, InvalidArgument, TowpathError

Buffer = bytes | bytearray | memoryview

CALL_TIMEOUT_S: Final = 10.0
"""How long a registry call waits for its answer, unless told otherwise."""

PART_TIMEOUT_S: Final = 1.0
"""How long a publisher waits for the daemon to part it from a subscriber that stalled."""

PAUSE_MAX_S: Final = 0.02
"""Between two looks at what nobody tells of."""

RECONNECT_FIRST_S: Final = 0.02
RECONNECT_MAX_S: Final = 2.0
FOREVER: Final = -1

RECEIVE_COUNT: Final = 256
RECEIVE_BYTES: Final = 1 << 17
"""What one visit to the rings takes along unless told otherwise. More than fits the processor's own cache is
slower, by half and more at 64 KiB a message: each copy is out of it again before anybody looks at it.
"""


def deadline_ns(timeout: float | None) -> int | None:
    """The point on the monotonic clock at which a timeout in seconds is over; None for never.

    Raises:
        InvalidArgument: it is negative or not a number.
    """
    if timeout is None:
        return None
    if not timeout >= 0:
        raise InvalidArgument(f"a timeout of {timeout} seconds", hint="None waits for ever, 0 does not wait")
    return time.monotonic_ns() + int(min(timeout, 1e9) * 1e9)


def remaining_ns(deadline: int | None) -> int:
    """What is left until a deadline: 0 when it is over, ``FOREVER`` when there is none."""
    return FOREVER if deadline is None else max(0, deadline - time.monotonic_ns())


def shorter_ns(one: int, other: int) -> int:
    """The shorter of two spans, each of which may be ``FOREVER``."""
    if FOREVER in (one, other):
        return max(one, other)
    return min(one, other)


def seconds(deadline: int | None) -> float | None:
    """What is left until a deadline as asyncio wants it: seconds, or None."""
    left = remaining_ns(deadline)
    return None if left == FOREVER else left / 1e9


def program_name(name: str) -> str:
    """What the session is called in ``towpath status``, unless the program says otherwise."""
    return name or os.path.basename(sys.argv[0] if sys.argv and sys.argv[0] else "python")


def binding_failure(binding: model.BindingInfo) -> TowpathError:
    """What ``bind`` raises for a binding that could not be brought up."""
    error = binding.report.last_error
    if error is not None:
        return BindingFailed(f"{binding.url}: {error.message}", hint=error.hint)
    return BindingFailed(f"{binding.url}: {binding.report.detail or 'it could not be brought up'}")


def sooner_ns(deadline: int | None, timeout: float) -> int:
    """A deadline, or a timeout from now, whichever comes first."""
    limit = time.monotonic_ns() + int(timeout * 1e9)
    return limit if deadline is None else min(limit, deadline)


class Pauses:
    """How long to wait before each attempt to connect again: twice as long each time, up to
    ``RECONNECT_MAX_S``, and up to half of it less, so that not everybody comes at once.
    """

    def __init__(self) -> None:
        self._next_s = RECONNECT_FIRST_S

    def next_s(self) -> float:
        """The next one, in seconds."""
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, RECONNECT_MAX_S)
        return pause_s * random.uniform(0.5, 1.0)

    def begin_anew(self) -> None:
        """An attempt has led to something."""
        self._next_s = RECONNECT_FIRST_S


def far_ns() -> int:
    """A deadline that nobody lives to see, where a call must have one."""
    return time.monotonic_ns() + 10**18
