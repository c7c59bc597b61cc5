"""Between the values of ``model`` and the protobuf messages of the contract. Pure functions, one pair per
message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Final, Unpack, cast

from google.protobuf.message import DecodeError

from towpath import model
from towpath.errors import BadFrame, Cancelled, InvalidArgument, NotSupported, TowpathError, error_from_code
from towpath.v1 import channels_pb2, error_pb2, message_pb2, registry_pb2, store_pb2
from towpath.v1.frame_pb2 import Frame

USER_HEADERS_MAX: Final = 64
USER_HEADER_NAME_BYTES_MAX: Final = 128
PAYLOADS_MAX: Final = 10_000
"""Payloads in one publish request."""
MESSAGE_ID_BYTES_MAX: Final = 128
HEADERS_BYTES_MAX: Final = 16384
"""A message's headers, serialized, may not be larger."""

_KINDS: Final[Mapping[str, int]] = {"topic": 1, "queue": 2, "state": 3, "service": 4}
_OVERFLOWS: Final[Mapping[str, int]] = {"block": 1, "drop": 2, "reject": 3}
_ORDERS: Final[Mapping[str, int]] = {"source": 1, "total": 2}
_DIRECTIONS: Final[Mapping[str, int]] = {"in": 1, "out": 2, "both": 3}
_BINDING_STATES: Final[Mapping[str, int]] = {
    "pending": 1,
    "running": 2,
    "waiting": 3,
    "retrying": 4,
    "stopped": 5,
    "failed": 6,
}
_GATEWAY_STATES: Final[Mapping[str, int]] = {
    "starting": 1,
    "running": 2,
    "backing_off": 3,
    "failed": 4,
}
_KIND_NAMES: Final = {number: cast(model.Kind, name) for name, number in _KINDS.items()}
_OVERFLOW_NAMES: Final = {number: cast(model.Overflow, name) for name, number in _OVERFLOWS.items()}
_ORDER_NAMES: Final = {number: cast(model.Order, name) for name, number in _ORDERS.items()}
_DIRECTION_NAMES: Final = {number: cast(model.Direction, name) for name, number in _DIRECTIONS.items()}
_BINDING_STATE_NAMES: Final = {
    number: cast(model.BindingState, name) for name, number in _BINDING_STATES.items()
}
_GATEWAY_STATE_NAMES: Final = {
    number: cast(model.GatewayState, name) for name, number in _GATEWAY_STATES.items()
}


def _number(what: str, table: Mapping[str, int], name: str) -> int:
    try:
        return table[name]
    except KeyError:
        raise InvalidArgument(f"{what} {name!r} is not known", hint=f"one of: {', '.join(table)}") from None


# ---- errors ----------------------------------------------------------------------------------------------


def error_to_proto(error: TowpathError) -> error_pb2.Error:
    return error_pb2.Error(
        code=cast(error_pb2.ErrorCode.ValueType, int(error.code)),
        message=error.message,
        hint=error.hint,
        retryable=error.retryable,
    )


def error_from_proto(error: error_pb2.Error) -> TowpathError:
    return error_from_code(error.code, error.message, error.hint, error.retryable)


# ---- headers ---------------------------------------------------------------------------------------------


def headers_to_proto(headers: model.Headers) -> message_pb2.Headers:
    """Raises InvalidArgument when a field is out of its range."""
    if not 0 <= headers.priority <= 31:
        raise InvalidArgument(f"priority {headers.priority} is not between 0 and 31")
    if len(headers.message_id.encode(errors="replace")) > MESSAGE_ID_BYTES_MAX:
        raise InvalidArgument(f"a message's id is longer than {MESSAGE_ID_BYTES_MAX} bytes")
    if len(headers.user) > USER_HEADERS_MAX:
        raise InvalidArgument(f"{len(headers.user)} user headers; at most {USER_HEADERS_MAX} are allowed")
    for name in headers.user:
        if not 1 <= len(name.encode(errors="replace")) <= USER_HEADER_NAME_BYTES_MAX:
            raise InvalidArgument(
                f"the user header {name[:40]!r} is not 1 to {USER_HEADER_NAME_BYTES_MAX} bytes long"
            )
    try:
        return _headers_message(headers)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"the headers cannot be carried: {error}") from None


def _headers_message(headers: model.Headers) -> message_pb2.Headers:
    return message_pb2.Headers(
        content_type=headers.content_type,
        key=headers.key,
        priority=headers.priority,
        reply_to=headers.reply_to,
        origin=headers.origin,
        traceparent=headers.traceparent,
        tracestate=headers.tracestate,
        user=headers.user,
        message_id=headers.message_id,
        deliver_at_ns=headers.deliver_at_ns,
    )


def headers_from_proto(headers: message_pb2.Headers) -> model.Headers:
    return model.Headers(
        content_type=headers.content_type,
        key=headers.key,
        priority=headers.priority,
        reply_to=headers.reply_to,
        origin=headers.origin,
        traceparent=headers.traceparent,
        tracestate=headers.tracestate,
        user=dict(headers.user),
        message_id=headers.message_id,
        deliver_at_ns=headers.deliver_at_ns,
    )


def encode_headers(headers: model.Headers | None) -> bytes:
    """Return the headers' bytes as they travel; empty for none.

    Raises:
        InvalidArgument: a field is out of its range, or all of them together are over ``HEADERS_BYTES_MAX``.
    """
    if headers is None or not headers:
        return b""
    raw = headers_to_proto(headers).SerializeToString(deterministic=True)
    if len(raw) > HEADERS_BYTES_MAX:
        raise InvalidArgument(f"the headers take {len(raw)} bytes; at most {HEADERS_BYTES_MAX} are allowed")
    return raw


def decode_headers(raw: bytes) -> model.Headers:
    """Return the headers that the bytes stand for.

    Raises:
        BadFrame: they are not serialized ``towpath.v1.Headers``.
    """
    if not raw:
        return model.NO_HEADERS
    try:
        return headers_from_proto(message_pb2.Headers.FromString(raw))
    except DecodeError:
        raise BadFrame("a message's headers are not towpath.v1.Headers") from None


def check_unfenced(request: channels_pb2.PublishRequest) -> None:
    """Refuse a fence where nobody would look at it.

    Raises:
        NotSupported: there is one.
    """
    if request.HasField("fence"):
        raise NotSupported(
            f"channel {request.channel!r} checks no fences: it is a topic that is not durable",
            hint="queues, durable topics and states do",
        )


def checked_publish(
    request: channels_pb2.PublishRequest | channels_pb2.PublishStreamRequest,
) -> tuple[list[bytes], list[bytes] | None]:
    """Check a publish request as a whole and take its columns out; its channel is not looked at.

    Returns:
        The payloads, and their serialized headers (``b""`` for a message without), or None when none has any.

    Raises:
        InvalidArgument: the number of payloads or headers, or a header, is out of its range.
    """
    count = len(request.payloads)
    if not 1 <= count <= PAYLOADS_MAX:
        raise InvalidArgument(f"the request has {count} payloads; 1 to {PAYLOADS_MAX} are allowed")
    if not request.headers:
        return list(request.payloads), None
    if len(request.headers) != count:
        raise InvalidArgument(
            f"the request has {count} payloads and {len(request.headers)} headers",
            hint="leave `headers` empty, or give one per payload, an empty one for a message without",
        )
    return list(request.payloads), [
        _checked_headers(index, each) for index, each in enumerate(request.headers)
    ]


def _checked_headers(index: int, headers: message_pb2.Headers) -> bytes:
    try:
        return encode_headers(headers_from_proto(headers))
    except InvalidArgument as error:
        raise InvalidArgument(f"message {index}: {error.message}", hint=error.hint) from None


# ---- channels --------------------------------------------------------------------------------------------


def stated_options(
    kind: model.Kind | None,
    durable: bool | None,
    overflow: model.Overflow | None,
    ring_bytes: int | None,
    order: model.Order | None = None,
    history: int | None = None,
    stall_ms_max: int | None = None,
    **keeping: Unpack[model.KeepingOptions],
) -> registry_pb2.ChannelOptions:
    """Raises InvalidArgument for a word that is not known, or a number that the contract's fields cannot
    hold.
    """
    options = registry_pb2.ChannelOptions()
    if kind is not None:
        options.kind = cast(registry_pb2.Kind.ValueType, _number("kind", _KINDS, kind))
    if durable is not None:
        options.durable = durable
    if overflow is not None:
        options.overflow = cast(registry_pb2.Overflow.ValueType, _number("overflow", _OVERFLOWS, overflow))
    if order is not None:
        options.order = cast(registry_pb2.Order.ValueType, _number("order", _ORDERS, order))
    if ring_bytes is not None:
        options.ring_bytes = _checked("ring_bytes", ring_bytes, 64)
    if history is not None:
        options.history = _checked("history", history, 32)
    if stall_ms_max is not None:
        options.stall_ms_max = _checked("stall_ms_max", stall_ms_max, 32)
    for name, value in keeping.items():
        if name not in _KEEPING:
            raise InvalidArgument(f"a channel has no option {name!r}")
        if value is None:
            continue
        try:
            setattr(options, name, value)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"{name} cannot be {value!r}: {error}") from None
    return options


_KEEPING: Final = tuple(model.KeepingOptions.__annotations__)


def _keeping_of(channel: model.ChannelInfo | registry_pb2.ChannelOptions) -> model.KeepingOptions:
    return cast(model.KeepingOptions, {name: getattr(channel, name) for name in _KEEPING})


def _checked(what: str, value: int, bits: int) -> int:
    if not 0 <= value < 1 << bits:
        raise InvalidArgument(f"{what} {value} is out of range")
    return value


_CONTENTS: Final = tuple(field.name for field in fields(model.ChannelContents))


def contents_to_proto(contents: model.ChannelContents) -> registry_pb2.ChannelContents:
    return registry_pb2.ChannelContents(**{name: getattr(contents, name) for name in _CONTENTS})


def contents_from_proto(contents: registry_pb2.ChannelContents) -> model.ChannelContents:
    return model.ChannelContents(**{name: getattr(contents, name) for name in _CONTENTS})


def channel_to_proto(channel: model.ChannelInfo) -> registry_pb2.Channel:
    return registry_pb2.Channel(
        name=channel.name,
        options=stated_options(
            channel.kind,
            channel.durable,
            channel.overflow,
            channel.ring_bytes,
            channel.order,
            channel.history,
            channel.stall_ms_max,
            **_keeping_of(channel),
        ),
        owner=channel.owner,
        publishers=channel.publishers,
        subscribers=channel.subscribers,
        bindings=channel.bindings,
        declared_at_ns=channel.declared_at_ns,
        contents=contents_to_proto(channel.contents) if channel.contents is not None else None,
    )


def channel_from_proto(channel: registry_pb2.Channel) -> model.ChannelInfo:
    return model.ChannelInfo(
        name=channel.name,
        kind=_KIND_NAMES.get(channel.options.kind, "topic"),
        durable=channel.options.durable,
        overflow=_OVERFLOW_NAMES.get(channel.options.overflow, "block"),
        ring_bytes=channel.options.ring_bytes,
        order=_ORDER_NAMES.get(channel.options.order, "source"),
        history=channel.options.history,
        stall_ms_max=channel.options.stall_ms_max,
        owner=channel.owner,
        publishers=channel.publishers,
        subscribers=channel.subscribers,
        bindings=channel.bindings,
        declared_at_ns=channel.declared_at_ns,
        contents=contents_from_proto(channel.contents) if channel.HasField("contents") else None,
        **_keeping_of(channel.options),
    )


# ---- bindings --------------------------------------------------------------------------------------------


def direction_to_proto(direction: model.Direction) -> registry_pb2.Direction.ValueType:
    """Raises InvalidArgument for a direction that does not exist."""
    return cast(registry_pb2.Direction.ValueType, _number("direction", _DIRECTIONS, direction))


def report_to_proto(report: model.BindingReport) -> registry_pb2.BindingReport:
    return registry_pb2.BindingReport(
        state=cast(registry_pb2.BindingState.ValueType, _BINDING_STATES[report.state]),
        detail=report.detail,
        messages_in=report.messages_in,
        bytes_in=report.bytes_in,
        messages_out=report.messages_out,
        bytes_out=report.bytes_out,
        refused=report.refused,
        restarts=report.restarts,
        last_error=error_to_proto(report.last_error) if report.last_error is not None else None,
        last_error_at_ns=report.last_error_at_ns,
    )


def report_from_proto(report: registry_pb2.BindingReport) -> model.BindingReport:
    return model.BindingReport(
        state=_BINDING_STATE_NAMES.get(report.state, "pending"),
        detail=report.detail,
        messages_in=report.messages_in,
        bytes_in=report.bytes_in,
        messages_out=report.messages_out,
        bytes_out=report.bytes_out,
        refused=report.refused,
        restarts=report.restarts,
        last_error=error_from_proto(report.last_error) if report.HasField("last_error") else None,
        last_error_at_ns=report.last_error_at_ns,
    )


def binding_to_proto(binding: model.BindingInfo) -> registry_pb2.Binding:
    return registry_pb2.Binding(
        id=binding.id,
        channel=binding.channel,
        url=binding.url,
        direction=direction_to_proto(binding.direction),
        options=binding.options,
        owner=binding.owner,
        report=report_to_proto(binding.report),
    )


def binding_from_proto(binding: registry_pb2.Binding) -> model.BindingInfo:
    return model.BindingInfo(
        id=binding.id,
        channel=binding.channel,
        url=binding.url,
        direction=_DIRECTION_NAMES.get(binding.direction, "in"),
        options=dict(binding.options),
        owner=binding.owner,
        report=report_from_proto(binding.report),
    )


# ---- status and watch ------------------------------------------------------------------------------------


def gateway_to_proto(gateway: model.GatewayInfo) -> registry_pb2.Gateway:
    return registry_pb2.Gateway(
        name=gateway.name,
        state=cast(registry_pb2.GatewayState.ValueType, _GATEWAY_STATES[gateway.state]),
        pid=gateway.pid,
        restarts=gateway.restarts,
        endpoints=gateway.endpoints,
        counters=gateway.counters,
        detail=gateway.detail,
    )


def gateway_from_proto(gateway: registry_pb2.Gateway) -> model.GatewayInfo:
    return model.GatewayInfo(
        name=gateway.name,
        state=_GATEWAY_STATE_NAMES.get(gateway.state, "starting"),
        pid=gateway.pid,
        restarts=gateway.restarts,
        endpoints=dict(gateway.endpoints),
        counters=dict(gateway.counters),
        detail=gateway.detail,
    )


def traffic_to_proto(traffic: model.Traffic) -> registry_pb2.Traffic:
    return registry_pb2.Traffic(messages=traffic.messages, ring_bytes=traffic.ring_bytes)


def traffic_from_proto(traffic: registry_pb2.Traffic) -> model.Traffic:
    return model.Traffic(traffic.messages, traffic.ring_bytes)


def session_to_proto(session: model.SessionInfo) -> registry_pb2.Session:
    return registry_pb2.Session(
        id=session.id,
        name=session.name,
        principal=session.principal,
        pid=session.pid,
        gateway=session.gateway,
        publishers=session.publishers,
        subscribers=session.subscribers,
        published=traffic_to_proto(session.published),
        pending_bytes=session.pending_bytes,
    )


def session_from_proto(session: registry_pb2.Session) -> model.SessionInfo:
    return model.SessionInfo(
        id=session.id,
        name=session.name,
        principal=session.principal,
        pid=session.pid,
        gateway=session.gateway,
        publishers=session.publishers,
        subscribers=session.subscribers,
        published=traffic_from_proto(session.published),
        pending_bytes=session.pending_bytes,
    )


def status_to_proto(status: model.Status) -> registry_pb2.GetStatusResponse:
    return registry_pb2.GetStatusResponse(
        version=status.version,
        pid=status.pid,
        incarnation=status.incarnation,
        started_at_ns=status.started_at_ns,
        socket=status.socket,
        sessions=status.sessions,
        channels=[channel_to_proto(channel) for channel in status.channels],
        bindings=[binding_to_proto(binding) for binding in status.bindings],
        gateways=[gateway_to_proto(gateway) for gateway in status.gateways],
        counters=status.counters,
        warnings=status.warnings,
        traffic={name: traffic_to_proto(traffic) for name, traffic in status.traffic.items()},
        session_list=[session_to_proto(session) for session in status.session_list],
    )


def status_from_proto(status: registry_pb2.GetStatusResponse) -> model.Status:
    return model.Status(
        version=status.version,
        pid=status.pid,
        incarnation=status.incarnation,
        started_at_ns=status.started_at_ns,
        socket=status.socket,
        sessions=status.sessions,
        channels=tuple(channel_from_proto(channel) for channel in status.channels),
        bindings=tuple(binding_from_proto(binding) for binding in status.bindings),
        gateways=tuple(gateway_from_proto(gateway) for gateway in status.gateways),
        counters=dict(status.counters),
        warnings=tuple(status.warnings),
        traffic={name: traffic_from_proto(traffic) for name, traffic in status.traffic.items()},
        session_list=tuple(session_from_proto(session) for session in status.session_list),
    )


def watch_event_from_proto(response: registry_pb2.WatchResponse) -> model.WatchEvent:
    kind = response.WhichOneof("event")
    channel: model.ChannelInfo | None = None
    binding: model.BindingInfo | None = None
    if kind in ("channel_declared", "channel_undeclared"):
        channel = channel_from_proto(getattr(response, kind))
    elif kind in ("binding_created", "binding_deleted"):
        binding = binding_from_proto(getattr(response, kind))
    return model.WatchEvent(kind or "current", response.revision, channel, binding)


def watch_item(answer: Frame | TowpathError) -> model.WatchEvent | TowpathError:
    """What a watch of the registry hands out for what was answered to it."""
    if isinstance(answer, TowpathError):
        return answer
    match answer.WhichOneof("body"):
        case "error":
            return error_from_proto(answer.error)
        case "watch_response":
            return watch_event_from_proto(answer.watch_response)
    return Cancelled("the watch ended")


def watch_event_to_proto(event: model.WatchEvent) -> registry_pb2.WatchResponse:
    response = registry_pb2.WatchResponse(revision=event.revision)
    match event.kind:
        case "channel_declared" if event.channel:
            response.channel_declared.CopyFrom(channel_to_proto(event.channel))
        case "channel_undeclared" if event.channel:
            response.channel_undeclared.CopyFrom(channel_to_proto(event.channel))
        case "binding_created" if event.binding:
            response.binding_created.CopyFrom(binding_to_proto(event.binding))
        case "binding_deleted" if event.binding:
            response.binding_deleted.CopyFrom(binding_to_proto(event.binding))
        case "reset":
            response.reset.SetInParent()
        case _:
            response.current.SetInParent()
    return response


def start_to_proto(start: model.Start) -> store_pb2.Start:
    """Raises InvalidArgument when that is no place in a log to begin with."""
    match start:
        case "new":
            return store_pb2.Start(is_new=True)
        case "all":
            return store_pb2.Start(is_all=True)
        case datetime() if start.tzinfo is not None:
            seconds, rest = divmod(start - datetime.fromtimestamp(0, UTC), timedelta(seconds=1))
            time_ns = seconds * 10**9 + rest.microseconds * 1000
            if 0 <= time_ns < 1 << 63:
                return store_pb2.Start(time_ns=time_ns)
        case int() if not isinstance(start, bool) and 1 <= start < 1 << 63:
            return store_pb2.Start(seq=start)
    raise InvalidArgument(
        f"a subscription cannot start with {start!r}",
        hint="'new', 'all', a seq (1 or more), or a datetime with its time zone",
    )


def start_from_proto(start: store_pb2.Start) -> model.Start:
    """Raises InvalidArgument when it says nothing, or a time that no calendar has."""
    match start.WhichOneof("at"):
        case "is_new":
            return "new"
        case "is_all":
            return "all"
        case "seq":
            return start.seq
        case "time_ns":
            try:
                return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=start.time_ns // 1000)
            except OverflowError:
                raise InvalidArgument(f"{start.time_ns} ns is no time to start with") from None
        case _:
            raise InvalidArgument("a subscription's start says nothing", hint="new, all, a seq, or a time")
