"""The synchronous client of the daemon of this host: ``towpath.connect()``.

Theory of operation
    The door is asked through a connection that a thread of the client's keeps up (``connection``).
    Messages do not go that way: ``publish`` writes the caller's ring and ``receive`` reads the publishers',
    in the caller's thread, and the door is asked only when somebody comes or goes.

Invariants
    A Client, and all that came from it, may be used by several threads; one subscription is received from
    by one at a time. After a fork the child's handles raise ConnectionLost; it must connect for itself.
    ``close`` ends the thread, and everything that waits.

Not here: the asyncio client (``aio``), which shares everything but the waiting.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from towpath import addresses, asking, calls, loans, model, outcomes, tracing, wire
from towpath._version import __version__
from towpath.ends import ReaderState, SourceState
from towpath.errors import ConnectionLost, TowpathError
from towpath.life import Life, keep_from_children
from towpath.loans import HELD_MAX
from towpath.locks.blocking import Lock
from towpath.locks.requests import Place
from towpath.protocol import IDS_PER_REQUEST, ClientProtocol, Handler
from towpath.services.api import Server
from towpath.services.caller import Callers, LocalCaller
from towpath.services.server import LocalServer
from towpath.states.page import Page
from towpath.sync.answer import Answer
from towpath.sync.api import Client, Publisher
from towpath.sync.connection import LocalConnection
from towpath.sync.messages import LocalPublisher, LocalSubscription
from towpath.sync.submitting import QueuePublisher
from towpath.sync.watching import LocalWatch
from towpath.v1.frame_pb2 import Frame
from towpath.waiting import CALL_TIMEOUT_S, deadline_ns, program_name

if TYPE_CHECKING:
    from towpath import _ring
    from towpath.locks.paging import PageLock
    from towpath.locks.session import LockSession
else:
    try:
        from towpath.locks.paging import PageLock
    except ImportError:
        PageLock = None

T = TypeVar("T")
E = TypeVar("E", SourceState, ReaderState)


class LocalClient(Client):
    """A session with the daemon of this host."""

    _LOCK_LEASE_MS = 0

    def __init__(self, url: str | None, *, timeout: float | None, name: str) -> None:
        super().__init__()
        self._url = url
        self._life = Life()
        self._protocol = ClientProtocol(name=program_name(name), software=f"towpath-python/{__version__}")
        self._callers = Callers(self)
        self._allocating = threading.Lock()
        self._connection = LocalConnection(url, self._protocol, self._life)
        keep_from_children(self)
        try:
            with self._connection.lock:
                self._connection.wait_ready(deadline_ns(timeout))
        except TowpathError:
            self.close()
            raise

    # ---- life ----

    def close(self) -> None:
        self._connection.close()

    def _abandon(self) -> None:
        """In a forked child: this client is the parent's."""
        why = self._life.abandon()
        self._connection.abandon()
        self._protocol.abandon(why)

    def __repr__(self) -> str:
        return f"<towpath.Client session {self.session:#x}{'' if self.is_connected else ', not connected'}>"

    @property
    def is_connected(self) -> bool:
        """Whether the daemon can be asked now. Messages flow in shared memory either way."""
        return self._protocol.is_ready

    @property
    def session(self) -> int:
        welcome = self._protocol.welcome
        return welcome.session if welcome is not None else 0

    @property
    def principal(self) -> str:
        welcome = self._protocol.welcome
        return welcome.principal if welcome is not None else ""

    # ---- messages ----

    def watch(self, *, after_revision: int | None = None) -> LocalWatch:
        return LocalWatch(self, after_revision)

    def publisher(self, name: str, *, origin: str = "") -> Publisher:
        protocol = self._protocol

        def attach() -> Publisher:
            info = self._call(calls.channel_info(name), deadline)
            if info.kind == "queue":
                return QueuePublisher(self, info)
            begin = functools.partial(protocol.new_source, info, origin)
            return LocalPublisher(self, self._attach(begin, protocol.forget_source, deadline))

        deadline = deadline_ns(CALL_TIMEOUT_S)
        return tracing.traced(self._persist(attach))

    def subscribe(
        self,
        name: str,
        *,
        exclude_origin: str = "",
        start: model.Start | None = None,
        place: str = "",
        take_over: bool = False,
        held_max: int = HELD_MAX,
    ) -> LocalSubscription:
        protocol = self._protocol

        def attach() -> LocalSubscription:
            begin = functools.partial(
                protocol.new_reader,
                name,
                exclude_origin,
                wants_doorbell=False,
                held_max=held_max,
                place=calls.ReaderName(place, take_over),
            )
            subscription = LocalSubscription(self, self._attach(begin, protocol.forget_reader, deadline))
            if start is not None or place:
                try:
                    subscription.begin(start, place, deadline)
                except BaseException:
                    subscription.close()
                    raise
            return subscription

        loans.check_held_max(held_max)
        deadline = deadline_ns(CALL_TIMEOUT_S)
        return self._persist(attach)

    def _value_page(self, name: str) -> Page:
        page: Answer[Page] = Answer()
        return self._memory(page, lambda: self._protocol.attach_value(name, page.set))

    def _lock_page(self, call: calls.Call[Place]) -> tuple[Place, _ring.LockPage | None]:
        """Ask for a lock to be given out to the uid's lock page; see :meth:`ClientProtocol.ask_lock_page`."""
        given: Answer[tuple[Place, _ring.LockPage | None]] = Answer()
        return self._memory(given, lambda: self._protocol.ask_lock_page(call, given.set))

    def _memory(self, given: Answer[T], ask: Callable[[], None]) -> T:
        """Ask for what comes with memory of the daemon's."""
        deadline = deadline_ns(CALL_TIMEOUT_S)
        with self._connection.asking(deadline):
            ask()
        return given.result(deadline)

    def _page_lock(self, name: str) -> Lock | None:
        return None if PageLock is None else PageLock(self._locks, name, self)

    def _open_lock_lane(self, session: LockSession) -> None:
        if PageLock is None:  # there is no shared memory
            return
        with self._connection.sending():
            if self._protocol.is_ready and not self._life.is_closed:
                opened = functools.partial(session.lane_opened, exchange=self._protocol)
                self._protocol.open_lock_lane(session.id, opened)

    def serve(self, name: str, *, concurrency: int = 1) -> Server:
        return self._persist(lambda: LocalServer(self, name, concurrency))

    def service_caller(self, name: str, principal: str = "") -> LocalCaller:
        return self._callers.get(name, principal)

    def _persist(self, attach: Callable[[], T]) -> T:
        """Attach, once more whenever the connection breaks meanwhile: with it goes what was half attached.
        The wait for a connection, which each attempt begins with, is what bounds this.
        """
        while True:
            try:
                return attach()
            except ConnectionLost:
                if self._is_over:
                    raise

    def _attach(
        self,
        begin: Callable[[Handler], E],
        forget: Callable[[E, TowpathError], None],
        deadline: int | None,
    ) -> E:
        """Have the core attach a source or a reader, on the connection that its id was given on."""
        answer: Answer[Frame] = Answer()
        with self._connection.lock:
            self._ensure_ids(deadline)
            with self._sending():
                state = begin(answer.set)
        try:
            answer.result(deadline)
        except BaseException:
            with self._sending():
                forget(state, ConnectionLost("it was never attached"))
            raise
        return state

    # ---- calling ----

    def _call(
        self,
        call: calls.Call[T],
        deadline: int | None = None,
        descriptors: tuple[wire.Descriptor, ...] = (),
    ) -> T:
        return call.result(self._ask(lambda done: self._protocol.call(call, done, descriptors), deadline))

    def _ask(self, begin: Callable[[Handler], int], deadline: int | None = None) -> Frame:
        """Queue a call by ``begin``, which is given who is to have its answer, and wait for that."""
        if deadline is None:
            deadline = deadline_ns(CALL_TIMEOUT_S)
        answer: Answer[Frame] = Answer()
        connection = self._connection
        with connection.lock:
            connection.wait_ready(deadline)
            call_id = begin(answer.set)
            connection.flush()
        connection.attend(answer.is_set, lambda: call_id, deadline)
        value = answer.wait(deadline)
        if value is None:
            with self._sending():
                self._protocol.cancel(call_id)
        return outcomes.outcome(value)

    def _begin(self, call: calls.Call[T], deadline: int | None) -> Answer[T]:
        """Queue a call, as soon as there is a connection; its answer may be waited for more than once."""
        answer: Answer[T] = Answer()
        with self._connection.asking(deadline_ns(CALL_TIMEOUT_S) if deadline is None else deadline):
            self._protocol.call(call, asking.answered(call, answer.set))
        return answer

    def _post(
        self, call: calls.Call[T], then: Callable[[T | TowpathError], None]
    ) -> Callable[[], object] | None:
        connection = self._connection
        with connection.lock:
            if not self._protocol.is_ready or self._life.is_closed:
                return None
            if call.is_one_way:
                self._protocol.call(call, _unheard)
                connection.flush()
                return _nothing
            call_id = self._protocol.call(call, asking.answered(call, then))
            connection.flush()
        return functools.partial(self._withdraw, call_id)

    @property
    def _is_over(self) -> bool:
        return self._life.is_over

    def _withdraw(self, call_id: int) -> None:
        with self._sending():
            self._protocol.withdraw(call_id)

    def _follow(self, make: Callable[[], calls.Call[T]], listener: asking.Listener[T]) -> asking.Following:
        connection = self._connection
        with connection.lock:
            if self._life.is_over:
                raise self._life.over()
            stream = self._protocol.keep_stream(make, listener)
            try:
                connection.flush()
            except BaseException:  # a signal's handler: the caller would not know what to leave
                stream.leave()
                connection.flush()
                raise

        def leave() -> None:
            with self._sending():
                stream.leave()

        def send(body: Any) -> None:
            with self._sending():
                stream.send(body)

        return asking.Following(leave, send, stream.call_id)

    def _ensure_ids(self, deadline: int | None) -> None:
        """Wait, with the lock held, until there is a connection and the session has an id to use on it."""
        while True:
            self._connection.wait_ready(deadline)
            if not self._protocol.needs_ids:
                return
            self._connection.lock.release()
            try:
                # One at a time: what is unused of a session's older blocks lapses when it is given another.
                with self._allocating:
                    self._allocate_ids(deadline)
            finally:
                self._connection.lock.acquire()

    def _allocate_ids(self, deadline: int | None) -> None:
        if self._protocol.needs_ids:
            first_id, count = self._call(calls.allocate_ids(IDS_PER_REQUEST), deadline)
            with self._connection.lock:
                self._protocol.add_ids(first_id, count)

    def _attend(self, is_over: Callable[[], bool], mine: Callable[[], int], deadline: int | None) -> None:
        self._connection.attend(is_over, mine, deadline)

    def _sending(self) -> AbstractContextManager[None]:
        return self._connection.sending()

    def _check_not_forked(self) -> None:
        self._life.check_not_forked()


def _nothing() -> None:
    """A call that is not answered cannot be withdrawn."""


def _unheard(_: object) -> None:
    """Nobody wants the answer, and none comes."""


def connect(url: str | None = None, *, timeout: float | None = 5.0, name: str = "") -> Client:
    """Connect to a daemon.

    Args:
        url: None searches ``$TOWPATH_SOCKET``, ``$XDG_RUNTIME_DIR/towpath/``, ``/run/towpath/`` and
            ``/tmp/towpath-UID/``; otherwise a path or ``unix:/path``, or a gateway's address:
            ``grpc://HOST[:PORT]``, ``zmq://HOST[:PORT]``, ``grpc+unix:///PATH``, ``zmq+ipc:///PATH``.
        timeout: seconds to wait for the daemon's welcome.
        name: what ``towpath status`` calls this session; the program's name unless given.

    Returns:
        A connected client.

    Raises:
        Unavailable: no daemon answers.
        VersionMismatch: it speaks another protocol.
        NotSupported: the carrier's package is not installed.
    """
    remote = addresses.parse_remote(url)
    if remote is not None:
        from towpath.remote import blocking  # it brings what the local client does not need

        return blocking.connect(remote, timeout=timeout, name=name)
    return LocalClient(url, timeout=timeout, name=name)
