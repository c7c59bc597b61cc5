"""Control packets: whole, in order, with their descriptors, and never a wait."""

from __future__ import annotations

import array
import asyncio
import gc
import os
import socket
from collections.abc import Iterator

import pytest

from towpath.errors import ProtocolViolation
from towpath_broker.host.packets import (
    DESCRIPTORS_MAX,
    OUTBOX_MAX,
    Outbox,
    control_pair,
    receive_packet,
    send_packet,
)

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = control_pair()
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def open_descriptors() -> int:
    gc.collect()  # what other tests left lying about
    return len(os.listdir("/proc/self/fd"))


def test_a_packet_arrives_with_its_descriptor(pair: Pair) -> None:
    ours, theirs = pair
    readable, writable = os.pipe()
    send_packet(ours, {"type": "hello", "n": 1}, [writable])
    os.close(writable)
    received = receive_packet(theirs)
    assert received is not None
    packet, descriptors = received
    assert packet == {"type": "hello", "n": 1}
    assert not os.get_inheritable(descriptors[0])
    os.write(descriptors[0], b"x")
    assert os.read(readable, 10) == b"x"
    os.close(descriptors[0])
    os.close(readable)


def test_the_end_of_the_other_side_is_none(pair: Pair) -> None:
    ours, theirs = pair
    send_packet(ours, {"type": "last"})
    ours.close()
    assert receive_packet(theirs) == ({"type": "last"}, [])
    assert receive_packet(theirs) is None


@pytest.mark.parametrize("data", [b"{", b"[]", b"1", b"{}", b'{"type":1}', b"\xff", b"[" * 90_000])
def test_what_is_no_packet_is_refused_and_its_descriptors_are_closed(pair: Pair, data: bytes) -> None:
    ours, theirs = pair
    before = open_descriptors()
    ours.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1]))])
    with pytest.raises(ProtocolViolation):
        receive_packet(theirs)
    assert open_descriptors() == before


def test_too_many_descriptors_are_refused_and_closed(pair: Pair) -> None:
    ours, theirs = pair
    before = open_descriptors()
    send_packet(ours, {"type": "x"}, [0] * (DESCRIPTORS_MAX + 3))
    with pytest.raises(ProtocolViolation, match="too many descriptors"):
        receive_packet(theirs)
    assert open_descriptors() == before


def drain(control: socket.socket) -> list[dict[str, object]]:
    packets: list[dict[str, object]] = []
    while True:
        try:
            received = receive_packet(control)
        except BlockingIOError:
            return packets
        assert received is not None
        packets.append(received[0])


def test_an_outbox_keeps_what_the_other_side_does_not_read(pair: Pair) -> None:
    ours, theirs = pair

    async def scenario() -> list[dict[str, object]]:
        outbox = Outbox(ours)
        sent = 0
        while outbox.send({"type": "n", "n": sent, "padding": "x" * 2_000}):
            sent += 1
        # Full: the socket's buffer and OUTBOX_MAX beyond it. Nothing of what was taken is lost.
        assert sent > OUTBOX_MAX
        packets: list[dict[str, object]] = []
        while len(packets) < sent:
            packets += drain(theirs)
            await asyncio.sleep(0)
        return packets

    packets = asyncio.run(asyncio.wait_for(scenario(), 10))
    assert [packet["n"] for packet in packets] == list(range(len(packets)))


def test_of_one_topic_only_the_newest_waits(pair: Pair) -> None:
    ours, theirs = pair

    async def scenario() -> list[dict[str, object]]:
        outbox = Outbox(ours)
        for number in range(5_000):
            assert outbox.send({"type": "state", "n": number, "padding": "x" * 2_000}, topic="state")
        packets: list[dict[str, object]] = []
        while not packets or packets[-1]["n"] != 4_999:
            packets += drain(theirs)
            await asyncio.sleep(0)
        return packets

    packets = asyncio.run(asyncio.wait_for(scenario(), 10))
    assert len(packets) < 1_000


def test_an_outbox_closes_descriptors_that_nobody_will_get(pair: Pair) -> None:
    ours, theirs = pair
    before = open_descriptors()

    async def scenario() -> None:
        outbox = Outbox(ours)
        while outbox.send({"type": "x", "padding": "x" * 2_000}, [os.dup(0)]):
            pass
        outbox.close()
        theirs.close()
        assert not outbox.send({"type": "x"}, [os.dup(0)])

    asyncio.run(scenario())
    # What is in flight dies with the socket; of ours nothing is left.
    ours.close()
    assert open_descriptors() == before - 2
