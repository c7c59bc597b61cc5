"""Lock pages: which locks are given out to which uid's shared memory, and taking them back.

Theory of operation
    A local session that uses a lock a second time asks for it to be given out. The page of its principal is
    made with the first, and kept by the supervisor, so that it outlives the core. The lock machine is told
    (``Delegate``); when that is in the journal the lock is opened in the page, and the session told its slot.

    Everything that concerns a lock which is given out comes through :meth:`LockPages.before`, on its way to
    the engine: the lock is shut in the page first, and what is found there goes ahead as a ``Recall``. So
    the machine never judges a lock that it does not have. Nothing here waits for a client.

    Who is in a page is known by *members*: an owner (of a session) and its number. When a session ends, its
    members are closed, whatever they have or wait for is taken back, and all who wait in the page are
    woken: who was killed between handing over and waking leaves nobody asleep. A number is given to
    somebody else only when the process that had it is gone, which its pidfd tells.

    After a restart of the core the journal says what is given out, the supervisor has the pages, and a page
    says who its members are.

Invariants
    A lock is opened in a page only when its ``Delegate`` is in the journal, and counts as given out from the
    moment on at which that was submitted.
    What is read from a page is checked: it may name members that there are, and a token of its range.

Not here: what a lock is (``core.locks``), the page itself (``clients/c/towpath_lock.h``).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from towpath import _ring, wire
from towpath.errors import LimitExceeded, LockInUse
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks.delegating import TOKENS, is_page_request, page_request
from towpath_broker.core.locks.machine import LockMachine

PAUSE_S: Final = 0.02
"""After it was taken back a lock stays with the core for so long."""
PREFIX: Final = "locks "
"""Of the names under which the supervisor keeps pages."""
_OPEN: Final = 1
assert TOKENS == _ring.LOCK_TOKENS

Submit = Callable[[c.LockCommand], None]
Look = Callable[[Callable[[LockMachine], None]], None]
Owner = tuple[int, int]
"""A session and its owner's number."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an owner finds a lock. ``page``: None where it has the page."""

    identity: int
    member: int
    slot: int
    page: wire.Descriptor | None


@dataclass(slots=True, eq=False)
class _Slot:
    number: int
    shut_at_s: float = 0.0


@dataclass(slots=True, eq=False)
class _Page:
    """One principal's. ``free``: numbers that nobody has; ``closed``: of sessions that have ended, whose
    processes may still be there; ``processes``: of sessions, their pidfds."""

    principal: str
    memory: _ring.LockPage
    identity: int
    slots: dict[str, _Slot] = field(default_factory=dict)
    next_slot: int = 0
    members: dict[Owner, int] = field(default_factory=dict)
    owners: dict[int, Owner] = field(default_factory=dict)
    closed: dict[int, int] = field(default_factory=dict)
    free: list[int] = field(default_factory=list)
    next_member: int = _ring.LOCK_FIRST_MEMBER
    processes: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Out:
    """A lock that is given out. ``base``: 0 while the journal does not have it yet; ``is_busy``: the core has
    it still; ``then``: told when it is open (True), or was taken back before."""

    name: str
    page: _Page
    slot: _Slot
    base: int = 0
    is_busy: bool = False
    then: list[Callable[[bool], None]] = field(default_factory=list)


class LockPages:
    """All of the core's.

    Args:
        submit: gives a command to the lock machine's engine.
        look: has something done with the machine, after what was submitted before.
        store: has the supervisor keep a descriptor, which it closes, under a name; False when it cannot.
        remove: has it forget a name.
    """

    def __init__(
        self,
        submit: Submit,
        look: Look,
        store: Callable[[str, int], bool],
        remove: Callable[[str], object],
    ) -> None:
        self._submit = submit
        self._look = look
        self._store = store
        self._remove = remove
        self._pages: dict[str, _Page] = {}
        self._out: dict[str, _Out] = {}
        self._opening: dict[int, _Out] = {}
        self._coming_back: dict[str, frozenset[int]] = {}  # tokens of what is taken back, and not yet applied
        self._is_over = False

    # ---- giving out ----------------------------------------------------------------------------------------

    def join(
        self,
        principal: str,
        owner: Owner,
        name: str,
        *,
        has: int,
        pidfd: int,
        refer: Callable[[], int],
        then: Callable[[Place | None], None],
    ) -> None:
        """Give a lock out to a principal's page, or say where it is.

        Args:
            owner: who asks.
            has: the identity of the page that its process has mapped; 0: none.
            pidfd: its process; stays the caller's.
            refer: gives a reference for a command to the machine.
            then: told the place when the lock is open there; None: it was taken back meanwhile.

        Raises:
            LockInUse: not now.
            LimitExceeded: the page has no room.
            OSError: there is no memory, or no descriptor, for a page.
        """
        out = self._out.get(name)
        page = self._pages.get(principal)
        if out is not None and out.page is not page:
            raise LockInUse(f"{name!r} is given out to others")
        known = None if page is None or out is not None else page.slots.get(name)
        if known is not None and time.monotonic() - known.shut_at_s < PAUSE_S:
            raise LockInUse(f"{name!r} was taken back lately")
        if self._is_over:
            raise LockInUse("the core is about to end")
        if page is None:
            page = self._make(principal)
        member = self._admit(page, owner, pidfd)
        found = page.slots.get(name)
        if found is None:
            if page.next_slot >= _ring.LOCK_SLOTS:
                raise LimitExceeded(f"the lock page of {principal} has had {_ring.LOCK_SLOTS} locks")
            found = page.slots[name] = _Slot(page.next_slot)
            page.next_slot += 1
        slot, its = found, page

        def tell(is_open: bool) -> None:
            if not is_open:
                then(None)
                return
            descriptor = None if has == its.identity else wire.Descriptor(its.memory.share())
            then(Place(its.identity, member, slot.number, descriptor))

        if out is None:
            out = self._out[name] = _Out(name, page, slot)
            reference = refer()
            self._opening[reference] = out
            out.then.append(tell)
            self._submit(c.Delegate(owner[0], name, slot.number, reference))
        elif out.base:
            tell(True)
        else:
            out.then.append(tell)

    def _make(self, principal: str) -> _Page:
        identity = secrets.randbits(63) | 1
        memory = _ring.LockPage(identity=identity)
        page = self._pages[principal] = _Page(principal, memory, identity)
        if not self._store(PREFIX + principal, memory.share()):
            del self._pages[principal]
            raise LockInUse("the supervisor cannot keep a lock page now")
        return page

    def _admit(self, page: _Page, owner: Owner, pidfd: int) -> int:
        session = owner[0]
        if session not in page.processes:
            page.processes[session] = watched = os.dup(pidfd)
            asyncio.get_running_loop().add_reader(watched, self._process_ended, page, session)
        member = page.members.get(owner)
        if member is None:
            if page.free:
                member = page.free.pop()
            elif page.next_member < _ring.LOCK_MEMBERS:
                member = page.next_member
                page.next_member += 1
            else:
                raise LimitExceeded(f"the lock page of {page.principal} has {_ring.LOCK_MEMBERS} members")
            page.members[owner] = member
            page.owners[member] = owner
            page.memory.admit(member, *owner)
        return member

    def resumed(self, principal: str, session: int, pidfd: int | None) -> None:
        """A session is taken up again: what it has in the page is taken back, so that it can be told that it
        has that. After a restart of the core its process is known from now on."""
        page = self._pages.get(principal)
        if page is None:
            return
        members = [member for (each, _), member in page.members.items() if each == session]
        self._take_from(page, members)
        if members and session not in page.processes and pidfd is not None:
            page.processes[session] = watched = os.dup(pidfd)
            asyncio.get_running_loop().add_reader(watched, self._process_ended, page, session)

    def emit(self, effect: e.LockEffect) -> bool:
        """Carry out an effect, if it is one of those for pages; returns whether it is."""
        match effect:
            case e.Delegated():
                self._opened(effect)
            case e.Drained():
                out = self._out.get(effect.lock)
                if out is not None and out.is_busy:
                    out.is_busy = False
                    if not out.page.memory.hand_over(out.slot.number):
                        self.recall(effect.lock)
            case e.Failed() if effect.reference in self._opening:
                out = self._opening.pop(effect.reference)
                if self._out.get(out.name) is out:
                    del self._out[out.name]
                self._tell(out, False)
            case _:
                return False
        return True

    def _opened(self, effect: e.Delegated) -> None:
        out = self._opening.pop(effect.reference, None)
        is_open = out is not None and self._out.get(effect.lock) is out
        if out is None:
            return
        if is_open:
            out.base, out.is_busy = effect.base, effect.is_busy
            out.page.memory.open(out.slot.number, out.base, out.is_busy, effect.is_shared)
        self._tell(out, is_open)

    @staticmethod
    def _tell(out: _Out, is_open: bool) -> None:
        waiting, out.then = out.then, []
        for then in waiting:
            then(is_open)

    # ---- taking back ---------------------------------------------------------------------------------------

    def before(self, command: c.LockCommand) -> None:
        """Take back what a command is about, ahead of it."""
        if not self._out and not self._pages:
            return
        match command:
            case c.Acquire():
                for wanted in command.locks:
                    self.recall(wanted.name)
            case c.ForceRelease():
                self.recall(command.name)
            case c.DefineSpace():
                self.recall_all(command.prefix)
            case c.EndSession():
                self._session_ended(command.session)
            case c.Release() | c.Cancel():
                self._recall_request(command.request)
            case c.Upgrade() | c.Downgrade() | c.WaitCondition() | c.NotifyCondition() | c.WriteGuarded():
                self._recall_request(command.request)
                for name in [out.name for out in self._out.values() if out.is_busy or not out.base]:
                    self.recall(name)  # the request may be of those that the core grants still

    def _recall_request(self, number: int) -> None:
        if not is_page_request(number):
            return
        for out in tuple(self._out.values()):
            if page_request(out.base) < number < page_request(out.base + TOKENS):
                self.recall(out.name)

    def recall_all(self, prefix: str = "") -> None:
        """Take back all locks whose names begin so."""
        for name in [name for name in self._out if name.startswith(prefix)]:
            self.recall(name)

    def recall(self, name: str) -> None:
        """Take a lock back, if it is given out."""
        out = self._out.pop(name, None)
        if out is None:
            return
        out.slot.shut_at_s = time.monotonic()
        if not out.base:
            self._submit(c.Recall(name))
            return
        page = out.page
        _, owner, used, base, since_ns = page.memory.shut(out.slot.number)
        waiting = page.memory.take_waiters(out.slot.number)
        is_sound = base == out.base and used < TOKENS
        holder = page.owners.get(owner) if is_sound else None
        readers = _readers(out) if is_sound else []
        waiters = [
            c.PageWaiter(*page.owners[member], number, timeout_ms)
            for member, number, timeout_ms in waiting
            if member in page.owners and member != owner
        ]
        found = None if holder is None else c.PageHolder(*holder, since_ns)
        self._submit(c.Recall(name, used if is_sound else 0, found, tuple(waiters), tuple(readers)))
        tokens = frozenset(base + each.used for each in readers)
        if holder is not None:
            tokens |= {base + used}
        if tokens:
            self._coming_back[name] = tokens
            self._look(lambda machine: self._came_back(name, tokens))
        for member, _, _ in waiting:
            page.memory.wake(member)

    def _came_back(self, name: str, tokens: frozenset[int]) -> None:
        if self._coming_back.get(name) is tokens:
            del self._coming_back[name]

    def is_held(self, name: str, token: int) -> bool:
        """Whether a lock that the machine does not have, or not yet again, is held by a token. It is read
        where it is, and stays there."""
        if token in self._coming_back.get(name, ()):
            return True
        out = self._out.get(name)
        if out is None or not out.base:
            return False
        _, owner, used, base, _ = out.page.memory.look(out.slot.number)
        if base != out.base or not 0 < token - base <= used < TOKENS:
            return False
        if base + used == token and owner in out.page.owners:
            return True
        return any(base + each.used == token for each in _readers(out))

    # ---- the end of sessions and processes -----------------------------------------------------------------

    def _session_ended(self, session: int) -> None:
        for page in tuple(self._pages.values()):
            ended = [(owner, member) for owner, member in page.members.items() if owner[0] == session]
            for owner, member in ended:
                page.memory.dismiss(member, False)
                del page.members[owner], page.owners[member]
                page.closed[member] = session
            if ended:
                self._take_from(page, [member for _, member in ended])
                if session not in page.processes:
                    continue  # its numbers are not given out again as long as there is this page
                self._forget_if_idle(page)

    def _process_ended(self, page: _Page, session: int) -> None:
        """A process is gone. Its session ends too, which its connection tells; here are its numbers."""
        pidfd = page.processes.pop(session)
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
        for owner in [owner for owner in page.members if owner[0] == session]:
            member = page.members.pop(owner)
            del page.owners[member]
            page.closed[member] = session
        gone = [member for member, of in page.closed.items() if of == session]
        for member in gone:
            page.memory.dismiss(member, True)
        self._take_from(page, gone)
        for member in gone:
            del page.closed[member]
            page.free.append(member)
        self._forget_if_idle(page)

    def _take_from(self, page: _Page, members: Iterable[int]) -> None:
        """Take back what members have, or wait for; and let all others look again."""
        for out in [each for each in self._out.values() if each.page is page and each.base]:
            if any(page.memory.names(out.slot.number, member) for member in members):
                self.recall(out.name)
        for member in page.owners:
            page.memory.wake(member)

    def _forget_if_idle(self, page: _Page) -> None:
        if page.members or page.closed or page.processes or self._is_over:
            return
        for out in [each for each in self._out.values() if each.page is page]:
            self.recall(out.name)
        del self._pages[page.principal]
        page.memory.close()
        self._remove(PREFIX + page.principal)

    # ---- the core's own life -------------------------------------------------------------------------------

    def recovered(self, machine: LockMachine, stored: Mapping[str, int]) -> list[int]:
        """The machine has replayed its journal: go on with the pages that were kept.

        Args:
            stored: by the names under which they were kept; taken over.

        Returns:
            Sessions whose page is gone: they must end, since nobody knows any more what they have.
        """
        for name, descriptor in stored.items():
            owned = wire.Descriptor(descriptor)
            principal = name.removeprefix(PREFIX)
            try:
                memory = _ring.LockPage(owned.fd)
            except (OSError, _ring.RingError):
                self._remove(name)
                continue
            page = self._pages[principal] = _Page(principal, memory, memory.identity)
            self._find_members(page, machine)
        lost: set[str] = set()
        for lock in tuple(machine.table.locks.values()):
            if lock.page is None:
                continue
            known = self._pages.get(lock.page.principal)
            if known is None:
                lost.add(lock.page.principal)
                self._submit(c.Recall(lock.name, TOKENS - 1))
                continue
            slot = known.slots[lock.name] = _Slot(lock.page.slot)
            out = self._out[lock.name] = _Out(lock.name, known, slot, lock.page.base)
            is_open, owner, _, base, _ = known.memory.look(slot.number)
            if not is_open or base != out.base:
                self.recall(lock.name)  # it was on its way, out or back
                continue
            out.is_busy = not lock.page.is_drained
            members = [owner, *(member for member, _, _ in known.memory.readers(slot.number))]
            if _ring.LOCK_CORE in members and not out.is_busy and not known.memory.hand_over(slot.number):
                self.recall(lock.name)
        for page in tuple(self._pages.values()):
            # Which locks other slots were for is not known any more: those that were used are not used again.
            used = [slot for slot in range(_ring.LOCK_SLOTS) if page.memory.look(slot)[3]]
            page.next_slot = max(used, default=-1) + 1
            self._take_from(page, list(page.closed))
        return [
            session.id
            for session in machine.table.sessions.values()
            if session.principal in lost and session.pid
        ]

    def _find_members(self, page: _Page, machine: LockMachine) -> None:
        sessions = machine.table.sessions
        for member in range(_ring.LOCK_FIRST_MEMBER, _ring.LOCK_MEMBERS):
            state, session, owner = page.memory.member(member)
            if not state and not session:
                continue
            page.next_member = member + 1
            found = sessions.get(session)
            is_new = (session, owner) not in page.members
            if state == _OPEN and found is not None and found.principal == page.principal and is_new:
                page.members[session, owner] = member
                page.owners[member] = (session, owner)
            else:
                page.memory.dismiss(member, False)
                page.closed[member] = 0

    def stop(self) -> None:
        """The core is about to end: its successor has the locks in the journal."""
        self.recall_all()
        self._is_over = True


def _readers(out: _Out) -> list[c.PageReader]:
    """Who has a lock shared in its page, in the order of tokens."""
    owners = out.page.owners
    found = [
        c.PageReader(*owners[member], used, since_ns)
        for member, used, since_ns in out.page.memory.readers(out.slot.number)
        if member in owners
    ]
    return sorted(found, key=lambda reader: reader.used)
