"""Publishers of a channel in total order that are away, with real rings: none of their messages is lost or
taken twice, and none is waited for without end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.support.deadlines import DEADLINE_S
from towpath import _ring
from towpath_broker.core.ids import SourceId
from towpath_broker.rings import intake as module
from towpath_broker.rings.intake import Intake, Sources

PUBLISHER, READER = SourceId(7), 9


class Scene:
    """One publisher, the intake, and the core's own ring with one subscriber. To be made in an event loop."""

    def __init__(self) -> None:
        self.publisher = _ring.Writer(PUBLISHER, 65536)
        self.own, self.subscriber = _ring.Writer(50, 65536), _ring.Reader(60)
        self.left: list[int] = []
        self.broken: list[int] = []
        self.failed: list[tuple[int, str]] = []
        self.has_bell = True
        self.intake = self.make(_ring.Reader(READER))
        for writer, reader in ((self.publisher, self.intake.reader), (self.own, self.subscriber)):
            page = reader.share()
            writer.attach(reader.reader, page, 0, -1, "start")
            os.close(page)
        self.with_ring(self.own, lambda fd: self.subscriber.add(fd, 0, 50, "c", "start"))
        self.attach("start")

    def make(self, reader: _ring.Reader) -> Intake:
        def failed(source: int, why: str) -> None:
            self.failed.append((source, why))

        sources = Sources(lambda _: self.has_bell, self.left.append, self.broken.append, failed, lambda: None)
        return Intake(reader, "c", sources)

    def with_ring(self, writer: _ring.Writer, work: Callable[[int], None]) -> None:
        ring = writer.share()
        work(ring)
        os.close(ring)

    def attach(self, start: module.Start = "tail") -> None:
        self.with_ring(self.publisher, lambda fd: self.intake.add(PUBLISHER, 0, fd, start, -1))

    def publish(self, *payloads: bytes) -> None:
        assert self.publisher.try_publish_many(payloads) == len(payloads)

    def received(self) -> list[bytes]:
        """What subscribers get when the core has taken its turns."""
        while _ring.pump(self.intake.reader, self.own) > 0:
            pass
        self.intake.tend()
        return [bytes(message.payload) for message in self.subscriber.receive(1000, 1 << 20, 0)]

    def away_s(self) -> float | None:
        """How long the intake still waits for the publisher to come back; None when it does not wait."""
        timer = self.intake._away.get(PUBLISHER)
        return None if timer is None else timer.when() - asyncio.get_running_loop().time()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while True:
                if condition():
                    return
                await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "GRACE_S", 0.02)
    yield


def run(work: Callable[[Scene], Awaitable[None]]) -> None:
    async def in_loop() -> None:
        scene = Scene()
        try:
            await work(scene)
        finally:
            scene.intake.close()

    asyncio.run(in_loop())


def test_who_reconnects_has_been_read_on() -> None:
    async def work(scene: Scene) -> None:
        scene.publish(b"1")
        assert scene.received() == [b"1"]
        scene.intake.detached(PUBLISHER)
        scene.publish(b"2")
        assert scene.received() == [b"2"]
        scene.attach()
        scene.publish(b"3")
        assert scene.received() == [b"3"]
        assert scene.left == []

    run(work)


def test_who_lets_go_of_its_bell_is_gone_after_the_grace_and_read_to_the_end() -> None:
    async def work(scene: Scene) -> None:
        scene.intake.detached(PUBLISHER)
        scene.publish(b"1", b"2")
        scene.has_bell = False
        scene.intake.bell_ended(PUBLISHER)
        assert scene.left == []
        await scene.until(lambda: scene.away_s() is None)
        scene.received()
        assert scene.left == [PUBLISHER]
        assert not scene.intake.is_reading(PUBLISHER)
        assert scene.own.last_seq == 2

    run(work)


def test_who_is_back_after_the_grace_and_before_its_end_was_read_loses_nothing() -> None:
    """The timer has said that it is gone; what it published was not all taken in yet."""

    async def work(scene: Scene) -> None:
        scene.publish(b"1")
        scene.has_bell = False
        scene.intake.detached(PUBLISHER)
        await scene.until(lambda: scene.away_s() is None)
        scene.publish(b"2")
        scene.attach()
        scene.publish(b"3")
        assert scene.received() == [b"1", b"2", b"3"]
        assert scene.left == []

    run(work)


def test_the_next_core_goes_on_where_this_one_was_and_waits_for_those_who_are_there() -> None:
    async def work(scene: Scene) -> None:
        scene.publish(b"1")
        assert scene.received() == [b"1"]
        scene.publish(b"2")
        page = scene.intake.reader.keep()
        dead = scene.intake  # it lets go of nothing as long as it is here
        scene.intake = scene.make(_ring.Reader.recover(page))
        os.close(page)
        scene.with_ring(scene.publisher, lambda fd: scene.intake.recover(PUBLISHER, 0, fd))
        waits_s = scene.away_s()
        assert waits_s is not None and waits_s > 10 * module.GRACE_S  # its bell is there
        scene.publish(b"3")
        assert scene.received() == [b"2", b"3"]
        scene.attach()
        assert scene.received() == [] and scene.left == []
        scene.publisher.close()
        scene.received()
        assert scene.left == [PUBLISHER]
        dead.close()

    run(work)


def test_who_says_wrongly_up_to_where_it_was_read_is_not_read() -> None:
    async def run() -> None:
        scene = Scene()
        scene.publish(b"one")
        assert scene.received() == [b"one"]
        at = scene.publisher.tail
        scene.publish(b"two")
        for unread_from, expected in ((at + 4, []), (at, [b"two"])):
            scene.intake = scene.make(_ring.Reader(READER + unread_from))
            ring = scene.publisher.share()
            scene.intake.add(PUBLISHER, 0, ring, "tail", -1, unread_from)
            os.close(ring)
            assert scene.received() == expected
            assert [source for source, _ in scene.failed] == [PUBLISHER]

    asyncio.run(run())


def test_too_many_that_are_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AWAY_MAX", 1)

    async def work(scene: Scene) -> None:
        other = _ring.Writer(8, 4096)
        scene.with_ring(other, lambda fd: scene.intake.add(SourceId(8), 1, fd, "start", -1))
        scene.intake.detached(PUBLISHER)
        scene.intake.detached(SourceId(8))
        scene.received()
        assert scene.left == [PUBLISHER]

    run(work)
