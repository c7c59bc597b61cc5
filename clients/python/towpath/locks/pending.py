"""One request that waits for locks, over the connections that come and go. Sans-I/O.

Theory of operation
    It is asked for when its session is open, and again each time that has been taken up: the daemon knows it
    by its number, and says how it stands. Each time it is a stream of its own; what comes of an earlier one
    is not heeded (``_round``).

Invariants
    It is told its end once: ``granted``, or an error. One thread at a time asks.

Not here: what was granted (``holds``), who waits (``session``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from towpath.asking import Asking, Following
from towpath.calls import Call
from towpath.errors import TowpathError

from . import model
from .requests import Standing

if TYPE_CHECKING:
    from .session import LockSession


class Pending:
    """One request that waits, until it is told its end.

    Args:
        session: whose it is.
        number: its number; of an upgrade or a condition, that of what is held.
        make: the request, to be asked in the session of an id.
        wake: called at its end.
        is_remembered: asked again it would begin anew, so the daemon remembers how it ended.
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
        is_remembered: bool,
    ) -> None:
        self.number = number
        self.is_new = is_new
        self.after = 0  # the release that must have been answered before this is asked for
        self._ask = next(session.asks) if is_remembered or session.lease_s else 0
        self.outcome: Standing | TowpathError | None = None
        self.waits: tuple[model.Wait, ...] = ()
        self._session = session
        self._make = make
        self._wake = wake
        self._leave: Following | None = None
        self._is_asking = False
        self._round = 0  # of asking; a stream of an earlier one is void

    def has_outcome(self) -> bool:
        """Whether it is over."""
        return self.outcome is not None

    @property
    def _is_not_to_be_asked(self) -> bool:
        session = self._session
        return self.outcome is not None or not session.is_connected or session.releases.is_before(self)

    def call_id(self) -> int:
        """Of the call by which it is asked for now; 0: it is not."""
        leave = self._leave
        return 0 if leave is None else leave.call_id()

    def _call(self, session: int) -> Call[Standing]:
        call = self._make(session)
        if self._ask and "ask" in call.body.DESCRIPTOR.fields_by_name:
            call.body.ask = self._ask
        return call

    def ask(self, asking: Asking) -> None:
        """Ask, if the session is open and it is not asked for yet. From any thread: one of them does it."""
        session = self._session
        is_first = True
        while True:
            with session.mutex:
                if is_first and (self._is_asking or self._leave is not None):
                    return
                is_first = False
                if self._is_not_to_be_asked:
                    # Granted, say, just before the stream was left: asked again, and left again, it would be
                    # given back.
                    self._is_asking = False
                    return
                self._is_asking = True
                self._round += 1
                listener, identifier = _Heard(self, self._round), session.id
            try:
                leave = asking._follow(partial(self._call, identifier), listener)
            except TowpathError as error:
                self.finish(error)
                return
            with session.mutex:
                is_good = not listener.is_void and self.outcome is None
                is_done = is_good or self._is_not_to_be_asked
                if is_good:
                    self._leave = leave
                if is_done:
                    self._is_asking = False
            if not is_good:
                leave()
            if is_done:
                return

    def stop_asking(self) -> None:
        """The connection is gone; the session asks again when it has been taken up."""
        with self._session.mutex:
            self._round += 1
            leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def finish(self, outcome: Standing | TowpathError) -> None:
        """It is over; said once."""
        if self._session.take_outcome(self, outcome):
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

    def ended(self, error: TowpathError) -> None:
        if not self.is_void:
            self._pending.finish(error)


class Withdrawing:
    """Listens to a request that nobody wants, until it can be withdrawn or given back."""

    def __init__(self, session: LockSession, number: int) -> None:
        self._session = session
        self._number = number
        self.leave: Callable[[], object] = _nothing

    def came(self, standing: Standing) -> None:
        if standing.grants:
            self._session.releases.give_back(self._number)
        elif standing.is_over:
            return
        else:
            self.leave()

    def broke(self, error: TowpathError) -> None:
        self.leave()  # the session sees to it when it is taken up again

    def ended(self, error: TowpathError) -> None: ...


def _nothing() -> None: ...
