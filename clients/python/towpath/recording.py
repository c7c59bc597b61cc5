"""Recordings: messages in a file, as ``towpath tap --record`` writes them and ``towpath replay`` reads them.

Theory of operation
    A file is a magic, then records, each with its length and a check sum; the first says what the file is,
    every other one is a ``MessageBatch`` (a run of one source's messages with contiguous seqs). protos/
    towpath/v1/recording.proto has the layout. Records are appended whole, so whatever ends the recorder
    leaves a file of whole records and at most one that is cut short; a reader uses what is whole and says
    how much is not.

Invariants
    Encoding and decoding hold one record in memory. No record is larger than ``RECORD_BYTES_MAX``; what a
    file says of a record's length is checked before anything is read for it.
    What was recorded is read back equal, message by message: channel, source, seq, time, headers, payload,
    and how many were missed before it.

Not here: the live channel and the clock (``towpath.cli.tap``, ``towpath.cli.replay``).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Final, Protocol, TypeVar

from google.protobuf.message import DecodeError

from towpath._version import __version__
from towpath.errors import BadFrame, InvalidName
from towpath.names import check_name
from towpath.v1.message_pb2 import Headers, MessageBatch
from towpath.v1.recording_pb2 import RecordingHeader

MAGIC: Final = b"TOWPREC\n"
VERSION: Final = 1
SOURCES_MAX: Final = 65_536
"""Sources whose next seq is remembered, to notice what is missing."""
RECORD_BYTES_MAX: Final = (1 << 28) + (1 << 22)
"""A little more than the largest message takes."""

_PREFIX: Final = struct.Struct("<II")
_PIECE_BYTES: Final = 1 << 20


class MessageLike(Protocol):
    """What is recorded of a message."""

    @property
    def payload(self) -> bytes: ...
    @property
    def seq(self) -> int: ...
    @property
    def source(self) -> int: ...
    @property
    def time_ns(self) -> int: ...
    @property
    def channel(self) -> str: ...
    @property
    def headers_raw(self) -> bytes: ...


MessageT = TypeVar("MessageT", bound=MessageLike)


class Input(Protocol):
    """What is read of a file."""

    def read(self, size: int, /) -> bytes: ...


# ---- writing -----------------------------------------------------------------------------------------------


def encode_header(channel: str, started_at_ns: int) -> bytes:
    """Return the beginning of a file.

    Args:
        channel: the name or pattern that is recorded.
        started_at_ns: nanoseconds since the epoch.
    """
    header = RecordingHeader(
        version=VERSION,
        started_at_ns=started_at_ns,
        software=f"towpath-python/{__version__}",
        channel=channel,
    )
    return MAGIC + _record(header.SerializeToString())


def encode_batch(batch: MessageBatch) -> bytes:
    """Return a batch as a record, to be appended in one piece."""
    return _record(batch.SerializeToString())


class Gaps:
    """Notices which messages of a source are missing between those that came.

    Attributes:
        missed: in all.
    """

    def __init__(self) -> None:
        self.missed = 0
        self._next_seqs: dict[int, int] = {}

    def before(self, run: Sequence[MessageLike]) -> int:
        """How many are missing before a run; 0 for a source that is new."""
        first, last = run[0], run[-1]
        # Taken out and put back, so that the source that was silent longest is forgotten first.
        missed = max(first.seq - self._next_seqs.pop(first.source, first.seq), 0)
        if len(self._next_seqs) >= SOURCES_MAX:
            del self._next_seqs[next(iter(self._next_seqs))]
        self._next_seqs[first.source] = last.seq + 1
        self.missed += missed
        return missed


class Batcher:
    """Makes batches of messages as they were received.

    Attributes:
        unreadable: headers that are no ``towpath.v1.Headers``, in all; such a message is recorded without.
    """

    def __init__(self) -> None:
        self.unreadable = 0

    def batch(self, run: Sequence[MessageLike], missed: int) -> MessageBatch:
        """Make a batch of a run, before which so many messages are missing."""
        batch = MessageBatch(
            channel=run[0].channel,
            source=run[0].source,
            first_seq=run[0].seq,
            payloads=[message.payload for message in run],
            publish_times_ns=[message.time_ns for message in run],
            missed=missed,
        )
        column = [message.headers_raw for message in run]
        if any(column):
            batch.headers.extend(self._headers(raw) for raw in column)
        return batch

    def _headers(self, raw: bytes) -> Headers:
        try:
            return Headers.FromString(raw)
        except DecodeError:
            self.unreadable += 1
            return Headers()


def runs(messages: Sequence[MessageT]) -> Iterator[Sequence[MessageT]]:
    """Divide messages, in the order they were received, into runs of one source with contiguous seqs."""
    start = 0
    for index in range(1, len(messages)):
        before, after = messages[index - 1], messages[index]
        if after.source != before.source or after.seq != before.seq + 1:
            yield messages[start:index]
            start = index
    if messages:
        yield messages[start:]


def _record(body: bytes) -> bytes:
    assert len(body) <= RECORD_BYTES_MAX
    return _PREFIX.pack(len(body), zlib.crc32(body)) + body


# ---- reading -----------------------------------------------------------------------------------------------


class Recording:
    """A recording being read, once, from the beginning to the end.

    Args:
        file: at its beginning; stays the caller's.

    Attributes:
        header: what the file says of itself.
        position: bytes of the file that were read and are whole.
        lost_bytes: after the end: how much of the file the end cut short; 0 for a whole one.

    Raises:
        BadFrame: it is not a recording, or one of a later version.
    """

    header: RecordingHeader
    position: int
    lost_bytes: int

    def __init__(self, file: Input) -> None:
        self._file = file
        self.position = 0
        self.lost_bytes = 0
        magic = _read(file, len(MAGIC))
        if magic != MAGIC:
            raise BadFrame("this is not a recording", hint="make one with: towpath tap CHANNEL --record FILE")
        self.position = len(MAGIC)
        body = self._body()
        if body is None:
            raise BadFrame("the recording ends before it begins", hint="it was cut short; nothing is in it")
        try:
            self.header = RecordingHeader.FromString(body)
        except DecodeError:
            raise self._damaged() from None
        if not 1 <= self.header.version <= VERSION:
            raise BadFrame(
                f"the recording is of version {self.header.version}; this program reads up to {VERSION}",
                hint="update Towpath",
            )

    def __iter__(self) -> Iterator[MessageBatch]:
        """Yield the batches, to the last that is whole.

        Raises:
            BadFrame: the file is damaged; what came before is as it was recorded.
        """
        while (body := self._body()) is not None:
            try:
                batch = MessageBatch.FromString(body)
            except DecodeError:
                raise self._damaged() from None
            self._check(batch)
            yield batch

    def _body(self) -> bytes | None:
        """The next record's body; None at the end, which may have cut one short."""
        prefix = _read(self._file, _PREFIX.size)
        if len(prefix) < _PREFIX.size:
            self.lost_bytes = len(prefix)
            return None
        size, check_sum = _PREFIX.unpack(prefix)
        if size > RECORD_BYTES_MAX:
            raise self._damaged()
        body = _read(self._file, size)
        if len(body) < size:
            self.lost_bytes = len(prefix) + len(body)
            return None
        if zlib.crc32(body) != check_sum:
            raise self._damaged()
        self.position += len(prefix) + size
        return body

    def _check(self, batch: MessageBatch) -> None:
        count = len(batch.payloads)
        columns = (len(batch.publish_times_ns), len(batch.headers) or count)
        if count == 0 or columns != (count, count):
            raise self._damaged()
        try:
            check_name(batch.channel)
        except InvalidName:
            raise self._damaged() from None

    def _damaged(self) -> BadFrame:
        return BadFrame(
            f"the recording is damaged after {self.position:,} bytes", hint="what comes before can be used"
        )


def _read(file: Input, size: int) -> bytes:
    """Read so many bytes, or as many as there are; never asks for much more memory than it gets bytes."""
    pieces: list[bytes] = []
    while size > 0 and (piece := file.read(min(size, _PIECE_BYTES))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def headers_column(batch: MessageBatch) -> list[bytes] | None:
    """A batch's headers as ``publish_many`` takes them; None when no message has any."""
    if not batch.headers:
        return None
    return [each.SerializeToString(deterministic=True) for each in batch.headers]
