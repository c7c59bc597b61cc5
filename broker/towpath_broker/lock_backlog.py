"""What is done with lock commands while their journal has no room.

Theory of operation
    Nothing may change that cannot be kept. So whoever asks for something new is refused (StoreFull), and what
    everybody holds and waits for stays as it is. What nobody can be refused is kept, in its order, until
    there is room: the ends of sessions, what was given back or withdrawn, and what was found in lock pages,
    with those who want to look when that is in the machine. What only asks how things stand is told.

    A page that was taken back may have had holders, and such as waited there. Of these the machine does not
    know yet, so what they give back is kept, too; and if one of them is refused what it waited for, the wait
    is withdrawn behind.

Invariants
    The machine is not changed here. Each grant is given back, each wait withdrawn, each session ended, each
    page taken back once at most: so what is kept is bounded by what there is.

Not here: when there is room again (``lock_engine``).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Final

from towpath.errors import StoreFull

from .core.locks import commands as c
from .core.locks.conditions import is_over
from .core.locks.delegating import page_request
from .core.locks.effects import LockEffect
from .core.locks.grants import ON_CONDITION
from .core.locks.machine import LockMachine, refusal

Look = Callable[[LockMachine], None]
_ASKED_NEW: Final = (c.Acquire, c.ArriveBarrier)
_OF_A_REQUEST: Final = (c.Upgrade, c.WaitCondition, c.Release, c.Cancel)


class Backlog:
    """One machine's, which stays as it is.

    Args:
        machine: as the journal has it.
        why: what those are told who are refused.
    """

    def __init__(self, machine: LockMachine, why: StoreFull) -> None:
        self._machine = machine
        self._why = why
        self._found: set[tuple[int, int]] = set()  # requests of lock pages, which the machine will have
        self._known: set[Hashable] = set()
        self.kept: list[c.LockCommand | Look] = []

    def take(self, commands: Iterable[c.LockCommand]) -> list[LockEffect]:
        """Take what was submitted; return what is to be told at once."""
        return [effect for command in commands for effect in self._take(command)]

    def _take(self, command: c.LockCommand) -> list[LockEffect]:
        match command:
            case c.Tick():
                return []  # there will be another
            case c.Recall():
                self._keep_recall(command)
                return []
            case c.EndSession() if command.session in self._machine.table.sessions:
                return self._keep(command, command.session)
            case c.Release() | c.Cancel() if self._is_known(command.session, command.request):
                return self._keep(command, (type(command), command.session, command.request))
        if self._is_only_told(command):
            revision = self._machine.revision
            told = self._machine.apply(command, self._machine.now_ns)
            assert self._machine.revision == revision, "it asked for something new"
            return told
        if isinstance(command, _ASKED_NEW) and (command.session, command.request) in self._found:
            self._keep(withdrawn := c.Cancel(command.session, command.request), repr(withdrawn))
        return refusal(command, self._why.again())

    def _keep(self, command: c.LockCommand, key: Hashable) -> list[LockEffect]:
        if key in self._known:
            return refusal(command, self._why.again())
        self._known.add(key)
        self.kept.append(command)
        return []

    def _keep_recall(self, command: c.Recall) -> None:
        lock = self._machine.table.locks.get(command.name)
        if lock is None or lock.page is None or command.name in self._known:
            return
        self._known.add(command.name)
        self.kept.append(command)
        if command.holder is not None:
            self._found.add((command.holder.session, page_request(lock.page.base + command.used)))
        for reader in command.readers:
            self._found.add((reader.session, page_request(lock.page.base + reader.used)))
        self._found.update((waiter.session, waiter.request) for waiter in command.waiters)

    def _is_known(self, session: int, number: int) -> bool:
        found = self._machine.table.sessions.get(session)
        return (session, number) in self._found or (found is not None and number in found.requests)

    def _is_only_told(self, command: c.LockCommand) -> bool:
        """Whether a command asks again for what it has asked, or for what there is not."""
        if isinstance(command, c.EndSession):
            return True
        if not isinstance(command, _ASKED_NEW + _OF_A_REQUEST):
            return False
        session = self._machine.table.sessions.get(command.session)
        request = session.requests.get(command.request) if session is not None else None
        if isinstance(command, c.ArriveBarrier) and session is not None and request is None:
            return session.end_of(command.request, command.ask) is not None
        if isinstance(command, _ASKED_NEW):
            return session is None or request is not None
        if request is None:
            return (command.session, command.request) not in self._found
        if isinstance(command, c.WaitCondition):
            return request.state == ON_CONDITION or is_over(request, command)
        return isinstance(command, c.Upgrade) and request.conversion is not None
