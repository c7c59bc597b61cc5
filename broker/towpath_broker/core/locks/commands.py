"""What the lock machine can be told: one dataclass per command. The package's docstring has the contract.

Each is journaled when it has changed something (``LockMachine.revision`` tells), with the fields that stand
here but ``reference``. None is ever changed after it was made; they are not frozen because a replay makes a
million of them, and that takes a third of the time so.

A command is answered by effects: one that may wait, by ``Granted``, ``Waiting``, ``Refused`` or
``BarrierOpened`` for its session and request; any other, by ``Done`` or ``Failed`` with its ``reference``,
unless that is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from .limits import LockLimits
from .modes import EXCLUSIVE

NO_TIMEOUT = -1


class Wanted(NamedTuple):
    """One lock of a request.

    Attributes:
        mode: one of ``modes``.
        weight: permits; 1 of others.
        capacity: of a semaphore, how many permits there are; 0: as it is.
    """

    name: str
    mode: int = EXCLUSIVE
    weight: int = 1
    capacity: int = 0


class Policy(IntEnum):
    """How a lock space keeps deadlocks away; numbers as in locks.proto."""

    DETECT = 1
    ORDERED = 2
    BANKER = 3
    WAIT_DIE = 4
    WOUND_WAIT = 5
    NO_WAIT = 6
    TIMEOUT_ONLY = 7


class Victim(IntEnum):
    """Who of a deadlock is refused; numbers as in locks.proto."""

    REQUESTER = 1
    YOUNGEST = 2
    FEWEST_LOCKS = 3
    LOWEST_PRIORITY = 4


class EndReason(IntEnum):
    """Why a grant ended; numbers as in ``ReleaseReason`` of locks.proto."""

    RELEASED = 1
    SESSION_CLOSED = 2
    SESSION_DIED = 3
    LEASE_EXPIRED = 4
    FORCED = 5
    CONDITION = 6
    REBOOT = 7


@dataclass(slots=True)
class LockCommand:
    """Base of all commands."""


# ---- the run -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Begin(LockCommand):
    """A run of the core begins. Always journaled, and first.

    Attributes:
        boot: names the host's boot (``/proc/sys/kernel/random/boot_id``). If it is another than before, all
            sessions are gone, and nothing is granted until the longest lease has passed.
    """

    boot: str
    limits: LockLimits = field(default_factory=LockLimits)


@dataclass(slots=True)
class Reserve(LockCommand):
    """Tokens below ``tokens_end`` may be given out, and leases up to ``lease_ms``. The one record that must
    be synced to disk before what follows is applied. ``LockMachine.reservation`` makes it."""

    tokens_end: int
    lease_ms: int


@dataclass(slots=True)
class Tick(LockCommand):
    """Time has passed: ``LockMachine.next_deadline_ns()`` was reached."""


# ---- sessions ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class OpenSession(LockCommand):
    """Answered by ``SessionOpened``.

    Attributes:
        lease_ms: 0, or 1,000 to 3,600,000.
        pid: 0 where it is not known.
        place: the command line, or the peer's address.
        priority: a higher one is less likely to be a deadlock's victim.
    """

    principal: str
    name: str = ""
    pid: int = 0
    place: str = ""
    lease_ms: int = 0
    priority: int = 0
    reference: int = 0


@dataclass(slots=True)
class EndSession(LockCommand):
    """All it holds is released, and what it waits for withdrawn. ``reason``: SESSION_CLOSED, SESSION_DIED,
    LEASE_EXPIRED."""

    session: int
    reason: EndReason
    reference: int = 0


# ---- locks -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Acquire(LockCommand):
    """Take one lock, or several at one moment.

    Attributes:
        owner: of the session's choosing: which thread or task; it waits for one thing at a time.
        request: of the session's choosing, above 0; not that of another request that is there. The same again
            is told how it stands.
        timeout_ms: NO_TIMEOUT; 0: do not wait.
    """

    session: int
    owner: int
    request: int
    locks: tuple[Wanted, ...]
    timeout_ms: int = NO_TIMEOUT
    is_reentrant: bool = False
    is_guarded: bool = False
    note: str = ""


@dataclass(slots=True)
class Upgrade(LockCommand):
    """Make what a request holds shared, alone, exclusive. If refused it is still shared."""

    session: int
    request: int
    timeout_ms: int = NO_TIMEOUT


@dataclass(slots=True)
class Downgrade(LockCommand):
    """Make what a request holds exclusively shared. The token stays."""

    session: int
    request: int
    reference: int = 0


@dataclass(slots=True)
class Release(LockCommand):
    """Give back what a request holds.

    Attributes:
        value: of a lock that owns its data: written at the same moment.
        is_durable: the engine syncs the journal before the answer leaves.
        is_recovered: the value is in order again.
    """

    session: int
    request: int
    value: bytes | None = None
    is_durable: bool = False
    is_recovered: bool = False
    reference: int = 0


@dataclass(slots=True)
class Cancel(LockCommand):
    """The caller does not want it any more: a wait is withdrawn (``Refused`` with CANCELLED; an upgrade or a
    wait for a condition leaves the request as if its time had run out), what was granted is released.
    Unknown requests are ignored."""

    session: int
    request: int
    reference: int = 0


@dataclass(slots=True)
class WriteGuarded(LockCommand):
    """Write the value of a lock that is held exclusively; as in ``Release``."""

    session: int
    request: int
    value: bytes
    is_durable: bool = False
    is_recovered: bool = False
    reference: int = 0


@dataclass(slots=True)
class WaitCondition(LockCommand):
    """Give up an exclusive lock, wait to be notified, take it again. ``Granted.is_timed_out`` tells whether
    nobody notified.

    Attributes:
        ask: of the session's choosing, another one for each wait: the same again is told how it stands, or
            ended. 0: what is asked again begins anew.
    """

    session: int
    request: int
    condition: str = ""
    timeout_ms: int = NO_TIMEOUT
    ask: int = 0


@dataclass(slots=True)
class NotifyCondition(LockCommand):
    """By who holds the lock exclusively. ``count``: 0 for all. Answered by ``Done`` with how many there
    were."""

    session: int
    request: int
    condition: str = ""
    count: int = 1
    reference: int = 0


@dataclass(slots=True)
class ArriveBarrier(LockCommand):
    """Arrive, and wait for the others.

    Attributes:
        parties: how many open it.
        is_latch: it opens once.
        is_observer: of a latch: wait without being counted.
        is_passing: of a latch: be counted without waiting.
        ask: as in ``WaitCondition``.
    """

    session: int
    owner: int
    request: int
    name: str
    parties: int
    timeout_ms: int = NO_TIMEOUT
    is_latch: bool = False
    is_observer: bool = False
    is_passing: bool = False
    ask: int = 0


# ---- lock pages --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Delegate(LockCommand):
    """Give a lock out to the lock page of the session's principal, with a range of tokens: until ``Recall``
    its grants are made there. Answered by ``Delegated``. What the core has granted of it, or has in its
    queue, comes first: ``Drained`` tells when the page may begin.

    Attributes:
        slot: of the page; always the same for this lock and page.
    """

    session: int
    name: str
    slot: int
    reference: int = 0


class PageHolder(NamedTuple):
    """Who had a lock when it was taken back. Its request has the number ``page_request(token)``."""

    session: int
    owner: int
    since_ns: int


class PageReader(NamedTuple):
    """Who had it shared. ``used``: its token's place in the range."""

    session: int
    owner: int
    used: int
    since_ns: int


class PageWaiter(NamedTuple):
    """Who waited for it, under a number of its own."""

    session: int
    owner: int
    request: int
    timeout_ms: int


@dataclass(slots=True)
class Recall(LockCommand):
    """Take a lock back from a page, as it was found there: what was held or waited for is as if it had been
    asked for here. Nothing happens when it is not given out.

    Attributes:
        used: how many tokens of the range.
        holder: who had it exclusively.
        waiters: in the order of the queue.
        readers: in the order of their tokens.
    """

    name: str
    used: int = 0
    holder: PageHolder | None = None
    waiters: tuple[PageWaiter, ...] = ()
    readers: tuple[PageReader, ...] = ()


# ---- operators ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ForceRelease(LockCommand):
    """Take a lock from whoever has it. ``token``: this grant only; 0: all. Answered by ``Done`` with the
    grants. Whether ``principal`` may is for the shell to judge."""

    principal: str
    name: str
    token: int = 0
    reason: str = ""
    reference: int = 0


@dataclass(slots=True)
class DeclareClaims(LockCommand):
    """The most that an owner will ever ask for at a time, by resource; empty withdraws."""

    session: int
    owner: int
    claims: Mapping[str, int]
    reference: int = 0


@dataclass(slots=True)
class DefineSpace(LockCommand):
    """Lay down how the locks below a prefix are judged; as ``LockSpace`` of locks.proto. Refused while one of
    them is used."""

    prefix: str
    policy: Policy = Policy.DETECT
    victim: Victim = Victim.REQUESTER
    ranks: Mapping[str, int] = field(default_factory=dict)
    resources: Mapping[str, int] = field(default_factory=dict)
    is_removed: bool = False
    reference: int = 0
