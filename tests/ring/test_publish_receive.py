"""``_ring.Writer`` and ``_ring.Reader`` without waiting: publishing, receiving, generations."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import pytest

from tests.ring.ring_helpers import LONG_NS, connect, fill, payloads, shared
from towpath._ring import (
    GenerationTable,
    Message,
    MessageTooLarge,
    Reader,
    RingError,
    Writer,
)


class TestPublishing:
    def test_messages_arrive_whole_and_in_order(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        before_ns = time.time_ns()
        assert writer.try_publish(b"one", b"head") == 1
        assert writer.try_publish(bytearray(b"two")) == 2
        assert writer.try_publish(payload=memoryview(b"three"), headers=None) == 3
        assert writer.try_publish_many([b"four", memoryview(b"xfive")[1:]], headers=b"h") == 2
        assert writer.last_seq == 5
        messages = reader.receive(100, 10**6, 0)
        assert payloads(messages) == [b"one", b"two", b"three", b"four", b"five"]
        assert [message.seq for message in messages] == [1, 2, 3, 4, 5]
        assert [message.headers_raw for message in messages] == [b"head", b"", b"", b"h", b"h"]
        assert {(message.source, message.channel) for message in messages} == {(7, "plant.line1")}
        assert all(before_ns <= message.time_ns <= time.time_ns() for message in messages)
        assert reader.receive(100, 10**6, 0) == []
        assert writer.drained()

    def test_sizes_from_nothing_to_the_maximum(self) -> None:
        writer, reader = Writer(7, 4096), Reader(9)
        connect(writer, reader)
        assert writer.message_bytes_max == 4096 // 4 - 32
        for size in range(writer.message_bytes_max + 1):
            payload = os.urandom(size)
            headers = size // 3
            assert writer.try_publish(payload[headers:], payload[:headers] or None) == size + 1
            [message] = reader.receive(10, 10**6, 0)
            assert message.headers_raw + message.payload == payload
        for payload, raw in ((b"x" * 993, None), (b"x" * 500, b"h" * 493)):
            with pytest.raises(MessageTooLarge, match="exceed 992 bytes"):
                writer.try_publish(payload, raw)
        assert issubclass(MessageTooLarge, ValueError)
        assert writer.last_seq == writer.message_bytes_max + 1

    def test_full(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        sent = fill(writer)
        assert sent == writer.last_seq > 50
        assert writer.wait_room(1000, 0) == 0
        assert not writer.drained()
        assert writer.slowest_reader() == 9
        assert reader.pending_bytes == writer.tail
        assert len(reader.receive(sent + 1, 10**9, 0)) == sent
        assert writer.wait_room(1000, -1) == 1
        assert writer.try_publish(b"x") == sent + 1

    def test_many_is_taken_as_far_as_there_is_room(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        batch = [b"%d" % number for number in range(5000)]
        received: list[Message] = []
        start = 0
        while start < len(batch):
            taken = writer.try_publish_many(batch, start)
            if taken == 0:
                received += reader.receive(1000, 10**6, 0)
            start += taken
            assert writer.last_seq == start
        while messages := reader.receive(1000, 10**6, 0):
            received += messages
        assert payloads(received) == batch
        assert writer.try_publish_many([]) == 0
        assert writer.try_publish_many(batch, len(batch)) == 0
        assert writer.try_publish_many((b"a", b"b")) == 2

    def test_many_with_a_bad_one(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        batch: list[Any] = [b"a", b"b", b"x" * 65536, b"c", "text", b"d"]
        assert writer.try_publish_many(batch) == 2
        with pytest.raises(MessageTooLarge, match="message 2: headers and payload together exceed"):
            writer.try_publish_many(batch, 2)
        assert writer.try_publish_many(batch, 3) == 1
        with pytest.raises(TypeError):
            writer.try_publish_many(batch, 4)
        assert writer.try_publish_many(batch, 5, [None] * 5 + [b"h"]) == 1
        with pytest.raises(ValueError, match="from index 1 on"):
            writer.try_publish_many([b"a", b"b"], 1, [b"h"])
        with pytest.raises(TypeError, match="headers must be bytes or None, not str"):
            writer.try_publish_many([b"a"], 0, ["h"])  # type: ignore[list-item]
        for start in (-1, 7):
            with pytest.raises(ValueError, match="start must be from 0 to 6"):
                writer.try_publish_many(batch, start)
        assert payloads(reader.receive(10, 10**6, 0)) == [b"a", b"b", b"c", b"d"]

    @pytest.mark.parametrize(
        "arguments",
        [(), ("text",), (b"", "h"), (b"", b"", b""), (None,), (memoryview(b"abcd")[::2],)],
        ids=["none", "text", "headers that are text", "three", "None", "not contiguous"],
    )
    def test_refuses_wrong_types(self, pair: tuple[Writer, Reader], arguments: tuple[Any, ...]) -> None:
        with pytest.raises((TypeError, BufferError)):
            pair[0].try_publish(*arguments)
        with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
            pair[0].try_publish(b"", x=1)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="multiple values for argument 'payload'"):
            pair[0].try_publish(b"", payload=b"")  # type: ignore[misc]
        assert pair[0].last_seq == 0

    def test_without_readers_nothing_blocks(self) -> None:
        writer = Writer(7, 4096)
        for seq in range(1, 100):
            assert writer.try_publish(b"x" * 500) == seq
        assert writer.drained()
        assert writer.slowest_reader() is None
        assert writer.wait_room(500, -1) == 1


class TestReceiving:
    def test_bounds(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        writer.try_publish_many([b"x" * 100] * 10)
        assert len(reader.receive(3, 10**6, 0)) == 3
        assert len(reader.receive(10, 250, 0)) == 2
        assert len(reader.receive(10, 99, 0)) == 1
        assert len(reader.receive(10**9, 10**12, 0)) == 4
        for count_max, bytes_max in ((0, 1), (1, 0), (-1, 1)):
            with pytest.raises(ValueError, match="at least 1"):
                reader.receive(count_max, bytes_max, 0)

    def test_at_most_1024_at_a_time(self) -> None:
        writer, reader = Writer(7, 1 << 20), Reader(9)
        connect(writer, reader)
        assert writer.try_publish_many([b"x"] * 2000) == 2000
        assert len(reader.receive(5000, 10**6, 0)) == 1024
        assert len(reader.receive(5000, 10**6, 0)) == 976

    def test_sources_take_turns(self) -> None:
        reader = Reader(9)
        writers = [Writer(source, 65536) for source in (1, 2, 3)]
        for slot, writer in enumerate(writers):
            connect(writer, reader, slot)
            writer.try_publish_many([b"x"] * 100)
        counts = dict.fromkeys((1, 2, 3), 0)
        for _ in range(60):
            [message] = reader.receive(1, 10, 0)
            counts[message.source] += 1
        assert counts == {1: 20, 2: 20, 3: 20}
        assert sorted(reader.sources()) == [1, 2, 3]

    def test_from_the_tail(self) -> None:
        writer, reader = Writer(7, 65536), Reader(9)
        writer.try_publish(b"before")
        connect(writer, reader, start="tail")
        assert reader.receive(10, 10**6, 0) == []
        assert writer.drained()
        writer.try_publish(b"after")
        [message] = reader.receive(10, 10**6, 0)
        assert (message.payload, message.seq) == (b"after", 2)

    def test_a_closed_ring_is_drained_and_then_told(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        writer.try_publish_many([b"a", b"b"])
        writer.close()
        assert reader.take_drained() == []
        assert payloads(reader.receive(10, 10**6, 0)) == [b"a", b"b"]
        assert reader.take_drained() == [7]
        assert reader.take_drained() == []
        assert reader.sources() == [7]
        reader.remove(7)
        assert reader.sources() == []
        reader.remove(7)
        reader.finish(7)

    def test_finish(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        writer.try_publish(b"a")
        reader.finish(7)
        assert reader.take_drained() == []
        assert len(reader.receive(10, 10**6, 0)) == 1
        assert reader.receive(10, 10**6, LONG_NS) == []  # it has something to tell
        assert reader.take_drained() == [7]

    def test_what_comes_after_the_end_is_not_received(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        writer.try_publish_many([b"a", b"b"])
        reader.finish(7)
        writer.try_publish(b"c")
        assert payloads(reader.receive(10, 10**6, 0)) == [b"a", b"b"]
        assert reader.take_drained() == [7]
        assert reader.pending_bytes == 0

    def test_a_removed_source_frees_its_writer(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        fill(writer)
        reader.remove(7)
        assert writer.try_publish(b"x") > 0
        connect(writer, reader, start="tail")
        writer.try_publish(b"again")
        assert payloads(reader.receive(10, 10**6, 0)) == [b"again"]


class TestGenerations:
    def test_a_bump_stops_the_writer_until_installed(self) -> None:
        table, writer = GenerationTable(5), Writer(7, 4096)
        assert writer.generation == -1
        with shared(table) as fd:
            writer.set_generation_table(fd, 4)
        assert writer.try_publish(b"x") == -1
        assert writer.try_publish_many([b"x"]) == -1
        assert writer.wait_room(1, -1) == -1
        writer.install(table.get(4))
        assert writer.generation == 0
        assert writer.try_publish(b"x") == 1
        assert table.bump(3) == 1
        assert writer.try_publish(b"x") == 2
        assert table.bump(4) == 1
        assert writer.try_publish(b"x") == -1
        assert not writer.readers_changed
        writer.install(1)
        assert writer.try_publish(b"x") == 3
        table.close()
        assert writer.try_publish(b"x") == 4

    def test_bad_tables(self) -> None:
        for cells in (0, 65537):
            with pytest.raises(ValueError, match="cells must be from 1 to 65536"):
                GenerationTable(cells)
        table, writer = GenerationTable(2), Writer(7, 4096)
        with pytest.raises(IndexError):
            table.bump(2)
        with pytest.raises(IndexError):
            table.get(2)
        with shared(table) as fd, shared(writer) as ring:
            with pytest.raises(RingError, match="no such cell"):
                writer.set_generation_table(fd, 2)
            with pytest.raises(RingError, match="magic"):
                writer.set_generation_table(ring, 0)
        assert writer.try_publish(b"x") == 1
        table.close()
        with pytest.raises(ValueError, match="closed"):
            table.get(0)


class TestReusedMemory:
    """Messages and small payloads that nobody refers to any more are made into the next ones."""

    def receive_one(self, pair: tuple[Writer, Reader], payload: bytes) -> Message:
        writer, reader = pair
        assert writer.try_publish(payload) > 0
        [message] = reader.receive(1, 10**6, 0)
        return message

    @pytest.mark.parametrize("size", [0, 1, 2, 64, 512, 513])
    def test_a_payload_that_is_held_stays(self, pair: tuple[Writer, Reader], size: int) -> None:
        held = [self.receive_one(pair, bytes([letter]) * size).payload for letter in b"abc"]
        assert held == [bytes([letter]) * size for letter in b"abc"]

    def test_a_payload_is_hashed_anew(self, pair: tuple[Writer, Reader]) -> None:
        for letter in b"abcdef":
            payload = bytes([letter]) * 64
            assert hash(self.receive_one(pair, payload).payload) == hash(payload)

    def test_sizes_may_change(self, pair: tuple[Writer, Reader]) -> None:
        for size in (64, 63, 64, 0, 1, 600, 2, 64):
            payload = b"x" * size
            assert self.receive_one(pair, payload).payload == payload

    def test_what_a_message_refers_to_is_let_go(self, pair: tuple[Writer, Reader]) -> None:
        payload = self.receive_one(pair, b"p" * 64).payload
        assert sys.getrefcount(payload) == 2  # `payload` and the argument
