"""The core's identifiers. All are unsigned 64-bit numbers that are never used twice on a host.

Sessions, sources, readers and bindings draw from one sequence: the incarnation (which counts the starts of
the core, and is in the journal) in the upper 24 bits, a counter in the lower 40. 0 is no id.
"""

from __future__ import annotations

from typing import Final, NewType

SessionId = NewType("SessionId", int)
SourceId = NewType("SourceId", int)
ReaderId = NewType("ReaderId", int)
BindingId = NewType("BindingId", int)
ConnectionId = NewType("ConnectionId", int)
"""The door's number for a connection; means nothing after it is closed."""
CallId = NewType("CallId", int)
"""The caller's number for one call on its connection; 1 or more."""

COUNTER_BITS: Final = 40
INCARNATION_MAX: Final = (1 << 24) - 1


def first_id(incarnation: int) -> int:
    """Return the lowest id of an incarnation (1 to 2**24 - 1)."""
    assert 1 <= incarnation <= INCARNATION_MAX
    return (incarnation << COUNTER_BITS) + 1
