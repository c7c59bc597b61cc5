"""How far a subscription of this host has come: what it had of the rings and of the store, and its place.
Sans-I/O, for the blocking and the asyncio client.

Theory of operation
    What a program has received counts as dealt with when it asks for more, and a named subscription's place
    is saved up to there, in the background (``stored.SavedPlace``). Who takes the place over ends this one:
    from then on it hands out nothing and saves nothing.

Not here: taking and waiting (``sync.messages``, ``aio.messages``), gaps (``stored.StoredLog``).
"""

from __future__ import annotations

from collections import deque

from towpath import calls, outcomes
from towpath._message import Message
from towpath.asking import Asking
from towpath.ends import ReaderState
from towpath.stored import SavedPlace, StoredLog
from towpath.v1.store_pb2 import Start


class Progress:
    """A base of both local subscriptions."""

    name: str
    _buffer: deque[Message]

    def _set_reader_state(self, state: ReaderState) -> None:
        self._state = state
        self._log = StoredLog(state.excluded, state.begins)
        self._place: SavedPlace | None = None
        self._taken_seq: int | None = None  # what comes after the last message that was taken from here

    def _begin_at(self, client: Asking, where: Start | None, place: str, found: tuple[int, int, int]) -> None:
        """Begin where that is, before anything is received.

        Args:
            where, place: what was asked for.
            found: what ``calls.find_stored`` said of it.
        """
        seq, _, next_seq = found
        source = max(self._state.stored, default=0)
        self._log.begin(self.name, seq, next_seq, asked_seq=calls.asked_seq(where, place), source=source)
        self._taken_seq = seq
        if place:
            self._place = SavedPlace(client, self.name, place)

    @property
    def lost(self) -> int:
        return self._state.reader.lost - self._log.regained + self._log.missed

    @property
    def is_stored(self) -> bool:
        return self._taken_seq is not None or bool(self._state.stored)

    @property
    def next_seq(self) -> int | None:
        for message in self._buffer:
            if message.channel == self.name:
                return message.seq
        return self._taken_seq

    def _saving(self) -> calls.Call[None] | None:
        """What saves the place; None: nothing was handed out yet.

        Raises:
            InvalidArgument: the subscription has none.
            SubscriptionInUse: it is another's now.
        """
        if self._place is None:
            raise outcomes.no_place(self.name)
        self._check_not_taken_over()
        seq = self.next_seq
        return None if seq is None else calls.save_place(self.name, self._place.name, seq)

    def _asks_for_more(self) -> None:
        """What was handed out was dealt with.

        Raises:
            SubscriptionInUse: another subscription has taken the place.
        """
        self._check_not_taken_over()
        if self._place is not None and self._taken_seq is not None:
            self._place.dealt(self._taken_seq)

    def _has_taken(self, messages: list[Message]) -> None:
        """These are handed out, or about to be."""
        if messages and (self._state.stored or self._taken_seq is not None):
            self._taken_seq = messages[-1].seq + 1

    def _let_be_plain(self) -> None:
        """Let messages be received by C code alone, where there is nothing but the ring to look at."""
        # In this order: what happens from here on makes it False again.
        self._state.reader.is_plain = True
        if not self._state.is_plain or self._taken_seq is not None or self._place is not None:
            self._state.reader.is_plain = False

    def _check_not_taken_over(self) -> None:
        if self._state.is_taken_over:
            assert self._state.ended is not None and self._place is not None
            self._place.stop()  # it is no longer ours to move
            raise self._state.ended.again()
