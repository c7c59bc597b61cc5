"""Locks, waiting in the caller's thread."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from towpath.calls import Call
from towpath.errors import LockHeld, Timeout, TowpathError
from towpath.locks import model, requests
from towpath.locks.entering import Entered, Error, GuardContext, Kind, Trace
from towpath.locks.guards import GuardBase
from towpath.locks.holds import Hold
from towpath.locks.lane import Prepared
from towpath.locks.leases import checked_lease_ms
from towpath.locks.model import Mode
from towpath.locks.pending import Pending
from towpath.locks.requests import Standing, Wanted
from towpath.locks.session import CLOSE_S, LockSession
from towpath.names import check_name
from towpath.result import attempt
from towpath.waiting import deadline_ns, program_name

if TYPE_CHECKING:
    from towpath.sync.kinds import Kinds

CALLS_MAX = 64
"""Of a thread that are kept, to be asked again."""
LANE_AFTER, LANE_AFTER_MAX = 8, 1_024
"""After so many requests by the socket a lane is asked for; after each time, twice as many."""
LATE_S = 5.0
"""How much longer than its timeout a request waits for the daemon to say that it is over."""


class Locks:
    """What one client has to do with locks: its lock session, made when it is first used."""

    def __init__(self, client: Kinds, *, lease_ms: int) -> None:
        self._client = client
        self._lease_ms = lease_ms
        self._session: LockSession | None = None
        self._opening = threading.Lock()
        self._owners = threading.local()
        self._numbers = itertools.count(1)
        self._by_socket, self._lane_after = 0, LANE_AFTER
        self.on_lost: list[Callable[[TowpathError], object]] = []
        self.on_wounded: list[Callable[[TowpathError], object]] = []

    def owner(self) -> int:
        """The number of the calling thread in the session."""
        number: int | None = getattr(self._owners, "number", None)
        if number is None:
            number = self._owners.number = next(self._numbers)
        return number

    def session(self) -> LockSession:
        """The session; another one if that there was has ended."""
        self._client._check_not_forked()
        session = self._session
        if session is not None and session.why_lost is None:
            return session
        with self._opening:
            if self._session is None or self._session.why_lost is not None:
                self._session = LockSession(
                    self._client,
                    name=program_name(""),
                    lease_ms=self._lease_ms,
                    on_lost=self._lost,
                    on_wounded=self._wounded,
                )
            return self._session

    def wait(
        self,
        session: LockSession,
        make: Callable[[int, int], Call[Standing]],
        timeout: float | None,
        number: int = 0,
        *,
        is_remembered: bool = False,
        is_new: bool = False,
    ) -> Pending:
        """Ask, and wait until it is over.

        Raises:
            Timeout: nothing was heard for longer than the timeout.
        """
        over = threading.Lock()  # a fifth of an Event's time
        over.acquire()
        pending = session.begin(make, over.release, number, is_remembered=is_remembered, is_new=is_new)
        late_s = None if timeout is None else min(timeout + LATE_S, threading.TIMEOUT_MAX)
        try:
            self._client._attend(pending.has_outcome, pending.call_id, deadline_ns(late_s))
            if not over.acquire(timeout=-1 if late_s is None else late_s):
                raise Timeout(f"the daemon did not answer within {timeout} s", hint="")
        except BaseException:
            session.give_up(pending)
            raise
        return pending

    def acquire(
        self, wanted: Sequence[Wanted], timeout: float | None, *, is_reentrant: bool = False, note: str = ""
    ) -> Hold:
        """Take locks together."""
        key = tuple(wanted), timeout, is_reentrant, note
        made: dict[object, Prepared] = self._owners.__dict__.setdefault("made", {})
        try:
            prepared = made.get(key)
        except TypeError:  # it is no key, and will be refused
            prepared = None
        if prepared is None:
            prepared = self._prepare(wanted, timeout, is_reentrant=is_reentrant, note=note)
        session, number = self.session(), 0
        try:
            lane = session.lane
            if lane is not None and prepared.asked is not None:
                number = session.next_number()
                taken = lane.take(number, prepared, prepared.asked)
                if taken is not None:
                    return taken
            made.pop(key, None)  # not there for a signal's handler that asks the same meanwhile
            make = partial(requests.addressed, prepared.call)
            pending = self.wait(session, make, timeout, number, is_new=True)
        except BaseException:
            if number:
                session.forget(number)
            raise
        if not self._lease_ms:  # what is asked on the daemon's host has been sent by now
            if len(made) >= CALLS_MAX:
                made.clear()
            made[key] = prepared
            self._want_lane(session)
        return session.hold(pending)

    def _prepare(
        self, wanted: Sequence[Wanted], timeout: float | None, *, is_reentrant: bool, note: str
    ) -> Prepared:
        """Make a request for locks.

        Raises:
            TowpathError: it cannot be asked.
        """
        owner = self.owner()
        call = requests.acquire(owner, wanted, timeout_s=timeout, is_reentrant=is_reentrant, note=note)
        if self._lease_ms:
            return Prepared(call, owner, wanted[0], None)
        asked = call.body.SerializeToString() if len(wanted) == 1 else None
        return Prepared(requests.whole(call), owner, wanted[0], asked)

    def _want_lane(self, session: LockSession) -> None:
        """Something was asked for by the socket: now and then, see whether it goes by a lane from now on."""
        self._by_socket += 1
        if session.lane is None and self._by_socket >= self._lane_after:
            self._by_socket, self._lane_after = 0, min(2 * self._lane_after, LANE_AFTER_MAX)
            self._client._open_lock_lane(session)

    def set_lease(self, lease_s: float) -> None:
        """See :meth:`towpath.Client.set_lock_lease`."""
        is_open = self._session is not None and self._session.why_lost is None
        self._lease_ms = checked_lease_ms(lease_s, self._lease_ms, is_open=is_open)

    def close(self) -> None:
        """Release everything, and wait a moment for the daemon's word. More than once is fine."""
        session, gone = self._session, threading.Event()
        if session is not None and session.close(gone.set):
            gone.wait(CLOSE_S)

    def _lost(self, error: TowpathError) -> None:
        for told in tuple(self.on_lost):
            told(error)

    def _wounded(self, error: TowpathError) -> None:
        for told in tuple(self.on_wounded):
            told(error)


class Guard(GuardContext):
    """Proof that the program holds a lock, or several; releases them when it is closed."""

    __slots__ = ("_locks",)

    def __init__(self, locks: Locks, hold: Hold) -> None:
        super().__init__(hold)
        self._locks = locks

    def upgrade(self, timeout: float | None = None) -> None:
        """Make what is held shared exclusive, with a new token. Nobody else has it exclusively in between.

        Raises:
            Timeout, Deadlock: it is still shared. Two that upgrade are a deadlock.
            NotHeld, LockRevoked, SessionLost.
        """
        hold = self._hold
        hold.check()

        def make(session_id: int, number: int) -> Call[Standing]:
            return requests.upgrade(session_id, number, timeout)

        hold.session.hold(self._locks.wait(hold.session, make, timeout, hold.number))

    def downgrade(self) -> None:
        """Make what is held exclusively shared; the token stays.

        Raises:
            NotHeld, LockRevoked, SessionLost.
        """
        hold = self._hold
        hold.check()
        self._locks._client._call(requests.downgrade(hold.session.id, hold.number))
        hold.grants = tuple(model.in_mode(grant, Mode.SHARED) for grant in hold.grants)

    def wait(self, condition: str = "", timeout: float | None = None) -> bool:
        """Give the lock up until somebody notifies, and take it again.

        Args:
            condition: a lock may have several.

        Returns:
            Whether somebody notified; else the time ran out. The lock is held either way, with a new token.

        Raises:
            NotHeld: it is not held exclusively.
            LockRevoked, SessionLost.
        """
        hold = self._hold
        hold.check()

        def make(session_id: int, number: int) -> Call[Standing]:
            return requests.wait_condition(session_id, number, condition, timeout)

        pending = self._locks.wait(hold.session, make, None, hold.number, is_remembered=True)
        hold.session.hold(pending)
        outcome = pending.outcome
        return isinstance(outcome, Standing) and not outcome.is_timed_out

    def notify(self, condition: str = "", count: int = 1) -> int:
        """Notify so many who wait, the longest first; 0: all. Returns how many there were.

        Raises:
            NotHeld: it is not held exclusively.
            LockRevoked, SessionLost.
        """
        hold = self._hold
        hold.check()
        return self._locks._client._call(
            requests.notify_condition(hold.session.id, hold.number, condition, count)
        )

    def __repr__(self) -> str:
        state = "" if self.is_valid else ", not valid"
        return f"<towpath.Guard {self.name} {self.mode.name.lower()} token {self.token}{state}>"

    try_upgrade = attempt(upgrade)
    try_release = attempt(GuardBase.release)


class Lock:
    """A lock by name; asks nobody until it is used. Any number of threads may use it: each is an owner of its
    own.

    ``with lock:`` acquires it exclusively, for ever if need be, and releases it.

    Attributes:
        name: dotted, as a channel's.
    """

    def __init__(self, locks: Locks, name: str, *, reentrant: bool = False, note: str = "") -> None:
        self.name = check_name(name, "a lock's name")
        self._locks = locks
        self._is_reentrant = reentrant
        self._note = note
        self._entered: Entered[Guard] = Entered()

    def acquire(self, timeout: float | None = None, *, shared: bool = False) -> Guard:
        """Take the lock.

        Args:
            timeout: seconds; None waits for ever, 0 does not wait.
            shared: together with others that hold it shared.

        Raises:
            Timeout, or LockHeld where it was not to wait: somebody else has it.
            Deadlock: waiting would have closed a circle; ``error.cycle`` is the whole of it.
            LockOrder, WaitRefused, Wounded: the lock space's policy does not allow it.
            PermissionDenied: it is configured so. StoreFull: the daemon's disk is full.
            SessionLost, ConnectionLost, Unavailable, LimitExceeded, QuotaExceeded, InvalidArgument.
        """
        wanted = [Wanted(self.name, Mode.SHARED if shared else Mode.EXCLUSIVE)]
        hold = self._locks.acquire(wanted, timeout, is_reentrant=self._is_reentrant, note=self._note)
        return Guard(self._locks, hold)

    def acquire_nowait(self, *, shared: bool = False) -> Guard | None:
        """Take the lock if it is free, and return its guard; else None. Errors as for :meth:`acquire`."""
        try:
            return self.acquire(0, shared=shared)
        except (LockHeld, Timeout):
            return None

    def __enter__(self) -> Guard:
        return self._entered.push(self.acquire())

    def __exit__(self, kind: Kind, error: Error, trace: Trace) -> None:
        self._entered.pop().__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<towpath.Lock {self.name}>"

    try_acquire = attempt(acquire)


class Semaphore:
    """A counting semaphore by name: so many permits, of which one request may take several.

    Args:
        permits: how many there are in all; everybody must say the same, 1 to 2**31 - 1; 0: as it is.
    """

    def __init__(self, locks: Locks, name: str, permits: int) -> None:
        self.name = check_name(name, "a lock's name")
        self.permits = permits
        self._locks = locks

    def acquire(self, weight: int = 1, timeout: float | None = None) -> Guard:
        """Take permits, in turn: who needs many is not passed by for ever. Errors as for
        :meth:`Lock.acquire`, and LockConflict: others say that there are more or fewer permits."""
        wanted = [Wanted(self.name, Mode.PERMITS, weight, self.permits)]
        return Guard(self._locks, self._locks.acquire(wanted, timeout))

    def acquire_nowait(self, weight: int = 1) -> Guard | None:
        """Take permits if there are enough; else None."""
        try:
            return self.acquire(weight, 0)
        except (LockHeld, Timeout):
            return None

    try_acquire = attempt(acquire)


class Barrier:
    """Where so many wait for each other.

    Args:
        parties: how many; everybody must say the same, 1 to 65,536.
    """

    def __init__(self, locks: Locks, name: str, parties: int) -> None:
        self.name = check_name(name, "a barrier's name")
        self.parties = parties
        self._locks = locks

    def wait(self, timeout: float | None = None) -> int:
        """Arrive, and wait until all have. Returns which of them this was: 0 is the first.

        Raises:
            Timeout: not all came in time.
            BarrierBroken: one that had arrived left.
            LockConflict: others say that it is for more or fewer.
        """
        locks = self._locks
        call = requests.arrive(locks.owner(), self.name, self.parties, timeout)
        make = partial(requests.addressed, call)
        outcome = locks.wait(locks.session(), make, timeout, is_remembered=True).outcome
        if isinstance(outcome, Standing):
            return outcome.place
        assert outcome is not None
        raise outcome

    try_wait = attempt(wait)


def listed(client: Kinds, prefix: str) -> model.Listing:
    """Return the locks that are in use."""
    locks: list[model.LockInfo] = []
    sessions: dict[int, model.Session] = {}
    token = ""
    while True:
        page = client._call(requests.list_locks(prefix, token))
        locks.extend(page.locks)
        sessions.update((session.id, session) for session in page.sessions)
        token = page.next_token
        if not token:
            return model.Listing(locks, list(sessions.values()))
