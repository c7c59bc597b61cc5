"""What every mechanism is to the harness: a link that sends, receives, pings and echoes, each in a process of
its own.

Theory of operation
    A subclass is a mechanism; an instance is one measurement's link. It is made in the harness, before the
    processes are forked, so what it makes there (names, pipes, queues) all of them have. ``Blocking`` and
    ``Looping`` do everything from two openers, the way a program would: a function that sends one payload and
    one that returns the next. A mechanism whose users do it otherwise (batches) overrides ``send`` or
    ``receive``.

    A round trip uses two links, there and ``back``; each side opens its reader first.

Not here: processes and figures (``crew``).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import ClassVar, Final, Literal

from tests.bench.load import END, Load, Pattern, Role
from tests.bench.site import Site

Family = Literal["towpath", "local", "peers"]
Send = Callable[[bytes], object]
Receive = Callable[[], bytes]
SendAsync = Callable[[bytes], Awaitable[object]]
ReceiveAsync = Callable[[], Awaitable[bytes]]
ALL: Final[tuple[Pattern, ...]] = ("one-way", "fan-out", "round trip")

_serials = itertools.count(1)


class Link:
    """One measurement's link.

    Attributes:
        name: as the tables call the mechanism.
        family: ``towpath``, ``local`` (nothing but the host and the standard library) or ``peers``.
        module: what must be importable, beside the standard library; empty for nothing.
        patterns: what it can do.
        needs: what of the site it uses; brought up before the processes are forked.
        has_credit: it has no back-pressure of its own.
        end: the payload that says that no more come.
    """

    name: ClassVar[str]
    family: ClassVar[Family]
    module: ClassVar[str] = ""
    patterns: ClassVar[tuple[Pattern, ...]] = ALL
    needs: ClassVar[tuple[str, ...]] = ()
    has_credit: ClassVar[bool] = False

    def __init__(self, site: Site, load: Load) -> None:
        for name in self.needs:
            getattr(site, name)
        self.site = site
        self.load = load
        self.end = END
        self.word = f"bench{next(_serials)}"

    @classmethod
    def obstacle(cls, site: Site, load: Load) -> str:
        """Why this mechanism cannot carry this load here; empty when it can."""
        return ""

    def send(self, role: Role) -> None:
        """The sender's process."""
        raise NotImplementedError

    def receive(self, role: Role, index: int) -> None:
        """The process of receiver ``index``."""
        raise NotImplementedError

    def ping(self, role: Role) -> None:
        """The process that times round trips."""
        raise NotImplementedError

    def echo(self, role: Role) -> None:
        """The process that sends everything back, until END."""
        raise NotImplementedError

    def remove(self) -> None:
        """Remove what was made in the harness."""


class Blocking(Link):
    """A mechanism whose calls wait in the caller's thread."""

    needs_probe: ClassVar[bool] = False

    def __init__(self, site: Site, load: Load, *, is_back: bool = False) -> None:
        super().__init__(site, load)
        self.back = (
            type(self)(site, load, is_back=True) if load.pattern == "round trip" and not is_back else self
        )
        self.make()

    def make(self) -> None:
        """Make what both ends need, in the harness."""

    def unmake(self) -> None:
        """Remove it."""

    def writer(self) -> AbstractContextManager[Send]:
        """Open the sending end."""
        raise NotImplementedError

    def reader(self, index: int) -> AbstractContextManager[Receive]:
        """Open a receiving end."""
        raise NotImplementedError

    def remove(self) -> None:
        self.unmake()
        if self.back is not self:
            self.back.unmake()

    def send(self, role: Role) -> None:
        with self.writer() as send:
            if self.needs_probe:
                role.probe(send)
            role.wait_go()
            for payloads in role.rounds(has_credit=self.has_credit):
                for payload in payloads:
                    send(payload)
            send(self.end)
            role.wait_finish()

    def receive(self, role: Role, index: int) -> None:
        with self.reader(index) as receive:
            if self.needs_probe:
                role.await_probe(receive)
            role.wait_go()
            role.consume(receive, self.end, has_credit=self.has_credit)
            role.wait_finish()

    def ping(self, role: Role) -> None:
        with self.back.reader(0) as receive, self.writer() as send:
            role.wait_go()
            if self.needs_probe:
                role.probe_back(send, receive)

            def trip(payload: bytes) -> None:
                send(payload)
                receive()

            role.time_round_trips(trip)
            send(self.end)
            role.wait_finish()

    def echo(self, role: Role) -> None:
        with self.reader(0) as receive, self.back.writer() as send:
            role.wait_go()
            for payload in iter(receive, self.end):
                send(payload)
            role.tell(echoed=True)
            role.wait_finish()


class Looping(Link):
    """A mechanism that lives on an event loop."""

    def __init__(self, site: Site, load: Load, *, is_back: bool = False) -> None:
        super().__init__(site, load)
        self.back = (
            type(self)(site, load, is_back=True) if load.pattern == "round trip" and not is_back else self
        )

    def writer(self) -> AbstractAsyncContextManager[SendAsync]:
        """Open the sending end."""
        raise NotImplementedError

    def reader(self) -> AbstractAsyncContextManager[ReceiveAsync]:
        """Open a receiving end."""
        raise NotImplementedError

    def send(self, role: Role) -> None:
        asyncio.run(self._send(role))

    def receive(self, role: Role, index: int) -> None:
        asyncio.run(self._receive(role))

    def ping(self, role: Role) -> None:
        asyncio.run(self._ping(role))

    def echo(self, role: Role) -> None:
        asyncio.run(self._echo(role))

    async def _send(self, role: Role) -> None:
        async with self.writer() as send:
            await role.wait_go_async()
            began_ns = time.monotonic_ns()
            while payloads := await role.next_round(began_ns, has_credit=self.has_credit):
                for payload in payloads:
                    await send(payload)
            await send(self.end)
            await role.wait_finish_async()

    async def _receive(self, role: Role) -> None:
        async with self.reader() as receive:
            await role.wait_go_async()
            await role.consume_async(receive, has_credit=self.has_credit)
            await role.wait_finish_async()

    async def _ping(self, role: Role) -> None:
        async with self.back.reader() as receive, self.writer() as send:
            await role.wait_go_async()

            async def trip(payload: bytes) -> None:
                await send(payload)
                await receive()

            await role.time_round_trips_async(trip)
            await send(self.end)
            await role.wait_finish_async()

    async def _echo(self, role: Role) -> None:
        async with self.reader() as receive, self.back.writer() as send:
            await role.wait_go_async()
            while payload := await receive():
                await send(payload)
            role.tell(echoed=True)
            await role.wait_finish_async()
