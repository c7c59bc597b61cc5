"""Dead letters: what is written beside a message that its queue has given up.

Headers are serialized ``towpath.v1.Headers``. The core does not decode them: a map's entries may stand
anywhere in the bytes, and the last one of a name counts, so what is to be said is appended.

Source: https://protobuf.dev/programming-guides/encoding/ (maps, last one wins).
"""

from __future__ import annotations

from typing import Final

PREFIX: Final = "towpath-dead-letter-"
"""Begins the names of the user headers that say why: ``reason``, ``attempts``, ``queue``, ``first-time``."""
LETTER_BYTES_MAX: Final = 24_576
"""Bytes of a dead letter's headers: the most that clients may give, and what is added."""
DEATHS_MAX: Final = 4
"""How often what is said is appended: readers bound the number of entries."""
_USER_FIELD: Final = b"\x42"
"""Field 8 (``user``), length-delimited."""


def dead_letter_headers(headers: bytes, *, reason: str, attempts: int, queue: str, time_ns: int) -> bytes:
    """Return a message's headers with the reason why it is a dead letter.

    Where that would be too much (it has gone round in circles, say) its own are left out.

    Args:
        headers: serialized; as the message has them.
        attempts: how often it was delivered.
        time_ns: when it was first published, nanoseconds since the epoch.
    """
    said = {"reason": reason, "attempts": str(attempts), "queue": queue, "first-time": str(time_ns)}
    entries = b"".join(_entry(PREFIX + name, value) for name, value in said.items())
    is_too_much = (
        len(headers) + len(entries) > LETTER_BYTES_MAX
        or headers.count(_sized(f"{PREFIX}reason".encode())) >= DEATHS_MAX
    )
    return entries if is_too_much else headers + entries


def _entry(name: str, value: str) -> bytes:
    entry = b"\x0a" + _sized(name.encode()) + b"\x12" + _sized(value.encode())
    return _USER_FIELD + _sized(entry)


def _sized(data: bytes) -> bytes:
    size, prefix = len(data), bytearray()
    while size >= 0x80:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + data
