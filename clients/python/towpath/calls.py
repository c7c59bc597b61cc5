"""The calls of the contract, each as a value: which request, and what its response means. Sans-I/O.

The sync and the asyncio client are two ways of waiting for the same :class:`Call`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, Unpack, cast

from google.protobuf.message import Message

from towpath import convert, loans, model, wire
from towpath.errors import (
    InvalidArgument,
    MessageTooLarge,
    ProtocolViolation,
)
from towpath.names import check_name
from towpath.v1 import channels_pb2, frame_pb2, message_pb2, registry_pb2, store_pb2
from towpath.v1.frame_pb2 import Frame

if TYPE_CHECKING:
    from towpath.loans import Loan
    from towpath.locks.model import Fence
    from towpath.waiting import Buffer

T = TypeVar("T")
FENCED_BYTES_MAX: Final = wire.REQUEST_BYTES_MAX - 4_096
"""Of a message, headers included, that is published with a fence: it travels in a request."""
RECORD_BYTES: Final = 32
"""What a ring needs beside payload and headers; its largest message is a quarter of it less these."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request that waits for one response.

    Attributes:
        request: the field of ``Frame.body`` that asks.
        body: its message.
        response: the field that answers.
        decode: from that message to what the caller gets.
        principal: for whom a gateway asks; empty for the session's own.
        is_last: of a stream: whether what was decoded ends it. None: an error or an ``end`` does.
        is_one_way: nobody wants the answer. On the UNIX socket none comes.
        is_exchange: of a stream: more requests may follow the first.
        whole: the frame that ``body`` is part of, if it was made so. It travels itself, instead of a copy: so
            the call must be sent before it is changed.
    """

    request: str
    body: Any
    response: str
    decode: Callable[[Any], T]
    principal: str = ""
    is_last: Callable[[T], bool] | None = None
    is_one_way: bool = False
    is_exchange: bool = False
    whole: Frame | None = None

    def frame(self, call_id: int) -> Frame:
        """The request as a frame."""
        if self.whole is not None and not self.principal:
            self.whole.id = call_id
            return self.whole
        frame = Frame(id=call_id, principal=self.principal)
        getattr(frame, self.request).CopyFrom(self.body)
        return frame

    def result(self, frame: Frame) -> T:
        """What the response says.

        Raises:
            TowpathError: what the other side refused with.
            ProtocolViolation: it answered something else.
        """
        kind = frame.WhichOneof("body")
        if kind == "error":
            raise convert.error_from_proto(frame.error)
        if kind != self.response:
            raise ProtocolViolation(f"{self.request} was answered by {kind}")
        return self.decode(getattr(frame, self.response))


M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class SourcePlace:
    """What a source is on its channel; a publisher unless said otherwise.

    Attributes:
        role: a number of ``frame_pb2.SourceRole``.
        own_reader, peer: as in ``AttachSourceRequest``.
        principal: for whom a gateway attaches it; empty for the session's own.
    """

    role: frame_pb2.SourceRole.ValueType = frame_pb2.SOURCE_ROLE_UNSPECIFIED
    own_reader: int = 0
    peer: int = 0
    principal: str = ""


def _request(kind: type[M], **fields: Any) -> M:
    """Make a request.

    Raises:
        InvalidArgument: a field is of the wrong type, out of its range, or text that is no Unicode.
    """
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"{kind.__name__.removesuffix('Request')} cannot be asked with {fields}: {error}"
        ) from None


def _nothing(_: object) -> None:
    return None


def declare(
    name: str,
    *,
    kind: model.Kind | None = None,
    durable: bool | None = None,
    overflow: model.Overflow | None = None,
    ring_bytes: int | None = None,
    order: model.Order | None = None,
    history: int | None = None,
    stall_ms_max: int | None = None,
    **keeping: Unpack[model.KeepingOptions],
) -> Call[model.ChannelInfo]:
    body = _request(
        registry_pb2.DeclareChannelRequest,
        name=check_name(name),
        options=convert.stated_options(
            kind, durable, overflow, ring_bytes, order, history, stall_ms_max, **keeping
        ),
    )
    return Call(
        "declare_channel_request",
        body,
        "declare_channel_response",
        lambda response: convert.channel_from_proto(response.channel),
    )


def undeclare(name: str, *, force: bool = False) -> Call[None]:
    body = _request(registry_pb2.UndeclareChannelRequest, name=name, force=force)
    return Call("undeclare_channel_request", body, "undeclare_channel_response", _nothing)


def channel_info(name: str) -> Call[model.ChannelInfo]:
    return Call(
        "get_channel_request",
        _request(registry_pb2.GetChannelRequest, name=check_name(name)),
        "get_channel_response",
        lambda response: convert.channel_from_proto(response.channel),
    )


def channels(prefix: str, page_token: str) -> Call[tuple[list[model.ChannelInfo], str]]:
    """The answer is a page, and the token of the next one; empty at the end."""
    return Call(
        "list_channels_request",
        _request(registry_pb2.ListChannelsRequest, prefix=prefix, page_token=page_token),
        "list_channels_response",
        lambda response: (
            [convert.channel_from_proto(channel) for channel in response.channels],
            response.next_page_token,
        ),
    )


def create_binding(
    channel: str, url: str, *, direction: model.Direction, options: Mapping[str, str] | None = None
) -> Call[tuple[model.BindingInfo, bool]]:
    body = _request(
        registry_pb2.CreateBindingRequest,
        channel=channel,
        url=url,
        direction=convert.direction_to_proto(direction),
        options=options or {},
    )
    return Call(
        "create_binding_request",
        body,
        "create_binding_response",
        lambda response: (convert.binding_from_proto(response.binding), response.created),
    )


def delete_binding(
    binding: int | None = None, *, channel: str = "", url: str = ""
) -> Call[model.BindingInfo]:
    if binding is None and not (channel and url):
        raise InvalidArgument("a binding is named by its id, or by its channel and URL")
    body = _request(registry_pb2.DeleteBindingRequest, id=binding or 0, channel=channel, url=url)
    return Call(
        "delete_binding_request",
        body,
        "delete_binding_response",
        lambda response: convert.binding_from_proto(response.binding),
    )


def get_binding(binding: int, *, wait_settled: bool) -> Call[model.BindingInfo]:
    return Call(
        "get_binding_request",
        _request(registry_pb2.GetBindingRequest, id=binding, wait_settled=wait_settled),
        "get_binding_response",
        lambda response: convert.binding_from_proto(response.binding),
    )


def bindings(channel: str, page_token: str) -> Call[tuple[list[model.BindingInfo], str]]:
    """The answer is a page, and the token of the next one; empty at the end."""
    return Call(
        "list_bindings_request",
        _request(registry_pb2.ListBindingsRequest, channel=channel, page_token=page_token),
        "list_bindings_response",
        lambda response: (
            [convert.binding_from_proto(binding) for binding in response.bindings],
            response.next_page_token,
        ),
    )


def watch_request(after_revision: int | None) -> registry_pb2.WatchRequest:
    """Raises InvalidArgument when the revision is no number of 64 bits."""
    return _request(registry_pb2.WatchRequest, after_revision=after_revision)


def status() -> Call[model.Status]:
    """Without channels and bindings, which are listed page by page."""
    return Call(
        "get_status_request",
        _request(registry_pb2.GetStatusRequest, without_listings=True),
        "get_status_response",
        convert.status_from_proto,
    )


def allocate_ids(count: int) -> Call[tuple[int, int]]:
    return Call(
        "allocate_ids_request",
        _request(frame_pb2.AllocateIdsRequest, count=count),
        "allocate_ids_response",
        lambda response: (response.first_id, response.id_count),
    )


def publish_fenced(
    channel: str, data: Buffer | Loan[Any], headers: model.Headers | None, fence: Fence
) -> Call[int]:
    """Publish one message only if a lock is held by a token then; the answer is its seq.

    Raises:
        InvalidArgument: it is loaned.
        MessageTooLarge: it does not fit a request.
    """
    if not isinstance(data, bytes) and loans.is_loan(data):
        raise InvalidArgument("what is loaned is not looked at before it is seen", hint="publish its bytes")
    raw = convert.headers_to_proto(headers).SerializeToString() if headers else b""
    call = publish(channel, [bytes(cast("Buffer", data))], raw, fence)
    if (size := call.body.ByteSize()) > FENCED_BYTES_MAX:
        raise MessageTooLarge(
            f"a message of {size} bytes, headers included; at most {FENCED_BYTES_MAX} with a fence"
        )
    return Call("publish_request", call.body, call.response, lambda response: int(response.first_seq))


def publish(
    channel: str, payloads: Sequence[bytes], headers_raw: bytes = b"", fence: Fence | None = None
) -> Call[tuple[int, int, int]]:
    """Publish over the connection: 1 to 10,000 payloads, all with the same headers. The answer is the source,
    the first seq and the count.

    Args:
        fence: only if a lock is held by this token then; queues and durable topics.
    """
    headers = [message_pb2.Headers.FromString(headers_raw)] * len(payloads) if headers_raw else []
    body = _request(
        channels_pb2.PublishRequest, channel=check_name(channel), payloads=payloads, headers=headers
    )
    if fence is not None:
        body.fence.lock, body.fence.token = fence
    return Call(
        "publish_request",
        body,
        "publish_response",
        lambda response: (response.source, response.first_seq, response.count),
    )


@dataclass(frozen=True, slots=True)
class StoredRead:
    """Parcels of a durable topic; the first message of the first one has ``first_seq``."""

    first_seq: int
    parcels: Sequence[bytes]


def find_stored(channel: str, start: store_pb2.Start | None, name: str) -> Call[tuple[int, int, int]]:
    """Where a subscription begins. The answer is that seq, the oldest and the next."""
    return Call(
        "find_stored_request",
        _request(store_pb2.FindStoredRequest, channel=check_name(channel), start=start, name=name),
        "find_stored_response",
        lambda response: (response.seq, response.oldest_seq, response.next_seq),
    )


def asked_seq(start: store_pb2.Start | None, place: str) -> int:
    """The seq that a subscription was told to start with; 0: none."""
    return start.seq if start is not None and not place else 0


def read_stored(channel: str, first_seq: int, bytes_max: int) -> Call[StoredRead]:
    """On the UNIX socket alone."""
    return Call(
        "read_stored_request",
        _request(store_pb2.ReadStoredRequest, channel=channel, first_seq=first_seq, bytes_max=bytes_max),
        "read_stored_response",
        lambda response: StoredRead(response.first_seq, response.parcels),
    )


def save_place(channel: str, name: str, seq: int) -> Call[None]:
    body = _request(store_pb2.SavePlaceRequest, channel=check_name(channel), name=name, seq=seq)
    return Call("save_place_request", body, "save_place_response", _nothing)


def delete_place(channel: str, name: str) -> Call[None]:
    body = _request(store_pb2.DeletePlaceRequest, channel=check_name(channel), name=name)
    return Call("delete_place_request", body, "delete_place_response", _nothing)


def places(channel: str) -> Call[list[model.Place]]:
    return Call(
        "list_places_request",
        _request(store_pb2.ListPlacesRequest, channel=check_name(channel)),
        "list_places_response",
        lambda response: [model.Place(place.name, place.seq, place.saved_at_ns) for place in response.places],
    )


def attach_source(
    channel: str, source: int, *, origin: str, resumed: bool = False, place: SourcePlace | None = None
) -> Call[tuple[int, int]]:
    """The answer is the channel's cell in the generation table, and its value. Goes with the ring's
    descriptor.
    """
    place = place or SourcePlace()
    return Call(
        "attach_source_request",
        _request(
            frame_pb2.AttachSourceRequest,
            channel=channel,
            source=source,
            origin=origin,
            resumed=resumed,
            role=place.role,
            own_reader=place.own_reader,
            peer=place.peer,
        ),
        "attach_source_response",
        lambda response: (response.generation_index, response.generation),
        place.principal,
    )


def detach_source(source: int) -> Call[None]:
    body = _request(frame_pb2.DetachSourceRequest, source=source)
    return Call("detach_source_request", body, "detach_source_response", _nothing)


@dataclass(frozen=True, slots=True)
class ReaderName:
    """The name that a subscription of a durable topic goes by, and whether whoever has it ends."""

    name: str = ""
    takes_over: bool = False


NAMELESS: Final = ReaderName()


def attach_reader(
    channel: str,
    reader: int,
    *,
    slots: int,
    exclude_origin: str,
    wants_doorbell: bool,
    held: Mapping[int, int] | None = None,
    role: frame_pb2.ReaderRole.ValueType = frame_pb2.READER_ROLE_UNSPECIFIED,
    principal: str = "",
    name: ReaderName = NAMELESS,
) -> Call[None]:
    """With ``held`` (source to slot), a subscription is taken up again. ``channel`` may be a pattern. Goes
    with the control page's descriptor.
    """
    body = _request(
        frame_pb2.AttachReaderRequest,
        channel=channel,
        reader=reader,
        slots=slots,
        exclude_origin=exclude_origin,
        wants_doorbell=wants_doorbell,
        resumed=held is not None,
        held=[frame_pb2.HeldSlot(source=source, slot=slot) for source, slot in (held or {}).items()],
        role=role,
        name=name.name,
        takes_over=name.takes_over,
    )
    return Call("attach_reader_request", body, "attach_reader_response", _nothing, principal)


def detach_reader(reader: int) -> Call[None]:
    body = _request(frame_pb2.DetachReaderRequest, reader=reader)
    return Call("detach_reader_request", body, "detach_reader_response", _nothing)


def fetch_readers(source: int) -> Call[int]:
    """The answer is the generation that the readers told before it make up."""
    body = _request(frame_pb2.FetchReadersRequest, source=source)
    return Call(
        "fetch_readers_request", body, "fetch_readers_response", lambda response: int(response.generation)
    )


def detach_stalled(source: int, reader: int) -> Call[None]:
    body = _request(frame_pb2.DetachStalledRequest, source=source, reader=reader)
    return Call("detach_stalled_request", body, "detach_stalled_response", _nothing)


def report_broken_source(reader: int, source: int) -> Call[None]:
    body = _request(frame_pb2.ReportBrokenSourceRequest, reader=reader, source=source)
    return Call("report_broken_source_request", body, "report_broken_source_response", _nothing)


def release_slot(reader: int, source: int) -> Call[None]:
    body = _request(frame_pb2.ReleaseSlotRequest, reader=reader, source=source)
    return Call("release_slot_request", body, "release_slot_response", _nothing)


def report_bindings(reports: Mapping[int, model.BindingReport]) -> Call[None]:
    body = _request(frame_pb2.ReportBindingsRequest)
    for binding, report in reports.items():
        body.reports[binding].CopyFrom(convert.report_to_proto(report))
    return Call("report_bindings_request", body, "report_bindings_response", _nothing)


def report_gateway(endpoints: Mapping[str, str], counters: Mapping[str, int], detail: str = "") -> Call[None]:
    body = _request(frame_pb2.ReportGatewayRequest, endpoints=endpoints, counters=counters, detail=detail)
    return Call("report_gateway_request", body, "report_gateway_response", _nothing)


def headers_column(
    count: int,
    headers: model.Headers | Sequence[model.Headers | None] | None,
    headers_raw: bytes | Sequence[bytes] | None,
) -> bytes | list[bytes] | None:
    """What ``publish_many`` gives the ring: None, one for all, or one per payload.

    Raises:
        InvalidArgument: a column's length is not ``count``, or a header is out of its range.
    """
    if headers_raw is not None:
        if isinstance(headers_raw, bytes):
            return headers_raw or None
        column = list(headers_raw)
    elif headers is None:
        return None
    elif isinstance(headers, model.Headers):
        return convert.encode_headers(headers) or None
    else:
        column = [convert.encode_headers(each) for each in headers]
    if len(column) != count:
        raise InvalidArgument(f"{len(column)} headers for {count} payloads")
    return column if any(column) else None


def message_bytes(
    payloads: Sequence[bytes | bytearray | memoryview], column: bytes | list[bytes] | None, index: int
) -> int:
    """How much room one message of a batch needs, headers included."""
    raw = column if isinstance(column, bytes) else column[index] if column else b""
    return memoryview(payloads[index]).nbytes + len(raw)
