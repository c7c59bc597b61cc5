"""A store in memory: what the simulation of the data plane, and tests, keep their rows in.

Theory of operation
    A commit is carried out on copies of the channels that it touches, which then take their place: all or
    none. Plain code, and slow where a channel has many parcels: it is the model that the SQLite store is held
    against, by one conformance suite.

Not here: anything that survives the process.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from towpath.errors import StoreFull
from towpath_broker.core.commands import Kind
from towpath_broker.core.data import rows

from .contents import first_at, pack, unpack


@dataclass(slots=True)
class _Channel:
    """All that is stored of one channel. Parcels and values are never changed, only replaced."""

    opened: rows.OpenChannel
    totals: rows.Totals
    parcels: dict[int, tuple[rows.AddParcel, bytes]] = field(default_factory=dict)  # by first_seq; packed
    settled: dict[int, bytes] = field(default_factory=dict)
    attempts: dict[int, tuple[int, int]] = field(default_factory=dict)  # by seq: how often, and due_ns
    taken: dict[int, int] = field(default_factory=dict)
    value: rows.StoredValue = rows.StoredValue()
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    ids: dict[str, tuple[int, int]] = field(default_factory=dict)

    def copied(self) -> _Channel:
        """A copy that can be changed without changing this one. O(parcels)."""
        return dataclasses.replace(
            self,
            parcels=dict(self.parcels),
            settled=dict(self.settled),
            attempts=dict(self.attempts),
            taken=dict(self.taken),
            places=dict(self.places),
            ids=dict(self.ids),
        )

    def apply(self, row: rows.Row) -> None:
        """Carry out one row."""
        match row:
            case rows.Totals():
                self.totals = row
            case rows.AddParcel():
                self.parcels[row.first_seq] = row, pack(row.content)
            case rows.DropParcels():
                for first_seq in [each for each in self.parcels if each < row.below_seq]:
                    del self.parcels[first_seq]
            case rows.Settle(settled=None):
                parcel, _ = self.parcels.pop(row.first_seq)
                self.settled.pop(row.first_seq, None)
                for seq in range(row.first_seq, row.first_seq + parcel.count):
                    self.attempts.pop(seq, None)
            case rows.Settle(settled=bytes(settled)):
                self.settled[row.first_seq] = settled
            case rows.Attempts():
                seqs = range(row.first_seq, row.first_seq + row.count)
                self.attempts |= dict.fromkeys(seqs, (row.attempts, row.due_ns))
            case rows.Taken():
                self.taken[row.source] = row.seq
            case rows.ForgetTaken():
                self.taken.pop(row.source, None)
            case rows.PutValue():
                self.value = rows.StoredValue(
                    row.version, row.is_set, row.payload, row.headers, row.changed_at_ns
                )
            case rows.PutPlace():
                self.places[row.name] = row.seq, row.saved_at_ns
            case rows.DropPlace():
                self.places.pop(row.name, None)
            case rows.Remember():
                self.ids |= {message_id: (seq, row.at_ns) for message_id, seq in row.ids}
            case rows.Forget():
                self.ids = {each: when for each, when in self.ids.items() if when[1] >= row.before_ns}

    def told(self) -> rows.Totals:
        """What it holds: of a topic with messages, what its parcels tell."""
        if self.opened.kind != Kind.TOPIC or not self.parcels:
            return self.totals
        parcels = [row for row, _ in self.parcels.values()]
        oldest_seq, next_seq = parcels[0].first_seq, parcels[-1].first_seq + parcels[-1].count
        content_bytes = sum(row.content_bytes for row in parcels)
        return rows.Totals(self.opened.channel, oldest_seq, next_seq, next_seq - oldest_seq, content_bytes)

    def attempts_in(self, first_seq: int, count: int) -> list[tuple[int, int, int, int]]:
        """The attempts of a run of messages, those that are alike side by side."""
        found: list[tuple[int, int, int, int]] = []
        for seq in range(first_seq, first_seq + count):
            attempts = self.attempts.get(seq)
            if attempts is None:
                continue
            if found and found[-1][0] + found[-1][1] == seq and found[-1][2:] == attempts:
                found[-1] = found[-1][0], found[-1][1] + 1, *attempts
            else:
                found.append((seq, 1, *attempts))
        return found


class MemoryStore:
    """Implements ``ports.Store`` in memory.

    Args:
        bytes_max: what all parcels may have together, packed; a commit beyond it is refused. 0: no bound.
    """

    def __init__(self, *, bytes_max: int = 0) -> None:
        self.bytes_max = bytes_max
        self._channels: dict[str, _Channel] = {}
        self._transactions: dict[tuple[str, str], rows.StoredTransaction] = {}
        self._lock = threading.Lock()

    def load(self) -> Sequence[rows.StoredChannel]:
        """Return all channels that are stored; see ``ports.Store``."""
        with self._lock:
            return [self._stored(channel) for channel in self._channels.values()]

    def _stored(self, channel: _Channel) -> rows.StoredChannel:
        is_queue = channel.opened.kind == Kind.QUEUE
        due = [row.deliver_at_ns for row, _ in channel.parcels.values() if row.deliver_at_ns]
        totals = channel.told()
        return rows.StoredChannel(
            channel.opened.channel,
            channel.opened.declared_at_ns,
            channel.opened.kind,
            totals.oldest_seq,
            totals.next_seq,
            totals.messages,
            totals.content_bytes,
            sorted({row.priority for row, _ in channel.parcels.values() if not row.deliver_at_ns})
            if is_queue
            else (),
            min(due, default=0),
            dict(channel.taken),
            dict(channel.places),
        )

    def commit(self, written: Sequence[rows.Row]) -> None:
        """Carry out rows, all or none; see ``ports.Store``."""
        channels = dict(self._channels)
        transactions = dict(self._transactions)
        copied: set[str] = set()
        for row in written:
            match row:
                case rows.OpenChannel():
                    assert row.channel not in channels
                    channels[row.channel] = _Channel(row, rows.Totals(row.channel, 1, 1, 0, 0))
                    copied.add(row.channel)
                case rows.DropChannel():
                    del channels[row.channel]
                case rows.AddTransaction():
                    transactions[row.principal, row.transaction] = rows.StoredTransaction(
                        row.principal, row.transaction, row.response, row.at_ns
                    )
                case rows.ForgetTransactions():
                    transactions = {
                        key: each for key, each in transactions.items() if each.at_ns >= row.before_ns
                    }
                case _:
                    if row.channel not in copied:
                        channels[row.channel] = channels[row.channel].copied()
                        copied.add(row.channel)
                    channels[row.channel].apply(row)
        self._check_room(channels)
        with self._lock:
            self._channels, self._transactions = channels, transactions

    def prepare(self) -> None:
        """There is nothing; see ``ports.Store``."""

    def _check_room(self, channels: Mapping[str, _Channel]) -> None:
        if not self.bytes_max:
            return
        nbytes = sum(len(data) for channel in channels.values() for _, data in channel.parcels.values())
        if nbytes > self.bytes_max:
            raise StoreFull(f"there is no room in the store: {nbytes} bytes, and {self.bytes_max} at most")

    def _channel(self, name: str) -> _Channel:
        with self._lock:
            known = self._channels.get(name)
        return known or _Channel(rows.OpenChannel(name, 0, 0), rows.Totals(name, 1, 1, 0, 0))

    def read_parcels(self, channel: str, first_seq: int, bytes_max: int) -> Sequence[rows.PackedParcel]:
        """Return parcels of a durable topic; see ``ports.Store``."""
        found: list[rows.PackedParcel] = []
        for row, data in self._channel(channel).parcels.values():
            if row.first_seq + row.count > first_seq and bytes_max > 0:
                found.append(rows.PackedParcel(row.first_seq, row.count, data))
                bytes_max -= len(data)
        return found

    def read_heads(self, channel: str, first_seq: int, count_max: int) -> Sequence[rows.ParcelHead]:
        """Return what parcels a durable topic has; see ``ports.Store``."""
        return [
            rows.ParcelHead(row.first_seq, row.count, row.content_bytes, row.last_time_ns)
            for row, _ in self._channel(channel).parcels.values()
            if row.first_seq >= first_seq
        ][:count_max]

    def find_time(self, channel: str, time_ns: int) -> int | None:
        """Return the first seq of a time; see ``ports.Store``."""
        for row, data in self._channel(channel).parcels.values():
            found = first_at(data, row.first_seq, channel, time_ns)
            if found is not None:
                return found
        return None

    def read_queue(
        self, channel: str, priority: int, first_seq: int, count_max: int, bytes_max: int
    ) -> Sequence[rows.StoredParcel]:
        """Return parcels of a queue; see ``ports.Store``."""
        known = self._channel(channel)
        wanted = [
            (row, data)
            for row, data in known.parcels.values()
            if not row.deliver_at_ns and row.priority == priority and row.first_seq >= first_seq
        ]
        return self._read(known, wanted[:count_max], bytes_max)

    def read_due(
        self, channel: str, after: tuple[int, int], until_ns: int, count_max: int, bytes_max: int
    ) -> tuple[Sequence[rows.StoredParcel], int]:
        """Return a queue's parcels that fell due; see ``ports.Store``."""
        known = self._channel(channel)
        later = sorted(
            (
                (row, data)
                for row, data in known.parcels.values()
                if row.deliver_at_ns and (row.deliver_at_ns, row.first_seq) > after
            ),
            key=lambda each: (each[0].deliver_at_ns, each[0].first_seq),
        )
        wanted = [each for each in later if each[0].deliver_at_ns <= until_ns][:count_max]
        found = self._read(known, wanted, bytes_max)
        left = later[len(found) :]
        return found, left[0][0].deliver_at_ns if left else 0

    def _read(
        self, channel: _Channel, wanted: Sequence[tuple[rows.AddParcel, bytes]], bytes_max: int
    ) -> list[rows.StoredParcel]:
        found: list[rows.StoredParcel] = []
        for row, data in wanted:
            found.append(
                rows.StoredParcel(
                    row.first_seq,
                    row.content_bytes,
                    row.priority,
                    row.deliver_at_ns,
                    unpack(data, row.first_seq, row.channel),
                    channel.settled.get(row.first_seq, b""),
                    channel.attempts_in(row.first_seq, row.count),
                )
            )
            bytes_max -= len(data)
            if bytes_max <= 0:
                break
        return found

    def read_value(self, channel: str) -> rows.StoredValue:
        """Return a state's value; see ``ports.Store``."""
        return self._channel(channel).value

    def read_ids(self, channel: str, since_ns: int) -> Mapping[str, tuple[int, int]]:
        """Return message ids; see ``ports.Store``."""
        found = [(when, each) for each, when in self._channel(channel).ids.items() if when[1] >= since_ns]
        return {each: when for when, each in sorted(found, key=lambda pair: (pair[0][1], pair[0][0]))}

    def read_transactions(self, since_ns: int) -> Sequence[rows.StoredTransaction]:
        """Return transactions; see ``ports.Store``."""
        with self._lock:
            found = [each for each in self._transactions.values() if each.at_ns >= since_ns]
        return sorted(found, key=lambda each: (each.at_ns, each.principal, each.transaction))

    def close(self) -> None:
        """Nothing is open; what is stored is there when it is opened again."""
