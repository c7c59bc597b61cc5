"""Between frames and the data plane: a command from a request, a frame from an effect. Pure.

Each request has one row in ``_REQUESTS``: how its command is made. ``PublishRequest`` is here too, for queues
and durable topics; for other channels it is ``translate``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from google.protobuf.message import DecodeError

from towpath import convert
from towpath.errors import InvalidArgument
from towpath.v1 import channels_pb2, message_pb2, queues_pb2, store_pb2, values_pb2
from towpath.v1.frame_pb2 import Frame
from towpath_broker.core.commands import Caller
from towpath_broker.core.data import commands as c
from towpath_broker.core.data import effects as e
from towpath_broker.core.data.rows import StoredValue

RANGES_MAX: Final = 65_536
"""Ranges of deliveries in one request."""

# ---- from requests -----------------------------------------------------------------------------------------


def _publish(caller: Caller, body: channels_pb2.PublishRequest) -> c.Publish:
    count = len(body.payloads)
    if not 1 <= count <= convert.PAYLOADS_MAX:
        raise InvalidArgument(f"the request has {count} payloads; 1 to {convert.PAYLOADS_MAX} are allowed")
    payloads = list(body.payloads)
    fences = _fences(body)
    if not body.headers:
        return c.Publish(caller, body.channel, payloads, fences=fences)
    if len(body.headers) != count:
        raise InvalidArgument(
            f"the request has {count} payloads and {len(body.headers)} headers",
            hint="leave `headers` empty, or give one per payload, an empty one for a message without",
        )
    headers = [_headers(each) for each in body.headers]
    if not any(headers):
        return c.Publish(caller, body.channel, payloads, fences=fences)
    return c.Publish(
        caller,
        body.channel,
        payloads,
        headers,
        _column([each.priority for each in body.headers]),
        _column([each.deliver_at_ns for each in body.headers]),
        _column([each.message_id for each in body.headers]),
        fences,
    )


def _fences(body: Any) -> Sequence[c.Fence]:
    """Return the fence of a request that may have one."""
    return (c.Fence(body.fence.lock, body.fence.token),) if body.HasField("fence") else ()


def _column(values: list[Any]) -> Sequence[Any]:
    """Return a column; empty where it says nothing."""
    return values if any(values) else ()


def _headers(headers: message_pb2.Headers) -> bytes:
    """Return a message's headers, checked, as they are kept."""
    if headers.user or headers.ByteSize() > convert.HEADERS_BYTES_MAX:
        return convert.encode_headers(convert.headers_from_proto(headers))
    return headers.SerializeToString()


def _ranges(ranges: Sequence[queues_pb2.DeliveryRange]) -> list[c.Range]:
    if len(ranges) > RANGES_MAX:
        raise InvalidArgument(f"{len(ranges)} ranges; at most {RANGES_MAX} are allowed")
    return [c.Range(each.first, each.last) for each in ranges]


def _settle(caller: Caller, body: queues_pb2.SettleRequest) -> c.Settle:
    return c.Settle(
        caller,
        body.consumer,
        _ranges(body.acknowledged),
        [
            c.Returned(deliveries, each.delay_ms, each.is_rejected, each.reason)
            for each, deliveries in zip(
                body.returned, _ranges([each.deliveries for each in body.returned]), strict=True
            )
        ],
        [
            c.Extended(deliveries, each.ack_ms)
            for each, deliveries in zip(
                body.extended, _ranges([each.deliveries for each in body.extended]), strict=True
            )
        ],
    )


def _set_value(caller: Caller, body: values_pb2.SetValueRequest) -> c.SetValue:
    return c.SetValue(
        caller,
        body.channel,
        body.payload,
        _headers(body.headers) if body.HasField("headers") else b"",
        body.if_version if body.HasField("if_version") else None,
        _fences(body),
    )


def _delete_value(caller: Caller, body: values_pb2.DeleteValueRequest) -> c.DeleteValue:
    if_version = body.if_version if body.HasField("if_version") else None
    return c.DeleteValue(caller, body.channel, if_version, _fences(body))


def _watch_value(caller: Caller, body: values_pb2.WatchValueRequest) -> c.WatchValue:
    return c.WatchValue(caller, body.channel, body.after_version if body.HasField("after_version") else None)


def _find_stored(caller: Caller, body: store_pb2.FindStoredRequest) -> c.FindStored:
    start, value = c.StartAt.PLACE, 0
    match body.start.WhichOneof("at"):
        case "is_new":
            start = c.StartAt.NEW
        case "is_all":
            start = c.StartAt.ALL
        case "seq":
            start, value = c.StartAt.SEQ, body.start.seq
        case "time_ns":
            start, value = c.StartAt.TIME, body.start.time_ns
    return c.FindStored(caller, body.channel, start, value, body.name)


def _save_place(caller: Caller, body: store_pb2.SavePlaceRequest) -> c.SavePlace:
    return c.SavePlace(caller, body.channel, body.name, body.seq)


def _commit_transaction(caller: Caller, body: channels_pb2.CommitTransactionRequest) -> c.CommitTransaction:
    return c.CommitTransaction(
        caller,
        body.transaction,
        [_publish(caller, each) for each in body.publishes],
        [_settle(caller, each) for each in body.settlements],
        [_set_value(caller, each) for each in body.values],
        [_delete_value(caller, each) for each in body.deletions],
        [_save_place(caller, each) for each in body.places],
        [c.Fence(each.lock, each.token) for each in body.fences],
    )


_REQUESTS: Final[Mapping[str, Callable[[Caller, Any], c.ClientCommand]]] = {
    "publish_request": _publish,
    "consume_request": lambda caller, body: c.Consume(caller, body.channel, body.prefetch),
    "settle_request": _settle,
    "get_value_request": lambda caller, body: c.GetValue(caller, body.channel),
    "set_value_request": _set_value,
    "delete_value_request": _delete_value,
    "watch_value_request": _watch_value,
    "attach_value_request": lambda caller, body: c.AttachValue(caller, body.channel),
    "find_stored_request": _find_stored,
    "read_stored_request": lambda caller, body: c.ReadStored(
        caller, body.channel, body.first_seq, body.bytes_max
    ),
    "save_place_request": _save_place,
    "delete_place_request": lambda caller, body: c.DeletePlace(caller, body.channel, body.name),
    "list_places_request": lambda caller, body: c.ListPlaces(caller, body.channel),
    "commit_transaction_request": _commit_transaction,
}
REQUESTS: Final = frozenset(_REQUESTS) - {"publish_request"}
"""The requests that are always the data plane's."""
STREAMS: Final = frozenset({"consume_request", "watch_value_request"})
"""Those that are answered until they are cancelled."""


def command_from(caller: Caller, request: str, body: Any) -> c.ClientCommand:
    """Return the command that a request asks for.

    Raises:
        InvalidArgument: a field has a value that has no meaning.
    """
    return _REQUESTS[request](caller, body)


# ---- from effects ------------------------------------------------------------------------------------------


def value_to_proto(value: StoredValue) -> values_pb2.Value:
    """Return a value as it is told."""
    told = values_pb2.Value(
        version=value.version,
        is_set=value.is_set,
        payload=value.payload,
        changed_at_ns=value.changed_at_ns,
    )
    if value.headers:
        told.headers.CopyFrom(headers_of(value.headers))
    return told


def headers_of(raw: bytes) -> message_pb2.Headers:
    """Return a message's headers from how they are kept; what is damaged is left out."""
    try:
        return message_pb2.Headers.FromString(raw)
    except DecodeError:
        return message_pb2.Headers()


def _published(body: e.Published) -> channels_pb2.PublishResponse:
    return channels_pb2.PublishResponse(
        first_seq=body.first_seq, count=body.count, duplicates=body.duplicates
    )


def reply_frame(call: int, body: e.ReplyBody) -> Frame:
    """Return the only answer to a call as a frame."""
    frame = Frame(id=call)
    match body:
        case e.Published():
            frame.publish_response.CopyFrom(_published(body))
        case e.Settled():
            frame.settle_response.settled = body.settled
            for lost in body.lost:
                frame.settle_response.lost.add(first=lost.first, last=lost.last)
            frame.settle_response.SetInParent()
        case e.ValueTold():
            frame.get_value_response.value.CopyFrom(value_to_proto(body.value))
        case e.ValueSet():
            frame.set_value_response.version = body.version
        case e.ValueDeleted():
            frame.delete_value_response.version = body.version
        case e.Found():
            frame.find_stored_response.seq = body.seq
            frame.find_stored_response.oldest_seq = body.oldest_seq
            frame.find_stored_response.next_seq = body.next_seq
        case e.PlaceSaved():
            frame.save_place_response.SetInParent()
        case e.PlaceDeleted():
            frame.delete_place_response.SetInParent()
        case e.PlacesListed():
            frame.list_places_response.SetInParent()
            for name, seq, saved_at_ns in body.places:
                frame.list_places_response.places.add(name=name, seq=seq, saved_at_ns=saved_at_ns)
        case e.Committed():
            response = frame.commit_transaction_response
            response.published.extend(_published(each) for each in body.published)
            response.values.extend(values_pb2.SetValueResponse(version=each) for each in body.values)
            response.deletions.extend(values_pb2.DeleteValueResponse(version=each) for each in body.deletions)
            response.is_repeated = body.is_repeated
            response.SetInParent()
        case e.ParcelsRead():
            frame.read_stored_response.first_seq = body.first_seq
            frame.read_stored_response.next_seq = body.next_seq
            frame.read_stored_response.end_seq = body.end_seq
            frame.read_stored_response.parcels.extend(each.data for each in body.parcels)
    return frame


def consuming_frame(effect: e.ConsumeStarted) -> Frame:
    """Return the first item of a consumer's stream."""
    frame = Frame(id=effect.call)
    consuming = frame.consume_response.consuming
    consuming.consumer = effect.body.consumer
    consuming.ack_ms = effect.body.ack_ms
    consuming.prefetch = effect.body.prefetch
    return frame


def deliver_frame(effect: e.Deliver) -> Frame:
    """Return deliveries as an item of a consumer's stream."""
    frame = Frame(id=effect.call)
    batch = frame.consume_response.batch
    batch.consumer = effect.consumer
    batch.channel = effect.channel
    batch.first_delivery = effect.first_delivery
    has_headers = any(piece.headers for piece in effect.pieces)
    has_attempts = any(piece.attempt > 1 for piece in effect.pieces)
    for piece in effect.pieces:
        count = len(piece.payloads)
        batch.payloads.extend(piece.payloads)
        batch.publish_times_ns.extend([piece.time_ns] * count)
        batch.seqs.extend(range(piece.first_seq, piece.first_seq + count))
        if has_headers:
            batch.headers.extend(map(headers_of, piece.headers or [b""] * count))
        if has_attempts:
            batch.attempts.extend([piece.attempt] * count)
    return frame


def value_attached_frame(call: int, value_bytes_max: int) -> Frame:
    """Return the answer that the page's descriptor goes with."""
    frame = Frame(id=call)
    frame.attach_value_response.value_bytes_max = value_bytes_max
    return frame


def value_frame(effect: e.ValueItem) -> Frame:
    """Return one more item of a watch of a value."""
    frame = Frame(id=effect.call)
    frame.watch_value_response.value.CopyFrom(value_to_proto(effect.value))
    return frame
