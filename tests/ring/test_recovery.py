"""Going on with a dead process's ring and control page, and the pump between rings: the core's part."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tests.ring.ring_helpers import connect, fill, payloads, shared
from towpath._ring import GenerationTable, Message, MessageTooLarge, Reader, RingError, Writer, pump

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def receive_all(reader: Reader) -> list[Message]:
    received: list[Message] = []
    while messages := reader.receive(1000, 10**6, 0):
        received += messages
    return received


@contextlib.contextmanager
def kept(owner: Writer | Reader) -> Iterator[int]:
    """A descriptor for going on with the owner's memory, closed afterwards."""
    fd = owner.keep()
    try:
        yield fd
    finally:
        os.close(fd)


def in_a_child_that_is_killed(work: Callable[[socket.socket], Writer | Reader]) -> socket.socket:
    """Run `work` in a forked process that kills itself before it lets go of what `work` made.

    Returns:
        A socket with what `work` has sent.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            _made = work(theirs)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    theirs.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    return ours


def take_descriptor(source: socket.socket) -> int:
    _, [descriptor], _, _ = socket.recv_fds(source, 10, 1)
    return descriptor


class TestWriters:
    def test_a_dead_writers_ring_goes_on(self) -> None:
        def work(door: socket.socket) -> Writer:
            writer = Writer(7, 65536, overflow="drop", history=3)
            for seq in range(1, 101):
                writer.try_publish(b"%d" % seq)
            socket.send_fds(door, [b"x"], [writer.keep()])
            return writer

        with in_a_child_that_is_killed(work) as door:
            fd = take_descriptor(door)
        writer = Writer.recover(fd)
        os.close(fd)
        assert (writer.source, writer.capacity, writer.overflow, writer.history) == (7, 65536, "drop", 3)
        assert (writer.last_seq, writer.last_origin(), writer.generation) == (100, None, -1)
        assert writer.readers() == []
        reader = Reader(9)
        connect(writer, reader, start="history")
        assert writer.try_publish(b"101") == 101
        assert payloads(receive_all(reader)) == [b"98", b"99", b"100", b"101"]
        writer.close()
        assert reader.take_drained() == [7]

    def test_readers_go_on_where_they_were(self) -> None:
        reader = Reader(9)
        with shared(reader) as page:

            def work(door: socket.socket) -> Writer:
                writer = Writer(7, 4096)
                writer.attach(9, page, 0, -1, "start")
                fill(writer, b"x" * 100)
                socket.send_fds(door, [b"x"], [writer.keep()])
                return writer

            with in_a_child_that_is_killed(work) as door:
                fd = take_descriptor(door)
            writer = Writer.recover(fd)
            sent = writer.last_seq
            writer.attach(9, page, 0, -1, "tail")
        assert writer.try_publish(b"x" * 100) == 0  # the reader has not begun yet: all of it is kept for it
        with shared(writer) as ring:
            reader.add(ring, 0, 7, "plant", "start")
        assert len(receive_all(reader)) == sent
        assert writer.try_publish(b"on") == sent + 1
        assert payloads(receive_all(reader)) == [b"on"]
        os.close(fd)

    def test_a_sleeping_reader_is_woken(self) -> None:
        """Woken by whoever attaches it again, by doorbell too."""
        ours, theirs = socket.socketpair()
        writer, reader = Writer(7, 4096), Reader(9)
        connect(writer, reader)
        with ours, theirs, kept(writer) as fd, shared(reader) as page:
            assert reader.arm() is False
            successor = Writer.recover(fd)
            successor.attach(9, page, 0, theirs.fileno(), "tail")
            assert ours.recv(10) == b"\0"

    def test_what_cannot_be_taken_up(self) -> None:
        writer, reader = Writer(7, 4096), Reader(9)
        with shared(writer) as ring, kept(writer) as keep, kept(reader) as page:
            for fd, why in ((ring, "not open for reading and writing"), (page, "magic")):
                with pytest.raises(RingError, match=why):
                    Writer.recover(fd)
            with pytest.raises(RingError, match="open for writing"):
                reader.add(keep, 0, 7, "c", "start")
            with pytest.raises(RingError, match="magic"):
                Reader.recover(keep)
            with pytest.raises(OSError, match="Bad file descriptor"):
                Writer.recover(-1)
            with pytest.raises(TypeError):
                Reader.recover("x")  # type: ignore[arg-type]
            writer.close()
            with pytest.raises(RingError, match="closed by its writer"):
                Writer.recover(keep)


class TestReaders:
    def test_a_dead_readers_page_goes_on(self) -> None:
        writer = Writer(7, 65536)
        writer.try_publish_many([b"%d" % seq for seq in range(1, 11)])
        with shared(writer) as ring:

            def work(door: socket.socket) -> Reader:
                reader = Reader(9, 3)
                reader.add(ring, 2, 7, "plant", "start")
                assert len(reader.receive(4, 1000, 0)) == 4
                socket.send_fds(door, [b"x"], [reader.keep()])
                return reader

            with in_a_child_that_is_killed(work) as door:
                fd = take_descriptor(door)
            reader = Reader.recover(fd)
            os.close(fd)
            assert reader.reader == 9
            for slot in (0, 1):
                with pytest.raises(RingError, match="no cursor of this source"):
                    reader.add(ring, slot, 7, "plant", "cursor")
            reader.add(ring, 2, 7, "plant", "cursor")
            with shared(reader) as page:
                writer.attach(9, page, 2, -1, "tail")
            assert not writer.drained()
            assert payloads(receive_all(reader)) == [b"5", b"6", b"7", b"8", b"9", b"10"]
            assert writer.drained()


class TestPump:
    def test_what_it_moves_keeps_everything_and_says_where_it_came_from(self) -> None:
        publisher, relay = Writer(7, 65536), Reader(9)
        ordered, subscriber = Writer(50, 65536), Reader(60)
        connect(publisher, relay)
        connect(ordered, subscriber)
        assert pump(relay, ordered) == 0
        publisher.try_publish(b"one", b"head")
        publisher.try_publish(b"two")
        assert pump(relay, ordered) == 2
        assert pump(relay, ordered) == 0
        assert publisher.drained()
        one, two = subscriber.receive(10, 1000, 0)
        assert (one.payload, one.headers_raw, one.source, one.seq) == (b"one", b"head", 50, 1)
        assert (one.origin_source, one.origin_seq, two.origin_seq, two.headers_raw) == (7, 1, 2, b"")
        assert one.time_ns > 0
        assert ordered.last_origin() == (7, 2)
        assert ordered.try_publish_from(b"three", None, 8, 41) == 3
        assert ordered.last_origin() == (8, 41)
        assert ordered.try_publish(b"four") == 4
        assert ordered.last_origin() is None
        three, four = subscriber.receive(10, 1000, 0)
        assert (three.origin_source, three.origin_seq, four.origin_source) == (8, 41, 0)
        assert three.time_ns >= one.time_ns

    def test_each_to_its_own(self) -> None:
        """Who has published a message need not get it back."""
        ordered, subscriber = Writer(50, 65536), Reader(60)
        connect(ordered, subscriber)
        subscriber.exclude(7)
        for number in range(200):
            ordered.try_publish_from(b"%d" % number, None, 7 + number % 2, number)
        assert payloads(receive_all(subscriber)) == [b"%d" % number for number in range(1, 200, 2)]
        assert ordered.drained()

    def test_what_was_missed_is_told_with_the_next_that_counts(self) -> None:
        ordered, subscriber = Writer(50, 4096, overflow="drop"), Reader(60)
        connect(ordered, subscriber)
        subscriber.exclude(7)
        for number in range(1, 401):
            ordered.try_publish_from(b"x", None, 8 if number % 10 == 0 else 7, number)
        messages = receive_all(subscriber)
        assert messages[0].missed > 300
        assert [message.seq % 10 for message in messages] == [0] * len(messages)
        assert messages[-1].seq == 400
        assert subscriber.lost == messages[0].missed

    def test_bounds(self) -> None:
        publisher, relay, ordered = Writer(7, 65536), Reader(9), Writer(50, 65536)
        connect(publisher, relay)
        publisher.try_publish_many([b"x" * 100] * 300)
        assert pump(relay, ordered) == 256
        assert pump(relay, ordered, count_max=10) == 10
        assert pump(relay, ordered, 1000, 250) == 3
        assert pump(relay, ordered) == 31
        with pytest.raises(TypeError, match="a Reader and a Writer"):
            pump(ordered, relay)  # type: ignore[arg-type]
        for count_max, bytes_max in ((0, 1), (1, 0)):
            assert pump(relay, ordered, count_max, bytes_max) == 0
        relay.close()
        with pytest.raises(ValueError, match="closed"):
            pump(relay, ordered)

    def test_a_full_ring_loses_nothing(self) -> None:
        publisher, relay = Writer(7, 65536), Reader(9)
        ordered, subscriber = Writer(50, 4096), Reader(60)
        connect(publisher, relay)
        connect(ordered, subscriber)
        publisher.try_publish_many([b"%d" % number for number in range(400)])
        received: list[Message] = []
        while (moved := pump(relay, ordered)) != 0:
            if moved < 0:
                assert moved == -1
                received += receive_all(subscriber)
        received += receive_all(subscriber)
        assert payloads(received) == [b"%d" % number for number in range(400)]
        assert [message.origin_seq for message in received] == list(range(1, 401))

    def test_readers_that_changed_come_first(self) -> None:
        publisher, relay, ordered, table = Writer(7, 4096), Reader(9), Writer(50, 4096), GenerationTable(1)
        connect(publisher, relay)
        publisher.try_publish(b"x")
        with shared(table) as fd:
            ordered.set_generation_table(fd, 0)
        assert pump(relay, ordered) == -2
        ordered.install(0)
        assert pump(relay, ordered) == 1

    def test_a_message_too_large_for_the_channel_is_its_sources_fault(self) -> None:
        large, small, relay = Writer(7, 65536), Writer(8, 4096), Reader(9)
        ordered, subscriber = Writer(50, 4096), Reader(60)
        connect(large, relay, 0)
        connect(small, relay, 1)
        connect(ordered, subscriber)
        large.try_publish_many([b"a", b"x" * 2000, b"b"])
        small.try_publish(b"y" * small.message_bytes_max)  # with its origin it is larger than it was
        assert pump(relay, ordered) == 2
        assert relay.take_violations() == [(7, "a message is larger than the channel allows")]
        assert {message.payload for message in receive_all(subscriber)} == {b"a", b"y" * 992}
        with pytest.raises(MessageTooLarge):
            ordered.try_publish_from(b"x" * 993, None, 1, 1)

    def test_a_lapped_source(self) -> None:
        publisher, relay = Writer(7, 4096, overflow="drop"), Reader(9)
        ordered, subscriber = Writer(50, 65536), Reader(60)
        connect(publisher, relay)
        connect(ordered, subscriber)
        for _ in range(500):
            publisher.try_publish(b"x" * 50)
        moved = pump(relay, ordered)
        messages = receive_all(subscriber)
        assert len(messages) == moved < 60
        assert [message.origin_seq for message in messages] == list(range(501 - moved, 501))
        assert [message.seq for message in messages] == list(range(1, moved + 1))
        assert relay.lost == 500 - moved

    def test_what_a_dead_pump_had_published_is_passed_over(self) -> None:
        publisher, relay, ordered, subscriber = Writer(7, 65536), Reader(9), Writer(50, 65536), Reader(60)
        connect(publisher, relay)
        connect(ordered, subscriber)
        publisher.try_publish_many([b"%d" % number for number in range(1, 11)])
        for seq in range(1, 6):
            ordered.try_publish_from(b"%d" % seq, None, 7, seq)
        assert pump(relay, ordered, 2) == 2
        assert pump(relay, ordered) == 3
        assert [message.origin_seq for message in receive_all(subscriber)] == list(range(1, 11))

    def test_after_a_crash_nothing_is_taken_twice(self) -> None:
        """Also when the successor publishes for others, and dies too, before the source comes back."""
        publisher, other = Writer(7, 65536), Writer(8, 65536)
        relay, ordered, subscriber = Reader(9), Writer(50, 65536), Reader(60)
        connect(publisher, relay, 0)
        connect(other, relay, 1)
        connect(ordered, subscriber)
        publisher.try_publish_many([b"%d" % number for number in range(1, 11)])
        other.try_publish(b"other")
        # A pump that dies after it has published and before it moves the cursor leaves this:
        for seq in range(1, 6):
            ordered.try_publish_from(b"%d" % seq, None, 7, seq)
        dead: list[Writer | Reader] = []  # as long as they are here, they have not let go of anything
        with kept(relay) as page, kept(ordered) as ring:
            for _ in range(2):
                dead += [relay, ordered]
                relay, ordered = Reader.recover(page), Writer.recover(ring)
                origin = ordered.last_origin()
                assert origin is not None
                assert relay.pass_over(*origin) is (origin[0] == 7)
                assert ordered.try_publish_from(b"guest", None, 70, 1) > 0
        with shared(publisher) as first, shared(other) as second:
            relay.add(first, 0, 7, "plant", "cursor")
            relay.add(second, 1, 8, "plant", "cursor")
        assert pump(relay, ordered) == 6
        assert relay.pass_over(99, 1) is False
        received = receive_all(subscriber)
        assert [m.origin_seq for m in received if m.origin_source == 7] == list(range(1, 11))
        assert [m.payload for m in received if m.origin_source == 8] == [b"other"]
        relay.remove(7)
        with shared(publisher) as first:
            relay.add(first, 0, 7, "plant", "start")  # a slot given anew has nothing to pass over
        assert pump(relay, ordered) == 10
