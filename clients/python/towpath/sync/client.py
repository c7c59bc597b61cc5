"""The synchronous client of the daemon of this host: ``towpath.connect()``.

Theory of operation
    One background thread per client reads the door's socket: answers, notices, and the loss and return of
    the daemon. Callers' threads send and wait; one of those that wait reads instead of the background thread
    (``turns``). Messages take neither: ``publish`` writes the caller's ring and ``receive`` reads the
    publishers', in the caller's thread, and the door is asked only when somebody comes or goes.
    ``ClientProtocol`` holds all state, under one lock that is never held while waiting.

Invariants
    A Client, and all that came from it, may be used by several threads; one subscription is received from
    by one at a time. After a fork the child's handles raise ConnectionLost; it must connect for itself.
    ``close`` ends the thread, and everything that waits.

Not here: the asyncio client (``aio``), which shares everything but the waiting.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from towpath import addresses, asking, calls, loans, model, tracing, wire
from towpath._version import __version__
from towpath.ends import ReaderState, SourceState
from towpath.errors import (
    BadDescriptor,
    ConnectionLost,
    LimitExceeded,
    TowpathError,
    Unavailable,
    VersionMismatch,
)
from towpath.loans import HELD_MAX
from towpath.locks.blocking import Lock
from towpath.locks.requests import Place
from towpath.protocol import IDS_PER_REQUEST, ClientProtocol, Handler
from towpath.services.api import Server
from towpath.services.caller import Callers, LocalCaller
from towpath.services.server import LocalServer
from towpath.states.page import Page
from towpath.sync.api import Client, Publisher
from towpath.sync.messages import LocalPublisher, LocalSubscription
from towpath.sync.submitting import QueuePublisher
from towpath.sync.turns import Turns
from towpath.sync.watching import LocalWatch
from towpath.v1.frame_pb2 import Frame
from towpath.waiting import (
    CALL_TIMEOUT_S,
    FOREVER,
    RECONNECT_FIRST_S,
    RECONNECT_MAX_S,
    deadline_ns,
    program_name,
    remaining_ns,
)

if TYPE_CHECKING:
    from towpath import _ring
    from towpath.locks.paging import PageLock
else:
    try:
        from towpath.locks.paging import PageLock
    except ImportError:
        PageLock = None

A = TypeVar("A")
T = TypeVar("T")
E = TypeVar("E", SourceState, ReaderState)

_clients: weakref.WeakSet[LocalClient] = weakref.WeakSet()


def _forget_in_child() -> None:
    for client in list(_clients):
        client._abandon()


os.register_at_fork(after_in_child=_forget_in_child)


class Answer(Generic[A]):
    """One call's answer, waited for by one thread."""

    __slots__ = ("_event", "_value")

    def __init__(self) -> None:
        self._event = threading.Event()
        self._value: A | TowpathError | None = None

    def set(self, value: A | TowpathError) -> None:
        self._value = value
        self._event.set()

    def is_set(self) -> bool:
        return self._value is not None

    def wait(self, deadline: int | None) -> A | TowpathError | None:
        left = remaining_ns(deadline)
        self._event.wait(None if left == FOREVER else left / 1e9)
        return self._value


class LocalClient(Client):
    """A session with the daemon of this host."""

    _LOCK_LEASE_MS = 0

    def __init__(self, url: str | None, *, timeout: float | None, name: str) -> None:
        super().__init__()
        self._url = url
        self._protocol = ClientProtocol(name=program_name(name), software=f"towpath-python/{__version__}")
        self._lock = threading.RLock()
        self._callers = Callers(self)
        self._allocating = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._sock: socket.socket | None = None
        self._failed: TowpathError | None = None
        self._last_error: TowpathError | None = None
        self._was_welcome = False
        self._pause_s = RECONNECT_FIRST_S
        self._closed = False
        self._is_forked = False
        self._why_closed = ConnectionLost("the client is closed", hint="")
        sock = addresses.open_socket(url)
        self._arrived: deque[wire.Raw] = deque()
        try:
            self._turns = Turns()
            self._open(sock)
        except TowpathError:
            sock.close()
            raise
        self._thread = threading.Thread(target=self._run, name="towpath-client", daemon=True)
        self._thread.start()
        _clients.add(self)
        try:
            with self._lock:
                self._wait_ready(deadline_ns(timeout))
        except TowpathError:
            self.close()
            raise

    # ---- life ----

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            closed = ConnectionLost("the client was closed", hint="")
            self._protocol.close(closed)
            self._drop_connection(closed)
            self._ready.notify_all()
            self._turns.stir()
            self._turns.pass_on()
        if threading.current_thread() is not self._thread and not self._turns.is_mine:
            self._thread.join()

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
        attached: Answer[Page] = Answer()
        deadline = deadline_ns(CALL_TIMEOUT_S)
        with self._lock:
            self._wait_ready(deadline)
            with self._sending():
                self._protocol.attach_value(name, attached.set)
        value = attached.wait(deadline)
        if value is None:
            raise calls.no_answer()
        if isinstance(value, TowpathError):
            raise value
        return value

    def _lock_page(self, call: calls.Call[Place]) -> tuple[Place, _ring.LockPage | None]:
        """Ask for a lock to be given out to the uid's lock page; see :meth:`ClientProtocol.ask_lock_page`."""
        given: Answer[tuple[Place, _ring.LockPage | None]] = Answer()
        deadline = deadline_ns(CALL_TIMEOUT_S)
        with self._lock:
            self._wait_ready(deadline)
            with self._sending():
                self._protocol.ask_lock_page(call, given.set)
        value = given.wait(deadline)
        if value is None:
            raise calls.no_answer()
        if isinstance(value, TowpathError):
            raise value
        return value

    def _page_lock(self, name: str) -> Lock | None:
        return None if PageLock is None else PageLock(self._locks, name, self)

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
                if self._closed:
                    raise

    def _attach(
        self,
        begin: Callable[[Handler], E],
        forget: Callable[[E, TowpathError], None],
        deadline: int | None,
    ) -> E:
        """Have the core attach a source or a reader, on the connection that its id was given on."""
        answer: Answer[Frame] = Answer()
        with self._lock:
            self._ensure_ids(deadline)
            with self._sending():
                state = begin(answer.set)
        try:
            value = answer.wait(deadline)
            if value is None:
                raise calls.no_answer()
            if isinstance(value, TowpathError):
                raise value
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
        with self._lock:
            self._wait_ready(deadline)
            call_id = begin(answer.set)
            self._flush()
        self._attend(answer.is_set, lambda: call_id, deadline)
        value = answer.wait(deadline)
        if value is None:
            with self._sending():
                self._protocol.cancel(call_id)
            raise calls.no_answer()
        if isinstance(value, TowpathError):
            raise value
        return value

    def _begin(self, call: calls.Call[T], deadline: int | None) -> Answer[T]:
        """Queue a call, as soon as there is a connection; its answer may be waited for more than once."""
        answer: Answer[T] = Answer()
        with self._lock:
            self._wait_ready(deadline_ns(CALL_TIMEOUT_S) if deadline is None else deadline)
            with self._sending():
                self._protocol.call(call, asking.answered(call, answer.set))
        return answer

    def _post(
        self, call: calls.Call[T], then: Callable[[T | TowpathError], None]
    ) -> Callable[[], object] | None:
        with self._lock:
            if not self._protocol.is_ready or self._closed:
                return None
            if call.is_one_way:
                self._protocol.call(call, _unheard)
                self._flush()
                return _nothing
            call_id = self._protocol.call(call, asking.answered(call, then))
            self._flush()
        return functools.partial(self._withdraw, call_id)

    @property
    def _is_over(self) -> bool:
        return self._closed

    def _withdraw(self, call_id: int) -> None:
        with self._sending():
            self._protocol.withdraw(call_id)

    def _follow(self, make: Callable[[], calls.Call[T]], listener: asking.Listener[T]) -> asking.Following:
        with self._lock:
            if self._closed or self._failed is not None:
                raise (self._failed or self._why_closed).again()
            stream = self._protocol.keep_stream(make, listener)
            self._flush()

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
            self._wait_ready(deadline)
            if not self._protocol.needs_ids:
                return
            self._lock.release()
            try:
                # One at a time: what is unused of a session's older blocks lapses when it is given another.
                with self._allocating:
                    self._allocate_ids(deadline)
            finally:
                self._lock.acquire()

    def _allocate_ids(self, deadline: int | None) -> None:
        if self._protocol.needs_ids:
            first_id, count = self._call(calls.allocate_ids(IDS_PER_REQUEST), deadline)
            with self._lock:
                self._protocol.add_ids(first_id, count)

    def _wait_ready(self, deadline: int | None) -> None:
        """Wait, with the lock held, until there is a connection."""
        while not self._protocol.is_ready:
            if self._failed is not None:
                raise self._failed.again()
            if self._closed:
                raise self._why_closed.again()
            left = remaining_ns(deadline)
            if left == 0 or not self._ready.wait(None if left == FOREVER else left / 1e9):
                raise calls.silent(is_connected=self._sock is not None, last=self._last_error)
        if self._closed:
            raise self._why_closed.again()

    def _attend(self, is_over: Callable[[], bool], mine: Callable[[], int], deadline: int | None) -> None:
        """Read here what comes, until something is over; if somebody else does, or there is no connection, or
        the time is over, it may not be when this returns.

        Args:
            mine: the call whose answers are taken in here; all else is left to the client's thread.
        """
        turns = self._turns
        if self._closed or not turns.begin():
            return
        try:
            while not is_over():
                sock, left = self._sock, remaining_ns(deadline)
                if sock is None or left == 0:
                    return
                turns.sleep_guest(None if left == FOREVER else left / 1e9)
                if not self._take_in_own(sock, mine):
                    return
        except BaseException:  # a signal's handler, say, when the socket had something for this thread
            turns.pass_on()
            raise
        finally:
            turns.end()

    def _take_in_own(self, sock: socket.socket, mine: Callable[[], int]) -> bool:
        """Take in an answer to a call of the calling thread; returns whether there may be more to come."""
        with self._lock:
            if self._sock is not sock:
                return False
            arrived = self._arrived
            try:
                wire.receive_raw(sock, arrived)
            except BlockingIOError:
                return True
            except OSError:
                self._turns.pass_on()
                return False
            data, ancillary, flags, _ = arrived[-1]
            is_all = len(arrived) == 1 and len(data) < wire.RECEIVE_BYTES
            if is_all and not ancillary and not flags & wire.TRUNCATED:
                frame = self._decoder.only(data)
                if frame is not None and frame.id and frame.id == mine():
                    arrived.clear()
                    self._protocol.receive(frame, [], time.monotonic_ns())
                    self._flush()
                    return True
            self._turns.pass_on()
            return True

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        """Hold the lock, then send what the protocol queued meanwhile. Where it must be quick this is written
        out."""
        with self._lock:
            yield
            self._flush()

    def _check_not_forked(self) -> None:
        """Raises ConnectionLost in a forked child, where no thread serves this client."""
        if self._is_forked:
            raise self._why_closed.again()

    def _flush(self) -> None:
        if not self._protocol.has_outgoing:
            return
        for frame, descriptors in self._protocol.take_outgoing():
            if self._sock is None:
                return
            if descriptors:
                frame.descriptors = len(descriptors)
            data: bytes | memoryview = wire.encode(frame)
            try:
                while data:
                    sent = wire.send_once(self._sock, data, descriptors)
                    data, descriptors = memoryview(data)[sent:], ()
            except ConnectionLost:
                # The thread sees the end of the connection and takes it from there.
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
                return

    # ---- the thread ----

    def _open(self, sock: socket.socket) -> None:
        with self._lock:
            self._turns.watch(sock)
            self._sock = sock
            self._decoder = wire.FrameDecoder(wire.RESPONSE_BYTES_MAX)
            with self._sending():
                self._protocol.connection_made()

    def _drop_connection(self, error: TowpathError | None) -> None:
        if self._sock is not None:
            self._turns.unwatch(self._sock)
            self._sock.close()
            self._sock = None
            while self._arrived:
                with contextlib.suppress(BadDescriptor):
                    wire.received(self._arrived.popleft())  # closes its descriptors
        self._protocol.connection_lost(error)
        self._turns.stir()

    def _run(self) -> None:
        try:
            while not self._closed:
                error = self._serve_connection()
                with self._lock:
                    if self._protocol.is_ready:
                        self._pause_s = RECONNECT_FIRST_S
                        self._was_welcome = True
                    self._last_error = error
                    self._drop_connection(error)
                    if self._is_final(error):
                        self._failed = error
                        if error is not None:
                            self._protocol.end_streams(error)
                        self._ready.notify_all()
                        break
                self._reconnect()
        finally:
            with self._lock:
                self._closed = True
            self._turns.close()

    def _serve_connection(self) -> TowpathError | None:
        """Read one connection to its end; return why it ended."""
        sock = self._sock
        if sock is None:
            return None
        while not self._closed:
            left = remaining_ns(self._protocol.deadline_ns)
            self._turns.sleep_own(None if left == FOREVER else left / 1e9)
            if self._closed:
                break
            try:
                with self._lock:
                    if self._take_in(sock) >= wire.RECEIVE_BYTES:
                        self._turns.pass_on()
            except TowpathError as error:
                return error
            self._turns.stir()
        return None

    def _take_in(self, sock: socket.socket) -> int:
        """Take in, with the lock held, what has come; returns how many bytes those were."""
        arrived, size = self._arrived, 0
        broken: OSError | None = None
        try:
            wire.receive_raw(sock, arrived)
        except BlockingIOError:
            pass
        except OSError as error:
            broken = error
        protocol, now = self._protocol, time.monotonic_ns()
        while arrived:
            data, descriptors = wire.received(arrived.popleft())
            if not data:
                raise calls.daemon_left()
            size += len(data)
            was_ready = protocol.is_ready
            for frame, owned in self._decoder.feed(data, descriptors):
                protocol.receive(frame, owned, now)
            if protocol.is_ready and not was_ready:
                self._ready.notify_all()
        protocol.expire(now)
        self._flush()
        if broken is not None:
            raise wire.broken(broken)
        return size

    def _is_final(self, error: TowpathError | None) -> bool:
        """Whether trying again is pointless, or not what the caller of ``connect`` wants."""
        is_refusal = error is not None and not isinstance(error, ConnectionLost)
        return isinstance(error, VersionMismatch) or (is_refusal and not self._was_welcome)

    def _reconnect(self) -> None:
        while not self._closed:
            self._turns.sleep_own(self._pause_s * random.uniform(0.5, 1.0))
            self._pause_s = min(self._pause_s * 2, RECONNECT_MAX_S)
            if self._closed:
                return
            try:
                self._open(addresses.open_socket(self._url))
                return
            except (Unavailable, LimitExceeded):
                continue

    def _abandon(self) -> None:
        """In a forked child: this client is the parent's."""
        self._closed = True
        self._is_forked = True
        self._why_closed = calls.forked()
        self._lock = threading.RLock()
        self._ready = threading.Condition(self._lock)
        self._sock = None
        self._protocol.abandon(self._why_closed)


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
