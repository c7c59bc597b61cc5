"""Reader.hand_on: messages to C code, what that leaves, and what ends it."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.ring.ring_helpers import LONG_NS, connect, fill, payloads
from towpath._ring import Reader, Writer

NAME = b"towpath._ring.taker"
BEGIN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
TAKE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint8), ctypes.c_uint32, ctypes.c_uint32
)


class _Taker(ctypes.Structure):
    """struct tp_taker of _ring_taker.h."""

    _fields_ = (
        ("self", ctypes.c_void_p),
        ("bytes_max", ctypes.c_uint32),
        ("begin", BEGIN),
        ("take", TAKE),
    )


class Taker:
    """Takes all but what it is told to leave.

    Attributes:
        taken: first bytes, how many bytes, how many of headers; of each that it was shown.
        capsule: for hand_on.
        begins: what its begin says.
    """

    def __init__(self, leaves: Callable[[bytes], bool] = lambda _: False, bytes_max: int = 8) -> None:
        self.taken: list[tuple[bytes, int, int]] = []
        self.begins = 1

        def take(_: int, shown: Any, payload_bytes: int, headers_bytes: int) -> int:
            data = bytes(shown[: min(payload_bytes, bytes_max)])
            if leaves(data):
                return 0
            self.taken.append((data, payload_bytes, headers_bytes))
            return 1

        self._struct = _Taker(None, bytes_max, BEGIN(lambda _: self.begins), TAKE(take))
        make = ctypes.pythonapi.PyCapsule_New
        make.restype = ctypes.py_object
        make.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        self.capsule = make(ctypes.addressof(self._struct), NAME, None)

    @property
    def payloads(self) -> list[bytes]:
        return [data for data, _, _ in self.taken]


def in_thread(reader: Reader, taker: Taker) -> tuple[threading.Thread, list[object]]:
    """Hand on in a thread; what came of it is in the list."""
    results: list[object] = []

    def run() -> None:
        try:
            reader.hand_on(taker.capsule)
            results.append(None)
        except (ValueError, RuntimeError) as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_NS / 1e9
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.001)


def test_messages_are_handed_on_in_order_and_not_received_again(pair: tuple[Writer, Reader]) -> None:
    writer, reader = pair
    taker = Taker()
    thread, results = in_thread(reader, taker)
    for number in range(1000):
        while not writer.try_publish(b"%d" % number, b"h" * (number % 3) or None):
            assert writer.wait_room(8, LONG_NS)
    wait_until(lambda: len(taker.taken) == 1000)
    reader.notify()
    thread.join(60)
    assert results == [None]
    assert taker.taken == [(b"%d" % n, len(b"%d" % n), n % 3) for n in range(1000)]
    assert reader.receive(10, 1000, 0) == [] and reader.pending_bytes == 0
    assert writer.drained()


def test_only_the_first_bytes_are_shown_and_the_length_told(pair: tuple[Writer, Reader]) -> None:
    writer, reader = pair
    taker = Taker(leaves=lambda data: data == b"end")
    for payload in (b"", b"12345678", b"123456789", b"x" * 500, b"end"):
        writer.try_publish(payload)
    reader.hand_on(taker.capsule)
    assert taker.taken == [(b"", 0, 0), (b"12345678", 8, 0), (b"12345678", 9, 0), (b"x" * 8, 500, 0)]


def test_what_is_left_is_received_next_and_then_what_follows(pair: tuple[Writer, Reader]) -> None:
    writer, reader = pair
    taker = Taker(leaves=lambda data: data.startswith(b"left"))
    for payload in (b"1", b"2", b"left 3", b"4", b"left 5"):
        writer.try_publish(payload)
    for expected in ([b"left 3"], [b"left 5"]):
        reader.hand_on(taker.capsule)
        messages = reader.receive(1, 1000, 0)
        assert payloads(messages) == expected
    assert taker.payloads == [b"1", b"2", b"4"]
    assert [message.seq for message in messages] == [5]
    assert reader.lost == 0


def test_nothing_is_handed_on_when_the_taker_wants_something_else_first(pair: tuple[Writer, Reader]) -> None:
    writer, reader = pair
    taker = Taker()
    taker.begins = 0
    writer.try_publish(b"1")
    reader.hand_on(taker.capsule)
    assert taker.taken == []
    assert payloads(reader.receive(1, 1000, 0)) == [b"1"]


def test_what_was_overwritten_is_counted_once_though_the_next_is_left() -> None:
    writer, reader = Writer(7, 1 << 16, overflow="drop"), Reader(1)
    connect(writer, reader)
    for number in range(1000):
        writer.try_publish((b"%d" % number).ljust(1000))
    taker = Taker(leaves=lambda _: len(taker.taken) == 0)
    reader.hand_on(taker.capsule)
    lost_then = reader.lost
    taker = Taker()
    thread, _ = in_thread(reader, taker)
    wait_until(lambda: taker.payloads[-1:] == [b"999".ljust(8)])
    reader.notify()
    thread.join(60)
    assert lost_then == 0, "what was left was not received yet"
    numbers = [int(data) for data in taker.payloads]
    assert numbers == list(range(1000 - len(numbers), 1000))
    assert reader.lost == 1000 - len(numbers) > 0


def test_a_source_at_its_end_ends_it(pair: tuple[Writer, Reader]) -> None:
    writer, reader = pair
    taker = Taker()
    thread, results = in_thread(reader, taker)
    writer.try_publish(b"last")
    writer.close()
    thread.join(60)
    assert results == [None] and taker.payloads == [b"last"]
    assert reader.take_drained() == [writer.source]


def test_closing_the_reader_ends_it(pair: tuple[Writer, Reader]) -> None:
    _, reader = pair
    thread, results = in_thread(reader, Taker())
    wait_until(lambda: _is_waiting(reader))
    reader.close()
    thread.join(60)
    assert [type(result) for result in results] == [ValueError]


def test_a_writer_that_waits_for_room_gets_it(pair: tuple[Writer, Reader]) -> None:
    writer, reader = pair
    count = fill(writer)
    taker = Taker()
    thread, _ = in_thread(reader, taker)
    assert writer.wait_room(1000, LONG_NS)
    wait_until(lambda: len(taker.taken) == count)
    reader.notify()
    thread.join(60)


def test_only_one_waits_in_a_reader(pair: tuple[Writer, Reader]) -> None:
    _, reader = pair
    thread, _ = in_thread(reader, Taker())
    wait_until(lambda: _is_waiting(reader))
    with pytest.raises(RuntimeError, match="another thread is waiting"):
        reader.hand_on(Taker().capsule)
    reader.notify()
    thread.join(60)


def _is_waiting(reader: Reader) -> bool:
    try:
        reader.disarm()
    except RuntimeError:
        return True
    return False


@pytest.mark.parametrize("wrong", [None, 7, object()])
def test_a_taker_is_a_capsule_of_its_name(pair: tuple[Writer, Reader], wrong: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        pair[1].hand_on(wrong)


def test_a_taker_that_wants_to_see_too_much_is_refused(pair: tuple[Writer, Reader]) -> None:
    with pytest.raises(ValueError, match="too much"):
        pair[1].hand_on(Taker(bytes_max=65).capsule)
