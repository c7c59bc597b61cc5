"""From the client library's lists to protobuf's columns. Pure: no I/O, no waiting, no gRPC.

Theory of operation
    What one ``receive_many`` gave is cut into runs (one source, contiguous seq), and each run becomes one
    response whose columns are filled by one ``extend`` each: per message there is no protobuf object,
    except its headers where it has some.

Not here: the other way, which is every carrier's (``towpath.convert.checked_publish``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from towpath.v1 import channels_pb2, message_pb2

if TYPE_CHECKING:
    from towpath import Message


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
