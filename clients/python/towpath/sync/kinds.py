"""The kinds of channels that travel as frames, as methods of the synchronous client."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import ClassVar, TypeVar

from towpath import calls, model
from towpath.asking import Following, Listener
from towpath.errors import NotSupported, TowpathError
from towpath.locks import requests
from towpath.locks.blocking import Barrier, Guard, Lock, Locks, Semaphore, listed
from towpath.locks.leases import LEASE_MS_DEFAULT
from towpath.locks.model import Explanation, Grant, Listing
from towpath.locks.requests import Wanted
from towpath.locks.session import LockSession
from towpath.queues import PREFETCH_DEFAULT
from towpath.result import attempt
from towpath.states.blocking import State
from towpath.states.page import Page
from towpath.sync.consuming import Consumer
from towpath.sync.locking import Locking
from towpath.sync.transactions import Transaction
from towpath.transactions import TIMEOUT_S

T = TypeVar("T")


class Kinds(Locking):
    """What is asked in frames, on every carrier; :class:`towpath.Client` is one. Its port is described at
    :class:`towpath.asking.Asking`.
    """

    @abstractmethod
    def _post(
        self, call: calls.Call[T], then: Callable[[T | TowpathError], None]
    ) -> Callable[[], object] | None:
        """As :meth:`towpath.asking.Asking._post`."""

    @abstractmethod
    def _follow(self, make: Callable[[], calls.Call[T]], listener: Listener[T]) -> Following:
        """As :meth:`towpath.asking.Asking._follow`."""

    def _attend(self, is_over: Callable[[], bool], mine: Callable[[], int], deadline: int | None) -> None:
        """Read here what comes, for who is about to wait, where the client has its callers do so.

        Args:
            is_over: whether that has come which is waited for. It may not have when this returns.
            mine: the call that is waited for; 0: there is none just now.
            deadline: on the monotonic clock, in nanoseconds; None for ever.
        """

    def _every(self, tick: Callable[[], float]) -> Callable[[], object]:
        """As :meth:`towpath.asking.Asking._every`."""
        raise NotSupported("nothing is done now and again on the daemon's own host")

    @abstractmethod
    def _check_not_forked(self) -> None:
        """As :meth:`towpath.asking.Asking._check_not_forked`."""

    @property
    @abstractmethod
    def _is_over(self) -> bool:
        """Whether the client is closed, or will not have a connection any more."""

    def _value_page(self, name: str) -> Page:
        """The page of a state's value.

        Raises:
            NotSupported: it is on another host.
        """
        raise NotSupported("a value page is memory of the daemon's host")

    _LOCK_LEASE_MS: ClassVar[int] = LEASE_MS_DEFAULT
    """Of the client's lock session; 0 for programs of the daemon's host, which die with their process."""

    @cached_property
    def _locks(self) -> Locks:
        return Locks(self, lease_ms=self._LOCK_LEASE_MS)

    def _page_lock(self, name: str) -> Lock | None:
        """A lock that is taken in shared memory where that is possible; None on carriers that have none."""
        return None

    def _open_lock_lane(self, session: LockSession) -> None:
        """Have a lane opened for a lock session where that is possible. Does not wait."""

    def lock(self, name: str, *, reentrant: bool = False, note: str = "", fast: bool = True) -> Lock:
        """Return a handle for a lock by name; asks nobody until it is used.

        Args:
            name: dotted, as a channel's; locks and channels do not know of each other.
            reentrant: the thread that has it may take it again, and releases it as often.
            note: for people who wonder who has it.
            fast: take it in shared memory where that is possible: by threads of programs of one uid, from its
                second use on, without a note and not reentrant. Otherwise always ask the daemon.

        Raises:
            InvalidName.
        """
        if fast and not reentrant and not note:
            quick = self._page_lock(name)
            if quick is not None:
                return quick
        return Lock(self._locks, name, reentrant=reentrant, note=note)

    def semaphore(self, name: str, permits: int = 0) -> Semaphore:
        """Return a handle for a counting semaphore by name, of so many permits in all; 0: as it is, which
        others, or the lock space, have said."""
        return Semaphore(self._locks, name, permits)

    def barrier(self, name: str, parties: int) -> Barrier:
        """Return a handle for a place where so many wait for each other."""
        return Barrier(self._locks, name, parties)

    def acquire_all(self, *locks: Lock | str, timeout: float | None = None) -> Guard:
        """Take several locks exclusively, all at one moment or none: no order of taking them can be wrong.

        Args:
            locks: 1 to 64 different ones.
            timeout: seconds; None waits for ever, 0 does not wait.

        Returns:
            One guard for all; ``grants`` are in the order of the arguments.

        Raises:
            As :meth:`towpath.Lock.acquire`.
        """
        wanted = [Wanted(lock if isinstance(lock, str) else lock.name) for lock in locks]
        return Guard(self._locks, self._locks.acquire(wanted, timeout))

    def force_release(self, name: str, *, token: int = 0, reason: str = "") -> tuple[Grant, ...]:
        """Take a lock from whoever has it; they are told.

        Args:
            token: this grant only; 0: all that there are.
            reason: for people, and for the journal.

        Raises:
            PermissionDenied: the caller is no administrator.
            NotHeld: nobody has it.
        """
        return self._call(requests.force_release(name, token, reason))

    def set_lock_lease(self, seconds: float) -> None:
        """Say how long locks that are held from afar outlive a connection that is broken.

        Args:
            seconds: 1 to 3,600; 10 if nothing is said. A holder that dies keeps the others waiting that long,
                and one that is cut off for nine tenths of it has lost its locks.

        Raises:
            NotSupported: the daemon is on this host; its locks end with the process that holds them.
            InvalidArgument: it is out of range, or locks were used already.
        """
        self._locks.set_lease(seconds)

    def on_lock_lost(self, told: Callable[[TowpathError], object]) -> None:
        """Have a function told whenever locks are lost that this client holds: taken away, or with its
        session. It is called by the thread, or on the loop, that hears of it, and must not wait."""
        self._locks.on_lost.append(told)

    def list_locks(self, prefix: str = "") -> Listing:
        """Return the locks in use whose names begin so, and the sessions that have or want them."""
        return listed(self, prefix)

    def explain_locks(self, lock: str = "", *, session: int = 0) -> Explanation:
        """Say who waits for whom: of a lock, of a session, or (without either) of all.

        Raises:
            NotHeld: nobody uses the lock. SessionLost: there is no such session.
        """
        return self._call(requests.explain(lock=lock, session=session))

    def state(self, name: str) -> State:
        """Return a handle for a state channel by name; asks nobody until it is used."""
        return State(self, name)

    def consume(self, name: str, *, prefetch: int = PREFETCH_DEFAULT) -> Consumer:
        """Consume a queue: each message goes to one of its consumers, until it is settled.

        Settle all that is received: acknowledge it, or give it back. A consumer that lets the deadline of a
        delivery (the queue's ``ack_ms``) pass is taken to hang, and is given nothing more until it settles
        or extends something, be it too late for that.

        Args:
            name: the queue's.
            prefetch: how many deliveries may be unsettled at a time, 1 to 65,536.

        Raises:
            ChannelNotFound, InvalidArgument (no queue), LimitExceeded, QuotaExceeded.
        """
        return Consumer(self, name, prefetch)

    def places(self, name: str) -> list[model.Place]:
        """Return how far the named subscriptions of a durable topic have come, by name.

        Raises:
            ChannelNotFound, InvalidArgument (no durable topic).
        """
        return self._call(calls.places(name))

    def delete_place(self, name: str, place: str) -> None:
        """Forget a named subscription of a durable topic.

        Raises:
            SubscriptionNotFound, ChannelNotFound, InvalidArgument (no durable topic).
        """
        self._call(calls.delete_place(name, place))

    def transaction(self, *, timeout: float | None = TIMEOUT_S) -> Transaction:
        """Begin a transaction: what it is told is carried out together at its end, or not at all.

        Args:
            timeout: seconds that a commit goes on asking what became of it, while connections break; None for
                ever.
        """
        return Transaction(self, timeout)

    try_consume = attempt(consume)
