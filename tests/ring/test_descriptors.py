"""What the ring refuses to map or to use, and what becomes of handles: close, fork, leaks."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from tests.ring.ring_helpers import connect, memfd, payloads, shared
from towpath._ring import (
    GenerationTable,
    Message,
    MessageTooLarge,
    Reader,
    RingError,
    Writer,
    check_control,
    check_ring,
    pump,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class TestDescriptors:
    def test_what_is_shared_cannot_be_written(self) -> None:
        writer = Writer(7, 4096)
        with shared(writer) as fd:
            assert check_ring(fd) == (7, 4096)
            assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            assert os.fstat(fd).st_mode & 0o777 == 0o600
            assert os.fstat(fd).st_size == 4096 + 4096
            with pytest.raises(OSError, match="Invalid argument"):
                os.ftruncate(fd, 0)
        with shared(Reader(2**64 - 1, 3)) as fd:
            assert check_control(fd) == (2**64 - 1, 3)

    def test_bad_descriptors(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = Writer(1, 4096), Reader(2)
        with shared(writer) as ring, shared(reader) as control:
            good_ring, good_control = os.pread(ring, 4096, 0), os.pread(control, 4096, 0)
            control_bytes = os.fstat(control).st_size
            with pytest.raises(RingError, match="magic"):
                check_ring(control)
            with pytest.raises(RingError, match="magic"):
                check_control(ring)
            writable = os.memfd_create("test", os.MFD_ALLOW_SEALING)
            bad: list[tuple[int, str]] = [
                (writable, "open for writing"),
                (os.open("/dev/null", os.O_RDONLY), "not a memfd"),
                (os.open(__file__, os.O_RDONLY), "not a memfd"),
                (memfd(good_ring, 8192, 0), "seals"),
                (memfd(good_ring, 8192, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL), "seals"),
                (memfd(good_ring, 4096), "size"),
                (memfd(b"", 0), "size"),
                (memfd(b"\0" * 4096, 8192), "magic"),
                (memfd(good_ring[:8] + b"\7" + good_ring[9:], 8192), "version"),
                (memfd(good_ring[:16] + b"\1" + good_ring[17:], 8192), "out of range"),
            ]
            bad_pages = [
                (memfd(good_control, control_bytes + 1), "size"),
                (memfd(good_control[:12] + b"\0" * 4 + good_control[16:], control_bytes), "out of range"),
            ]
        for fd, why in bad:
            with pytest.raises(RingError, match=why):
                check_ring(fd)
            with pytest.raises(RingError, match=why):
                pair[1].add(fd, 1, 1, "c", start="start")
        for fd, why in bad[:3] + bad_pages:
            with pytest.raises(RingError, match=why):
                check_control(fd)
            with pytest.raises(RingError, match=why):
                pair[0].attach(2, fd, 0, -1, start="start")
        for fd, _ in bad + bad_pages:
            os.close(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            check_ring(-1)
        assert pair[0].readers() == [9]
        assert pair[1].sources() == [7]

    def test_wrong_places(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        other = Writer(8, 4096)
        with shared(other) as ring, shared(reader) as control:
            for slot, source, why in (
                (255, 8, "outside"),
                (0, 8, "taken|used"),
                (1, 7, "already"),
                (1, 6, "another source"),
            ):
                with pytest.raises(RingError, match=why):
                    reader.add(ring, slot, source, "c", start="start")
            with pytest.raises(RingError, match="outside"):
                other.attach(9, control, 255, -1, start="start")
            with pytest.raises(RingError, match="another reader"):
                other.attach(8, control, 1, -1, start="start")
            while other.tail <= other.capacity:
                other.try_publish(b"x" * 500)
            with pytest.raises(RingError, match="overwritten"):
                other.attach(9, control, 1, -1, start="start")
            with pytest.raises(RingError, match="overwritten"):
                reader.add(ring, 1, 8, "c", start="start")
            with pytest.raises(TypeError, match="channel must be a str"):
                reader.add(ring, 1, 8, b"c", start="tail")  # type: ignore[arg-type]
        assert writer.readers() == [9]

    @pytest.mark.parametrize("ring_bytes", [0, 2048, 5000, 2**31, 2**64 - 1])
    def test_capacity(self, ring_bytes: int) -> None:
        with pytest.raises(ValueError, match="power of two"):
            Writer(1, ring_bytes)

    def test_numbers(self) -> None:
        for slots in (0, 4097):
            with pytest.raises(ValueError, match="from 1 to 4096"):
                Reader(1, slots)
        with pytest.raises(ValueError, match="source must be from 0"):
            Writer(-1, 4096)
        with pytest.raises(ValueError, match="reader must be from 0"):
            Reader(2**64)
        with pytest.raises(TypeError, match="reader must be an int"):
            Reader("1")  # type: ignore[arg-type]


class TestLifetimes:
    def test_closed(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        for _ in range(2):
            writer.close()
            reader.close()
        calls: list[Callable[[], object]] = [
            lambda: writer.try_publish(b"x"), lambda: writer.try_publish_many([b"x"]), writer.share,
            lambda: writer.wait_room(1, 0), writer.notify, writer.drained, writer.slowest_reader,
            lambda: writer.detach(9), lambda: writer.install(1), writer.readers, writer.violators,
            lambda: writer.attach(9, 0, 0, -1, "start"), lambda: writer.set_generation_table(0, 0),
            lambda: reader.receive(1, 1, 0), reader.share, reader.arm, reader.disarm, reader.notify,
            lambda: reader.add(0, 0, 7, "c", "start"), lambda: reader.finish(7), lambda: reader.remove(7),
            reader.sources, reader.take_drained, reader.take_violations, lambda: reader.pending_bytes,
            writer.keep, writer.last_origin, lambda: writer.try_publish_from(b"x", None, 1, 1),
            lambda: writer.arm_room(1), writer.disarm_room, lambda: writer.stalled_reader(1),
            reader.keep, reader.take_detached, lambda: reader.exclude(1), lambda: reader.pass_over(1, 1),
            lambda: pump(reader, writer),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(ValueError, match="is closed"):
                call()
        assert (writer.source, writer.capacity, writer.last_seq, writer.tail) == (7, 65536, 0, 0)

    def test_a_payload_that_closes_its_writer(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair

        class Closing:
            def __index__(self) -> int:
                writer.close()
                return 0

        with pytest.raises(TypeError):
            writer.try_publish_many([b"a"], Closing())  # type: ignore[arg-type]
        assert writer.try_publish(b"a") == 1
        assert len(reader.receive(1, 1, 0)) == 1

    def test_handles_are_void_in_a_forked_child(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        writer.try_publish(b"before")
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                calls: list[Callable[[], object]] = [
                    lambda: writer.try_publish(b"x"), writer.share, lambda: reader.receive(1, 1, 0),
                    writer.keep, reader.keep, lambda: pump(reader, writer), lambda: writer.arm_room(1),
                    reader.arm, lambda: reader.remove(7), writer.notify, lambda: writer.wait_room(1, 0),
                ]  # fmt: skip
                refused = 0
                for call in calls:
                    try:
                        call()
                    except RuntimeError as error:
                        refused += "process that forked" in str(error)
                writer.close()
                reader.close()
                own_writer, own_reader = Writer(7, 4096), Reader(9)
                connect(own_writer, own_reader)
                own_writer.try_publish(b"own")
                if refused == len(calls) and payloads(own_reader.receive(1, 9, 0)) == [b"own"]:
                    status = 0
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        writer.try_publish(b"after")
        assert payloads(reader.receive(10, 100, 0)) == [b"before", b"after"]
        assert reader.take_drained() == []

    def test_nothing_leaks(self) -> None:
        """Neither objects, nor descriptors, nor mappings, however often all of it is done."""

        def mappings() -> int:
            with open("/proc/self/maps") as maps:
                return sum("towpath-" in line for line in maps)

        def work() -> None:
            ours, theirs = socket.socketpair()
            table, reader = GenerationTable(1), Reader(9)
            writer = Writer(7, 4096, overflow="block", history=20)
            with ours, theirs, shared(table) as cells, shared(writer) as ring, shared(reader) as control:
                writer.set_generation_table(cells, 0)
                writer.set_generation_table(cells, 0)
                writer.install(0)
                for _ in range(2):
                    writer.attach(9, control, 0, theirs.fileno(), start="start")
                reader.add(ring, 0, 7, channel, "start", theirs.fileno())
                failing: list[Callable[[], object]] = [
                    lambda: reader.add(ring, 0, 7, channel, "start"),
                    lambda: writer.attach(9, ring, 0, -1, "start"),
                ]
                for call in failing:
                    with pytest.raises(RingError):
                        call()
            for _ in range(5):
                writer.try_publish(payload, headers)
                writer.try_publish_many([payload, bytearray(b"x")], 0, [headers, None])
                for message in reader.receive(10, 1000, 0):
                    assert message.headers_raw in (headers, b"")
                with pytest.raises(MessageTooLarge):
                    writer.try_publish(large)
                with pytest.raises(TypeError):
                    writer.try_publish_many([None])  # type: ignore[list-item]
            kept_ring, kept_page = writer.keep(), reader.keep()
            for recover in (Writer.recover, Reader.recover):
                with pytest.raises(RingError):
                    recover(kept_page if recover == Writer.recover else kept_ring)
            successors = Writer.recover(kept_ring), Reader.recover(kept_page)
            os.close(kept_ring)
            os.close(kept_page)
            pump(reader, other := Writer(8, 4096, overflow="drop"))
            other.close()
            del successors
            writer.close()
            assert reader.take_drained() == [7]

        channel, payload, headers, large = "".join(["chan", "nel"]), bytes(100), bytes(10), bytes(2000)
        tracked = (channel, payload, headers, large)
        work()
        gc.collect()
        before = [sys.getrefcount(thing) for thing in tracked]
        descriptors, mapped, blocks = len(os.listdir("/proc/self/fd")), mappings(), sys.getallocatedblocks()
        for _ in range(50):
            work()
        gc.collect()
        assert [sys.getrefcount(thing) for thing in tracked] == before
        assert len(os.listdir("/proc/self/fd")) <= descriptors  # what earlier tests left may close meanwhile
        assert mappings() == mapped
        assert sys.getallocatedblocks() - blocks < 50  # less than one for each round

    def test_many_messages_live_and_die(self, pair: tuple[Writer, Reader]) -> None:
        """More than the free list keeps, alive at once and then not."""
        writer, reader = pair
        kept: list[Message] = []
        for number in range(5000):
            if writer.try_publish(b"%d" % number) == 0:
                kept += reader.receive(1000, 10**6, 0)
                kept += reader.receive(1000, 10**6, 0)
                assert writer.try_publish(b"%d" % number) > 0
        while messages := reader.receive(1000, 10**6, 0):
            kept += messages
        assert payloads(kept) == [b"%d" % number for number in range(5000)]
        del kept[::2]
        assert payloads(kept) == [b"%d" % number for number in range(1, 5000, 2)]
