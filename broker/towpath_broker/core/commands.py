"""What the machine can be told: one frozen dataclass per command.

A command is data: made by the door from a frame, by the daemon from the configuration, or by the journal at
replay. ``DURABLE`` ones are appended to the journal before they are applied; the others concern only who is
connected now, which a restart ends. ``Caller`` says for whom a command is judged; the door fills it in from
kernel credentials (or, for a gateway that the daemon started, from what that gateway asserts), never from
what a client says of itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import ClassVar

from towpath.errors import TowpathError

from .ids import BindingId, CallId, ConnectionId, ReaderId, SessionId, SourceId
from .limits import BINDINGS_PER_PAGE, CHANNELS_PER_PAGE, Limits


class Kind(IntEnum):
    """What a channel does; numbers as in registry.proto."""

    TOPIC = 1
    QUEUE = 2
    STATE = 3
    SERVICE = 4


class Overflow(IntEnum):
    """What happens when a subscriber's ring, or a queue, is full; numbers as in registry.proto."""

    BLOCK = 1
    DROP = 2
    REJECT = 3


class Order(IntEnum):
    """Whose order subscribers see; numbers as in registry.proto."""

    SOURCE = 1
    TOTAL = 2


class Direction(IntEnum):
    """Which way a binding carries; numbers as in registry.proto."""

    IN = 1
    OUT = 2
    BOTH = 3


class BindingState(IntEnum):
    """How a binding fares; numbers as in registry.proto."""

    PENDING = 1
    RUNNING = 2
    WAITING = 3
    RETRYING = 4
    STOPPED = 5
    FAILED = 6


class SourceRole(IntEnum):
    """What a source is on its channel; see ``roles``."""

    PUBLISHER = 0
    CALLER = 1
    ANSWERER = 2


class ReaderRole(IntEnum):
    """What a reader is on its channel; see ``roles``."""

    SUBSCRIBER = 0
    SERVER = 1
    REPLIES = 2


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """A channel's options, all of them settled; as they stand here, the daemon's defaults.

    Attributes:
        ring_bytes: of each publisher's ring.
        history: how many of each publisher's last messages a new subscriber gets first.
        stall_ms_max: how long a publisher waits for a subscriber that does not move; 0 for ever.
        capacity, capacity_bytes: how much a queue may hold.
        ack_ms: how long a delivery of a queue may stay unsettled.
        max_deliveries: how often a queue delivers a message before it becomes a dead letter; 0: no bound.
        dead_letter: the channel for a queue's dead letters; empty: they are dropped, and counted.
        retain_bytes, retain_ms, retain_messages: what a durable topic keeps; 0: no such bound.
        dedupe_ms: how long message ids are remembered; 0: not at all.
    """

    kind: Kind = Kind.TOPIC
    durable: bool = False
    overflow: Overflow = Overflow.BLOCK
    ring_bytes: int = 1 << 20
    order: Order = Order.SOURCE
    history: int = 0
    stall_ms_max: int = 30_000
    capacity: int = 100_000
    capacity_bytes: int = 64 << 20
    ack_ms: int = 30_000
    max_deliveries: int = 0
    dead_letter: str = ""
    retain_bytes: int = 1 << 30
    retain_ms: int = 0
    retain_messages: int = 0
    dedupe_ms: int = 120_000

    @property
    def is_data(self) -> bool:
        """Whether the data plane has it: a queue, a state, or a durable topic."""
        return self.kind in (Kind.QUEUE, Kind.STATE) or (self.kind is Kind.TOPIC and self.durable)


@dataclass(frozen=True, slots=True)
class StatedOptions:
    """A channel's options as a caller stated them; None was not stated."""

    kind: Kind | None = None
    durable: bool | None = None
    overflow: Overflow | None = None
    ring_bytes: int | None = None
    order: Order | None = None
    history: int | None = None
    stall_ms_max: int | None = None
    capacity: int | None = None
    capacity_bytes: int | None = None
    ack_ms: int | None = None
    max_deliveries: int | None = None
    dead_letter: str | None = None
    retain_bytes: int | None = None
    retain_ms: int | None = None
    retain_messages: int | None = None
    dedupe_ms: int | None = None


@dataclass(frozen=True, slots=True)
class BindingReport:
    """What the bridge last said of a binding. Counters start again when the bridge does."""

    state: BindingState = BindingState.PENDING
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
class Caller:
    """For whom a command is judged, and where its answer goes.

    Attributes:
        principal: ``uid:1000``, ``config``, or what a gateway asserts.
        is_admin: the daemon's own uid, root, or a member of the admin group.
        session: None for the daemon itself; it gets no answer.
        call: the session's number for this call.
    """

    principal: str
    is_admin: bool = False
    session: SessionId | None = None
    call: CallId = CallId(0)


@dataclass(frozen=True, slots=True)
class Command:
    """Base of all commands."""

    DURABLE: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class Start(Command):
    """The core starts; the first record of each run. Sessions of earlier runs are gone; the incarnation
    grows by one.

    Attributes:
        limits, defaults: what commands are judged by from here on. They are in the record so that a replay
            decides as the run did, whatever the configuration says by then.
    """

    DURABLE: ClassVar[bool] = True
    limits: Limits = Limits()
    defaults: ChannelOptions = ChannelOptions()


@dataclass(frozen=True, slots=True)
class OpenSession(Command):
    """A connection has said hello.

    Attributes:
        gateway: the gateway's name when the daemon started it, else empty.
        pid: for people; 0 where the kernel hides it.
        name: for people; what the client calls itself.
    """

    connection: ConnectionId
    principal: str
    is_admin: bool
    pid: int
    name: str
    gateway: str = ""


@dataclass(frozen=True, slots=True)
class CloseSession(Command):
    """The connection ended, for whatever reason; all that the session had is freed."""

    session: SessionId


@dataclass(frozen=True, slots=True)
class AllocateIds(Command):
    caller: Caller
    count: int


@dataclass(frozen=True, slots=True)
class DeclareChannel(Command):
    """Declare a channel.

    Attributes:
        replace: take the new options where they differ (the configuration at start, while nobody uses the
            channel).
        messages_held: as for :class:`UndeclareChannel`.
    """

    DURABLE: ClassVar[bool] = True
    caller: Caller
    name: str
    options: StatedOptions = StatedOptions()
    replace: bool = False
    messages_held: int = 0


@dataclass(frozen=True, slots=True)
class UndeclareChannel(Command):
    """Remove a channel.

    Attributes:
        force: though it is used, or holds messages.
        messages_held: what the data plane has of it when this is judged. Not in the journal: what is refused
            for it has no record.
    """

    DURABLE: ClassVar[bool] = True
    caller: Caller
    name: str
    force: bool = False
    messages_held: int = 0


@dataclass(frozen=True, slots=True)
class GetChannel(Command):
    caller: Caller
    name: str


@dataclass(frozen=True, slots=True)
class ListChannels(Command):
    """A page of the channels, by name.

    Attributes:
        after: the name behind which to begin.
        count_max: how many at most.
    """

    caller: Caller
    prefix: str = ""
    after: str = ""
    count_max: int = CHANNELS_PER_PAGE


@dataclass(frozen=True, slots=True)
class CreateBinding(Command):
    DURABLE: ClassVar[bool] = True
    caller: Caller
    channel: str
    url: str
    direction: Direction
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeleteBinding(Command):
    """Remove a binding, named by its id or (id 0) by channel and URL."""

    DURABLE: ClassVar[bool] = True
    caller: Caller
    binding: BindingId = BindingId(0)
    channel: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class GetBinding(Command):
    caller: Caller
    binding: BindingId
    wait_settled: bool = False


@dataclass(frozen=True, slots=True)
class ListBindings(Command):
    """A page of the bindings, the oldest first; attributes as of :class:`ListChannels`."""

    caller: Caller
    channel: str = ""
    after: BindingId = BindingId(0)
    count_max: int = BINDINGS_PER_PAGE


@dataclass(frozen=True, slots=True)
class GetStatus(Command):
    caller: Caller
    without_listings: bool = False


@dataclass(frozen=True, slots=True)
class Watch(Command):
    """Tell every change of the registry from here on.

    Attributes:
        after_revision: tell first what changed since this revision; None for the state as it stands.
    """

    caller: Caller
    after_revision: int | None = None


@dataclass(frozen=True, slots=True)
class GoOnTelling(Command):
    """There is room for more of the state that a watch is told first (``StreamPaused``). Unknown watches are
    ignored."""

    session: SessionId
    call: CallId


@dataclass(frozen=True, slots=True)
class CancelCall(Command):
    """The caller no longer wants the answer of a call that is waiting or streaming: none comes after this.
    Unknown calls are ignored."""

    session: SessionId
    call: CallId


@dataclass(frozen=True, slots=True)
class ReportBindings(Command):
    """From the bridge only."""

    caller: Caller
    reports: Mapping[BindingId, BindingReport]


@dataclass(frozen=True, slots=True)
class AttachSource(Command):
    """The session publishes on a channel; the shell holds the ring's descriptor under the source's id.

    Attributes:
        ring_bytes: the ring's capacity, as checked by the shell.
        resumed: the id is from an earlier connection (it must be in nobody's use).
        origin: empty for ``session:ID``; only gateways may state another.
        own_reader: of a caller, where it takes its replies; of an answerer, where it takes its requests.
        peer: of an answerer, the caller's reader of replies.
    """

    caller: Caller
    channel: str
    source: SourceId
    ring_bytes: int
    resumed: bool = False
    origin: str = ""
    role: SourceRole = SourceRole.PUBLISHER
    own_reader: ReaderId = ReaderId(0)
    peer: ReaderId = ReaderId(0)


@dataclass(frozen=True, slots=True)
class DetachSource(Command):
    caller: Caller
    source: SourceId


@dataclass(frozen=True, slots=True)
class AttachReader(Command):
    """The session subscribes; the shell holds the control page's descriptor under the reader's id.

    Attributes:
        channel: a channel's name, or a pattern.
        slots: that the control page has.
        held: the slots in use by sources of before, of a reader that is resumed.
        place: of a channel: the name that this reader goes by, alone; empty: none.
        takes_over: whoever goes by that name ends.
    """

    caller: Caller
    channel: str
    reader: ReaderId
    slots: int
    resumed: bool = False
    exclude_origin: str = ""
    held: Mapping[SourceId, int] = field(default_factory=dict)
    wants_doorbell: bool = False
    role: ReaderRole = ReaderRole.SUBSCRIBER
    place: str = ""
    takes_over: bool = False


@dataclass(frozen=True, slots=True)
class DetachReader(Command):
    caller: Caller
    reader: ReaderId


@dataclass(frozen=True, slots=True)
class FetchReaders(Command):
    caller: Caller
    source: SourceId


@dataclass(frozen=True, slots=True)
class ReleaseSlot(Command):
    caller: Caller
    reader: ReaderId
    source: SourceId


@dataclass(frozen=True, slots=True)
class DetachStalled(Command):
    """From a publisher: part its source from a reader that did not move for ``stall_ms_max``."""

    caller: Caller
    source: SourceId
    reader: ReaderId


@dataclass(frozen=True, slots=True)
class ReportBrokenSource(Command):
    """From a reader that has left a source, because its ring breaks the rules."""

    caller: Caller
    reader: ReaderId
    source: SourceId


@dataclass(frozen=True, slots=True)
class Publish(Command):
    """Messages that came over the socket, for the core to write. The shell answers when they are written.

    Attributes:
        payloads: 1 or more.
        headers: serialized, one for each payload; empty when none has any.
    """

    caller: Caller
    channel: str
    payloads: Sequence[bytes]
    headers: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class PublishLetters(Command):
    """Dead letters of a queue, for a topic. There is nobody to be refused: what is lost makes a warning."""

    channel: str
    payloads: Sequence[bytes]
    headers: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class ReportPresence(Command):
    """From the data plane: who is on one of its channels now.

    Attributes:
        publishers: publications that wait for room.
        subscribers: consumers of a queue, watchers of a state.
    """

    name: str
    publishers: int
    subscribers: int


@dataclass(frozen=True, slots=True)
class CloseOwnSource(Command):
    """The core's source on a channel has been idle for long. Nothing happens where it is needed."""

    source: SourceId


@dataclass(frozen=True, slots=True)
class ShowStored(Command):
    """Messages of a durable topic were stored that the core has no source to show with: it gets one. Nothing
    happens where the topic is gone, or there can be no more sources.
    """

    channel: str


@dataclass(frozen=True, slots=True)
class OwnFound:
    """What an earlier core left on a channel: its source's ring and its intake's control page.

    Attributes:
        held: the slots that sources had in the page.
    """

    channel: str
    source: SourceId
    ring_bytes: int
    reader: ReaderId
    held: Mapping[SourceId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecoverOwn(Command):
    """A run begins: go on with what an earlier one left, as far as it still fits. Before any session."""

    found: Sequence[OwnFound]
