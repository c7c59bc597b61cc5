"""A session for a few calls: no thread, no ring, no reconnection. What ``towpath pub NAME x`` needs.

Theory of operation
    The whole client keeps a thread to hear of who comes and goes. A program that says one thing and leaves
    has nothing to hear: it sends a request, waits for its answer in the caller's thread, and goes. What it
    publishes travels in the request; the core writes it into a ring of its own, where it stays for the
    subscribers when this process is gone.

Not here: anything that lasts (``client``).
"""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable
from typing import Final, TypeVar

from towpath import addresses, calls, wire
from towpath._version import __version__
from towpath.errors import Cancelled, ConnectionLost, Timeout, TowpathError
from towpath.protocol import ClientProtocol
from towpath.sync.api import Handle
from towpath.v1.frame_pb2 import Frame
from towpath.waiting import FOREVER, deadline_ns, program_name, remaining_ns

T = TypeVar("T")
Condition = Callable[[], bool]

CANCEL_TIMEOUT_S: Final = 5.0
"""How long to wait, after a timeout, for the daemon to say how far it came."""


class BriefClient(Handle):
    """One connection, used by one thread, for one call at a time.

    Args:
        url: as for ``towpath.connect``: None, a path, or ``unix:/path``.
        timeout: seconds to wait for the daemon's welcome; None for ever.
        name: what ``towpath status`` calls the session; the program's name unless given.

    Raises:
        Unavailable: no daemon answers.
        Timeout: it does not say welcome in time.
    """

    def __init__(self, url: str | None, *, timeout: float | None = 5.0, name: str = "") -> None:
        self._protocol = ClientProtocol(name=program_name(name), software=f"towpath-python/{__version__}")
        self._decoder = wire.FrameDecoder(wire.RESPONSE_BYTES_MAX)
        self._sock = addresses.open_socket(url)
        try:
            self._protocol.connection_made()
            self._send()
            self._wait(lambda: self._protocol.is_ready, deadline_ns(timeout))
        except BaseException:
            self.close()
            raise

    def call(self, call: calls.Call[T], timeout: float | None) -> T:
        """Ask, and return the answer.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            Timeout: there was none in time, and the call was withdrawn; or it was answered meanwhile, and
                that is returned.
            ConnectionLost: it is not known whether it was carried out.
            TowpathError: what the daemon refused with.
        """
        answers: list[Frame | TowpathError] = []
        call_id = self._protocol.call(call, answers.append)
        self._send()
        try:
            self._wait(lambda: bool(answers), deadline_ns(timeout))
        except Timeout:
            self._withdraw(call_id, answers)
        answer = answers[0]
        if isinstance(answer, TowpathError):
            raise answer
        try:
            return call.result(answer)
        except Cancelled as error:
            raise Timeout(error.message, hint=error.hint) from None

    def _withdraw(self, call_id: int, answers: list[Frame | TowpathError]) -> None:
        """Ask that the call be given up; its answer says what became of it."""
        frame = Frame(id=call_id)
        frame.cancel.SetInParent()
        self._sock.sendall(wire.encode(frame))
        self._wait(lambda: bool(answers), deadline_ns(CANCEL_TIMEOUT_S))

    def _send(self) -> None:
        for frame, _ in self._protocol.take_outgoing():
            try:
                self._sock.sendall(wire.encode(frame))
            except OSError as error:
                raise ConnectionLost(f"the connection broke: {error.strerror}") from None

    def _wait(self, condition: Condition, deadline: int | None) -> None:
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        while not condition():
            left = remaining_ns(deadline)
            if not poller.poll(None if left == FOREVER else left / 1e6):
                raise Timeout("the daemon did not answer in time")
            with contextlib.suppress(BlockingIOError):
                data, descriptors = wire.receive(self._sock)
                if not data:
                    raise ConnectionLost("the daemon closed the connection")
                for frame, owned in self._decoder.feed(data, descriptors):
                    self._protocol.receive(frame, owned, 0)

    def close(self) -> None:
        """End the session. More than once is fine."""
        self._sock.close()
