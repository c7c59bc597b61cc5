"""A lock session, sans-I/O: what it holds, what it waits for, and what is heard of it.

Theory of operation
    The session is a stream that is followed over the connections that come and go (``Asking._follow``). The
    first connection opens it; each later one takes it up again with the token that came with it. What waits
    is a stream of its own, asked for when the session is open and again each time it has been taken up: the
    daemon knows the request by its number, and says how it stands.

    What the daemon holds for the session and nobody here wants any more (a release that was said into a
    broken connection) is given back when the session has been taken up.

    From afar a session has a *lease* (``leases``), and what it gives back is answered (``releases``).

    Threads: the program's call methods here; the client's own tells what came. ``mutex`` guards what both
    change, and is never held while the client is asked for anything.

Invariants
    A pending request is told its end once: ``granted``, or an error.
    A hold is valid from its grant until it is released here, taken away, or the session may have been ended:
    its stream has been broken for longer than the daemon waits, or its lease may have run out.

Not here: one request (``pending``), what it holds (``holds``).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from towpath import convert
from towpath.asking import Asking
from towpath.calls import Call
from towpath.errors import ConnectionLost, LockRevoked, NotHeld, SessionLost, TowpathError, Wounded
from towpath.v1 import locks_pb2

from . import model, requests
from .holds import Hold, Page, silent
from .lane import LockLane
from .leases import Lease
from .pending import Pending, Withdrawing
from .releases import Releases
from .requests import Standing

if TYPE_CHECKING:
    from towpath import _ring
    from towpath.exchange import Exchange

LOCAL_GRACE_S: Final = 5.0
"""How long the daemon of this host waits, after a restart, for those who held locks."""
CLOSE_S: Final = 1.0
"""How long closing waits for the daemon's word that all is released."""


class LockSession:
    """One client's lock session; see the module's docstring.

    Args:
        asking: the client.
        name: for people.
        lease_ms: 0 for a local program.
        priority: a higher one is less likely to be a deadlock's victim.
        on_lost: told when locks are lost that were held; must not wait.
        on_wounded: told when an older owner wants what one of the program's has; must not wait.
        grace_ms: of a local program: how long the daemon keeps the session for a successor.
        resumed: the ``credentials`` of a session that another process had, to take it up.
        on_found: told, once, what the session has when it is first open: its holds, and the waits that are
            to be asked for anew. Without it what it has is given back.

    Attributes:
        pages: the lock pages that it is in, the newest last.
        lane: its lock lane, on the connection that there is.
        releases: what it gives back. ``asking``, ``mutex``, ``asks``: for its parts.
        on_change: told whenever the connection has broken, or the session has been taken up or lost, by the
            thread that hears of it; must not wait.
    """

    def __init__(
        self,
        asking: Asking,
        *,
        name: str,
        lease_ms: int,
        priority: int = 0,
        on_lost: Callable[[TowpathError], object] | None = None,
        on_wounded: Callable[[TowpathError], object] | None = None,
        grace_ms: int = 0,
        resumed: tuple[int, bytes] = (0, b""),
        on_found: Callable[[list[Hold], list[model.Wait]], object] | None = None,
    ) -> None:
        self.id, self._token = resumed
        self._on_found = on_found
        self.why_lost: TowpathError | None = None
        self.asking = asking
        self._name = name
        self._lease_ms = lease_ms
        self._grace_ms = grace_ms
        self._priority = priority
        self._on_lost = on_lost
        self._on_wounded = on_wounded
        self.on_change: list[Callable[[], object]] = []
        self._is_open = False
        self._broken_at_ns = 0
        self._lease = Lease(lease_ms)
        self.mutex = threading.Lock()
        self.releases = Releases(self)
        self._numbers = itertools.count(1)
        self.pages: list[Page] = []
        self._asked_of: set[int] = set()  # what was held in them when the session was to be taken up
        self.lane: LockLane | None = None
        self.joining = threading.Lock()
        self.asks = itertools.count(1)
        self._pending: dict[Pending, None] = {}
        self._holds: dict[int, Hold] = {}
        self._when_gone: list[Callable[[], object]] = []
        self._stop_ticking: Callable[[], object] | None = None
        self._following = asking._follow(self._opening, self)
        if lease_ms:
            self._stop_ticking = asking._every(self._tick)

    @property
    def credentials(self) -> tuple[int, bytes]:
        """The session's id, and what proves that it is ours; (0, b"") before it is open."""
        return self.id, self._token

    @property
    def is_connected(self) -> bool:
        """Whether the daemon can be heard."""
        return self._is_open

    @property
    def may_be_gone(self) -> bool:
        """Whether the daemon may have ended it without this program's knowing."""
        if self._lease_ms:
            return self.left_s <= 0
        broken_at_ns = self._broken_at_ns
        return bool(broken_at_ns) and time.monotonic_ns() - broken_at_ns > LOCAL_GRACE_S * 1e9

    @property
    def lease_s(self) -> float:
        """How long the daemon keeps it without hearing of it; 0: its connection is what counts."""
        return self._lease_ms / 1e3

    @property
    def left_s(self) -> float:
        """How long what it holds is certain to be its own, if the daemon is not heard of any more; only of
        one with a lease."""
        return self._lease.left_s

    @property
    def page(self) -> Page | None:
        """The lock page."""
        return self.pages[-1] if self.pages else None

    def has_holds(self, owner: int) -> bool:
        """Whether an owner holds something."""
        with self.mutex:
            holds, pages = list(self._holds.values()), self.pages
        return any(page.has(owner) for page in pages) or any(
            hold.grants and hold.grants[0].owner.number == owner for hold in holds
        )

    # ---- lock pages ----------------------------------------------------------------------------------------

    def add_page(self, page: Page) -> None:
        """The session is in a page from now on; those before in which it has nothing are forgotten."""
        with self.mutex:
            self.pages = [*(each for each in self.pages if each.held()), page]
            is_lost = self.why_lost is not None
        if is_lost:
            page.close()

    def lane_opened(self, memory: _ring.LaneClient, exchange: Exchange) -> None:
        """The connection that there is has a lane for it."""
        with self.mutex:
            if self._is_open and self.why_lost is None:
                self.lane = LockLane(self, memory, exchange)

    def _leave_lane(self) -> None:
        lane, self.lane = self.lane, None
        if lane is not None:
            lane.close()

    def keep(self, hold: Hold) -> bool:
        """A request was granted; False: the session was lost meanwhile."""
        with self.mutex:
            if self.why_lost is not None:
                return False
            self._holds[hold.number] = hold
            return True

    def forget(self, number: int) -> None:
        """Nobody wants a request any more that was said in the lane, whatever has become of it: what is asked
        for next is behind that."""
        with self.mutex:
            self._holds.pop(number, None)
        if self._is_open:
            self._withdraw(number).leave()  # if it waits
            self.releases.give_back(number)  # if it is granted

    def next_number(self) -> int:
        """A number for a request that may come to be the daemon's."""
        return next(self._numbers)

    def withdraw(self, number: int) -> None:
        """Have the daemon forget a request, should it have it."""
        if self._is_open:
            self._withdraw(number)

    def adopt(self, number: int, grants: tuple[model.Grant, ...]) -> Hold:
        """What was held in a page is held at the daemon from now on, which knows the number."""
        hold = Hold(self, number, grants)
        with self.mutex:
            self._holds[number] = hold
        return hold

    def release_number(self, number: int) -> None:
        """Give back what was held in a page, and is the daemon's meanwhile. Does not wait."""
        self.releases.give_back(number)

    # ---- what the program wants ----------------------------------------------------------------------------

    def begin(
        self,
        make: Callable[[int, int], Call[Standing]],
        wake: Callable[[], object],
        number: int = 0,
        *,
        is_remembered: bool = False,
        is_new: bool = False,
    ) -> Pending:
        """Ask for something that may have to wait.

        Args:
            make: the request, of a session's id and a number.
            wake: called when it is over.
            number: of what is held already; 0: a new one.
            is_remembered: asked again on the next connection it would begin anew, were it not remembered.
            is_new: nothing is held by this number, although it is given.

        Raises:
            SessionLost: the session has ended.
        """
        given = number or next(self._numbers)
        pending = Pending(
            self,
            given,
            lambda session: make(session, given),
            wake,
            is_new=is_new or not number,
            is_remembered=is_remembered,
        )
        with self.mutex:
            if self.why_lost is not None:
                raise self.why_lost.again()
            self._pending[pending] = None
            self.releases.queue(pending)
        try:
            pending.ask(self.asking)
        except BaseException:  # a signal's handler: the caller would not know what to give up
            self.give_up(pending)
            raise
        return pending

    def give_up(self, pending: Pending) -> None:
        """Withdraw a request, or give back what it was granted meanwhile."""
        with self.mutex:
            is_pending = pending in self._pending
            self._pending.pop(pending, None)
            if is_pending and pending.is_new:
                self._holds.pop(pending.number, None)
        if is_pending:
            pending.outcome = ConnectionLost("it was given up", hint="")
            pending.stop_asking()
            if pending.is_new and self.id:
                self.releases.give_back(pending.number)  # the grant may be on its way
        elif isinstance(pending.outcome, Standing) and (hold := self._holds.get(pending.number)) is not None:
            self.release(hold)

    def hold(self, pending: Pending) -> Hold:
        """Return what a request that is over was granted.

        Raises:
            TowpathError: why it was not.
        """
        outcome = pending.outcome
        assert outcome is not None
        if isinstance(outcome, TowpathError):
            raise outcome
        return self._holds[pending.number]

    def release(self, hold: Hold) -> None:
        """Give back. Does not wait: what comes after it on this client comes after it at the daemon.

        Raises:
            NotHeld: it was given back already.
            LockRevoked, SessionLost: it had been lost meanwhile.
        """
        self.let_go(hold)
        self.releases.give_back(hold.number)

    def let_go(self, hold: Hold) -> None:
        """It is not held any more, as far as this program is concerned. Errors as for :meth:`release`."""
        try:
            hold.check()
        except SessionLost as error:
            with self.mutex:
                may_be_held = self._holds.pop(hold.number, None) is not None
            if may_be_held:  # the session may yet be taken up, and then nobody would give it back
                hold.why_lost = error
                self.releases.give_back(hold.number)
            raise
        with self.mutex:
            if self._holds.pop(hold.number, None) is None:
                raise NotHeld("it was released already")
        hold.why_lost = NotHeld("it was released", hint="")

    def close(self, gone: Callable[[], object] | None = None) -> bool:
        """End the session; what it holds is released. More than once is fine.

        Args:
            gone: called when the daemon has said that it is.

        Returns:
            Whether that is to be expected.
        """
        is_to_be_told = bool(self._lease_ms) and self._is_open
        if is_to_be_told and gone is not None:
            self._when_gone.append(gone)
        self._lose(ConnectionLost("the client was closed", hint=""), is_told=False)
        self._end_stream(is_to_be_told)
        return is_to_be_told

    def _end_stream(self, is_to_be_told: bool) -> None:
        if self._stop_ticking is not None:
            self._stop_ticking()
        if is_to_be_told:
            self._following.send(locks_pb2.KeepLockSessionRequest(close=locks_pb2.CloseLockSession()))
        else:
            self._following.leave()

    # ---- what is heard -------------------------------------------------------------------------------------

    def _opening(self) -> Call[locks_pb2.KeepLockSessionResponse]:
        self._lease.opening()
        self._asked_of = {number for page in self.pages for number in page.held()}
        return requests.keep(
            name=self._name,
            lease_ms=self._lease_ms or self._grace_ms,
            priority=self._priority,
            resumed=self.id,
            resume_token=self._token,
        )

    def came(self, notice: locks_pb2.KeepLockSessionResponse) -> None:
        """A notice of the session's stream."""
        match notice.WhichOneof("event"):
            case "opened":
                self._opened(notice.opened)
            case "revoked":
                grant = notice.revoked.grant
                self._revoked(grant.request, LockRevoked(f"{grant.lock!r} was {notice.revoked.reason}"))
            case "wounded":
                self._wounded(notice.wounded)
            case "alive":
                self._lease.answered()
            case "lost":
                self._lose(convert.error_from_proto(notice.lost.error))
                self._gone()

    def broke(self, error: TowpathError) -> None:
        """The connection is gone. The session is taken up on the next."""
        self._leave_lane()
        self._lease.broke()
        with self.mutex:
            if self._is_open:
                self._broken_at_ns = time.monotonic_ns()
            self._is_open = False
            pending = list(self._pending)
        for each in pending:
            each.stop_asking()
        self._changed()

    def ended(self, error: TowpathError) -> None:
        """The session is gone."""
        self._lose(error)
        self._gone()

    def _gone(self) -> None:
        """The daemon does not have it any more."""
        with self.mutex:
            when_gone, self._when_gone = self._when_gone, []
        for told in when_gone:
            told()

    def _tick(self) -> float:
        """Say that we are there, or see that the lease has run out; returns when to be called again."""
        lease = self._lease
        if lease.is_over and self.why_lost is None:
            is_open = self._is_open
            self._lose(silent())
            self._end_stream(is_open)
        if self._is_open and lease.take_beat():
            alive = locks_pb2.KeepLockSessionRequest(alive=locks_pb2.LockSessionAlive())
            self._following.send(alive)
            self.releases.say_again()
        return lease.due_s(is_open=self._is_open)

    def _opened(self, opened: locks_pb2.LockSessionOpened) -> None:
        if self.why_lost is not None:  # it was closed while the connection was broken
            self._end_stream(is_to_be_told=True)
            return
        with self.mutex:
            self._lease.opened()
            self.id = opened.session
            self._token = opened.resume_token
            self._broken_at_ns = 0
            found = self._find(opened) if self._on_found is not None else None
            wanted = {each.number for each in self._pending} | set(self._holds)
            held = {grant.request for grant in opened.grants}
            lost = [number for number in self._holds if number not in held]
            for page in self.pages:
                for number, is_shut in page.held().items():
                    wanted.add(number)
                    is_known = number in held or number in self._holds
                    if is_shut and not is_known and number in self._asked_of:
                        lost.append(number)
            unknown = held - wanted - self.releases.resumed(held)
        self.releases.say_again()
        for number in sorted(unknown):
            self.releases.give_back(number)
        with self.mutex:  # from now on requests may be asked for, behind what was just said
            self._is_open = True
            pending = list(self._pending)
            self.releases.queue_anew(pending)
        for number in sorted({wait.request for wait in opened.waits} - wanted) if found is None else ():
            self._withdraw(number)
        waiting = {each.number for each in pending}
        for number in lost:
            if number not in waiting:  # who waits for a condition holds nothing meanwhile
                self._revoked(number, LockRevoked("it was taken away while the daemon could not be heard"))
        for each in pending:
            each.ask(self.asking)
        if found is not None and (told := self._on_found) is not None:
            self._on_found = None
            told(*found)
        self._changed()

    def _find(self, opened: locks_pb2.LockSessionOpened) -> tuple[list[Hold], list[model.Wait]]:
        """Take up what another process had. Its requests have one lock each."""
        holds = [Hold(self, grant.request, (model.grant_from_proto(grant),)) for grant in opened.grants]
        waits = list(map(model.wait_from_proto, opened.waits))
        self._holds.update((hold.number, hold) for hold in holds)
        highest = max([0, *(hold.number for hold in holds), *(wait.request for wait in waits)])
        self._numbers = itertools.count(highest + 1)
        return holds, waits

    def _changed(self) -> None:
        for told in tuple(self.on_change):
            told()

    def _withdraw(self, number: int) -> Withdrawing:
        """Give up what waits at the daemon and nobody here wants: ask how it stands, and cancel that."""
        anything = [requests.Wanted("withdrawn")]
        call = requests.addressed(requests.acquire(0, anything, timeout_s=0), self.id, number)
        listener = Withdrawing(self, number)
        listener.leave = self.asking._follow(lambda: call, listener)
        return listener

    def _revoked(self, number: int, error: TowpathError) -> None:
        with self.mutex:
            hold = self._holds.pop(number, None)
            pages = self.pages
        if hold is not None:
            hold.why_lost = error
        if hold is not None or any(page.revoked(number, error) for page in pages):
            if self._on_lost is not None:
                self._on_lost(error)
            self._changed()

    def _wounded(self, told: locks_pb2.LockOwnerWounded) -> None:
        with self.mutex:
            concerned = [
                hold
                for hold in self._holds.values()
                if any(grant.token == told.grant.token for grant in hold.grants)
            ]
        for hold in concerned:
            hold.is_wounded = True
        if concerned and self._on_wounded is not None:
            by = f"session {told.by.session}"
            self._on_wounded(Wounded(f"an older owner ({by}) wants {told.grant.lock!r}"))

    def _lose(self, error: TowpathError, *, is_told: bool = True) -> None:
        with self.mutex:
            if self.why_lost is not None:
                return
            self.why_lost = error
            self._is_open = False
            self._leave_lane()
            holds, self._holds = list(self._holds.values()), {}
            pending, pages = list(self._pending), self.pages
        has_held = bool(holds) or any(page.held() for page in pages)
        for page in pages:
            page.close()
        for hold in holds:
            hold.why_lost = error
        for each in pending:
            each.finish(error)
            each.stop_asking()
        if has_held and is_told and self._on_lost is not None:
            self._on_lost(error)
        self._changed()

    def take_outcome(self, pending: Pending, outcome: Standing | TowpathError) -> bool:
        """A request is over. Returns whether that is news."""
        with self.mutex:
            if pending not in self._pending:
                return False
            if isinstance(outcome, Standing) and outcome.grants:
                hold = self._holds.get(pending.number)
                if hold is None:
                    self._holds[pending.number] = Hold(self, pending.number, outcome.grants)
                else:
                    hold.grants = outcome.grants
            pending.outcome = outcome
            # At last: a signal's handler may end all this at any step, and then it is given up as one that
            # waits.
            del self._pending[pending]
            return True
