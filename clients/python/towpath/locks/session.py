"""A lock session, sans-I/O: what it holds, what it waits for, and what is heard of it.

Theory of operation
    The session is a stream that is followed over the connections that come and go (``Asking._follow``). The
    first connection opens it; each later one takes it up again with the token that came with it. What waits
    is a stream of its own, asked for when the session is open and again each time it has been taken up: the
    daemon knows the request by its number, and says how it stands.

    What the daemon holds for the session and nobody here wants any more (a release that was said into a
    broken connection) is given back when the session has been taken up.

    Threads: the program's call methods here; the client's own tells what came. ``_mutex`` guards what both
    change, and is never held while the client is asked for anything.

Invariants
    A pending request is told its end once: ``granted``, or an error.
    A hold is valid from its grant until it is released here, taken away, or the session may have been ended:
    its stream has been broken for longer than the daemon waits.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from towpath import convert
from towpath.asking import Asking
from towpath.calls import Call
from towpath.errors import (
    ConnectionLost,
    LockRevoked,
    NotHeld,
    SessionLost,
    TowpathError,
    Wounded,
)
from towpath.v1 import locks_pb2

from . import model, requests
from .requests import Standing

LOCAL_GRACE_S: Final = 5.0
"""How long the daemon of this host waits, after a restart, for those who held locks."""
LEASE_MS_DEFAULT: Final = 10_000
"""Of sessions from afar."""


class Pending:
    """One request that waits, until it is told its end.

    Args:
        session: whose it is.
        number: its number; of an upgrade or a condition, that of what is held.
        make: the request, to be asked in the session of an id.
        wake: called at its end.
        is_once: not to be asked twice: over, too, when the connection has broken.

    Attributes:
        waits: what was last heard of how it stands.
    """

    def __init__(
        self,
        session: LockSession,
        number: int,
        make: Callable[[int], Call[Standing]],
        wake: Callable[[], object],
        is_once: bool = False,
    ) -> None:
        self.number = number
        self._is_once = is_once
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
        return self.outcome is not None or not self._session._is_open

    def ask(self, asking: Asking) -> None:
        """Ask, if the session is open and it is not asked for yet. From any thread: one of them does it."""
        session = self._session
        with session._mutex:
            if self._is_asking or self._leave is not None or self._is_not_to_be_asked:
                return
            self._is_asking = True
        while True:
            with session._mutex:
                self._round += 1
                listener, identifier = _Heard(self, self._round), session.id
            try:
                leave = asking._follow(partial(self._make, identifier), listener)
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
        if self._is_once:
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
            self._pending.finish(standing)
        else:
            self._pending.waits = standing.waits

    def broke(self, error: TowpathError) -> None:
        if not self.is_void:
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
            raise SessionLost("the daemon has not been heard of for as long as it keeps locks without that")


class LockSession:
    """One client's lock session; see the module's docstring.

    Args:
        asking: the client.
        name: for people.
        lease_ms: 0 for a local program.
        priority: a higher one is less likely to be a deadlock's victim.
        on_lost: told when locks are lost that were held; must not wait.
        on_wounded: told when an older owner wants what one of the program's has; must not wait.

    Attributes:
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
    ) -> None:
        self.id = 0
        self.why_lost: TowpathError | None = None
        self._asking = asking
        self._name = name
        self._lease_ms = lease_ms
        self._priority = priority
        self._on_lost = on_lost
        self._on_wounded = on_wounded
        self._token = b""
        self.on_change: list[Callable[[], object]] = []
        self._is_open = False
        self._broken_at_ns = 0
        self._mutex = threading.Lock()
        self._numbers = itertools.count(1)
        self._pending: dict[Pending, None] = {}
        self._holds: dict[int, Hold] = {}
        self._leave = asking._follow(self._opening, self)

    @property
    def is_connected(self) -> bool:
        """Whether the daemon can be heard."""
        return self._is_open

    @property
    def may_be_gone(self) -> bool:
        """Whether the daemon may have ended it without this program's knowing."""
        broken_at_ns = self._broken_at_ns
        if not broken_at_ns:
            return False
        allowed_s = self._lease_ms / 1e3 or LOCAL_GRACE_S
        return time.monotonic_ns() - broken_at_ns > allowed_s * 1e9

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
        pending = Pending(self, given, lambda session: make(session, given), wake, is_once)
        with self._mutex:
            if self.why_lost is not None:
                raise self.why_lost.again()
            self._pending[pending] = None
        pending.ask(self._asking)
        return pending

    def give_up(self, pending: Pending) -> None:
        """Withdraw a request, or give back what it was granted meanwhile."""
        with self._mutex:
            is_pending = pending in self._pending
            self._pending.pop(pending, None)
        if is_pending:
            pending.outcome = ConnectionLost("it was given up", hint="")
            pending.stop_asking()
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
        if self._asking._post(requests.release(self.id, hold.number), _ignore) is None:
            return  # there is no connection: it is given back when the session is taken up again

    def let_go(self, hold: Hold) -> None:
        """It is not held any more, as far as this program is concerned. Errors as for :meth:`release`."""
        hold.check()
        with self._mutex:
            if self._holds.pop(hold.number, None) is None:
                raise NotHeld("it was released already")
        hold.why_lost = NotHeld("it was released", hint="")

    def close(self) -> None:
        """End the session; what it holds is released. More than once is fine."""
        closed = ConnectionLost("the client was closed", hint="")
        self._lose(closed, is_told=False)
        self._leave()

    # ---- what is heard -------------------------------------------------------------------------------------

    def _opening(self) -> Call[locks_pb2.KeepLockSessionResponse]:
        return requests.keep(
            name=self._name,
            lease_ms=self._lease_ms,
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
            case "lost":
                self._lose(convert.error_from_proto(notice.lost.error))

    def broke(self, error: TowpathError) -> None:
        """The connection is gone. The session is taken up on the next."""
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

    def _opened(self, opened: locks_pb2.LockSessionOpened) -> None:
        with self._mutex:
            self.id = opened.session
            self._token = opened.resume_token
            self._broken_at_ns = 0
            self._is_open = True
            pending = list(self._pending)
            wanted = {each.number for each in pending} | set(self._holds)
            held = {grant.request for grant in opened.grants}
            lost = [number for number in self._holds if number not in held]
        for number in sorted(held - wanted):
            self._asking._post(requests.release(self.id, number), _ignore)
        for number in sorted({wait.request for wait in opened.waits} - wanted):
            self._withdraw(number)
        waiting = {each.number for each in pending}
        for number in lost:
            if number not in waiting:  # who waits for a condition holds nothing meanwhile
                self._revoked(number, LockRevoked("it was taken away while the daemon could not be heard"))
        for each in pending:
            each.ask(self._asking)
        self._changed()

    def _changed(self) -> None:
        for told in tuple(self.on_change):
            told()

    def _withdraw(self, number: int) -> None:
        """Give up what waits at the daemon and nobody here wants: ask how it stands, and cancel that."""
        anything = [requests.Wanted("withdrawn")]
        call = requests.addressed(requests.acquire(0, anything, timeout_s=0), self.id, number)
        self._asking._follow(lambda: call, _Nobody())()

    def _revoked(self, number: int, error: TowpathError) -> None:
        with self._mutex:
            hold = self._holds.pop(number, None)
        if hold is not None:
            hold.why_lost = error
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
            pending = list(self._pending)
        for hold in holds:
            hold.why_lost = error
        for each in pending:
            each.finish(error)
            each.stop_asking()
        if holds and is_told and self._on_lost is not None:
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


class _Nobody:
    """Listens to what nobody wants."""

    def came(self, item: Any) -> None: ...
    def broke(self, error: TowpathError) -> None: ...
    def ended(self, error: TowpathError) -> None: ...


def _ignore(_: object) -> None:
    """What became of it is known already, or told otherwise."""
