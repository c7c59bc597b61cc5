"""What happens when a ring is full, and to those who come late: dropping with exact counts, readers that
stall, history, a doorbell for room.
"""

from __future__ import annotations

import os
import random
import select
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.ring.ring_helpers import LONG_NS, connect, fill, payloads, shared
from towpath._ring import GenerationTable, Message, MessageTooLarge, Reader, RingError, Writer

if TYPE_CHECKING:
    from collections.abc import Iterator


def receive_all(reader: Reader) -> list[Message]:
    received: list[Message] = []
    while messages := reader.receive(1000, 10**6, 0):
        received += messages
    return received


class TestDrop:
    def drop_pair(self, ring_bytes: int = 4096) -> tuple[Writer, Reader]:
        writer, reader = Writer(7, ring_bytes, overflow="drop"), Reader(9)
        connect(writer, reader)
        return writer, reader

    def test_nobody_is_waited_for_and_every_loss_is_counted(self) -> None:
        writer, reader = self.drop_pair()
        assert (writer.overflow, writer.history) == ("drop", 0)
        for seq in range(1, 501):
            assert writer.try_publish(b"%d" % seq) == seq
        messages = receive_all(reader)
        first = messages[0]
        assert first.missed == first.seq - 1 > 300
        assert [message.missed for message in messages[1:]] == [0] * (len(messages) - 1)
        assert payloads(messages) == [b"%d" % seq for seq in range(first.seq, 501)]
        assert len(messages) + first.missed == 500
        assert repr(first).startswith(
            f"<Message plant.line1 #{first.seq} of source 7 after {first.missed} lost"
        )

    def test_it_holds_nearly_a_ringful(self) -> None:
        """What is given up early is a 64th of the ring at most."""
        writer, reader = self.drop_pair(65536)
        for _ in range(1000):
            writer.try_publish(b"x" * 68)  # 104 bytes with its header
        assert len(receive_all(reader)) >= 65536 * 63 // 64 // 104 - 1

    def test_whatever_the_sizes_it_holds_nearly_a_ringful(self) -> None:
        """Records that begin elsewhere in each turn: a mark of this turn is not taken for one of the last."""
        writer = Writer(7, 65536, overflow="drop")
        sizes = random.Random(1)
        with shared(writer) as ring:
            for seq in range(1, 5001):
                writer.try_publish(b"x" * sizes.randrange(10, 300))
                oldest = int.from_bytes(os.pread(ring, 8, 384), "little")
                if writer.tail > 65536:
                    assert writer.tail - oldest > 65536 - 3 * 1024 - 400, seq

    @pytest.mark.parametrize("size", [0, 1, 100, 500, 900, 992])
    def test_lapped_again_and_again(self, size: int) -> None:
        writer, reader = self.drop_pair()
        received = missed = 0
        for round_ in range(200):
            for _ in range(round_ % 23):
                assert writer.try_publish(b"x" * size) > 0
            for message in receive_all(reader):
                received += 1
                missed += message.missed
                assert message.seq == received + missed
        assert received + missed == writer.last_seq
        assert reader.lost == missed
        assert (missed > 0) == (size >= 500)
        assert writer.drained()
        assert reader.pending_bytes == 0

    def test_what_is_lost_before_the_first_message_is_counted_too(self) -> None:
        writer, reader = Writer(7, 4096, overflow="drop"), Reader(9)
        for _ in range(321):
            writer.try_publish(b"before")
        connect(writer, reader, start="tail")
        for _ in range(500):
            writer.try_publish(b"after")
        messages = receive_all(reader)
        assert messages[0].missed + len(messages) == 500

    def test_a_new_source_lapped_before_it_is_added(self) -> None:
        writer, reader = Writer(7, 4096, overflow="drop"), Reader(9)
        for _ in range(500):
            writer.try_publish(b"x" * 50)
        connect(writer, reader, start="start")
        messages = receive_all(reader)
        assert messages[0].missed + len(messages) == 500

    def test_the_last_ones_of_a_dead_writer(self) -> None:
        writer, reader = self.drop_pair()
        for _ in range(100):
            writer.try_publish(b"x" * 100)
        writer.close()
        messages = receive_all(reader)
        assert messages[-1].seq == 100
        assert messages[0].missed + len(messages) == 100
        assert reader.take_drained() == [7]

    def test_in_batches(self) -> None:
        writer, reader = self.drop_pair(65536)
        assert writer.try_publish_many([b"x" * 100] * 5000) == 5000
        messages = receive_all(reader)
        assert messages[0].missed + len(messages) == 5000
        assert writer.wait_room(10_000, -1) == 1
        assert writer.arm_room(10_000) is True
        assert writer.stalled_reader(0) is None

    def test_a_blocking_ring_misses_nothing(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        assert writer.overflow == "block"
        for _ in range(5):
            fill(writer)
            assert {message.missed for message in receive_all(reader)} == {0}

    def test_bad_options(self) -> None:
        options: list[dict[str, Any]] = [{"overflow": "lose"}, {"overflow": None}, {"history": 65537}]
        for wrong in options:
            with pytest.raises(ValueError, match="must be"):
                Writer(7, 4096, **wrong)
        with pytest.raises(TypeError):
            Writer(7, 4096, "drop")  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="start must be"):
            connect(Writer(7, 4096), Reader(9), start="end")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="start must be a str"):
            connect(Writer(7, 4096), Reader(9), start=None)  # type: ignore[arg-type]


class TestStalledReaders:
    def test_it_is_found_and_can_be_let_go(self) -> None:
        writer, slow, quick = Writer(7, 4096), Reader(9), Reader(10)
        connect(writer, slow)
        connect(writer, quick, 1)
        fill(writer, b"x" * 100)
        assert writer.stalled_reader(0) is None  # it has not waited yet
        assert writer.wait_room(100, 2_000_000) == 0
        assert writer.stalled_reader(LONG_NS) is None
        assert writer.stalled_reader(1_000_000) in (9, 10)
        received = receive_all(quick)
        assert writer.wait_room(100, 2_000_000) == 0
        assert writer.stalled_reader(1_000_000) == 9
        slow.receive(1, 1000, 0)  # it moves, if not enough
        assert writer.stalled_reader(0) is None
        assert writer.wait_room(900, 2_000_000) == 0
        assert writer.stalled_reader(1_000_000) == 9
        assert writer.detach(9)
        assert writer.stalled_reader(0) is None
        assert writer.wait_room(100, -1) == 1
        fill(writer, b"y" * 100)
        received += receive_all(quick)
        assert [message.seq for message in received] == list(range(1, writer.last_seq + 1))

    def test_it_sees_that_it_was_let_go(self) -> None:
        writer, reader = Writer(7, 4096), Reader(9)
        connect(writer, reader)
        fill(writer, b"x" * 100)
        assert writer.detach(9)
        for _ in range(3):
            writer.try_publish(b"y" * 900)
        before = receive_all(reader)
        assert set(payloads(before)) <= {b"x" * 100}
        assert [message.seq for message in before] == list(range(1, len(before) + 1))
        assert reader.take_drained() == []
        assert reader.take_violations() == []
        assert reader.take_detached() == [7]
        assert reader.take_detached() == []
        assert reader.sources() == [7]
        assert reader.receive(10, 1000, 0) == []
        assert reader.arm() is False
        reader.remove(7)
        connect(writer, reader, start="tail")
        writer.try_publish(b"again")
        assert payloads(receive_all(reader)) == [b"again"]

    def test_a_reader_that_was_let_go_and_kept_up_loses_nothing(self) -> None:
        writer, reader = Writer(7, 4096), Reader(9)
        connect(writer, reader)
        assert writer.detach(9)
        for seq in range(1, 200):
            writer.try_publish(b"x" * 100)
            [message] = receive_all(reader)
            assert message.seq == seq
        assert reader.take_detached() == []

    def test_a_waiting_receive_ends(self) -> None:
        writer, reader = Writer(7, 4096), Reader(9)
        connect(writer, reader)
        writer.detach(9)
        for _ in range(100):
            writer.try_publish(b"x" * 200)
        assert reader.receive(10, 1000, -1) == []
        assert reader.take_detached() == [7]


class TestHistory:
    @pytest.mark.parametrize("overflow", ["block", "drop"])
    @pytest.mark.parametrize(("count", "history"), [(0, 5), (3, 5), (5, 5), (100, 5), (100, 1), (1000, 300)])
    def test_the_last_ones_first(self, overflow: Any, count: int, history: int) -> None:
        writer, reader = Writer(7, 65536, overflow=overflow, history=history), Reader(9)
        assert writer.history == history
        for seq in range(1, count + 1):
            assert writer.try_publish(b"%d" % seq) == seq
        connect(writer, reader, start="history")
        writer.try_publish(b"live")
        messages = receive_all(reader)
        assert [message.seq for message in messages] == list(range(max(1, count - history + 1), count + 2))
        assert {message.missed for message in messages} == {0}
        assert messages[-1].payload == b"live"

    @pytest.mark.parametrize("overflow", ["block", "drop"])
    def test_as_far_as_the_ring_holds_it(self, overflow: Any) -> None:
        writer, reader = Writer(7, 4096, overflow=overflow, history=1000), Reader(9)
        for _ in range(777):
            writer.try_publish(b"x" * 68)
        connect(writer, reader, start="history")
        messages = receive_all(reader)
        assert [message.seq for message in messages] == list(range(778 - len(messages), 778))
        assert len(messages) >= 4096 * 62 // 64 // 104
        assert messages[0].missed == 0

    def test_in_batches_it_counts_what_is_published(self) -> None:
        writer = Writer(7, 1 << 20, history=10)
        assert writer.try_publish_many([b"%d" % seq for seq in range(1, 1001)]) == 1000
        reader = Reader(9)
        connect(writer, reader, start="history")
        assert payloads(receive_all(reader)) == [b"%d" % seq for seq in range(991, 1001)]

    def test_it_is_kept_for_a_reader_that_takes_its_time(self) -> None:
        """Attached and not begun yet: a blocking writer stops at the start of the history."""
        writer, reader = Writer(7, 4096, history=3), Reader(9)
        for _ in range(20):
            writer.try_publish(b"before")
        with shared(reader) as control, shared(writer) as ring:
            writer.attach(9, control, 0, -1, "history")
            sent = fill(writer, b"x" * 100)
            reader.add(ring, 0, 7, "c", "history")
        messages = receive_all(reader)
        assert [message.seq for message in messages] == list(range(21 + sent - len(messages), 21 + sent))
        assert len(messages) == 3  # the last three as of now
        assert writer.wait_room(100, 0) == 1

    @pytest.mark.parametrize("before", [0, 3, 500])
    def test_what_drops_before_it_was_read_is_counted(self, before: int) -> None:
        writer, reader = Writer(7, 4096, overflow="drop", history=4), Reader(9)
        for _ in range(before):
            writer.try_publish(b"x" * 68)
        connect(writer, reader, start="history")
        for _ in range(500):
            writer.try_publish(b"x" * 68)
        messages = receive_all(reader)
        assert messages[0].missed + len(messages) == min(before, 4) + 500

    def test_without_history_it_is_the_tail(self) -> None:
        writer, reader = Writer(7, 4096), Reader(9)
        writer.try_publish(b"before")
        connect(writer, reader, start="history")
        assert receive_all(reader) == []
        writer.try_publish(b"after")
        assert payloads(receive_all(reader)) == [b"after"]


class TestDoorbellForRoom:
    @pytest.fixture
    def bell(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            yield ours, theirs

    def is_rung(self, bell: socket.socket) -> bool:
        return bool(select.select([bell], [], [], 0)[0])

    def connect(self, writer: Writer, reader: Reader, slot: int, bell: int) -> None:
        with shared(writer) as ring, shared(reader) as control:
            writer.attach(reader.reader, control, slot, -1, "start")
            reader.add(ring, slot, writer.source, "plant.line1", "start", bell)

    def test_it_rings_when_there_is_room(self, bell: tuple[socket.socket, socket.socket]) -> None:
        writer, reader = Writer(7, 4096), Reader(9)
        self.connect(writer, reader, 0, bell[1].fileno())
        assert writer.arm_room(100) is True  # there is room
        sent = fill(writer, b"x" * 100)
        assert writer.arm_room(100) is False
        assert not self.is_rung(bell[0])
        freed = 0
        while not self.is_rung(bell[0]):
            freed += len(reader.receive(1, 1000, 0))
        assert 4 <= freed < 10  # an eighth of the ring more than asked for
        assert bell[0].recv(100) == b"\0"
        assert len(receive_all(reader)) == sent - freed
        assert not self.is_rung(bell[0])  # once
        assert writer.arm_room(900) is True
        assert fill(writer, b"x" * 100) > 0
        assert writer.arm_room(100) is False
        writer.disarm_room()
        receive_all(reader)
        assert not self.is_rung(bell[0])
        with pytest.raises(MessageTooLarge):
            writer.arm_room(4096)

    def test_every_reader_rings_and_the_last_one_counts(
        self, bell: tuple[socket.socket, socket.socket]
    ) -> None:
        writer, first, second = Writer(7, 4096), Reader(9), Reader(10)
        self.connect(writer, first, 0, bell[1].fileno())
        self.connect(writer, second, 1, bell[1].fileno())
        fill(writer, b"x" * 100)
        assert writer.arm_room(100) is False
        receive_all(first)
        assert bell[0].recv(100) == b"\0"
        assert writer.arm_room(100) is False
        second.remove(7)
        assert self.is_rung(bell[0])
        assert writer.arm_room(100) is True

    def test_news_of_readers_is_room_enough(self, bell: tuple[socket.socket, socket.socket]) -> None:
        writer, reader, table = Writer(7, 4096), Reader(9), GenerationTable(1)
        self.connect(writer, reader, 0, bell[1].fileno())
        with shared(table) as fd:
            writer.set_generation_table(fd, 0)
        writer.install(0)
        fill(writer, b"x" * 100)
        assert writer.arm_room(100) is False
        table.bump(0)
        assert writer.arm_room(100) is True
        assert writer.try_publish(b"x") == -1

    def test_nobody_can_make_the_reader_wait(self, bell: tuple[socket.socket, socket.socket]) -> None:
        writer, reader = Writer(7, 4096), Reader(9)
        self.connect(writer, reader, 0, bell[1].fileno())
        bell[1].setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                bell[1].send(b"x" * 4096)
        bell[1].setblocking(True)
        fill(writer, b"x" * 100)
        assert writer.arm_room(100) is False
        assert len(receive_all(reader)) > 10
        bell[0].close()
        fill(writer, b"x" * 100)
        assert writer.arm_room(100) is False
        assert len(receive_all(reader)) > 10

    def test_it_must_be_a_unix_socket(self, tmp_path: Any) -> None:
        writer, reader = Writer(7, 4096), Reader(9)
        with (tmp_path / "file").open("wb") as file, pytest.raises(RingError, match="doorbell"):
            self.connect(writer, reader, 0, file.fileno())
        assert reader.sources() == []

    def test_a_sleeping_writer_takes_over(self, bell: tuple[socket.socket, socket.socket]) -> None:
        writer, reader = Writer(7, 4096), Reader(9)
        self.connect(writer, reader, 0, bell[1].fileno())
        fill(writer, b"x" * 100)
        assert writer.arm_room(100) is False
        began_ns = time.monotonic_ns()
        assert writer.wait_room(100, 2_000_000) == 0
        assert time.monotonic_ns() - began_ns >= 2_000_000
        receive_all(reader)
        assert not self.is_rung(bell[0])


def test_origins_are_left_out_only_where_there_are_any() -> None:
    writer, reader = Writer(7, 4096), Reader(9)
    connect(writer, reader)
    excluded = [origin for origin in range(1025, 0, -1) if origin != 700]
    for origin in excluded:
        reader.exclude(origin)
    reader.exclude(3)
    with pytest.raises(ValueError, match="1024 origins"):
        reader.exclude(700)
    writer.try_publish(b"x")
    [message] = receive_all(reader)
    assert (message.origin_source, message.origin_seq) == (0, 0)
    for origin in (1, 700, 1024, 1025, 1026):
        writer.try_publish_from(b"x", None, origin, 1)
    assert [message.origin_source for message in receive_all(reader)] == [700, 1026]


def test_a_doorbell_is_changed() -> None:
    """As when the reader is started again, and the writer waits since before."""
    ours, theirs = socket.socketpair()
    writer, reader = Writer(7, 4096), Reader(9)
    connect(writer, reader)
    fill(writer, b"x" * 100)
    assert writer.arm_room(100) is False
    with ours, theirs:
        ours.setblocking(False)
        reader.set_doorbell(7, theirs.fileno())
        reader.set_doorbell(8, theirs.fileno())  # nobody's
        with pytest.raises(BlockingIOError):
            ours.recv(10)
        with pytest.raises(RingError, match="UNIX socket"):
            reader.set_doorbell(7, os.open("/dev/null", os.O_RDONLY))
        receive_all(reader)
        assert ours.recv(10) == b"\0"
        fill(writer, b"x" * 100)
        reader.set_doorbell(7, -1)
        assert writer.arm_room(100) is False
        receive_all(reader)
        with pytest.raises(BlockingIOError):
            ours.recv(10)
        reader.set_doorbell(7, theirs.fileno())
        assert ours.recv(10) == b"\0"
