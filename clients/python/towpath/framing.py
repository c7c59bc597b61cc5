"""Framing: how messages lie in a byte stream. Pure and sans-I/O; used by the bridge's adapters and by the
command line.

Theory of operation
    A FIFO, a pipe or a terminal carries bytes; a channel carries messages. A :class:`Decoder` is fed whatever
    a read returned and gives back the frames that became complete; an :class:`Encoder` gives one piece of
    bytes per payload.

    ============= ============================================ ===========================================
    framing       a frame in the stream                        what it cannot carry
    ============= ============================================ ===========================================
    ``line``      payload, ``\\n``. A ``\\r`` is payload.        a payload with ``\\n``
    ``delimiter`` payload, 1 to 16 bytes of your choice        a payload in which the delimiter would begin
    ``length``    u32 big-endian length, payload               nothing
    ``netstring`` ``12:hello world!,``                         nothing
    ``fixed``     ``frame_bytes`` bytes                        any other size
    ``raw``       none: what one read returned is a message    boundaries: they mean nothing
    ============= ============================================ ===========================================

    All work is done by C loops (split, find, slices), and each byte is copied a bounded number of times
    however small the pieces are in which it comes.

What goes wrong, and what follows
    *Too large.* A frame above ``frame_bytes_max`` is counted once, as soon as it is known to be too large,
    and never held in memory. The stream goes on after the next delimiter, or after the length that the frame
    declared.
    *Malformed.* Only a netstring can be: after it nothing in the stream can be trusted, so ``is_broken`` is
    set and what follows is ignored until ``end()``. An adapter closes the stream then and opens it anew.
    *Cut short.* ``end()`` says that the stream is over. With ``line`` and ``delimiter`` an unfinished last
    frame is a frame (files often lack the last newline); elsewhere it is counted as refused. Where a stream
    has no end, as in a FIFO whose writers come and go, ``end()`` is not called and the unfinished frame waits
    for its rest.
    *Cannot be carried.* The encoder leaves such a payload out and counts it; nothing is ever changed to make
    it fit.

Invariants
    ``refused`` grows by one for each frame or payload that was not carried; ``last_error`` says why the last
    was not.
    Memory: at most ``frame_bytes_max`` bytes plus what was fed last.
    decode(encode(payloads)) == payloads, for every split of the bytes and every framing but ``raw``.

Not here: reading and writing (the adapters), and the text form of options (``towpath.bindings``).

Sources: https://cr.yp.to/proto/netstrings.txt
"""

from __future__ import annotations

import ast
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import compress
from typing import Final

from towpath.errors import BadFrame, FrameTooLarge, InvalidArgument, TowpathError

DELIMITER_BYTES_MAX: Final = 16
FRAME_BYTES_MAX_DEFAULT: Final = 65_536
# A quarter of the largest ring: nothing above can be a message.
FRAME_BYTES_MAX_LIMIT: Final = 1 << 28

_LENGTH: Final = struct.Struct(">I")
# Enough for FRAME_BYTES_MAX_LIMIT and for what is larger by a slip, so that it is skipped rather than called
# malformed.
_NETSTRING_DIGITS_MAX: Final = 10


class Framing(StrEnum):
    """How messages lie in a byte stream."""

    LINE = "line"
    LENGTH = "length"
    NETSTRING = "netstring"
    DELIMITER = "delimiter"
    FIXED = "fixed"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class FramingOptions:
    """One framing, completely described.

    Attributes:
        framing: which.
        delimiter: 1 to 16 bytes; for ``delimiter`` only, and needed there.
        frame_bytes: size of every frame, 1 to ``frame_bytes_max``; for ``fixed`` only, and needed there.
        frame_bytes_max: largest payload, 1 to 2**28 bytes, without delimiter or length. With ``raw``, the
            largest piece.

    Raises:
        InvalidArgument: a value is out of its range, missing, or stated for a framing that has no use for it.
    """

    framing: Framing = Framing.LINE
    delimiter: bytes = b""
    frame_bytes: int = 0
    frame_bytes_max: int = FRAME_BYTES_MAX_DEFAULT

    def __post_init__(self) -> None:
        if not 1 <= self.frame_bytes_max <= FRAME_BYTES_MAX_LIMIT:
            raise InvalidArgument(
                f"frame_bytes_max is {self.frame_bytes_max}; 1 to {FRAME_BYTES_MAX_LIMIT} are allowed"
            )
        if self.framing is Framing.DELIMITER:
            if not 1 <= len(self.delimiter) <= DELIMITER_BYTES_MAX:
                raise InvalidArgument(
                    f"a delimiter has 1 to {DELIMITER_BYTES_MAX} bytes; this one has {len(self.delimiter)}",
                    hint=r"state it with framing=delimiter delimiter=..., for example \r\n",
                )
        elif self.delimiter:
            raise InvalidArgument(f"framing {self.framing} has no delimiter", hint="use framing=delimiter")
        if self.framing is Framing.FIXED:
            if not 1 <= self.frame_bytes <= self.frame_bytes_max:
                raise InvalidArgument(
                    f"frame_bytes is {self.frame_bytes}; 1 to frame_bytes_max ({self.frame_bytes_max}) "
                    "are allowed",
                    hint="state it with framing=fixed frame_bytes=N",
                )
        elif self.frame_bytes:
            raise InvalidArgument(f"framing {self.framing} has no frame_bytes", hint="use framing=fixed")


class _Coder:
    """What decoders and encoders share: the account of what was not carried."""

    def __init__(self, options: FramingOptions) -> None:
        self.options = options
        self.refused = 0
        self.last_error: TowpathError | None = None

    def _refuse(self, error: TowpathError, count: int = 1) -> None:
        self.refused += count
        self.last_error = error

    def _too_large(self, size: int, *, more: bool = False) -> FrameTooLarge:
        known = f"more than {size - 1}" if more else f"{size}"
        return FrameTooLarge(f"a frame has {known} bytes; {self.options.frame_bytes_max} are allowed")

    def _within_limit(self, payloads: list[bytes]) -> list[bytes]:
        limit = self.options.frame_bytes_max
        if not payloads or len(max(payloads, key=len)) <= limit:
            return payloads
        bad = [payload for payload in payloads if len(payload) > limit]
        self._refuse(self._too_large(len(bad[-1])), len(bad))
        return [payload for payload in payloads if len(payload) <= limit]


class Decoder(_Coder, ABC):
    """Turns a byte stream into frames.

    Attributes:
        refused: frames that were too large, malformed or cut short.
        last_error: why the last of them was refused; None when none was.
        is_broken: the stream cannot be followed any more; ``feed`` ignores everything until ``end``.
    """

    def __init__(self, options: FramingOptions) -> None:
        super().__init__(options)
        self.is_broken = False

    @property
    @abstractmethod
    def pending_bytes(self) -> int:
        """Bytes held of a frame that is not complete."""

    @abstractmethod
    def feed(self, data: bytes) -> list[bytes]:
        """Take what came and give the frames that are complete.

        Args:
            data: any number of bytes, split anywhere.

        Returns:
            The payloads, in order; often none. Refused frames are left out and counted. O(len(data))
            amortised.
        """

    def state(self) -> bytes:
        """Return where in the stream this decoder is, for :meth:`restore` of another one of the same options;
        ``last_error`` is not in it. O(pending_bytes).
        """
        values = {
            name: bytes(value) if isinstance(value, bytearray) else value
            for name, value in vars(self).items()
            if isinstance(value, (int, bytes, bytearray))
        }
        return repr(values).encode()

    def restore(self, state: bytes) -> None:
        """Go on in the stream where the decoder was that gave this state.

        Raises:
            ValueError: no decoder of these options gave it; nothing was changed.
        """
        try:
            values = ast.literal_eval(state.decode())
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(f"no decoder's state: {error}") from None
        mine = {
            name: value for name, value in vars(self).items() if isinstance(value, (int, bytes, bytearray))
        }
        if not isinstance(values, dict) or values.keys() != mine.keys():
            raise ValueError("the state of another decoder")
        for name, value in mine.items():
            wanted = bytes if isinstance(value, bytearray) else type(value)
            if type(values[name]) is not wanted:
                raise ValueError(f"{name} is {values[name]!r}")
        for name, value in mine.items():
            setattr(self, name, type(value)(values[name]))

    @abstractmethod
    def end(self) -> list[bytes]:
        """Say that the stream is over, and be ready for another one.

        Returns:
            The unfinished last frame where that is a frame (``line``, ``delimiter``), else nothing.
        """


class Encoder(_Coder, ABC):
    """Turns payloads into a byte stream.

    Attributes:
        refused: payloads that the framing cannot carry.
        last_error: why the last of them was refused; None when none was.
    """

    @abstractmethod
    def encode(self, payloads: Sequence[bytes]) -> list[bytes]:
        """Frame payloads.

        Args:
            payloads: any number.

        Returns:
            One piece of bytes per payload that can be carried, in order. Joined, they are the stream.
        """

    def _sift(self, pieces: Sequence[bytes], carried: Sequence[bool], error: TowpathError) -> list[bytes]:
        """Keep the pieces that can be carried, and count the others."""
        refused = len(pieces) - sum(carried)
        if refused:
            self._refuse(error, refused)
        return list(compress(pieces, carried))


def decoder(options: FramingOptions) -> Decoder:
    """Make the decoder for a framing; O(1)."""
    return _CODERS[options.framing][0](options)


def encoder(options: FramingOptions) -> Encoder:
    """Make the encoder for a framing; O(1)."""
    return _CODERS[options.framing][1](options)


# -- line, delimiter -----------------------------------------------------------------------------------------


def _delimiter_of(options: FramingOptions) -> bytes:
    return options.delimiter or b"\n"


class _DelimiterDecoder(Decoder):
    """Splits at each delimiter.

    ``_tail`` holds the last bytes that came, one fewer than the delimiter has: a delimiter cut in two shows
    when the next bytes are put behind it, and no byte but these few is looked at twice. All before is surely
    payload.
    """

    def __init__(self, options: FramingOptions) -> None:
        super().__init__(options)
        self._delimiter = _delimiter_of(options)
        self._tail_bytes = len(self._delimiter) - 1
        self._head = bytearray()
        self._tail = b""
        self._skipped_bytes = 0  # above 0: inside a frame that is too large

    @property
    def pending_bytes(self) -> int:
        return len(self._head) + len(self._tail)

    def feed(self, data: bytes) -> list[bytes]:
        frames = (self._tail + data).split(self._delimiter) if self._tail else data.split(self._delimiter)
        rest = frames.pop()
        if frames:
            if self._skipped_bytes:
                self._end_of_skipped(frames.pop(0))
            elif self._head:
                frames[0] = bytes(self._head) + frames[0]
                self._head.clear()
            frames = self._within_limit(frames)
        cut = max(len(rest) - self._tail_bytes, 0)
        self._tail = rest[cut:]
        self._hold(rest[:cut])
        return frames

    def end(self) -> list[bytes]:
        last = bytes(self._head) + self._tail
        self._head.clear()
        self._tail = b""
        if self._skipped_bytes:
            self._end_of_skipped(last)
            return []
        return self._within_limit([last]) if last else []

    def _hold(self, payload: bytes) -> None:
        if self._skipped_bytes:
            self._skipped_bytes += len(payload)
        elif len(self._head) + len(payload) > self.options.frame_bytes_max:
            self._skipped_bytes = len(self._head) + len(payload)
            self._head.clear()
            self._refuse(self._too_large(self._skipped_bytes, more=True))
        else:
            self._head += payload

    def _end_of_skipped(self, payload: bytes) -> None:
        # Counted when it became too large; now its size is known.
        self.last_error = self._too_large(self._skipped_bytes + len(payload))
        self._skipped_bytes = 0


class _DelimiterEncoder(Encoder):
    def __init__(self, options: FramingOptions) -> None:
        super().__init__(options)
        self._delimiter = _delimiter_of(options)

    def encode(self, payloads: Sequence[bytes]) -> list[bytes]:
        delimiter = self._delimiter
        frames = [payload + delimiter for payload in self._within_limit(list(payloads))]
        # Not `in`: with the delimiter "aa", the payload "xa" has none and yet would be read as "x" and
        # "a...".
        carried = [frame.find(delimiter) == len(frame) - len(delimiter) for frame in frames]
        if all(carried):
            return frames
        return self._sift(frames, carried, BadFrame(f"a payload contains the delimiter {delimiter!r}"))


# -- length, netstring ---------------------------------------------------------------------------------------


class _PrefixedDecoder(Decoder):
    """Frames that say their size first. Subclasses read one header; this class assembles, skips and keeps the
    rest."""

    _trailer_bytes = 0

    def __init__(self, options: FramingOptions) -> None:
        super().__init__(options)
        self._held = bytearray()
        self._needed_bytes = 1  # how many _held must have before looking at it again can pay
        self._skip_bytes = 0  # of a frame that is too large, still to come (without the trailer)

    @property
    def pending_bytes(self) -> int:
        return len(self._held)

    def feed(self, data: bytes) -> list[bytes]:
        if self.is_broken:
            return []
        if self._held:
            self._held += data
            if len(self._held) < self._needed_bytes:
                return []
            data = bytes(self._held)
            self._held.clear()
        frames: list[bytes] = []
        consumed = self._parse(data, frames)
        if not self.is_broken:
            self._held += data[consumed:]
        return frames

    def end(self) -> list[bytes]:
        if not self.is_broken and (self._held or self._skip_bytes):
            self._cut_short()
        self._held.clear()
        self._skip_bytes = 0
        self._needed_bytes = 1
        self.is_broken = False
        return []

    def _cut_short(self) -> None:
        # A frame that is being skipped was counted when it began.
        if not self._skip_bytes:
            self._refuse(BadFrame(f"the stream ended inside a frame, after {len(self._held)} bytes of it"))

    def _parse(self, data: bytes, frames: list[bytes]) -> int:
        """Append the complete frames of data; return how many bytes are done with."""
        position, size = 0, len(data)
        limit, trailer = self.options.frame_bytes_max, self._trailer_bytes
        while position < size:
            if self._skip_bytes:
                skipped = min(self._skip_bytes, size - position)
                self._skip_bytes -= skipped
                position += skipped
                continue
            header = self._header(data, position)
            if header is None:
                break
            start, payload_bytes = header
            if payload_bytes > limit:
                self._refuse(self._too_large(payload_bytes))
                self._skip_bytes = payload_bytes + trailer
                position = start
                continue
            stop = start + payload_bytes
            if stop + trailer > size:
                self._needed_bytes = stop + trailer - position
                break
            if trailer and not self._check_trailer(data, stop):
                break
            frames.append(data[start:stop])
            position = stop + trailer
        return position

    @abstractmethod
    def _header(self, data: bytes, position: int) -> tuple[int, int] | None:
        """Where the payload starts, and its size; None when the header is incomplete (or the stream
        broken)."""

    def _check_trailer(self, data: bytes, position: int) -> bool:
        """Whether what follows a payload is as it must be; asked only where ``_trailer_bytes`` is not 0."""
        return True


class _LengthDecoder(_PrefixedDecoder):
    def _header(self, data: bytes, position: int) -> tuple[int, int] | None:
        start = position + _LENGTH.size
        if start > len(data):
            self._needed_bytes = _LENGTH.size
            return None
        return start, _LENGTH.unpack_from(data, position)[0]


class _NetstringDecoder(_PrefixedDecoder):
    """The comma of a frame that is skipped is skipped with it, unseen: if it was none, the next header will
    not parse."""

    _trailer_bytes = 1

    def _header(self, data: bytes, position: int) -> tuple[int, int] | None:
        window = data[position : position + _NETSTRING_DIGITS_MAX + 1]
        digits, colon, _ = window.partition(b":")
        is_number = digits.isdigit() and (digits == b"0" or not digits.startswith(b"0"))
        if (digits and not is_number) or (colon and not digits):
            self._break(f"a netstring begins with {window[:_NETSTRING_DIGITS_MAX]!r}, not with a length")
            return None
        if not colon:
            if len(window) > _NETSTRING_DIGITS_MAX:
                self._break(f"a netstring's length has more than {_NETSTRING_DIGITS_MAX} digits")
                return None
            self._needed_bytes = len(window) + 1
            return None
        return position + len(digits) + 1, int(digits)

    def _check_trailer(self, data: bytes, position: int) -> bool:
        if data[position] == ord(","):
            return True
        self._break("a netstring does not end with a comma")
        return False

    def _break(self, message: str) -> None:
        self.is_broken = True
        self._refuse(BadFrame(message))


class _LengthEncoder(Encoder):
    def encode(self, payloads: Sequence[bytes]) -> list[bytes]:
        pack = _LENGTH.pack
        return [pack(len(payload)) + payload for payload in self._within_limit(list(payloads))]


class _NetstringEncoder(Encoder):
    def encode(self, payloads: Sequence[bytes]) -> list[bytes]:
        return [b"%d:%b," % (len(payload), payload) for payload in self._within_limit(list(payloads))]


# -- fixed, raw ----------------------------------------------------------------------------------------------


class _FixedDecoder(Decoder):
    def __init__(self, options: FramingOptions) -> None:
        super().__init__(options)
        self._held = bytearray()

    @property
    def pending_bytes(self) -> int:
        return len(self._held)

    def feed(self, data: bytes) -> list[bytes]:
        size = self.options.frame_bytes
        if self._held:
            self._held += data
            if len(self._held) < size:
                return []
            data = bytes(self._held)
            self._held.clear()
        whole_bytes = len(data) - len(data) % size
        self._held += data[whole_bytes:]
        return [data[start : start + size] for start in range(0, whole_bytes, size)]

    def end(self) -> list[bytes]:
        if self._held:
            size = self.options.frame_bytes
            self._refuse(BadFrame(f"the stream ended {len(self._held)} bytes into a frame of {size}"))
            self._held.clear()
        return []


class _FixedEncoder(Encoder):
    def encode(self, payloads: Sequence[bytes]) -> list[bytes]:
        size = self.options.frame_bytes
        carried = [len(payload) == size for payload in payloads]
        return self._sift(
            payloads, carried, BadFrame(f"a payload does not have {size} bytes, as each frame must")
        )


class _RawDecoder(Decoder):
    pending_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        limit = self.options.frame_bytes_max
        if len(data) <= limit:
            return [data] if data else []
        return [data[start : start + limit] for start in range(0, len(data), limit)]

    def end(self) -> list[bytes]:
        return []


class _RawEncoder(Encoder):
    def encode(self, payloads: Sequence[bytes]) -> list[bytes]:
        return list(payloads)


_CODERS: Final[dict[Framing, tuple[type[Decoder], type[Encoder]]]] = {
    Framing.LINE: (_DelimiterDecoder, _DelimiterEncoder),
    Framing.DELIMITER: (_DelimiterDecoder, _DelimiterEncoder),
    Framing.LENGTH: (_LengthDecoder, _LengthEncoder),
    Framing.NETSTRING: (_NetstringDecoder, _NetstringEncoder),
    Framing.FIXED: (_FixedDecoder, _FixedEncoder),
    Framing.RAW: (_RawDecoder, _RawEncoder),
}
