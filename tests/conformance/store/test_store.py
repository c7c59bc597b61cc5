"""What every store keeps to: one suite, run on each implementation; and that both are the same."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from towpath import _ring
from towpath.errors import StoreFull
from towpath_broker.core.commands import Kind
from towpath_broker.core.data import rows
from towpath_broker.core.data.rows import (
    AddParcel,
    AddTransaction,
    Attempts,
    DropChannel,
    DropParcels,
    DropPlace,
    Forget,
    ForgetTaken,
    ForgetTransactions,
    OpenChannel,
    PutPlace,
    PutValue,
    Remember,
    Run,
    Settle,
    StoredValue,
    Taken,
    Totals,
)
from towpath_broker.ports import Store
from towpath_broker.store.memory import MemoryStore
from towpath_broker.store.sqlite import SqliteStore

Open = Callable[[], Store]
PARCEL_BYTES = 40 << 10


def memory(_: Path) -> Open:
    """A store in memory is the same one each time it is opened."""
    store = MemoryStore()
    return lambda: store


def sqlite(directory: Path) -> Open:
    return lambda: SqliteStore(directory / "state" / "store.sqlite")


@pytest.fixture(params=[memory, sqlite])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the store; what was opened before is closed first, as a restart does."""
    opener: Open = request.param(tmp_path)
    opened: list[Store] = []

    def open_again() -> Store:
        for store in opened:
            store.close()
        opened.append(opener())
        return opened[-1]

    yield open_again
    for store in opened:
        store.close()


def run_of(count: int, *, time_ns: int = 1, size: int = 8) -> Run:
    return Run([bytes([n % 256]) * size for n in range(count)], time_ns=time_ns)


def parcel(channel: str, first_seq: int, count: int, *, time_ns: int = 1, size: int = 8) -> AddParcel:
    run = run_of(count, time_ns=time_ns, size=size)
    return AddParcel(channel, first_seq, count, count * size, time_ns, time_ns, run)


def queued(first_seq: int, count: int, priority: int = 0, deliver_at_ns: int = 0) -> AddParcel:
    return AddParcel("q", first_seq, count, count * 8, 1, 1, run_of(count), priority, deliver_at_ns)


def payloads(store: Store, channel: str, first_seq: int = 1, bytes_max: int = 1 << 20) -> list[bytes]:
    found: list[bytes] = []
    for each in store.read_parcels(channel, first_seq, bytes_max):
        opened = _ring.Parcel(each.data, each.first_seq)
        assert opened.count == each.count
        found += opened.unpack()[0]
    return found


TOPIC = OpenChannel("t", 7, Kind.TOPIC)
QUEUE = OpenChannel("q", 7, Kind.QUEUE)
STATE = OpenChannel("s", 7, Kind.STATE)


def test_a_new_store_is_empty(reopen: Open) -> None:
    store = reopen()
    assert store.load() == []
    assert store.read_parcels("t", 1, 100) == []
    assert store.read_heads("t", 1, 100) == []
    assert store.find_time("t", 0) is None
    assert store.read_queue("t", 0, 1, 9, 9) == []
    assert store.read_due("t", (0, 0), 9, 9, 9) == ([], 0)
    assert store.read_value("t") == StoredValue()
    assert store.read_ids("t", 0) == {}
    assert store.read_transactions(0) == []


def test_what_was_committed_is_there_after_a_restart(reopen: Open) -> None:
    store = reopen()
    store.commit([TOPIC, parcel("t", 1, 3), Totals("t", 1, 4, 3, 24), Taken("t", 1 << 63, 3)])
    store.commit([PutPlace("t", "nightly", 2, 99)])
    store = reopen()
    assert store.load() == [
        rows.StoredChannel("t", 7, Kind.TOPIC, 1, 4, 3, 24, (), 0, {1 << 63: 3}, {"nightly": (2, 99)})
    ]
    assert payloads(store, "t") == list(run_of(3).payloads)


def test_a_commit_that_was_prepared_is_as_any_other(reopen: Open) -> None:
    store = reopen()
    store.commit([TOPIC, parcel("t", 1, 3)])
    store.prepare()
    store.prepare()
    assert len(payloads(store, "t")) == 3, "who reads does not wait for it"
    store.commit([parcel("t", 4, 2)])
    assert len(payloads(store, "t")) == 5
    store.prepare()
    with pytest.raises((AssertionError, KeyError)):
        store.commit([Taken("t", 1, 1), Taken("nowhere", 1, 1)])
    store.commit([Taken("t", 2, 2)])
    store.prepare()  # and it never comes
    store = reopen()
    assert len(payloads(store, "t")) == 5 and store.load()[0].taken == {2: 2}


def test_parcels_are_read_from_the_one_that_has_a_seq(reopen: Open) -> None:
    store = reopen()
    store.commit([TOPIC, parcel("t", 1, 3), parcel("t", 4, 2), parcel("t", 6, 5)])
    assert [each.first_seq for each in store.read_parcels("t", 1, 1 << 20)] == [1, 4, 6]
    assert [each.first_seq for each in store.read_parcels("t", 5, 1 << 20)] == [4, 6]
    assert [each.first_seq for each in store.read_parcels("t", 4, 1)] == [4], "one at least"
    assert [each.first_seq for each in store.read_parcels("t", 10, 1)] == [6]
    assert store.read_parcels("t", 11, 1 << 20) == []
    heads = store.read_heads("t", 2, 10)
    assert [(each.first_seq, each.count, each.content_bytes) for each in heads] == [(4, 2, 16), (6, 5, 40)]
    assert [each.first_seq for each in store.read_heads("t", 1, 2)] == [1, 4]


def test_parcels_that_are_dropped_are_gone(reopen: Open) -> None:
    store = reopen()
    store.commit([TOPIC, parcel("t", 1, 3), parcel("t", 4, 2), parcel("t", 6, 5), Totals("t", 1, 11, 10, 80)])
    store.commit([DropParcels("t", 6), Totals("t", 6, 11, 5, 40)])
    store = reopen()
    (channel,) = store.load()
    assert (channel.oldest_seq, channel.next_seq, channel.messages, channel.content_bytes) == (6, 11, 5, 40)
    assert [each.first_seq for each in store.read_parcels("t", 1, 1 << 20)] == [6]
    store.commit([DropParcels("t", 11), Totals("t", 11, 11, 0, 0)])
    assert store.read_parcels("t", 1, 1 << 20) == []
    assert reopen().load()[0].next_seq == 11, "numbers never go back"


def test_what_is_packed_and_what_is_in_columns_is_stored_alike(reopen: Open) -> None:
    store = reopen()
    run = Run([b"a", b"b"], [b"\x0a\x01h", b""], times_ns=[5, 6], origins=[(9, 1), (0, 0)])
    packed = _ring.pack(run.payloads, run.headers, 0, run.times_ns, run.origins)
    assert (packed.message_count, packed.first_time_ns, packed.last_time_ns) == (2, 5, 6)
    store.commit(
        [
            TOPIC,
            QUEUE,
            AddParcel("t", 1, 2, 5, 5, 6, packed.data),
            AddParcel("t", 3, 2, 5, 5, 6, run),
            AddParcel("q", 1, 2, 5, 5, 6, run),
        ]
    )
    first, second = store.read_parcels("t", 1, 1 << 20)
    assert first.data == second.data == packed.data
    (stored,) = store.read_queue("q", 0, 1, 10, 1 << 20)
    assert stored.run == Run([b"a", b"b"], [b"\x0a\x01h", b""], 5, [5, 6], [(9, 1), (0, 0)])


@pytest.mark.parametrize(
    ("time_ns", "seq"), [(0, 1), (10, 1), (11, 4), (20, 4), (25, 8), (30, 8), (31, None)]
)
def test_a_time_is_found(reopen: Open, time_ns: int, seq: int | None) -> None:
    store = reopen()
    times = [10, 20, 15, 30]  # a clock was set back
    first = 1
    store.commit([TOPIC])
    for time, count in zip(times, (3, 2, 2, 4), strict=True):
        store.commit([parcel("t", first, count, time_ns=time)])
        first += count
    assert store.find_time("t", time_ns) == seq


def test_a_time_within_a_parcel_is_found(reopen: Open) -> None:
    store = reopen()
    run = Run([b"x"] * 4, times_ns=[10, 12, 11, 20])
    store.commit([TOPIC, AddParcel("t", 5, 4, 4, 10, 20, run)])
    assert [store.find_time("t", time) for time in (10, 11, 12, 13, 20)] == [5, 6, 6, 8, 8]


def test_a_queue_is_read_by_priority(reopen: Open) -> None:
    store = reopen()
    store.commit([QUEUE, queued(1, 2), queued(3, 1, 31), queued(4, 2), queued(6, 1, 5, 900)])
    (channel,) = store.load()
    assert (list(channel.priorities), channel.next_due_ns) == ([0, 31], 900)
    assert [each.first_seq for each in store.read_queue("q", 0, 1, 10, 1 << 20)] == [1, 4]
    assert [each.first_seq for each in store.read_queue("q", 0, 2, 10, 1 << 20)] == [4]
    assert [each.first_seq for each in store.read_queue("q", 0, 1, 1, 1 << 20)] == [1]
    assert [each.first_seq for each in store.read_queue("q", 0, 1, 10, 1)] == [1], "one at least"
    assert [each.priority for each in store.read_queue("q", 31, 1, 10, 1 << 20)] == [31]
    assert store.read_queue("q", 5, 1, 10, 1 << 20) == [], "it is not due"


def test_what_falls_due_is_read_by_time(reopen: Open) -> None:
    store = reopen()
    store.commit([QUEUE, queued(1, 1, 3, 50), queued(2, 1, 0, 20), queued(3, 1, 9, 20), queued(4, 1, 0, 60)])
    found, due_ns = store.read_due("q", (0, 0), 50, 10, 1 << 20)
    assert [(each.deliver_at_ns, each.first_seq) for each in found] == [(20, 2), (20, 3), (50, 1)]
    assert due_ns == 60
    found, due_ns = store.read_due("q", (20, 2), 50, 1, 1 << 20)
    assert [each.first_seq for each in found] == [3] and due_ns == 50
    found, due_ns = store.read_due("q", (0, 0), 10, 10, 1 << 20)
    assert (found, due_ns) == ([], 20)


def test_settled_messages_and_attempts_are_read_back(reopen: Open) -> None:
    store = reopen()
    store.commit([QUEUE, queued(1, 8), queued(9, 2)])
    store.commit(
        [
            Settle("q", 1, b"\x05"),
            Attempts("q", 2, 6, 1),
            Attempts("q", 4, 2, 2, 900),
            Attempts("q", 9, 1, 0, 800),
        ]
    )
    store = reopen()
    first, second = store.read_queue("q", 0, 1, 10, 1 << 20)
    assert first.settled == b"\x05"
    expected = [(2, 2, 1, 0), (4, 2, 2, 900), (6, 2, 1, 0)]
    assert list(first.attempts) == expected, "later rows go before earlier ones"
    assert second.settled == b"" and list(second.attempts) == [(9, 1, 0, 800)]
    store.commit([Settle("q", 1, None)])
    (second,) = store.read_queue("q", 0, 1, 10, 1 << 20)
    assert second.first_seq == 9 and list(second.attempts) == [(9, 1, 0, 800)]


def test_a_value_takes_the_place_of_the_one_before(reopen: Open) -> None:
    store = reopen()
    store.commit([STATE, PutValue("s", 1, True, b"a", b"h", 5), PutValue("s", 2, True, b"b", b"", 6)])
    store = reopen()
    assert store.read_value("s") == StoredValue(2, True, b"b", b"", 6)
    store.commit([PutValue("s", 3, False, b"", b"", 7)])
    assert store.read_value("s") == StoredValue(3, False, b"", b"", 7)


def test_places_and_sources_are_forgotten(reopen: Open) -> None:
    store = reopen()
    store.commit(
        [TOPIC, PutPlace("t", "a", 1, 1), PutPlace("t", "b", 2, 2), Taken("t", 4, 1), Taken("t", 5, 9)]
    )
    store.commit([PutPlace("t", "b", 8, 3), DropPlace("t", "a"), ForgetTaken("t", 4), Taken("t", 5, 10)])
    (channel,) = store.load()
    assert (channel.places, channel.taken) == ({"b": (8, 3)}, {5: 10})


def test_ids_are_remembered_until_they_are_forgotten(reopen: Open) -> None:
    store = reopen()
    store.commit([QUEUE, Remember("q", [("b", 1), ("a", 2)], 10), Remember("q", [("c", 3)], 5)])
    assert list(store.read_ids("q", 0).items()) == [("c", (3, 5)), ("b", (1, 10)), ("a", (2, 10))]
    assert list(store.read_ids("q", 6)) == ["b", "a"]
    store.commit([Forget("q", 10)])
    assert list(reopen().read_ids("q", 0)) == ["b", "a"]


def test_transactions_are_remembered_until_they_are_forgotten(reopen: Open) -> None:
    store = reopen()
    store.commit([AddTransaction("uid:1", "x", b"1", 10), AddTransaction("uid:2", "x", b"2", 20)])
    assert [each.response for each in store.read_transactions(0)] == [b"1", b"2"]
    store.commit([ForgetTransactions(20)])
    assert [each.principal for each in reopen().read_transactions(0)] == ["uid:2"]


def test_a_channel_that_is_dropped_is_gone_with_all_of_it(reopen: Open) -> None:
    store = reopen()
    store.commit(
        [TOPIC, *(parcel("t", seq, 1) for seq in range(1, 200)), Taken("t", 1, 1), PutPlace("t", "p", 1, 1)]
    )
    store.commit([Remember("t", [("a", 1)], 5), DropChannel("t"), OpenChannel("t", 8, Kind.TOPIC)])
    assert store.load() == [rows.StoredChannel("t", 8, Kind.TOPIC)]
    assert store.read_parcels("t", 1, 1 << 20) == [] and store.read_ids("t", 0) == {}
    store.commit([parcel("t", 1, 2, time_ns=0)])
    for _ in range(8):
        store.commit([])
    store = reopen()
    assert len(payloads(store, "t")) == 2 and store.find_time("t", 0) == 1


def test_a_commit_that_fails_leaves_nothing(reopen: Open) -> None:
    store = reopen()
    store.commit([TOPIC, parcel("t", 1, 1), Totals("t", 1, 2, 1, 8)])
    before = store.load()
    with pytest.raises((AssertionError, KeyError)):
        store.commit([Taken("t", 1, 1), OpenChannel("u", 1, Kind.TOPIC), Taken("nowhere", 1, 1)])
    assert store.load() == before
    store.commit([OpenChannel("u", 1, Kind.TOPIC), Taken("u", 1, 1)])
    assert reopen().load()[1].taken == {1: 1}


@pytest.mark.parametrize("kind", [MemoryStore, SqliteStore])
def test_a_full_store_refuses_and_goes_on_when_there_is_room(kind: type, tmp_path: Path) -> None:
    bound = 24 * PARCEL_BYTES
    store = (
        MemoryStore(bytes_max=bound) if kind is MemoryStore else SqliteStore(tmp_path / "s", bytes_max=bound)
    )
    store.commit([TOPIC])
    count = 0
    with pytest.raises(StoreFull, match="no room"):
        for seq in range(1, 100):
            store.commit(
                [parcel("t", seq, 1, size=PARCEL_BYTES), Taken("t", 3, seq), Totals("t", 1, seq + 1, seq, 0)]
            )
            count = seq
    assert 4 < count < 24
    (channel,) = store.load()
    assert channel.next_seq == count + 1 and channel.taken == {3: count}, (
        "nothing of what was refused is there"
    )
    store.commit([DropParcels("t", 4), Totals("t", 4, count + 1, count - 3, 0)])
    store.commit([parcel("t", count + 1, 1, size=PARCEL_BYTES)])
    assert [each.first_seq for each in store.read_heads("t", 1, 100)] == [*range(4, count + 2)]
    store.close()


def test_readers_see_whole_commits_while_it_is_written(reopen: Open) -> None:
    store = reopen()
    store.commit([TOPIC, OpenChannel("u", 1, Kind.TOPIC)])
    assert len(store.load()) == 2
    faults: list[str] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            both = store.load()
            if both[0].next_seq != both[1].next_seq:
                faults.append(f"{both[0].next_seq} and {both[1].next_seq}")
            seqs = [each.first_seq for each in store.read_parcels("t", 1, 1 << 20)]
            if seqs != [*range(1, len(seqs) + 1)]:
                faults.append(str(seqs))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for seq in range(1, 60):
        store.commit([parcel("t", seq, 1), parcel("u", seq, 1)])
    is_over.set()
    for reader in readers:
        reader.join()
    assert faults == [] and len(store.read_parcels("t", 1, 1 << 20)) == 59


# ---- both are the same -------------------------------------------------------------------------------------


class Story:
    """A run of commits that a machine might make, from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.next_seq: dict[str, int] = {}
        self.kinds: dict[str, Kind] = {}
        self.live: dict[int, AddParcel] = {}
        self.now_ns = 0

    def commit(self) -> list[rows.Row]:
        self.now_ns += self.random.randrange(-2, 10)
        return [row for _ in range(self.random.randint(1, 4)) for row in self.some_rows()]

    def some_rows(self) -> list[rows.Row]:
        name = self.random.choice("tuq")
        if name not in self.kinds:
            self.kinds[name] = Kind.QUEUE if name == "q" else Kind.TOPIC
            self.next_seq[name] = 1
            return [OpenChannel(name, self.now_ns, self.kinds[name])]
        match self.random.randrange(12):
            case 0 if self.random.random() < 0.2:
                del self.kinds[name]
                if name == "q":
                    self.live.clear()
                return [DropChannel(name)]
            case 1:
                return [Taken(name, self.random.randrange(3), self.random.randrange(100))]
            case 2:
                return [
                    Remember(
                        name, [(f"m{self.random.randrange(20)}", self.random.randrange(99))], self.now_ns
                    )
                ]
            case 3:
                return [Forget(name, self.now_ns - 20)]
            case 4:
                return [PutPlace(name, self.random.choice("ab"), self.random.randrange(99), self.now_ns)]
            case 5:
                return [ForgetTaken(name, self.random.randrange(3)), DropPlace(name, "a")]
            case 6 if name != "q":
                below_seq = self.next_seq[name] - self.random.choice((0, 1, 5, 15, 30))
                return [DropParcels(name, below_seq), self.empty_totals(name)]
            case 7 | 8 if name == "q" and self.live:
                return [self.settle()]
            case _:
                return self.parcel(name)

    def parcel(self, name: str) -> list[rows.Row]:
        count = self.random.randint(1, 9)
        first = self.next_seq[name]
        self.next_seq[name] += count
        is_due = name == "q" and self.random.random() < 0.3
        run = run_of(count, time_ns=max(self.now_ns, 0))
        added = AddParcel(
            name,
            first,
            count,
            count * 8,
            run.time_ns,
            run.time_ns,
            run,
            self.random.choice((0, 0, 4)) if name == "q" else 0,
            self.now_ns + 3 if is_due and self.now_ns > 0 else 0,
        )
        if name == "q":
            self.live[first] = added
            return [added, Totals(name, 1, first + count, count, count * 8)]
        sources = [Taken(name, self.random.randrange(3), first) for _ in range(self.random.randrange(2))]
        return [*sources, added, self.empty_totals(name)]

    def empty_totals(self, name: str) -> rows.Row:
        """What is so when all parcels are gone, and else is what parcels tell."""
        return Totals(name, self.next_seq[name], self.next_seq[name], 0, 0)

    def settle(self) -> rows.Row:
        first, added = self.random.choice(sorted(self.live.items()))
        match self.random.randrange(3):
            case 0:
                del self.live[first]
                return Settle("q", first, None, added.priority, added.deliver_at_ns)
            case 1:
                return Settle("q", first, self.random.randbytes(2), added.priority, added.deliver_at_ns)
            case _:
                begin = self.random.randrange(added.count)
                length = self.random.randint(1, added.count - begin)
                times = self.random.randint(1, 3)
                return Attempts("q", first + begin, length, times, self.random.choice((0, 99)))


def everything(store: Store) -> object:
    channels = store.load()
    return [
        (channel, contents(store, channel), list(store.read_ids(channel.channel, 0).items()))
        for channel in sorted(channels, key=lambda each: each.channel)
    ]


def contents(store: Store, channel: rows.StoredChannel) -> object:
    name = channel.channel
    if channel.kind == Kind.QUEUE:
        waiting = [each for priority in (0, 4) for each in store.read_queue(name, priority, 1, 999, 1 << 30)]
        return [plain(each) for each in (*waiting, *store.read_due(name, (0, 0), 1 << 60, 999, 1 << 30)[0])]
    times = [store.find_time(name, time) for time in range(0, 500, 7)]
    return store.read_parcels(name, 1, 1 << 30), store.read_heads(name, 5, 99), times


def plain(parcel: rows.StoredParcel) -> object:
    """Runs of attempts may be cut differently."""
    each = {seq: rest for first, count, *rest in parcel.attempts for seq in range(first, first + count)}
    return parcel.first_seq, parcel.run, parcel.settled, parcel.priority, parcel.deliver_at_ns, each


@pytest.mark.parametrize("seed", range(6))
def test_sqlite_does_what_memory_does(seed: int, tmp_path: Path) -> None:
    story = Story(seed)
    model, store = MemoryStore(), SqliteStore(tmp_path / "store.sqlite")
    for step in range(120):
        written = story.commit()
        model.commit(written)
        store.commit(written)
        if step % 40 == 39:
            store.close()
            store = SqliteStore(tmp_path / "store.sqlite")
            assert everything(store) == everything(model)
    store.close()
