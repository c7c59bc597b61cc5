"""What the client library hands out: plain, frozen values. No I/O, no protobuf in sight.

``Message`` itself comes from the C extension where there is one and from ``_message`` otherwise; both look
the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal, TypedDict

from towpath.errors import InvalidArgument, TowpathError

Kind = Literal["topic", "queue", "state", "service"]
Overflow = Literal["block", "drop", "reject"]
Order = Literal["source", "total"]
Direction = Literal["in", "out", "both"]
BindingState = Literal["pending", "running", "waiting", "retrying", "stopped", "failed"]
GatewayState = Literal["starting", "running", "backing_off", "failed"]
STALL_MS_DEFAULT: Final = 30_000
"""How long a publisher waits for a subscriber that does not move, where nothing is said."""

WatchKind = Literal[
    "channel_declared", "channel_undeclared", "binding_created", "binding_deleted", "current", "reset"
]


@dataclass(frozen=True, slots=True)
class Headers:
    """What travels beside a payload; every field is optional.

    Attributes:
        content_type: media type, as in MIME: ``application/json``.
        key: what the message is about.
        priority: 0 (default) to 31 (highest).
        reply_to: channel on which an answer is expected.
        origin: who brought the message: ``binding:ID`` or ``session:ID``.
        traceparent, tracestate: W3C trace context.
        user: the application's own; at most 64, names 1 to 128 bytes of UTF-8.
        message_id: what was published with the same id within the channel's ``dedupe_ms`` is not published
            again; at most 128 bytes. Queues and durable topics.
        deliver_at_ns: not delivered before, nanoseconds since the epoch. Queues.
    """

    content_type: str = ""
    key: bytes = b""
    priority: int = 0
    reply_to: str = ""
    origin: str = ""
    traceparent: str = ""
    tracestate: str = ""
    user: Mapping[str, str] = field(default_factory=dict)
    message_id: str = ""
    deliver_at_ns: int = 0

    def __bool__(self) -> bool:
        return self != NO_HEADERS


NO_HEADERS = Headers()


def with_fields(
    headers: Headers | None,
    *,
    key: bytes = b"",
    priority: int = 0,
    message_id: str = "",
    deliver_at: float | None = None,
) -> Headers | None:
    """The headers with what was stated beside them.

    Args:
        deliver_at: seconds since the epoch, as ``time.time()``; None: at once.

    Raises:
        InvalidArgument: that is no time.
    """
    stated: dict[str, Any] = {}
    if key:
        stated["key"] = key
    if priority:
        stated["priority"] = priority
    if message_id:
        stated["message_id"] = message_id
    if deliver_at is not None:
        if not 0 <= deliver_at < 1 << 34:
            raise InvalidArgument(f"deliver_at {deliver_at} is no time", hint="try: time.time() + 60")
        stated["deliver_at_ns"] = round(deliver_at * 1e9)
    return replace(headers or NO_HEADERS, **stated) if stated else headers


class KeepingOptions(TypedDict, total=False):
    """The options of queues and of what is kept, as ``declare`` takes them beside the others.

    Attributes:
        capacity, capacity_bytes: how much a queue may hold: 1 to 10,000,000 messages (100,000 unless stated),
            and bytes (64 MiB).
        ack_ms: how long a delivery of a queue may stay unsettled before it goes back; 10 to 86,400,000
            (30,000).
        max_deliveries: how often a queue delivers a message before it becomes a dead letter; 0 (unless
            stated): without end.
        dead_letter: the queue or topic to which a queue's dead letters go; empty (unless stated):
            they are dropped, and counted.
        retain_bytes, retain_ms, retain_messages: what a durable topic keeps; 0: no such bound. 1 GiB, of any
            age and number, unless stated. What was stored together is let go together: at most 16,384
            messages, or 1 MiB and one message.
        dedupe_ms: how long the message ids of a queue or durable topic are remembered; 0: not at all, at most
            a day; 120,000 unless stated.
    """

    capacity: int
    capacity_bytes: int
    ack_ms: int
    max_deliveries: int
    dead_letter: str
    retain_bytes: int
    retain_ms: int
    retain_messages: int
    dedupe_ms: int


@dataclass(frozen=True, slots=True)
class ChannelContents:
    """What a queue, a state or a durable topic holds, as it was when the daemon looked.

    Attributes:
        messages: how many; of a state, 1 when it is set.
        content_bytes: of payloads and headers; in a queue a batch counts until the last of it is settled.
        unsettled: queues: how many of the messages are out with consumers.
        consumers: of a queue; of a state, those who watch it.
        waiting: queues: publications that wait for room.
        oldest_seq: durable topics: what is stored has the numbers from this to below ``next_seq``.
        next_seq: durable topics and queues: what the next message will have.
    """

    messages: int = 0
    content_bytes: int = 0
    unsettled: int = 0
    consumers: int = 0
    waiting: int = 0
    oldest_seq: int = 0
    next_seq: int = 0


@dataclass(frozen=True, slots=True)
class ChannelInfo:
    """A channel of the registry.

    Attributes:
        ring_bytes: bytes of each publisher's ring; the largest message is a quarter of it.
        order: ``source``: each publisher's own; ``total``: one for all subscribers.
        history: how many of each publisher's last messages a new subscriber gets first.
        stall_ms_max: how long a publisher waits for a subscriber that does not move; 0 for ever.
        owner: the principal that declared it.
        publishers, subscribers, bindings: how many there are now; a subscriber of a pattern counts on each
            channel that the pattern stands for.
        declared_at_ns: nanoseconds since the epoch.
        contents: what is in it; None for a channel that keeps nothing, for the answer to a declaration, and
            for what is told by a watch.

    The others: see :class:`KeepingOptions`.
    """

    name: str
    kind: Kind
    durable: bool
    overflow: Overflow
    ring_bytes: int
    owner: str
    publishers: int
    subscribers: int
    bindings: int
    declared_at_ns: int
    order: Order = "source"
    history: int = 0
    stall_ms_max: int = STALL_MS_DEFAULT
    capacity: int = 100_000
    capacity_bytes: int = 64 << 20
    ack_ms: int = 30_000
    max_deliveries: int = 0
    dead_letter: str = ""
    retain_bytes: int = 1 << 30
    retain_ms: int = 0
    retain_messages: int = 0
    dedupe_ms: int = 120_000
    contents: ChannelContents | None = None


@dataclass(frozen=True, slots=True)
class BindingReport:
    """What the bridge last said of a binding; counters start again when the bridge does.

    Attributes:
        detail: one line for people: ``pid 4711``.
        messages_in, bytes_in: from the mechanism into the channel.
        messages_out, bytes_out: from the channel out to the mechanism.
        refused: frames that were too long or malformed, and messages that could not be carried.
        last_error_at_ns: nanoseconds since the epoch; 0 for never.
    """

    state: BindingState = "pending"
    detail: str = ""
    messages_in: int = 0
    bytes_in: int = 0
    messages_out: int = 0
    bytes_out: int = 0
    refused: int = 0
    restarts: int = 0
    last_error: TowpathError | None = None
    last_error_at_ns: int = 0


@dataclass(frozen=True, slots=True)
class BindingInfo:
    """An adapter attached to a channel."""

    id: int
    channel: str
    url: str
    direction: Direction
    options: Mapping[str, str]
    owner: str
    report: BindingReport


@dataclass(frozen=True, slots=True)
class GatewayInfo:
    """A gateway process as the daemon sees it."""

    name: str
    state: GatewayState
    pid: int
    restarts: int
    endpoints: Mapping[str, str]
    counters: Mapping[str, int]
    detail: str


@dataclass(frozen=True, slots=True)
class Traffic:
    """How much was published; counted by looking at rings, at no cost to whoever uses them.

    Attributes:
        messages: how many.
        ring_bytes: what they took in rings: payloads, headers, 32 bytes for each message, and padding.
    """

    messages: int = 0
    ring_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """Somebody who is connected to the daemon.

    Attributes:
        name: what the client calls itself.
        pid: 0 where the kernel hides it.
        gateway: which gateway it is, when the daemon started it; else empty.
        publishers, subscribers: how many it has.
        published: by the publishers that it has now.
        pending_bytes: what lies in rings for its subscribers that they have not taken yet.
    """

    id: int
    name: str
    principal: str
    pid: int
    gateway: str
    publishers: int
    subscribers: int
    published: Traffic
    pending_bytes: int


@dataclass(frozen=True, slots=True)
class Status:
    """What the daemon says of itself.

    Attributes:
        sessions: how many there are.
        traffic: by channel, what was published on it on this host since the core started.
        session_list: who is connected, the oldest first.
    """

    version: str
    pid: int
    incarnation: int
    started_at_ns: int
    socket: str
    sessions: int
    channels: tuple[ChannelInfo, ...]
    bindings: tuple[BindingInfo, ...]
    gateways: tuple[GatewayInfo, ...]
    counters: Mapping[str, int]
    warnings: tuple[str, ...]
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    session_list: tuple[SessionInfo, ...] = ()


Start = Literal["new", "all"] | int | datetime
"""Where in a durable topic a subscription begins: with what is published from now on, with the oldest that is
kept, with a seq, or with the first that was published at a time (with its time zone) or later."""


@dataclass(frozen=True, slots=True)
class Place:
    """How far a named subscription of a durable topic has come.

    Attributes:
        seq: everything before it was dealt with.
    """

    name: str
    seq: int
    saved_at_ns: int


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change of the registry.

    Attributes:
        kind: ``current`` after the state as it stood, or what changed since the revision asked for, has been
            told whole; ``reset`` when everything is told again, because the connection was made anew or the
            revision asked for is too old.
        revision: grows by one with each change, over restarts of the daemon too.
    """

    kind: WatchKind
    revision: int
    channel: ChannelInfo | None = None
    binding: BindingInfo | None = None
