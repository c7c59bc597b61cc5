"""Message ids that were published lately: the same again is not published again.

Theory of operation
    Ids are remembered for the channel's ``dedupe_ms``. An id that is older counts as unknown, whether or not
    it has been let go of; letting go happens outside of rounds (``prune``), and of the rows in one go
    (``forget_row``), now and then. A durable channel's ids are read from the store when the first id is
    looked at, not at start.
"""

from __future__ import annotations

from collections.abc import Mapping

from towpath.errors import LimitExceeded

from .round import Round
from .rows import Forget, Remember


class Ids:
    """The ids of one channel.

    Args:
        is_loaded: nothing is stored that would have to be read first.
    """

    __slots__ = ("_channel", "_forgotten_ns", "_ids", "is_loaded", "window_ns")

    def __init__(self, channel: str, window_ns: int, *, is_loaded: bool) -> None:
        self._channel = channel
        self._ids: dict[str, tuple[int, int]] = {}
        self._forgotten_ns = 0
        self.window_ns = window_ns
        self.is_loaded = is_loaded

    def __len__(self) -> int:
        return len(self._ids)

    def load(self, ids: Mapping[str, tuple[int, int]], round_: Round) -> None:
        """Take what the store has."""
        if not self.is_loaded:
            round_.undo.set(self, "_ids", dict(ids))
            round_.undo.set(self, "is_loaded", True)

    def seq_of(self, message_id: str, now_ns: int) -> int:
        """Return the seq that a message was published with; 0: it was not, as far as is remembered."""
        known = self._ids.get(message_id)
        return 0 if known is None or known[1] < now_ns - self.window_ns else known[0]

    def remember(self, ids: list[tuple[str, int]], ids_max: int, round_: Round, *, is_durable: bool) -> None:
        """Remember ids with their seqs.

        Raises:
            LimitExceeded: there are too many; some may be remembered now, which the caller rolls back.
        """
        if len(self._ids) + len(ids) > ids_max:
            raise LimitExceeded(
                f"channel {self._channel!r} remembers {len(self._ids)} message ids:"
                f" message_ids_per_channel_max is {ids_max}",
                hint="declare the channel with a smaller dedupe_ms, or raise the limit",
            )
        for message_id, seq in ids:
            if message_id in self._ids:  # it was over; the youngest stand last
                round_.undo.remove(self._ids, message_id)
            round_.undo.put(self._ids, message_id, (seq, round_.now_ns))
        if is_durable:
            round_.rows.append(Remember(self._channel, ids, round_.now_ns))

    def forget_row(self, round_: Round) -> None:
        """Have the store let go of what is over, four times in a window."""
        before_ns = round_.now_ns - self.window_ns
        if self._ids and before_ns > self._forgotten_ns + self.window_ns // 4:
            round_.undo.set(self, "_forgotten_ns", before_ns)
            round_.rows.append(Forget(self._channel, before_ns))

    def prune(self, now_ns: int) -> None:
        """Let go of what is over; between rounds."""
        before_ns = now_ns - self.window_ns
        while self._ids:
            oldest = next(iter(self._ids))
            if self._ids[oldest][1] >= before_ns:
                break
            del self._ids[oldest]
