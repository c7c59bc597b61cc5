"""Subscribers of what the core writes itself that may come back: waited for, for so long, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import closing
from typing import Final, Literal

import pytest

from tests.support.deadlines import DEADLINE_S
from towpath import _ring
from towpath_broker.core.ids import CallId, ReaderId, SessionId
from towpath_broker.rings.own_channel import OwnChannel, Publication, Told, WaitingBytes

READER: Final = ReaderId(9)
LONG_MS: Final = 600_000


class Own:
    """A channel of the core's, with one subscriber, which reads nothing."""

    def __init__(
        self, reader: _ring.Reader, *, overflow: Literal["block", "drop"] = "block", stall_ms: int = 0
    ) -> None:
        self.writer = _ring.Writer(7, 4096, overflow=overflow)
        self.writer.attach(READER, reader.share(), 0, -1, "tail")
        self.written = asyncio.Event()
        self.is_stalled = asyncio.Event()
        told = Told(
            written=lambda publication, seq: self.written.set(), stalled=lambda reader: self.is_stalled.set()
        )
        self.channel = OwnChannel(
            "a", self.writer, is_ordered=True, stall_ms_max=stall_ms, told=told, waiting=WaitingBytes()
        )

    def fill(self) -> None:
        """Publish more than the ring holds."""
        payloads = [bytes(500)] * 12
        self.channel.publish(Publication(SessionId(1), CallId(1), "uid:1", payloads, []))

    async def wait_written(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.written.wait()


Case = Callable[[_ring.Reader], Coroutine[None, None, None]]


async def waited_for_until_the_time_is_over(reader: _ring.Reader) -> None:
    own = Own(reader)
    own.fill()
    own.channel.reader_gone(READER, 1)
    assert own.writer.readers() == [READER] and not own.written.is_set()
    await own.wait_written()
    assert own.writer.readers() == []


async def not_longer_than_others_may_stall(reader: _ring.Reader) -> None:
    own = Own(reader, stall_ms=1)
    own.channel.reader_gone(READER, LONG_MS)
    own.fill()
    await own.wait_written()
    assert not own.is_stalled.is_set(), "the core is not asked to part from one that it does not know"


async def back_again_it_is_as_any(reader: _ring.Reader) -> None:
    own = Own(reader, stall_ms=1)
    own.channel.reader_gone(READER, LONG_MS)
    own.channel.reader_came(READER)
    own.fill()
    async with asyncio.timeout(DEADLINE_S):
        await own.is_stalled.wait()
    assert own.writer.readers() == [READER]
    own.channel.reader_gone(READER, 0)
    await own.wait_written()


async def not_where_nobody_is_waited_for(reader: _ring.Reader) -> None:
    own = Own(reader, overflow="drop")
    own.channel.reader_gone(READER, LONG_MS)
    assert own.writer.readers() == []


@pytest.mark.parametrize(
    "case",
    [
        waited_for_until_the_time_is_over,
        not_longer_than_others_may_stall,
        back_again_it_is_as_any,
        not_where_nobody_is_waited_for,
    ],
    ids=lambda case: case.__name__,
)
def test_one_that_may_come_back_is(case: Case) -> None:
    with closing(_ring.Reader(READER)) as reader:
        asyncio.run(case(reader))
