"""A lock session's lane: memory by which it asks the daemon of its host for what is free, and gives it back.

Theory of operation
    The words are those that go by the socket, and so are their numbers. What is not granted at once is asked
    for by the socket, with the number that it had in the lane: the daemon knows it, and says how it stands.
    The lane is only used while the daemon looks into it (``clients/c/towpath_lane.h``), which it does for a
    while after each word: so the first of a series goes by the socket.

    What is said carries how much was said by the socket before it. Where that is not certain, since a
    signal's handler has ended a sending, the lane is not used any more.

    The lane goes with its connection. What was said there and not heard is then treated as what was said into
    the socket: asked for anew, or given back when the session has been taken up.

Not here: memory and waiting (``_ring.LaneClient``); the daemon's side (``towpath_broker.local.lock_lanes``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from . import model
from .holds import Hold
from .model import Mode
from .requests import Wanted

if TYPE_CHECKING:
    from towpath import _ring
    from towpath.calls import Call
    from towpath.exchange import Exchange

    from .requests import Standing
    from .session import LockSession

SKIPS_MAX: Final = 63
"""How often the lane is passed by, at most, after what was asked there had to be asked by the socket."""


class Prepared(NamedTuple):
    """A request that is made once and asked again and again. ``asked``: as it goes by the lane; None: it does
    not."""

    call: Call[Standing]
    owner: int
    wanted: Wanted
    asked: bytes | None


class LaneHold(Hold):
    """What was granted in the lane: told in full only when somebody asks."""

    __slots__ = ("_granted", "_since_ns", "_told", "token")

    def __init__(
        self, session: LockSession, number: int, prepared: Prepared, token: int, since_ns: int
    ) -> None:
        self.session = session
        self.number = number
        self.why_lost = None
        self.is_wounded = False
        self.token = token
        self._since_ns = since_ns
        self._granted = prepared
        self._told: tuple[model.Grant, ...] | None = None

    @property
    def grants(self) -> tuple[model.Grant, ...]:
        """See ``Hold``."""
        if self._told is None:
            wanted, owner = self._granted.wanted, model.Owner(self.session.id, self._granted.owner)
            self._told = (
                model.Grant(
                    wanted.name,
                    Mode(wanted.mode),
                    self.token,
                    wanted.weight,
                    self._since_ns,
                    owner,
                    self.number,
                ),
            )
        return self._told

    @grants.setter
    def grants(self, grants: tuple[model.Grant, ...]) -> None:
        self._told = grants


class LockLane:
    """One session's, on one connection.

    Args:
        memory: this end of it.
        exchange: of the connection: how much was said on it.
    """

    def __init__(self, session: LockSession, memory: _ring.LaneClient, exchange: Exchange) -> None:
        self._session = session
        self._ask, self._give_back, self._close = memory.ask, memory.give_back, memory.close
        self._exchange = exchange
        self._skips = self._left_out = 0

    def take(self, number: int, prepared: Prepared, asked: bytes) -> LaneHold | None:
        """Ask for something; returns what was granted. None: it is to be asked for by the socket, with the
        same number. Whatever ends this, a signal's handler say: the daemon may have the request."""
        if self._left_out < self._skips:
            self._left_out += 1
            return None
        said = self._exchange.said
        granted = said >= 0 and self._ask(number, said, asked)
        if granted is False:  # the daemon does not look here just now
            return None
        if granted is not True:
            hold = LaneHold(self._session, number, prepared, *granted)
            if self._session.keep(hold):
                self._skips //= 2
                return hold
        self._left_out, self._skips = 0, min(2 * self._skips + 1, SKIPS_MAX)
        return None

    def give_back(self, number: int) -> bool:
        """Release what a request holds; False: it must be said by the socket (again, perhaps)."""
        said = self._exchange.said
        return said >= 0 and self._give_back(number, said)

    def close(self) -> None:
        """The connection has ended, or the session: who waits here goes on by the socket."""
        self._close()
