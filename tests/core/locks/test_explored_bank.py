"""All that a few sessions can do with a few resources under the banker's algorithm, whatever the order: no
state that can be reached is unsafe, nobody waits who could be granted, and tokens grow.

From each state each session asks for one unit more of each resource that its claim allows, gives one back,
and withdraws what it waits for. Each state is visited once: the units held, and the queues.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import pytest

from tests.core.locks.rig import Rig
from tests.core.locks.test_avoidance_walks import always_safe, is_safe, never_safe_at_once
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks import snapshot
from towpath_broker.core.locks.commands import LockCommand, Policy, Wanted
from towpath_broker.core.locks.grants import HELD, WAITING, Owner
from towpath_broker.core.locks.machine import LockMachine
from towpath_broker.core.locks.modes import PERMITS


@dataclass(frozen=True)
class World:
    """What is explored: so many units of each resource, and what each session claims of them."""

    units: tuple[int, ...]
    claims: tuple[tuple[int, ...], ...]

    @property
    def names(self) -> list[str]:
        return [f"bank.r{at}" for at in range(len(self.units))]


@dataclass
class Found:
    """What an exploration came upon. ``unsafe``: requests that waited although there was enough."""

    states: int = 0
    steps: int = 0
    unsafe: int = 0


def explore(world: World) -> Found:
    """Visit all states.

    Raises:
        AssertionError: one is not as it must be.
    """
    rig = Rig()
    rig.space("bank", Policy.BANKER, resources=dict(zip(world.names, world.units, strict=True)))
    for claims in world.claims:
        named = dict(zip(world.names, claims, strict=True))
        rig.do(c.DeclareClaims(rig.open(), 0, named, rig.reference()))
    found = Found()
    seen = {key_of(rig.machine)}
    line = deque([snapshot.encode(rig.machine)])
    while line:
        state = line.popleft()
        found.states += 1
        for command in commands(world, restored(state)):
            machine = restored(state)
            first = machine.table.next_token
            tokens = [
                grant.token
                for effect in machine.apply(command, machine.now_ns + 1)
                if isinstance(effect, e.Granted)
                for grant in effect.grants
            ]
            assert tokens == [*range(first, first + len(tokens))]
            found.steps += 1
            key = key_of(machine)
            if key not in seen:
                seen.add(key)
                found.unsafe += check(world, machine)
                line.append(snapshot.encode(machine))
    return found


def restored(state: bytes) -> LockMachine:
    machine = LockMachine()
    snapshot.restore(machine, state)
    return machine


def owners(machine: LockMachine) -> list[Owner]:
    return [session.owners[0] for session in machine.table.sessions.values()]


def key_of(machine: LockMachine) -> str:
    """What tells states apart: who has and wants what, and who stands before whom."""
    held = [
        (session.id, sorted((number, request.state) for number, request in session.requests.items()))
        for session in machine.table.sessions.values()
    ]
    queues = [
        (lock.name, [claim.owner.session.id for claim in lock.queue or ()])
        for lock in sorted(machine.table.locks.values(), key=lambda lock: lock.name)
        if lock.queue
    ]
    return repr((held, queues))


def commands(world: World, machine: LockMachine) -> list[LockCommand]:
    """What could be done next. A request's number tells the resource and which of its units it is."""
    found: list[LockCommand] = []
    for owner in owners(machine):
        session = owner.session
        if owner.busy is not None:
            found.append(c.Cancel(session.id, owner.busy.number))
            continue
        for at, name in enumerate(world.names):
            numbers = [number for number in range(10 * at + 1, 10 * at + 10) if number in session.requests]
            if len(numbers) < owner.claims.get(name, 0):
                free = next(number for number in range(10 * at + 1, 10 * at + 10) if number not in numbers)
                found.append(c.Acquire(session.id, 0, free, (Wanted(name, PERMITS, 1),)))
            if numbers:
                found.append(c.Release(session.id, numbers[-1]))
    return found


def check(world: World, machine: LockMachine) -> int:
    """The state is safe, and who waits could not be granted; how many wait although there is enough?"""
    unsafe = 0
    has = {
        owner: {
            name: sum(claim.weight for claim in owner.grants if claim.lock.name == f"bank.{name}")
            for name in short(world)
        }
        for owner in owners(machine)
    }
    free = {
        name: units - sum(each[name] for each in has.values())
        for name, units in zip(short(world), world.units, strict=True)
    }
    assert all(units >= 0 for units in free.values())
    assert is_safe(free, has)
    for owner in has:
        states = {request.state for request in owner.session.requests.values()}
        assert states <= {HELD, WAITING}
        if owner.busy is None:
            continue
        (claim,) = owner.busy.claims
        name = claim.lock.name.removeprefix("bank.")
        if free[name] >= claim.weight:
            unsafe += 1
            left = {**free, name: free[name] - claim.weight}
            mine = {**has[owner], name: has[owner][name] + claim.weight}
            assert not is_safe(left, {**has, owner: mine}), "it waits for nothing"
    return unsafe


def short(world: World) -> list[str]:
    return [name.removeprefix("bank.") for name in world.names]


SMALL = [
    World((2,), ((2,), (2,), (1,), (2,))),
    World((2, 1), ((2, 1), (1, 1), (2, 0))),
    World((2, 2), ((2, 2), (1, 2), (2, 1))),
    World((1, 1), ((1, 1),) * 4),
    World((1, 1, 1), ((1, 1, 1),) * 3),
    World((1, 1, 1, 1), ((1, 1, 1, 1),) * 2),
]
LARGE = [
    World((2, 1, 1), ((2, 1, 1), (1, 1, 1), (1, 1, 0), (1, 0, 1))),
    World((2, 2, 2), ((2, 2, 2), (1, 2, 2), (2, 1, 1))),
    World((1, 1, 1, 1), ((1, 1, 1, 1),) * 4),
]


@pytest.mark.parametrize("world", SMALL, ids=repr)
def test_no_state_is_unsafe(world: World) -> None:
    found = explore(world)
    assert found.states > 20
    assert found.unsafe > 0


@pytest.mark.long
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize("world", LARGE, ids=repr)
def test_no_state_of_larger_worlds_is_unsafe(world: World) -> None:
    assert explore(world).unsafe > 0


def test_planted_bugs_are_found() -> None:
    for bug in (always_safe, never_safe_at_once):
        with bug(), pytest.raises(AssertionError):
            for world in SMALL:
                explore(world)
