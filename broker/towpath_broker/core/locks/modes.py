"""Lock modes, and which of them go together.

A lock is used as a readers-writer lock (a mutex is one that nobody takes shared) or as a semaphore. In the
first way a grant is exclusive or shared; the table says which may be held at a time, and, what is the same
thing, which of two waiters must keep their order. In the second way a grant is of some permits, and what
counts is whether enough are left; waiters keep their order always, so that one who needs many is not passed
by for ever.

Modes are plain numbers (those of locks.proto): a replay judges a million of them.
"""

from __future__ import annotations

from typing import Final

EXCLUSIVE: Final = 1
SHARED: Final = 2
PERMITS: Final = 3

NAMES: Final = {EXCLUSIVE: "exclusive", SHARED: "shared", PERMITS: "permits"}

CONFLICTS: Final[tuple[tuple[bool, ...], ...]] = (
    (),
    # of EXCLUSIVE with: -, EXCLUSIVE, SHARED, PERMITS
    (False, True, True, True),
    # of SHARED
    (False, True, False, True),
    # of PERMITS: with each other in the queue; whether they can be held together is a matter of counting.
    (False, True, True, True),
)
"""``CONFLICTS[mode][other]``: whether a waiter must not pass, nor be granted beside, the other."""
