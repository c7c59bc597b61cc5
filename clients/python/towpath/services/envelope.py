"""The envelope: what stands before a message's own headers in the ring of a caller or an answerer.

A record of such a ring has, as its *headers*, the envelope and then the serialized ``towpath.v1.Headers``
(often
none), and as its *payload* the request's or the reply's bytes, untouched. All numbers are little-endian::

    request, 32 bytes                               reply, 16 bytes
    0   kind u8: REQUEST, CANCEL, GRANT             0   kind u8: REPLY, PART, END, ERROR, UNTOUCHED
    1   flags u8: IDEMPOTENT, STREAM                1   0, 7 bytes
    2   0, 2 bytes                                  8   call u64
    4   window u32, bytes
    8   server u64: the id of its reader
    16  call u64: the caller's number, from 1
    24  deadline u64: CLOCK_MONOTONIC, ns; 0: none

``REQUEST`` asks; with ``STREAM`` the caller takes any number of replies, and ``window`` says how many bytes
of them may be under way. ``GRANT`` opens that window by ``window`` bytes more. ``CANCEL`` ends a call from
the caller's side. ``REPLY`` is the only reply, or a stream's last; ``PART`` one of a stream, ``END`` its end
without another. The payload of ``ERROR`` is a serialized ``towpath.v1.Error``. ``UNTOUCHED`` says that the
server leaves, and did not begin with the call.

Both ends are checked by nobody but each other: whatever does not follow this is ignored by who reads it.
"""

from __future__ import annotations

import struct
from typing import Final

REQUEST: Final = 1
CANCEL: Final = 2
GRANT: Final = 3

REPLY: Final = 1
PART: Final = 2
END: Final = 3
ERROR: Final = 4
UNTOUCHED: Final = 5

IDEMPOTENT: Final = 1
STREAM: Final = 2

WINDOW_BYTES: Final = 1 << 20
"""How much of one stream may be under way: sent, and not taken by the caller's program."""
PART_BYTES: Final = 64
"""What a part of a stream counts beside its payload and headers, so that empty ones are bounded too."""
LEAVING: Final = (1 << 64) - 1
"""A server's load that says: send me no more."""

_REQUEST: Final = struct.Struct("<BBHIQQQ")
_REPLY: Final = struct.Struct("<B7xQ")
REQUEST_BYTES: Final = _REQUEST.size
REPLY_BYTES: Final = _REPLY.size


Asked = tuple[int, int, int, int, int, int, int]
"""A request's envelope: kind, flags, 0, window, server, call, deadline_ns. Plain, because there is one per
request.
"""


def request(
    kind: int, server: int, call: int, *, flags: int = 0, window: int = 0, deadline_ns: int = 0
) -> bytes:
    """Return the envelope of a request."""
    return _REQUEST.pack(kind, flags, 0, window, server, call, deadline_ns)


def reply(kind: int, call: int) -> bytes:
    """Return the envelope of a reply."""
    return _REPLY.pack(kind, call)


def open_request(raw: bytes) -> Asked | None:
    """Read the envelope that a record's headers begin with; None where there is none."""
    if len(raw) < REQUEST_BYTES:
        return None
    opened: Asked = _REQUEST.unpack_from(raw)
    return opened


def open_reply(raw: bytes) -> tuple[int, int] | None:
    """The same for a reply: its kind and call."""
    if len(raw) < REPLY_BYTES:
        return None
    opened: tuple[int, int] = _REPLY.unpack_from(raw)
    return opened


def part_bytes(payload_bytes: int, headers_bytes: int) -> int:
    """What a part of a stream takes of the window."""
    return payload_bytes + headers_bytes + PART_BYTES
