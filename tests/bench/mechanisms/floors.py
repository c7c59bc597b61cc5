"""The least that a round trip can cost: a futex between C processes, the ring between them, a bare asyncio
Protocol.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from typing import Final

from tests.bench.load import WARM_UPS, Load, Role
from tests.bench.mechanisms.link import Link
from tests.bench.site import Site, program


class Futex(Link):
    """Two C processes and one shared word each way, FUTEX_WAIT and FUTEX_WAKE, no spinning."""

    name = "C futex"
    needs = ("futex_program",)
    family = "local"
    patterns = ("round trip",)

    @classmethod
    def obstacle(cls, site: Site, load: Load) -> str:
        if load.size_bytes != 64:
            return "it carries no payload"
        return "" if program("gcc") else "no gcc"

    @property
    def _program(self) -> str:
        return self.site.futex_program

    def ping(self, role: Role) -> None:
        role.wait_go()
        load = self.load
        done = subprocess.run(
            [self._program, *map(str, (load.run_ns, load.pause_ns, self.site.core(1)))],
            capture_output=True,
            check=True,
        )
        role.tell(**json.loads(done.stdout))
        role.wait_finish()

    def echo(self, role: Role) -> None:
        role.wait_go()
        role.tell(echoed=True)
        role.wait_finish()


class Ring(Futex):
    """The ring that Python programs use, between two C processes: what is left without Python."""

    name = "C ring"
    needs = ("ring_program",)

    @classmethod
    def obstacle(cls, site: Site, load: Load) -> str:
        if load.size_bytes != 64:
            return "it carries 64 B alone"
        return super().obstacle(site, load)

    @property
    def _program(self) -> str:
        return self.site.ring_program


class _Echoing(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class _Awaiting(asyncio.Protocol):
    def __init__(self) -> None:
        self.answer: asyncio.Future[None] | None = None
        self.left = 0

    def data_received(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left <= 0 and self.answer is not None and not self.answer.done():
            self.answer.set_result(None)


class ProtocolEcho(Link):
    """A bare asyncio UNIX-socket ``Protocol`` that echoes; the other side awaits a future for each answer."""

    name = "asyncio Protocol echo"
    family = "local"
    patterns = ("round trip",)

    @property
    def _path(self) -> str:
        return str(self.site.directory / self.word)

    def ping(self, role: Role) -> None:
        asyncio.run(self._ping(role))

    def echo(self, role: Role) -> None:
        asyncio.run(self._echo(role))

    async def _ping(self, role: Role) -> None:
        await role.wait_go_async()
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_unix_connection(_Awaiting, self._path)

        async def trip(payload: bytes) -> None:
            answer = protocol.answer = loop.create_future()
            protocol.left = len(payload)
            transport.write(payload)
            await answer

        await role.time_round_trips_async(trip)
        transport.close()
        await role.wait_finish_async()

    async def _echo(self, role: Role) -> None:
        server = await asyncio.get_running_loop().create_unix_server(_Echoing, self._path)
        await role.wait_go_async()
        role.tell(echoed=True)
        await role.wait_finish_async()
        server.close()


class ProtocolCallbacks(ProtocolEcho):
    """The same with nobody awaiting anything: the next ping leaves from ``data_received``."""

    name = "asyncio Protocol echo, callbacks only"

    @classmethod
    def obstacle(cls, site: Site, load: Load) -> str:
        return "a pause needs somebody who waits" if load.pause_ns else ""

    async def _ping(self, role: Role) -> None:
        await role.wait_go_async()
        loop = asyncio.get_running_loop()
        over: asyncio.Future[list[int]] = loop.create_future()
        transport, _ = await loop.create_unix_connection(lambda: _Pinging(role, over), self._path)
        role.report_times((await over)[WARM_UPS:])
        transport.close()
        await role.wait_finish_async()


class _Pinging(asyncio.Protocol):
    def __init__(self, role: Role, over: asyncio.Future[list[int]]) -> None:
        self._clock, self._over = time.perf_counter_ns, over
        self._payload, self._left = role.payloads[0], 0
        self._times: list[int] = []
        self._end_ns = self._clock() + role.load.run_ns

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ping()

    def _ping(self) -> None:
        self._left = len(self._payload)
        self._began_ns = self._clock()
        self._transport.write(self._payload)

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left:
            return
        now_ns = self._clock()
        self._times.append(now_ns - self._began_ns)
        if now_ns < self._end_ns or len(self._times) <= 2 * WARM_UPS:
            self._ping()
        elif not self._over.done():
            self._over.set_result(self._times)


MECHANISMS: Final = (Futex, Ring, ProtocolEcho, ProtocolCallbacks)
