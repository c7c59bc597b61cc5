"""Loans through the extension: buffers on both sides, and how long they live; protocol: c/loan_test.c."""

from __future__ import annotations

import gc
import os
import re
import struct
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.ring.ring_helpers import LONG_NS, Forged, connect, shared
from towpath._ring import Loan, LoansOut, MessageTooLarge, Reader, RingError, Writer, check_ring, pump
from towpath.waiting import RECEIVE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath._ring import Message

PAGE = 4096
SMAPS, HUGE_PAGES = Path("/proc/self/smaps"), Path("/sys/kernel/mm/transparent_hugepage")
Pair = tuple[Writer, Reader]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A writer with a slab of four pages, and a reader that holds three messages at most."""
    writer, reader = Writer(7, 65536, slab_bytes=4 * PAGE), Reader(9, held_max=3)
    connect(writer, reader)
    yield writer, reader
    writer.close()
    reader.close()


def loan(writer: Writer, nbytes: int) -> Loan:
    made = writer.try_loan(nbytes)
    assert isinstance(made, Loan)
    return made


def publish(writer: Writer, payload: bytes, headers: bytes | None = None) -> int:
    made = loan(writer, len(payload))
    made[:] = payload
    return writer.try_publish_loan(made, headers)


def receive(reader: Reader, count: int = 1) -> list[Message]:
    return reader.receive(count, 1 << 20, LONG_NS)


def view_of(message: Message) -> memoryview:
    assert isinstance(message.payload, memoryview)
    return message.payload


def test_a_receiver_looks_at_the_publishers_bytes(pair: Pair) -> None:
    writer, reader = pair
    assert writer.slab_bytes == 4 * PAGE
    assert publish(writer, b"hello", b"head") == 1
    [message] = receive(reader)
    view = view_of(message)
    assert (bytes(view), message.headers_raw, message.seq) == (b"hello", b"head", 1)
    assert view.readonly
    assert reader.held == 1
    with pytest.raises(TypeError):
        view[0] = 1
    part = view[1:3]
    del message, view
    assert reader.held == 1  # the part is enough
    assert bytes(part) == b"el"
    part.release()
    assert reader.held == 0


def test_what_is_held_is_not_used_again(pair: Pair) -> None:
    writer, reader = pair
    publish(writer, b"a" * PAGE * 3)
    held = receive(reader)
    for number in range(50):
        payload = b"%d" % number * 100
        publish(writer, payload)
        [message] = receive(reader)
        assert bytes(message.payload) == payload
        del message
    assert bytes(held[0].payload) == b"a" * PAGE * 3
    assert writer.try_loan(2 * PAGE) == 0
    held.clear()
    assert isinstance(writer.try_loan(2 * PAGE), Loan)


def test_a_full_held_table_means_copies(pair: Pair) -> None:
    writer, reader = pair
    for number in range(4):
        publish(writer, b"%d" % number)
    messages = receive(reader, 4)
    assert [type(message.payload) for message in messages] == [memoryview, memoryview, memoryview, bytes]
    assert [bytes(message.payload) for message in messages] == [b"0", b"1", b"2", b"3"]
    assert (reader.held, reader.loans_copied) == (3, 1)


def test_entries_are_used_again_in_any_order(pair: Pair) -> None:
    writer, reader = pair
    for round_ in range(12):
        for number in range(3):
            publish(writer, b"%d" % number)
        messages = receive(reader, 3)
        assert (reader.held, reader.loans_copied) == (3, 0)
        for index in ((0, 0, 0), (2, 1, 0), (1, 1, 0), (1, 0, 0))[round_ % 4]:
            del messages[index]
            publish(writer, b"again")
            [message] = receive(reader)
            assert isinstance(message.payload, memoryview)
            assert (bytes(message.payload), reader.held) == (b"again", len(messages) + 1)
            del message
    assert (reader.held, reader.loans_copied) == (0, 0)


def test_one_visit_does_not_take_much_of_a_slab_along() -> None:
    """What is taken waits in the client for its turn, and its publisher cannot use it meanwhile."""
    with closing(Writer(7, 65536, slab_bytes=1 << 25)) as writer, closing(Reader(9, held_max=256)) as reader:
        connect(writer, reader)
        for nbytes, visits in ((1, [32, 8]), (1 << 20, [6, 4]), (1 << 23, [1] * 3)):
            for _ in range(sum(visits)):
                made = loan(writer, nbytes)
                writer.try_publish_loan(made)
            assert [len(reader.receive(256, RECEIVE_BYTES, LONG_NS)) for _ in visits] == visits


def test_a_slab_may_have_huge_pages() -> None:
    """Whether it has them is the administrator's to say; the rings are as they were."""
    with closing(Writer(7, 65536)), closing(Writer(8, 65536, slab_bytes=1 << 22)):
        found = re.findall(
            r"^([0-9a-f]+)-([0-9a-f]+) .*towpath-ring.*(?:\n\w+:.*)*?\nVmFlags: (.*)", SMAPS.read_text(), re.M
        )
    advised = [int(end, 16) - int(begin, 16) for begin, end, flags in found if "hg" in flags.split()]
    assert advised == ([1 << 22] if HUGE_PAGES.exists() else [])
    assert len(found) > len(advised)


def test_messages_compare_by_what_they_say(pair: Pair) -> None:
    writer, reader = pair
    other = Reader(10)
    with shared(other) as control, shared(writer) as ring:
        writer.attach(10, control, 0, -1, "start")
        other.add(ring, 0, 7, "plant.line1", "start")
    publish(writer, b"same")
    [held], [copied] = receive(reader), receive(other)
    assert isinstance(copied.payload, bytes)  # of a reader that does not hold
    assert held == copied
    assert hash(held) == hash(copied)
    assert "4 bytes" in repr(held)
    assert held.behind(0).payload is held.payload
    other.close()


def test_a_loan_after_publishing_is_dead(pair: Pair) -> None:
    writer, reader = pair
    made = loan(writer, 10)
    view = memoryview(made)
    assert (len(made), made.nbytes, view.readonly, made.is_out) == (10, 10, False, True)
    view[:] = b"0123456789"
    with pytest.raises(BufferError, match="1 views of the loan exist"):
        writer.try_publish_loan(made)
    with pytest.raises(BufferError):
        made.release()
    view.release()
    assert writer.last_seq == 0
    assert writer.try_publish_loan(made) == 1
    for use in (
        lambda: made[0],
        lambda: memoryview(made),
        lambda: writer.try_publish_loan(made),
    ):
        with pytest.raises(BufferError, match="published, or given back"):
            use()
    made.release()  # nothing to give back
    [message] = receive(reader)
    assert bytes(message.payload) == b"0123456789"


def test_a_loan_not_published_is_given_back_as_zeros(pair: Pair) -> None:
    writer, _ = pair
    with loan(writer, 4 * PAGE) as made:
        made[:] = b"x" * 4 * PAGE
        with pytest.raises(LoansOut):
            writer.try_loan(1)
    again = loan(writer, 4 * PAGE)
    assert bytes(again) == bytes(4 * PAGE)
    again[7] = 1
    del again
    assert bytes(loan(writer, 4 * PAGE)) == bytes(4 * PAGE)


def test_refusals(pair: Pair) -> None:
    writer, _ = pair
    other = Writer(8, 65536)
    with pytest.raises(RingError, match="without a slab"):
        other.try_loan(1)
    with pytest.raises(MessageTooLarge, match="a loan exceeds 16384 bytes"):
        writer.try_loan(4 * PAGE + 1)
    with pytest.raises(ValueError, match="another writer's"):
        other.try_publish_loan(loan(writer, 1))
    with pytest.raises(TypeError):
        writer.try_publish_loan(b"bytes")  # type: ignore[arg-type]
    with pytest.raises(MessageTooLarge, match="headers exceed"):
        writer.try_publish_loan(loan(writer, 1), bytes(20_000))
    with pytest.raises(TypeError):
        Loan()
    for slab_bytes in (1, 2**32 + PAGE):
        with pytest.raises(ValueError, match="slab_bytes"):
            Writer(9, 4096, slab_bytes=slab_bytes)
    with pytest.raises(ValueError, match="held_max"):
        Reader(9, held_max=65537)
    other.close()


def test_a_writer_waits_for_what_readers_hold(pair: Pair) -> None:
    writer, reader = pair
    publish(writer, b"a" * 4 * PAGE)
    held = receive(reader)
    assert writer.wait_loan(1, 0) == 0
    assert writer.wait_loan(1, 1_000_000) == 0
    outcome: list[int] = []
    waiter = threading.Thread(target=lambda: outcome.append(writer.wait_loan(1, LONG_NS)))
    waiter.start()
    held.clear()
    waiter.join(60)
    assert outcome == [1]
    publish(writer, b"b" * 4 * PAGE)
    waiter = threading.Thread(target=lambda: outcome.append(writer.wait_loan(1, LONG_NS)))
    waiter.start()
    receive(reader)  # read, and not held
    waiter.join(60)
    assert outcome == [1, 1]


def test_the_doorbell_rings_when_something_is_let_go_of(pair: Pair) -> None:
    import socket

    writer, reader = pair
    ours, theirs = socket.socketpair()
    reader.set_doorbell(7, theirs.fileno())
    publish(writer, b"a" * 4 * PAGE)
    held = receive(reader)
    assert writer.arm_loan(1) is False
    held.clear()
    ours.settimeout(60)
    assert ours.recv(10)
    assert writer.arm_loan(1) is True
    writer.disarm_loan()
    ours.close()
    theirs.close()


def test_views_outlive_reader_and_writer(pair: Pair) -> None:
    writer, reader = pair
    publish(writer, b"held")
    messages = receive(reader)
    made = loan(writer, 4)
    view = memoryview(made)
    address = messages[0].payload
    reader.close()
    writer.close()
    view[:] = b"mine"  # of a closed writer: nobody will see it, and it is there
    assert bytes(view) == b"mine"
    assert bytes(address) == b"held"
    with pytest.raises(ValueError, match="closed"):
        writer.try_publish_loan(made)
    view.release()
    made.release()
    gc.collect()
    assert bytes(messages[0].payload) == b"held"


def test_what_is_held_of_a_closed_subscription_stays_as_it_is(pair: Pair) -> None:
    writer, reader = pair
    publish(writer, b"first" * 1000)
    [message] = receive(reader)
    reader.close()
    writer.detach(9)
    for number in range(20):
        publish(writer, b"%d" % (number % 10) * 4 * PAGE)
    assert bytes(message.payload) == b"first" * 1000


def test_a_forked_child_lets_the_parents_holds_be(pair: Pair) -> None:
    writer, reader = pair
    publish(writer, b"held")
    messages = receive(reader)
    child = os.fork()
    if child == 0:
        try:
            holder = messages[0].payload.obj  # type: ignore[attr-defined]
            memoryview(holder)
            os._exit(1)
        except BufferError:
            messages.clear()
            gc.collect()
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert reader.held == 1
    assert writer.try_loan(4 * PAGE) == 0
    messages.clear()
    assert isinstance(writer.try_loan(4 * PAGE), Loan)


def test_the_pump_copies(pair: Pair) -> None:
    writer, _ = pair
    core, own, end = Reader(10), Writer(8, 65536), Reader(11)
    with shared(core) as control, shared(writer) as ring:
        writer.attach(10, control, 0, -1, "start")
        core.add(ring, 0, 7, "plant.line1", "start")
    connect(own, end)
    publish(writer, b"x" * 5000, b"head")
    assert pump(core, own) == 1
    [message] = receive(end)
    assert (message.payload, message.headers_raw, message.origin_source) == (b"x" * 5000, b"head", 7)
    for each in (core, own, end):
        each.close()


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(2**63, 1), (16384, 1), (8, 1), (4096, 12289), (0, 2**64 - 1), (0, 2**33)]
)
def test_a_hostile_place(offset: int, nbytes: int) -> None:
    """Whatever a record says, the reader looks at nothing outside the slab."""
    writer, reader = Writer(7, 4096, slab_bytes=4 * PAGE), Reader(9, held_max=3)
    publish(writer, b"a")
    with shared(writer) as fd:
        forged = Forged(fd)
    forged.put(4096 + 32, "<QQ", offset, nbytes)
    reader.add(forged.fd, 0, 7, "plant.line1", "start")
    assert reader.receive(10, 100, 0) == []
    assert reader.take_violations() == [(7, "a loan lies outside the slab")]
    forged.close()
    writer.close()
    reader.close()


def test_a_hostile_held_table(pair: Pair) -> None:
    """It can keep a writer from using pages again, until the core withdraws it; and nothing else."""
    writer, _ = pair
    victim = Reader(11, 1, held_max=16)
    with shared(victim) as fd:
        forged = Forged(fd)
    table = 256 + 64
    forged.put(136, "<Q", 2**64 - 1)  # held_until
    writer.attach(11, forged.fd, 0, -1, "tail")
    writer.detach(9)
    for round_ in range(50):
        for entry in range(16):
            forged.put(table + entry * 16, "<QQ", (round_ + entry) % 7 * 2**60 + entry, 7 if entry % 2 else 8)
        forged.put(256, "<Q", struct.unpack("<Q", forged.memory[256:264])[0])
        outcome = writer.try_loan(PAGE)
        assert outcome == 0 or isinstance(outcome, Loan)
        if isinstance(outcome, Loan):
            writer.try_publish_loan(outcome)
    writer.detach(11)
    assert isinstance(writer.try_loan(4 * PAGE), Loan)
    forged.close()
    victim.close()


def test_a_slab_of_another_size_is_refused(pair: Pair) -> None:
    writer, _ = pair
    with shared(writer) as fd:
        assert check_ring(fd) == (7, 65536)
        forged = Forged(fd)
    forged.put(56, "<Q", 5 * PAGE)
    with pytest.raises(RingError, match="size"):
        check_ring(forged.fd)
    forged.put(56, "<Q", 100)
    with pytest.raises(RingError, match="field"):
        check_ring(forged.fd)
    forged.close()
