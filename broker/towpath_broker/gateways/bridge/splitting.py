r"""A message in pieces, for a mechanism that takes only small ones, and whole again on the other side.

Theory of operation
    Each piece begins with 24 bytes, little-endian::

        "TPm1"  u32 stream  u32 number  u32 offset  u64 total bytes

    ``stream`` is drawn by chance for each writer's attachment, ``number`` counts its messages. A writer sends
    a message's pieces one behind the other, so within one stream and one priority they arrive in order; a
    higher priority may come in between, and is joined separately. Where a piece begins another message before
    the last one was whole, that one will never be: its writer died, or somebody else took pieces of it.

Invariants
    Every message is given out whole and once, or counted as refused. At most ``UNFINISHED_MAX`` messages are
    unfinished, each of at most ``bytes_max``.
"""

from __future__ import annotations

import struct
from typing import Final

from towpath.errors import BadFrame, MessageTooLarge

MAGIC: Final = b"TPm1"
_HEAD: Final = struct.Struct("<4sIIIQ")
HEAD_BYTES: Final = _HEAD.size
UNFINISHED_MAX: Final = 16


class Splitter:
    """Cuts messages.

    Args:
        piece_bytes_max: what the mechanism takes, above ``HEAD_BYTES``.
        stream: names this attachment of this writer.
    """

    def __init__(self, piece_bytes_max: int, stream: int) -> None:
        self._room_bytes = piece_bytes_max - HEAD_BYTES
        assert self._room_bytes > 0
        self._stream = stream
        self._number = 0

    def split(self, payload: bytes) -> list[bytes]:
        """Return a message's pieces, at least one."""
        self._number = (self._number + 1) & 0xFFFF_FFFF
        room, total = self._room_bytes, len(payload)
        return [
            _HEAD.pack(MAGIC, self._stream, self._number, offset, total) + payload[offset : offset + room]
            for offset in range(0, max(total, 1), room)
        ]


class _Unfinished:
    __slots__ = ("data", "number", "total_bytes")

    def __init__(self, number: int, total_bytes: int) -> None:
        self.number = number
        self.total_bytes = total_bytes
        self.data: bytearray | None = bytearray()  # None: too long; its pieces are passed over


class Joiner:
    """Joins pieces.

    Args:
        bytes_max: the longest message.

    Attributes:
        refused: how many messages will not be whole.
        last_error: why the last of them will not.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._unfinished: dict[tuple[int, int], _Unfinished] = {}
        self.refused = 0
        self.last_error: BadFrame | MessageTooLarge | None = None

    def feed(self, piece: bytes, mark: int) -> bytes | None:
        """Take one piece.

        Args:
            piece: as it came.
            mark: its priority: pieces of one message have the same.

        Returns:
            The message that it completes, if any.
        """
        if len(piece) < HEAD_BYTES or not piece.startswith(MAGIC):
            self._refuse(BadFrame("a message is no piece of one: its writer is no binding with split=true"))
            return None
        _, stream, number, offset, total_bytes = _HEAD.unpack_from(piece)
        key = (stream, mark)
        current = self._unfinished.get(key)
        if offset == 0 or current is None or current.number != number or current.total_bytes != total_bytes:
            if current is not None:
                self._drop(key)
            current = self._begin(key, number, total_bytes)
        is_last = offset + len(piece) - HEAD_BYTES >= total_bytes
        if current.data is not None and offset != len(current.data):
            self._refuse(BadFrame(f"of a message's first {offset} bytes only {len(current.data)} came"))
            current.data = None  # the pieces that follow are passed over, and not counted again
        if is_last:
            del self._unfinished[key]
        if current.data is None:
            return None
        current.data += memoryview(piece)[HEAD_BYTES:]
        if len(current.data) > total_bytes:
            self._refuse(BadFrame(f"a message of {total_bytes} bytes has {len(current.data)}"))
            return None
        return bytes(current.data) if is_last else None

    def end(self) -> None:
        """Nothing more will come."""
        for key in list(self._unfinished):
            self._drop(key)

    def _begin(self, key: tuple[int, int], number: int, total_bytes: int) -> _Unfinished:
        if len(self._unfinished) >= UNFINISHED_MAX:
            self._drop(next(iter(self._unfinished)))
        begun = self._unfinished[key] = _Unfinished(number, total_bytes)
        if total_bytes > self._bytes_max:
            begun.data = None
            self._refuse(
                MessageTooLarge(
                    f"a message in pieces has {total_bytes} bytes; split_bytes_max is {self._bytes_max}"
                )
            )
        return begun

    def _drop(self, key: tuple[int, int]) -> None:
        dropped = self._unfinished.pop(key)
        if dropped.data is not None:
            self._refuse(
                BadFrame(f"only {len(dropped.data)} of a message's {dropped.total_bytes} bytes came")
            )

    def _refuse(self, error: BadFrame | MessageTooLarge) -> None:
        self.refused += 1
        self.last_error = error
