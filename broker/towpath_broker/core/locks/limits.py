"""The lock service's bounds. A refusal changes nothing and tells the bound's name.

Bounds ``*_per_principal_max`` are refused with QUOTA_EXCEEDED, the others with LIMIT_EXCEEDED. ``Begin``
carries them into the journal, so that a replay decides as the run did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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
NUMBER_MAX: Final = (1 << 63) - 1
"""Of owners and requests."""


@dataclass(frozen=True, slots=True)
class LockLimits:
    """The bounds that an operator may set.

    Attributes:
        sessions_max, sessions_per_principal_max: lock sessions at one time.
        locks_max: names that are held, waited for, or own a value.
        claims_per_principal_max: locks that the sessions of one principal hold or wait for.
        values_per_principal_max: locks to which one principal gave a value.
        grants_per_session_max: requests of one session that hold or wait.
        waits_max, waits_per_principal_max: requests that wait.
        guarded_bytes_max: of one lock's value.
        guarded_bytes_total_max: of all locks' values.
        barriers_max: barriers and latches at one time.
        spaces_max: lock spaces.
    """

    sessions_max: int = 65_536
    sessions_per_principal_max: int = 16_384
    locks_max: int = 262_144
    claims_per_principal_max: int = 65_536
    values_per_principal_max: int = 16_384
    grants_per_session_max: int = 4096
    waits_max: int = 262_144
    waits_per_principal_max: int = 65_536
    guarded_bytes_max: int = 1 << 16
    guarded_bytes_total_max: int = 1 << 28
    barriers_max: int = 4096
    spaces_max: int = 256
