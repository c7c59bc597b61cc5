"""A durable topic: messages in one order, kept as long as the channel says.

Theory of operation
    A message's seq is the log's, for ever. What is appended becomes one parcel, and is shown (``Appended``)
    after its commit. Reading what is stored is the shell's, from the store: the log only says what there is.

    *Retention* lets go of whole parcels, the oldest first, after each append and as time passes. Only of the
    oldest some is known here what they are (``heads``); the next are asked for (``LoadHeads``) when these run
    out. So memory and the time to start do not depend on how much is stored.

    *Taking in.* Of each source's ring it is known up to where it was taken in, in the same commit as what was
    taken. What comes again, after a crash say, is not taken again.

Invariants
    Seqs oldest_seq .. next_seq - 1 are stored, without gaps. ``heads`` are the oldest parcels, without gaps;
    all of them, unless ``has_more``.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from towpath.errors import InvalidArgument, LimitExceeded, NotSupported, SubscriptionNotFound
from towpath_broker.core.commands import ChannelOptions
from towpath_broker.core.limits import PLACE_BYTES_MAX

from .commands import FindStored, HeadsLoaded, Publish, ReadStored, SavePlace, StartAt, TakeIn
from .dedupe import Ids
from .effects import Appended, FindByTime, Found, LoadHeads, Published, ReadParcels
from .publishing import Columns, columns_of
from .round import Round
from .rows import (
    AddParcel,
    Content,
    DropParcels,
    DropPlace,
    ForgetTaken,
    ParcelHead,
    PutPlace,
    Run,
    StoredChannel,
    Taken,
    Totals,
)
from .shared import Shared, reply

HEADS_MAX: Final = 1024
"""Parcels of a durable topic that are known by what they are."""
READ_BYTES_MAX: Final = 4 << 20
"""Bytes of parcels that one call reads at most."""
READ_BYTES_DEFAULT: Final = 1 << 20
NS_PER_MS: Final = 1_000_000


class Log:
    """One durable topic.

    Args:
        stored: what the store has of it; None: it is new.
    """

    def __init__(
        self,
        name: str,
        options: ChannelOptions,
        owner: str,
        declared_at_ns: int,
        shared: Shared,
        stored: StoredChannel | None = None,
    ) -> None:
        self.name = name
        self.options = options
        self.owner = owner
        self.declared_at_ns = declared_at_ns
        self.shared = shared
        self.oldest_seq = stored.oldest_seq if stored else 1
        self.next_seq = stored.next_seq if stored else 1
        self.content_bytes = stored.content_bytes if stored else 0
        self.taken: dict[int, int] = dict(stored.taken) if stored else {}
        self.places: dict[str, tuple[int, int]] = dict(stored.places) if stored else {}
        self.ids = Ids(name, options.dedupe_ms * NS_PER_MS, is_loaded=stored is None)
        self.heads: deque[ParcelHead] = deque()
        self.has_more = self.messages > 0
        self._is_loading = False
        self._told = (self.oldest_seq, self.next_seq, self.messages, self.content_bytes)

    @property
    def messages(self) -> int:
        """How many messages are stored."""
        return self.next_seq - self.oldest_seq

    # ---- appending -----------------------------------------------------------------------------------------

    def publish(self, command: Publish, round_: Round) -> Published:
        """Append what came over the socket.

        Raises:
            InvalidArgument, LimitExceeded, QuotaExceeded: it cannot be published.
        """
        if any(command.deliver_at_ns):
            raise NotSupported(
                f"{self.name!r} is a topic, and delivers at once", hint="deliver_at is for queues"
            )
        columns = columns_of(command, round_.now_ns)
        fresh, duplicates, first_known = columns.without_known(self.ids, round_.now_ns)
        if not fresh.count:
            return Published(self.name, first_known, 0, duplicates)
        first_seq = self._append_columns(fresh, round_.now_ns, round_.now_ns, 0, None, round_)
        return Published(self.name, first_seq, fresh.count, duplicates)

    def post(self, run: Run, round_: Round) -> None:
        """Append dead letters.

        Raises:
            LimitExceeded, QuotaExceeded: there is no room for them.
        """
        columns = Columns(run.payloads, run.headers, time_ns=round_.now_ns)
        self._append_columns(columns, round_.now_ns, round_.now_ns, 0, None, round_)

    def take_in(self, command: TakeIn, round_: Round) -> None:
        """Append what came out of rings, unless it was before.

        Raises:
            InvalidArgument: part of it was taken in before, part of it not.
            LimitExceeded, QuotaExceeded: there is no room for it.
        """
        is_repeated = all(last <= self.taken.get(source, 0) for source, (_, last) in command.taken.items())
        if command.taken and is_repeated:
            round_.effects.append(
                Appended(self.name, self.next_seq, 0, command.content, command.ticket, command.taken)
            )
            return
        for source, (first, last) in command.taken.items():
            known = self.taken.get(source, 0)
            if first <= known:
                raise InvalidArgument(
                    f"of source {source} {first} to {last} come again: it was taken in to {known}"
                )
        for source, (_, last) in command.taken.items():
            round_.undo.put(self.taken, source, last)
            round_.rows.append(Taken(self.name, source, last))
        round_.touch(self)
        first_ns, last_ns = command.first_time_ns, command.last_time_ns
        if isinstance(command.content, bytes):
            first_seq = self._append(
                command.content, command.count, command.content_bytes, first_ns, last_ns, round_
            )
            shown = Appended(
                self.name, first_seq, command.count, command.content, command.ticket, command.taken
            )
            round_.effects.append(shown)
            return
        columns, _, _ = _columns_of_run(command).without_known(self.ids, round_.now_ns)
        if columns.count:
            self._append_columns(columns, first_ns, last_ns, command.ticket, command, round_)
        else:
            empty = Appended(self.name, self.next_seq, 0, command.content, command.ticket, command.taken)
            round_.effects.append(empty)

    def _append_columns(
        self,
        columns: Columns,
        first_ns: int,
        last_ns: int,
        ticket: int,
        taken: TakeIn | None,
        round_: Round,
    ) -> int:
        run = columns.run()
        first_seq = self._append(run, columns.count, columns.content_bytes, first_ns, last_ns, round_)
        if self.ids.window_ns and any(columns.message_ids):
            ids_max = self.shared.limits.message_ids_per_channel_max
            self.ids.remember(columns.ids_from(first_seq), ids_max, round_, is_durable=True)
        round_.effects.append(
            Appended(self.name, first_seq, columns.count, run, ticket, taken.taken if taken else None)
        )
        return first_seq

    def _append(
        self, content: Content, count: int, size: int, first_ns: int, last_ns: int, round_: Round
    ) -> int:
        self.shared.usage.check(self.owner, size)
        undo, first_seq = round_.undo, self.next_seq
        undo.set(self, "next_seq", first_seq + count)
        undo.set(self, "content_bytes", self.content_bytes + size)
        self.shared.usage.add(self.owner, size, undo)
        round_.rows.append(AddParcel(self.name, first_seq, count, size, first_ns, last_ns, content))
        if self.has_more or len(self.heads) >= HEADS_MAX:
            undo.set(self, "has_more", True)
        else:
            undo.add(self.heads.pop)
            self.heads.append(ParcelHead(first_seq, count, size, last_ns))
        round_.touch(self)
        return first_seq

    def forget_source(self, source: int, round_: Round) -> None:
        """Nothing more comes of a source."""
        if source in self.taken:
            round_.undo.remove(self.taken, source)
            round_.rows.append(ForgetTaken(self.name, source))

    # ---- retention -----------------------------------------------------------------------------------------

    def finish(self, round_: Round) -> None:
        """Let go of what is too much or too old; write the rows that sum the round up."""
        undo, below_seq = round_.undo, self.oldest_seq
        while self.heads and self._is_too_much(self.heads[0], round_.now_ns):
            head = self.heads.popleft()
            undo.add(self.heads.appendleft, head)
            below_seq = head.first_seq + head.count
            undo.set(self, "oldest_seq", below_seq)
            undo.set(self, "content_bytes", self.content_bytes - head.content_bytes)
            self.shared.usage.add(self.owner, -head.content_bytes, undo)
        told = (self.oldest_seq, self.next_seq, self.messages, self.content_bytes)
        if below_seq != self._told[0]:
            round_.rows.append(DropParcels(self.name, below_seq))
        if not self.heads and self.has_more and not self._is_loading and self._has_bound():
            undo.set(self, "_is_loading", True)
            round_.effects.append(LoadHeads(self.name, self.declared_at_ns, self.oldest_seq, HEADS_MAX))
        self.ids.forget_row(round_)
        if told != self._told:
            undo.set(self, "_told", told)
            round_.rows.append(Totals(self.name, *told))

    def _has_bound(self) -> bool:
        options = self.options
        return bool(options.retain_bytes or options.retain_ms or options.retain_messages)

    def _is_too_much(self, oldest: ParcelHead, now_ns: int) -> bool:
        """Whether the oldest parcel goes. The newest stays, unless it is too old."""
        options = self.options
        if options.retain_ms and oldest.last_time_ns <= now_ns - options.retain_ms * NS_PER_MS:
            return True
        if oldest.first_seq + oldest.count == self.next_seq:
            return False
        if options.retain_bytes and self.content_bytes > options.retain_bytes:
            return True
        return bool(options.retain_messages) and self.messages - oldest.count >= options.retain_messages

    def heads_loaded(self, command: HeadsLoaded, round_: Round) -> None:
        """What the oldest parcels are was read from the store."""
        undo = round_.undo
        undo.set(self, "_is_loading", False)
        heads = [head for head in command.heads if head.first_seq >= self.oldest_seq]
        undo.set(self, "heads", deque(heads))
        end_seq = heads[-1].first_seq + heads[-1].count if heads else self.oldest_seq
        undo.set(self, "has_more", end_seq < self.next_seq)
        round_.touch(self)

    # ---- reading -------------------------------------------------------------------------------------------

    def find(self, command: FindStored, round_: Round) -> None:
        """Say where a reader begins.

        Raises:
            InvalidArgument: the subscription's name is not one.
        """
        if command.name:
            _check_place(command.name)
        place = self.places.get(command.name) if command.name else None
        start, value = command.start, command.value
        if place is not None:
            start, value = StartAt.SEQ, place[0]
        if start is StartAt.TIME:
            assert command.caller.session is not None
            round_.effects.append(
                FindByTime(
                    command.caller.session,
                    command.caller.call,
                    self.name,
                    value,
                    self.oldest_seq,
                    self.next_seq,
                )
            )
            return
        match start:
            case StartAt.ALL:
                seq = self.oldest_seq
            case StartAt.SEQ:
                seq = min(max(value, self.oldest_seq), self.next_seq)
            case _:
                seq = self.next_seq
        reply(round_, command.caller, Found(seq, self.oldest_seq, self.next_seq))

    def read(self, command: ReadStored, round_: Round) -> None:
        """Have the shell read."""
        assert command.caller.session is not None
        bytes_max = min(command.bytes_max or READ_BYTES_DEFAULT, READ_BYTES_MAX)
        first_seq = max(command.first_seq, self.oldest_seq)
        round_.effects.append(
            ReadParcels(
                command.caller.session, command.caller.call, self.name, first_seq, self.next_seq, bytes_max
            )
        )

    def save_place(self, command: SavePlace, round_: Round) -> None:
        """Remember how far a named subscription has come.

        Raises:
            InvalidArgument: the name or the seq cannot be.
            LimitExceeded: there are too many places.
        """
        _check_place(command.name)
        if not 1 <= command.seq <= self.next_seq:
            raise InvalidArgument(
                f"a place in {self.name!r} cannot be {command.seq}", hint=f"it is 1 to {self.next_seq} now"
            )
        limit = self.shared.limits.places_per_channel_max
        if command.name not in self.places and len(self.places) >= limit:
            raise LimitExceeded(
                f"topic {self.name!r} has {len(self.places)} places: places_per_channel_max is {limit}"
            )
        round_.undo.put(self.places, command.name, (command.seq, round_.now_ns))
        round_.rows.append(PutPlace(self.name, command.name, command.seq, round_.now_ns))

    def delete_place(self, name: str, round_: Round) -> None:
        """Forget a named subscription.

        Raises:
            SubscriptionNotFound: there is none of that name.
        """
        if name not in self.places:
            raise SubscriptionNotFound(
                f"topic {self.name!r} has no place of a subscription {name[:128]!r}",
                hint="towpath places TOPIC lists them; in Python client.places(TOPIC)",
            )
        round_.undo.remove(self.places, name)
        round_.rows.append(DropPlace(self.name, name))

    # ---- the outside ---------------------------------------------------------------------------------------

    def close(self, round_: Round) -> None:
        """The channel is gone, and everything in it."""
        self.shared.usage.add(self.owner, -self.content_bytes, round_.undo)

    def next_deadline_ns(self, now_ns: int) -> int | None:
        """Return when something falls out of the time it is kept for; None: nothing does."""
        if not self.options.retain_ms or not self.heads:
            return None
        return max(now_ns + 1, self.heads[0].last_time_ns + self.options.retain_ms * NS_PER_MS)

    def keep(self, now_ns: int) -> None:
        """The round is done for good: let go of what is over."""
        self.ids.prune(now_ns)


def _columns_of_run(command: TakeIn) -> Columns:
    run = command.content
    assert isinstance(run, Run)
    return Columns(
        run.payloads,
        run.headers,
        message_ids=command.message_ids,
        origins=run.origins,
        times_ns=run.times_ns,
        time_ns=run.time_ns,
    )


def _check_place(name: str) -> None:
    size = len(name.encode(errors="replace"))
    if not 1 <= size <= PLACE_BYTES_MAX:
        raise InvalidArgument(
            f"a subscription's name of {size} bytes; 1 to {PLACE_BYTES_MAX} are possible",
            hint="its place is remembered under it: a short name that stays the same",
        )
