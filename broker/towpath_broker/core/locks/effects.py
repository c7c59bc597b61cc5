"""What the lock machine wants done: one dataclass per effect. The package's docstring says what the engine
does with each. Nothing of them is changed after they were made (see ``commands`` why they are not frozen).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from towpath.errors import TowpathError

from .commands import EndReason


class Value(NamedTuple):
    """What a lock owns. ``written_by``: the token of the grant that wrote it; 0: nobody has."""

    payload: bytes
    is_set: bool
    written_by: int
    is_poisoned: bool


class Grant(NamedTuple):
    """A held lock, as it is told. ``value``: only to a request that is guarded."""

    lock: str
    mode: int
    weight: int
    token: int
    since_ns: int
    value: Value | None = None


class Member(NamedTuple):
    """One owner of a deadlock: what it holds that the one before it waits for, and what it waits for."""

    session: int
    owner: int
    pid: int
    holds: Grant
    waits_for: str
    waits_mode: int
    waits_weight: int
    waits_since_ns: int
    request: int


@dataclass(slots=True)
class LockEffect:
    """Base of all effects."""


@dataclass(slots=True)
class SessionOpened(LockEffect):
    reference: int
    session: int


@dataclass(slots=True)
class SessionEnded(LockEffect):
    """After the ``Released`` and ``Refused`` of all it had."""

    session: int
    reason: EndReason


@dataclass(slots=True)
class Delegated(LockEffect):
    """A lock is given out to a page. ``base``: the token before the first of the range; ``is_busy``: the
    core has it still; ``is_shared``: as one that others may have shared meanwhile."""

    reference: int
    lock: str
    slot: int
    base: int
    is_busy: bool
    is_shared: bool = False


@dataclass(slots=True)
class Drained(LockEffect):
    """Nobody holds or wants a lock any more in the core that is given out to a page."""

    lock: str


@dataclass(slots=True)
class Waiting(LockEffect):
    session: int
    request: int


@dataclass(slots=True)
class Granted(LockEffect):
    """Attributes: is_timed_out: of a wait for a condition: nobody had notified. owner: the number of whose it
    is in the session. is_found: it was made in a page, and is no answer."""

    session: int
    request: int
    grants: tuple[Grant, ...]
    is_timed_out: bool = False
    owner: int = 0
    is_found: bool = False


@dataclass(slots=True)
class Refused(LockEffect):
    """The request is over (an upgrade: it is still shared).

    Attributes:
        cycle: of DEADLOCK: the whole of it, the refused one first.
        blocker: of LOCK_HELD, LOCK_ORDER, WAIT_REFUSED: whose grant is in the way, with its session.
    """

    session: int
    request: int
    error: TowpathError
    cycle: tuple[Member, ...] = ()
    blocker: tuple[int, Grant] | None = None


@dataclass(slots=True)
class Released(LockEffect):
    """Grants have ended, whoever wanted it."""

    session: int
    request: int
    grants: tuple[Grant, ...]
    reason: EndReason


@dataclass(slots=True)
class Revoked(LockEffect):
    """An operator took a lock away. After its ``Released``."""

    session: int
    request: int
    grant: Grant
    message: str


@dataclass(slots=True)
class Wounded(LockEffect):
    """An older owner wants what this one holds: it gets nothing more in that lock space until it has released
    all that it has there."""

    session: int
    owner: int
    grant: Grant
    by_session: int
    by_owner: int


@dataclass(slots=True)
class BarrierOpened(LockEffect):
    """Attributes: index: which of those that arrived this is, from 0. is_open: False: it was counted only."""

    session: int
    request: int
    index: int
    is_open: bool


@dataclass(slots=True)
class Done(LockEffect):
    """Attributes: count: of NotifyCondition. taken: of ForceRelease, with the sessions."""

    reference: int
    count: int = 0
    taken: tuple[tuple[int, Grant], ...] = ()


@dataclass(slots=True)
class Failed(LockEffect):
    reference: int
    error: TowpathError
