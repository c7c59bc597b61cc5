"""Who has and who wants what: sessions, their owners, requests, and the claims that requests lay to locks.

Theory of operation
    A *request* is what a session asked for at one time, under a number of its own choosing: one lock, or
    several at one moment. For each lock it lays a *claim*, and the same object is the waiter in the lock's
    queue and, later, the grant among the lock's holders. All claims of a request wait, or all are held.

    An *owner* is one line of execution of a session, a thread or a task. It waits for one request at a time;
    this is what makes "who waits for whom" a graph in which a cycle is a deadlock.

    To upgrade is to wait with a claim that *converts* one which is held. It is granted by changing that one.

Invariants
    ``Lock.used`` is the number of holders of a readers-writer lock, the sum of permits of a semaphore.
    An owner's ``busy`` request is the one that waits: for locks, for a condition, or at a barrier.

Not here: rules. These are records; ``table`` changes them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from .effects import BarrierOpened, Grant, Refused, Value
from .limits import ENDS_MAX
from .modes import EXCLUSIVE

if TYPE_CHECKING:
    from .spaces import Space

WAITING: Final = 1
HELD: Final = 2
ON_CONDITION: Final = 3
AT_BARRIER: Final = 4
OVER: Final = 5


class End(NamedTuple):
    """How a wait ended that cannot be asked for anew. ``ask``: which of the request's."""

    request: int
    ask: int
    told: BarrierOpened | Refused


class Session:
    """A client's presence. Its id grows, so a lower one is older.

    Attributes:
        ends: of each owner, how its last wait ended of those that are remembered: its session may not have
            heard. What holds its lock again says for itself how it came to that.
    """

    __slots__ = (
        "ends",
        "id",
        "lease_ms",
        "name",
        "opened_at_ns",
        "owners",
        "pid",
        "place",
        "principal",
        "priority",
        "requests",
    )

    def __init__(self, identifier: int, principal: str, opened_at_ns: int) -> None:
        self.id = identifier
        self.principal = principal
        self.opened_at_ns = opened_at_ns
        self.name = ""
        self.pid = 0
        self.place = ""
        self.lease_ms = 0
        self.priority = 0
        self.owners: dict[int, Owner] = {}
        self.requests: dict[int, Request] = {}
        self.ends: dict[int, End] = {}

    def remember(self, owner: int, end: End) -> None:
        """An owner's wait is over. Until its next one it has perhaps not heard of it."""
        self.ends.pop(owner, None)
        self.ends[owner] = end
        if len(self.ends) > ENDS_MAX:
            del self.ends[next(iter(self.ends))]

    def end_of(self, request: int, ask: int) -> BarrierOpened | Refused | None:
        """Return how a wait ended; None: it has not, or is not remembered. O(owners that waited)."""
        if ask:
            for end in self.ends.values():
                if end.ask == ask and end.request == request:
                    return end.told
        return None


class Owner:
    """One line of execution of a session.

    Attributes:
        claims: by resource, the most it will ever ask for, in lock spaces with the banker's algorithm.
        wounded: the prefixes of lock spaces in which an older owner wants what it has.
    """

    __slots__ = ("busy", "claims", "grants", "number", "session", "wounded")

    def __init__(self, session: Session, number: int) -> None:
        self.session = session
        self.number = number
        self.grants: dict[Claim, None] = {}
        self.busy: Request | None = None
        self.claims: dict[str, int] = {}
        self.wounded: dict[str, None] = {}

    @property
    def age(self) -> tuple[int, int]:
        """Less is older. It stays when everything is released, so who begins anew does not grow younger."""
        return (self.session.id, self.number)

    @property
    def is_idle(self) -> bool:
        """Nothing would be forgotten with it."""
        return not self.grants and self.busy is None and not self.claims


class Request:
    """What a session asked for at one time.

    Attributes:
        ask: its session's number for the last wait for a condition, or at a barrier; 0: not to be remembered.
        is_timed_out: of the last wait for a condition: nobody notified.
        seq: rises with arrival; what waits has one of its own.
        deadline_ns: 0: none.
        upgrades: the request whose claim this one converts; it has this one as its ``conversion``.
        place: of a wait for a condition or at a barrier: its name. The lock is that of ``claims``.
    """

    __slots__ = (
        "ask",
        "claims",
        "conversion",
        "deadline_ns",
        "is_guarded",
        "is_timed_out",
        "note",
        "number",
        "owner",
        "place",
        "seq",
        "session",
        "since_ns",
        "state",
        "upgrades",
    )

    def __init__(self, session: Session, owner: Owner, number: int) -> None:
        self.session = session
        self.owner = owner
        self.number = number
        self.ask = 0
        self.claims: list[Claim] = []
        self.state = WAITING
        self.seq = 0
        self.since_ns = 0
        self.deadline_ns = 0
        self.note = ""
        self.is_guarded = False
        self.is_timed_out = False
        self.upgrades: Request | None = None
        self.conversion: Request | None = None
        self.place = ""


class Claim:
    """What a request wants, or has, of one lock.

    Attributes:
        place: in the lock's queue; the lowest is first.
        token: 0 until it is granted.
        count: how many requests of its owner share it (reentrance).
        converts: the held claim that this one would change.
    """

    __slots__ = (
        "converts",
        "count",
        "lock",
        "mode",
        "owner",
        "place",
        "request",
        "since_ns",
        "token",
        "weight",
    )

    def __init__(self, lock: Lock, owner: Owner, request: Request, mode: int, weight: int) -> None:
        self.lock = lock
        self.owner = owner
        self.request = request
        self.mode = mode
        self.weight = weight
        self.place = 0
        self.token = 0
        self.since_ns = 0
        self.count = 1
        self.converts: Claim | None = None

    def told(self, value: Value | None = None) -> Grant:
        """Return the grant as others are told of it."""
        return Grant(self.lock.name, self.mode, self.weight, self.token, self.since_ns, value)


class Data:
    """The value that a lock owns.

    Attributes:
        principal: to whom it is charged: who first wrote it.
        written_by: the token of the grant that wrote it; 0: none has, and there is none.
        poisoned_by: the token of the grant that ended in the middle; 0: it is in order.
    """

    __slots__ = ("payload", "poisoned_by", "principal", "written_by")

    def __init__(self, principal: str) -> None:
        self.principal = principal
        self.payload = b""
        self.written_by = 0
        self.poisoned_by = 0

    def told(self) -> Value:
        """Return it as others are told of it."""
        return Value(self.payload, self.written_by > 0, self.written_by, self.poisoned_by > 0)


class Delegation:
    """A lock is given out to a page.

    Attributes:
        base: the token before the first of those that the page gives.
        next_token: of those that the core still gives to who came before; up to ``base``.
        is_drained: the core has nothing of it any more.
    """

    __slots__ = ("base", "is_drained", "next_token", "principal", "slot")

    def __init__(self, principal: str, slot: int, base: int, next_token: int, is_drained: bool) -> None:
        self.principal = principal
        self.slot = slot
        self.base = base
        self.next_token = next_token
        self.is_drained = is_drained


class Lock:
    """A lock that is used.

    Attributes:
        capacity: permits of a semaphore; 0 of others.
        exclusive: the one holder of a lock that is held exclusively.
        queue: who waits, in order of ``place``; those who convert come first.
        joint: how many in the queue wait for other locks, too.
        exclusive_waiting: how many in the queue want it exclusively.
        back: the next place in the queue.
        token: the newest grant's.
        conditions: who waits to be notified, by condition.
        page: where it is given out to; None: its grants are made here.
    """

    __slots__ = (
        "back",
        "capacity",
        "conditions",
        "data",
        "exclusive",
        "exclusive_waiting",
        "holders",
        "joint",
        "name",
        "page",
        "queue",
        "space",
        "token",
        "used",
    )

    def __init__(self, name: str, space: Space, capacity: int) -> None:
        self.name = name
        self.space = space
        self.capacity = capacity
        self.used = 0
        self.exclusive: Claim | None = None
        self.holders: dict[Claim, None] = {}
        self.queue: OrderedDict[Claim, None] | None = None
        self.joint = 0
        self.exclusive_waiting = 0
        self.back = 0
        self.token = 0
        self.data: Data | None = None
        self.conditions: dict[str, dict[Request, None]] | None = None
        self.page: Delegation | None = None

    @property
    def is_idle(self) -> bool:
        """Nothing would be forgotten with it."""
        return not self.is_used and self.data is None and not self.conditions and self.page is None

    @property
    def is_used(self) -> bool:
        """Somebody holds it here, or waits for it here."""
        return bool(self.holders or self.queue)


def is_free(claim: Claim) -> bool:
    """Whether those who hold the lock leave room for a claim. O(1)."""
    lock = claim.lock
    if lock.capacity:
        return lock.used + claim.weight <= lock.capacity
    if claim.mode == EXCLUSIVE:
        return lock.used == (0 if claim.converts is None else 1)
    return lock.exclusive is None
