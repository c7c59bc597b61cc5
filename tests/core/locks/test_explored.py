"""All that a few sessions can do with a few locks: see ``explore``."""

from __future__ import annotations

import pytest

from tests.core.locks.bugs import BUGS
from tests.core.locks.explore import World, explore
from tests.core.locks.model import EXCLUSIVE, SHARED

BOTH = (EXCLUSIVE, SHARED)
SMALL = [
    World(3, 3),
    World(4, 3),
    World(4, 4),
    World(3, 1, BOTH),
    World(3, 2, BOTH),
    World(2, 3, BOTH),
    World(2, 3, joint=3),
    World(3, 3, joint=2),
    World(2, 2, permits=2),
    World(3, 2, permits=2),
]
LARGE = [
    World(4, 4, joint=2),
    World(3, 3, BOTH),
    World(4, 2, BOTH),
    World(4, 2, permits=2),
    World(3, 3, permits=2),
]


@pytest.mark.parametrize("world", SMALL, ids=repr)
def test_every_state(world: World) -> None:
    found = explore(world)
    assert found.waits > 0
    assert world.locks == 1 or found.deadlocks > 0


@pytest.mark.long
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("world", LARGE, ids=repr)
def test_every_state_of_larger_worlds(world: World) -> None:
    found = explore(world)
    assert found.deadlocks > 0


def test_queues_are_reordered_somewhere() -> None:
    assert explore(World(2, 2, BOTH)).reordered + explore(World(3, 2, joint=2)).reordered > 0


@pytest.mark.parametrize(
    "bug", ["no_detection", "every_circle_is_a_deadlock", "readers_pass_writers", "upgrade_stands_at_the_end"]
)
def test_a_planted_bug_is_found(bug: str) -> None:
    with BUGS[bug](), pytest.raises(Exception):  # noqa: B017 (which of the checks finds it is open)
        for world in (World(2, 2, BOTH), World(3, 1, BOTH), World(3, 2, joint=2)):
            explore(world)
