"""What the machine wants done: one frozen dataclass per effect.

The engine emits the effects of a command in order, after the journal holds the command. ``Reply`` and
``Refuse`` answer a call; ``Notice`` and ``StreamItem`` tell a session something unasked; the rest are
orders to the shell, which holds what the core does not: descriptors, connections and the generation table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from towpath.errors import TowpathError

from .commands import BindingReport, ChannelOptions, Direction
from .ids import BindingId, CallId, ConnectionId, ReaderId, SessionId, SourceId

# ---- what answers and notices are made of ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChannelView:
    """A channel as it is told to others."""

    name: str
    options: ChannelOptions
    owner: str
    publishers: int
    subscribers: int
    bindings: int
    declared_at_ns: int


@dataclass(frozen=True, slots=True)
class BindingView:
    """A binding as it is told to others."""

    id: BindingId
    channel: str
    url: str
    direction: Direction
    options: Mapping[str, str]
    owner: str
    report: BindingReport


# ---- bodies of replies -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done:
    """The call was carried out and there is nothing more to say; becomes the call's own empty response."""


@dataclass(frozen=True, slots=True)
class IdsAllocated:
    first_id: int
    count: int


@dataclass(frozen=True, slots=True)
class ChannelDeclared:
    channel: ChannelView
    created: bool


@dataclass(frozen=True, slots=True)
class ChannelFound:
    channel: ChannelView


@dataclass(frozen=True, slots=True)
class ChannelsListed:
    """``is_more``: others follow behind the last of these."""

    channels: tuple[ChannelView, ...]
    is_more: bool = False


@dataclass(frozen=True, slots=True)
class BindingCreated:
    binding: BindingView
    created: bool


@dataclass(frozen=True, slots=True)
class BindingDeleted:
    binding: BindingView


@dataclass(frozen=True, slots=True)
class BindingFound:
    binding: BindingView


@dataclass(frozen=True, slots=True)
class BindingsListed:
    """``is_more``: others follow behind the last of these."""

    bindings: tuple[BindingView, ...]
    is_more: bool = False


@dataclass(frozen=True, slots=True)
class SessionView:
    """A session as it is told to others.

    Attributes:
        sources: what it publishes by.
        readers: what it subscribes by, each with the slots that its sources have in its control page.
    """

    id: SessionId
    name: str
    principal: str
    pid: int
    gateway: str
    sources: tuple[SourceId, ...]
    readers: tuple[tuple[ReaderId, Mapping[SourceId, int]], ...]


@dataclass(frozen=True, slots=True)
class StatusTold:
    """The core's part of a status; the shell adds what it knows itself."""

    sessions: tuple[SessionView, ...]
    channels: tuple[ChannelView, ...]
    bindings: tuple[BindingView, ...]


@dataclass(frozen=True, slots=True)
class SourceAttached:
    generation_index: int
    generation: int


@dataclass(frozen=True, slots=True)
class ReadersFetched:
    generation: int


ReplyBody = (
    Done
    | IdsAllocated
    | ChannelDeclared
    | ChannelFound
    | ChannelsListed
    | BindingCreated
    | BindingDeleted
    | BindingFound
    | BindingsListed
    | StatusTold
    | SourceAttached
    | ReadersFetched
)


class StartAt(Enum):
    """Where a reader begins in a source's ring."""

    START = auto()
    """At its first record: the source came after the reader, which misses nothing."""
    TAIL = auto()
    """Behind all that was published before the reader is told; the shell says where that is."""
    HISTORY = auto()
    """Before the tail by as many messages as the channel's ``history`` says."""


# ---- bodies of notices -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceAdded:
    """To a subscriber; the shell adds the ring's descriptor, and the doorbell of the source's ``session``
    where it has one.

    Attributes:
        start: where in the ring to begin.
        own_reader, principal: of a caller or an answerer; 0 and empty of others.
    """

    reader: ReaderId
    source: SourceId
    slot: int
    start: StartAt
    origin: str
    channel: str
    session: SessionId
    own_reader: ReaderId = ReaderId(0)
    principal: str = ""


@dataclass(frozen=True, slots=True)
class SourceGone:
    reader: ReaderId
    source: SourceId


@dataclass(frozen=True, slots=True)
class ReaderAdded:
    """To a publisher; the shell adds the control page's descriptor and, where wanted, the doorbell of
    ``session``."""

    source: SourceId
    reader: ReaderId
    slot: int
    start: StartAt
    session: SessionId
    wants_doorbell: bool


@dataclass(frozen=True, slots=True)
class ReaderGone:
    """To a publisher.

    Attributes:
        is_parted: it was too slow, but lives, and may hold loaned messages. Another follows when it has gone.
        return_ms: for how long it is to be waited for, as it may come back; 0: it will not.
    """

    source: SourceId
    reader: ReaderId
    is_parted: bool = False
    return_ms: int = 0


@dataclass(frozen=True, slots=True)
class SourceDetached:
    """To a subscriber: it was too slow for one source, and is parted from that one."""

    reader: ReaderId
    source: SourceId
    error: TowpathError


@dataclass(frozen=True, slots=True)
class SubscriptionEnded:
    reader: ReaderId
    error: TowpathError


@dataclass(frozen=True, slots=True)
class PublicationEnded:
    source: SourceId
    error: TowpathError


@dataclass(frozen=True, slots=True)
class SourceExcluded:
    """To a subscriber of a channel in total order: messages that came from this source are not for it."""

    reader: ReaderId
    source: SourceId


NoticeBody = (
    SourceAdded
    | SourceExcluded
    | SourceGone
    | SourceDetached
    | ReaderAdded
    | ReaderGone
    | SubscriptionEnded
    | PublicationEnded
)

# ---- bodies of watch items ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WatchChannelDeclared:
    channel: ChannelView


@dataclass(frozen=True, slots=True)
class WatchChannelUndeclared:
    channel: ChannelView


@dataclass(frozen=True, slots=True)
class WatchBindingCreated:
    binding: BindingView


@dataclass(frozen=True, slots=True)
class WatchBindingDeleted:
    binding: BindingView


@dataclass(frozen=True, slots=True)
class WatchCurrent:
    """The state as it stood has been told whole; what follows are changes."""


@dataclass(frozen=True, slots=True)
class WatchReset:
    """What changed since the revision asked for is not known any more; the state is told whole."""


WatchBody = (
    WatchChannelDeclared
    | WatchChannelUndeclared
    | WatchBindingCreated
    | WatchBindingDeleted
    | WatchCurrent
    | WatchReset
)

# ---- effects -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """Answers ``OpenSession``: the connection now is this session, which owns ids first_id .. first_id +
    id_count - 1."""

    connection: ConnectionId
    session: SessionId
    incarnation: int
    principal: str
    first_id: int
    id_count: int


@dataclass(frozen=True, slots=True)
class SessionRefused:
    """Answers ``OpenSession``: the connection is told why and closed."""

    connection: ConnectionId
    error: TowpathError


@dataclass(frozen=True, slots=True)
class Reply:
    session: SessionId
    call: CallId
    body: ReplyBody


@dataclass(frozen=True, slots=True)
class Refuse:
    """The call failed and left everything as it was."""

    session: SessionId
    call: CallId
    error: TowpathError


@dataclass(frozen=True, slots=True)
class Notice:
    session: SessionId
    body: NoticeBody


@dataclass(frozen=True, slots=True)
class StreamItem:
    """One more answer to a watch."""

    session: SessionId
    call: CallId
    revision: int
    body: WatchBody


@dataclass(frozen=True, slots=True)
class StreamPaused:
    """A watch has more to tell of the state as it stands: ask for it (``GoOnTelling``) when what was told is
    on its way."""

    session: SessionId
    call: CallId


@dataclass(frozen=True, slots=True)
class BumpGeneration:
    """Raise a channel's cell by one, to ``generation``, before any later effect is emitted."""

    index: int
    generation: int


@dataclass(frozen=True, slots=True)
class DropSource:
    """Close the ring's descriptor: no one will be given it any more."""

    source: SourceId


@dataclass(frozen=True, slots=True)
class DropReader:
    """Close the control page's descriptor."""

    reader: ReaderId


@dataclass(frozen=True, slots=True)
class OpenOwnSource:
    """Make the core's own ring on a channel; before anyone is told of it.

    Attributes:
        session: the core's own, to which notices about it go.
        is_recovered: go on with the ring that an earlier core left.
    """

    channel: str
    source: SourceId
    session: SessionId
    options: ChannelOptions
    is_recovered: bool


@dataclass(frozen=True, slots=True)
class OpenOwnReader:
    """Make the control page with which the core reads a channel's publishers; after its source."""

    channel: str
    reader: ReaderId
    slots: int
    is_recovered: bool


@dataclass(frozen=True, slots=True)
class WriteMessages:
    """Write into the core's own ring, and then answer the call."""

    session: SessionId
    call: CallId
    principal: str
    source: SourceId
    payloads: Sequence[bytes]
    headers: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class ChannelOpened:
    """The data plane is to have a channel (a queue, a state, a durable topic), or to have it with these
    options. Before anyone is told that it is declared."""

    name: str
    options: ChannelOptions
    owner: str
    declared_at_ns: int


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """The data plane has the channel no more. Before anyone is told."""

    name: str


@dataclass(frozen=True, slots=True)
class SourceBroken:
    """A reader says that a source's ring breaks the rules; told of each source once."""

    source: SourceId
    channel: str
    principal: str


@dataclass(frozen=True, slots=True)
class Warn:
    """Something an operator should know (a configured channel that conflicts); logged and shown in the
    status."""

    message: str


Effect = (
    SessionOpened
    | SessionRefused
    | Reply
    | Refuse
    | Notice
    | StreamItem
    | StreamPaused
    | BumpGeneration
    | DropSource
    | DropReader
    | OpenOwnSource
    | OpenOwnReader
    | WriteMessages
    | ChannelOpened
    | ChannelClosed
    | SourceBroken
    | Warn
)
