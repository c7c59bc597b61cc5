"""A blocking client's connection to the door of this host: read, written to, and made again when it breaks.

Theory of operation
    One background thread per client reads the socket: answers, notices, and the loss and return of the
    daemon. Callers' threads send and wait; one of those that wait reads instead of the background thread
    (``turns``). ``ClientProtocol`` holds all state, under one lock that is never held while waiting.

Invariants
    What was read is taken in in its order, under the lock. Whoever queues something for the daemon sends it
    before he lets the lock go.

Not here: what is asked for (``client``).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from towpath import addresses, outcomes, wire
from towpath.errors import BadDescriptor, ConnectionLost, LimitExceeded, TowpathError, Unavailable
from towpath.exchange import SENDING, UNCERTAIN
from towpath.life import Life
from towpath.protocol import ClientProtocol
from towpath.sync.turns import Turns
from towpath.waiting import FOREVER, remaining_ns


class LocalConnection:
    """One client's.

    Args:
        url: where the door is; None: where it is looked for.
        protocol: the session.
        life: the client's.

    Attributes:
        lock: guards the session.
        sock: None while there is no connection.

    Raises:
        Unavailable: no daemon answers.
        LimitExceeded: this process has no descriptors left.
    """

    def __init__(self, url: str | None, protocol: ClientProtocol, life: Life) -> None:
        self._url = url
        self._protocol = protocol
        self._life = life
        self.lock = threading.RLock()
        self._ready = threading.Condition(self.lock)
        self._arrived: deque[wire.Raw] = deque()
        self.sock: socket.socket | None = None
        sock = addresses.open_socket(url)
        try:
            self._turns = Turns()
            self._open(sock)
        except TowpathError:
            sock.close()
            raise
        self._thread = threading.Thread(target=self._run, name="towpath-client", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it, the thread, and everything that waits. More than once is fine."""
        with self.lock:
            if self._life.is_closed:
                return
            self._life.is_closed = True
            closed = ConnectionLost("the client was closed", hint="")
            self._protocol.close(closed)
            self._drop(closed)
            self._ready.notify_all()
            self._turns.stir()
            self._turns.pass_on()
        if threading.current_thread() is not self._thread and not self._turns.is_mine:
            self._thread.join()

    def abandon(self) -> None:
        """In a forked child: it is the parent's."""
        self.lock = threading.RLock()
        self._ready = threading.Condition(self.lock)
        self.sock = None

    # ---- for callers' threads ------------------------------------------------------------------------------

    def wait_ready(self, deadline: int | None) -> None:
        """Wait, with the lock held, until there is a connection.

        Raises:
            Unavailable: there is none in time.
            TowpathError: there will be none any more.
        """
        while not self._protocol.is_ready:
            if self._life.is_over:
                raise self._life.over()
            left = remaining_ns(deadline)
            if left == 0 or not self._ready.wait(None if left == FOREVER else left / 1e9):
                raise outcomes.silent(is_connected=self.sock is not None, last=self._life.last_error)
        if self._life.is_closed:
            raise self._life.over()

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Hold the lock, then send what the protocol queued meanwhile. Where it must be quick this is written
        out."""
        with self.lock:
            yield
            self.flush()

    @contextlib.contextmanager
    def asking(self, deadline: int | None) -> Iterator[None]:
        """As :meth:`sending`, as soon as there is a connection; see :meth:`wait_ready`."""
        with self.lock:
            self.wait_ready(deadline)
            yield
            self.flush()

    def flush(self) -> None:
        """Send, with the lock held, what the protocol has queued."""
        protocol = self._protocol
        if not protocol.has_outgoing:
            return
        said = protocol.said
        protocol.said = (
            SENDING if said >= 0 else UNCERTAIN
        )  # a signal's handler may end this, or come here too
        outgoing = protocol.take_outgoing()
        for frame, descriptors in outgoing:
            if self.sock is None:
                return
            if descriptors:
                frame.descriptors = len(descriptors)
            data: bytes | memoryview = wire.encode(frame)
            try:
                while data:
                    sent = wire.send_once(self.sock, data, descriptors)
                    data, descriptors = memoryview(data)[sent:], ()
            except ConnectionLost:
                # The thread sees the end of the connection and takes it from there.
                with contextlib.suppress(OSError):
                    self.sock.shutdown(socket.SHUT_RDWR)
                return
        if said >= 0 and protocol.said == SENDING:
            protocol.said = said + len(outgoing)

    def attend(self, is_over: Callable[[], bool], mine: Callable[[], int], deadline: int | None) -> None:
        """Read here what comes, until something is over; if somebody else does, or there is no connection, or
        the time is over, it may not be when this returns.

        Args:
            mine: the call whose answers are taken in here; all else is left to the client's thread.
        """
        turns = self._turns
        if self._life.is_closed or not turns.begin():
            return
        try:
            while not is_over():
                sock, left = self.sock, remaining_ns(deadline)
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
        with self.lock:
            if self.sock is not sock:
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
                    self.flush()
                    return True
            self._turns.pass_on()
            return True

    # ---- the thread ----------------------------------------------------------------------------------------

    def _open(self, sock: socket.socket) -> None:
        with self.sending():
            self._turns.watch(sock)
            self.sock = sock
            self._decoder = wire.FrameDecoder(wire.RESPONSE_BYTES_MAX)
            self._protocol.connection_made()

    def _drop(self, error: TowpathError | None) -> None:
        if self.sock is not None:
            self._turns.unwatch(self.sock)
            self.sock.close()
            self.sock = None
            while self._arrived:
                with contextlib.suppress(BadDescriptor):
                    wire.received(self._arrived.popleft())  # closes its descriptors
        self._protocol.connection_lost(error)
        self._turns.stir()

    def _run(self) -> None:
        try:
            while not self._life.is_closed:
                error = self._serve()
                with self.lock:
                    if self._protocol.is_ready:
                        self._life.welcomed()
                    self._drop(error)
                    if not self._life.lost(error):
                        self._protocol.end_streams(self._life.over())
                        self._ready.notify_all()
                        break
                self._reconnect()
        finally:
            with self.lock:
                self._life.is_closed = True
            self._turns.close()

    def _serve(self) -> TowpathError | None:
        """Read one connection to its end; return why it ended."""
        sock = self.sock
        if sock is None:
            return None
        while not self._life.is_closed:
            left = remaining_ns(self._protocol.deadline_ns)
            self._turns.sleep_own(None if left == FOREVER else left / 1e9)
            if self._life.is_closed:
                break
            try:
                with self.lock:
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
                raise outcomes.daemon_left()
            size += len(data)
            was_ready = protocol.is_ready
            for frame, owned in self._decoder.feed(data, descriptors):
                protocol.receive(frame, owned, now)
            if protocol.is_ready and not was_ready:
                self._ready.notify_all()
        protocol.expire(now)
        self.flush()
        if broken is not None:
            raise wire.broken(broken)
        return size

    def _reconnect(self) -> None:
        while not self._life.is_closed:
            self._turns.sleep_own(self._life.pauses.next_s())
            if self._life.is_closed:
                return
            try:
                self._open(addresses.open_socket(self._url))
                return
            except (Unavailable, LimitExceeded):
                continue
