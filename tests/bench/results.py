"""The figures of a run: by case, one per round, with medians and ratios; and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.bench.cases import Case

Figures = dict[str, float]


@dataclass
class Results:
    """What a run has found so far.

    Attributes:
        rounds: the figures of each round, by case. A case that broke in a round has none there.
        skipped: cases that cannot be measured here, with the reason.
        broken: cases that broke, with what they said.
        singles: figures that belong to no case (footprints, whole processes), by name.
        curves: cost against something: points (x, nanoseconds), by name.
        facts: the machine, the versions, the run.
    """

    rounds: dict[Case, list[Figures | None]] = field(default_factory=dict)
    skipped: dict[Case, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    singles: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, case: Case, figures: Figures | None) -> None:
        """Note one round of a case."""
        self.rounds.setdefault(case, []).append(figures)

    def median(self, case: Case, figure: str) -> float | None:
        """The median of a figure over the rounds; None where there is none."""
        values = [each[figure] for each in self.rounds.get(case, ()) if each is not None]
        return statistics.median(values) if values else None

    def best(self, cases: Iterable[Case], figure: str) -> Case | None:
        """The case with the highest median."""
        found = [
            (value, index, case) for index, case in enumerate(cases) if (value := self.median(case, figure))
        ]
        return max(found)[2] if found else None

    def ratio(self, case: Case, other: Case, figure: str) -> float | None:
        """The median over the rounds of one case's figure by another's in the same round."""
        pairs = zip(self.rounds.get(case, ()), self.rounds.get(other, ()), strict=False)
        ratios = [ours[figure] / theirs[figure] for ours, theirs in pairs if ours and theirs]
        return statistics.median(ratios) if ratios else None

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON can carry it."""
        return {
            "facts": self.facts,
            "cases": [{**asdict(case), "rounds": figures} for case, figures in self.rounds.items()],
            "skipped": [{**asdict(case), "reason": reason} for case, reason in self.skipped.items()],
            "broken": self.broken,
            "singles": self.singles,
            "curves": self.curves,
        }
