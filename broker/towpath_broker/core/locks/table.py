"""All that the lock machine knows, and the small steps by which it changes.

Theory of operation
    The parts of the machine (acquiring, deadlocks, conditions, ...) decide; what they decide is done here, in
    steps that keep the invariants: a claim is queued, granted, dropped. Each step says so in effects and
    raises ``revision``, by which the engine sees that a command must be journaled.

    Tokens come from one counter for all locks. It may not pass ``tokens_end``, below which a synced record
    of the journal allows tokens; so a later one is always higher, even when a reboot has lost what came after
    that record (``machine.LockMachine.reservation``).

Invariants
    A claim is in its lock's queue, or among its holders and its owner's grants, or nowhere.
    A lock is in ``locks`` while it is held, waited for, or owns a value.
    Dictionaries stand for sets wherever order can be seen, since that of sets differs from run to run.

Not here: decisions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache, partial
from heapq import heapify, heappop, heappush
from typing import Final

from towpath.errors import LimitExceeded, QuotaExceeded, SessionLost, TowpathError
from towpath.names import check_name

from .commands import EndReason
from .effects import Drained, Grant, Granted, LockEffect, Member, Refused, Released
from .grants import HELD, OVER, WAITING, Claim, Data, End, Lock, Owner, Request, Session
from .limits import LockLimits
from .modes import EXCLUSIVE
from .spaces import Spaces

DEADLINES_LEFT_OVER: Final = 1_000
"""Deadlines of waits that have ended, which are kept before somebody sweeps; beside as many as there are
waits."""

_check_lock_name: Final = lru_cache(maxsize=1024)(partial(check_name, what="a lock's name"))
"""Most names come again and again, and a lock that nobody uses is forgotten."""


class Table:
    """The lock machine's state."""

    __slots__ = (
        "boot",
        "claims_by_principal",
        "data_bytes",
        "deadlines",
        "deadlocks",
        "effects",
        "lease_ms",
        "limits",
        "locks",
        "next_seq",
        "next_session",
        "next_token",
        "now_ns",
        "revision",
        "sessions",
        "sessions_by_principal",
        "settled_at_ns",
        "spaces",
        "tokens_end",
        "values_by_principal",
        "waiting_claims",
        "waits",
        "waits_by_principal",
    )

    def __init__(self) -> None:
        self.limits = LockLimits()
        self.now_ns = 0
        self.boot = ""
        self.revision = 0
        self.effects: list[LockEffect] = []
        self.locks: dict[str, Lock] = {}
        self.sessions: dict[int, Session] = {}
        self.sessions_by_principal: dict[str, int] = {}
        self.spaces = Spaces()
        self.next_session = 1
        self.next_seq = 1
        self.next_token = 1
        self.tokens_end = 1
        self.lease_ms = 0
        self.settled_at_ns = 0  # nothing is granted before; 0: the host has settled
        self.waits = 0  # requests that wait
        self.waiting_claims = 0  # for locks, or to take one again
        self.waits_by_principal: dict[str, int] = {}
        self.deadlines: list[tuple[int, int, Request]] = []
        self.claims_by_principal: dict[str, int] = {}
        self.values_by_principal: dict[str, int] = {}
        self.data_bytes = 0
        self.deadlocks = 0

    # ---- finding -------------------------------------------------------------------------------------------

    def session(self, identifier: int) -> Session:
        """Return a session.

        Raises:
            SessionLost: it is not there, or not any more.
        """
        session = self.sessions.get(identifier)
        if session is None:
            raise SessionLost(f"lock session {identifier} is gone")
        return session

    def owner(self, session: Session, number: int) -> Owner:
        """Return an owner of a session; a new one is not yet kept."""
        owner = session.owners.get(number)
        return Owner(session, number) if owner is None else owner

    def lock(self, name: str) -> Lock:
        """Return a lock for a name that has none; it is not yet kept.

        Raises:
            InvalidName: the name is not well formed.
            LimitExceeded: there are as many locks as there may be.
        """
        _check_lock_name(name)
        if len(self.locks) >= self.limits.locks_max:
            raise LimitExceeded(f"there are {len(self.locks)} locks in use: locks_max")
        return Lock(name, self.spaces.of(name), 0)

    def keep(self, request: Request) -> None:
        """A request is there from now on, and its owner."""
        self.revision += 1
        session = request.session
        session.requests[request.number] = request
        session.owners.setdefault(request.owner.number, request.owner)
        self.charge(session.principal, len(request.claims))

    def forget(self, request: Request) -> None:
        """A request is over."""
        request.state = OVER
        owner = request.owner
        if owner.busy is request:
            owner.busy = None
        session = request.session
        if session.requests.get(request.number) is request:
            del session.requests[request.number]
            self.charge(session.principal, -len(request.claims))
        if owner.number:
            self.forget_idle(owner)

    def forget_idle(self, owner: Owner) -> None:
        """Forget an owner that has nothing and wants nothing; a session's number 0 stays."""
        if owner.number and owner.is_idle:
            owner.session.owners.pop(owner.number, None)

    def charge(self, principal: str, claims: int) -> None:
        """A principal's sessions lay more claims to locks, or fewer."""
        count = self.claims_by_principal.get(principal, 0) + claims
        if count:
            self.claims_by_principal[principal] = count
        else:
            self.claims_by_principal.pop(principal, None)

    def give_value(self, lock: Lock, principal: str) -> Data:
        """Let a lock own a value, which is charged to a principal for as long as the lock does."""
        lock.data = Data(principal)
        self.values_by_principal[principal] = self.values_by_principal.get(principal, 0) + 1
        return lock.data

    # ---- waiting -------------------------------------------------------------------------------------------

    def check_wait(self, session: Session) -> None:
        """Refuse one more wait.

        Raises:
            LimitExceeded, QuotaExceeded: there are as many as there may be.
        """
        if self.waits >= self.limits.waits_max:
            raise LimitExceeded(f"there are {self.waits} requests that wait: waits_max")
        if self.waits_by_principal.get(session.principal, 0) >= self.limits.waits_per_principal_max:
            raise QuotaExceeded(
                f"{session.principal} has {self.limits.waits_per_principal_max} requests that wait:"
                " waits_per_principal_max"
            )

    def begin_wait(self, request: Request, state: int, timeout_ms: int) -> None:
        """A request waits from now on, and its owner for it.

        Args:
            state: what for.
            timeout_ms: below 0: for ever.
        """
        self.revision += 1
        request.state = state
        request.seq = self.next_seq
        self.next_seq += 1
        request.since_ns = self.now_ns
        request.owner.busy = request
        request.deadline_ns = self.now_ns + timeout_ms * 1_000_000 if timeout_ms >= 0 else 0
        if request.deadline_ns:
            heappush(self.deadlines, (request.deadline_ns, request.seq, request))
            if len(self.deadlines) > 2 * self.waits + DEADLINES_LEFT_OVER:
                self._sweep_deadlines()
        self._count_wait(request)

    def _count_wait(self, request: Request) -> None:
        self.waits += 1
        self.waiting_claims += len(request.claims)
        principal = request.session.principal
        self.waits_by_principal[principal] = self.waits_by_principal.get(principal, 0) + 1

    def restore_wait(self, request: Request) -> None:
        """A request of a snapshot waits. The queues are to be sorted, and the deadlines made a heap."""
        if request.deadline_ns:
            self.deadlines.append((request.deadline_ns, request.seq, request))
        self._count_wait(request)
        if request.state == WAITING:
            for claim in request.claims:
                self._stand(claim)

    def _stand(self, claim: Claim) -> None:
        """Put a claim, which has its place, at the end of its lock's queue."""
        lock = claim.lock
        if lock.queue is None:
            lock.queue = OrderedDict()
        lock.queue[claim] = None
        if claim.mode == EXCLUSIVE:
            lock.exclusive_waiting += 1
        if len(claim.request.claims) > 1:
            lock.joint += 1

    def end_wait(self, request: Request) -> None:
        """A request does not wait any more."""
        self.revision += 1
        request.deadline_ns = 0
        if request.owner.busy is request:
            request.owner.busy = None
        self.waits -= 1
        self.waiting_claims -= len(request.claims)
        principal = request.session.principal
        left = self.waits_by_principal[principal] - 1
        if left:
            self.waits_by_principal[principal] = left
        else:
            del self.waits_by_principal[principal]

    def _sweep_deadlines(self) -> None:
        """Forget the deadlines of waits that ended before them. O(1) for each wait, over all."""
        self.deadlines = [
            entry for entry in self.deadlines if (entry[2].deadline_ns, entry[2].seq) == entry[:2]
        ]
        heapify(self.deadlines)

    def next_deadline_ns(self) -> int | None:
        """Return when the next wait is over; None: none ends by itself."""
        deadlines = self.deadlines
        while deadlines:
            at_ns, seq, request = deadlines[0]
            if request.deadline_ns == at_ns and request.seq == seq:
                return at_ns
            heappop(deadlines)
        return None

    def enqueue(self, claim: Claim) -> None:
        """Put a claim into its lock's queue: at its end, or, when it converts, behind others that do."""
        lock = claim.lock
        self.locks.setdefault(lock.name, lock)
        claim.place = lock.back
        lock.back += 1
        self._stand(claim)
        if claim.converts is not None and lock.queue is not None:
            *others, _ = lock.queue
            converting = [at for at, other in enumerate(others, 1) if other.converts is not None]
            others.insert(converting[-1] if converting else 0, claim)
            rearrange(lock, others)

    def dequeue(self, claim: Claim) -> None:
        """Take a claim out of its lock's queue."""
        lock = claim.lock
        assert lock.queue is not None
        del lock.queue[claim]
        if claim.mode == EXCLUSIVE:
            lock.exclusive_waiting -= 1
        if len(claim.request.claims) > 1:
            lock.joint -= 1
        if not lock.queue:
            lock.queue = None

    # ---- holding -------------------------------------------------------------------------------------------

    def take_token(self) -> int:
        """Return a token above all before."""
        token = self.next_token
        assert token < self.tokens_end, "the engine has not applied LockMachine.reservation()"
        self.next_token = token + 1
        return token

    def hold(self, claim: Claim) -> None:
        """A claim is granted; it is in no queue any more."""
        page = claim.lock.page
        if page is None:
            token = self.take_token()
        else:
            token = page.next_token
            assert token <= page.base, "more were granted than had asked before the lock was given out"
            page.next_token += 1
        self.hold_by(claim, token, self.now_ns)

    def hold_by(self, claim: Claim, token: int, since_ns: int) -> None:
        """A claim is granted, by a token that is the newest of its lock."""
        lock = claim.lock
        self.revision += 1
        claim.token = lock.token = token
        claim.since_ns = since_ns
        converted = claim.converts
        if converted is not None:
            converted.mode = EXCLUSIVE
            converted.token = claim.token
            converted.since_ns = since_ns
            lock.exclusive = converted
            return
        lock.holders[claim] = None
        lock.used += claim.weight
        if lock.space.state is not None:
            lock.space.state.move(claim, 1)
        if claim.mode == EXCLUSIVE:
            lock.exclusive = claim
        claim.owner.grants[claim] = None

    def drop(self, claim: Claim) -> None:
        """A grant ends. The lock is to be looked at: somebody may have waited for it."""
        lock = claim.lock
        self.revision += 1
        del lock.holders[claim]
        lock.used -= claim.weight
        if lock.space.state is not None:
            lock.space.state.move(claim, -1)
        if lock.exclusive is claim:
            lock.exclusive = None
        owner = claim.owner
        del owner.grants[claim]
        if owner.wounded:
            prefix = lock.space.prefix
            if all(other.lock.space.prefix != prefix for other in owner.grants):
                owner.wounded.pop(prefix, None)

    def tidy(self, lock: Lock) -> None:
        """Forget a lock that nobody uses and that owns nothing; of one that is given out, say so."""
        if lock.is_idle:
            self.locks.pop(lock.name, None)
        elif lock.page is not None and not lock.page.is_drained and not lock.is_used:
            lock.page.is_drained = True
            self.effects.append(Drained(lock.name))

    # ---- outcomes ------------------------------------------------------------------------------------------

    def grant(self, request: Request) -> None:
        """Grant all that a request waits for, or asks for; it is in no queue any more."""
        for claim in request.claims:
            self.hold(claim)
        held = request.upgrades
        if held is not None:
            held.conversion = None
            request.state = OVER
            grants, owner = self.grants_of(held), held.owner.number
            self.effects.append(Granted(held.session.id, held.number, grants, owner=owner))
            return
        request.state = HELD
        self.effects.append(
            Granted(
                request.session.id,
                request.number,
                self.grants_of(request),
                request.is_timed_out,
                request.owner.number,
            )
        )

    def grants_of(self, request: Request) -> tuple[Grant, ...]:
        """Return what a request holds, as its session is told."""
        if not request.is_guarded:
            return tuple([claim.told() for claim in request.claims])
        return tuple([claim.told(data_of(claim.lock).told()) for claim in request.claims])

    def leave_queues(self, request: Request) -> None:
        """A request stops waiting for its locks. They are to be looked at: it may have been in the way."""
        for claim in request.claims:
            self.dequeue(claim)
            claim.lock.space.waiting.pop(request, None)
        self.end_wait(request)
        if request.upgrades is not None:
            request.upgrades.conversion = None
            request.state = OVER
        else:
            self.forget(request)

    def refuse(
        self,
        request: Request,
        error: TowpathError,
        cycle: tuple[Member, ...] = (),
        blocker: tuple[int, Grant] | None = None,
    ) -> None:
        """Tell that a request is over."""
        session = request.session
        number = request.number if request.upgrades is None else request.upgrades.number
        if request.ask:
            end = End(number, request.ask, Refused(session.id, number, error))
            session.remember(request.owner.number, end)
        self.effects.append(Refused(session.id, number, error, cycle, blocker))

    def tell_released(self, request: Request, grants: tuple[Grant, ...], reason: EndReason) -> None:
        """Tell that grants have ended."""
        self.effects.append(Released(request.session.id, request.number, grants, reason))


def data_of(lock: Lock) -> Data:
    """Return what a lock owns; of one that owns nothing yet, an empty value."""
    return Data("") if lock.data is None else lock.data


def rearrange(lock: Lock, order: Sequence[Claim]) -> None:
    """Put a queue into another order. O(n)."""
    places = sorted(claim.place for claim in order)
    for claim, place in zip(order, places, strict=True):
        claim.place = place
    lock.queue = OrderedDict.fromkeys(order)
