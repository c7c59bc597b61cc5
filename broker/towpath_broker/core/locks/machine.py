"""The lock machine: ``apply(command, now_ns) -> effects``. The package's docstring says how it is run.

Theory of operation
    The parts each hold one idea: ``acquiring`` how a request is judged, ``queue`` who is next, ``deadlock``
    what is done about circles, ``avoidance`` how they are kept from coming about, ``conditions``,
    ``barriers``, ``guarded``. They share one ``table``. The machine sends each command to its part, and turns
    refusals into effects.

Invariants
    Same commands and times, same effects; nothing else goes in.
    Expected outcomes are effects, never exceptions. A command that is refused, if that is all it brings
    about, leaves everything as it was, and ``revision`` too; it need not be journaled.
    The machine's time never goes back.

Not here: leases in time (``leases``), the journal, who is connected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from towpath.errors import Cancelled, InvalidArgument, LimitExceeded, QuotaExceeded, Timeout, TowpathError

from . import acquiring, conditions, delegating, guarded, operating, quick
from . import commands as c
from . import effects as e
from .acquiring import Blocked
from .barriers import Barriers
from .commands import EndReason, LockCommand
from .effects import LockEffect
from .grants import AT_BARRIER, HELD, ON_CONDITION, WAITING, Owner, Request, Session
from .limits import LEASE_MS_MAX, LEASE_MS_MIN, NOTE_CHARS_MAX
from .queue import advance
from .table import Table

TOKENS_PER_BLOCK: Final = 1 << 20
"""Tokens that one synced record allows. Those left of a block when the core restarts are skipped."""


RANGES_PER_BLOCK: Final = 64
"""The same where locks are given out to lock pages, in ranges of tokens."""


_QUICK: Final[dict[type[LockCommand], Callable[[Table, Any], bool]]] = {
    c.Acquire: quick.acquire,
    c.Release: quick.release,
}


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the machine holds; ``deadlocks`` since the run began."""

    sessions: int
    locks: int
    waits: int
    barriers: int
    spaces: int
    guarded_bytes: int
    deadlocks: int
    next_token: int


class LockMachine:
    """The state of the lock service and its only way to change."""

    def __init__(self) -> None:
        self.table = Table()
        self.barriers = Barriers()
        self._handlers: dict[type[LockCommand], Callable[[Any], object]] = {
            c.Begin: self._begin,
            c.Reserve: self._reserve,
            c.Tick: lambda command: self._tick(),
            c.OpenSession: self._open_session,
            c.EndSession: self._end_session,
            c.Acquire: lambda command: acquiring.acquire(self.table, command),
            c.Upgrade: lambda command: acquiring.upgrade(self.table, command),
            c.Downgrade: lambda command: acquiring.downgrade(self.table, command),
            c.Release: self._release,
            c.Cancel: self._cancel,
            c.WriteGuarded: self._write_guarded,
            c.WaitCondition: lambda command: conditions.begin(self.table, command),
            c.NotifyCondition: lambda command: conditions.notify(self.table, command),
            c.ArriveBarrier: lambda command: self.barriers.arrive(self.table, command),
            c.Delegate: lambda command: delegating.delegate(self.table, command),
            c.Recall: lambda command: delegating.recall(self.table, command),
            c.ForceRelease: lambda command: operating.force_release(self.table, command),
            c.DeclareClaims: lambda command: operating.declare_claims(self.table, command),
            c.DefineSpace: lambda command: operating.define_space(self.table, command),
        }

    # ---- the outside ---------------------------------------------------------------------------------------

    @property
    def now_ns(self) -> int:
        """The latest time that the machine has seen."""
        return self.table.now_ns

    @property
    def revision(self) -> int:
        """Rises with each command that changes something: those must be in the journal."""
        return self.table.revision

    def apply(self, command: LockCommand, now_ns: int) -> list[LockEffect]:
        """Carry out one command.

        Args:
            command: any of ``commands``.
            now_ns: nanoseconds since the epoch; a time before the latest counts as the latest.

        Returns:
            What must be told, in order.
        """
        table = self.table
        if now_ns > table.now_ns:
            table.now_ns = now_ns
        effects: list[LockEffect] = []
        table.effects = effects
        kind = type(command)
        try:
            way = _QUICK.get(kind)
            if way is not None and way(table, command):
                return effects
            result = self._handlers[kind](command)
        except TowpathError as error:
            effects += refusal(command, error)
        except Blocked as blocked:
            effects += refusal(command, blocked.error, blocked)
        else:
            reference = getattr(command, "reference", 0)
            if reference and not isinstance(command, (c.OpenSession, c.Delegate)):
                done = result if isinstance(result, e.Done) else e.Done(0)
                done.reference = reference
                effects.append(done)
        return effects

    def become(self, other: LockMachine) -> None:
        """Be as another one is, which is not used any more."""
        self.table, self.barriers = other.table, other.barriers

    def reservation(self, commands: Iterable[LockCommand]) -> c.Reserve | None:
        """Return what must be journaled, synced, and applied before these commands are; None: nothing.

        Tokens and leases may only be given out below a mark that survives a reboot. Each wait may become a
        grant, and each lock of each request that is about to come.
        """
        table = self.table
        tokens, lease_ms, ranges = table.waiting_claims, 0, 0
        for command in commands:
            if isinstance(command, c.Release):  # most are this or the next
                tokens += 1
            elif isinstance(command, c.Acquire):
                tokens += len(command.locks)
            elif isinstance(command, c.Begin):
                return None  # nothing is granted by it, and what is reserved lapses
            elif isinstance(command, c.Delegate):
                ranges += 1
            elif isinstance(command, c.OpenSession):
                lease_ms = max(lease_ms, command.lease_ms)
            else:
                tokens += 1
        # A range, and tokens for all who wait by then.
        tokens += ranges * (delegating.TOKENS + tokens)
        if table.next_token + tokens <= table.tokens_end and lease_ms <= table.lease_ms:
            return None
        block = RANGES_PER_BLOCK * delegating.TOKENS if ranges else TOKENS_PER_BLOCK
        end = max(table.tokens_end, table.next_token + tokens + block)
        # Leases of sessions that have ended need no quiet time any more: the sync covers their ends, too.
        return c.Reserve(end, max(lease_ms, *(each.lease_ms for each in table.sessions.values()), 0))

    def next_deadline_ns(self) -> int | None:
        """Return when a ``Tick`` is due; None: none is."""
        at_ns = self.table.next_deadline_ns()
        settled_at_ns = self.table.settled_at_ns
        if settled_at_ns and (at_ns is None or settled_at_ns < at_ns):
            return settled_at_ns
        return at_ns

    def statistics(self) -> Statistics:
        """Return counts of what the machine holds."""
        table = self.table
        return Statistics(
            sessions=len(table.sessions),
            locks=len(table.locks),
            waits=table.waits,
            barriers=len(self.barriers.by_name),
            spaces=len(table.spaces),
            guarded_bytes=table.data_bytes,
            deadlocks=table.deadlocks,
            next_token=table.next_token,
        )

    # ---- the run -------------------------------------------------------------------------------------------

    def _begin(self, command: c.Begin) -> None:
        table = self.table
        table.revision += 1
        table.limits = command.limits
        table.deadlocks = 0
        # What a reboot may have taken from the end of the journal had tokens below this mark.
        table.next_token = table.tokens_end
        if command.boot == table.boot:
            return
        had_boot, table.boot = table.boot, command.boot
        if not had_boot:
            return
        # The quiet time of an earlier reboot may not be over.
        settled_at_ns = max(table.settled_at_ns, table.now_ns + table.lease_ms * 1_000_000)
        table.settled_at_ns = settled_at_ns  # nothing is granted while sessions end
        for lock in tuple(table.locks.values()):
            delegating.forget(table, lock)  # the page went with the boot
        for session in tuple(table.sessions.values()):
            self._end(session, EndReason.REBOOT)
        table.settled_at_ns = settled_at_ns if settled_at_ns > table.now_ns else 0

    def _reserve(self, command: c.Reserve) -> None:
        table = self.table
        table.revision += 1
        table.tokens_end = max(table.tokens_end, command.tokens_end)
        table.lease_ms = command.lease_ms

    def _tick(self) -> None:
        table = self.table
        if table.settled_at_ns and table.settled_at_ns <= table.now_ns:
            table.revision += 1
            table.settled_at_ns = 0
            for lock in tuple(table.locks.values()):
                advance(table, lock)
        while (at_ns := table.next_deadline_ns()) is not None and at_ns <= table.now_ns:
            request = table.deadlines[0][2]
            self._time_out(request)

    def _time_out(self, request: Request) -> None:
        table = self.table
        if request.state == WAITING:
            names = ", ".join(claim.lock.name for claim in request.claims)
            acquiring.withdraw(table, request, Timeout(f"{names!r} was not free in time"))
        elif request.state == ON_CONDITION:
            lock = request.claims[0].lock
            conditions.take_again(table, request, is_timed_out=True)
            advance(table, lock)
        else:
            self.barriers.leave(table, request)
            table.refuse(request, Timeout(f"not all arrived at {request.place!r} in time"))

    # ---- sessions ------------------------------------------------------------------------------------------

    def _open_session(self, command: c.OpenSession) -> None:
        table, limits = self.table, self.table.limits
        if len(table.sessions) >= limits.sessions_max:
            raise LimitExceeded(f"there are {len(table.sessions)} lock sessions: sessions_max")
        count = table.sessions_by_principal.get(command.principal, 0)
        if count >= limits.sessions_per_principal_max:
            raise QuotaExceeded(f"{command.principal} has {count} lock sessions: sessions_per_principal_max")
        if command.lease_ms and not LEASE_MS_MIN <= command.lease_ms <= LEASE_MS_MAX:
            raise InvalidArgument(f"a lease is {LEASE_MS_MIN} to {LEASE_MS_MAX} ms, not {command.lease_ms}")
        if max(len(command.name), len(command.place)) > NOTE_CHARS_MAX:
            raise InvalidArgument(f"a session's name and place have at most {NOTE_CHARS_MAX} characters")
        if not -(1 << 31) <= command.priority < 1 << 31:
            raise InvalidArgument(f"{command.priority} is not a priority: 32 bits")
        assert command.lease_ms <= table.lease_ms, "the engine has not applied LockMachine.reservation()"
        table.revision += 1
        session = Session(table.next_session, command.principal, table.now_ns)
        table.next_session += 1
        session.name = command.name
        session.pid = command.pid
        session.place = command.place
        session.lease_ms = command.lease_ms
        session.priority = command.priority
        session.owners[0] = Owner(session, 0)
        table.sessions[session.id] = session
        table.sessions_by_principal[session.principal] = count + 1
        table.effects.append(e.SessionOpened(command.reference, session.id))

    def _end_session(self, command: c.EndSession) -> None:
        self._end(self.table.session(command.session), EndReason(command.reason))

    def _end(self, session: Session, reason: EndReason) -> None:
        """End a session: first what it waits for, so that nothing of it stands in a queue any more."""
        table = self.table
        gone = Cancelled("the session has ended")
        for request in tuple(session.requests.values()):
            if request.conversion is not None:
                acquiring.withdraw(table, request.conversion, gone)
            if request.state == WAITING:
                acquiring.withdraw(table, request, gone)
            elif request.state == ON_CONDITION:
                lock = request.claims[0].lock
                conditions.leave(table, request)
                table.forget(request)
                table.refuse(request, gone)
                table.tidy(lock)
            elif request.state == AT_BARRIER:
                self.barriers.leave(table, request)
                table.refuse(request, gone)
        for request in tuple(session.requests.values()):
            if request.number in session.requests:
                acquiring.release(table, request, reason)
        self.barriers.end_session(table, session)
        for owner in session.owners.values():
            operating.withdraw_claims(table, owner)
        table.revision += 1
        del table.sessions[session.id]
        left = table.sessions_by_principal[session.principal] - 1
        if left:
            table.sessions_by_principal[session.principal] = left
        else:
            del table.sessions_by_principal[session.principal]
        table.effects.append(e.SessionEnded(session.id, reason))

    # ---- giving back ---------------------------------------------------------------------------------------

    def _release(self, command: c.Release) -> None:
        table = self.table
        request = acquiring.held_request(table, command.session, command.request)
        if command.value is not None:
            claim = guarded.check_write(table, request, command.value, is_recovered=command.is_recovered)
            guarded.write(table, claim, command.value)
        elif command.is_recovered:
            guarded.recover(table, request)
        acquiring.release(table, request, EndReason.RELEASED)

    def _write_guarded(self, command: c.WriteGuarded) -> None:
        table = self.table
        request = acquiring.held_request(table, command.session, command.request)
        claim = guarded.check_write(table, request, command.value, is_recovered=command.is_recovered)
        guarded.write(table, claim, command.value)

    def _cancel(self, command: c.Cancel) -> None:
        table = self.table
        session = table.sessions.get(command.session)
        request = session.requests.get(command.request) if session is not None else None
        if request is None:
            return
        error = Cancelled("the request was withdrawn")
        if request.conversion is not None:
            acquiring.withdraw(table, request.conversion, error)
        elif request.state == WAITING:
            acquiring.withdraw(table, request, error)
        elif request.state == ON_CONDITION:
            lock = request.claims[0].lock
            conditions.take_again(table, request, is_timed_out=True)
            advance(table, lock)
        elif request.state == HELD:
            acquiring.release(table, request, EndReason.RELEASED)
        else:
            self.barriers.leave(table, request)
            table.refuse(request, error)


def refusal(command: LockCommand, error: TowpathError, blocked: Blocked | None = None) -> list[LockEffect]:
    """Return what tells whoever gave a command that it is refused; nothing, where nobody waits for that."""
    reference = getattr(command, "reference", None)
    if reference is None:
        # Each other command that can be refused has both.
        session, request = getattr(command, "session", 0), getattr(command, "request", 0)
        blocker = None
        if blocked is not None:
            blocker = (blocked.blocker.owner.session.id, blocked.blocker.told())
        return [e.Refused(session, request, error, blocker=blocker)]
    return [e.Failed(reference, error)] if reference else []
