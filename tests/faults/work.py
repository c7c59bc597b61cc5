"""Work on a store that can be examined after any crash: commit k is one number in five places, or in none."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from towpath import _ring
from towpath_broker.core.commands import Kind
from towpath_broker.core.data import rows
from towpath_broker.store.sqlite import SqliteStore

KEPT = 20
"""Parcels that retention leaves."""


def opening() -> list[rows.Row]:
    return [rows.OpenChannel("t", 1, Kind.TOPIC), rows.OpenChannel("s", 1, Kind.STATE)]


def commit(number: int, size: int) -> list[rows.Row]:
    """What commit ``number`` (from 1) writes: a parcel of one message of ``size`` bytes, and the rest."""
    run = rows.Run([payload(number, size)], time_ns=number)
    oldest = max(1, number - KEPT)
    return [
        rows.AddParcel("t", number, 1, size, number, number, run),
        rows.Taken("t", 1, number),
        rows.PutValue("s", number, True, b"%d" % number, b"", number),
        rows.PutPlace("t", "p", number, number),
        rows.DropParcels("t", oldest),
        rows.Totals("t", oldest, number + 1, number + 1 - oldest, 0),
    ]


def payload(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(size)


def sizes(count: int, largest: int) -> Sequence[int]:
    generator = random.Random(count)
    return [generator.choice((100, 5_000, largest)) for _ in range(count)]


def examine(path: Path) -> int:
    """Open a store after whatever happened to it; return the number of its last commit, 0 before the first.

    Everything that it says must be that commit's, and it must be able to go on.
    """
    store = SqliteStore(path)
    try:
        channels = {channel.channel: channel for channel in store.load()}
        if "t" not in channels:
            assert not channels
            return -1
        topic = channels["t"]
        last = topic.next_seq - 1
        assert topic.taken == ({1: last} if last else {})
        assert topic.places == ({"p": (last, last)} if last else {})
        assert store.read_value("s").version == last
        heads = store.read_heads("t", 1, 1_000)
        assert [head.first_seq for head in heads] == [*range(topic.oldest_seq, last + 1)] or not last
        for parcel in store.read_parcels("t", 1, 1 << 30):
            (content,) = _ring.Parcel(parcel.data, parcel.first_seq).unpack()[0]
            assert content == payload(parcel.first_seq, len(content))
        store.commit(commit(last + 1, 10))
        assert store.load()[0].next_seq == last + 2
        return last
    finally:
        store.close()
