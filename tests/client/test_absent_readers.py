"""Readers that may come back: waited for, for so long, and no longer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Final, Literal

import pytest

from tests.ring.ring_helpers import fill
from tests.support.deadlines import DEADLINE_S
from towpath import _ring, ends, wire
from towpath.ends import SourceState
from towpath.model import ChannelInfo
from towpath.pairing import Pairing
from towpath.v1 import frame_pb2
from towpath.v1.frame_pb2 import Frame
from towpath.waiting import FOREVER

SOURCE: Final = 7
READER: Final = 9
RETURN_MS: Final = 5_000
MS: Final = 1_000_000


class Clock:
    """Stands for the module that ends look at the time with."""

    now_ns = 1 << 40

    def monotonic_ns(self) -> int:
        return self.now_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ends, "time", clock)
    return clock


@pytest.fixture
def reader() -> Iterator[_ring.Reader]:
    with closing(_ring.Reader(READER)) as reader:
        yield reader


class Publisher:
    """A publisher, and what the core tells it of its one reader, which reads nothing."""

    def __init__(
        self, reader: _ring.Reader, *, overflow: Literal["block", "drop"] = "block", stall_ms: int = 0
    ) -> None:
        info = ChannelInfo(
            name="a", kind="topic", durable=False, overflow=overflow, ring_bytes=65536, owner="",
            publishers=0, subscribers=0, bindings=0, declared_at_ns=0, stall_ms_max=stall_ms,
        )  # fmt: skip
        self.reader = reader
        self.state = SourceState(info, SOURCE, "")
        self.pairing = Pairing(lambda call: None)
        self.pairing.sources[SOURCE] = self.state
        self.added()

    def added(self) -> None:
        notice = frame_pb2.ReaderAdded(source=SOURCE, reader=READER, slot=0)
        self.pairing.notice(Frame(reader_added=notice), [wire.Descriptor(self.reader.share())])

    def gone(self, return_ms: int) -> None:
        notice = frame_pb2.ReaderGone(source=SOURCE, reader=READER, return_ms=return_ms)
        self.pairing.notice(Frame(reader_gone=notice), [])

    @property
    def is_waiting(self) -> bool:
        return self.state.writer.readers() == [READER]


def test_who_may_come_back_is_waited_for_until_the_time_is_over(clock: Clock, reader: _ring.Reader) -> None:
    publisher = Publisher(reader)
    assert publisher.state.look_ns == FOREVER
    publisher.gone(RETURN_MS)
    assert fill(publisher.state.writer) > 0 and publisher.is_waiting
    assert publisher.state.look_ns == ends.LOOK_NS_MAX  # somebody must see that the time is over
    clock.now_ns += RETURN_MS * MS - 1
    assert publisher.state.stalled_reader() is None and publisher.is_waiting
    clock.now_ns += 1
    assert publisher.state.stalled_reader() is None and not publisher.is_waiting
    assert publisher.state.writer.try_publish(bytes(1000)) > 0
    assert publisher.state.look_ns == FOREVER


def test_who_comes_back_is_a_reader_as_any(clock: Clock, reader: _ring.Reader) -> None:
    publisher = Publisher(reader)
    publisher.gone(RETURN_MS)
    publisher.added()
    clock.now_ns += RETURN_MS * MS
    assert publisher.state.stalled_reader() is None and publisher.is_waiting
    publisher.gone(0)
    assert not publisher.is_waiting


def test_who_is_gone_for_good_after_all_is_not_waited_for(clock: Clock, reader: _ring.Reader) -> None:
    publisher = Publisher(reader)
    publisher.gone(RETURN_MS)
    publisher.gone(0)
    assert not publisher.is_waiting and not publisher.state.absent


def test_where_nobody_is_waited_for_nobody_is(clock: Clock, reader: _ring.Reader) -> None:
    publisher = Publisher(reader, overflow="drop")
    publisher.gone(RETURN_MS)
    assert not publisher.is_waiting and not publisher.state.absent


def test_who_is_absent_stalls_no_longer_than_others(clock: Clock, reader: _ring.Reader) -> None:
    """Its page does not move; the core is not asked to part from one that it does not know."""
    publisher = Publisher(reader, stall_ms=1)
    publisher.gone(RETURN_MS)
    fill(publisher.state.writer)
    deadline = time.monotonic() + DEADLINE_S
    while publisher.is_waiting:
        publisher.state.writer.wait_room(1000, MS)
        assert publisher.state.stalled_reader() is None
        assert time.monotonic() < deadline
    assert not publisher.state.absent
