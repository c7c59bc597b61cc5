"""Between protobuf's columns and the client library's lists. Pure: no I/O, no waiting, no gRPC.

Theory of operation
    Inward, a request is checked as a whole before anything of it is published. Outward, what one
    ``receive_many`` gave is cut into runs (one source, contiguous seq), and each run becomes one response
    whose columns are filled by one ``extend`` each: per message there is no protobuf object, except its
    headers where it has some.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from towpath.convert import HEADERS_BYTES_MAX, USER_HEADER_NAME_BYTES_MAX, USER_HEADERS_MAX
from towpath.errors import InvalidArgument
from towpath.v1 import channels_pb2, message_pb2

if TYPE_CHECKING:
    from towpath import Message

PAYLOADS_MAX: Final = 10_000
PRIORITY_MAX: Final = 31


def unpack(
    request: channels_pb2.PublishRequest | channels_pb2.PublishStreamRequest,
) -> tuple[list[bytes], list[bytes] | None]:
    """Check a publish request and take its columns out.

    Args:
        request: as it came from the peer; its channel is not looked at.

    Returns:
        The payloads, and their headers, serialized (``b""`` for a message without), or None when none has
        any.

    Raises:
        InvalidArgument: the number of payloads or headers, or a header, is out of bounds.
    """
    count = len(request.payloads)
    if not 1 <= count <= PAYLOADS_MAX:
        raise InvalidArgument(f"the request has {count} payloads; 1 to {PAYLOADS_MAX} are allowed")
    if not request.headers:
        return list(request.payloads), None
    if len(request.headers) != count:
        raise InvalidArgument(
            f"the request has {count} payloads and {len(request.headers)} headers",
            hint="leave `headers` empty, or give one per payload: an empty one where a message has none",
        )
    return list(request.payloads), [_encode(index, headers) for index, headers in enumerate(request.headers)]


def _encode(index: int, headers: message_pb2.Headers) -> bytes:
    if headers.priority > PRIORITY_MAX:
        raise InvalidArgument(
            f"message {index} has priority {headers.priority}; 0 to {PRIORITY_MAX} are allowed"
        )
    if len(headers.user) > USER_HEADERS_MAX:
        raise InvalidArgument(
            f"message {index} has {len(headers.user)} user headers; at most {USER_HEADERS_MAX} are allowed"
        )
    for name in headers.user:
        if not 1 <= len(name.encode()) <= USER_HEADER_NAME_BYTES_MAX:
            raise InvalidArgument(
                f"message {index}: the user header {name[:40]!r} is not "
                f"1 to {USER_HEADER_NAME_BYTES_MAX} bytes long"
            )
    raw = headers.SerializeToString()
    if len(raw) > HEADERS_BYTES_MAX:
        raise InvalidArgument(
            f"message {index} has {len(raw)} bytes of headers; at most {HEADERS_BYTES_MAX} are allowed"
        )
    return raw


def pack(messages: Sequence[Message]) -> tuple[list[channels_pb2.SubscribeResponse], int]:
    """Pack received messages into responses, in their order.

    Args:
        messages: at least one.

    Returns:
        One response per run of one source with contiguous seq (usually that is one), and the number of
        messages whose headers are no protobuf ``Headers``: those go without, because a program that writes
        nonsense into its ring must not end the streams of others.
    """
    responses: list[channels_pb2.SubscribeResponse] = []
    unreadable = 0
    for run in runs(messages):
        response = channels_pb2.SubscribeResponse()
        batch = response.batch
        batch.channel = run[0].channel
        batch.source = run[0].source
        batch.first_seq = run[0].seq
        batch.missed = run[0].missed
        batch.payloads.extend([message.payload for message in run])
        batch.publish_times_ns.extend([message.time_ns for message in run])
        column = [message.headers_raw for message in run]
        if any(column):
            unreadable += _fill_headers(batch, column)
        responses.append(response)
    return responses, unreadable


def _fill_headers(batch: message_pb2.MessageBatch, column: Sequence[bytes]) -> int:
    """Fill the headers column; return how many could not be read."""
    unreadable = 0
    for raw in column:
        headers = batch.headers.add()
        try:
            headers.MergeFromString(raw)
        except DecodeError:
            headers.Clear()
            unreadable += 1
    return unreadable


def runs(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Cut messages into stretches of one source with contiguous seq.

    Args:
        messages: at least one; seq grows within each source.

    Returns:
        The stretches, in order.
    """
    first, last = messages[0], messages[-1]
    # Nearly always there is one stretch, and then comparing the ends is enough, because seq grows.
    if last.seq - first.seq == len(messages) - 1 and len({message.source for message in messages}) == 1:
        yield messages
        return
    start = 0
    for index in range(1, len(messages)):
        before, after = messages[index - 1], messages[index]
        if after.source != before.source or after.seq != before.seq + 1:
            yield messages[start:index]
            start = index
    yield messages[start:]
