"""What travels on ``sub`` and ``push``: parts to values and back. Pure.

``sub`` sends three parts::

    channel     its name, ASCII; ZeroMQ matches subscriptions against the beginning of this part
    payload     as published
    meta        u64 source | u64 seq | u64 publish time (ns since the epoch), little-endian: 24 bytes
                then, only if the message has headers, a serialized towpath.v1.Headers

``push`` takes two or three: channel, payload, and a serialized towpath.v1.Headers, which may be empty.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from towpath.convert import decode_headers, encode_headers
from towpath.v1 import message_pb2

if TYPE_CHECKING:
    from towpath import Message

META: Final = struct.Struct("<QQQ")
"""source, seq, publish time in nanoseconds since the epoch."""

READY_PREFIX: Final = b"_towpath.ready."
"""Subscribing to this and anything behind it is answered by one message of just that name, with an empty
payload and a meta of zeros, as soon as what was subscribed to before is being read. No channel's name
begins so. Whoever subscribes to everything sees these messages too, and tells them by their source, which
is 0."""


def checked_headers(raw: bytes) -> bytes:
    """Return a peer's serialized headers as they may go into a ring.

    Raises:
        BadFrame: they are not ``towpath.v1.Headers``.
        InvalidArgument: a field is out of its range, or they are too long.
    """
    return encode_headers(decode_headers(raw)) if raw else b""


def runs(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Cut received messages into stretches of one source with contiguous seq, in their order."""
    start = 0
    for index in range(1, len(messages) + 1):
        if index == len(messages) or (
            messages[index].source != messages[index - 1].source
            or messages[index].seq != messages[index - 1].seq + 1
        ):
            yield messages[start:index]
            start = index


def fill_batch(batch: message_pb2.MessageBatch, run: Sequence[Message]) -> None:
    """Put one stretch of messages (see :func:`runs`) into an empty batch: a column at a time, no object per
    message."""
    batch.channel = run[0].channel
    batch.source = run[0].source
    batch.first_seq = run[0].seq
    batch.missed = run[0].missed
    batch.payloads.extend([message.payload for message in run])
    batch.publish_times_ns.extend([message.time_ns for message in run])
    column = [message.headers_raw for message in run]
    if any(column):
        batch.headers.extend([message_pb2.Headers.FromString(raw) for raw in column])
