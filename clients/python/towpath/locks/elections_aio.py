"""Leader election, waiting on an event loop. The same as ``elections``, where each method is documented."""

from __future__ import annotations

from collections.abc import AsyncIterator

from towpath.errors import NotHeld
from towpath.locks import requests
from towpath.locks.aio import AsyncGuard, AsyncLocks
from towpath.locks.elections import Leader, concerns, leader_of
from towpath.locks.requests import Wanted
from towpath.locks.watching_aio import AsyncLockWatch
from towpath.names import check_name
from towpath.result import attempt_async


class AsyncElection:
    """One election by name; see :class:`towpath.Election`."""

    def __init__(self, locks: AsyncLocks, name: str) -> None:
        self.name = check_name(name, "an election's name")
        self._locks = locks

    async def campaign(self, note: str = "", timeout: float | None = None) -> AsyncGuard:
        """Stand for election, and wait until it is won; see :meth:`towpath.Election.campaign`."""
        return AsyncGuard(self._locks, await self._locks.acquire([Wanted(self.name)], timeout, note=note))

    async def leader(self) -> Leader | None:
        """Return who leads; None: nobody."""
        try:
            return leader_of(await self._locks._client._call(requests.explain(lock=self.name)), self.name)
        except NotHeld:
            return None

    async def watch(self) -> AsyncIterator[Leader | None]:
        """Yield who leads, now and whenever that has changed; see :meth:`towpath.Election.watch`."""
        told = -1
        async with AsyncLockWatch(self._locks._client, self.name) as watch:
            leader = await self.leader()
            while True:
                if (term := leader.term if leader is not None else 0) != told:
                    told = term
                    yield leader
                while not concerns(await watch.receive(), self.name):
                    pass
                leader = await self.leader()

    try_campaign = attempt_async(campaign)
    try_leader = attempt_async(leader)
