"""Machine and model go the same way, wherever a seed leads them; and bugs that are planted are found."""

from __future__ import annotations

import pytest

from tests.core.locks.bugs import BUGS
from tests.core.locks.walk import Walk

SEEDS = range(60)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_walk(seed: int) -> None:
    Walk(seed).run()


@pytest.mark.long
@pytest.mark.parametrize("first", range(1_000, 9_000, 500))
def test_many_walks(first: int) -> None:
    for seed in range(first, first + 500):
        Walk(seed).run(150)


def test_walks_are_eventful() -> None:
    """What is to be compared must happen: deadlocks, and queues that are put into another order."""
    walks = [Walk(seed) for seed in range(12)]
    for walk in walks:
        walk.run()
    assert sum(walk.both.deadlocks for walk in walks) > 30
    assert sum(walk.both.reordered for walk in walks) > 10


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    with BUGS[bug]():
        for seed in SEEDS:
            try:
                Walk(seed).run()
            except Exception:
                return  # found; by which of the checks depends on the seed
    pytest.fail(f"{bug} was not found by {len(SEEDS)} walks")
