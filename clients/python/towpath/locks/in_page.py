"""What is alike in all locks that are taken in shared memory, whoever waits for them in whichever way.

Theory of operation
    A lock that is used for the second time is asked for (``DelegateLock``), and from then on it is taken
    and given back in the page (``clients/c/towpath_lock.h``), in C, without the daemon; alone or shared.
    Whatever else is wanted goes to the daemon as ever, which takes the lock back for that: joint requests,
    upgrades, conditions; what must wait as a reader, or for readers; and what must wait while this program
    holds something, since only the daemon sees deadlocks.

    A lock that was taken back is found shut. If this program held it, its guard's number is known to the
    daemon, since it follows from the token: it is released there.

Invariants
    A guard is given back in one place: in the page if the word there still says so, else at the daemon.

Not here: the daemon's side (``towpath_broker.local.lock_pages``); waiting (``paging``, ``paging_aio``).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from towpath import _ring
from towpath.calls import Call
from towpath.errors import LockHeld, LockInUse, LockRevoked, NotHeld, SessionLost, TowpathError
from towpath.locks import model, requests
from towpath.locks.guards import GuardBase
from towpath.locks.holds import Hold
from towpath.locks.model import Mode
from towpath.locks.requests import Place
from towpath.locks.session import LockSession

PAUSE_S: Final = 0.05
"""So long a lock is not asked for again that was not given out; doubled each time where it cannot be."""
PAUSE_S_MAX: Final = 2.0
_PAGE_REQUEST: Final = 1 << 62

G = TypeVar("G")


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

    def has(self, owner: int) -> bool:
        """Whether an owner has something in it."""
        member = self.members.get(owner)
        return member is not None and member.held > 0

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

    def deny(self, token: int) -> None:
        """What the daemon may think to be held by a token is not: it took the lock back in that moment."""
        self.session.release_number(_PAGE_REQUEST | token)

    def close(self) -> None:
        """The session is over."""
        self.memory.close()


class PageHold(Hold):
    """What is held in the page: as a ``Hold``, but the page says whether it counts."""

    __slots__ = ("_guard",)

    def __init__(self, guard: InPage) -> None:
        context = guard.page_context
        token = guard.page_token
        owner = model.Owner(context.session.id, 0)
        name = guard.page_lock.name
        number = _PAGE_REQUEST | token
        mode = Mode.SHARED if guard.page_is_shared else Mode.EXCLUSIVE
        grant = model.Grant(name, mode, token, 1, guard.since_ns(), owner, number)
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


class InPage(GuardBase):
    """The guard of a lock that was taken in the page: what need not be quick. The rest of it, which is only
    declared here, is in C: ``_ring.lock_guard_type``."""

    __slots__ = ()
    page_hold: Hold | None
    page_lock: Any
    page_context: PageOf
    page_is_shared: bool
    page_result: int
    page_slot: int
    page_token: int

    if TYPE_CHECKING:

        def set_hold(self, hold: Hold) -> None: ...
        def leave_page(self) -> bool: ...
        def since_ns(self) -> int: ...
        def look(self) -> tuple[bool, bool, bool]: ...

    @property
    def _hold(self) -> Hold:  # type: ignore[override]
        hold = self.page_hold
        if hold is None:
            hold = PageHold(self)
            self.set_hold(hold)
        return hold

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

    def _to_core(self) -> None:
        """From now on it is held at the daemon, which takes the lock back when it hears of it."""
        hold = self._hold
        if isinstance(hold, PageHold):
            hold.check()
            self.set_hold(hold.session.adopt(hold.number, hold.grants))
            self.leave_page()


class LockInPage(_ring.LockBase, Generic[G]):
    """A lock, as far as it is a page's."""

    def __init__(self, name: str, guard_type: type[G]) -> None:
        self.name = name
        self._guard_type = guard_type
        self._uses = 0
        self._again_at_s = 0.0
        self._pause_s = PAUSE_S

    def is_used_again(self) -> bool:
        """It is used; whether it was before."""
        self._uses += 1
        return self._uses > 1

    def take(
        self, session: LockSession, owner: int, timeout: float | None, is_shared: bool
    ) -> tuple[int, G | None]:
        """Take it in the page, if it is free: LOCK_OK and its guard; else why not, and None. LOCK_SHUT: it
        may be asked for.

        Raises:
            LockHeld: somebody has it, and the timeout is 0.
        """
        member = self.member(session, owner)
        if member is None:
            return _ring.LOCK_SHUT, None
        member.use()
        result, guard = self.try_page(is_shared)
        if result == _ring.LOCK_HELD and timeout == 0:
            raise LockHeld(f"{self.name!r} is not free")
        if result == _ring.LOCK_OK:
            self._pause_s = PAUSE_S
        return result, guard

    def member(self, session: LockSession, owner: int) -> _ring.LockMember | None:
        """An owner's in the page that this lock is in; None: it has none there."""
        page = session.page
        if not isinstance(page, PageOf) or self.page is not page.memory:
            return None
        return page.members.get(owner)

    def request(self, session: LockSession, owner: int) -> Call[Place] | None:
        """What asks for the lock to be given out, and where it is; None: not now."""
        if not session.id or time.monotonic() < self._again_at_s:
            return None
        page = session.page
        has = page.identity if isinstance(page, PageOf) else 0
        return requests.delegate(session.id, owner, self.name, has)

    def refused(self, error: TowpathError) -> None:
        """It was not given out."""
        self._again_at_s = time.monotonic() + self._pause_s
        if not isinstance(error, LockInUse):
            self._pause_s = min(2 * self._pause_s, PAUSE_S_MAX)

    def given_out(
        self, session: LockSession, owner: int, place: Place, memory: _ring.LockPage | None
    ) -> bool:
        """It was; returns whether it is known where, which it is not when the daemon has another page by now:
        the next use finds that one."""
        with session.joining:
            page = next((each for each in session.pages if each.identity == place.page), None)
            if page is None:
                if memory is None:
                    return False
                page = PageOf(session, memory, place.page)
                session.add_page(page)
            assert isinstance(page, PageOf)
            if owner not in page.members:
                page.members[owner] = page.memory.add(place.member)
        self.set_page(page.memory, place.slot, self._guard_type, page)
        return True
