"""Whatever a seed brings, nothing that was promised is broken; and bugs that are planted are found."""

from __future__ import annotations

import pytest

from tests.simulation.bugs import BUGS
from tests.simulation.world import World

SEEDS = range(120)
FINDING_SEEDS = SEEDS


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed(seed: int) -> None:
    live_through(seed)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(1_000, 9_000, 500))
def test_many_seeds(first: int) -> None:
    for seed in range(first, first + 500):
        live_through(seed)


def live_through(seed: int) -> None:
    world = World(seed)
    try:
        world.run()
    except BaseException:
        print(f"seed {seed}; to live through it again: python -m tests.simulation.replay {seed}")
        raise


def test_a_seed_gives_one_story() -> None:
    stories = []
    for _ in range(2):
        world = World(7)
        world.run()
        stories.append((world.loop.seconds, world.counts, world.history))
    assert stories[0] == stories[1]


def test_the_world_is_eventful() -> None:
    """What is to be found must happen: crashes, a full disk, lost deliveries, repeated transactions."""
    happened: dict[str, int] = {}
    for seed in range(20):
        world = World(seed)
        world.run()
        for what, count in world.counts.items():
            happened[what] = happened.get(what, 0) + count
    rare = (
        "kills",
        "full",
        "transformed",
        "both",
        "publish: STORE_FULL",
        "set: VERSION_CONFLICT",
        "given back",
    )
    assert {what: happened.get(what, 0) for what in rare if happened.get(what, 0) < 10} == {}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    for seed in FINDING_SEEDS:
        with BUGS[bug]() as make:
            try:
                World(seed, make).run()
            except Exception:
                return  # found; which of the checks finds it depends on the seed
    pytest.fail(f"{bug} was not found by {len(FINDING_SEEDS)} seeds")
