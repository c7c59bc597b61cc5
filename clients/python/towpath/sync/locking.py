"""What locks offer beyond taking them, as methods of the synchronous client: spaces, claims, values that a
lock owns, latches, elections, watches.

Not here: locks themselves (``towpath.sync.kinds``), how each of these works (``towpath.locks``).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

from towpath.calls import Call
from towpath.codecs import BYTES, Codec
from towpath.errors import TowpathError
from towpath.locks import spaces
from towpath.locks.blocking import Locks
from towpath.locks.elections import Election
from towpath.locks.guarded import NOT_STATED, terms
from towpath.locks.guarded_blocking import Guarded
from towpath.locks.latches import Latch
from towpath.locks.requests import Standing
from towpath.locks.spaces import LockSpace, Policy, Victim
from towpath.locks.watching import LockWatch
from towpath.result import attempt
from towpath.sync.registry import Registry

T = TypeVar("T")


class Locking(Registry):
    """What locks offer beyond taking them; :class:`towpath.Client` is one."""

    @property
    @abstractmethod
    def _locks(self) -> Locks:
        """What the client has to do with locks."""

    # ---- lock spaces ---------------------------------------------------------------------------------------

    def declare_lock_space(
        self,
        name: str,
        *,
        policy: Policy = "detect",
        victim: Victim = "requester",
        ranks: Mapping[str, int] | None = None,
        units: Mapping[str, int] | None = None,
    ) -> None:
        """Lay down how deadlocks are kept away among the lock of a name and all below it. It stays, on disk,
        until it is laid down otherwise or removed.

        Args:
            name: ``plant`` has the locks ``plant`` and ``plant.line1``; empty: all that no other space has.
                The longest that fits a lock counts.
            policy: ``detect`` (deadlocks are found when they come about), ``ordered`` (locks are taken by
                rising rank only), ``banker`` (only what leaves a way for everybody to finish), ``wait-die``,
                ``wound-wait``, ``no-wait``, ``timeout-only``.
            victim: who of a deadlock is refused, with ``detect``.
            ranks: of ``ordered``, by lock, from 1; locks without one are refused. None: by name, level by
                level.
            units: of ``banker``, how many there are of each resource.

        Raises:
            LockInUse: one of its locks is used. PermissionDenied: the caller is no administrator.
            InvalidName, InvalidArgument, LimitExceeded. Nothing was changed.
        """
        space = LockSpace(name, policy, victim, ranks or {}, units or {})
        self._call(spaces.define(space))

    def remove_lock_space(self, name: str) -> None:
        """Take a lock space away; its locks belong to the next shorter one then.

        Raises:
            InvalidArgument: there is none. LockInUse, PermissionDenied.
        """
        self._call(spaces.define(LockSpace(name), is_removed=True))

    def lock_spaces(self) -> list[LockSpace]:
        """Return the lock spaces that were declared, by name."""
        return self._call(spaces.list_spaces())

    def claim(self, claims: Mapping[str, int]) -> None:
        """Say the most that the calling thread will ever have at a time of each resource of a lock space with
        the banker's algorithm; required before it acquires there.

        Args:
            claims: units, by lock; replaces what was said before. Empty: withdraws all claims.

        Raises:
            ClaimExceeded: more than there is, or less than the thread has.
            InvalidArgument: the space does not use the banker's algorithm.
            SessionLost, ConnectionLost, LimitExceeded.
        """
        locks = self._locks
        owner, session = locks.owner(), locks.session()

        def make(session_id: int, number: int) -> Call[Standing]:
            return spaces.declare_claims(session_id, owner, claims)

        make(0, 1)
        outcome = locks.wait(session, make, None).outcome
        if isinstance(outcome, TowpathError):
            raise outcome

    def on_lock_wounded(self, told: Callable[[TowpathError], object]) -> None:
        """Have a function told whenever an older owner wants a lock that this client has, in a lock space
        with the policy ``wound-wait``; see ``guard.is_wounded``. It is called by the thread, or on the loop,
        that hears of it, and must not wait."""
        self._locks.on_wounded.append(told)

    # ---- locks that own their data -------------------------------------------------------------------------

    @overload
    def guarded(self, name: str, *, durable: bool = False) -> Guarded[bytes]: ...

    @overload
    def guarded(
        self, name: str, codec: Codec[T] | type[T], *, initial: T, durable: bool = False
    ) -> Guarded[T]: ...

    @overload
    def guarded(
        self, name: str, codec: Codec[T] | type[T], *, durable: bool = False
    ) -> Guarded[T | None]: ...

    def guarded(
        self, name: str, codec: Any = BYTES, *, initial: Any = NOT_STATED, durable: bool = False
    ) -> Guarded[Any]:
        """Return a handle for a value that is to be had only by holding its lock, and is written back when
        that is released; asks nobody until it is used.

        Args:
            name: the lock's: dotted, as a channel's.
            codec: how the value becomes bytes: ``towpath.codecs.BYTES`` (unless stated), ``JSON``, one of
                your own, or any type that msgspec knows.
            initial: the value as long as none was written. Not stated: empty bytes, or None with a codec.
            durable: whether a write waits until the value is on disk. Without that it survives the daemon's
                end, but not a loss of power.

        Raises:
            InvalidName. InvalidArgument: the codec does not take the initial value.
            NotSupported: the codec is a type, and msgspec is not installed.
        """
        return Guarded(self._locks, terms(name, codec, initial, is_durable=durable))

    # ---- latches, elections, watches -----------------------------------------------------------------------

    def latch(self, name: str, count: int) -> Latch:
        """Return a handle for something that opens once, when it has been counted down so often."""
        return Latch(self._locks, name, count)

    def election(self, name: str) -> Election:
        """Return a handle for an election by name; asks nobody until it is used."""
        return Election(self._locks, name)

    def watch_locks(self, prefix: str = "") -> LockWatch:
        """Follow what happens to the locks whose names begin so: first what is held, then each change. Close
        it when done."""
        return LockWatch(self._locks._client, prefix)

    try_declare_lock_space = attempt(declare_lock_space)
    try_remove_lock_space = attempt(remove_lock_space)
    try_claim = attempt(claim)
