"""Barriers and latches: waiting until enough have arrived.

Theory of operation
    A *barrier* opens for those who wait at it when as many have arrived as it is for; then it is as new, for
    the next round. If one that has arrived leaves before it opens (its session ends, its time runs out, it is
    cancelled), the others can wait for ever; so they are refused (BARRIER_BROKEN), and the barrier is as new.

    A *latch* opens once. One may arrive at it without waiting, and wait without being counted; leaving breaks
    nothing, since what was counted stays counted. It is forgotten when nobody waits at it and the sessions of
    all that arrived have ended.

    Whoever asks again, having lost its connection, has arrived already. So how a wait ended is remembered
    with its session, if it gave the wait a number (``ask``), until its owner's next wait has ended.

Invariants
    A barrier is kept while somebody waits at it, a latch while a session of those that came to it is there.
"""

from __future__ import annotations

from towpath.errors import BarrierBroken, InvalidArgument, LimitExceeded, LockConflict, LockHeld
from towpath.names import check_name

from . import commands as c
from . import effects as e
from .acquiring import check_new
from .grants import AT_BARRIER, End, Request, Session
from .limits import PARTIES_MAX
from .table import Table


class Barrier:
    """A barrier or a latch.

    Attributes:
        arrived: how many.
        waiting: who waits, each with its index; -1 of those who are not counted.
        is_open: of a latch.
        members: of a latch: the sessions that came to it.
    """

    __slots__ = ("arrived", "is_latch", "is_open", "members", "name", "parties", "waiting")

    def __init__(self, name: str, parties: int, is_latch: bool) -> None:
        self.name = name
        self.parties = parties
        self.is_latch = is_latch
        self.arrived = 0
        self.is_open = False
        self.waiting: dict[Request, int] = {}
        self.members: dict[Session, None] = {}


class Barriers:
    """All barriers and latches."""

    def __init__(self) -> None:
        self.by_name: dict[str, Barrier] = {}

    def arrive(self, table: Table, command: c.ArriveBarrier) -> None:
        """Arrive, and wait unless it opens.

        Raises:
            TowpathError: it is refused; nothing was changed.
        """
        session = table.session(command.session)
        existing = session.requests.get(command.request)
        if existing is not None and existing.state == AT_BARRIER:
            table.effects.append(e.Waiting(session.id, existing.number))
            return
        if existing is not None:
            raise InvalidArgument(f"request {command.request} is of something else")
        if (ended := session.end_of(command.request, command.ask)) is not None:
            table.effects.append(ended)
            return
        owner = table.owner(session, command.owner)
        check_new(table, session, owner, command.request)
        barrier = self._find(table, command)
        is_opening = not command.is_observer and barrier.arrived + 1 >= barrier.parties
        is_open = barrier.is_open
        if not is_opening and not is_open and not command.is_passing:
            if command.timeout_ms == 0:
                raise LockHeld(f"{barrier.arrived} of {barrier.parties} have arrived at {barrier.name!r}")
            table.check_wait(session)
        table.revision += 1
        self.by_name[barrier.name] = barrier
        if barrier.is_latch:
            barrier.members[session] = None
        index = -1
        if not command.is_observer and not is_open:
            index = barrier.arrived
            barrier.arrived += 1
        if is_open or is_opening or command.is_passing:
            told = e.BarrierOpened(session.id, command.request, max(index, 0), is_open or is_opening)
            if is_opening and not is_open:
                self._open(table, barrier)
            if command.ask:
                session.remember(owner.number, End(command.request, command.ask, told))
            table.effects.append(told)
        else:
            request = Request(session, owner, command.request)
            request.place = barrier.name
            request.ask = command.ask
            table.keep(request)
            barrier.waiting[request] = index
            table.begin_wait(request, AT_BARRIER, command.timeout_ms)
            table.effects.append(e.Waiting(session.id, request.number))

    def _find(self, table: Table, command: c.ArriveBarrier) -> Barrier:
        if (command.is_observer or command.is_passing) and not command.is_latch:
            raise InvalidArgument("only at a latch can one wait without being counted, or be counted only")
        if command.is_observer and command.is_passing:
            raise InvalidArgument("who is neither counted nor waits need not arrive")
        barrier = self.by_name.get(command.name)
        if barrier is not None:
            if (barrier.parties, barrier.is_latch) != (command.parties, command.is_latch):
                what = "latch" if barrier.is_latch else "barrier"
                raise LockConflict(f"{barrier.name!r} is a {what} for {barrier.parties}")
            return barrier
        check_name(command.name, "a barrier's name")
        if not 1 <= command.parties <= PARTIES_MAX:
            raise InvalidArgument(f"a barrier is for 1 to {PARTIES_MAX}, not {command.parties}")
        if len(self.by_name) >= table.limits.barriers_max:
            raise LimitExceeded(f"there are {len(self.by_name)} barriers: barriers_max")
        return Barrier(command.name, command.parties, command.is_latch)

    def _open(self, table: Table, barrier: Barrier) -> None:
        barrier.is_open = barrier.is_latch
        waiting, barrier.waiting = barrier.waiting, {}
        for request, index in waiting.items():
            table.end_wait(request)
            table.forget(request)
            session = request.session
            told = e.BarrierOpened(session.id, request.number, max(index, 0), True)
            if request.ask:
                session.remember(request.owner.number, End(request.number, request.ask, told))
            table.effects.append(told)
        if not barrier.is_latch:
            del self.by_name[barrier.name]

    def leave(self, table: Table, request: Request) -> None:
        """One that waits does not any more; it is told by the caller."""
        barrier = self.by_name[request.place]
        del barrier.waiting[request]
        table.end_wait(request)
        table.forget(request)
        if barrier.is_latch:
            return
        del self.by_name[barrier.name]
        who = f"session {request.session.id}"
        for other in barrier.waiting:
            table.end_wait(other)
            table.forget(other)
            table.refuse(other, BarrierBroken(f"{who} has left {barrier.name!r} before it opened"))

    def end_session(self, table: Table, session: Session) -> None:
        """A session, which waits at none any more, is gone."""
        for barrier in tuple(self.by_name.values()):
            if barrier.members.pop(session, session) is None:
                table.revision += 1
                if not barrier.members:
                    del self.by_name[barrier.name]
