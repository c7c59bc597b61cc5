"""Connections that say nothing: closed when their time to say hello is over, and bounded in number."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from tests.door.raw import last_frame
from towpath import _ring
from towpath.errors import Code
from towpath.v1.frame_pb2 import Frame
from towpath_broker.core.effects import StatusTold
from towpath_broker.core.locks.limits import LockLimits
from towpath_broker.core.locks.machine import LockMachine
from towpath_broker.core.machine import Machine
from towpath_broker.engine import Engine
from towpath_broker.journal.memory import MemoryJournal
from towpath_broker.local import connection, door
from towpath_broker.local.credentials import Admins
from towpath_broker.local.tokens import KEY_BYTES, ResumeTokens
from towpath_broker.lock_engine import LockEngine
from towpath_broker.ports import WallClock
from towpath_broker.rings.kept import Keeper


class InProcess:
    """A door with an engine behind it, on the test's own loop."""

    def __init__(self, path: Path) -> None:
        self.engine = Engine(Machine(), MemoryJournal(), WallClock(), lambda effect: self.door.emit(effect))
        self.door = door.Door(
            submit=self.engine.submit,
            submit_data=lambda command: None,
            locks=LockEngine(
                LockMachine(),
                MemoryJournal(),
                WallClock(),
                lambda effect: self.door.locks.emit(effect),
                LockLimits(),
            ),
            has_data=lambda name: False,
            contents_of=lambda name: None,
            table=_ring.GenerationTable(16),
            admins=Admins(""),
            status_frame=self._no_status,
            gateway_report=lambda name, report: None,
            warn=lambda message: None,
            tokens=ResumeTokens(b"k" * KEY_BYTES),
            software="test",
            keeper=Keeper(lambda name, descriptor: False, lambda name: None),
        )
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(64)

    @staticmethod
    def _no_status(call: int, told: StatusTold) -> Frame:
        return Frame(id=call)

    async def __aenter__(self) -> InProcess:
        await self.engine.recover()
        self._running = asyncio.create_task(self.engine.run())
        self.door.listen(self.listener)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.door.close()
        self.engine.stop()
        await self._running
        self.listener.close()


async def last_code(path: Path) -> Code:
    """Connect, say nothing, and return the code of the daemon's last words."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    said = await reader.read()
    writer.close()
    return Code(last_frame(said).error.code)


def test_nothing_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HELLO_TIMEOUT_S", 0.05)

    async def silent() -> None:
        path = tmp_path / "door.sock"
        async with InProcess(path):
            assert await last_code(path) == Code.TIMEOUT

    asyncio.run(silent())


def test_the_oldest_of_too_many_silent_connections_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "UNWELCOMED_MAX", 3)

    async def crowd() -> None:
        path = tmp_path / "door.sock"
        async with InProcess(path):
            oldest = asyncio.create_task(last_code(path))
            await asyncio.sleep(0)
            others = []
            while not oldest.done():
                others.append(await asyncio.open_unix_connection(str(path)))
                await asyncio.sleep(0)
                assert len(others) < 100
            assert await oldest == Code.LIMIT_EXCEEDED
            for _, writer in others:
                writer.close()

    asyncio.run(crowd())
