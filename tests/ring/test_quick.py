"""QuickPublisher and QuickSubscription: what they do themselves, and what they hand to Python."""

from __future__ import annotations

import gc
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.ring.ring_helpers import connect, fill, shared
from tests.support.deadlines import DEADLINE_S
from towpath._ring import (
    GenerationTable,
    Loan,
    LoansOut,
    Message,
    QuickPublisher,
    QuickSubscription,
    Reader,
    Writer,
)
from towpath.waiting import RECEIVE_BYTES, RECEIVE_COUNT


class Publisher(QuickPublisher):
    """Writes down what comes to Python."""

    kept: object = None

    def __init__(self, writer: Writer | None = None, loan_bytes_max: int = 0) -> None:
        self.asked: list[tuple[object, dict[str, object]]] = []
        self.met = 0
        if writer is not None:
            self._set_writer(writer, loan_bytes_max)

    def _publish(self, data: object, **options: object) -> int:
        self.asked.append((data, options))
        return -7

    def _loan(self, nbytes: object, **options: object) -> Any:
        self.asked.append((nbytes, options))
        return "python"

    def publish_loan(self, loan: object, **options: object) -> int:
        self.asked.append((loan, options))
        return -8

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


PAGE = 4096


@pytest.fixture
def loaning() -> Iterator[tuple[Publisher, Writer, Reader]]:
    """A publisher of a slab of four pages, of which it loans three at a time at most."""
    with closing(Writer(7, 65536, slab_bytes=4 * PAGE)) as writer, closing(Reader(9, held_max=4)) as reader:
        connect(writer, reader)
        yield Publisher(writer, 3 * PAGE), writer, reader


class TestLoaning:
    def test_a_loan_is_made_and_published_in_c(self, loaning: tuple[Publisher, Writer, Reader]) -> None:
        publisher, _, reader = loaning
        for number, size in enumerate((5, 0, 3 * PAGE), 1):
            loan = publisher.loan(size)
            loan[:] = bytes([number]) * size
            assert (loan.publisher, loan.publish(), loan.is_out) == (publisher, number, False)
            [message] = reader.receive(9, 1 << 20, 0)
            assert (bytes(message.payload), message.seq) == (bytes([number]) * size, number)
            del message
        assert publisher.asked == [] and publisher.met == 0

    @pytest.mark.parametrize(
        ("size", "options"),
        [
            (1, {"timeout": 1.0}),
            (3 * PAGE + 1, {}),
            (-1, {}),
            (1 << 70, {}),
            (-(1 << 70), {}),
            (True, {}),
            ("1", {}),
        ],
    )
    def test_odd_arguments_are_python_s(
        self, loaning: tuple[Publisher, Writer, Reader], size: Any, options: dict[str, Any]
    ) -> None:
        publisher, _, _ = loaning
        assert publisher.loan(size, **options) == "python"  # type: ignore[comparison-overlap]
        assert publisher.asked == [(size, options)]

    def test_a_slab_without_room_is_python_s(self, loaning: tuple[Publisher, Writer, Reader]) -> None:
        publisher, writer, reader = loaning
        kept = [publisher.loan(2 * PAGE) for _ in range(2)]
        assert publisher.loan(1) == "python"  # type: ignore[comparison-overlap]  # waiting cannot help
        for loan in kept:
            loan.publish()
        assert publisher.loan(1) == "python"  # type: ignore[comparison-overlap]  # nobody has read
        reader.receive(1, 1 << 20, 0)
        assert publisher.loan(1).publish() == 3
        writer.close()
        assert publisher.loan(1) == "python"  # type: ignore[comparison-overlap]
        assert publisher.asked == [(1, {})] * 3

    def test_without_a_writer_or_a_slab_all_is_python_s(self, pair: tuple[Writer, Reader]) -> None:
        for publisher in (Publisher(), Publisher(pair[0]), Publisher(pair[0], 1 << 20)):
            assert publisher.loan(0) == publisher.loan(1) == "python"  # type: ignore[comparison-overlap]

    def test_a_loan_that_cannot_just_be_published_is_python_s(
        self, loaning: tuple[Publisher, Writer, Reader]
    ) -> None:
        publisher, writer, _ = loaning
        loan = publisher.loan(1)
        options: dict[str, Any] = {"headers_raw": b"h", "timeout": 1.0, "confirm": True}
        assert loan.publish(**options) == -8
        view = memoryview(loan)
        assert loan.publish() == -8
        view.release()
        assert loan.publish() == 1
        assert loan.publish() == -8
        assert publisher.asked == [(loan, options), (loan, {}), (loan, {})]
        last = publisher.loan(1)
        writer.close()
        assert last.publish() == -8
        with pytest.raises(TypeError, match="positional"):
            last.publish(None)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="9 keyword"):
            last.publish(**dict.fromkeys("abcdefghi"))  # type: ignore[arg-type]

    def test_it_is_published_through_its_publisher(self, loaning: tuple[Publisher, Writer, Reader]) -> None:
        publisher, writer, _ = loaning
        loan = publisher.loan(1)
        with closing(Writer(8, 65536, slab_bytes=PAGE)) as other:
            for wrapper in (Publisher(other, PAGE), Publisher()):
                loan.publisher = wrapper
                assert loan.publish() == -8
                assert wrapper.asked == [(loan, {})]
        assert writer.last_seq == 0
        raw = writer.try_loan(1)
        assert isinstance(raw, Loan)
        with pytest.raises(ValueError, match="no publisher"):
            raw.publish()

    def test_readers_that_are_new_are_met(self, loaning: tuple[Publisher, Writer, Reader]) -> None:
        publisher, writer, _ = loaning
        with closing(GenerationTable(4)) as table:
            with shared(table) as fd:
                writer.set_generation_table(fd, 0)
            writer.install(table.get(0))
            loan = publisher.loan(1)
            table.bump(0)
            assert loan.publish() == -8  # they come first
            writer.install(table.get(0))
            assert loan.publish() == 1
        assert publisher.asked == [(loan, {})]

    def test_a_publisher_that_keeps_its_loan_is_collected(
        self, loaning: tuple[Publisher, Writer, Reader]
    ) -> None:
        _, writer, _ = loaning
        publisher = Publisher(writer, 4 * PAGE)
        publisher.kept = publisher.loan(4 * PAGE)
        gone = weakref.ref(publisher)
        with pytest.raises(LoansOut):
            writer.try_loan(1)
        del publisher
        gc.collect()
        assert gone() is None
        assert isinstance(writer.try_loan(4 * PAGE), Loan)

    def test_many_are_made_and_forgotten(self, loaning: tuple[Publisher, Writer, Reader]) -> None:
        """More than are kept for reuse."""
        with closing(Writer(8, 65536, slab_bytes=200 * PAGE)) as writer:
            publisher = Publisher(writer, PAGE)
            for _ in range(3):
                loans = [publisher.loan(number) for number in range(200)]
                assert [loan.nbytes for loan in loans] == list(range(200))
                assert all(loan.publisher is publisher and loan.is_out for loan in loans)
                with pytest.raises(LoansOut):
                    writer.try_loan(1)
                del loans
        assert publisher.asked == []


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
