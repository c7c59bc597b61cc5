"""Peers that break the rules after they were let in: listed, left, and nobody else disturbed.

The ring and the control page here are forged: correct memfds whose maker writes what it likes into them.
"""

from __future__ import annotations

import random
import struct

import pytest

from tests.ring.ring_helpers import Forged, connect, payloads, shared
from towpath._ring import Reader, Writer

DATA, PADDING = 1, 2
TAIL_AT, DATA_AT = 128, 4096
FIRST_SLOT_AT = 256


def record(seq: int, payload: bytes, *, flags: int = DATA, record_bytes: int | None = None) -> bytes:
    size = (32 + len(payload) + 7) // 8 * 8
    header = struct.pack("<IIQQII", record_bytes or size, flags, seq, 1, 0, len(payload))
    return (header + payload).ljust(size, b"\0")


@pytest.mark.parametrize(
    ("content", "tail", "why"),
    [
        (record(1, b"a") + bytes(40), 80, "unknown kind"),
        (record(1, b"a") + record(3, b"b"), 80, "not contiguous"),
        (record(1, b"a") + record(2, b"b", record_bytes=24), 80, "length is impossible"),
        (record(1, b"a") + record(2, b"b", record_bytes=2000), 80, "length is impossible"),
        (record(1, b"a") + record(2, b"b", record_bytes=48), 88, "lengths disagree"),
        (record(1, b"a") + record(2, b"b", flags=PADDING), 80, "padding"),
        (record(1, b"a"), 40 + 4096, "unknown kind|tail is impossible"),
        (b"", 2**63, "tail is impossible"),
        (b"", 4, "tail is impossible"),
    ],
)
def test_a_ring_that_breaks_the_rules_is_left(content: bytes, tail: int, why: str) -> None:
    honest, reader = Writer(7, 4096), Reader(9)
    with shared(Writer(8, 4096)) as fd:
        forged = Forged(fd)
    connect(honest, reader)
    reader.add(forged.fd, 1, 8, "plant", start="start")
    forged.memory[DATA_AT : DATA_AT + len(content)] = content
    forged.put(TAIL_AT, "<Q", tail)
    honest.try_publish(b"fine")
    received = payloads(reader.receive(10, 10**6, 0))
    assert b"fine" in received
    assert set(received) <= {b"fine", b"a"}
    [(source, text)] = reader.take_violations()
    assert source == 8
    assert any(part in text for part in why.split("|"))
    assert reader.take_violations() == []
    assert reader.arm() is False  # nothing of it is waited for
    honest.try_publish(b"on")
    assert payloads(reader.receive(10, 10**6, 0)) == [b"on"]
    reader.remove(8)
    assert reader.sources() == [7]
    forged.close()


def test_noise_in_a_ring_never_harms() -> None:
    """Whatever bytes a ring holds: messages, or a violation."""
    noise = random.Random(7)
    with shared(Writer(8, 4096)) as fd:
        forged = Forged(fd)
    for _ in range(500):
        reader = Reader(9)
        forged.put(TAIL_AT, "<Q", 0)
        reader.add(forged.fd, 0, 8, "plant", start="start")
        content = bytearray(
            b"".join(record(seq, noise.randbytes(noise.randrange(60))) for seq in range(1, 40))
        )
        for _ in range(noise.randrange(1, 6)):
            content[noise.randrange(len(content))] = noise.randrange(256)
        content = content[:4096]
        forged.memory[DATA_AT : DATA_AT + len(content)] = bytes(content)
        forged.put(TAIL_AT, "<Q", noise.randrange(0, len(content), 8))
        messages = reader.receive(1000, 10**6, 0)
        assert [message.seq for message in messages] == list(
            range(messages[0].seq, messages[0].seq + len(messages)) if messages else ()
        )
        assert sum(len(message.payload) for message in messages) <= 4096
        reader.take_violations()
        reader.close()
    forged.close()


@pytest.mark.parametrize(
    "cursor", [2**63 | 1, 4096 * 4 | 1, 2, 0xFFFFFFFFFFFFFFF7], ids=["huge", "ahead", "odd", "odder"]
)
def test_a_reader_with_an_impossible_cursor_is_not_waited_for(cursor: int) -> None:
    writer, honest = Writer(7, 4096), Reader(10)
    connect(writer, honest, 1)
    with shared(Reader(9)) as fd:
        forged = Forged(fd)
    writer.attach(9, forged.fd, 0, -1, start="start")
    forged.put(FIRST_SLOT_AT, "<QQ", cursor, 7)
    sent = 0
    for _ in range(100):
        if writer.try_publish(b"x" * 100) == 0:
            assert len(honest.receive(100, 10**6, 0)) > 0
            assert writer.try_publish(b"x" * 100) > 0
        sent += 1
    assert writer.violators() == [9]
    assert sorted(writer.readers()) == [9, 10]
    assert writer.slowest_reader() == 10
    assert writer.detach(9)
    assert writer.violators() == []
    assert writer.last_seq == sent
    forged.close()


def test_a_reader_that_seems_to_sleep_always_costs_a_call_and_no_more() -> None:
    """A page that claims another sleep each time: the writer wakes, and goes on."""
    writer = Writer(7, 4096)
    with shared(Reader(9)) as fd:
        forged = Forged(fd)
    writer.attach(9, forged.fd, 0, -1, start="start")
    for seq in range(1, 30):
        forged.put(128, "<Q", seq << 2 | 1 + seq % 2)
        assert writer.try_publish(b"x") == seq
    forged.close()
