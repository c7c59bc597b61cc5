"""Waiting in the ring: timeouts, wake-ups, notify, signals, several threads, doorbells."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.ring.ring_helpers import LONG_NS, connect, fill, payloads, shared
from towpath._ring import (
    READ_TO,
    GenerationTable,
    MessageTooLarge,
    Reader,
    RingError,
    Writer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class TestWaiting:
    def in_thread(self, call: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
        results: list[object] = []

        def run() -> None:
            try:
                results.append(call())
            except Exception as error:
                results.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread, results

    def until_refused(self, call: Callable[[], object]) -> None:
        """Call until it is refused because the other thread is asleep in the same object."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                call()
            except RuntimeError as error:
                assert "another thread is waiting" in str(error)
                return
        raise AssertionError("the other thread never fell asleep")

    def test_timeouts(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        began = time.monotonic_ns()
        assert reader.receive(1, 1, 2_000_000) == []
        fill(writer)
        assert writer.wait_room(1000, 2_000_000) == 0
        assert time.monotonic_ns() - began >= 4_000_000
        with pytest.raises(MessageTooLarge):
            writer.wait_room(65536, 0)

    def test_receive_wakes(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        thread, results = self.in_thread(lambda: reader.receive(10, 100, LONG_NS))
        self.until_refused(reader.arm)
        writer.try_publish(b"x")
        thread.join()
        [[message]] = results  # type: ignore[misc]
        assert message.payload == b"x"  # type: ignore[has-type]

    def test_receive_takes_up_a_new_source(self) -> None:
        reader, writer = Reader(9), Writer(7, 4096)
        thread, results = self.in_thread(lambda: reader.receive(10, 100, LONG_NS))
        self.until_refused(reader.arm)
        connect(writer, reader)
        writer.try_publish(b"x")
        thread.join()
        assert len(results) == 1
        assert payloads(results[0]) == [b"x"]  # type: ignore[arg-type]

    @pytest.mark.parametrize("end", ["notify", "close", "finish"])
    def test_receive_ends(self, pair: tuple[Writer, Reader], end: str) -> None:
        _writer, reader = pair
        thread, results = self.in_thread(lambda: reader.receive(10, 100, -1))
        self.until_refused(reader.arm)
        ends: dict[str, Callable[[], object]] = {
            "notify": reader.notify,
            "close": reader.close,
            "finish": lambda: reader.finish(7),
        }
        ends[end]()
        thread.join()
        assert results == [[]]

    def test_remove_while_another_thread_sleeps(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        thread, results = self.in_thread(lambda: reader.receive(10, 100, LONG_NS))
        self.until_refused(reader.arm)
        reader.remove(7)
        connect(writer, reader, 1, start="tail")
        writer.try_publish(b"x")
        thread.join()
        assert payloads(results[0]) == [b"x"]  # type: ignore[arg-type]

    def test_a_notify_before_is_not_lost(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        reader.notify()
        writer.try_publish(b"x")
        assert len(reader.receive(10, 100, -1)) == 1
        assert reader.receive(10, 100, -1) == []
        assert reader.receive(10, 100, 1_000_000) == []
        fill(writer)
        writer.notify()
        assert writer.wait_room(1000, -1) == 0

    @pytest.mark.parametrize("end", ["room", "leave", "detach", "notify", "close", "bump", "table"])
    def test_wait_room_ends(self, pair: tuple[Writer, Reader], end: str) -> None:
        writer, reader = pair
        table = GenerationTable(1)
        with shared(table) as fd:
            writer.set_generation_table(fd, 0)
            writer.install(0)
            fill(writer)
            thread, results = self.in_thread(lambda: writer.wait_room(1000, LONG_NS))
            self.until_refused(lambda: writer.wait_room(1000, 1000))
            ends: dict[str, Callable[[], object]] = {
                "room": lambda: reader.receive(1000, 10**6, 0),
                "leave": lambda: reader.remove(7),
                "detach": lambda: writer.detach(9),
                "notify": writer.notify,
                "close": writer.close,
                "bump": lambda: table.bump(0),
                "table": lambda: writer.set_generation_table(fd, 0),
            }
            ends[end]()
            thread.join()
        expected = {"room": 1, "leave": 1, "detach": 1, "notify": 0, "close": 0, "bump": -1, "table": -1}
        assert results == [expected[end]]

    def test_a_small_move_does_not_wake_the_writer(self, pair: tuple[Writer, Reader]) -> None:
        """Hysteresis: it sleeps until an eighth of the ring is free beyond the message."""
        writer, reader = pair
        fill(writer)
        thread, results = self.in_thread(lambda: writer.wait_room(1000, LONG_NS))
        self.until_refused(lambda: writer.wait_room(1000, 1000))
        freed = 0
        while not results and freed < 50:
            freed += len(reader.receive(1, 10**6, 0))
            thread.join(0.002)
        thread.join()
        assert results == [1]
        assert freed >= 8

    def test_signals_interrupt(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair

        class Interrupted(Exception):
            pass

        def interrupt(*_: object) -> None:
            raise Interrupted

        fill(writer)
        calls: list[Callable[[], object]] = [
            lambda: Reader(1).receive(1, 1, -1),
            lambda: writer.wait_room(1000, -1),
        ]
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            for call in calls:
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                with pytest.raises(Interrupted):
                    call()
            signal.signal(signal.SIGALRM, lambda *_: writer.close())  # a handler may do anything
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            assert writer.wait_room(1000, -1) == 0
            signal.signal(signal.SIGALRM, lambda *_: reader.close())
            reader.receive(1000, 10**6, 0)
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            reader.receive(1000, 10**6, -1)
        finally:
            signal.signal(signal.SIGALRM, before)


class TestDoorbell:
    @pytest.fixture
    def bell(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            yield ours, theirs

    def is_rung(self, bell: socket.socket) -> bool:
        return bool(select.select([bell], [], [], 0)[0])

    def test_rings_once_per_arming(self, bell: tuple[socket.socket, socket.socket]) -> None:
        writer, reader = Writer(7, 4096), Reader(9)
        with shared(writer) as ring, shared(reader) as control:
            writer.attach(9, control, 3, bell[1].fileno(), start="start")
            reader.add(ring, 3, 7, "c", start="start")
        bell[1].close()  # the writer has a duplicate of its own
        assert writer.try_publish(b"x") == 1
        assert not self.is_rung(bell[0])
        assert reader.arm() is True  # there is something: not armed
        assert len(reader.receive(10, 100, 0)) == 1
        assert reader.arm() is False
        writer.try_publish_many([b"x"] * 3)
        writer.try_publish(b"x")
        assert self.is_rung(bell[0])
        assert bell[0].recv(100) == b"\0"
        assert len(reader.receive(10, 100, 0)) == 4
        assert reader.arm() is False
        reader.disarm()
        writer.try_publish(b"x")
        assert not self.is_rung(bell[0])
        assert len(reader.receive(10, 100, 0)) == 1
        assert reader.arm() is False
        writer.close()
        assert self.is_rung(bell[0])
        assert reader.take_drained() == [7]

    def test_nobody_can_make_the_writer_wait(self, bell: tuple[socket.socket, socket.socket]) -> None:
        writer, reader = Writer(7, 4096), Reader(9)
        with shared(writer) as ring, shared(reader) as control:
            writer.attach(9, control, 0, bell[1].fileno(), start="start")
            reader.add(ring, 0, 7, "c", start="start")
        bell[1].setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                bell[1].send(b"x" * 4096)
        bell[1].setblocking(True)  # whoever shares the descriptor may do that
        assert reader.arm() is False
        assert writer.try_publish(b"x") == 1
        bell[0].close()
        reader.receive(10, 100, 0)
        assert reader.arm() is False
        assert writer.try_publish(b"x") == 2

    def test_must_be_a_unix_socket(self, tmp_path: Any) -> None:
        writer, reader = Writer(7, 4096), Reader(9)
        with shared(reader) as control, socket.socket() as tcp, (tmp_path / "file").open("wb") as file:
            for fd in (tcp.fileno(), file.fileno()):
                with pytest.raises(RingError, match="doorbell"):
                    writer.attach(9, control, 0, fd, start="start")
        assert writer.readers() == []


class TestReadTo:
    def test_a_position_is_waited_for_and_not_what_comes_behind_it(self) -> None:
        writer, reader = Writer(7, 4096), Reader(9)
        connect(writer, reader)
        assert writer.wait_room(READ_TO + writer.tail, 0) == 1
        writer.try_publish(b"mine")
        tail = writer.tail
        writer.try_publish(b"another's")
        for position in (tail, writer.tail, writer.tail + 8, (1 << 63) - 1):
            assert writer.wait_room(READ_TO + position, 0) == 0
        assert payloads(reader.receive(1, 1000, 0)) == [b"mine"]
        assert writer.wait_room(READ_TO + tail, LONG_NS) == 1
        assert writer.wait_room(READ_TO + writer.tail, 0) == 0
        reader.receive(1, 1000, 0)
        for position in (tail, writer.tail, writer.tail + 8, (1 << 63) - 1):
            assert writer.wait_room(READ_TO + position, 0) == 1

    def test_a_sleep_ends_while_others_go_on_publishing(self) -> None:
        writer, reader = Writer(7, 1 << 16), Reader(9)
        connect(writer, reader)
        is_over = threading.Event()

        def receive() -> None:
            while not is_over.is_set():
                reader.receive(1, 1, 1_000_000)  # one at a time, always behind

        def publish() -> None:
            while not is_over.is_set():
                writer.try_publish(b"x" * 100)

        threads = [threading.Thread(target=work) for work in (receive, publish)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(20):
                while not writer.try_publish(b"mine"):
                    pass
                tail = writer.tail
                assert writer.wait_room(READ_TO + tail, LONG_NS) == 1
        finally:
            is_over.set()
            for thread in threads:
                thread.join()

    def test_the_doorbell_rings_for_the_position(self) -> None:
        writer, reader = Writer(7, 4096), Reader(9)
        ours, theirs = socket.socketpair()
        with ours, theirs, shared(writer) as ring, shared(reader) as control:
            writer.attach(9, control, 0, -1, "start")
            reader.add(ring, 0, 7, "c", "start", theirs.fileno())
            writer.try_publish(b"mine")
            tail = writer.tail
            writer.try_publish(b"another's")
            assert not writer.arm_room(READ_TO + tail)
            reader.receive(1, 1000, 0)
            assert select.select([ours], [], [], LONG_NS / 1e9)[0]
            assert writer.arm_room(READ_TO + tail)
            assert not writer.arm_room(READ_TO + writer.tail)
