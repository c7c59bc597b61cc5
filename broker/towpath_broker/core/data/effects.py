"""What the data plane wants done: one frozen dataclass per effect.

The engine emits the effects of a round in order, after the store holds its rows. ``Reply`` and ``Refuse``
answer a call; ``Deliver``, ``ValueItem`` and ``StreamEnded`` belong to calls that stream; the rest are orders
to the shell. ``Load*`` are the engine's own: it reads the store and submits what it found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from towpath.errors import TowpathError
from towpath_broker.core.ids import CallId, SessionId

from .commands import Range
from .rows import Content, PackedParcel, Run, StoredValue

# ---- bodies of replies -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Published:
    """Attributes:
    first_seq: of the first that is new; the others follow contiguously. Where none is new, the seq that the
        first of them had been given.
    count: how many are new.
    duplicates: how many are not.
    """

    channel: str
    first_seq: int
    count: int
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class Consuming:
    """The first item of a consumer's stream; deliveries follow."""

    consumer: int
    ack_ms: int
    prefetch: int


@dataclass(frozen=True, slots=True)
class Settled:
    settled: int
    lost: Sequence[Range] = ()


@dataclass(frozen=True, slots=True)
class ValueTold:
    value: StoredValue


@dataclass(frozen=True, slots=True)
class ValueSet:
    version: int


@dataclass(frozen=True, slots=True)
class ValueDeleted:
    version: int


@dataclass(frozen=True, slots=True)
class Found:
    seq: int
    oldest_seq: int
    next_seq: int


@dataclass(frozen=True, slots=True)
class PlaceSaved:
    pass


@dataclass(frozen=True, slots=True)
class PlaceDeleted:
    pass


@dataclass(frozen=True, slots=True)
class PlacesListed:
    """Attributes: places: name, seq, saved_at_ns; by name."""

    places: Sequence[tuple[str, int, int]]


@dataclass(frozen=True, slots=True)
class Committed:
    published: Sequence[Published] = ()
    values: Sequence[int] = ()
    deletions: Sequence[int] = ()
    is_repeated: bool = False


@dataclass(frozen=True, slots=True)
class ParcelsRead:
    """What a durable topic has stored; from the shell, not the machine.

    Attributes:
        first_seq: of the first parcel's first message.
        next_seq: what to ask for next.
        end_seq: what the next message to be published will have.
    """

    channel: str
    first_seq: int
    next_seq: int
    end_seq: int
    parcels: Sequence[PackedParcel] = ()


ReplyBody = (
    Published
    | Settled
    | ValueTold
    | ValueSet
    | ValueDeleted
    | Found
    | PlaceSaved
    | PlaceDeleted
    | PlacesListed
    | Committed
    | ParcelsRead
)

# ---- effects -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reply:
    """The only answer to a call."""

    session: SessionId
    call: CallId
    body: ReplyBody


@dataclass(frozen=True, slots=True)
class Refuse:
    """The call failed and left everything as it was; ends a stream, too."""

    session: SessionId
    call: CallId
    error: TowpathError


@dataclass(frozen=True, slots=True)
class ConsumeStarted:
    session: SessionId
    call: CallId
    body: Consuming


@dataclass(frozen=True, slots=True)
class Waits:
    """The call waits for what other calls bring about: they must be heard meanwhile, those of its own session
    too."""

    session: SessionId
    call: CallId


@dataclass(frozen=True, slots=True)
class Piece:
    """Messages of a queue with contiguous seqs, delivered for the same time.

    Attributes:
        headers: one per payload, or empty.
        attempt: which delivery this is, from 1.
        time_ns: when they were published.
    """

    first_seq: int
    payloads: Sequence[bytes]
    headers: Sequence[bytes]
    time_ns: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """Deliveries first_delivery, first_delivery + 1, ... of one consumer, piece after piece."""

    session: SessionId
    call: CallId
    consumer: int
    channel: str
    first_delivery: int
    pieces: Sequence[Piece]


@dataclass(frozen=True, slots=True)
class ValueItem:
    """One more item of a watch of a value. Where the session reads slowly only the newest must be told."""

    session: SessionId
    call: CallId
    value: StoredValue


@dataclass(frozen=True, slots=True)
class Appended:
    """Messages of a durable topic are stored, and may be seen.

    Attributes:
        content: as it was stored; message i has seq first_seq + i.
        ticket: of the ``TakeIn``; 0: it came over the socket. With count 0 all of it had been taken in, or
            published, before.
        taken: as of the ``TakeIn``: rings may be released up to there.
    """

    channel: str
    first_seq: int
    count: int
    content: Content
    ticket: int = 0
    taken: Mapping[int, tuple[int, int]] | None = None


@dataclass(frozen=True, slots=True)
class NotTaken:
    """A ``TakeIn`` was not carried out; the rings stay as they are. Retryable ones are to be tried again."""

    channel: str
    ticket: int
    error: TowpathError


@dataclass(frozen=True, slots=True)
class ShowValue:
    """A state's value has changed: write its page, where there is one. None: the channel is gone."""

    channel: str
    value: StoredValue | None


@dataclass(frozen=True, slots=True)
class ShareValue:
    """Answer the call with the value's page, made now if there is none."""

    session: SessionId
    call: CallId
    channel: str
    value: StoredValue


@dataclass(frozen=True, slots=True)
class ReadParcels:
    """Answer the call (ReadStored) from the store: from ``first_seq`` (not before the oldest), below
    ``end_seq``."""

    session: SessionId
    call: CallId
    channel: str
    first_seq: int
    end_seq: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class FindByTime:
    """Answer the call (FindStored) with the first message that was published at a time or later."""

    session: SessionId
    call: CallId
    channel: str
    time_ns: int
    oldest_seq: int
    next_seq: int


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """Publish on a channel that is not of this machine: ``PostLetters`` to the other one, or, where that has
    none of the name either, on a topic. They have left their queue: where it cannot be they are lost, and an
    operator is told."""

    channel: str
    run: Run
    priority: int


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """A call that streamed is over: its channel was undeclared, say."""

    session: SessionId
    call: CallId
    error: TowpathError


@dataclass(frozen=True, slots=True)
class PresenceChanged:
    """Who is on a channel has changed; for the registry.

    Attributes:
        publishers: publications that wait for room.
        subscribers: consumers, or watchers.
    """

    channel: str
    publishers: int
    subscribers: int


@dataclass(frozen=True, slots=True)
class Warn:
    """Something an operator should know."""

    message: str


# ---- the engine's own --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LoadParcels:
    """Read parcels of a queue and submit ``ParcelsLoaded``.

    Attributes:
        priority: of which; None: those that fell due by ``until_ns``.
        first_seq: from this seq on; with priority None: those after (after_ns, first_seq - 1).
    """

    channel: str
    declared_at_ns: int
    priority: int | None
    first_seq: int
    after_ns: int
    until_ns: int
    count_max: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class LoadHeads:
    """Read what a durable topic's parcels are and submit ``HeadsLoaded``."""

    channel: str
    declared_at_ns: int
    first_seq: int
    count_max: int


Effect = (
    Reply
    | Refuse
    | ConsumeStarted
    | Waits
    | Deliver
    | ValueItem
    | Appended
    | NotTaken
    | ShowValue
    | ShareValue
    | ReadParcels
    | FindByTime
    | DeadLetters
    | StreamEnded
    | PresenceChanged
    | Warn
    | LoadParcels
    | LoadHeads
)


# ---- what the machine needs before it can apply a command --------------------------------------------------


@dataclass(frozen=True, slots=True)
class NeedsValue:
    channel: str


@dataclass(frozen=True, slots=True)
class NeedsIds:
    """Attributes: since_ns: ids that were remembered before need not come."""

    channel: str
    since_ns: int


@dataclass(frozen=True, slots=True)
class NeedsTransactions:
    since_ns: int


Need = NeedsValue | NeedsIds | NeedsTransactions
