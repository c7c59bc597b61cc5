"""What the data plane can be told: one frozen dataclass per command.

Made by the door from frames, by the mediator from rings, by the engine from what the store brought, and by
the registry's effects. Times come with each round (``machine``). A command is *internal* when it cannot be
refused, since nobody is there to be told: it is tried again when the store had no room.

``WRITES`` says whether a client's command needs room in the store where the channel is durable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import ClassVar, NamedTuple

from towpath_broker.core.commands import Caller, ChannelOptions
from towpath_broker.core.ids import CallId, SessionId

from .rows import Content, ParcelHead, Run, StoredParcel, StoredTransaction, StoredValue


@dataclass(frozen=True, slots=True)
class DataCommand:
    """Base of all commands of the data plane."""

    WRITES: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class ClientCommand(DataCommand):
    """One that a client asked for, and is answered: by Reply, Refuse, or a stream."""

    caller: Caller


# ---- channels and sessions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenChannel(DataCommand):
    """The registry has a channel that is a queue, a state or durable; or has it with other options."""

    name: str
    options: ChannelOptions
    owner: str
    declared_at_ns: int


@dataclass(frozen=True, slots=True)
class CloseChannel(DataCommand):
    """The registry has it no more. Everything in it goes; who waits or streams is told."""

    name: str


@dataclass(frozen=True, slots=True)
class Recovered(DataCommand):
    """The registry has told of all its channels: what else is stored is let go of."""


@dataclass(frozen=True, slots=True)
class EndSession(DataCommand):
    """What the session held goes back at once; nobody is answered."""

    session: SessionId


@dataclass(frozen=True, slots=True)
class CancelCall(DataCommand):
    """Ends a stream, or withdraws what waits. A publication that waited is refused (Cancelled); a stream
    ends without a word. Unknown calls are ignored."""

    session: SessionId
    call: CallId


@dataclass(frozen=True, slots=True)
class Tick(DataCommand):
    """Time has passed: ``machine.next_deadline_ns()`` was reached."""


# ---- messages ----------------------------------------------------------------------------------------------


class Fence(NamedTuple):
    """A lock, and the token by which it must be held."""

    lock: str
    token: int


@dataclass(frozen=True, slots=True)
class Publish(ClientCommand):
    """Messages for a queue or a durable topic, over the socket.

    Attributes:
        headers: serialized, one per payload, or empty. The columns below repeat what the machine must know
            of them; each is either empty or has one entry per payload.
        priorities: 0 to 31.
        deliver_at_ns: 0: at once.
        message_ids: empty string: none.
        fences: locks that must be held by these tokens when it is carried out. What has one does not wait for
            room.
    """

    WRITES: ClassVar[bool] = True
    channel: str
    payloads: Sequence[bytes]
    headers: Sequence[bytes] = ()
    priorities: Sequence[int] = ()
    deliver_at_ns: Sequence[int] = ()
    message_ids: Sequence[str] = ()
    fences: Sequence[Fence] = ()


@dataclass(frozen=True, slots=True)
class TakeIn(DataCommand):
    """Messages for a durable topic, out of rings. Answered by ``Appended``, or, when there is no room in the
    store or the channel is gone, by ``NotTaken``. What was taken in before (by ``taken``) is not again.

    Attributes:
        ticket: of the mediator's choosing; the answer has it.
        content: packed; or in columns, where message ids must be looked at.
        count, content_bytes, first_time_ns, last_time_ns: of ``content``.
        taken: by source, the first and the last seq that is in it.
        message_ids: as of ``Publish``; only with columns.
    """

    channel: str
    ticket: int
    content: Content
    count: int
    content_bytes: int
    first_time_ns: int
    last_time_ns: int
    taken: Mapping[int, tuple[int, int]]
    message_ids: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class PostLetters(DataCommand):
    """Dead letters of a queue of the other machine."""

    channel: str
    run: Run
    priority: int


@dataclass(frozen=True, slots=True)
class ForgetSource(DataCommand):
    """The source is gone for good, and its ring is read to the end."""

    channel: str
    source: int


# ---- queues ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Consume(ClientCommand):
    """Attributes: prefetch: 1 to 65,536; 0: the default."""

    channel: str
    prefetch: int = 0


@dataclass(frozen=True, slots=True)
class Range:
    """Deliveries first to last, both included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Returned:
    deliveries: Range
    delay_ms: int = 0
    is_rejected: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Extended:
    """Attributes: ack_ms: from now on; 0: the channel's."""

    deliveries: Range
    ack_ms: int = 0


@dataclass(frozen=True, slots=True)
class Settle(ClientCommand):
    """As SettleRequest."""

    WRITES: ClassVar[bool] = True
    consumer: int
    acknowledged: Sequence[Range] = ()
    returned: Sequence[Returned] = ()
    extended: Sequence[Extended] = ()


# ---- state -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GetValue(ClientCommand):
    channel: str


@dataclass(frozen=True, slots=True)
class SetValue(ClientCommand):
    """Attributes: headers: serialized; if_version: None: whatever it is; fences: as of ``Publish``."""

    WRITES: ClassVar[bool] = True
    channel: str
    payload: bytes
    headers: bytes = b""
    if_version: int | None = None
    fences: Sequence[Fence] = ()


@dataclass(frozen=True, slots=True)
class DeleteValue(ClientCommand):
    WRITES: ClassVar[bool] = True
    channel: str
    if_version: int | None = None
    fences: Sequence[Fence] = ()


@dataclass(frozen=True, slots=True)
class WatchValue(ClientCommand):
    """A stream of ``ValueItem``: the value unless its version is ``after_version``, then each change."""

    channel: str
    after_version: int | None = None


@dataclass(frozen=True, slots=True)
class AttachValue(ClientCommand):
    """The door is told by ``ShareValue`` to hand out the value's page."""

    channel: str


# ---- durable topics ----------------------------------------------------------------------------------------


class StartAt(Enum):
    """Where in a durable topic a reader begins."""

    PLACE = auto()
    """At the place that was saved; without one, as NEW."""
    NEW = auto()
    ALL = auto()
    SEQ = auto()
    TIME = auto()


@dataclass(frozen=True, slots=True)
class FindStored(ClientCommand):
    """Attributes:
    value: the seq or the time.
    name: of the subscription; its place, where there is one, goes before ``start``.
    """

    channel: str
    start: StartAt = StartAt.PLACE
    value: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class ReadStored(ClientCommand):
    """Answered by the shell, from the store (``ReadParcels``)."""

    channel: str
    first_seq: int
    bytes_max: int = 0


@dataclass(frozen=True, slots=True)
class SavePlace(ClientCommand):
    WRITES: ClassVar[bool] = True
    channel: str
    name: str
    seq: int


@dataclass(frozen=True, slots=True)
class DeletePlace(ClientCommand):
    WRITES: ClassVar[bool] = True
    channel: str
    name: str


@dataclass(frozen=True, slots=True)
class ListPlaces(ClientCommand):
    channel: str


# ---- transactions ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CommitTransaction(ClientCommand):
    """All of it or nothing. The parts' callers are the transaction's own.

    Attributes:
        transaction: the caller's id for it; empty: it is not remembered.
        fences: as of ``Publish``, for all of it; its parts' own count, too.
    """

    WRITES: ClassVar[bool] = True
    transaction: str = ""
    publishes: Sequence[Publish] = ()
    settlements: Sequence[Settle] = ()
    values: Sequence[SetValue] = ()
    deletions: Sequence[DeleteValue] = ()
    places: Sequence[SavePlace] = ()
    fences: Sequence[Fence] = ()


# ---- what the store brought --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ParcelsLoaded(DataCommand):
    """Answers ``LoadParcels``.

    Attributes:
        declared_at_ns: of the channel, as it was asked for.
        priority: None: those that fell due.
        parcels: by rising first_seq; by rising deliver_at_ns, and then first_seq, where they fell due.
        is_end: there were no more of them in the store.
        next_due_ns: where they fell due: when the next will; 0: there is none.
    """

    channel: str
    declared_at_ns: int
    priority: int | None
    parcels: Sequence[StoredParcel]
    is_end: bool
    next_due_ns: int = 0


@dataclass(frozen=True, slots=True)
class HeadsLoaded(DataCommand):
    """Answers ``LoadHeads``: by rising seq."""

    channel: str
    declared_at_ns: int
    heads: Sequence[ParcelHead]
    is_end: bool


@dataclass(frozen=True, slots=True)
class ValueLoaded(DataCommand):
    """Brings what ``machine.needs`` asked for."""

    channel: str
    value: StoredValue


@dataclass(frozen=True, slots=True)
class IdsLoaded(DataCommand):
    """Brings what ``machine.needs`` asked for: by id, its seq and when it was remembered, oldest first."""

    channel: str
    ids: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TransactionsLoaded(DataCommand):
    """Brings what ``machine.needs`` asked for, the oldest first."""

    transactions: Sequence[StoredTransaction] = ()
