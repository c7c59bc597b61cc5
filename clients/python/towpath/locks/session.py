"""A lock session, sans-I/O: what it holds, what it waits for, and what is heard of it.

Theory of operation
    The session is a stream that is followed over the connections that come and go (``Asking._follow``). The
    first connection opens it; each later one takes it up again with the token that came with it. What waits
    is a stream of its own, asked for when the session is open and again each time it has been taken up: the
    daemon knows the request by its number, and says how it stands.

    What the daemon holds for the session and nobody here wants any more (a release that was said into a
    broken connection) is given back when the session has been taken up.

    From afar a session has a *lease*: the daemon ends it when it has not heard of it for so long. Each third
    of the lease the session says that it is there, and the daemon answers. The lease runs from when that
    arrived, and so at least from when it was said: by a clock of this host that goes on while the host
    sleeps. A tenth of the lease before it must have run out (``LEASE_MARGIN``), counted from the last that
    was answered, the session counts as lost here, for good; that is what a clock that goes wrong may use up.

    From afar no two calls are certain to be carried out in their order. So nothing is asked for before the
    releases said earlier have been answered.

    Threads: the program's call methods here; the client's own tells what came. ``_mutex`` guards what both
    change, and is never held while the client is asked for anything.

Invariants
    A pending request is told its end once: ``granted``, or an error.
    A hold is valid from its grant until it is released here, taken away, or the session may have been ended:
    its stream has been broken for longer than the daemon waits, or its lease may have run out.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final, Protocol

from towpath import calls, convert
from towpath.asking import Asking
from towpath.calls import Call
from towpath.errors import (
    Cancelled,
    ConnectionLost,
    InvalidArgument,
    LimitExceeded,
    LockRevoked,
    NotHeld,
    NotSupported,
    SessionLost,
    Timeout,
    TowpathError,
    Unavailable,
    Wounded,
)
from towpath.v1 import locks_pb2

from . import model, requests
from .requests import Standing

LOCAL_GRACE_S: Final = 5.0
"""How long the daemon of this host waits, after a restart, for those who held locks."""
LEASE_MS_DEFAULT: Final = 10_000
"""Of sessions from afar."""
_UNCERTAIN: Final = (Cancelled, ConnectionLost, LimitExceeded, Timeout, Unavailable)
"""After such an answer to a release the lock may still be held."""
LEASE_S_MIN: Final = 1
LEASE_S_MAX: Final = 3_600
LEASE_MARGIN: Final = 10
"""The part of a lease, one in so many, by which its end comes earlier here than at the daemon."""
BEATS_PER_LEASE: Final = 3
"""How often in a lease a session says that it is there."""
CLOSE_S: Final = 1.0
"""How long closing waits for the daemon's word that all is released."""


class Pending:
    """One request that waits, until it is told its end.

    Args:
        session: whose it is.
        number: its number; of an upgrade or a condition, that of what is held.
        make: the request, to be asked in the session of an id.
        wake: called at its end.
        is_once: not to be asked twice: over, too, when the connection has broken.
        is_new: not of something that is held already.

    Attributes:
        waits: what was last heard of how it stands.
    """

    def __init__(
        self,
        session: LockSession,
        number: int,
        make: Callable[[int], Call[Standing]],
        wake: Callable[[], object],
        *,
        is_new: bool,
        is_once: bool,
    ) -> None:
        self.number = number
        self.is_new = is_new
        self.is_once = is_once
        self.after = 0  # the release that must have been answered before this is asked for
        self._ask = next(session._asks) if session.lease_s else 0
        self.outcome: Standing | TowpathError | None = None
        self.waits: tuple[model.Wait, ...] = ()
        self._session = session
        self._make = make
        self._wake = wake
        self._leave: Callable[[], object] | None = None
        self._is_asking = False
        self._round = 0  # of asking; a stream of an earlier one is void

    @property
    def is_over(self) -> bool:
        return self.outcome is not None

    @property
    def _is_not_to_be_asked(self) -> bool:
        session = self._session
        return self.outcome is not None or not session._is_open or session._is_behind(self)

    def _call(self, session: int) -> Call[Standing]:
        call = self._make(session)
        if "ask" in call.body.DESCRIPTOR.fields_by_name:
            call.body.ask = self._ask
        return call

    def ask(self, asking: Asking) -> None:
        """Ask, if the session is open and it is not asked for yet. From any thread: one of them does it."""
        session = self._session
        with session._mutex:
            if self._is_asking or self._leave is not None or self._is_not_to_be_asked:
                return
            self._is_asking = True
        while True:
            with session._mutex:
                if (
                    self._is_not_to_be_asked
                ):  # granted, say, just before the stream was left: asked again, and
                    self._is_asking = False  # left again, it would be given back
                    return
                self._round += 1
                listener, identifier = _Heard(self, self._round), session.id
            try:
                leave = asking._follow(partial(self._call, identifier), listener)
            except TowpathError as error:
                self.finish(error)
                return
            with session._mutex:
                is_good = not listener.is_void and not self.is_over
                is_done = is_good or self._is_not_to_be_asked
                if is_good:
                    self._leave = leave
                if is_done:
                    self._is_asking = False
            if not is_good:
                leave()
                self._lose_once()
            if is_done:
                return

    def stop_asking(self) -> None:
        """The connection is gone; the session asks again when it has been taken up."""
        with self._session._mutex:
            self._round += 1
            leave, self._leave = self._leave, None
        if leave is not None:
            leave()
            self._lose_once()

    def _lose_once(self) -> None:
        if self.is_once:
            self.finish(ConnectionLost("it is not known whether the daemon did what was asked", hint=""))

    def finish(self, outcome: Standing | TowpathError) -> None:
        """It is over; said once."""
        if self._session._finish(self, outcome):
            self._leave = None
            self._wake()


class _Heard:
    """Listens to one stream of a pending request."""

    def __init__(self, pending: Pending, round_: int) -> None:
        self._pending = pending
        self._round = round_

    @property
    def is_void(self) -> bool:
        return self._pending._round != self._round

    def came(self, standing: Standing) -> None:
        if standing.is_over:
            self._pending.finish(standing.error or standing)
        else:
            self._pending.waits = standing.waits

    def broke(self, error: TowpathError) -> None:
        """If the session's stream has broken too, the session asks again; else this stream goes on."""
        if self._pending.is_once and not self.is_void:
            self._pending.stop_asking()

    def ended(self, error: TowpathError) -> None:
        if not self.is_void:
            self._pending.finish(error)


class Hold:
    """What one request holds.

    Attributes:
        number: the request's.
        grants: one for each lock, in the order of the request.
        why_lost: why it does not count any more; None: it does.
        is_wounded: an older owner wants it (policy wound-wait).
    """

    __slots__ = ("grants", "is_wounded", "number", "session", "why_lost")

    def __init__(self, session: LockSession, number: int, grants: tuple[model.Grant, ...]) -> None:
        self.session = session
        self.number = number
        self.grants = grants
        self.why_lost: TowpathError | None = None
        self.is_wounded = False

    @property
    def is_valid(self) -> bool:
        """Whether it counts, as far as can be known here."""
        return self.why_lost is None and not self.session.may_be_gone

    def check(self) -> None:
        """Raises why it does not count any more."""
        if self.why_lost is not None:
            raise self.why_lost.again()
        if self.session.may_be_gone:
            raise _silent()


class Page(Protocol):
    """A lock page that the session is in (``paging``): what is held there the daemon need not know.

    Attributes:
        identity: of the page.
    """

    identity: int

    def held(self) -> dict[int, bool]:
        """The requests that hold there, and whether the daemon has taken each over."""

    def revoked(self, number: int, error: TowpathError) -> bool:
        """A request's lock was taken away; whether it was one that held there."""

    def close(self) -> None:
        """The session is over."""


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
        self._asking = asking
        self._name = name
        self._lease_ms = lease_ms
        self._grace_ms = grace_ms
        self._priority = priority
        self._on_lost = on_lost
        self._on_wounded = on_wounded
        self.on_change: list[Callable[[], object]] = []
        self._is_open = False
        self._broken_at_ns = 0
        self._asked_at_ns = 0
        self._lost_at_ns = 0
        self._beats: deque[int] = deque()
        self._next_beat_ns = 0
        self._release = 0
        self._releasing: dict[int, int] = {}
        self._unreleased: set[int] = set()
        self._behind: deque[Pending] = deque()
        self._mutex = threading.Lock()
        self._numbers = itertools.count(1)
        self.pages: list[Page] = []
        self.joining = threading.Lock()
        self._asks = itertools.count(1)
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
        lost_at_ns = self._lost_at_ns
        return (lost_at_ns - _now_ns()) / 1e9 if lost_at_ns else self._lease_ms / 1e3

    @property
    def page(self) -> Page | None:
        """The lock page."""
        return self.pages[-1] if self.pages else None

    def has_holds(self, owner: int) -> bool:
        """Whether an owner holds something at the daemon."""
        with self._mutex:
            holds = list(self._holds.values())
        return any(hold.grants and hold.grants[0].owner.number == owner for hold in holds)

    # ---- lock pages ----------------------------------------------------------------------------------------

    def add_page(self, page: Page) -> None:
        """The session is in a page from now on; those before in which it has nothing are forgotten."""
        with self._mutex:
            self.pages = [*(each for each in self.pages if each.held()), page]
            is_lost = self.why_lost is not None
        if is_lost:
            page.close()

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
        with self._mutex:
            self._holds[number] = hold
        return hold

    def release_number(self, number: int) -> None:
        """Give back what was held in a page, and is the daemon's meanwhile. Does not wait."""
        self._give_back(number)

    # ---- what the program wants ----------------------------------------------------------------------------

    def begin(
        self,
        make: Callable[[int, int], Call[Standing]],
        wake: Callable[[], object],
        number: int = 0,
        *,
        is_once: bool = False,
    ) -> Pending:
        """Ask for something that may have to wait.

        Args:
            make: the request, of a session's id and a number.
            wake: called when it is over.
            number: of what is held already; 0: a new one.
            is_once: it must not be asked again on the next connection: ConnectionLost.

        Raises:
            SessionLost: the session has ended.
        """
        given = number or next(self._numbers)
        pending = Pending(
            self, given, lambda session: make(session, given), wake, is_new=not number, is_once=is_once
        )
        with self._mutex:
            if self.why_lost is not None:
                raise self.why_lost.again()
            self._pending[pending] = None
            if self._releasing:
                pending.after = self._release
                self._behind.append(pending)
        pending.ask(self._asking)
        return pending

    def _is_behind(self, pending: Pending) -> bool:
        """Whether a release that was said before a request has not been answered."""
        oldest = next(iter(self._releasing), None)
        return oldest is not None and oldest <= pending.after

    def give_up(self, pending: Pending) -> None:
        """Withdraw a request, or give back what it was granted meanwhile."""
        with self._mutex:
            is_pending = pending in self._pending
            self._pending.pop(pending, None)
        if is_pending:
            pending.outcome = ConnectionLost("it was given up", hint="")
            pending.stop_asking()
            if pending.is_new and self.id:
                self._give_back(pending.number)  # the grant may be on its way
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
        self._give_back(hold.number)

    def _give_back(self, number: int) -> None:
        """Release what a request holds. While there is no connection nothing is said: it is given back when
        the session is taken up again."""
        if not self._lease_ms:
            self._asking._post(requests.release(self.id, number), _ignore)
            return
        with self._mutex:
            self._release += 1
            release = self._release
            self._releasing[release] = number
        self._say_release(release, number)

    def _say_release(self, release: int, number: int) -> None:
        call = replace(requests.release(self.id, number), is_one_way=False)
        if self._asking._post(call, partial(self._released, release)) is None:
            self._released(release, calls.not_connected())

    def _released(self, release: int, outcome: TowpathError | None) -> None:
        """A release was answered: what was behind it is asked for. One of which it is not known what became
        of it is said again."""
        with self._mutex:
            if isinstance(outcome, _UNCERTAIN):
                self._unreleased.add(release)
                return
            self._releasing.pop(release, None)
            ready: list[Pending] = []
            while self._behind and not self._is_behind(self._behind[0]):
                ready.append(self._behind.popleft())
        for each in ready:
            each.ask(self._asking)

    def _release_again(self) -> None:
        """Say again what was not answered for a reason that passes."""
        with self._mutex:
            unreleased, self._unreleased = self._unreleased, set()
            again = [(each, self._releasing[each]) for each in unreleased if each in self._releasing]
        for release, number in again:
            self._say_release(release, number)

    def let_go(self, hold: Hold) -> None:
        """It is not held any more, as far as this program is concerned. Errors as for :meth:`release`."""
        try:
            hold.check()
        except SessionLost as error:
            with self._mutex:
                may_be_held = self._holds.pop(hold.number, None) is not None
            if may_be_held:  # the session may yet be taken up, and then nobody would give it back
                hold.why_lost = error
                self._give_back(hold.number)
            raise
        with self._mutex:
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
        self._asked_at_ns = _now_ns()
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
                if self._beats:
                    self._heard_at(self._beats.popleft())
            case "lost":
                self._lose(convert.error_from_proto(notice.lost.error))
                self._gone()

    def broke(self, error: TowpathError) -> None:
        """The connection is gone. The session is taken up on the next."""
        self._beats.clear()
        with self._mutex:
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
        with self._mutex:
            when_gone, self._when_gone = self._when_gone, []
        for told in when_gone:
            told()

    def _heard_at(self, said_at_ns: int) -> None:
        """The daemon has heard something that was said then."""
        self._lost_at_ns = said_at_ns + self._lease_ms * 1_000_000 * (LEASE_MARGIN - 1) // LEASE_MARGIN

    def _tick(self) -> float:
        """Say that we are there, or see that the lease has run out; returns when to be called again."""
        now_ns = _now_ns()
        beat_ns = self._lease_ms * 1_000_000 // BEATS_PER_LEASE
        if self._lost_at_ns and now_ns >= self._lost_at_ns and self.why_lost is None:
            is_open = self._is_open
            self._lose(_silent())
            self._end_stream(is_open)
        if self._is_open and now_ns >= self._next_beat_ns:
            self._next_beat_ns = now_ns + beat_ns
            self._beats.append(now_ns)
            alive = locks_pb2.KeepLockSessionRequest(alive=locks_pb2.LockSessionAlive())
            self._following.send(alive)
            self._release_again()
        due_ns = now_ns + beat_ns
        if self._is_open:
            due_ns = min(due_ns, self._next_beat_ns)
        if self._lost_at_ns:
            due_ns = min(due_ns, self._lost_at_ns)
        return max(0.0, (due_ns - _now_ns()) / 1e9)

    def _opened(self, opened: locks_pb2.LockSessionOpened) -> None:
        if self.why_lost is not None:  # it was closed while the connection was broken
            self._end_stream(is_to_be_told=True)
            return
        with self._mutex:
            if self._lease_ms:
                self._beats.clear()
                self._heard_at(self._asked_at_ns)
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
                    if is_shut and number not in held and number not in self._holds:
                        lost.append(number)
            self._releasing = {each: number for each, number in self._releasing.items() if number in held}
            self._unreleased = set(self._releasing)
            unknown = held - wanted - set(self._releasing.values())
        self._release_again()
        for number in sorted(unknown):
            self._give_back(number)
        with self._mutex:  # from now on requests may be asked for, behind what was just said
            self._is_open = True
            pending = list(self._pending)
            for each in pending:
                each.after = self._release
            self._behind = deque(pending)
        for number in sorted({wait.request for wait in opened.waits} - wanted) if found is None else ():
            self._withdraw(number)
        waiting = {each.number for each in pending}
        for number in lost:
            if number not in waiting:  # who waits for a condition holds nothing meanwhile
                self._revoked(number, LockRevoked("it was taken away while the daemon could not be heard"))
        for each in pending:
            each.ask(self._asking)
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

    def _withdraw(self, number: int) -> None:
        """Give up what waits at the daemon and nobody here wants: ask how it stands, and cancel that."""
        anything = [requests.Wanted("withdrawn")]
        call = requests.addressed(requests.acquire(0, anything, timeout_s=0), self.id, number)
        listener = _Withdrawing(self, number)
        listener.leave = self._asking._follow(lambda: call, listener)

    def _revoked(self, number: int, error: TowpathError) -> None:
        with self._mutex:
            hold = self._holds.pop(number, None)
            pages = self.pages
        if hold is not None:
            hold.why_lost = error
        if hold is not None or any(page.revoked(number, error) for page in pages):
            if self._on_lost is not None:
                self._on_lost(error)
            self._changed()

    def _wounded(self, told: locks_pb2.LockOwnerWounded) -> None:
        with self._mutex:
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
        with self._mutex:
            if self.why_lost is not None:
                return
            self.why_lost = error
            self._is_open = False
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

    def _finish(self, pending: Pending, outcome: Standing | TowpathError) -> bool:
        """A request is over. Returns whether that is news."""
        with self._mutex:
            if pending not in self._pending:
                return False
            del self._pending[pending]
            if isinstance(outcome, Standing) and outcome.grants:
                hold = self._holds.get(pending.number)
                if hold is None:
                    self._holds[pending.number] = Hold(self, pending.number, outcome.grants)
                else:
                    hold.grants = outcome.grants
            pending.outcome = outcome
            return True


def checked_lease_ms(lease_s: float, before_ms: int, session: LockSession | None) -> int:
    """Return a lease as it is told.

    Args:
        before_ms: what it is now; 0: the daemon is on this host.
        session: the client's, if there is one already.

    Raises:
        NotSupported: on the daemon's own host there are no leases.
        InvalidArgument: it is out of range, or comes too late.
    """
    if not before_ms:
        raise NotSupported(
            "a lock session of the daemon's own host has no lease", hint="it lives as long as its process"
        )
    if not LEASE_S_MIN <= lease_s <= LEASE_S_MAX:
        raise InvalidArgument(f"a lease has {LEASE_S_MIN} to {LEASE_S_MAX} seconds, not {lease_s}")
    if session is not None and session.why_lost is None:
        raise InvalidArgument("the lock session is open already", hint="say it before the first lock is used")
    return round(lease_s * 1e3)


def _now_ns() -> int:
    """A clock that goes on while the host sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _silent() -> SessionLost:
    return SessionLost("the daemon has not been heard of for as long as it keeps locks without that")


class _Withdrawing:
    """Listens to a request that nobody wants, until it can be withdrawn or given back."""

    def __init__(self, session: LockSession, number: int) -> None:
        self._session = session
        self._number = number
        self.leave: Callable[[], object] = _nothing

    def came(self, standing: Standing) -> None:
        if standing.grants:
            self._session._give_back(self._number)
        elif standing.is_over:
            return
        else:
            self.leave()

    def broke(self, error: TowpathError) -> None:
        self.leave()  # the session sees to it when it is taken up again

    def ended(self, error: TowpathError) -> None: ...


def _nothing() -> None: ...


def _ignore(_: object) -> None:
    """What became of it is known already, or told otherwise."""
