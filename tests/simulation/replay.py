"""``python -m tests.simulation.replay SEED [BUG]``: live through one seed, with a bug planted or none."""

from __future__ import annotations

import sys
from contextlib import nullcontext

from tests.simulation.bugs import BUGS
from tests.simulation.world import World
from towpath_broker.data_engine import DataEngine


def main(seed: int, bug: str = "") -> None:
    """Raises what the seed finds."""
    with BUGS[bug]() if bug else nullcontext(DataEngine) as make:
        world = World(seed, make)
        try:
            world.run()
        finally:
            print(f"seed {seed}: {world.loop.seconds:.1f} s, {world.counts}")


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:3])
