"""What a subscription has of durable topics, and what it must fetch from the store. Sans-I/O.

Theory of operation
    A durable topic's messages have one seq for ever, in the ring and in the store. So whoever wants them
    all counts seqs: what comes out of the ring below the next one was had already, and is dropped; what
    begins above it leaves a gap, which is read from the store before anything else of the ring is handed
    out. A replay is a gap that is there from the beginning: from where the subscription starts to the log's
    end. A reader that was too slow for the ring has a gap of the same kind. Nothing has to meet.

    What retention has let go before it was read is missed, and told like any other loss: by the next
    message's ``missed``.

Invariants
    Of each stored channel messages are handed out with rising seqs, each once; a seq that is left out was
    counted as missed.
    While there is a gap nothing more is taken out of the ring: what waits here is one visit's worth, and one
    answer's.
    What comes from an excluded source is left out wherever it is found, and is not missed.

Not here: asking (``sync.messages``, ``aio.messages``), rings.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from towpath import calls
from towpath._message import Message
from towpath.errors import StoreDamaged, TowpathError

if TYPE_CHECKING:
    from towpath import _ring
    from towpath.asking import Asking
else:
    try:
        from towpath import _ring
    except ImportError:
        _ring = None

READ_BYTES: Final = 1 << 20
"""How much is asked of the store at a time."""


class SavedPlace:
    """Keeps the place of a named subscription where its program has come to, without waiting.

    One call is under way at a time; what the program has dealt with meanwhile goes with the next. Where it
    begins is saved too: a place that is new begins there the next time, wherever that would begin by itself.
    """

    def __init__(self, client: Asking, channel: str, name: str) -> None:
        self.name = name
        self._client = client
        self._channel = channel
        self._seq = self._saved_seq = 0
        self._asked_seq = 0
        self._is_stopped = False
        self._idle: list[Callable[[], object]] = []

    def dealt(self, next_seq: int) -> None:
        """Everything before this seq was dealt with."""
        self._seq = next_seq
        if not self._asked_seq:
            self._save()

    def stop(self) -> None:
        """The place is another's now: save no more."""
        self._is_stopped = True

    def when_idle(self, then: Callable[[], object]) -> None:
        """Call something as soon as no call is under way, which could overtake what is asked otherwise."""
        if self._asked_seq:
            self._idle.append(then)
        else:
            then()

    def _save(self) -> None:
        if self._is_stopped or self._seq == self._saved_seq:
            return
        self._asked_seq = self._seq
        if self._client._post(calls.save_place(self._channel, self.name, self._seq), self._told) is None:
            self._asked_seq = 0  # no connection: with what is dealt with next

    def _told(self, outcome: TowpathError | None) -> None:
        asked_seq, self._asked_seq = self._asked_seq, 0
        if outcome is None:  # else, too, with what is dealt with next
            self._saved_seq = asked_seq
            self._save()
        while self._idle and not self._asked_seq:
            self._idle.pop()()


@dataclass(slots=True)
class _Gap:
    """Messages that are to come from the store, from ``next_seq`` to ``end_seq``, without it."""

    channel: str
    source: int
    next_seq: int
    end_seq: int
    parcels: deque[_ring.Parcel] = field(default_factory=deque)


class StoredLog:
    """One subscription's progress in the stored channels that it follows.

    Args:
        excluded: sources whose messages are not wanted; may change.
        begins: of channels for which ``begin`` is not called, the seq that is wanted first; 0 and none: the
            first that comes. May change. (Without it messages that a core had shown before it died would be
            taken for old ones, when its successor's are read first.)

    Attributes:
        missed: messages that the store had no more, in total.
        regained: messages that the ring had no more, but the store: the ring counts them as lost.
    """

    def __init__(self, excluded: Collection[int] = (), begins: Mapping[str, int] | None = None) -> None:
        self._excluded = excluded
        self._begins = {} if begins is None else begins
        self._next: dict[str, int] = {}
        self._source: dict[str, int] = {}  # which came last, of each channel
        self._pieces: deque[list[Message] | _Gap] = deque()
        self._untold: dict[str, int] = {}  # missed, not told by a message yet
        self.missed = 0
        self.regained = 0

    def begin(self, channel: str, seq: int, end_seq: int, *, asked_seq: int = 0, source: int = 0) -> None:
        """Begin with a seq; what lies between it and the log's end comes from the store.

        Args:
            source: given to what comes from there.
            end_seq: what the next message to be published had when this was found out.
            asked_seq: the seq that was wished for, if one was: what is not there any more is missed.
        """
        if 0 < asked_seq < seq:
            self._miss(channel, seq - asked_seq)
        self._next[channel] = max(seq, end_seq)
        if seq < end_seq:
            self._pieces.append(_Gap(channel, source, seq, end_seq))

    def next_seq(self, channel: str) -> int | None:
        """What comes after the last message of a channel that was handed out or waits here; None: nothing was
        heard of it yet.
        """
        return self._next.get(channel)

    def join(self, joined: deque[tuple[str, int, int]]) -> None:
        """Sources are followed anew, each from a seq on: what was due before that comes from the store. It
        may have been shown in a ring that died with its core, or while the daemon took us for dead.
        """
        while joined:
            channel, source, seq = joined.popleft()
            expected = self._next.get(channel) or self._begins.get(channel, 0)
            if 0 < expected < seq:
                self._pieces.append(_Gap(channel, source, expected, seq))
                self._next[channel] = seq

    # ---- out of the ring -----------------------------------------------------------------------------------

    def sort(self, messages: list[Message], stored: Collection[int]) -> list[Message]:
        """Take a visit's messages, of which those of the sources ``stored`` are numbered for ever.

        Returns:
            What may be handed out at once. What must wait for the store is kept for :meth:`take`.
        """
        first, last = messages[0], messages[-1]
        if (
            first.source == last.source
            and first.source in stored
            and last.seq - first.seq == len(messages) - 1
            and not first.missed
            and self._expected(first) == first.seq
            and not self._untold
        ):
            self._next[first.channel] = last.seq + 1
            return messages
        run: list[Message] = []
        for message in messages:
            run = self._sort_one(message, message.source in stored, run)
        if not self._pieces:
            return self._told(run)
        if run:
            self._pieces.append(run)
        return []

    def _expected(self, message: Message) -> int:
        """The seq that is next on a message's channel."""
        known = self._next.get(message.channel)
        return known or self._begins.get(message.channel) or message.seq - message.missed

    def _sort_one(self, message: Message, is_stored: bool, run: list[Message]) -> list[Message]:
        """Put a message behind those of ``run``, unless it was had; return the run that goes on."""
        if not is_stored:
            run.append(message)
            return run
        channel, seq = message.channel, message.seq
        expected = self._expected(message)
        if self._excluded and not message.missed and self._source.get(channel) == message.source:
            expected = max(expected, seq)  # the reader has passed over what is not wanted
        self._source[channel] = message.source
        self.regained += message.missed
        if seq < expected:
            return run
        if seq > expected:
            if run:
                self._pieces.append(run)
                run = []
            self._pieces.append(_Gap(channel, message.source, expected, seq))
        self._next[channel] = seq + 1
        run.append(message if not message.missed else _with_missed(message, 0))
        return run

    # ---- what waits ----------------------------------------------------------------------------------------

    @property
    def is_waiting(self) -> bool:
        """Whether something waits here, so that the ring is left alone."""
        return bool(self._pieces)

    @property
    def wanted(self) -> tuple[str, int] | None:
        """What must be read from the store before anything can be handed out: channel and first seq."""
        piece = self._pieces[0] if self._pieces else None
        if isinstance(piece, _Gap) and not piece.parcels:
            return piece.channel, piece.next_seq
        return None

    def read(self, answer: calls.StoredRead) -> None:
        """The store has answered what was ``wanted``.

        Raises:
            StoreDamaged: what it answered is not what was stored.
        """
        gap = self._pieces[0]
        assert isinstance(gap, _Gap)
        if not answer.parcels or answer.first_seq >= gap.end_seq:
            self._miss(gap.channel, gap.end_seq - gap.next_seq)  # all of it was let go meanwhile
            self._pieces.popleft()
            return
        if answer.first_seq > gap.next_seq:
            self._miss(gap.channel, answer.first_seq - gap.next_seq)
            gap.next_seq = answer.first_seq
        seq = answer.first_seq
        try:
            for data in answer.parcels:
                parcel = _ring.Parcel(data, seq, gap.channel, gap.source)
                seq = parcel.end_seq
                gap.parcels.append(parcel)
        except _ring.RingError as error:
            gap.parcels.clear()
            raise StoreDamaged(f"messages of {gap.channel!r} from {seq} on: {error}") from None
        gap.parcels[0].skip_to(gap.next_seq)

    def take(self, count_max: int, bytes_max: int) -> list[Message]:
        """Hand out of what waits; nothing when the store must be read first, or nothing waits."""
        while self._pieces and self.wanted is None:
            piece = self._pieces[0]
            if isinstance(piece, _Gap):
                messages = self._take_stored(piece, count_max, bytes_max)
                if piece.next_seq >= piece.end_seq:
                    self._pieces.popleft()
            else:
                messages, left = piece[:count_max], piece[count_max:]
                if left:
                    self._pieces[0] = left
                else:
                    self._pieces.popleft()
            if messages:
                return self._told(messages)
        return []

    def _take_stored(self, gap: _Gap, count_max: int, bytes_max: int) -> list[Message]:
        while gap.parcels and gap.parcels[0].next_seq == gap.parcels[0].end_seq:
            gap.parcels.popleft()
        if not gap.parcels or gap.next_seq >= gap.end_seq:
            return []
        parcel = gap.parcels[0]
        messages = parcel.receive(min(count_max, gap.end_seq - gap.next_seq), bytes_max)
        gap.next_seq = parcel.next_seq
        if parcel.next_seq == parcel.end_seq:
            gap.parcels.popleft()
        if self._excluded:
            messages = [each for each in messages if each.origin_source not in self._excluded]
        return messages

    # ---- what is missed ------------------------------------------------------------------------------------

    def _miss(self, channel: str, count: int) -> None:
        self.missed += count
        self._untold[channel] = self._untold.get(channel, 0) + count

    def _told(self, messages: list[Message]) -> list[Message]:
        """Have the first message of a channel tell what was missed before it."""
        if not self._untold:
            return messages
        for index, message in enumerate(messages):
            missed = self._untold.pop(message.channel, 0)
            if missed:
                messages[index] = _with_missed(message, missed)
        return messages


def _with_missed(message: Message, missed: int) -> Message:
    return Message(
        message.payload,
        seq=message.seq,
        source=message.source,
        time_ns=message.time_ns,
        channel=message.channel,
        headers_raw=message.headers_raw,
        missed=missed,
        origin_source=message.origin_source,
        origin_seq=message.origin_seq,
    )
