"""What the data plane keeps: rows to write, and what is read back.

Theory of operation
    The state of the data plane is the store. A round of commands (``machine``) leads to rows, which the
    engine commits in one transaction, in order, before any of the round's effects is emitted. Nothing is
    replayed: at start only :class:`StoredChannel` is read, one for each channel, whatever is stored in them;
    the rest is read when it is needed, by the store's ``read_*``.

    A *parcel* is a run of messages with contiguous seqs, the unit that is stored and let go. Its content is
    either ``Run`` (columns, as it came over the socket) or ``bytes`` (packed, as it was taken out of rings);
    the store packs the former. A packed parcel is made before its seqs are known, so a record's number in it
    is an index: its seq is the row's ``first_seq`` + index.

Invariants
    Rows of a commit are carried out in order: DropChannel and then OpenChannel of one name is a fresh one.
    Everything is keyed by the channel's name; what OpenChannel has not opened has no rows.

Not here: how rows are stored (``towpath_broker.store``), who decides them (``machine``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Run:
    """Messages side by side, in columns.

    Attributes:
        payloads: one or more.
        headers: serialized ``towpath.v1.Headers``, one per payload (``b""``: none); empty when none has any.
        time_ns: when all of them were published.
        times_ns: instead, one per payload, where they differ.
        origins: (source, seq) of each, where they were taken out of rings; else empty.
    """

    payloads: Sequence[bytes]
    headers: Sequence[bytes] = ()
    time_ns: int = 0
    times_ns: Sequence[int] = ()
    origins: Sequence[tuple[int, int]] = ()


Content = Run | bytes
"""A parcel's messages: in columns, or packed."""


# ---- rows to write -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenChannel:
    """A channel begins to be stored, with nothing in it.

    Attributes:
        declared_at_ns: with the name, tells it from others of the same name.
        kind: as in registry.proto.
    """

    channel: str
    declared_at_ns: int
    kind: int


@dataclass(frozen=True, slots=True)
class DropChannel:
    """All of a channel is let go: parcels, value, places, ids, what was taken in, totals."""

    channel: str


@dataclass(frozen=True, slots=True)
class Totals:
    """What a channel holds after this commit, in the place of what was said before.

    Attributes:
        oldest_seq: a durable topic's oldest message, or ``next_seq`` where there is none. Queues: 1.
        next_seq: what the next message will have. Never goes back, whatever is let go.
        messages, content_bytes: not settled, or not let go.

    Of a topic with messages in it this is what its parcels tell, so that a store need not write it.
    """

    channel: str
    oldest_seq: int
    next_seq: int
    messages: int
    content_bytes: int


@dataclass(frozen=True, slots=True)
class AddParcel:
    """A parcel of a queue or durable topic.

    Attributes:
        content_bytes: what it counts for: of payloads and headers.
        first_time_ns, last_time_ns: when its first and its last message were published.
        priority: of all of it; queues.
        deliver_at_ns: not delivered before; 0: at once; queues.
    """

    channel: str
    first_seq: int
    count: int
    content_bytes: int
    first_time_ns: int
    last_time_ns: int
    content: Content
    priority: int = 0
    deliver_at_ns: int = 0


@dataclass(frozen=True, slots=True)
class DropParcels:
    """Let go of a durable topic's parcels that lie wholly below a seq (which a parcel begins with)."""

    channel: str
    below_seq: int


@dataclass(frozen=True, slots=True)
class Settle:
    """Messages of a queue's parcel are done.

    Attributes:
        first_seq, priority, deliver_at_ns: the parcel's.
        settled: bit i, from the lowest of the first byte on, is the message first_seq + i; in the place of
            what was there. None: all are, the parcel is let go, with the attempts of its messages.
    """

    channel: str
    first_seq: int
    settled: bytes | None
    priority: int = 0
    deliver_at_ns: int = 0


@dataclass(frozen=True, slots=True)
class Attempts:
    """Messages of a queue were delivered so often, and came back. Later rows go before earlier ones.

    Attributes:
        due_ns: not delivered again before; 0: at once.
    """

    channel: str
    first_seq: int
    count: int
    attempts: int
    due_ns: int = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """Of a source's ring everything up to ``seq`` is taken in; in the place of what was said before."""

    channel: str
    source: int
    seq: int


@dataclass(frozen=True, slots=True)
class ForgetTaken:
    """The source is gone, and will not be read again."""

    channel: str
    source: int


@dataclass(frozen=True, slots=True)
class PutValue:
    """A state's value, in the place of the one before.

    Attributes:
        is_set: false: it was deleted; there is no payload.
        headers: serialized ``towpath.v1.Headers``.
    """

    channel: str
    version: int
    is_set: bool
    payload: bytes
    headers: bytes
    changed_at_ns: int


@dataclass(frozen=True, slots=True)
class PutPlace:
    """A named subscription has dealt with everything before ``seq``."""

    channel: str
    name: str
    seq: int
    saved_at_ns: int


@dataclass(frozen=True, slots=True)
class DropPlace:
    channel: str
    name: str


@dataclass(frozen=True, slots=True)
class Remember:
    """Messages with these ids are published; as pairs of id and seq."""

    channel: str
    ids: Sequence[tuple[str, int]]
    at_ns: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Let go of the ids that were remembered before a time."""

    channel: str
    before_ns: int


@dataclass(frozen=True, slots=True)
class AddTransaction:
    """A transaction is committed.

    Attributes:
        principal, transaction: whose it is, and its id, which is that principal's own.
        response: what was answered, as the machine encodes it.
    """

    principal: str
    transaction: str
    response: bytes
    at_ns: int


@dataclass(frozen=True, slots=True)
class ForgetTransactions:
    """Let go of the transactions that were committed before a time."""

    before_ns: int


Row = (
    OpenChannel
    | DropChannel
    | Totals
    | AddParcel
    | DropParcels
    | Settle
    | Attempts
    | Taken
    | ForgetTaken
    | PutValue
    | PutPlace
    | DropPlace
    | Remember
    | Forget
    | AddTransaction
    | ForgetTransactions
)


# ---- what is read back -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredChannel:
    """What is read of a channel at start: its size does not depend on what is stored in it.

    Attributes:
        priorities: of a queue: those that have parcels with ``deliver_at_ns`` 0.
        next_due_ns: of a queue: the earliest ``deliver_at_ns`` above 0 of its parcels; 0: there is none.
        taken: the last seq taken in, by source.
        places: seq and saved_at_ns, by name.
    """

    channel: str
    declared_at_ns: int
    kind: int
    oldest_seq: int = 1
    next_seq: int = 1
    messages: int = 0
    content_bytes: int = 0
    priorities: Sequence[int] = ()
    next_due_ns: int = 0
    taken: Mapping[int, int] = field(default_factory=dict)
    places: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredParcel:
    """A parcel of a queue, read back.

    Attributes:
        run: all of its messages, unpacked, the settled ones too.
        settled: as in :class:`Settle`; empty: none is.
        attempts: (first_seq, count, attempts, due_ns) of messages that were delivered before, by rising seq,
            none twice.
    """

    first_seq: int
    content_bytes: int
    priority: int
    deliver_at_ns: int
    run: Run
    settled: bytes = b""
    attempts: Sequence[tuple[int, int, int, int]] = ()


@dataclass(frozen=True, slots=True)
class ParcelHead:
    """A durable topic's parcel without its content."""

    first_seq: int
    count: int
    content_bytes: int
    last_time_ns: int


@dataclass(frozen=True, slots=True)
class PackedParcel:
    """A durable topic's parcel, packed."""

    first_seq: int
    count: int
    data: bytes


@dataclass(frozen=True, slots=True)
class StoredValue:
    """A state's value; version 0: none was ever set."""

    version: int = 0
    is_set: bool = False
    payload: bytes = b""
    headers: bytes = b""
    changed_at_ns: int = 0


@dataclass(frozen=True, slots=True)
class StoredTransaction:
    principal: str
    transaction: str
    response: bytes
    at_ns: int
