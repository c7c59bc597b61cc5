"""Conditions, barriers, values, forced releases and deaths among all else, at random: nobody is stranded, and
the journal and a snapshot lead to the same state, and whoever asks again for what it waited for last is told
how that stands, or ended."""

from __future__ import annotations

import random

import pytest

from tests.core.locks.compared import assert_exclusive
from tests.core.locks.rig import Rig, shared, tallies
from tests.core.locks.test_avoidance_walks import assert_replayed, model_of
from towpath.errors import Deadlock, NotHeld
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks import snapshot
from towpath_broker.core.locks.commands import Policy, Victim, Wanted
from towpath_broker.core.locks.grants import HELD, Request
from towpath_broker.core.locks.machine import LockMachine

SEEDS = range(40)
NAMES = ("a", "b", "c")


class Mixed:
    """One walk.

    Args:
        seed: where it goes.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.rig = Rig()
        self.rig.space("", Policy.DETECT, victim=self.random.choice(list(Victim)))
        self.sessions = [self.rig.open(priority=at % 3) for at in range(5)]
        self.deadlocks = self.repeated = 0
        self.asked: dict[tuple[int, int], c.ArriveBarrier | c.WaitCondition] = {}
        self.ended: dict[tuple[int, int], e.BarrierOpened | e.Refused] = {}

    def requests(self) -> list[Request]:
        sessions = self.rig.machine.table.sessions.values()
        return [request for session in sessions for request in session.requests.values()]

    def run(self, steps: int = 120) -> None:
        for _ in range(steps):
            self.step()
            self.check()
            if self.random.random() < 0.3:
                self.ask_again()
        assert_replayed(self.rig)
        restored = LockMachine()
        snapshot.restore(restored, snapshot.encode(self.rig.machine))
        assert tallies(restored) == tallies(self.rig.machine)
        for session in self.sessions:
            self.rig.end(session)
        assert tallies(self.rig.machine)[:2] == [0, 0]
        assert self.rig.machine.table.claims_by_principal == {}
        assert self.rig.machine.statistics().barriers == 0

    def step(self) -> None:
        pick, rig, chance = self.random, self.rig, self.random.random()
        session, owner = pick.choice(self.sessions), pick.choice((0, 0, 1))
        timeout_ms = pick.choice((-1, -1, -1, 7))
        held = [request for request in self.requests() if request.state == HELD]
        if chance < 0.45:
            wants = [
                pick.choice((shared, Wanted, Wanted))(name)
                for name in pick.sample(NAMES, pick.choice((1, 1, 2)))
            ]
            rig.acquire(session, *wants, owner=owner, timeout_ms=timeout_ms, is_guarded=pick.random() < 0.3)
        elif chance < 0.5:
            how = pick.choice(({}, {"is_latch": True}, {"is_latch": True, "is_passing": True}))
            name = f"gate{len(how)}"
            rig.requests += 1
            self.ask(owner, c.ArriveBarrier(session, owner, rig.requests, name, 2, timeout_ms, **how))
        elif chance < 0.55:
            rig.at(pick.choice((1, 5)))
        elif chance < 0.57:
            rig.end(session)
            self.sessions[self.sessions.index(session)] = rig.open()
        elif chance < 0.6:
            rig.do(c.ForceRelease("uid:0", pick.choice(NAMES), reference=rig.reference()))
        elif chance < 0.65 and self.requests():
            request = pick.choice(self.requests())
            rig.do(c.Cancel(request.session.id, request.number))
        elif held:
            self.use(pick.choice(held), timeout_ms)

    def use(self, request: Request, timeout_ms: int) -> None:
        """Do something with a request that holds."""
        rig, session, number = self.rig, request.session.id, request.number
        match self.random.randint(0, 8):
            case 0 | 1:
                self.ask(request.owner.number, c.WaitCondition(session, number, "go", timeout_ms))
            case 2 | 3:
                rig.do(c.NotifyCondition(session, number, "go", self.random.randint(0, 1), rig.reference()))
            case 4:
                rig.upgrade(session, number, timeout_ms)
            case 5:
                rig.do(c.Downgrade(session, number, rig.reference()))
            case 6:
                rig.release(session, number, value=b"v" * self.random.randint(0, 9), is_recovered=True)
            case _:
                rig.release(session, number)

    def ask(self, owner: int, command: c.ArriveBarrier | c.WaitCondition) -> None:
        """Ask for a wait of which the end is to be remembered."""
        command.ask = self.rig.reference()
        before = self.rig.machine.revision
        self.rig.do(command)
        if self.rig.machine.revision != before:
            self.asked[command.session, owner] = command
            self.ended.pop((command.session, command.request), None)

    def ask_again(self) -> None:
        """Ask for an owner's last wait once more, as who has lost its connection; a restored machine, too."""
        table = self.rig.machine.table
        asked = [each for each in self.asked.values() if each.session in table.sessions]
        if not asked:
            return
        command = self.random.choice(asked)
        restored = LockMachine()
        snapshot.restore(restored, snapshot.encode(self.rig.machine))
        for machine in (self.rig.machine, restored):
            before = machine.revision
            (told,) = machine.apply(command, table.now_ns)
            assert machine.revision == before, "it began anew"
            ended = self.ended.get((command.session, command.request))
            held = table.sessions[command.session].requests.get(command.request)
            if isinstance(told, e.Refused):
                is_same = isinstance(ended, e.Refused) and type(ended.error) is type(told.error)
                assert is_same or isinstance(told.error, NotHeld), (told, ended)
            elif isinstance(told, e.BarrierOpened):
                assert told == ended
            elif isinstance(told, e.Granted):
                assert held is not None and held.state == HELD
            else:
                assert held is not None and held.state != HELD
        self.repeated += 1

    def check(self) -> None:
        rig = self.rig
        model = model_of(rig)
        assert not model.stuck(in_order=True), "somebody waits for ever"
        assert not model.advance(), "somebody waits for nothing"
        for name, lock in rig.machine.table.locks.items():
            assert_exclusive(name, list(lock.holders), lock.capacity)
        for effect in rig.effects:
            if isinstance(effect, e.BarrierOpened | e.Refused):
                self.ended[effect.session, effect.request] = effect
            if isinstance(effect, e.Refused) and isinstance(effect.error, Deadlock):
                self.deadlocks += 1


@pytest.mark.parametrize("seed", SEEDS)
def test_a_walk(seed: int) -> None:
    Mixed(seed).run()


def test_walks_come_upon_deadlocks() -> None:
    walks = [Mixed(seed) for seed in range(8)]
    for walk in walks:
        walk.run()
    assert sum(walk.deadlocks for walk in walks) > 20
    assert sum(walk.repeated for walk in walks) > 100
