"""Which thread reads a client's socket: one that waits for an answer, or else the client's own.

Theory of operation
    To be woken by another thread for what it waits for costs a program more than the answer does. So a
    thread that waits is a *guest*: it sleeps on the socket itself, reads, and takes in its answer; there is
    one at a time. While there is none, the client's own thread reads.

    Whatever else comes a guest leaves to the own thread, to which no signal's handler comes: one that raises
    in the midst of an answer costs who waits for that his answer, which he would not have had otherwise, and
    nobody else anything.

    Nobody is woken for what another one reads: both sleep in an epoll(7) of their own that has the socket
    with EPOLLEXCLUSIVE, and the kernel wakes the first in the order of their coming who sleeps just then: the
    guest, which was registered first, and the own thread where no guest sleeps.

    What the kernel has woken a guest for is told to nobody else. So a guest looks for it after each sleep,
    however that ended; and where it cannot, or has left some, the own thread is sent to look
    (:meth:`Turns.pass_on`). The other way round, a guest sleeps on although the own thread has read its
    answer; so that one wakes the guest for whatever it has read (:meth:`Turns.stir`).

Invariants
    Who sleeps as a guest is woken by data, by the connection's end, or by ``stir``.
    What was read is taken in, in its order, by whoever takes it in.

Not here: reading (``client``).

Sources: epoll_ctl(2); ep_poll_callback in the kernel's fs/eventpoll.c.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from typing import Final

from towpath.errors import host_limits

_EVENTS: Final = select.EPOLLIN | select.EPOLLEXCLUSIVE
_SLEEP_S_MAX: Final = 86_400.0
"""epoll_wait(2) counts milliseconds in 31 bits."""
_LEAVE_S: Final = 5.0
_EVENTFD: Final = os.EFD_NONBLOCK | os.EFD_CLOEXEC


class Turns:
    """One client's.

    Raises:
        LimitExceeded: this process has no descriptors left.
    """

    def __init__(self) -> None:
        with contextlib.ExitStack() as made, host_limits("a client's descriptors"):
            self._guests = made.enter_context(select.epoll())
            self._owns = made.enter_context(select.epoll())
            self._bells = [os.eventfd(0, _EVENTFD)]
            made.callback(os.close, self._bells[0])
            self._bells.append(os.eventfd(0, _EVENTFD))
            made.callback(os.close, self._bells[1])
            self._guests.register(self._bells[0], select.EPOLLIN)
            self._owns.register(self._bells[1], select.EPOLLIN)
            self._made = made.pop_all()
        self._taken = threading.Lock()
        self._guest = 0
        self._is_over = False

    def watch(self, sock: socket.socket) -> None:
        """There is a connection.

        Raises:
            LimitExceeded: the host has no memory for it.
        """
        with host_limits("a client's connection"):
            self._guests.register(sock, _EVENTS)
            self._owns.register(sock, _EVENTS)

    def unwatch(self, sock: socket.socket) -> None:
        """It is about to be closed. Where a forked child has it still, it would stay in the epolls."""
        with contextlib.suppress(OSError):
            self._guests.unregister(sock)
        with contextlib.suppress(OSError):
            self._owns.unregister(sock)
        self.stir()

    # ---- the client's own thread ---------------------------------------------------------------------------

    def sleep_own(self, timeout_s: float | None) -> None:
        """Sleep until there is something to be read, something is to be looked at, or the time is over."""
        _sleep(self._owns, self._bells[1], timeout_s)

    def stir(self) -> None:
        """Have the guest look whether it has what it waits for. From any thread."""
        if self._taken.locked() and not self._is_over:
            os.eventfd_write(self._bells[0], 1)

    # ---- guests --------------------------------------------------------------------------------------------

    def begin(self) -> bool:
        """Become the guest; False: somebody is."""
        if not self._taken.acquire(blocking=False):
            return False
        self._guest = threading.get_ident()
        return True

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread is the guest."""
        return self._taken.locked() and self._guest == threading.get_ident()

    def sleep_guest(self, timeout_s: float | None) -> None:
        """As :meth:`sleep_own`, as the guest."""
        _sleep(self._guests, self._bells[0], timeout_s)

    def pass_on(self) -> None:
        """Have the own thread look whether there is something to be read. From any thread."""
        os.eventfd_write(self._bells[1], 1)

    def end(self) -> None:
        """The guest leaves."""
        self._guest = 0
        self._taken.release()

    # ---- the end -------------------------------------------------------------------------------------------

    def close(self) -> None:
        """There are no guests any more. Waits for the one that there is, which must be about to leave; nobody
        becomes one afterwards. If nobody leaves there is none: a signal's handler raised just as one came or
        went."""
        self.stir()
        self._taken.acquire(timeout=_LEAVE_S)
        self._is_over = True
        self._made.close()


def _sleep(poll: select.epoll, bell: int, timeout_s: float | None) -> None:
    """May return before its time."""
    for number, _ in poll.poll(None if timeout_s is None else min(timeout_s, _SLEEP_S_MAX)):
        if number == bell:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(bell)
