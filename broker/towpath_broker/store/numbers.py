"""How a durable topic's parcels are numbered, and found by these numbers.

Theory of operation
    A parcel's id is its channel's number and its *ordinal*: a topic's parcels are 1, 2, 3, ... in the order
    in which they were added, and as only the oldest are let go, there is no gap between those that are there.
    SQLite keeps rows by id. So what is added to a topic goes to the end of its rows, into the page that the
    commit before wrote as well: a small commit writes that one page, and no index. What an index would tell
    is found by halving, since seqs and times do not fall along a topic's ordinals: ``first_id``.

Invariants
    0 < channel <= ``CHANNEL_MAX`` and 0 < ordinal <= ``ORDINAL_MAX``: at 10,000 parcels a second a topic has
    enough of them for 27 years. A channel's number is given again only when nothing is left of who had it.

Not here: writing parcels (``topics``), reading them (``reading``).
"""

from __future__ import annotations

import sqlite3
import struct
from typing import Final

ORDINAL_BITS: Final = 43
ORDINAL_MAX: Final = (1 << ORDINAL_BITS) - 1
CHANNEL_MAX: Final = (1 << 63 - ORDINAL_BITS) - 1

_TAKEN: Final = struct.Struct("<QQ")
_IN_USE: Final = "SELECT id FROM channel UNION ALL SELECT channel FROM dropped"


def span(number: int) -> tuple[int, int]:
    """The ids that a channel's parcels can have: the first and the last."""
    return number << ORDINAL_BITS, (number << ORDINAL_BITS) + ORDINAL_MAX


def free_number(database: sqlite3.Connection) -> int:
    """A number that no channel has, nor one of which something is left. O(1), until they run out."""
    (last,) = database.execute(
        "SELECT max((SELECT coalesce(max(id), 0) FROM channel),"
        " (SELECT coalesce(max(channel), 0) FROM dropped))"
    ).fetchone()
    if last < CHANNEL_MAX:
        return int(last) + 1
    (gap,) = database.execute(
        f"SELECT min(id) + 1 FROM (SELECT 0 AS id UNION ALL {_IN_USE}) WHERE id + 1 NOT IN ({_IN_USE})"
    ).fetchone()
    return int(gap)


def oldest_id(database: sqlite3.Connection, number: int) -> int | None:
    """The id of a topic's oldest parcel; None: it has none."""
    found = database.execute(
        "SELECT id FROM parcel WHERE id BETWEEN ? AND ? ORDER BY id LIMIT 1", span(number)
    ).fetchone()
    return None if found is None else int(found[0])


def newest_id(database: sqlite3.Connection, number: int) -> int | None:
    """The id of a topic's newest parcel; None: it has none."""
    found = database.execute(
        "SELECT id FROM parcel WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1", span(number)
    ).fetchone()
    return None if found is None else int(found[0])


def first_id(database: sqlite3.Connection, number: int, wanted: str, value: int) -> int | None:
    """The id of a topic's first parcel of which something is true.

    Args:
        wanted: an SQL condition with one parameter; once it is true along a topic's parcels, it stays so.
        value: its parameter.

    Returns:
        None: of none. O(log parcels).
    """
    low, newest = oldest_id(database, number), newest_id(database, number)
    if low is None or newest is None:
        return None
    high = newest + 1
    while low < high:
        middle = (low + high) // 2
        # A row that is not there is damage, which whoever reads on from here finds.
        found = database.execute(f"SELECT {wanted} FROM parcel WHERE id = ?", (value, middle)).fetchone()
        if found is None or found[0]:
            high = middle
        else:
            low = middle + 1
    return low if low <= newest else None


def pack_taken(taken: dict[int, int]) -> bytes:
    """Up to which seq sources were taken in, as a parcel's row has it."""
    return b"".join(_TAKEN.pack(source, seq) for source, seq in taken.items())


def taken_since(database: sqlite3.Connection, number: int, ordinal: int) -> dict[int, int]:
    """What a topic's parcels from an ordinal on say of what was taken in."""
    first, last = span(number)
    taken: dict[int, int] = {}
    for (packed,) in database.execute(
        "SELECT taken FROM parcel WHERE id BETWEEN ? AND ? ORDER BY id", (first + ordinal, last)
    ):
        taken.update(_TAKEN.iter_unpack(packed))
    return taken
