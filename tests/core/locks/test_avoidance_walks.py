"""Where deadlocks are avoided there are none, whatever is asked: random walks through each kind of lock
space.

The bank is compared with the plainest form of its algorithm after each command; the others are looked at by
the naive model, and the detection, which is there all the same, must never have had anything to do.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest.mock import patch

import pytest

from tests.core.locks.model import Model, Part, Wish
from tests.core.locks.rig import Rig, permits, shared
from towpath_broker.core.locks import codec, snapshot
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks.avoidance import ages, banker, ordering
from towpath_broker.core.locks.commands import Policy, Wanted
from towpath_broker.core.locks.grants import HELD, WAITING, Owner, Request, is_free
from towpath_broker.core.locks.machine import LockMachine

SEEDS = range(25)


def assert_replayed(rig: Rig) -> None:
    """The journal alone leads to the same state."""
    machine = LockMachine()
    for record in rig.journal:
        machine.apply(*codec.decode_command(record))
    machine.table.now_ns = rig.machine.table.now_ns
    assert snapshot.encode(machine) == snapshot.encode(rig.machine)


# ---- the bank ----------------------------------------------------------------------------------------------

RESOURCES = {"x": 4, "y": 3, "z": 2}


class Bank:
    """A bank, its customers, and what they do.

    Args:
        seed: which way they go.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.rig = Rig()
        resources = {f"bank.{name}": units for name, units in RESOURCES.items()}
        self.rig.space("bank", Policy.BANKER, resources=resources)
        self.sessions: list[int] = []
        self.unsafe = 0
        for _ in range(4):
            self.join()

    def join(self) -> None:
        session = self.rig.open()
        self.sessions.append(session)
        self.rig.claim(
            session, **{name: self.random.randint(units - 1, units) for name, units in RESOURCES.items()}
        )

    def owners(self) -> list[Owner]:
        sessions = self.rig.machine.table.sessions
        return [sessions[session].owners[0] for session in self.sessions]

    def requests(self, state: int) -> list[Request]:
        sessions = self.rig.machine.table.sessions
        return [
            request
            for session in self.sessions
            for request in sessions[session].requests.values()
            if request.state == state
        ]

    def run(self, steps: int = 80) -> None:
        for _ in range(steps):
            self.step()
            self.check()
        assert_replayed(self.rig)

    def step(self) -> None:
        chance, pick, rig = self.random.random(), self.random, self.rig
        held, waiting = self.requests(HELD), self.requests(WAITING)
        if chance < 0.6:
            owner = pick.choice(self.owners())
            left = {name: owner.claims.get(f"bank.{name}", 0) - self.has(owner, name) for name in RESOURCES}
            wants = {name: pick.randint(0, min(units, 2)) for name, units in left.items()}
            wants = {name: units for name, units in wants.items() if units}
            if wants and owner.busy is None:
                locks = [permits(f"bank.{name}", units) for name, units in wants.items()]
                rig.acquire(owner.session.id, *locks)
        elif chance < 0.85 and held:
            request = pick.choice(held)
            rig.release(request.session.id, request.number)
        elif chance < 0.9 and waiting:
            request = pick.choice(waiting)
            rig.do(c.Cancel(request.session.id, request.number))
        elif chance < 0.93:
            owner = pick.choice(self.owners())
            if owner.busy is None:  # less, or, of one that has nothing, anything
                claims = {name: self.has(owner, name) for name in RESOURCES}
                if not any(claims.values()):
                    claims = {name: pick.randint(units - 1, units) for name, units in RESOURCES.items()}
                rig.claim(owner.session.id, **claims)
        elif chance < 0.96:
            session = pick.choice(self.sessions)
            self.sessions.remove(session)
            rig.end(session)
            self.join()

    def has(self, owner: Owner, name: str) -> int:
        return sum(claim.weight for claim in owner.grants if claim.lock.name == f"bank.{name}")

    def check(self) -> None:
        """The state is safe, and who waits could not be granted."""
        owners = self.owners()
        has = {owner: {name: self.has(owner, name) for name in RESOURCES} for owner in owners}
        free = {name: units - sum(each[name] for each in has.values()) for name, units in RESOURCES.items()}
        assert all(units >= 0 for units in free.values())
        assert is_safe(free, has)
        for request in self.requests(WAITING):
            wants = dict.fromkeys(RESOURCES, 0)
            for claim in request.claims:
                wants[claim.lock.name.removeprefix("bank.")] += claim.weight
            if all(units <= free[name] for name, units in wants.items()):
                self.unsafe += 1
                left = {name: units - wants[name] for name, units in free.items()}
                mine = {name: units + wants[name] for name, units in has[request.owner].items()}
                assert not is_safe(left, {**has, request.owner: mine}), "it waits for nothing"


def is_safe(free: dict[str, int], has: dict[Owner, dict[str, int]]) -> bool:
    """As a textbook has it: look for one that can finish, until there is none."""
    free, left = dict(free), dict(has)
    while left:
        for owner, units in left.items():
            if all(owner.claims.get(f"bank.{name}", 0) - units[name] <= free[name] for name in free):
                free = {name: free[name] + units[name] for name in free}
                del left[owner]
                break
        else:
            return False
    return True


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bank_is_always_safe_and_nobody_waits_for_nothing(seed: int) -> None:
    Bank(seed).run()


def test_the_bank_has_something_to_do() -> None:
    banks = [Bank(seed) for seed in range(5)]
    for bank in banks:
        bank.run()
    assert sum(bank.unsafe for bank in banks) > 50


# ---- the others --------------------------------------------------------------------------------------------

NAMES = ("a", "b", "c", "d")
POLICIES = (Policy.ORDERED, Policy.WAIT_DIE, Policy.WOUND_WAIT, Policy.NO_WAIT)


def model_of(rig: Rig) -> Model:
    """Return the naive model of what a machine holds."""
    model = Model({})
    wishes: dict[Request, Wish] = {}
    for session in rig.machine.table.sessions.values():
        for request in session.requests.values():
            for each in (request, request.conversion):
                if each is not None:
                    parts = [Part(claim.lock.name, claim.mode, claim.weight) for claim in each.claims]
                    wishes[each] = Wish((session.id, each.owner.number), each.number, parts)
            if request.conversion is not None:
                wishes[request.conversion].upgrades = wishes[request]
    model.held = [wish for request, wish in wishes.items() if request.state == HELD]
    for name, lock in rig.machine.table.locks.items():
        model.queues[name] = [wishes[claim.request] for claim in lock.queue or ()]
    return model


def go(policy: Policy, seed: int, steps: int = 120) -> int:
    """Walk through a lock space; return how many waited."""
    pick, rig, waited = random.Random(seed), Rig(), 0
    rig.space("", policy)
    sessions = [rig.open() for _ in range(5)]
    for _ in range(steps):
        chance = pick.random()
        session = pick.choice(sessions)
        table = rig.machine.table
        held = [each for each in table.sessions[session].requests.values() if each.state == HELD]
        is_busy = table.sessions[session].owners[0].busy is not None
        if chance < 0.6 and not is_busy:
            wants: list[Wanted] = [
                pick.choice((shared, Wanted))(name) for name in pick.sample(NAMES, pick.choice((1, 1, 2)))
            ]
            request = rig.acquire(session, *wants)
            waited += rig.waits(session, request)
        elif chance < 0.7 and held and not is_busy:
            rig.upgrade(session, pick.choice(held).number)
        elif chance < 0.92 and held:
            rig.release(session, pick.choice(held).number)
        elif chance > 0.98:
            sessions.remove(session)
            rig.end(session)
            sessions.append(rig.open())
        for effect in rig.effects:
            if isinstance(effect, e.Wounded):
                assert effect.by_session < effect.session, "an older one, always"
            if isinstance(effect, e.Refused):  # who holds a lock twice and upgrades it waits for itself
                assert len(effect.cycle) <= 1, "the detection had something to do"
        model = model_of(rig)
        assert not model.stuck(in_order=True)
        assert not model.advance(), "somebody waits for nothing"
    assert_replayed(rig)
    return waited


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("policy", POLICIES)
def test_there_are_no_deadlocks(policy: Policy, seed: int) -> None:
    waited = go(policy, seed)
    assert (waited == 0) == (policy is Policy.NO_WAIT)


# ---- planted bugs ------------------------------------------------------------------------------------------


@contextmanager
def always_safe() -> Iterator[None]:
    with patch.object(banker.State, "is_safe_with", lambda self, request: all(map(is_free, request.claims))):
        yield


@contextmanager
def never_safe_at_once() -> Iterator[None]:
    """A request that is safe, but not with what is free now, waits."""
    with patch.object(banker, "_finishing", lambda *arguments: iter(())):
        yield


@pytest.mark.parametrize("bug", [always_safe, never_safe_at_once])
def test_a_bug_in_the_bank_is_found(bug: Callable[[], AbstractContextManager[None]]) -> None:
    with bug():
        for seed in SEEDS:
            try:
                Bank(seed).run()
            except AssertionError:
                return
    pytest.fail("not found")


def test_bugs_in_the_others_are_found() -> None:
    planted: list[tuple[Policy, AbstractContextManager[object]]] = [
        (Policy.WAIT_DIE, patch.object(ages, "older_blocker", lambda owner, in_the_way: None)),
        (Policy.WOUND_WAIT, patch.object(ages, "younger_blockers", lambda owner, in_the_way: [])),
        (Policy.ORDERED, patch.object(ordering, "check", lambda owner, lock: None)),
    ]
    for policy, bug in planted:
        with bug, pytest.raises(AssertionError):
            for seed in SEEDS:
                go(policy, seed)
