"""How long tests wait for what must come.

A wait of a test is for a condition, and ends when that is so; its deadline is only for the case that it never
is. So there is one deadline for all, so long that no machine that works misses it however busy it is: with
several suites beside each other on two cores, what takes a tenth of a second alone was seen to take ten. It
costs nothing while tests pass.

Not here: times that a test is about (a lease, a stall, a timeout that is to run out).
"""

from __future__ import annotations

from typing import Final

DEADLINE_S: Final = 120.0
"""For anything that a test waits for."""

PROGRAM_S: Final = 240.0
"""For a program that does a whole test's work: a build, a bench, a disk that fails at each write."""
