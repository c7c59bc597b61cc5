"""The frame decoder and the outbox: any split of the bytes, any garbage, every bound."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath import wire
from towpath.errors import BadDescriptor, ConnectionLost, ProtocolViolation, SlowConsumer, TowpathError
from towpath.v1.frame_pb2 import Frame


def frames(count: int) -> list[Frame]:
    return [Frame(id=number, principal="p" * (number % 300)) for number in range(1, count + 1)]


@given(st.integers(0, 40), st.lists(st.integers(1, 200), max_size=60))
def test_frames_survive_any_split(count: int, cuts: list[int]) -> None:
    sent = frames(count)
    data = b"".join(wire.encode(frame) for frame in sent)
    decoder = wire.FrameDecoder(1 << 16)
    got = []
    for cut in [*cuts, len(data)]:
        got += decoder.feed(data[:cut])
        data = data[cut:]
    assert [frame for frame, _ in got] == sent


@given(st.binary(max_size=2000))
def test_garbage_is_a_documented_error_or_nothing(data: bytes) -> None:
    decoder = wire.FrameDecoder(1000)
    try:
        decoder.feed(data)
    except TowpathError as error:
        assert isinstance(error, ProtocolViolation | BadDescriptor)


def test_a_length_above_the_bound_is_refused_before_its_bytes_come() -> None:
    with pytest.raises(ProtocolViolation, match="1001 bytes"):
        wire.FrameDecoder(1000).feed((1001).to_bytes(4, "little"))


def test_descriptors_go_to_the_frames_that_declare_them() -> None:
    made = [wire.Descriptor(os.memfd_create("x")) for _ in range(3)]
    data = b"".join(
        wire.encode(Frame(id=index, descriptors=count)) for index, count in ((1, 1), (2, 0), (3, 2))
    )
    got = wire.FrameDecoder(1000).feed(data, made)
    assert [[each.fd for each in owned] for _, owned in got] == [[made[0].fd], [], [made[1].fd, made[2].fd]]


def test_too_few_and_too_many_descriptors() -> None:
    with pytest.raises(BadDescriptor, match="declares 1"):
        wire.FrameDecoder(1000).feed(wire.encode(Frame(id=1, descriptors=1)))
    with pytest.raises(BadDescriptor, match="no frame declares"):
        wire.FrameDecoder(1000).feed(wire.encode(Frame(id=1)), [wire.Descriptor(os.memfd_create("x"))])
    half = wire.encode(Frame(id=1, descriptors=1))[:3]
    with pytest.raises(BadDescriptor, match="more than"):
        wire.FrameDecoder(1000).feed(half, [wire.Descriptor(os.memfd_create("x")) for _ in range(65)])


def test_a_descriptor_closes_with_its_last_owner() -> None:
    owner = wire.Descriptor(os.memfd_create("x"))
    number = owner.fd
    os.fstat(number)
    del owner
    with pytest.raises(OSError):
        os.fstat(number)


def test_what_the_socket_does_not_take_stays_in_order() -> None:
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        outbox = wire.Outbox(10 << 20, descriptors_max=5_000)
        sent = frames(5_000)
        descriptor = wire.Descriptor(os.memfd_create("x"))
        for frame in sent:
            frame.descriptors = frame.id % 2
            outbox.put(wire.encode(frame), (descriptor,) if frame.descriptors else ())
        decoder = wire.FrameDecoder(1 << 16)
        got: list[wire.Incoming] = []
        while not outbox.flush(here) or len(got) < len(sent):
            got += decoder.feed(*wire.receive(there))
        assert [frame for frame, _ in got] == sent
        assert all(len(owned) == frame.descriptors for frame, owned in got)


def test_the_outbox_is_bounded() -> None:
    outbox = wire.Outbox(100, descriptors_max=1)
    outbox.put(b"x" * 200)  # one frame always fits
    with pytest.raises(SlowConsumer):
        outbox.put(b"x")
    full = wire.Outbox(1000, descriptors_max=1)
    with pytest.raises(SlowConsumer, match="descriptors"):
        full.put(b"x", (wire.Descriptor(os.memfd_create("x")), wire.Descriptor(os.memfd_create("x"))))


def test_the_other_side_is_gone() -> None:
    here, there = socket.socketpair()
    there.close()
    with here:
        assert wire.receive(here) == (b"", [])
        with pytest.raises(ConnectionLost):
            wire.send_once(here, b"x", ())


def test_descriptors_that_the_kernel_left_out_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = socket.socketpair()
    with here, there:
        monkeypatch.setattr(wire, "_ANCILLARY_BYTES", socket.CMSG_SPACE(4))
        wire.send_once(here, b"x", [wire.Descriptor(os.memfd_create("x")) for _ in range(3)])
        with pytest.raises(BadDescriptor, match="lost on arrival"):
            wire.receive(there)
