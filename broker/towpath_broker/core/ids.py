"""The core's identifiers: unsigned 64-bit numbers. 0 is no id.

Sessions, sources and readers draw from one sequence, and none is used twice on a host: the incarnation (which
counts the starts of the core, and is in the journal) in the upper 24 bits, a counter in the lower 40. So
(source, seq) is unique for ever without a journal entry per source. Bindings have a sequence of their own, 1,
2, 3, ..., which is durable: replaying the journal gives each binding the id it had, whatever sessions did in
between.
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


def end_id(incarnation: int) -> int:
    """Return the first number past an incarnation's ids."""
    return (incarnation + 1) << COUNTER_BITS
