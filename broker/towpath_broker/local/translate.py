"""Between frames and what the core understands: a command from a request, a frame from an effect. Pure.

Each request has one row in ``_REQUESTS``: how its command is made, and which field its answer goes into. A
frame without a row is no request, and a protocol violation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import IntEnum
from typing import Any, Final, TypeVar, cast

from towpath import convert, model
from towpath.errors import InvalidArgument, NotSupported, TowpathError
from towpath.v1 import channels_pb2, frame_pb2, registry_pb2
from towpath.v1.frame_pb2 import Frame
from towpath_broker.core import commands, effects
from towpath_broker.core.commands import (
    BindingReport,
    BindingState,
    Caller,
    Direction,
    Kind,
    Order,
    Overflow,
    ReaderRole,
    SourceRole,
)
from towpath_broker.core.data.statistics import ChannelStatistics
from towpath_broker.core.ids import BindingId, ReaderId, SourceId
from towpath_broker.core.limits import BINDINGS_PER_PAGE, CHANNELS_PER_PAGE

R = TypeVar("R", ReaderRole, SourceRole)
MakeCommand = Callable[[Caller, Any], commands.Command]
ContentsOf = Callable[[str], model.ChannelContents | None]
"""What a channel holds, by its name; None: it is not of the data plane."""


_ENUMS: Final[Mapping[str, type[IntEnum]]] = {"kind": Kind, "overflow": Overflow, "order": Order}
_KEEPING: Final = tuple(model.KeepingOptions.__annotations__)
_OPTIONS: Final = tuple(option.name for option in fields(commands.ChannelOptions))


def _stated(options: registry_pb2.ChannelOptions) -> commands.StatedOptions:
    """An option that is unset, or an enum's 0, is not stated."""
    stated: dict[str, Any] = {}
    try:
        for name in _OPTIONS:
            value = getattr(options, name)
            if name in _ENUMS:
                if value:
                    stated[name] = _ENUMS[name](value)
            elif options.HasField(cast(Any, name)):
                stated[name] = value
    except ValueError as error:
        raise InvalidArgument(f"a channel's option is not known: {error}") from None
    return commands.StatedOptions(**stated)


def _role(kind: type[R], number: int) -> R:
    try:
        return kind(number)
    except ValueError:
        raise InvalidArgument(f"there is no role {number} that an end of a channel can have") from None


def _direction(number: int) -> Direction:
    try:
        return Direction(number)
    except ValueError:
        raise InvalidArgument("a binding needs a direction", hint="one of: in, out, both") from None


def _report(report: registry_pb2.BindingReport) -> BindingReport:
    try:
        state = BindingState(report.state)
    except ValueError:
        raise InvalidArgument(f"a binding's state cannot be {report.state}") from None
    return BindingReport(
        state=state,
        detail=report.detail,
        messages_in=report.messages_in,
        bytes_in=report.bytes_in,
        messages_out=report.messages_out,
        bytes_out=report.bytes_out,
        refused=report.refused,
        restarts=report.restarts,
        last_error=convert.error_from_proto(report.last_error) if report.HasField("last_error") else None,
        last_error_at_ns=report.last_error_at_ns,
    )


def _attach_reader(caller: Caller, body: frame_pb2.AttachReaderRequest) -> commands.Command:
    held = {SourceId(each.source): each.slot for each in body.held}
    if len(held) != len(body.held):
        raise InvalidArgument("a source holds two slots")
    return commands.AttachReader(
        caller,
        body.channel,
        ReaderId(body.reader),
        body.slots,
        body.resumed,
        body.exclude_origin,
        held,
        body.wants_doorbell,
        _role(ReaderRole, body.role),
        body.name,
        body.takes_over,
    )


def _publish(caller: Caller, body: channels_pb2.PublishRequest) -> commands.Command:
    convert.check_unfenced(body)
    payloads, headers = convert.checked_publish(body)
    return commands.Publish(caller, body.channel, payloads, headers or ())


def _binding_after(page_token: str) -> BindingId:
    if not page_token:
        return BindingId(0)
    if not page_token.isascii() or not page_token.isdigit() or len(page_token) > 20:
        raise InvalidArgument(
            f"{page_token!r} is not a page of bindings", hint="use next_page_token of the response before"
        )
    return BindingId(int(page_token))


def attach_source(
    caller: Caller, body: frame_pb2.AttachSourceRequest, ring_bytes: int
) -> commands.AttachSource:
    """The one request whose command needs to know what came with it: the ring's capacity."""
    return commands.AttachSource(
        caller,
        body.channel,
        SourceId(body.source),
        ring_bytes,
        body.resumed,
        body.origin,
        _role(SourceRole, body.role),
        ReaderId(body.own_reader),
        ReaderId(body.peer),
    )


_REQUESTS: Final[Mapping[str, MakeCommand]] = {
    "declare_channel_request": lambda caller, body: commands.DeclareChannel(
        caller, body.name, _stated(body.options)
    ),
    "undeclare_channel_request": lambda caller, body: commands.UndeclareChannel(
        caller, body.name, body.force
    ),
    "get_channel_request": lambda caller, body: commands.GetChannel(caller, body.name),
    "list_channels_request": lambda caller, body: commands.ListChannels(
        caller, body.prefix, body.page_token, body.page_size or CHANNELS_PER_PAGE
    ),
    "create_binding_request": lambda caller, body: commands.CreateBinding(
        caller, body.channel, body.url, _direction(body.direction), dict(body.options)
    ),
    "delete_binding_request": lambda caller, body: commands.DeleteBinding(
        caller, BindingId(body.id), body.channel, body.url
    ),
    "get_binding_request": lambda caller, body: commands.GetBinding(
        caller, BindingId(body.id), body.wait_settled
    ),
    "list_bindings_request": lambda caller, body: commands.ListBindings(
        caller, body.channel, _binding_after(body.page_token), body.page_size or BINDINGS_PER_PAGE
    ),
    "get_status_request": lambda caller, body: commands.GetStatus(caller, body.without_listings),
    "watch_request": lambda caller, body: commands.Watch(
        caller, body.after_revision if body.HasField("after_revision") else None
    ),
    "allocate_ids_request": lambda caller, body: commands.AllocateIds(caller, body.count),
    "detach_source_request": lambda caller, body: commands.DetachSource(caller, SourceId(body.source)),
    "attach_reader_request": _attach_reader,
    "detach_reader_request": lambda caller, body: commands.DetachReader(caller, ReaderId(body.reader)),
    "fetch_readers_request": lambda caller, body: commands.FetchReaders(caller, SourceId(body.source)),
    "release_slot_request": lambda caller, body: commands.ReleaseSlot(
        caller, ReaderId(body.reader), SourceId(body.source)
    ),
    "detach_stalled_request": lambda caller, body: commands.DetachStalled(
        caller, SourceId(body.source), ReaderId(body.reader)
    ),
    "report_broken_source_request": lambda caller, body: commands.ReportBrokenSource(
        caller, ReaderId(body.reader), SourceId(body.source)
    ),
    "publish_request": _publish,
    "report_bindings_request": lambda caller, body: commands.ReportBindings(
        caller, {BindingId(number): _report(report) for number, report in body.reports.items()}
    ),
}

DONE_RESPONSES: Final[Mapping[str, str]] = {
    "undeclare_channel_request": "undeclare_channel_response",
    "detach_source_request": "detach_source_response",
    "attach_reader_request": "attach_reader_response",
    "detach_reader_request": "detach_reader_response",
    "release_slot_request": "release_slot_response",
    "detach_stalled_request": "detach_stalled_response",
    "report_broken_source_request": "report_broken_source_response",
    "report_bindings_request": "report_bindings_response",
}
"""The empty response of each request that is answered by ``Done``."""


def command_from(caller: Caller, request: str, body: Any) -> commands.Command:
    """Return the command that a request asks for.

    Raises:
        NotSupported: this daemon does not know the request here.
        InvalidArgument: a field has a value that has no meaning.
    """
    make = _REQUESTS.get(request)
    if make is None:
        raise NotSupported(f"{request} is not a call of the daemon's socket")
    return make(caller, body)


# ---- from effects ------------------------------------------------------------------------------------------


def contents_model(held: ChannelStatistics | None) -> model.ChannelContents | None:
    if held is None:
        return None
    return model.ChannelContents(
        messages=held.messages,
        content_bytes=held.content_bytes,
        unsettled=held.unsettled,
        consumers=held.consumers,
        waiting=held.publishers,
        oldest_seq=held.oldest_seq,
        next_seq=held.next_seq,
    )


def channel_model(channel: effects.ChannelView, contents_of: ContentsOf | None = None) -> model.ChannelInfo:
    return model.ChannelInfo(
        name=channel.name,
        kind=cast(model.Kind, channel.options.kind.name.lower()),
        durable=channel.options.durable,
        overflow=cast(model.Overflow, channel.options.overflow.name.lower()),
        ring_bytes=channel.options.ring_bytes,
        order=cast(model.Order, channel.options.order.name.lower()),
        history=channel.options.history,
        stall_ms_max=channel.options.stall_ms_max,
        owner=channel.owner,
        publishers=channel.publishers,
        subscribers=channel.subscribers,
        bindings=channel.bindings,
        declared_at_ns=channel.declared_at_ns,
        contents=contents_of(channel.name) if contents_of is not None else None,
        **cast(model.KeepingOptions, {name: getattr(channel.options, name) for name in _KEEPING}),
    )


def binding_model(binding: effects.BindingView) -> model.BindingInfo:
    report = binding.report
    return model.BindingInfo(
        id=binding.id,
        channel=binding.channel,
        url=binding.url,
        direction=cast(model.Direction, binding.direction.name.lower()),
        options=dict(binding.options),
        owner=binding.owner,
        report=model.BindingReport(
            state=cast(model.BindingState, report.state.name.lower()),
            detail=report.detail,
            messages_in=report.messages_in,
            bytes_in=report.bytes_in,
            messages_out=report.messages_out,
            bytes_out=report.bytes_out,
            refused=report.refused,
            restarts=report.restarts,
            last_error=report.last_error,
            last_error_at_ns=report.last_error_at_ns,
        ),
    )


def _channel(channel: effects.ChannelView, contents_of: ContentsOf | None = None) -> registry_pb2.Channel:
    return convert.channel_to_proto(channel_model(channel, contents_of))


def _binding(binding: effects.BindingView) -> registry_pb2.Binding:
    return convert.binding_to_proto(binding_model(binding))


def error_frame(call: int, error: TowpathError) -> Frame:
    """The frame that ends a call with an error; with call 0, the connection."""
    return Frame(id=call, error=convert.error_to_proto(error))


def reply_frame(call: int, request: str, body: effects.ReplyBody, contents_of: ContentsOf) -> Frame:
    """Return the answer to a request as a frame. ``StatusTold`` is the daemon's to complete, and does not
    come here. The answer to a declaration says nothing of contents: the data plane may not have it yet.
    """
    frame = Frame(id=call)
    match body:
        case effects.Done():
            getattr(frame, DONE_RESPONSES[request]).SetInParent()
        case effects.IdsAllocated():
            frame.allocate_ids_response.first_id = body.first_id
            frame.allocate_ids_response.id_count = body.count
        case effects.ChannelDeclared():
            frame.declare_channel_response.channel.CopyFrom(_channel(body.channel))
            frame.declare_channel_response.created = body.created
        case effects.ChannelFound():
            frame.get_channel_response.channel.CopyFrom(_channel(body.channel, contents_of))
        case effects.ChannelsListed():
            frame.list_channels_response.SetInParent()
            frame.list_channels_response.channels.extend(
                _channel(channel, contents_of) for channel in body.channels
            )
            if body.is_more:
                frame.list_channels_response.next_page_token = body.channels[-1].name
        case effects.BindingCreated():
            frame.create_binding_response.binding.CopyFrom(_binding(body.binding))
            frame.create_binding_response.created = body.created
        case effects.BindingDeleted():
            frame.delete_binding_response.binding.CopyFrom(_binding(body.binding))
        case effects.BindingFound():
            frame.get_binding_response.binding.CopyFrom(_binding(body.binding))
        case effects.BindingsListed():
            frame.list_bindings_response.SetInParent()
            frame.list_bindings_response.bindings.extend(_binding(binding) for binding in body.bindings)
            if body.is_more:
                frame.list_bindings_response.next_page_token = str(body.bindings[-1].id)
        case effects.SourceAttached():
            frame.attach_source_response.generation_index = body.generation_index
            frame.attach_source_response.generation = body.generation
            frame.attach_source_response.SetInParent()
        case effects.ReadersFetched():
            frame.fetch_readers_response.generation = body.generation
            frame.fetch_readers_response.SetInParent()
        case _:
            raise AssertionError(f"{type(body).__name__} has no frame")
    return frame


def published_frame(call: int, source: int, last_seq: int, count: int) -> Frame:
    """Return the answer to a publication that is written."""
    frame = Frame(id=call)
    frame.publish_response.source = source
    frame.publish_response.first_seq = last_seq - count + 1
    frame.publish_response.count = count
    return frame


def watch_frame(call: int, revision: int, body: effects.WatchBody) -> Frame:
    """Return one item of a watch as a frame."""
    frame = Frame(id=call)
    response = frame.watch_response
    response.revision = revision
    match body:
        case effects.WatchChannelDeclared():
            response.channel_declared.CopyFrom(_channel(body.channel))
        case effects.WatchChannelUndeclared():
            response.channel_undeclared.CopyFrom(_channel(body.channel))
        case effects.WatchBindingCreated():
            response.binding_created.CopyFrom(_binding(body.binding))
        case effects.WatchBindingDeleted():
            response.binding_deleted.CopyFrom(_binding(body.binding))
        case effects.WatchCurrent():
            response.current.SetInParent()
        case effects.WatchReset():
            response.reset.SetInParent()
    return frame


def held_frame(source: SourceId, error: TowpathError | None) -> Frame:
    """Return what tells a publisher that its messages cannot be stored now; or, None, that they can again."""
    frame = Frame(publication_held=frame_pb2.PublicationHeld(source=source))
    if error is not None:
        frame.publication_held.error.CopyFrom(convert.error_to_proto(error))
    return frame


def notice_frame(body: effects.NoticeBody) -> Frame:
    """Return a notice as a frame; the door adds the descriptors."""
    frame = Frame()
    match body:
        case effects.SourceAdded():
            frame.source_added.CopyFrom(
                frame_pb2.SourceAdded(
                    reader=body.reader,
                    source=body.source,
                    slot=body.slot,
                    from_start=body.start is effects.StartAt.START,
                    from_history=body.start is effects.StartAt.HISTORY,
                    origin=body.origin,
                    channel=body.channel,
                    own_reader=body.own_reader,
                    principal=body.principal,
                )
            )
        case effects.SourceExcluded():
            frame.source_excluded.CopyFrom(frame_pb2.SourceExcluded(reader=body.reader, source=body.source))
        case effects.SourceGone():
            frame.source_gone.CopyFrom(frame_pb2.SourceGone(reader=body.reader, source=body.source))
        case effects.ReaderAdded():
            frame.reader_added.CopyFrom(
                frame_pb2.ReaderAdded(
                    source=body.source,
                    reader=body.reader,
                    slot=body.slot,
                    from_start=body.start is effects.StartAt.START,
                    from_history=body.start is effects.StartAt.HISTORY,
                    session=body.session,
                )
            )
        case effects.ReaderGone():
            frame.reader_gone.CopyFrom(
                frame_pb2.ReaderGone(
                    source=body.source,
                    reader=body.reader,
                    is_parted=body.is_parted,
                    return_ms=body.return_ms,
                )
            )
        case effects.SourceDetached():
            frame.source_detached.reader = body.reader
            frame.source_detached.source = body.source
            frame.source_detached.error.CopyFrom(convert.error_to_proto(body.error))
        case effects.SubscriptionEnded():
            frame.subscription_ended.reader = body.reader
            frame.subscription_ended.error.CopyFrom(convert.error_to_proto(body.error))
        case effects.PublicationEnded():
            frame.publication_ended.source = body.source
            frame.publication_ended.error.CopyFrom(convert.error_to_proto(body.error))
    return frame


def welcome_frame(
    call: int, opened: effects.SessionOpened, software: str, version: int, resuming_ms: int
) -> Frame:
    """Return the answer to hello."""
    return Frame(
        id=call,
        welcome=frame_pb2.Welcome(
            version=version,
            software=software,
            session=opened.session,
            incarnation=opened.incarnation,
            principal=opened.principal,
            first_id=opened.first_id,
            id_count=opened.id_count,
            resuming_ms=resuming_ms,
        ),
    )
