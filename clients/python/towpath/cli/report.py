"""What the command line prints of the registry, the daemon and messages: pages for people, JSON for programs.

Pure functions of the client library's values. The keys of the JSON forms are those of the dataclasses in
``towpath.model``, plus what is said at each function; keys may be added later, and none is taken away or
changes its meaning.
"""

from __future__ import annotations

import base64
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from towpath.cli.text import Cell, Style, ago, byte_size, duration, one_line, ordinal, table
from towpath.errors import Code, TowpathError
from towpath.model import (
    STALL_MS_DEFAULT,
    BindingInfo,
    BindingReport,
    ChannelContents,
    ChannelInfo,
    GatewayInfo,
    Headers,
    Status,
)
from towpath.wording import plural

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from towpath._value import Value
    from towpath.queues import Delivery

COUNTERS_COLUMNS: Final = 100
"""How long a line of counters is."""
_NS_PER_S: Final = 1_000_000_000
_LOOKS: Final = {
    "running": "green",
    "waiting": "yellow",
    "pending": "yellow",
    "starting": "yellow",
    "retrying": "yellow",
    "backing_off": "yellow",
    "failed": "red",
}
_ARROWS: Final = {"in": "into", "out": "out of", "both": "into and out of"}


class MessageLike(Protocol):
    """What is read of a message here; the extension's and the pure one both have it."""

    @property
    def payload(self) -> bytes: ...
    @property
    def seq(self) -> int: ...
    @property
    def source(self) -> int: ...
    @property
    def time_ns(self) -> int: ...
    @property
    def channel(self) -> str: ...
    @property
    def headers(self) -> Headers: ...


# ---- JSON --------------------------------------------------------------------------------------------------


def to_json(document: object) -> str:
    """Write one JSON document, indented, with a newline at its end."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def to_json_line(document: object) -> str:
    """Write one JSON document on one line, with its newline."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"


def channel_document(channel: ChannelInfo) -> dict[str, object]:
    """A channel's JSON form: the fields of ``ChannelInfo``; ``contents`` has those of ``ChannelContents``, or
    is null.
    """
    return {
        **{name: getattr(channel, name) for name in _names(ChannelInfo)},
        "contents": asdict(channel.contents) if channel.contents is not None else None,
    }


def binding_document(binding: BindingInfo) -> dict[str, object]:
    """A binding's JSON form: the fields of ``BindingInfo``; ``report`` has those of ``BindingReport``."""
    report = {name: getattr(binding.report, name) for name in _names(BindingReport)}
    report["last_error"] = (
        None if binding.report.last_error is None else error_document(binding.report.last_error)
    )
    return {
        **{name: getattr(binding, name) for name in _names(BindingInfo)},
        "options": dict(binding.options),
        "report": report,
    }


def gateway_document(gateway: GatewayInfo) -> dict[str, object]:
    """A gateway's JSON form: the fields of ``GatewayInfo``."""
    return {
        **{name: getattr(gateway, name) for name in _names(GatewayInfo)},
        "endpoints": dict(gateway.endpoints),
        "counters": dict(gateway.counters),
    }


def error_document(error: TowpathError) -> dict[str, object]:
    """An error's JSON form: its number and name in the error table, message, hint, retryable."""
    return {
        "code": int(error.code),
        "name": error.code.name,
        "message": error.message,
        "hint": error.hint,
        "retryable": error.retryable,
    }


def status_document(status: Status) -> dict[str, object]:
    """The daemon's JSON form: the fields of ``Status``."""
    return {
        **{name: getattr(status, name) for name in _names(Status)},
        "channels": [channel_document(channel) for channel in status.channels],
        "bindings": [binding_document(binding) for binding in status.bindings],
        "gateways": [gateway_document(gateway) for gateway in status.gateways],
        "counters": dict(status.counters),
        "warnings": list(status.warnings),
        "traffic": {name: asdict(traffic) for name, traffic in status.traffic.items()},
        "session_list": [asdict(session) for session in status.session_list],
    }


def message_document(message: MessageLike) -> dict[str, object]:
    """A message's JSON form.

    Keys: ``channel``, ``seq``, ``source``, ``time_ns``, ``payload``, ``encoding`` (``utf-8``: payload is
    the text; ``base64``: payload was not UTF-8), ``headers`` (only those that are set; ``key`` with
    ``key_encoding``).
    """
    payload, encoding = _text_or_base64(message.payload)
    return {
        "channel": message.channel,
        "seq": message.seq,
        "source": message.source,
        "time_ns": message.time_ns,
        "payload": payload,
        "encoding": encoding,
        "headers": _headers_document(message.headers),
    }


def value_json_line(value: Value) -> bytes:
    """A state's value in its JSON form, on one line: ``version``, ``is_set``, ``changed_at_ns``, ``payload``,
    ``encoding`` and ``headers`` as for messages.
    """
    payload, encoding = _text_or_base64(value.payload)
    document = {
        "version": value.version,
        "is_set": value.is_set,
        "changed_at_ns": value.changed_at_ns,
        "payload": payload if value.is_set else None,
        "encoding": encoding,
        "headers": _headers_document(value.headers),
    }
    return to_json_line(document).encode()


def delivery_json_line(delivery: Delivery) -> bytes:
    """A delivery's JSON form on one line: as a message's, with ``attempt`` in the place of ``source``."""
    payload, encoding = _text_or_base64(delivery.payload)
    document = {
        "channel": delivery.channel,
        "seq": delivery.seq,
        "attempt": delivery.attempt,
        "time_ns": delivery.time_ns,
        "payload": payload,
        "encoding": encoding,
        "headers": _headers_document(delivery.headers),
    }
    return to_json_line(document).encode()


def message_json_line(message: MessageLike) -> bytes:
    """A message's JSON form on one line."""
    return to_json_line(message_document(message)).encode()


def _headers_document(headers: Headers) -> dict[str, object]:
    document: dict[str, object] = {}
    for name in _names(Headers):
        value: Any = getattr(headers, name)
        if name == "key" and value:
            document["key"], document["key_encoding"] = _text_or_base64(value)
        elif value:
            document[name] = dict(value) if isinstance(value, Mapping) else value
    return document


def _names(value_type: type[DataclassInstance]) -> list[str]:
    return [field.name for field in fields(value_type)]


def _text_or_base64(data: bytes) -> tuple[str, str]:
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(data).decode("ascii"), "base64"


# ---- text --------------------------------------------------------------------------------------------------


def message_prefix(message: MessageLike, *, with_channel: bool = False) -> bytes:
    """What ``sub --meta`` puts before a payload: publish time, source, seq and, of a pattern, the channel,
    each with a tab.
    """
    channel = f"{message.channel}\t" if with_channel else ""
    return f"{timestamp(message.time_ns)}\t{message.source}\t{message.seq}\t{channel}".encode()


def timestamp(time_ns: int) -> str:
    """Write a moment as RFC 3339 in UTC, to the microsecond."""
    whole_s, rest_ns = divmod(time_ns, _NS_PER_S)
    return f"{datetime.fromtimestamp(whole_s, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ns // 1000:06d}Z"


def channel_line(channel: ChannelInfo) -> str:
    """One sentence on a channel, as ``declare`` prints it."""
    durable = ", durable" if channel.durable else ""
    ring = f", ring {byte_size(channel.ring_bytes)}" if _has_ring(channel) else ""
    order = "" if channel.order == "source" else f", order {channel.order}"
    more = "".join(f", {what} {text}" for what, text in zip(_RARE, _rare(channel), strict=True) if text)
    return f"{channel.name}: {channel.kind}{durable}, overflow {channel.overflow}{ring}{order}{more}"


def _has_ring(channel: ChannelInfo) -> bool:
    """Whether the size of rings means something: of queues and states there are none."""
    return channel.kind not in ("queue", "state")


_KEEPING: Final[Mapping[str, str]] = {
    "capacity": "capacity",
    "capacity_bytes": "capacity bytes",
    "ack_ms": "ack",
    "max_deliveries": "max deliveries",
    "dead_letter": "dead letters",
    "retain_bytes": "retain",
    "retain_ms": "retain age",
    "retain_messages": "retain count",
    "dedupe_ms": "dedupe",
}
_RARE: Final = ("history", "stall", *_KEEPING.values())


def _rare(channel: ChannelInfo) -> tuple[str, ...]:
    """What of a channel's options is not the default; empty where it is."""
    stall = "never" if channel.stall_ms_max == 0 else f"{channel.stall_ms_max:,} ms"
    return (
        f"{channel.history:,}" if channel.history else "",
        "" if channel.stall_ms_max == STALL_MS_DEFAULT else stall,
        *(_keeping(channel, name) for name in _KEEPING),
    )


def _keeping(channel: ChannelInfo, name: str) -> str:
    value = getattr(channel, name)
    if value == _DEFAULTS[name]:
        return ""
    if isinstance(value, str):
        return value
    if value == 0:
        return "no bound" if name.startswith("retain") else "0"
    if name.endswith("_bytes"):
        return byte_size(value)
    return f"{value:,} ms" if name.endswith("_ms") else f"{value:,}"


_DEFAULTS: Final = {field.name: field.default for field in fields(ChannelInfo)}


CONTENTS: Final = (">HELD", ">HELD BYTES", ">UNSETTLED", ">CONSUMERS", ">WAITING", ">STORED SEQS")
"""The headings of what channels hold."""


def contents_cells(contents: ChannelContents | None) -> tuple[str, ...]:
    """What a channel holds, a text for each of ``CONTENTS``; empty where there is nothing to say."""
    if contents is None:
        return ("",) * len(CONTENTS)
    is_stored = 0 < contents.oldest_seq < contents.next_seq
    return (
        f"{contents.messages:,}",
        byte_size(contents.content_bytes),
        f"{contents.unsettled:,}" if contents.unsettled else "",
        f"{contents.consumers:,}" if contents.consumers else "",
        f"{contents.waiting:,}" if contents.waiting else "",
        f"{contents.oldest_seq}-{contents.next_seq - 1}" if is_stored else "",
    )


def binding_line(binding: BindingInfo) -> str:
    """One sentence on a binding, as ``bind`` and ``unbind`` print it."""
    detail = f" ({binding.report.detail})" if binding.report.detail else ""
    arrow = _ARROWS[binding.direction]
    return one_line(
        f"binding {binding.id}: {binding.url} {arrow} {binding.channel}, {binding.report.state}{detail}"
    )


def channels_lines(channels: Sequence[ChannelInfo], style: Style, *, indent: str = "") -> list[str]:
    """The table of channels, one line each; what is the default on all of them has no column, and
    what they hold has columns where one of them holds anything.
    """
    rare = [_rare(channel) for channel in channels]
    shown = [index for index in range(len(_RARE)) if any(values[index] for values in rare)]
    contents = [contents_cells(channel.contents) for channel in channels]
    holding = [index for index in range(len(CONTENTS)) if any(held[index] for held in contents)]
    rows = [
        (
            channel.name,
            channel.kind,
            "yes" if channel.durable else "no",
            channel.overflow,
            byte_size(channel.ring_bytes) if _has_ring(channel) else "-",
            *(values[index] or "-" for index in shown),
            *(held[index] or "-" for index in holding),
            str(channel.publishers),
            str(channel.subscribers),
            str(channel.bindings),
            channel.owner,
        )
        for channel, values, held in zip(channels, rare, contents, strict=True)
    ]
    headings = (
        "NAME",
        "KIND",
        "DURABLE",
        "OVERFLOW",
        ">RING",
        *(f">{_RARE[index].upper()}" for index in shown),
        *(CONTENTS[index] for index in holding),
        ">PUBLISHERS",
        ">SUBSCRIBERS",
        ">BINDINGS",
        "OWNER",
    )
    return table(headings, rows, style, indent=indent)


def status_page(status: Status, *, now_ns: int, style: Style) -> str:
    """The page that ``towpath status`` shows.

    Args:
        now_ns: the time, nanoseconds since the epoch, from which ages are told.

    Returns:
        Lines, with a newline at the end.
    """
    up = duration((now_ns - status.started_at_ns) / _NS_PER_S)
    starts = ordinal(status.incarnation)
    lines = [
        style(f"towpath {one_line(status.version)}", "bold")
        + f"  pid {status.pid}, up {up}, {starts} start, {plural(status.sessions, 'session')}",
        f"  socket {one_line(status.socket)}",
    ]
    if status.warnings:
        lines += ["", style("Warnings", "bold")]
        lines += [f"  {style('!', 'yellow')} {one_line(warning)}" for warning in status.warnings]
    lines += ["", style("Gateways", "bold"), *_gateway_lines(status.gateways, style)]
    lines += ["", style("Channels", "bold")]
    lines += (
        channels_lines(status.channels, style, indent="  ")
        if status.channels
        else ["  none yet; declare one: towpath declare NAME"]
    )
    lines += ["", style("Bindings", "bold"), *_binding_lines(status.bindings, now_ns, style)]
    if status.counters:
        lines += ["", style("Counted by the core", "bold"), *_counter_lines(status.counters)]
    return "\n".join(lines) + "\n"


def _gateway_lines(gateways: Sequence[GatewayInfo], style: Style) -> list[str]:
    if not gateways:
        return ["  none is configured"]
    rows: list[tuple[str, ...]] = []
    for gateway in gateways:
        endpoints = [f"{name} {where}" for name, where in sorted(gateway.endpoints.items())] or [""]
        state = Cell(gateway.state.replace("_", " "), _LOOKS.get(gateway.state, ""))
        pid = str(gateway.pid) if gateway.pid else "-"
        detail = gateway.detail or _counters(gateway.counters)
        rows.append((gateway.name, state, pid, str(gateway.restarts), endpoints[0], detail))
        rows += [("", "", "", "", endpoint, "") for endpoint in endpoints[1:]]
    return table(("NAME", "STATE", ">PID", ">RESTARTS", "ENDPOINTS", "DETAIL"), rows, style, indent="  ")


def _binding_lines(bindings: Sequence[BindingInfo], now_ns: int, style: Style) -> list[str]:
    if not bindings:
        return ["  none yet; make one: towpath bind CHANNEL fifo:/path --direction in"]
    rows = []
    errors = []
    for binding in bindings:
        report = binding.report
        rows.append(
            (
                str(binding.id),
                binding.channel,
                binding.direction,
                binding.url,
                Cell(report.state, _LOOKS.get(report.state, "")),
                _carried(report.messages_in, report.bytes_in),
                _carried(report.messages_out, report.bytes_out),
                f"{report.refused:,}",
                report.detail,
            )
        )
        if report.last_error is not None:
            when = f", {ago(report.last_error_at_ns, now_ns)}" if report.last_error_at_ns else ""
            errors.append(f"  {style('!', 'red')} binding {binding.id}{when}: {_told(report.last_error)}")
    headings = ("ID", "CHANNEL", "DIRECTION", "URL", "STATE", ">IN", ">OUT", ">REFUSED", "DETAIL")
    return table(headings, rows, style, indent="  ") + errors


def _told(error: TowpathError) -> str:
    """What went wrong with a binding, and its hint, unless that is to look where this is shown."""
    leads_here = error.code is Code.BINDING_FAILED and error.hint == error.row.hint
    return one_line(error.message if leads_here else str(error))


def _carried(messages: int, size_bytes: int) -> str:
    return f"{messages:,} ({byte_size(size_bytes)})" if messages else "-"


def _counters(counters: Mapping[str, int]) -> str:
    return ", ".join(_counter_pairs(counters))


def _counter_lines(counters: Mapping[str, int]) -> list[str]:
    """The same in lines, each of which ends after a number."""
    text = ", ".join(pair.replace(" ", "\xa0") for pair in _counter_pairs(counters))
    lines = textwrap.wrap(text, COUNTERS_COLUMNS, initial_indent="  ", subsequent_indent="  ")
    return [line.replace("\xa0", " ") for line in lines]


def _counter_pairs(counters: Mapping[str, int]) -> list[str]:
    return [f"{one_line(name).replace('_', ' ')} {number:,}" for name, number in sorted(counters.items())]
