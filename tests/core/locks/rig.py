"""A lock machine to talk to: commands by short names, and what they brought about, sorted by session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from towpath.errors import TowpathError
from towpath_broker.core.locks import codec
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks.commands import NO_TIMEOUT, EndReason, LockCommand, Policy, Wanted
from towpath_broker.core.locks.effects import LockEffect
from towpath_broker.core.locks.limits import LockLimits
from towpath_broker.core.locks.machine import LockMachine
from towpath_broker.core.locks.modes import EXCLUSIVE, PERMITS, SHARED

MS = 1_000_000
Want = str | Wanted


def shared(name: str) -> Wanted:
    return Wanted(name, SHARED)


def permits(name: str, weight: int = 1, capacity: int = 0) -> Wanted:
    return Wanted(name, PERMITS, weight, capacity)


def tallies(machine: LockMachine) -> list[object]:
    """Return what the machine counts, and a snapshot does not say."""
    table = machine.table
    counted: list[object] = [table.waits, table.waiting_claims, table.data_bytes, table.next_deadline_ns()]
    quotas = (
        table.claims_by_principal,
        table.sessions_by_principal,
        table.values_by_principal,
        table.waits_by_principal,
    )
    counted.extend(sorted(each.items()) for each in quotas)
    locks = table.locks.values()
    counted.extend((lock.name, lock.used, lock.joint, lock.exclusive_waiting) for lock in locks)
    return counted


class Rig:
    """A machine that has begun, and a clock that ticks with each command.

    Attributes:
        effects: those of the last command.
        journal: the records of all commands that changed something.
    """

    def __init__(self, limits: LockLimits | None = None, boot: str = "boot-1") -> None:
        self.machine = LockMachine()
        self.now_ns = 1_000
        self.references = 0
        self.requests = 0
        self.effects: list[LockEffect] = []
        self.journal: list[bytes] = []
        self.do(c.Begin(boot, limits or LockLimits()))
        self._apply(c.Reserve(1 << 20, 0))

    def do(self, command: LockCommand) -> list[LockEffect]:
        """Apply a command as the engine does."""
        self.now_ns += 1
        reserve = self.machine.reservation([command])
        if reserve is not None:
            self._apply(reserve)
        self.effects = self._apply(command)
        return self.effects

    def _apply(self, command: LockCommand) -> list[LockEffect]:
        before = self.machine.revision
        effects = self.machine.apply(command, self.now_ns)
        if self.machine.revision != before:
            self.journal.append(codec.encode_command(command, self.now_ns))
        return effects

    def reference(self) -> int:
        self.references += 1
        return self.references

    # ---- commands ------------------------------------------------------------------------------------------

    def open(self, principal: str = "uid:1", **options: Any) -> int:
        effects = self.do(c.OpenSession(principal, reference=self.reference(), **options))
        (opened,) = effects
        assert isinstance(opened, e.SessionOpened), opened
        return opened.session

    def end(self, session: int, reason: EndReason = EndReason.SESSION_DIED) -> list[LockEffect]:
        return self.do(c.EndSession(session, reason))

    def acquire(
        self, session: int, *wants: Want, timeout_ms: int = NO_TIMEOUT, owner: int = 0, **options: Any
    ) -> int:
        """Ask for locks; return the request's number. ``effects`` say what came of it."""
        self.requests += 1
        locks = tuple(Wanted(want) if isinstance(want, str) else want for want in wants)
        self.do(c.Acquire(session, owner, self.requests, locks, timeout_ms, **options))
        return self.requests

    def release(self, session: int, request: int, **options: Any) -> list[LockEffect]:
        return self.do(c.Release(session, request, reference=self.reference(), **options))

    def upgrade(self, session: int, request: int, timeout_ms: int = NO_TIMEOUT) -> list[LockEffect]:
        return self.do(c.Upgrade(session, request, timeout_ms))

    def space(self, prefix: str, policy: Policy, **options: Any) -> list[LockEffect]:
        return self.do(c.DefineSpace(prefix, policy, reference=self.reference(), **options))

    def claim(self, session: int, owner: int = 0, **claims: int) -> list[LockEffect]:
        """Declare claims to resources of the lock space ``bank``."""
        named = {f"bank.{name}": units for name, units in claims.items()}
        return self.do(c.DeclareClaims(session, owner, named, self.reference()))

    def at(self, after_ms: int) -> list[LockEffect]:
        """Let time pass, and say so."""
        self.now_ns += after_ms * MS
        return self.do(c.Tick())

    # ---- what came of it -----------------------------------------------------------------------------------

    def granted(self) -> list[tuple[int, int]]:
        """Return session and request of the grants of the last command."""
        return [(each.session, each.request) for each in self.effects if isinstance(each, e.Granted)]

    def token(self, session: int, request: int) -> int:
        """Return the token that a request was just given."""
        for each in self.effects:
            if isinstance(each, e.Granted) and (each.session, each.request) == (session, request):
                return each.grants[0].token
        raise AssertionError(f"{request} of {session} was not granted: {self.effects}")

    def waits(self, session: int, request: int) -> bool:
        """Whether the last command said that a request waits."""
        return e.Waiting(session, request) in self.effects

    def refused(self, session: int | None = None) -> e.Refused:
        """Return the one refusal of the last command (for a session)."""
        (found,) = (
            each for each in self.effects if isinstance(each, e.Refused) and session in (None, each.session)
        )
        return found

    def error(self) -> TowpathError:
        """Return the one error of the last command."""
        found: Sequence[TowpathError] = [
            each.error for each in self.effects if isinstance(each, e.Refused | e.Failed)
        ]
        (error,) = found
        return error


__all__ = ["EXCLUSIVE", "MS", "SHARED", "Rig", "permits", "shared"]
