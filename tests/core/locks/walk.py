"""A random walk of machine and model together; the same seed goes the same way.

It goes where Hypothesis seldom does: many locks held and waited for at a time, queues behind queues, and
somebody put forward in them.
"""

from __future__ import annotations

import random

from tests.core.locks.compared import Compared
from tests.core.locks.model import EXCLUSIVE, PERMITS, SHARED, Part, Wish
from towpath_broker.core.locks.commands import NO_TIMEOUT

CAPACITIES = {"s": 2, "t": 3}
NAMES = ("a", "b", "c", "s", "t")
TIMEOUTS = (NO_TIMEOUT,) * 8 + (0, 5)


class Walk:
    """One walk.

    Args:
        seed: where it goes.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.both = Compared(CAPACITIES)
        for _ in range(self.random.randint(2, 7)):
            self.both.open()

    def run(self, steps: int = 100) -> None:
        """Take steps, compare after each, and check at last that the journal alone leads to the same."""
        for _ in range(steps):
            self.step()
        self.both.check_replay()

    def step(self) -> None:
        both, model, chance = self.both, self.both.model, self.random.random()
        if chance < 0.55:
            self.acquire()
        elif chance < 0.65:
            self.convert(SHARED)
        elif chance < 0.69:
            self.convert(EXCLUSIVE)
        elif chance < 0.88 and model.held:
            both.release(self.random.choice(model.held))
        elif chance < 0.93 and model.waiting():
            both.cancel(self.random.choice(model.waiting()))
        elif chance < 0.97:
            both.wait(self.random.choice((1, 4, 30)))
        elif chance > 0.99:
            both.end(self.random.choice(both.sessions))
            both.open()

    def acquire(self) -> None:
        pick, both = self.random, self.both
        busy = {wish.owner for wish in both.model.waiting()}
        owners = [(session, number) for session in both.sessions for number in (0, 0, 0, 1)]
        owners = [owner for owner in owners if owner not in busy]
        if not owners:
            return
        count = pick.choice((1, 1, 1, 2, 3))
        parts = [
            Part(name, PERMITS, pick.randint(1, 2))
            if name in CAPACITIES
            else Part(name, pick.choice((EXCLUSIVE, SHARED)), 1)
            for name in pick.sample(NAMES, count)
        ]
        is_reentrant = count == 1 and pick.random() < 0.1
        both.acquire(pick.choice(owners), parts, timeout_ms=pick.choice(TIMEOUTS), is_reentrant=is_reentrant)

    def convert(self, mode: int) -> None:
        """Upgrade what is held shared, or downgrade what is held exclusively."""
        found = convertible(self.both, mode)
        if not found:
            return
        wish = self.random.choice(found)
        if mode == SHARED:
            self.both.upgrade(wish, timeout_ms=self.random.choice(TIMEOUTS))
        else:
            self.both.downgrade(wish)


def convertible(both: Compared, *modes: int) -> list[Wish]:
    """Return the requests that hold one lock alone, in one of these modes, and whose owners do not wait."""
    busy = {wish.owner for wish in both.model.waiting()}
    shared = {wish.shares for wish in both.model.held}
    return [
        wish
        for wish in both.model.held
        if len(wish.parts) == 1
        and wish.parts[0].mode in modes
        and wish.shares is None
        and wish not in shared
        and wish.owner not in busy
    ]
