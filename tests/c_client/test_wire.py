"""The C client's codec beside protobuf: what both read out of the same bytes, and that no bytes harm it."""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import DecodeError

from tests.c_client.conftest import PROGRAMS
from tests.support.deadlines import DEADLINE_S
from towpath.v1 import channels_pb2, error_pb2, frame_pb2, registry_pb2
from towpath.v1.frame_pb2 import Frame

ERROR = error_pb2.Error(code=error_pb2.ERROR_CODE_QUEUE_FULL, message="full ✓", hint="wait", retryable=True)
OPTIONS = registry_pb2.ChannelOptions(
    kind=registry_pb2.KIND_QUEUE,
    durable=True,
    overflow=registry_pb2.OVERFLOW_REJECT,
    ring_bytes=1 << 30,
    order=registry_pb2.ORDER_TOTAL,
    history=65_536,
    stall_ms_max=86_400_000,
    capacity=5,
)
BIG = (1 << 64) - 1

# Where a field of a frame's body is found in what the C program prints.
NAMES = {"durable": "is_durable", "resume_token": "token", "retryable": "is_retryable"}


def frames() -> Iterator[Frame]:
    """One of each that a C client understands, with every field that it uses at its extreme."""
    channel = registry_pb2.Channel(name="a.b", options=OPTIONS, owner="uid:0", declared_at_ns=BIG)
    yield Frame(id=BIG, error=ERROR)
    yield Frame(
        id=1,
        descriptors=1,
        welcome=frame_pb2.Welcome(
            version=1,
            software="x",
            session=BIG,
            incarnation=3,
            principal="uid:1",
            first_id=1 << 63,
            id_count=99,
        ),
    )
    yield Frame(
        id=2, declare_channel_response=registry_pb2.DeclareChannelResponse(channel=channel, created=True)
    )
    yield Frame(id=3, get_channel_response=registry_pb2.GetChannelResponse(channel=channel))
    yield Frame(id=4, allocate_ids_response=frame_pb2.AllocateIdsResponse(first_id=BIG, id_count=4096))
    yield Frame(
        id=5,
        attach_source_response=frame_pb2.AttachSourceResponse(
            generation_index=65_535, generation=BIG, resume_token=bytes(16)
        ),
    )
    yield Frame(id=6, attach_reader_response=frame_pb2.AttachReaderResponse(resume_token=b"\xff" * 16))
    yield Frame(id=7, fetch_readers_response=frame_pb2.FetchReadersResponse(generation=1 << 40))
    yield Frame(
        descriptors=2,
        source_added=frame_pb2.SourceAdded(
            reader=1, source=BIG, slot=4095, from_start=True, origin="o", channel="é.x", from_history=True
        ),
    )
    yield Frame(
        descriptors=1,
        source_added=frame_pb2.SourceAdded(reader=1, source=2, slot=3, channel="c", tail=BIG - 7),
    )
    yield Frame(
        id=8, publish_response=channels_pb2.PublishResponse(source=1, first_seq=BIG, count=2, duplicates=1)
    )
    yield Frame(source_gone=frame_pb2.SourceGone(reader=1, source=2))
    yield Frame(
        descriptors=1,
        reader_added=frame_pb2.ReaderAdded(
            source=1, reader=2, slot=3, from_start=True, session=5, from_history=True
        ),
    )
    yield Frame(reader_gone=frame_pb2.ReaderGone(source=1, reader=2, is_parted=True))
    yield Frame(reader_gone=frame_pb2.ReaderGone(source=1, reader=2, return_ms=30_000))
    yield Frame(subscription_ended=frame_pb2.SubscriptionEnded(reader=1, error=ERROR))
    yield Frame(publication_ended=frame_pb2.PublicationEnded(source=1, error=ERROR))
    yield Frame(source_detached=frame_pb2.SourceDetached(reader=1, source=2, error=ERROR))
    yield Frame(publication_held=frame_pb2.PublicationHeld(source=1))
    yield Frame(publication_held=frame_pb2.PublicationHeld(source=1, error=ERROR))
    yield Frame(descriptors=1, doorbell_added=frame_pb2.DoorbellAdded())
    yield Frame(id=9, detach_stalled_response=frame_pb2.DetachStalledResponse())
    yield Frame(id=10)


def fields(message: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The fields of a body that are not at their default, under the C program's names."""
    for field, value in message.ListFields():
        if field.name in ("error", "channel", "options") and field.message_type is not None:
            yield from fields(value, "error_" if field.name == "error" else "")
            continue
        name = NAMES.get(field.name, prefix + field.name)
        if isinstance(value, str):
            yield name, value.encode().hex()
        elif isinstance(value, bytes):
            yield name, value.hex()
        elif isinstance(value, int):
            yield name, str(int(value))


def expected(frame: Frame) -> tuple[str, dict[str, str]]:
    kind = frame.WhichOneof("body")
    body = getattr(frame, kind) if kind else None
    number = Frame.DESCRIPTOR.fields_by_name[kind].number if kind else 0
    found = dict(fields(body, "error_" if kind == "error" else "")) if body is not None else {}
    if kind == "reader_added":
        found.pop("session", None)
    if frame.descriptors:
        found["descriptors"] = str(frame.descriptors)
    return f"{number} id={frame.id}", {name: value for name, value in found.items() if value not in ("", "0")}


def parsed(line: str) -> tuple[str, dict[str, str]]:
    number, call, *rest = line.split(" ")
    return f"{number} {call}", dict(item.split("=", 1) for item in rest)


Decode = Callable[[Sequence[bytes]], list[str]]


@pytest.fixture(scope="session")
def decode(programs: Callable[[Path], Path]) -> Decode:
    """Has the C program decode frames; a sanitizer's finding fails."""
    program = programs(PROGRAMS / "decode.c")

    def run(bodies: Sequence[bytes]) -> list[str]:
        data = b"".join(struct.pack("<I", len(body)) + body for body in bodies)
        done = subprocess.run(
            [str(program)], input=data, capture_output=True, check=False, timeout=DEADLINE_S
        )
        assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode()
        return done.stdout.decode().splitlines()

    return run


UNUSED = {
    "software", "incarnation", "error_principal", "principal", "created", "name", "owner", "publishers",
    "declared_at_ns", "capacity", "origin", "count", "duplicates",
}  # fmt: skip
"""Fields that a C client passes over."""


def test_it_reads_what_protobuf_writes(decode: Decode) -> None:
    all_frames = list(frames())
    lines = decode([frame.SerializeToString() for frame in all_frames])
    assert len(lines) == len(all_frames)
    for frame, line in zip(all_frames, lines, strict=True):
        head, found = expected(frame)
        assert parsed(line) == (head, {k: v for k, v in found.items() if k not in UNUSED}), frame


def test_it_passes_over_what_it_does_not_know(decode: Decode) -> None:
    frame = Frame(id=7, source_gone=frame_pb2.SourceGone(reader=1, source=2)).SerializeToString()
    unknown = b"\x9d\x7d\x01\x02\x03\x04" + b"\x99\x7d" + bytes(8) + b"\x92\x7d\x03abc" + b"\x98\x7d\x05"
    assert decode([unknown + frame, frame + unknown]) == decode([frame, frame])


@pytest.mark.parametrize(
    "body",
    [
        b"\x08",  # a field without its value
        b"\x08" + b"\x80" * 10 + b"\x00",  # a number of eleven bytes
        b"\x08" + b"\xff" * 9 + b"\x02",  # one of 65 bits
        b"\x00\x01",  # field 0
        b"\x0b\x0c",  # a group
        b"\x0f",  # wire type 7
        b"\x22\x05\x08\x01",  # a span longer than what is there
        b"\x22\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # by far
        b"\x22\x02\x12\x05",  # an inner one
        b"\x0d\x01\x02",  # four bytes, of which two are there
        b"\xaa\x01\x04\x0a\x02\x12\x01",  # three deep
    ],
)
def test_what_is_malformed_is_refused(decode: Decode, body: bytes) -> None:
    assert decode([body]) == ["malformed"]
    with pytest.raises(DecodeError):
        Frame.FromString(body + b"\x80")


@pytest.mark.parametrize("count", [4_000, pytest.param(400_000, marks=pytest.mark.long)])
def test_no_bytes_harm_it(decode: Decode, count: int) -> None:
    """Frames with bytes changed, cut and repeated. What both take, both read alike."""
    source = random.Random(20)
    whole = [frame.SerializeToString() for frame in frames()]
    mutated: list[bytes] = []
    for _ in range(count):
        body = bytearray(source.choice(whole))
        for _ in range(source.randrange(1, 4)):
            at = source.randrange(len(body) + 1)
            match source.randrange(4):
                case 0 if at < len(body):
                    body[at] = source.randrange(256)
                case 1:
                    del body[at:]
                case 2:
                    body[at:at] = source.randbytes(source.randrange(1, 12))
                case _:
                    body += source.choice(whole)
        mutated.append(bytes(body))
    both = 0
    for given, line in zip(mutated, decode(mutated), strict=True):
        try:
            frame = Frame.FromString(given)
        except DecodeError:
            continue
        kind = frame.WhichOneof("body")
        if line == "malformed" or (kind and not is_read(kind)):
            continue
        both += 1
        head, found = expected(frame)
        assert parsed(line) == (head, {k: v for k, v in found.items() if k not in UNUSED}), given.hex()
    assert both > count / 20


def is_read(kind: str) -> bool:
    return kind in {frame.WhichOneof("body") for frame in frames()}
