"""Everything that a few sessions can do with a few locks, whatever the order: each state once, each step
compared.

From each state that can be reached every command is tried that could matter: to acquire what one does not
have, to upgrade, to give back, to give up waiting. After each step the machine must agree with the naive
model (``compared``): what is granted, who is refused, in which order who waits; and that nobody waits for
ever.

States that differ only in which session is which, or which lock, are taken for one. (Where age does not
matter, that is right: the victim is the requester.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

from tests.core.locks.compared import UPGRADE, Compared
from tests.core.locks.model import EXCLUSIVE, PERMITS, SHARED, Model, Part, Wish
from towpath_broker.core.locks import snapshot
from towpath_broker.core.locks.machine import LockMachine

Step = tuple[str, int, tuple[Part, ...]]
"""What is done, by which session, with which locks."""
Key = tuple[Any, ...]


@dataclass(frozen=True)
class World:
    """What is explored.

    Attributes:
        sessions, locks: how many.
        modes: in which locks are taken.
        joint: how many locks may be taken at one moment.
        permits: if above 0, all are semaphores of so many.
    """

    sessions: int
    locks: int
    modes: tuple[int, ...] = (EXCLUSIVE,)
    joint: int = 1
    permits: int = 0

    @property
    def names(self) -> list[str]:
        return [f"l{at}" for at in range(self.locks)]

    def start(self) -> Compared:
        both = Compared(dict.fromkeys(self.names, self.permits) if self.permits else {})
        for _ in range(self.sessions):
            both.open()
        return both


@dataclass
class Found:
    """What an exploration came upon."""

    states: int = 0
    steps: int = 0
    deadlocks: int = 0
    reordered: int = 0
    waits: int = 0


def explore(world: World, states_max: int = 1_000_000) -> Found:
    """Visit all states of a world.

    Raises:
        AssertionError: machine and model differ somewhere.
    """
    found = Found()
    first = world.start()
    seen = {repr(key_of(world, first))}
    line = deque([(snapshot.encode(first.rig.machine), first.model, first.sessions)])
    while line and found.states < states_max:
        state, model, sessions = line.popleft()
        found.states += 1
        for step in steps(world, model, sessions):
            both = restored(world, state, model, sessions)
            take(both, step)
            found.steps += 1
            found.deadlocks += both.deadlocks
            found.reordered += both.reordered
            key = repr(key_of(world, both))
            if key not in seen:
                seen.add(key)
                found.waits += bool(both.model.waiting())
                line.append((snapshot.encode(both.rig.machine), both.model, both.sessions))
    assert not line, f"there are more than {states_max} states"
    return found


def restored(world: World, state: bytes, model: Model, sessions: list[int]) -> Compared:
    """Return machine and model as they were; what is done with them touches no others."""
    both = Compared(dict.fromkeys(world.names, world.permits) if world.permits else {})
    machine = LockMachine()
    snapshot.restore(machine, state)
    both.rig.machine = machine
    both.rig.now_ns = machine.now_ns
    both.sessions = list(sessions)
    twins: dict[Wish, Wish] = {}
    for wish in (*model.held, *model.waiting()):
        twins[wish] = Wish(wish.owner, wish.number, list(wish.parts))
    for wish, twin in twins.items():
        twin.upgrades = twins[wish.upgrades] if wish.upgrades is not None else None
    both.model.held = [twins[wish] for wish in model.held]
    both.model.queues = {name: [twins[wish] for wish in queue] for name, queue in model.queues.items()}
    both.rig.requests = max((wish.number % UPGRADE for wish in twins), default=0)
    both.newest_token = machine.table.next_token - 1
    return both


def steps(world: World, model: Model, sessions: list[int]) -> Iterator[Step]:
    """Yield what could be done next."""
    for at, session in enumerate(sessions):
        if model.wish_of((session, 0)) is not None:
            yield "cancel", at, ()
            continue
        held = {part.lock: part.mode for wish in model.held_by((session, 0)) for part in wish.parts}
        for wish in model.held_by((session, 0)):
            yield "release", at, tuple(wish.parts)
            if len(wish.parts) == 1 and wish.parts[0].mode == SHARED:
                yield "upgrade", at, tuple(wish.parts)
        free = [name for name in world.names if name not in held]
        wanted = [[Part(name, mode, 1) for mode in world.modes] for name in free]
        if world.permits:
            wanted = [[Part(name, PERMITS, units + 1) for units in range(world.permits)] for name in free]
        for parts in wanted:
            for part in parts:
                yield "acquire", at, (part,)
        for count in range(2, world.joint + 1):
            for names in combinations(free, count):
                yield "acquire", at, tuple(Part(name, EXCLUSIVE, 1) for name in names)


def take(both: Compared, step: Step) -> None:
    what, at, parts = step
    owner = (both.sessions[at], 0)
    if what == "acquire":
        both.acquire(owner, list(parts))
    elif what == "cancel":
        wish = both.model.wish_of(owner)
        assert wish is not None
        both.cancel(wish)
    else:
        wish = next(each for each in both.model.held_by(owner) if tuple(each.parts) == parts)
        if what == "release":
            both.release(wish)
        else:
            both.upgrade(wish)


def key_of(world: World, both: Compared) -> Key:
    """Return what a state is, whichever session and lock is which.

    A lock is described by who has it and who waits for it. So a state is its locks' descriptions, in any
    order, and for joint requests which of them belong together.
    """
    places = {session: at for at, session in enumerate(both.sessions)}
    return min(_described(world, both.model, places, who) for who in permutations(range(world.sessions)))


def _described(world: World, model: Model, places: dict[int, int], who: tuple[int, ...]) -> Key:
    def described(name: str, wish: Wish) -> tuple[object, ...]:
        part = next(part for part in wish.parts if part.lock == name)
        return who[places[wish.owner[0]]], part.mode, part.weight, wish.upgrades is not None

    locks = {
        name: (
            sorted(
                described(name, wish) for wish in model.held if any(part.lock == name for part in wish.parts)
            ),
            [described(name, wish) for wish in model.queues.get(name, [])],
        )
        for name in world.names
    }
    together = sorted(
        (who[places[wish.owner[0]]], sorted(locks[part.lock] for part in wish.parts))
        for wish in model.held
        if len(wish.parts) > 1
    )
    return sorted(locks.values()), together
