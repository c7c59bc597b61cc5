"""QuickPublisher and QuickSubscription: what they do themselves, and what they hand to Python."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from tests.ring.ring_helpers import connect, fill
from tests.support.deadlines import DEADLINE_S
from towpath._ring import Message, QuickPublisher, QuickSubscription, Reader, Writer
from towpath.waiting import RECEIVE_BYTES, RECEIVE_COUNT


class Publisher(QuickPublisher):
    """Writes down what comes to Python."""

    def __init__(self, writer: Writer | None = None) -> None:
        self.asked: list[tuple[object, dict[str, object]]] = []
        self.met = 0
        if writer is not None:
            self._set_writer(writer)

    def _publish(self, data: object, **options: object) -> int:
        self.asked.append((data, options))
        return -7

    def _meet_readers(self) -> None:
        self.met += 1


class Subscription(QuickSubscription):
    """Likewise; `answer` is what Python gives."""

    def __init__(self, reader: Reader, *, is_plain: bool = True) -> None:
        self.asked: list[tuple[tuple[object, ...], dict[str, object]]] = []
        self.buffer: deque[Message] = deque()
        self._set_reader(reader, self.buffer)
        reader.is_plain = is_plain

    def _receive(self, *args: Any, **options: Any) -> Any:
        self.asked.append((args, options))
        return "python"


class TestPublishing:
    def test_bytes_alone_go_into_the_ring(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        publisher = Publisher(writer)
        assert [publisher.publish(b"one"), publisher.publish(b"")] == [1, 2]
        assert [(m.payload, m.seq) for m in reader.receive(9, 99, 0)] == [(b"one", 1), (b"", 2)]
        assert publisher.asked == [] and publisher.met == 0

    @pytest.mark.parametrize(
        ("data", "options"),
        [
            (b"x", {"confirm": True}),
            (b"x", {"timeout": 1.0}),
            (b"x", {"headers_raw": b""}),
            (bytearray(b"x"), {}),
            ("text", {}),
            (bytes(1 << 16), {}),
        ],
    )
    def test_anything_else_is_python_s(
        self, pair: tuple[Writer, Reader], data: Any, options: dict[str, Any]
    ) -> None:
        writer, reader = pair
        publisher = Publisher(writer)
        assert publisher.publish(data, **options) == -7
        assert publisher.asked == [(data, options)]
        assert reader.receive(9, 99, 0) == []

    def test_a_ring_that_does_not_take_it_is_python_s(self, pair: tuple[Writer, Reader]) -> None:
        writer, _ = pair
        fill(writer)
        publisher = Publisher(writer)
        assert publisher.publish(bytes(1000)) == -7
        writer.close()
        assert publisher.publish(b"closed") == -7
        assert [len(data) for data, _ in publisher.asked if isinstance(data, bytes)] == [1000, 6]

    def test_without_a_writer_all_is_python_s(self) -> None:
        assert Publisher().publish(b"x") == -7
        with pytest.raises(TypeError, match="a Writer is wanted"):
            Publisher()._set_writer(None)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            Publisher().publish()  # type: ignore[call-arg]

    def test_a_ring_is_given_once(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        with pytest.raises(TypeError, match="once"):
            Publisher(writer)._set_writer(writer)
        with pytest.raises(TypeError, match="once"):
            Subscription(reader)._set_reader(reader, deque())
        with pytest.raises(AttributeError, match="popleft"):
            QuickSubscription()._set_reader(reader, [])  # type: ignore[arg-type]


class TestReceiving:
    def test_what_is_there_comes_one_by_one(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        subscription = Subscription(reader)
        writer.try_publish_many([b"%d" % i for i in range(6)])
        got = [subscription.receive(), subscription.receive(None), subscription.receive(timeout=None)]
        got += [subscription.receive(0.0), subscription.receive(timeout=1), subscription.receive(1 << 70)]
        assert [message.payload for message in got] == [b"0", b"1", b"2", b"3", b"4", b"5"]
        assert subscription.asked == [] and not subscription.buffer

    def test_one_visit_takes_what_waiting_py_says(self) -> None:
        with closing(Writer(1, 1 << 20)) as writer, closing(Reader(2)) as reader:
            connect(writer, reader)
            subscription = Subscription(reader)
            writer.try_publish_many([b"x"] * (2 * RECEIVE_COUNT))
            subscription.receive()
            assert len(subscription.buffer) == RECEIVE_COUNT - 1
            subscription.buffer.clear()
            reader.receive(1024, 1 << 30, 0)
            writer.try_publish_many([bytes(RECEIVE_BYTES // 4)] * 6)
            subscription.receive()
            assert len(subscription.buffer) == 3

    @pytest.mark.parametrize(
        "arguments", [((-1,), {}), ((-1 << 70,), {}), ((), {"timeout": -0.5}), ((1, 2), {}), ((), {"x": 1})]
    )
    def test_odd_arguments_are_python_s(
        self, pair: tuple[Writer, Reader], arguments: tuple[tuple[Any, ...], dict[str, Any]]
    ) -> None:
        writer, reader = pair
        writer.try_publish(b"x")
        subscription = Subscription(reader)
        args, options = arguments
        assert subscription.receive(*args, **options) == "python"  # type: ignore[comparison-overlap]
        assert subscription.asked == [arguments]

    def test_waiting_with_a_timeout_is_python_s(self, pair: tuple[Writer, Reader]) -> None:
        _, reader = pair
        subscription = Subscription(reader)
        assert subscription.receive(timeout=0) == "python"  # type: ignore[comparison-overlap]
        assert subscription.asked == [((), {"timeout": 0})]

    def test_a_reader_is_not_plain_at_first(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        writer.try_publish(b"x")
        assert Subscription(reader, is_plain=False).receive() == "python"  # type: ignore[comparison-overlap]

    @pytest.mark.parametrize(
        "happen",
        [
            lambda reader: reader.notify(),
            lambda reader: reader.finish(7),
            lambda reader: reader.revive(7),
            lambda reader: reader.remove(7),
            lambda reader: reader.close(),
        ],
    )
    def test_whatever_happens_is_python_s(
        self, pair: tuple[Writer, Reader], happen: Callable[[Reader], object]
    ) -> None:
        writer, reader = pair
        writer.try_publish(b"x")
        subscription = Subscription(reader)
        happen(reader)
        assert subscription.receive() == "python"  # type: ignore[comparison-overlap]

    def test_a_new_source_is_python_s(self, pair: tuple[Writer, Reader]) -> None:
        _, reader = pair
        subscription = Subscription(reader)
        with closing(Writer(99, 4096)) as other:
            connect(other, reader, 1)
            other.try_publish(b"x")
            assert subscription.receive() == "python"  # type: ignore[comparison-overlap]

    def test_what_was_taken_before_comes_first(self, pair: tuple[Writer, Reader]) -> None:
        writer, reader = pair
        subscription = Subscription(reader)
        writer.try_publish_many([b"1", b"2"])
        assert subscription.receive().payload == b"1"
        reader.close()
        assert subscription.receive().payload == b"2"
        assert subscription.receive() == "python"  # type: ignore[comparison-overlap]

    @pytest.mark.parametrize(
        ("wake", "expected"),
        [
            (lambda writer, _: writer.try_publish(b"late"), b"late"),
            (lambda _, reader: reader.notify(), "python"),
            (lambda _, reader: reader.close(), "python"),
            (lambda writer, _: writer.close(), "python"),
        ],
    )
    def test_who_waits_is_woken(
        self, pair: tuple[Writer, Reader], wake: Callable[[Writer, Reader], object], expected: object
    ) -> None:
        writer, reader = pair
        subscription = Subscription(reader)
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(subscription.receive()))
        thread.start()
        while not is_waited_in(reader):
            assert thread.is_alive()
        wake(writer, reader)
        thread.join(DEADLINE_S)
        assert [getattr(each, "payload", each) for each in got] == [expected]

    def test_a_signal_ends_the_wait(self, pair: tuple[Writer, Reader]) -> None:
        _, reader = pair

        def strike() -> None:
            while not is_waited_in(reader):
                pass
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        before = signal.signal(signal.SIGUSR1, _stop)
        thread = threading.Thread(target=strike)
        try:
            thread.start()
            with pytest.raises(InterruptedError):
                Subscription(reader).receive()
        finally:
            thread.join(DEADLINE_S)
            signal.signal(signal.SIGUSR1, before)


def _stop(number: int, frame: object) -> None:
    raise InterruptedError


def is_waited_in(reader: Reader) -> bool:
    """Whether another thread sleeps in it."""
    try:
        reader.disarm()
    except RuntimeError:
        return True
    return False
