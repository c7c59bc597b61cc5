"""What a peer said before it left is taken in, whatever tells first that it has left."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Self

import pytest

from tests.support.deadlines import DEADLINE_S
from towpath import wire
from towpath.errors import ConnectionLost, TowpathError
from towpath.transport import LAST_READS_MAX, FrameTransport
from towpath.v1.frame_pb2 import Frame


def _frame(number: int) -> bytes:
    frame = Frame(id=number)
    frame.cancel.SetInParent()
    return wire.encode(frame)


class _Side:
    """One side of a connection, and its peer, which is a plain socket."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        self.heard: list[int] = []
        self.ended: asyncio.Future[TowpathError | None] = asyncio.get_running_loop().create_future()
        self.on_frame: Callable[[Frame], object] = lambda _: None
        self.transport = FrameTransport(
            ours,
            frame_bytes_max=1 << 16,
            outbox_bytes_max=1 << 16,
            on_frame=self._heard,
            on_closed=self.ended.set_result,
        )

    def _heard(self, frame: Frame, _: list[wire.Descriptor]) -> None:
        self.heard.append(frame.id)
        self.on_frame(frame)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.peer.close()

    async def end(self) -> TowpathError | None:
        async with asyncio.timeout(DEADLINE_S):
            return await self.ended


def test_it_has_closed_and_what_is_sent_to_it_finds_out_first() -> None:
    async def main() -> None:
        with _Side() as side:
            side.peer.sendall(_frame(1) + _frame(2))
            side.peer.close()
            side.transport.send(Frame(id=9))
            side.transport.send(Frame(id=10))
            assert not side.transport.is_closed
            assert isinstance(await side.end(), ConnectionLost)
            assert side.heard == [1, 2]
            assert side.transport.is_closed

    asyncio.run(main())


def test_it_has_ended_and_somebody_else_has_its_socket_open() -> None:
    async def main() -> None:
        with _Side() as side:
            side.peer.sendall(_frame(1))
            gone = ConnectionLost("its process ended")
            side.transport.leave(gone)
            side.transport.leave(ConnectionLost("and once more"))
            assert await side.end() is gone
            assert side.heard == [1]
            assert side.peer.recv(1) == b""  # and nothing is left open for that one

    asyncio.run(main())


def test_it_asks_for_nothing_more_where_it_is_not_read() -> None:
    async def main() -> None:
        with _Side() as side:
            side.transport.pause_reading()
            side.peer.sendall(_frame(1))
            side.transport.leave(ConnectionLost("its process ended"))
            await side.end()
            assert side.heard == []

    asyncio.run(main())


@pytest.mark.parametrize("hears", [True, False], ids=["hears", "is deaf"])
def test_somebody_who_goes_on_talking_is_not_listened_to_for_ever(hears: bool) -> None:
    async def main() -> None:
        with _Side() as side:
            side.on_frame = lambda frame: side.peer.sendall(_frame(frame.id + 1))
            if not hears:
                side.peer.shutdown(socket.SHUT_RD)
            side.peer.sendall(_frame(1))
            side.transport.leave(ConnectionLost("its process ended"))
            await side.end()
            assert 0 < len(side.heard) <= LAST_READS_MAX

    asyncio.run(main())
