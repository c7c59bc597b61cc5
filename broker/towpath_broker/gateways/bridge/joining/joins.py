"""Which locks are joined to local ones, and a joiner for each.

Theory of operation
    The list stands in a value that the lock ``JOINED`` owns (``towpath.locks.joined``). We follow that lock,
    and read the list whenever somebody had it exclusively. While there is a joined lock, we have a session
    that the daemon keeps for a while when we are gone; the supervisor keeps its credentials, and what is held
    locally. If we are killed, our successor takes up the session, and each joiner what it had. If the session
    is lost, all begins anew.

    Each joiner is told of what waits for its lock by a watch.

Invariants
    Without joined locks nothing is held, and nothing asked, but to follow ``JOINED``.

Not here: how one lock is joined (``join``).
"""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Final

from towpath.aio.client import LocalAsyncClient
from towpath.errors import BindingFailed, TowpathError
from towpath.locks.holds import Hold
from towpath.locks.joined import JOINED, JOINS, Join, Place, parse_place
from towpath.locks.model import Wait
from towpath.locks.session import LockSession
from towpath.locks.watching import may_be_written
from towpath_broker.gateways.bridge.joining.join import Joiner, give_up
from towpath_broker.gateways.bridge.joining.local_locks import LocalLock, give_back_of
from towpath_broker.gateways.bridge.keeping import BindingKeeping, Keeping
from towpath_broker.gateways.bridge.tasks import cancel, raise_first_error, together
from towpath_broker.log import log

KEEPING_ID: Final = 0
"""Under which our things are kept; bindings have numbers from 1."""
GRACE_MS: Final = 10_000
"""How long a joined lock stays ours when we are gone."""
AGAIN_S: Final = 0.5
_SESSION: Final = " session"
"""Under which the session's credentials are kept; no lock's name."""


class _Joined:
    """A lock that is joined, and by whom."""

    def __init__(self, name: str, url: str, joiner: Joiner) -> None:
        self.name = name
        self.url = url
        self.joiner = joiner
        self.task: asyncio.Task[None]


class Joins:
    """All joined locks.

    Args:
        client: the daemon.
        keeping: what outlives the bridge; stays the caller's.
    """

    def __init__(self, client: LocalAsyncClient, keeping: Keeping) -> None:
        self._client = client
        self._keeping: BindingKeeping = keeping.of(KEEPING_ID)
        self._credentials = self._kept_credentials()
        self._session: LockSession | None = None
        self._owners = itertools.count(1)
        self._found: dict[str, tuple[Hold | None, int]] = {}
        self._joined: dict[str, _Joined] = {}
        self._states: dict[str, Join] = {}
        self._left: dict[Place, int] = {}
        """What is held locally of joiners that have ended with their session."""
        self._has_news = asyncio.Event()

    async def run(self) -> None:
        """Join, until cancelled."""
        following = asyncio.create_task(self._follow())
        following.add_done_callback(self._on_done)
        try:
            self._has_news.set()
            while True:
                await self._has_news.wait()
                self._has_news.clear()
                raise_first_error(*(task for task in (following, *self._tasks()) if task.done()))
                try:
                    await self._renew()
                except TowpathError as error:
                    log("lock.joins_unknown", level="warning", message=error.message)
                    await asyncio.sleep(AGAIN_S)
                    self._has_news.set()
        finally:
            await cancel(following, *self._tasks())

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [each.task for each in self._joined.values()]

    def _on_done(self, _: asyncio.Task[None]) -> None:
        self._has_news.set()  # if that was a bug, the process ends

    async def _follow(self) -> None:
        async with self._client.watch_locks(JOINED) as watch:
            async for event in watch:
                if may_be_written(event):
                    self._has_news.set()

    async def _renew(self) -> None:
        """Read the list, and do what it says; then write down how that went, where it is news."""
        listing = await self._client.list_locks(JOINED)
        wanted: dict[str, Join] = {}
        if any(lock.name == JOINED and lock.is_guarded for lock in listing.locks):
            async with await self._client.guarded(JOINED, JOINS, initial={}).read() as guard:
                wanted = guard.committed
        for each in list(self._joined.values()):
            if each.name not in wanted or wanted[each.name].url != each.url:
                del self._joined[each.name]
                self._states.pop(each.name, None)
                await cancel(each.task)
                each.joiner.end()
                log("lock.unjoined", lock=each.name, place=each.url)
        if wanted and await self._has_session():
            for name, join in wanted.items():
                if name not in self._joined:
                    each = self._joined[name] = _Joined(name, join.url, self._joiner(name, join.url))
                    each.task = asyncio.create_task(self._join(each), name=f"joins {name}")
                    each.task.add_done_callback(self._on_done)
            self._forget_left()
        elif not wanted and self._session is not None:
            self._session.close()
            self._session = None
            self._keeping.forget(_SESSION)
        if not wanted:
            self._forget_left()
        if any(wanted.get(name) not in (None, state) for name, state in self._states.items()):
            await self._write_states()

    def _forget_left(self) -> None:
        """Give back what predecessors had of locks that are joined no more."""
        for name in [name for name in self._found if name not in self._joined]:
            assert self._session is not None
            give_up(self._session, name, *self._found.pop(name))
        for place, held in self._left.items():
            if held >= 0:
                LocalLock(place).give_back(held)
        self._left.clear()
        for name in self._keeping.left():
            held = self._keeping.take(name)
            self._keeping.forget(name)
            give_back_of(held)

    async def _write_states(self) -> None:
        async with await self._client.guarded(JOINED, JOINS, initial={}).write() as guard:
            joins = guard.recover()
            joins.update({name: state for name, state in self._states.items() if name in joins})

    # ---- the session ---------------------------------------------------------------------------------------

    async def _has_session(self) -> bool:
        """Open the session, or take up the one that was kept; what it has is in ``_found`` then. Without one
        each joiner has ended."""
        if self._session is not None and self._session.why_lost is None:
            return True
        await cancel(*self._tasks())
        self._left.update((each.joiner.place, each.joiner.leave()[1]) for each in self._joined.values())
        self._joined.clear()
        self._found.clear()
        is_known = asyncio.Event()

        def found(holds: list[Hold], waits: list[Wait]) -> None:
            owners = [
                0,
                *(hold.grants[0].owner.number for hold in holds),
                *(wait.owner.number for wait in waits),
            ]
            self._owners = itertools.count(max(owners) + 1)
            for hold in holds:
                self._found[hold.grants[0].lock] = (hold, 0)
            for wait in waits:
                had, _ = self._found.get(wait.lock, (None, 0))
                self._found[wait.lock] = (had, wait.request)
            is_known.set()

        session = LockSession(
            self._client,
            name="joined locks",
            lease_ms=0,
            grace_ms=GRACE_MS,
            resumed=self._credentials,
            on_found=found,
            on_lost=lambda _: self._look_all(),
        )

        def changed() -> None:
            if session.why_lost is not None:
                is_known.set()
                self._has_news.set()

        session.on_change.append(changed)
        await is_known.wait()
        self._credentials = (0, b"")
        self._session = session
        if session.why_lost is not None:
            return False  # it was another process's, and is gone: open our own
        identifier, token = session.credentials
        self._keeping.store_bytes(_SESSION, json.dumps([identifier, token.hex()]).encode(), is_all=False)
        return True

    def _look_all(self) -> None:
        """An operator has taken a lock from us: whose it was has it again as soon as it looks."""
        self._has_news.set()
        for each in self._joined.values():
            each.joiner.tell()

    def _kept_credentials(self) -> tuple[int, bytes]:
        data = self._keeping.take_bytes(_SESSION)
        if not data:
            return 0, b""
        identifier, token = json.loads(data)
        return int(identifier), bytes.fromhex(token)

    # ---- one lock ------------------------------------------------------------------------------------------

    async def _join(self, joined: _Joined) -> None:
        """Join one lock until cancelled, or until it is clear that there can be no such local lock."""
        found = self._found.pop(joined.name, (None, 0))
        while True:
            joiner = joined.joiner
            try:
                await together(self._hear(joiner), self._serve(joined, *found))
            except BindingFailed as error:
                self._say(joined, error.message)
                joiner.end()
                return
            except TowpathError as error:
                log("lock.join_failed", level="warning", lock=joined.name, message=error.message)
                if joiner.session.why_lost is not None:
                    return  # all begins anew
                self._say(joined, error.message)
            await asyncio.sleep(AGAIN_S)
            hold, self._left[joiner.place] = joiner.leave()
            found = (hold, 0)
            joined.joiner = self._joiner(joined.name, joined.url)

    async def _hear(self, joiner: Joiner) -> None:
        async with self._client.watch_locks(joiner.name) as watch:
            async for event in watch:
                if event.kind == "reset" or (event.wait is not None and event.wait.lock == joiner.name):
                    joiner.tell()

    async def _serve(self, joined: _Joined, hold: Hold | None, waiting: int) -> None:
        await joined.joiner.begin(hold, waiting)
        self._say(joined, "joined")
        log("lock.joined", lock=joined.name, place=joined.url)
        await joined.joiner.run()

    def _joiner(self, name: str, url: str) -> Joiner:
        assert self._session is not None
        place = parse_place(url)
        held = self._left.pop(place, -1)
        return Joiner(self._client, self._session, self._owners, self._keeping, name, place, held)

    def _say(self, joined: _Joined, state: str) -> None:
        self._states[joined.name] = Join(joined.url, state)
        self._has_news.set()
