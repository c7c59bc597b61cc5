"""Locks, waiting on an event loop. The same as ``blocking``, where each method is documented."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from towpath.calls import Call
from towpath.errors import LockHeld, Timeout, TowpathError
from towpath.locks import model, requests
from towpath.locks.blocking import LATE_S
from towpath.locks.entering import Error, Kind, Trace
from towpath.locks.entering_aio import AsyncEntered, AsyncGuardContext
from towpath.locks.holds import Hold
from towpath.locks.leases import checked_lease_ms
from towpath.locks.model import Mode
from towpath.locks.pending import Pending
from towpath.locks.requests import Standing, Wanted
from towpath.locks.session import CLOSE_S, LockSession
from towpath.names import check_name
from towpath.result import attempt_async
from towpath.waiting import program_name

if TYPE_CHECKING:
    from towpath.aio.kinds import AsyncKinds

ENDED_LOOKED_AT: Final = 8
"""Of the numbers of tasks that have ended so many are looked at for one by which nothing is held."""


class AsyncLocks:
    """What one client has to do with locks: its lock session, made when it is first used. Each task is an
    owner of its own; the numbers of those that have ended are used again when nothing is held by them."""

    def __init__(self, client: AsyncKinds, *, lease_ms: int) -> None:
        self._client = client
        self._lease_ms = lease_ms
        self._session: LockSession | None = None
        self._owners: WeakKeyDictionary[asyncio.Task[object], int] = WeakKeyDictionary()
        self._numbers = itertools.count(1)
        self._ended: deque[int] = deque()
        self.on_lost: list[Callable[[TowpathError], object]] = []
        self.on_wounded: list[Callable[[TowpathError], object]] = []

    def owner(self) -> int:
        """The number of the running task in the session."""
        task = asyncio.current_task()
        assert task is not None
        number = self._owners.get(task)
        if number is None:
            number = self._owners[task] = self._number()
            task.add_done_callback(self._task_ended)
        return number

    def _number(self) -> int:
        """A number that nothing is held by: a lock page has few."""
        session = self._session
        for _ in range(min(len(self._ended), ENDED_LOOKED_AT)):
            number = self._ended.popleft()
            if session is None or not session.has_holds(number):
                return number
            self._ended.append(number)
        return next(self._numbers)

    def _task_ended(self, task: asyncio.Task[object]) -> None:
        self._ended.append(self._owners.pop(task))

    def session(self) -> LockSession:
        """The session; another one if that there was has ended."""
        self._client._check_not_forked()
        if self._session is None or self._session.why_lost is not None:
            self._session = LockSession(
                self._client,
                name=program_name(""),
                lease_ms=self._lease_ms,
                on_lost=self._lost,
                on_wounded=self._wounded,
            )
        return self._session

    async def wait(
        self,
        session: LockSession,
        make: Callable[[int, int], Call[Standing]],
        timeout: float | None,
        number: int = 0,
        *,
        is_remembered: bool = False,
    ) -> Pending:
        """Ask, and wait until it is over. A task that is cancelled has asked for nothing."""
        over = asyncio.Event()
        pending = session.begin(make, over.set, number, is_remembered=is_remembered)
        try:
            async with asyncio.timeout(None if timeout is None else timeout + LATE_S):
                await over.wait()
        except TimeoutError:
            session.give_up(pending)
            raise Timeout(f"the daemon did not answer within {timeout} s", hint="") from None
        except BaseException:
            session.give_up(pending)
            raise
        return pending

    async def acquire(
        self, wanted: Sequence[Wanted], timeout: float | None, *, is_reentrant: bool = False, note: str = ""
    ) -> Hold:
        """Take locks together."""
        call = requests.acquire(
            self.owner(), wanted, timeout_s=timeout, is_reentrant=is_reentrant, note=note
        )  # what cannot be asked is refused here
        make = partial(requests.addressed, call)
        session = self.session()
        return session.hold(await self.wait(session, make, timeout))

    def set_lease(self, lease_s: float) -> None:
        """See :meth:`towpath.Client.set_lock_lease`."""
        is_open = self._session is not None and self._session.why_lost is None
        self._lease_ms = checked_lease_ms(lease_s, self._lease_ms, is_open=is_open)

    async def close(self) -> None:
        """Release everything, and wait a moment for the daemon's word. More than once is fine."""
        session, gone = self._session, asyncio.Event()
        if session is not None and session.close(gone.set):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await gone.wait()

    def _lost(self, error: TowpathError) -> None:
        for told in tuple(self.on_lost):
            told(error)

    def _wounded(self, error: TowpathError) -> None:
        for told in tuple(self.on_wounded):
            told(error)


class AsyncGuard(AsyncGuardContext):
    """Proof that the program holds a lock, or several; see :class:`towpath.Guard`."""

    __slots__ = ("_locks",)

    def __init__(self, locks: AsyncLocks, hold: Hold) -> None:
        super().__init__(hold)
        self._locks = locks

    async def upgrade(self, timeout: float | None = None) -> None:
        """Make what is held shared exclusive; see :meth:`towpath.Guard.upgrade`."""
        hold = self._hold
        hold.check()

        def make(session_id: int, number: int) -> Call[Standing]:
            return requests.upgrade(session_id, number, timeout)

        hold.session.hold(await self._locks.wait(hold.session, make, timeout, hold.number))

    async def downgrade(self) -> None:
        """Make what is held exclusively shared; see :meth:`towpath.Guard.downgrade`."""
        hold = self._hold
        hold.check()
        await self._locks._client._call(requests.downgrade(hold.session.id, hold.number))
        hold.grants = tuple(model.in_mode(grant, Mode.SHARED) for grant in hold.grants)

    async def wait(self, condition: str = "", timeout: float | None = None) -> bool:
        """Give the lock up until somebody notifies; see :meth:`towpath.Guard.wait`."""
        hold = self._hold
        hold.check()

        def make(session_id: int, number: int) -> Call[Standing]:
            return requests.wait_condition(session_id, number, condition, timeout)

        pending = await self._locks.wait(hold.session, make, None, hold.number, is_remembered=True)
        hold.session.hold(pending)
        outcome = pending.outcome
        return isinstance(outcome, Standing) and not outcome.is_timed_out

    async def notify(self, condition: str = "", count: int = 1) -> int:
        """Notify so many who wait; see :meth:`towpath.Guard.notify`."""
        hold = self._hold
        hold.check()
        return await self._locks._client._call(
            requests.notify_condition(hold.session.id, hold.number, condition, count)
        )

    def __repr__(self) -> str:
        state = "" if self.is_valid else ", not valid"
        return f"<towpath.aio.AsyncGuard {self.name} {self.mode.name.lower()} token {self.token}{state}>"

    try_upgrade = attempt_async(upgrade)


class AsyncLock:
    """A lock by name; see :class:`towpath.Lock`. Each task is an owner of its own."""

    def __init__(self, locks: AsyncLocks, name: str, *, reentrant: bool = False, note: str = "") -> None:
        self.name = check_name(name, "a lock's name")
        self._locks = locks
        self._is_reentrant = reentrant
        self._note = note
        self._entered: AsyncEntered[AsyncGuard] = AsyncEntered()

    async def acquire(self, timeout: float | None = None, *, shared: bool = False) -> AsyncGuard:
        """Take the lock; see :meth:`towpath.Lock.acquire`."""
        wanted = [Wanted(self.name, Mode.SHARED if shared else Mode.EXCLUSIVE)]
        hold = await self._locks.acquire(wanted, timeout, is_reentrant=self._is_reentrant, note=self._note)
        return AsyncGuard(self._locks, hold)

    async def acquire_nowait(self, *, shared: bool = False) -> AsyncGuard | None:
        """Take the lock if it is free; else None."""
        try:
            return await self.acquire(0, shared=shared)
        except (LockHeld, Timeout):
            return None

    async def __aenter__(self) -> AsyncGuard:
        return self._entered.push(await self.acquire())

    async def __aexit__(self, kind: Kind, error: Error, trace: Trace) -> None:
        await self._entered.pop().__aexit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<towpath.aio.AsyncLock {self.name}>"

    try_acquire = attempt_async(acquire)


class AsyncSemaphore:
    """A counting semaphore by name; see :class:`towpath.Semaphore`."""

    def __init__(self, locks: AsyncLocks, name: str, permits: int) -> None:
        self.name = check_name(name, "a lock's name")
        self.permits = permits
        self._locks = locks

    async def acquire(self, weight: int = 1, timeout: float | None = None) -> AsyncGuard:
        """Take permits, in turn; see :meth:`towpath.Semaphore.acquire`."""
        wanted = [Wanted(self.name, Mode.PERMITS, weight, self.permits)]
        return AsyncGuard(self._locks, await self._locks.acquire(wanted, timeout))

    async def acquire_nowait(self, weight: int = 1) -> AsyncGuard | None:
        """Take permits if there are enough; else None."""
        try:
            return await self.acquire(weight, 0)
        except (LockHeld, Timeout):
            return None

    try_acquire = attempt_async(acquire)


class AsyncBarrier:
    """Where so many wait for each other; see :class:`towpath.Barrier`."""

    def __init__(self, locks: AsyncLocks, name: str, parties: int) -> None:
        self.name = check_name(name, "a barrier's name")
        self.parties = parties
        self._locks = locks

    async def wait(self, timeout: float | None = None) -> int:
        """Arrive, and wait until all have; see :meth:`towpath.Barrier.wait`."""
        locks = self._locks
        call = requests.arrive(locks.owner(), self.name, self.parties, timeout)
        make = partial(requests.addressed, call)
        outcome = (await locks.wait(locks.session(), make, timeout, is_remembered=True)).outcome
        if isinstance(outcome, Standing):
            return outcome.place
        assert outcome is not None
        raise outcome

    try_wait = attempt_async(wait)


async def listed(client: AsyncKinds, prefix: str) -> model.Listing:
    """Return the locks that are in use."""
    locks: list[model.LockInfo] = []
    sessions: dict[int, model.Session] = {}
    token = ""
    while True:
        page = await client._call(requests.list_locks(prefix, token))
        locks.extend(page.locks)
        sessions.update((session.id, session) for session in page.sessions)
        token = page.next_token
        if not token:
            return model.Listing(locks, list(sessions.values()))
