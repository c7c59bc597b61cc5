"""Locks taken in shared memory: what a client does when a lock is given out to its uid's lock page.

Theory of operation
    A lock that is used for the second time is asked for (``DelegateLock``), and from then on it is taken
    and given back in the page (``clients/c/towpath_lock.h``), in C, without the daemon. Whatever else is
    wanted goes to the daemon as ever, which takes the lock back for that: shared or joint requests,
    upgrades, conditions; and what must wait while this program holds something, since only the daemon sees
    deadlocks. Who waits in the page holds nothing.

    A lock that was taken back is found shut. If this program held it, its guard's number is known to the
    daemon, since it follows from the token: it is released there. If it waited, the daemon may have its
    request, under the number that it had in the page: asking again with that number tells.

Invariants
    A guard is given back in one place: in the page if the word there still says so, else at the daemon.

Not here: the daemon's side (``towpath_broker.local.lock_pages``).
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from towpath import _ring
from towpath.errors import LockHeld, LockInUse, LockRevoked, NotHeld, SessionLost, Timeout, TowpathError
from towpath.locks import model, requests
from towpath.locks.blocking import Guard, Lock, Locks
from towpath.locks.guards import GuardBase
from towpath.locks.holds import Hold
from towpath.locks.model import Mode
from towpath.locks.requests import Wanted
from towpath.locks.session import LockSession

if TYPE_CHECKING:
    from towpath.sync.client import LocalClient

PAUSE_S: Final = 0.05
"""So long a lock is not asked for again that was not given out; doubled each time where it cannot be."""
PAUSE_S_MAX: Final = 2.0
FOREVER: Final = (1 << 64) - 1
_PAGE_REQUEST: Final = 1 << 62


class PageOf:
    """A lock session's page.

    Attributes:
        members: of this process, by owner.
        lost: of grants that were made in the page and taken away: why.
    """

    def __init__(self, session: LockSession, memory: _ring.LockPage, identity: int) -> None:
        self.session = session
        self.memory = memory
        self.identity = identity
        self.lost: dict[int, TowpathError] = {}
        self.members: dict[int, _ring.LockMember] = {}

    # ---- what the session asks and tells ----

    def held(self) -> dict[int, bool]:
        """The requests that this process's grants in the page are, and whether the daemon has each."""
        if not self.memory.is_open:
            return {}
        return {_PAGE_REQUEST | token: is_shut for token, is_shut in self.memory.held()}

    def revoked(self, number: int, error: TowpathError) -> bool:
        """A grant was taken away; returns whether it was one of the page's."""
        if number in self.held():
            self.lost[number] = error
            return True
        return False

    def close(self) -> None:
        """The session is over."""
        self.memory.close()


class PageHold(Hold):
    """What is held in the page: as a ``Hold``, but the page says whether it counts."""

    __slots__ = ("_guard",)

    def __init__(self, guard: PageGuard) -> None:
        context = guard.page_context
        token = guard.page_token
        owner = model.Owner(context.session.id, 0)
        since_ns = context.memory.look(guard.page_slot)[4] if context.memory.is_open else 0
        name = guard.page_lock.name
        number = _PAGE_REQUEST | token
        grant = model.Grant(name, Mode.EXCLUSIVE, token, 1, since_ns, owner, number)
        super().__init__(context.session, number, (grant,))
        self._guard = guard

    @property
    def is_valid(self) -> bool:
        return self._why() is None

    def check(self) -> None:
        error = self._why()
        if error is not None:
            raise error.again()

    def _why(self) -> TowpathError | None:
        """Why it does not count; None: it does."""
        if self.why_lost is not None:
            return self.why_lost
        context = self._guard.page_context
        if self.session.why_lost is not None:
            return self.session.why_lost
        is_in_page, has, is_shut = self._guard.look()
        if not is_in_page:
            return NotHeld("it was released already")
        if self.number in context.lost:
            return context.lost[self.number]
        if not has:
            return LockRevoked(f"{self.grants[0].lock!r} was taken away")
        if is_shut and self.session.may_be_gone:
            return SessionLost("the daemon has not been heard of for as long as it keeps locks without that")
        return None


class PageGuard(Guard):
    """The guard of a lock that was taken in the page: what need not be quick. The rest of it, which is only
    declared here, is in C: ``_ring.lock_guard_type``."""

    __slots__ = ()
    page_hold: Hold | None
    page_lock: PageLock
    page_context: PageOf
    page_result: int
    page_slot: int
    page_token: int

    if TYPE_CHECKING:

        def set_hold(self, hold: Hold) -> None: ...
        def leave_page(self) -> bool: ...
        def look(self) -> tuple[bool, bool, bool]: ...

    @property
    def _hold(self) -> Hold:  # type: ignore[override]
        hold = self.page_hold
        if hold is None:
            hold = PageHold(self)
            self.set_hold(hold)
        return hold

    @property
    def _locks(self) -> Locks:  # type: ignore[override]
        return self.page_lock._locks

    def _release_slow(self) -> None:
        hold, result = self._hold, self.page_result
        if not isinstance(hold, PageHold):
            GuardBase.release(self)
            return
        if result == _ring.LOCK_OK:
            raise NotHeld("it was released already")
        context = self.page_context
        self.leave_page()
        error = context.session.why_lost or context.lost.pop(hold.number, None)
        if error is None and result != _ring.LOCK_SHUT:
            error = LockRevoked(f"{hold.grants[0].lock!r} was taken away")
        hold.why_lost = error or NotHeld("it was released", hint="")
        if error is not None:
            raise error.again()
        context.session.release_number(hold.number)

    def _exit_slow(self, kind: Any, error: Any, trace: Any) -> None:
        Guard.__exit__(self, kind, error, trace)

    def _to_core(self) -> None:
        """From now on it is held at the daemon, which takes the lock back when it hears of it."""
        hold = self._hold
        if isinstance(hold, PageHold):
            hold.check()
            self.set_hold(hold.session.adopt(hold.number, hold.grants))
            self.leave_page()

    def upgrade(self, timeout: float | None = None) -> None:
        self._to_core()
        Guard.upgrade(self, timeout)

    def downgrade(self) -> None:
        self._to_core()
        Guard.downgrade(self)

    def wait(self, condition: str = "", timeout: float | None = None) -> bool:
        self._to_core()
        return Guard.wait(self, condition, timeout)

    def notify(self, condition: str = "", count: int = 1) -> int:
        self._to_core()
        return Guard.notify(self, condition, count)


_QuickGuard: Final = _ring.lock_guard_type(PageGuard)


@_ring.lock_own_acquire
class PageLock(_ring.LockBase, Lock):
    """A lock that is taken in shared memory where that is possible; see :class:`towpath.Lock`."""

    def __init__(self, locks: Locks, name: str, client: LocalClient) -> None:
        Lock.__init__(self, locks, name)
        self._client = client
        self._uses = 0
        self._again_at_s = 0.0
        self._pause_s = PAUSE_S

    def _acquire_slow(self, timeout: float | None = None, *, shared: bool = False) -> Guard:
        if not shared:
            requests.timeout_ms(timeout)  # refuses what is none
            guard = self._from_page(timeout)
            if guard is not None:
                return guard
        return Lock.acquire(self, timeout, shared=shared)

    def _enter_slow(self, guard: Guard | None) -> Guard:
        return self._entered.push(self.acquire() if guard is None else guard)

    def _exit_slow(self, kind: Any, error: Any, trace: Any) -> None:
        Lock.__exit__(self, kind, error, trace)

    # ---- in the page ----

    def _from_page(self, timeout: float | None) -> Guard | None:
        """Take it in the page; None: the daemon is to be asked.

        Raises:
            LockHeld, Timeout, and what a signal's handler raises.
        """
        session = self._locks.session()
        self._uses += 1
        if self._uses < 2:
            return None
        deadline_ns = FOREVER if timeout is None else time.monotonic_ns() + int(timeout * 1e9)
        for _ in range(2):
            member = self._member(session)
            if member is None:
                if not self._join(session):
                    return None
                continue
            member.use()
            result, guard = self.try_page()
            if result == _ring.LOCK_HELD:
                if timeout == 0:
                    raise LockHeld(f"{self.name!r} is not free")
                if member.held or session.has_holds(self._locks.owner()):
                    return None
                return self._wait(session, timeout, deadline_ns)
            if result == _ring.LOCK_OK:
                return self._got(guard)
            if result != _ring.LOCK_SHUT or not self._join(session):
                return None
        return None

    def _wait(self, session: LockSession, timeout: float | None, deadline_ns: int) -> Guard | None:
        number = session.next_number()
        try:
            result, guard = self.wait_page(number, deadline_ns)
        except BaseException:
            session.withdraw(number)
            raise
        if result == _ring.LOCK_OK:
            return self._got(guard)
        if result == _ring.LOCK_OVER:
            raise Timeout(f"{self.name!r} was not free in time")
        if result == _ring.LOCK_CLOSED:
            return None
        left_s = None if timeout is None else max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
        call = requests.acquire(self._locks.owner(), [Wanted(self.name)], timeout_s=left_s)
        try:
            pending = self._locks.wait(session, partial(requests.addressed, call), left_s, number)
            return Guard(self._locks, session.hold(pending))
        except LockHeld:
            raise Timeout(f"{self.name!r} was not free in time") from None
        except BaseException:
            session.release_number(number)  # a grant may be on its way
            raise

    def _got(self, guard: Guard) -> Guard:
        self._pause_s = PAUSE_S
        return guard

    def _member(self, session: LockSession) -> _ring.LockMember | None:
        """The calling thread's in the page that this lock is in; None: it has none there."""
        page = session.page
        if not isinstance(page, PageOf) or self.page is not page.memory:
            return None
        return page.members.get(self._locks.owner())

    def _join(self, session: LockSession) -> bool:
        """Ask for the lock to be given out, and where it is; whether it is."""
        if time.monotonic() < self._again_at_s:
            return False
        owner, page = self._locks.owner(), session.page
        has = page if isinstance(page, PageOf) else None
        call = requests.delegate(session.id, owner, self.name, 0 if has is None else has.identity)
        try:
            place, memory = self._client._lock_page(call)
        except TowpathError as error:
            self._again_at_s = time.monotonic() + self._pause_s
            if not isinstance(error, LockInUse):
                self._pause_s = min(2 * self._pause_s, PAUSE_S_MAX)
            return False
        with session.joining:
            page = next((each for each in session.pages if each.identity == place.page), None)
            if page is None:
                if memory is None:
                    return False  # the daemon has another by now; the next use finds that one
                page = PageOf(session, memory, place.page)
                session.add_page(page)
            assert isinstance(page, PageOf)
            if owner not in page.members:
                page.members[owner] = page.memory.add(place.member)
        self.set_page(page.memory, place.slot, _QuickGuard, page)
        return True
