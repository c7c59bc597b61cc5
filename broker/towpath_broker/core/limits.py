"""The core's bounds: one frozen dataclass; the settings table ``[limits]`` derives from it.

Each bound has a name, a default and a documented outcome when it is reached. Bounds ``*_per_principal_max``
are quotas, charged to the principal for whom a gateway or a client acts, and refused with QUOTA_EXCEEDED;
the others hold for everyone and are refused with LIMIT_EXCEEDED. A refusal changes nothing and tells the
bound's name. ``Start`` carries the limits into the journal, so that a replay decides as the run did,
whatever the configuration says by then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any, Final

from towpath.errors import InvalidConfiguration

RING_BYTES_MIN: Final = 4096
RING_BYTES_LIMIT: Final = 1 << 30
CELLS_MAX: Final = 65_536
"""Cells of the generation table: the most channels there can be."""
IDS_PER_SESSION: Final = 256
"""Ids that a session is given when it opens."""
IDS_PER_ALLOCATION_MAX: Final = 4096
ID_BLOCKS_PER_SESSION_MAX: Final = 16
"""Blocks of ids that a session keeps. When it is given one more, what is unused of the oldest lapses: so a
session may use any number of ids over its life, and none can hoard them."""
SLOTS_MAX: Final = 4096
"""Slots that a control page can have."""
HISTORY_MAX: Final = 65_536
"""Messages of each publisher that a new subscriber may be given."""
DAY_MS: Final = 86_400_000
STALL_MS_LIMIT: Final = DAY_MS
"""A day: the longest that ``stall_ms_max`` can say, short of for ever (0)."""
PLACE_BYTES_MAX: Final = 128
"""Of a named subscription."""
ORIGIN_CHARS_MAX: Final = 128
OPTION_RANGES: Final = {
    "history": (0, HISTORY_MAX),
    "stall_ms_max": (0, STALL_MS_LIMIT),
    "capacity": (1, 10_000_000),
    "capacity_bytes": (1, 1 << 40),
    "ack_ms": (10, DAY_MS),
    "max_deliveries": (0, 65_535),
    "retain_bytes": (0, 1 << 50),
    "retain_ms": (0, 3_660 * DAY_MS),
    "retain_messages": (0, 1 << 50),
    "dedupe_ms": (0, DAY_MS),
}
"""The least and the most that a channel's option can be."""
CHANNELS_PER_PAGE: Final = 1000
BINDINGS_PER_PAGE: Final = 100
"""What one answer lists at most, so that it stays far below the longest message of every carrier."""
ITEMS_PER_PIECE: Final = 256
"""Of the state that a new watch is told first, so much at a time; more when that was sent."""


def limit(default: int, maximum: int, doc: str) -> int:
    """A field of a dataclass of bounds; what it has beside its value, the settings derive from."""
    value: int = field(default=default, metadata={"maximum": maximum, "doc": doc})
    return value


def check_bounds(bounds: Any, **minima: int) -> None:
    """See that each bound is in its range.

    Args:
        bounds: a dataclass whose fields were made by :func:`limit`.
        minima: the least of those that may not be 1.

    Raises:
        InvalidConfiguration: one is not.
    """
    for bound in fields(bounds):
        minimum, maximum = minima.get(bound.name, 1), bound.metadata["maximum"]
        value = getattr(bounds, bound.name)
        if not minimum <= value <= maximum:
            raise InvalidConfiguration(
                f"limit {bound.name} is {value}", hint=f"{bound.name} may be {minimum} to {maximum}"
            )


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds that an operator may set.

    Each is at least 1. A field's metadata has ``maximum``, the most it can be set to, and ``doc``, one
    sentence for the manual.

    Raises:
        InvalidConfiguration: a value is out of its range.
    """

    sessions_max: int = limit(4096, 65_536, "Sessions at one time.")
    sessions_per_principal_max: int = limit(1024, 65_536, "Sessions of one principal at one time.")
    channels_max: int = limit(CELLS_MAX, CELLS_MAX, "Channels declared.")
    channels_per_principal_max: int = limit(16_384, CELLS_MAX, "Channels declared by one principal.")
    bindings_max: int = limit(4096, 65_536, "Bindings.")
    sources_per_principal_max: int = limit(16_384, 1 << 20, "Publishers of one principal at one time.")
    readers_per_principal_max: int = limit(16_384, 1 << 20, "Subscribers of one principal at one time.")
    publishers_per_channel_max: int = limit(255, SLOTS_MAX, "Publishers on one channel at one time.")
    subscribers_per_channel_max: int = limit(
        1024, 65_536, "Subscribers on one channel at one time, without those to patterns."
    )
    patterns_max: int = limit(1024, 4096, "Subscriptions to patterns at one time.")
    patterns_per_principal_max: int = limit(
        256, 4096, "Subscriptions of one principal to patterns at one time."
    )
    own_sources_max: int = limit(
        1024, CELLS_MAX, "Channels on which the core writes itself: order=total, and published on by socket."
    )
    consumers_per_queue_max: int = limit(1024, 65_536, "Consumers of one queue at one time.")
    consumers_per_principal_max: int = limit(
        4096, 65_536, "Consumers of queues, of one principal, at one time."
    )
    unsettled_max: int = limit(
        1 << 24, 1 << 31, "Deliveries that all consumers together may have unsettled: the sum of prefetches."
    )
    unsettled_per_principal_max: int = limit(
        1 << 22, 1 << 31, "Deliveries that the consumers of one principal may have unsettled."
    )
    waiting_publishes_per_queue_max: int = limit(
        1024, 65_536, "Publications that wait for room in one queue, before others are refused."
    )
    queue_bytes_max: int = limit(
        1 << 30, 1 << 40, "Bytes in all queues that are in memory alone, payloads and headers."
    )
    queue_bytes_per_principal_max: int = limit(
        1 << 30, 1 << 40, "Bytes in such queues that one principal has declared."
    )
    store_bytes_max: int = limit(
        1 << 36, 1 << 50, "Bytes in all durable queues and topics, payloads and headers."
    )
    store_bytes_per_principal_max: int = limit(
        1 << 36, 1 << 50, "Bytes in such channels that one principal has declared."
    )
    message_ids_per_channel_max: int = limit(
        1_000_000, 100_000_000, "Message ids that one channel remembers."
    )
    value_bytes_max: int = limit(1 << 20, 1 << 24, "Bytes of one state's value, with its headers.")
    values_bytes_max: int = limit(1 << 28, 1 << 34, "Bytes of all states' values.")
    values_bytes_per_principal_max: int = limit(
        1 << 28, 1 << 34, "Bytes of the values of states that one principal has declared."
    )
    watchers_per_state_max: int = limit(1024, 65_536, "Watchers of one state's value at one time.")
    watchers_per_principal_max: int = limit(
        4096, 65_536, "Watchers of values, of one principal, at one time."
    )
    places_per_channel_max: int = limit(1024, 65_536, "Named subscriptions that one durable topic remembers.")
    transactions_remembered_max: int = limit(
        100_000, 10_000_000, "Transactions that are remembered, so that none is carried out twice."
    )
    ring_bytes_max: int = limit(RING_BYTES_LIMIT, RING_BYTES_LIMIT, "The largest ring a channel may ask for.")
    waits_per_session_max: int = limit(64, 4096, "Calls of one session that wait for a binding to settle.")
    watches_per_session_max: int = limit(4, 64, "Watches of the registry that one session may have.")

    def __post_init__(self) -> None:
        check_bounds(self, ring_bytes_max=RING_BYTES_MIN)

    def items(self) -> Iterator[tuple[Field[Any], int]]:
        """Yield each bound with its value, in the order of the table."""
        for bound in fields(self):
            yield bound, getattr(self, bound.name)
