"""One round: commands that are applied, committed, and then shown together."""

from __future__ import annotations

from typing import Protocol

from .effects import Effect
from .rows import Row
from .undo import Undo


class Finishing(Protocol):
    """A channel with something left to do when all commands of a round are applied."""

    name: str

    def finish(self, round_: Round) -> None:
        """Deliver, tell watchers, write the rows that sum the round up."""


class Round:
    """What a round leads to.

    Attributes:
        rows: to commit, in order.
        effects: to emit after that, in order.
        touched: channels to be finished, in the order in which they were touched.
    """

    __slots__ = ("effects", "now_ns", "rows", "touched", "undo")

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns
        self.rows: list[Row] = []
        self.effects: list[Effect] = []
        self.touched: dict[str, Finishing] = {}
        self.undo = Undo()

    def mark(self) -> tuple[int, int, int]:
        """Return a point to go back to."""
        return self.undo.mark(), len(self.rows), len(self.effects)

    def roll_back(self, mark: tuple[int, int, int]) -> None:
        """Take back everything since a point; what was touched stays so, which does no harm."""
        steps, rows, effects = mark
        self.undo.roll_back(steps)
        del self.rows[rows:]
        del self.effects[effects:]

    def touch(self, channel: Finishing) -> None:
        """See to it that the channel is finished."""
        self.touched[channel.name] = channel
