"""The lock service's bounds. A refusal changes nothing and tells the bound's name.

Bounds ``*_per_principal_max`` are refused with QUOTA_EXCEEDED, the others with LIMIT_EXCEEDED. ``Begin``
carries them into the journal, so that a replay decides as the run did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from towpath_broker.core.limits import check_bounds, limit

LOCKS_PER_REQUEST_MAX: Final = 64
"""Locks that one request may take together."""
WEIGHT_MAX: Final = (1 << 31) - 1
"""Permits of a semaphore, and units of a resource."""
PARTIES_MAX: Final = 65_536
"""Arrivals that open a barrier."""
LEASE_MS_MIN: Final = 1_000
LEASE_MS_MAX: Final = 3_600_000
NOTE_CHARS_MAX: Final = 512
"""Of a note, a reason, a session's name or place, a condition's name."""
RANKS_MAX: Final = 4096
"""Ranks, or resources, of one lock space."""
ENDS_MAX: Final = 256
"""Ends of waits at barriers and for conditions that are remembered for a session, one of each owner."""
NUMBER_MAX: Final = (1 << 63) - 1
"""Of owners and requests."""


@dataclass(frozen=True, slots=True)
class LockLimits:
    """The bounds that an operator may set; the settings table ``[lock_limits]`` derives from it, as
    ``[limits]`` does from :class:`towpath_broker.core.limits.Limits`.

    Raises:
        InvalidConfiguration: a value is out of its range.
    """

    sessions_max: int = limit(65_536, 1 << 20, "Lock sessions at one time.")
    sessions_per_principal_max: int = limit(16_384, 1 << 20, "Lock sessions of one principal at one time.")
    locks_max: int = limit(262_144, 1 << 24, "Names that are held, waited for, or own a value.")
    claims_per_principal_max: int = limit(
        65_536, 1 << 24, "Locks that the sessions of one principal hold or wait for."
    )
    values_per_principal_max: int = limit(16_384, 1 << 24, "Locks to which one principal gave a value.")
    grants_per_session_max: int = limit(4096, 1 << 24, "Requests of one session that hold or wait.")
    waits_max: int = limit(262_144, 1 << 24, "Requests that wait.")
    waits_per_principal_max: int = limit(65_536, 1 << 24, "Requests of one principal that wait.")
    guarded_bytes_max: int = limit(1 << 16, 1 << 19, "Bytes of the value that one lock owns.")
    guarded_bytes_total_max: int = limit(1 << 28, 1 << 34, "Bytes of the values that all locks own.")
    barriers_max: int = limit(4096, 1 << 20, "Barriers and latches at one time.")
    spaces_max: int = limit(256, 4096, "Lock spaces.")

    def __post_init__(self) -> None:
        check_bounds(self)
