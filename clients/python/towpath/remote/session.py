"""A session with a gateway: one connection at a time, made anew when it breaks.

Theory of operation
    ``open`` connects once, and raises what hinders it. From then on a task waits for the connection's end,
    and makes the next with growing pauses between attempts. Whoever needs a connection awaits ``ready``.

Invariants
    ``connection`` is the one that works, or None. After ``close`` everything raises ConnectionLost.

Not here: what is done on a connection (``aio``).
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final, TypeVar

from towpath.addresses import RemoteAddress
from towpath.calls import Call
from towpath.errors import ConnectionLost, NotSupported, TowpathError, Unavailable, VersionMismatch
from towpath.remote.ports import Carrier, Connection
from towpath.waiting import CALL_TIMEOUT_S, Pauses, deadline_ns, seconds

T = TypeVar("T")

ATTEMPT_S: Final = 10.0
"""How long one attempt to connect again may take."""


def make_carrier(address: RemoteAddress, name: str) -> Carrier:
    """Return the way to an address.

    Raises:
        NotSupported: the package that it needs is not installed.
    """
    try:
        if address.carrier == "grpc":
            from towpath.remote.grpc import GrpcCarrier

            return GrpcCarrier(address.target)
        from towpath.remote.zeromq import ZeroMQCarrier

        return ZeroMQCarrier(address.target, name)
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in ("grpc", "zmq"):
            raise
        raise NotSupported(
            f"{address.url}: the package {error.name} is not installed",
            hint=f"pip install 'towpath[{address.carrier}]'",
        ) from None


def unreachable() -> Unavailable:
    """There is no connection, and the time to wait for one is over."""
    return Unavailable(
        "there is no connection to the gateway",
        hint="it is tried again and again; on its own host towpath status shows whether it runs",
    )


class Session:
    """See the module's docstring.

    Args:
        carrier: the way.
    """

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._ready = asyncio.Event()
        self._failed: TowpathError | None = None
        self._keeping: asyncio.Task[None] | None = None
        self.connection: Connection | None = None

    @property
    def message_bytes_max(self) -> int:
        """What the carrier can publish at most."""
        return self._carrier.message_bytes_max

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection that works, as far as is known."""
        return self.connection is not None and not self.connection.is_lost

    @property
    def ended(self) -> TowpathError | None:
        """Why there will be no connection any more, or None."""
        return self._failed

    async def open(self, timeout_s: float | None) -> None:
        """Connect, and keep the connection up from then on.

        Raises:
            Unavailable: nobody answers.
            TowpathError: who answers refuses.
        """
        self._connected(await self._carrier.open(timeout_s))
        self._keeping = asyncio.create_task(self._keep(), name="towpath-session")

    async def close(self) -> None:
        """End it. More than once is fine."""
        self._end(ConnectionLost("the client is closed", hint=""))
        keeping, self._keeping = self._keeping, None
        if keeping is not None:
            keeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeping
        connection, self.connection = self.connection, None
        if connection is not None:
            await connection.close()

    async def ready(self, deadline: int | None = None) -> Connection:
        """Wait for a connection.

        Raises:
            Unavailable: there is none in time.
            TowpathError: there will be none any more.
        """
        try:
            async with asyncio.timeout(seconds(deadline)):
                while not self.is_connected and self._failed is None:
                    self._ready.clear()
                    await self._ready.wait()
        except TimeoutError:
            raise unreachable() from None
        if self._failed is not None:
            raise self._failed.again()
        assert self.connection is not None
        return self.connection

    async def ask(self, call: Call[T], deadline: int | None = None) -> T:
        """Carry out a registry call; see :meth:`Connection.ask`."""
        deadline = deadline_ns(CALL_TIMEOUT_S) if deadline is None else deadline
        connection = await self.ready(deadline)
        return await connection.ask(call, seconds(deadline))

    def _connected(self, connection: Connection) -> None:
        self.connection = connection
        self._ready.set()

    def _end(self, error: TowpathError) -> None:
        if self._failed is None:
            self._failed = error
            self._ready.set()

    async def _keep(self) -> None:
        while self.connection is not None:
            connection = self.connection
            await connection.wait_lost()
            self.connection = None
            await connection.close()
            await self._connect_again()

    async def _connect_again(self) -> None:
        pauses = Pauses()
        while self.connection is None and self._failed is None:
            await asyncio.sleep(pauses.next_s())
            try:
                self._connected(await self._carrier.open(ATTEMPT_S))
            except VersionMismatch as error:
                self._end(error)
            except TowpathError:
                continue
