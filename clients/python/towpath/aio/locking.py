"""What locks offer beyond taking them, as methods of the asyncio client; see ``towpath.sync.locking``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

from towpath.aio.registry import AsyncRegistry
from towpath.calls import Call
from towpath.codecs import BYTES, Codec
from towpath.errors import TowpathError
from towpath.locks import spaces
from towpath.locks.aio import AsyncLocks
from towpath.locks.elections_aio import AsyncElection
from towpath.locks.guarded import NOT_STATED, terms
from towpath.locks.guarded_aio import AsyncGuarded
from towpath.locks.latches import AsyncLatch
from towpath.locks.requests import Standing
from towpath.locks.spaces import LockSpace, Policy, Victim
from towpath.locks.watching_aio import AsyncLockWatch
from towpath.result import attempt_async

T = TypeVar("T")


class AsyncLocking(AsyncRegistry):
    """What locks offer beyond taking them; :class:`towpath.aio.AsyncClient` is one."""

    @property
    @abstractmethod
    def _locks(self) -> AsyncLocks:
        """What the client has to do with locks."""

    # ---- lock spaces ---------------------------------------------------------------------------------------

    async def declare_lock_space(
        self,
        name: str,
        *,
        policy: Policy = "detect",
        victim: Victim = "requester",
        ranks: Mapping[str, int] | None = None,
        units: Mapping[str, int] | None = None,
    ) -> None:
        """Lay down how deadlocks are kept away; see :meth:`towpath.Client.declare_lock_space`."""
        space = LockSpace(name, policy, victim, ranks or {}, units or {})
        await self._call(spaces.define(space))

    async def remove_lock_space(self, name: str) -> None:
        """Take a lock space away; see :meth:`towpath.Client.remove_lock_space`."""
        await self._call(spaces.define(LockSpace(name), is_removed=True))

    async def lock_spaces(self) -> list[LockSpace]:
        """Return the lock spaces that were declared, by name."""
        return await self._call(spaces.list_spaces())

    async def claim(self, claims: Mapping[str, int]) -> None:
        """Say the most that the running task will ever have at a time; see :meth:`towpath.Client.claim`."""
        locks = self._locks
        owner, session = locks.owner(), locks.session()

        def make(session_id: int, number: int) -> Call[Standing]:
            return spaces.declare_claims(session_id, owner, claims)

        make(0, 1)
        outcome = (await locks.wait(session, make, None)).outcome
        if isinstance(outcome, TowpathError):
            raise outcome

    def on_lock_wounded(self, told: Callable[[TowpathError], object]) -> None:
        """Have a function told whenever an older owner wants a lock that this client has; see
        :meth:`towpath.Client.on_lock_wounded`."""
        self._locks.on_wounded.append(told)

    # ---- locks that own their data -------------------------------------------------------------------------

    @overload
    def guarded(self, name: str, *, durable: bool = False) -> AsyncGuarded[bytes]: ...

    @overload
    def guarded(
        self, name: str, codec: Codec[T] | type[T], *, initial: T, durable: bool = False
    ) -> AsyncGuarded[T]: ...

    @overload
    def guarded(
        self, name: str, codec: Codec[T] | type[T], *, durable: bool = False
    ) -> AsyncGuarded[T | None]: ...

    def guarded(
        self, name: str, codec: Any = BYTES, *, initial: Any = NOT_STATED, durable: bool = False
    ) -> AsyncGuarded[Any]:
        """Return a handle for a value that is to be had only by holding its lock; see
        :meth:`towpath.Client.guarded`."""
        return AsyncGuarded(self._locks, terms(name, codec, initial, is_durable=durable))

    # ---- latches, elections, watches -----------------------------------------------------------------------

    def latch(self, name: str, count: int) -> AsyncLatch:
        """Return a handle for something that opens once; see :class:`towpath.Latch`."""
        return AsyncLatch(self._locks, name, count)

    def election(self, name: str) -> AsyncElection:
        """Return a handle for an election by name; see :class:`towpath.Election`."""
        return AsyncElection(self._locks, name)

    def watch_locks(self, prefix: str = "") -> AsyncLockWatch:
        """Follow what happens to the locks whose names begin so: first what is held, then each change. Close
        it when done."""
        return AsyncLockWatch(self._locks._client, prefix)

    try_declare_lock_space = attempt_async(declare_lock_space)
    try_remove_lock_space = attempt_async(remove_lock_space)
    try_claim = attempt_async(claim)
