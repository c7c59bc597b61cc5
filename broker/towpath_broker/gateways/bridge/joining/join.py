"""One lock that is joined to a local one.

Theory of operation
    The joiner is an ordinary holder of the lock. It has the lock exclusively whenever it has not the local
    one; so nobody is given the lock while the local one may be another program's, and while nobody wants the
    lock the local one is free for everybody. When somebody waits for the lock:

    ::

        has the lock --somebody waits--> takes the local one --has it--> lets them have the lock
             ^                           (waits for foreign programs)             |
             |                                                                    v
             +------ gives the local one back <-- has the lock again <-- waits for it, behind them

    If the first who waits wants it exclusively, a second request is put into the queue before the lock is
    released: those before it have their turn, one after the other, and then it is granted. If the first wants
    it shared, the local one is taken shared, and our grant is made shared and asked to be exclusive again at
    once: those who wait and are first have it together, nobody has it exclusively, and when the last has
    released it, we have it again. (Somebody who had it shared and asked to upgrade it then would be in a
    deadlock with us, and is told so.)

    Our session has a lease, and what we hold locally is a descriptor that the supervisor keeps. So if we are
    killed the lock stays ours, and the local one held, until our successor takes both up, from wherever we
    were (``begin``).

Invariants
    Whoever else has the lock, the local one is held; but for what is logged as ``lock.joined_apart``.

Not here: the local locks (``local_locks``), which locks are joined (``joins``).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from functools import partial
from typing import Final

from towpath.aio.client import LocalAsyncClient
from towpath.calls import Call
from towpath.errors import BindingFailed, NotHeld
from towpath.locks import requests
from towpath.locks.holds import Hold
from towpath.locks.joined import NOTE, Place
from towpath.locks.model import LockInfo, Mode
from towpath.locks.pending import Pending
from towpath.locks.requests import Standing, Wanted
from towpath.locks.session import LockSession
from towpath_broker.gateways.bridge.joining.local_locks import LocalLock
from towpath_broker.gateways.bridge.keeping import BindingKeeping
from towpath_broker.log import log

RETRY_FIRST_S: Final = 0.2
RETRY_MAX_S: Final = 30.0
"""Between attempts at a local lock that cannot be taken: its folder is gone, say."""


class Joiner:
    """Joins one lock, until it is cancelled.

    Args:
        client: the daemon.
        session: what all joined locks are held by.
        owners: numbers of owners; each request has its own.
        keeping: where what is held locally is kept.
        held: what a predecessor in this process held locally; -1: nothing, or it is in ``keeping``.
    """

    def __init__(
        self,
        client: LocalAsyncClient,
        session: LockSession,
        owners: itertools.count[int],
        keeping: BindingKeeping,
        name: str,
        place: Place,
        held: int = -1,
    ) -> None:
        self.name = name
        self.place = place
        self.session = session
        self._client = client
        self._owners = owners
        self._keeping = keeping
        self._local = LocalLock(place)
        self._has_news = asyncio.Event()
        self._hold: Hold | None = None
        self._pending: Pending | None = None
        self._over = asyncio.Event()
        self._held = held if held >= 0 else keeping.take(name)

    # ---- what others tell ----------------------------------------------------------------------------------

    def tell(self) -> None:
        """Somebody may wait for the lock."""
        self._has_news.set()

    async def begin(self, hold: Hold | None, waiting: int) -> None:
        """Have the lock, or take up what a predecessor left.

        Args:
            hold: its grant.
            waiting: the number of its request that waits; 0: none does.

        Raises:
            BindingFailed: there can be no such local lock. TowpathError: the session is lost.
        """
        if self._held < 0:
            self._local.check()
        mode = await self._mode_held() if hold is not None and hold.is_valid else None
        self._hold = hold if mode is not None else None
        if hold is not None and mode is Mode.EXCLUSIVE:
            if waiting not in (0, hold.number):  # it had asked, and not yet released
                self.session.give_up(self._ask(waiting))
                self._pending = None
            self._give_back()
            return
        is_shared = self._hold is not None
        pending = self._ask_upgrade() if is_shared else self._ask(waiting)
        await self._settle()
        if self._held < 0 and not pending.has_outcome():
            self._keep(self._local.take_nowait(shared=is_shared))
            if self._held < 0:
                log("lock.joined_apart", level="warning", lock=self.name, place=self._local.place.url)
        await self._had_again(pending)

    async def run(self) -> None:
        """Let others have the lock, whenever they wait for it.

        Raises:
            TowpathError: the session is lost, or an operator took the lock from us.
        """
        retry_s = RETRY_FIRST_S
        while True:
            self._has_news.clear()
            first = await self._first_waiter()
            if first is None:
                await self._has_news.wait()
                continue
            try:
                self._keep(await self._local.take(shared=first is Mode.SHARED))
            except BindingFailed as error:
                log("lock.join_failed", level="warning", lock=self.name, message=error.message)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, RETRY_MAX_S)
                continue
            retry_s = RETRY_FIRST_S
            await self._let(is_shared=first is Mode.SHARED)

    def end(self) -> None:
        """The lock is joined no more: both are free again. Not for the stop: a successor goes on."""
        hold, self._held = self.leave()
        if hold is not None:
            self.session.release(hold)
        self._give_back()

    def leave(self) -> tuple[Hold | None, int]:
        """Ask for nothing more. Returns what a successor in this process goes on with: our grant, if we have
        one, and what is held locally, or -1."""
        pending, self._pending = self._pending, None
        if pending is not None and not pending.has_outcome():
            self.session.give_up(pending)
        elif pending is not None and isinstance(pending.outcome, Standing):
            self._hold = self.session.hold(pending)
        held, self._held = self._held, -1
        return self._hold if self._hold is not None and self._hold.is_valid else None, held

    # ---- rounds --------------------------------------------------------------------------------------------

    async def _first_waiter(self) -> Mode | None:
        """How the first wants it who waits for the lock; None: nobody does. Permits count as exclusive."""
        hold = self._hold
        assert hold is not None
        hold.check()
        lock = await self._look()
        waits = [wait for wait in lock.waiters if wait.owner.session != self.session.id] if lock else []
        if not waits:
            return None
        return Mode.SHARED if waits[0].mode is Mode.SHARED else Mode.EXCLUSIVE

    async def _mode_held(self) -> Mode | None:
        """How the daemon says that we have the lock; None: we have not."""
        lock = await self._look()
        modes = (
            [grant.mode for grant in lock.holders if grant.owner.session == self.session.id] if lock else []
        )
        return modes[0] if modes else None

    async def _look(self) -> LockInfo | None:
        try:
            found = await self._client.explain_locks(self.name)
        except NotHeld:
            return None
        return next((lock for lock in found.locks if lock.name == self.name), None)

    async def _let(self, *, is_shared: bool) -> None:
        """Let those who wait have the lock, have it again, and give the local one back, which is held."""
        hold = self._hold
        assert hold is not None
        if is_shared:
            await self._client._call(requests.downgrade(self.session.id, hold.number))
            pending = self._ask_upgrade()
        else:
            pending = self._ask(0)
            await self._settle()
            if not pending.has_outcome():  # else it was refused, by the lock space's policy
                self.session.release(hold)
                self._hold = None
        await self._had_again(pending)

    async def _settle(self) -> None:
        """Ask for something, and wait for the answer: what was asked before was judged before."""
        await self._client.list_locks(self.name)

    async def _had_again(self, pending: Pending) -> None:
        await self._over.wait()
        self._pending = None
        self._hold = self.session.hold(pending)
        self._give_back()

    def _ask(self, number: int) -> Pending:
        """Ask for the lock; with a number, how that request of ours stands."""
        note = f"{NOTE}{self._local.place.url}"
        call = requests.acquire(next(self._owners), [Wanted(self.name)], timeout_s=None, note=note)
        return self._begin(partial(requests.addressed, call), number)

    def _ask_upgrade(self) -> Pending:
        assert self._hold is not None

        def make(session: int, number: int) -> Call[Standing]:
            return requests.upgrade(session, number, None)

        return self._begin(make, self._hold.number)

    def _begin(self, make: Callable[[int, int], Call[Standing]], number: int) -> Pending:
        self._over = asyncio.Event()
        self._pending = self.session.begin(make, self._over.set, number)
        return self._pending

    # ---- the local lock ------------------------------------------------------------------------------------

    def _keep(self, held: int) -> None:
        self._held = held
        if held >= 0:
            self._keeping.store(self.name, held, is_all=False)

    def _give_back(self) -> None:
        held, self._held = self._held, -1
        if held >= 0:
            self._keeping.forget(self.name)
            self._local.give_back(held)


def give_up(session: LockSession, name: str, hold: Hold | None, waiting: int) -> None:
    """Give up what a predecessor had of a lock that is joined no more; arguments as for
    :meth:`Joiner.begin`."""
    if waiting:
        call = requests.acquire(0, [Wanted(name)], timeout_s=None)
        session.give_up(session.begin(partial(requests.addressed, call), lambda: None, waiting))
    if hold is not None and hold.is_valid:
        session.release(hold)
