"""What is fuzzed: each decoder of something that others write, as a function of bytes.

A target returns, whatever the bytes are: the errors that its decoder's documentation names are fine, and
whatever else leaves it is a bug. What must hold of the outcome it asserts. ``TARGETS`` names them all; the
corpus has a folder of that name for each.

Not here: how inputs are found (``fuzz_one`` with atheris, ``test_corpus`` without).
"""

from __future__ import annotations

import fcntl
import io
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from towpath import bindings, convert, names, wire
from towpath._ring import Parcel, Reader, RingError, Writer, crc32c, pack
from towpath.errors import TowpathError
from towpath.framing import Framing, FramingOptions, decoder, encoder
from towpath.recording import Recording, encode_batch
from towpath_broker.core.commands import Caller
from towpath_broker.core.ids import CallId, SessionId
from towpath_broker.local import translate
from towpath_broker.settings import load_settings

FRAME_BYTES_MAX: Final = 4096
MESSAGES_MAX: Final = 1024
_CALLER: Final = Caller("uid:1", False, SessionId(1), CallId(1))
_PARCEL_HEADER: Final = struct.Struct("<IIIIQQ")
_PARCEL_MAGIC: Final = b"TCPL"
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def frames(data: bytes) -> None:
    """What arrives at the door: frames, and the commands that they ask for."""
    told, error = _frames(data, len(data) or 1)
    told_of_bytes, error_of_bytes = _frames(data, 1)
    assert error_of_bytes == error, "where the stream is cut makes no difference"
    # In one piece, frames before a broken one go down with it: the connection is closed either way.
    assert told_of_bytes == told or (error and not told)


def _frames(data: bytes, piece: int) -> tuple[list[str | None], str]:
    """The requests that came, and the error that ended it."""
    incoming = wire.FrameDecoder(FRAME_BYTES_MAX)
    told: list[str | None] = []
    try:
        for start in range(0, len(data), piece):
            for frame, _ in incoming.feed(data[start : start + piece]):
                request = frame.WhichOneof("body")
                told.append(request)
                if request is not None:
                    _command(request, getattr(frame, request))
    except TowpathError as error:
        return told, error.message
    return told, ""


def _command(request: str, body: object) -> None:
    try:
        translate.command_from(_CALLER, request, body)
    except TowpathError:
        return


def ring(data: bytes) -> None:
    """A ring with anything in it: the first 2 bytes say where the rest goes, over a true ring."""
    writer, reader = Writer(7, 4096), Reader(9, 4)
    try:
        writer.try_publish_many([b"true", b"ring"], headers=b"\x0a\x01t")
        place = int.from_bytes(data[:2], "little") % 8192
        forged = _forged(writer, {place: data[2:]} if len(data) > 2 else {})
        try:
            reader.add(forged, 0, 7, "a", True)
            last_seq = 0
            for _ in range(8):
                for message in reader.receive(MESSAGES_MAX, 1 << 20, 0):
                    assert message.source == 7 and message.seq > last_seq
                    last_seq = message.seq
            reader.take_violations()
        except RingError:
            pass
        finally:
            os.close(forged)
    finally:
        reader.close()
        writer.close()


def _forged(writer: Writer, changes: dict[int, bytes]) -> int:
    """A read-only descriptor of a copy of the ring, sealed as a true one is, and changed."""
    true = writer.share()
    forged = os.memfd_create("forged", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        content = bytearray(os.pread(true, os.fstat(true).st_size, 0))
        size = len(content)
        for place, data in changes.items():
            content[place : place + len(data)] = data
        os.write(forged, content[:size])
        fcntl.fcntl(forged, fcntl.F_ADD_SEALS, _SEALS)
        return os.open(f"/proc/self/fd/{forged}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(forged)
        os.close(true)


def parcel(data: bytes) -> None:
    """A parcel as a store might hold it: any records, and the header and CRC that would make them one."""
    count, records = int.from_bytes(data[:2], "little"), data[2:]
    size = _PARCEL_HEADER.size + len(records)
    covered = _PARCEL_HEADER.pack(0, 0, 1, count, sum(_content_bytes(records, count)), size)[8:] + records
    sealed = _PARCEL_MAGIC + crc32c(covered).to_bytes(4, "little") + covered
    try:
        opened = Parcel(sealed, 1)
    except RingError:
        return
    assert opened.count == count
    payloads, headers, times, origins = opened.unpack()
    again = pack(payloads, headers, 0, times, origins).data
    assert Parcel(again, 1).unpack() == (payloads, headers, times, origins)
    messages = opened.receive(MESSAGES_MAX, 1 << 20)
    assert [each.payload for each in messages] == payloads[: len(messages)]


def _content_bytes(records: bytes, count: int) -> Iterator[int]:
    """What each record says that it holds, as far as they follow each other."""
    place = 0
    for _ in range(count):
        if place + 32 > len(records):
            return
        nbytes = int.from_bytes(records[place : place + 4], "little")
        yield int.from_bytes(records[place + 24 : place + 28], "little")
        yield int.from_bytes(records[place + 28 : place + 32], "little")
        place += nbytes


def headers(data: bytes) -> None:
    """A message's headers, as any program may write them into its ring or a ZeroMQ peer into its meta."""
    try:
        decoded = convert.decode_headers(data)
        again = convert.encode_headers(decoded)
    except TowpathError:
        return
    assert convert.decode_headers(again) == decoded


_FRAMINGS: Final = (
    FramingOptions(Framing.LINE, frame_bytes_max=64),
    FramingOptions(Framing.DELIMITER, delimiter=b"\r\n", frame_bytes_max=64),
    FramingOptions(Framing.LENGTH, frame_bytes_max=64),
    FramingOptions(Framing.NETSTRING, frame_bytes_max=64),
    FramingOptions(Framing.FIXED, frame_bytes=5, frame_bytes_max=64),
    FramingOptions(Framing.RAW, frame_bytes_max=64),
)


def framing(data: bytes) -> None:
    """A byte stream: the first byte says which framing, the second how it is cut."""
    if len(data) < 2:
        return
    options, piece, stream = _FRAMINGS[data[0] % len(_FRAMINGS)], data[1] or 1, data[2:]
    whole, cut = decoder(options), decoder(options)
    at_once = [*whole.feed(stream), *whole.end()]
    pieces = [
        frame for start in range(0, len(stream), piece) for frame in cut.feed(stream[start : start + piece])
    ]
    pieces += cut.end()
    assert all(len(frame) <= options.frame_bytes_max for frame in at_once)
    if options.framing is not Framing.RAW:
        assert pieces == at_once and cut.refused == whole.refused
        again = decoder(options)
        carried = b"".join(encoder(options).encode(at_once))
        assert [*again.feed(carried), *again.end()] == at_once


def binding(data: bytes) -> None:
    """A binding's URL, and options one per line: ``key=value``."""
    url, *lines = data.decode("utf-8", "surrogateescape").split("\n")
    options = dict(line.split("=", 1) for line in lines if "=" in line)
    try:
        scheme, place = bindings.parse_url(url)
        bindings.parse_options(scheme, options)
        if scheme == "pipe":
            bindings.parse_command(place)
    except TowpathError:
        return


def settings(data: bytes) -> None:
    """A configuration file."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        try:
            load_settings(Path(file.name), environment={})
        except TowpathError:
            return


def name(data: bytes) -> None:
    """A channel's name and, after a newline, a pattern."""
    text, _, pattern = data.decode("utf-8", "surrogateescape").partition("\n")
    try:
        names.check_name(text)
        names.check_pattern(pattern)
        names.matches(pattern, text)
    except TowpathError:
        return


def recording(data: bytes) -> None:
    """A recording."""
    try:
        read = Recording(io.BytesIO(data))
        for batch in read:
            encode_batch(batch)
        assert read.position + read.lost_bytes == len(data)
    except TowpathError:
        return


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target
    for target in (frames, ring, parcel, headers, framing, binding, settings, name, recording)
}
