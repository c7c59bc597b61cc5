"""A ZeroMQ socket on an asyncio loop: its descriptor watched, its messages handled in synchronous bursts.

Theory of operation
    libzmq gives a descriptor (``ZMQ_FD``) that becomes readable when the socket's state *may* have changed,
    and stays silent about changes that a later call already took in. So the rule of zmq_getsockopt(3) is
    kept: after the descriptor stirs, and after every burst of sends or receives, ``ZMQ_EVENTS`` is asked
    again. pyzmq's asyncio sockets keep it too, at the price of a future per message; here a burst of any
    length costs one callback.

    The handler receives without blocking until nothing is left or its share is used up; while ``POLLIN``
    remains it is called again on the loop's next round, so that several sockets take turns. A handler that
    cannot take more sets ``is_paused``.

    Whoever could not send (a full queue) awaits :meth:`Endpoint.retry`: the peer's I/O thread tells the
    socket when it has made room, and that stirs the same descriptor. Where several wait, one's attempt may
    take in what was meant for another; therefore each also tries by itself, after pauses that grow from
    ``_RETRY_FIRST_S`` to ``_RETRY_LAST_S``.

Invariants
    Used from the loop's thread only. No timer runs unless someone waits.

Source: zmq_getsockopt(3), ZMQ_FD and ZMQ_EVENTS.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket as sockets
import stat
from collections.abc import Callable
from typing import Final

import zmq

from towpath.errors import InvalidConfiguration, Unavailable
from towpath_broker.gateways.zeromq.settings import check_endpoint

HANDSHAKE_MS: Final = 10_000
"""A connection that has not said by then what it is, is closed."""

_RETRY_FIRST_S: Final = 0.01
_RETRY_LAST_S: Final = 1.0


class Endpoint:
    """One listening socket.

    Args:
        context: libzmq's.
        kind: ``zmq.XPUB``, ``zmq.PULL``, ``zmq.ROUTER``.
        on_readable: receives what is there, a bounded share of it.
        heartbeat_ms: a peer is pinged this often, and given up after three intervals of silence; 0 for never.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: int,
        on_readable: Callable[[], None],
        *,
        heartbeat_ms: int,
    ) -> None:
        self.socket: zmq.Socket[bytes] = context.socket(kind)
        # With a domain and no handler for it libzmq (4.3) takes peers of ZMTP 3 as before and refuses older
        # ones. Under ZMTP 1 nearly any bytes are messages: a stray HTTP request would be a subscription.
        self.socket.setsockopt(zmq.ZAP_DOMAIN, b"towpath")
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        if heartbeat_ms:
            self.socket.setsockopt(zmq.HEARTBEAT_IVL, heartbeat_ms)
            self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * heartbeat_ms)
        self.is_paused = False
        self._on_readable = on_readable
        self._loop = asyncio.get_running_loop()
        self._bound = ""
        self._is_scheduled = False
        self._waiters: list[asyncio.Future[None]] = []
        self._fd = int(self.socket.FD)

    def bind(self, name: str, text: str) -> str:
        """Listen, and begin to call the handler.

        Args:
            name: the setting: ``sub``.
            text: its value.

        Returns:
            The address with the port as bound.

        Raises:
            InvalidConfiguration: the address cannot be used, ever.
            Unavailable: it is in use; another attempt may succeed.
        """
        address = check_endpoint(name, text)
        self.socket.setsockopt(zmq.IPV6, "[" in address)
        is_ipc = address.startswith("ipc://")
        if is_ipc:
            _check_socket_path(name, address.removeprefix("ipc://"))
        # Whoever may open the socket's file may use it: nobody but our own uid, until it is changed by hand.
        mask = os.umask(0o177) if is_ipc else None
        try:
            self.socket.bind(address)
        except zmq.ZMQError as error:
            message = f"[zeromq] {name}: cannot listen on {address}: {error.strerror}"
            if error.errno == zmq.EADDRINUSE:
                raise Unavailable(message, hint="another program has it; port 0 takes a free one") from None
            raise InvalidConfiguration(message) from None
        finally:
            if mask is not None:
                os.umask(mask)
        self._loop.add_reader(self._fd, self._stir)
        self.touch()
        self._bound = str(self.socket.get_string(zmq.LAST_ENDPOINT))
        return self._bound

    def stop_accepting(self) -> None:
        """Take no new connections; those that there are go on."""
        self.socket.unbind(self._bound)

    def touch(self) -> None:
        """Ask the socket, on the loop's next round, for what calls of the current burst may have taken in.
        Idempotent."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._touched)

    def resume(self) -> None:
        """Let the handler take messages again, unless the endpoint is closed."""
        self.is_paused = self.socket.closed
        self.touch()

    async def retry(self, attempt: Callable[[], bool], timeout_s: float | None) -> bool:
        """Do again what a full queue did not allow, until it is done.

        Args:
            attempt: sends without blocking; returns whether it did.
            timeout_s: give up after so long; None for never.

        Returns:
            Whether it was done.
        """
        deadline = None if timeout_s is None else self._loop.time() + timeout_s
        pause_s = _RETRY_FIRST_S
        while True:
            left_s = pause_s if deadline is None else min(pause_s, deadline - self._loop.time())
            if left_s <= 0:
                return False
            await self._wait_stirred(left_s)
            if attempt():
                self.touch()
                return True
            pause_s = min(2 * pause_s, _RETRY_LAST_S)

    async def _wait_stirred(self, timeout_s: float) -> None:
        waiter = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, _set_done, waiter)
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            with contextlib.suppress(ValueError):
                self._waiters.remove(waiter)

    def close(self, linger_ms: int) -> None:
        """Stop listening; what is queued for peers has ``linger_ms`` to leave once the context is
        terminated."""
        self._loop.remove_reader(self._fd)
        self.is_paused = True
        self.socket.close(linger=linger_ms)

    def _touched(self) -> None:
        self._is_scheduled = False
        self._stir()

    def _stir(self) -> None:
        if self.socket.closed:
            return
        events = int(self.socket.get(zmq.EVENTS))
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            _set_done(waiter)
        if events & zmq.POLLIN and not self.is_paused:
            self._on_readable()
            # The handler may have stopped at its share, and its calls may have taken in what would have
            # stirred us.
            self.touch()


def _set_done(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _check_socket_path(name: str, path: str) -> None:
    """Refuse a path that libzmq would unlink although it is not a dead socket."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if not os.path.isdir(os.path.dirname(path)):
            raise InvalidConfiguration(
                f"[zeromq] {name}: there is no directory {os.path.dirname(path)}"
            ) from None
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidConfiguration(f"[zeromq] {name}: {path} exists and is not a socket")
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
            probe.connect(path)
            raise Unavailable(f"[zeromq] {name}: another program listens on {path}")
