"""What a parcel contains, between its two forms: columns and packed.

Packed parcels are towpath_ring_parcel.h's, made and checked in C. Both stores read and write them by this
module, so that what goes in as columns comes out as what was stored, and a damaged one is found.
"""

from __future__ import annotations

from towpath import _ring
from towpath.errors import StoreDamaged
from towpath_broker.core.data.rows import Content, Run


def pack(content: Content) -> bytes:
    """Return a parcel's content in one piece."""
    if isinstance(content, bytes):
        return content
    return _ring.pack(
        content.payloads, content.headers, content.time_ns, content.times_ns, content.origins
    ).data


def opened(data: bytes, first_seq: int, channel: str) -> _ring.Parcel:
    """Return a packed parcel, checked.

    Raises:
        StoreDamaged: it is not what was stored.
    """
    try:
        return _ring.Parcel(data, first_seq, channel)
    except _ring.RingError as error:
        raise StoreDamaged(f"the messages of {channel!r} from {first_seq} on: {error}") from None


def unpack(data: bytes, first_seq: int, channel: str) -> Run:
    """Return a packed parcel in columns; those that say nothing are empty.

    Raises:
        StoreDamaged: it is not what was stored.
    """
    payloads, headers, times_ns, origins = opened(data, first_seq, channel).unpack()
    is_one_time = times_ns[0] == times_ns[-1] and len(set(times_ns)) == 1
    return Run(
        payloads,
        headers if any(headers) else (),
        times_ns[0],
        () if is_one_time else times_ns,
        origins if any(source for source, _ in origins) else (),
    )


def first_at(data: bytes, first_seq: int, channel: str, time_ns: int) -> int | None:
    """Return the seq of the first message that was published at a time or later."""
    times_ns = opened(data, first_seq, channel).unpack()[2]
    for index, at_ns in enumerate(times_ns):
        if at_ns >= time_ns:
            return first_seq + index
    return None
