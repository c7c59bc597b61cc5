"""The lock machine and the naive model, side by side: each command goes to both, and must come to the
same."""

from __future__ import annotations

from tests.core.locks.model import EXCLUSIVE, PERMITS, SHARED, Model, Outcome, Owner, Part, Wish
from tests.core.locks.rig import Rig, tallies
from towpath.errors import Cancelled, Deadlock, LockHeld, Timeout
from towpath_broker.core.locks import codec, snapshot
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks import effects as e
from towpath_broker.core.locks.commands import NO_TIMEOUT, EndReason, Wanted
from towpath_broker.core.locks.effects import LockEffect
from towpath_broker.core.locks.grants import Claim
from towpath_broker.core.locks.machine import LockMachine

UPGRADE = 1_000_000
"""Added to a request's number: its upgrade, in the model."""


class Compared:
    """Both.

    Args:
        capacities: of semaphores; all other names are locks.
    """

    def __init__(self, capacities: dict[str, int]) -> None:
        self.capacities = capacities
        self.rig = Rig()
        self.model = Model(capacities)
        self.sessions: list[int] = []
        self.deadlines: dict[int, int] = {}
        """By waiting request of the model: when its time is over."""
        self.newest_token = 0
        self.reordered = 0
        self.deadlocks = 0

    def open(self) -> int:
        self.sessions.append(self.rig.open())
        return self.sessions[-1]

    # ---- commands ------------------------------------------------------------------------------------------

    def acquire(
        self, owner: Owner, wants: list[Part], *, timeout_ms: int = NO_TIMEOUT, is_reentrant: bool = False
    ) -> int:
        rig = self.rig
        locks = [
            Wanted(part.lock, part.mode, part.weight, self.capacities.get(part.lock, 0)) for part in wants
        ]
        number = rig.acquire(
            owner[0], *locks, owner=owner[1], timeout_ms=timeout_ms, is_reentrant=is_reentrant
        )
        wish = Wish(owner, number, list(wants))
        outcome = self.model.acquire(wish, may_wait=timeout_ms != 0, is_reentrant=is_reentrant)
        self._check(outcome, owner[0], number, number, timeout_ms)
        return number

    def upgrade(self, held: Wish, *, timeout_ms: int = NO_TIMEOUT) -> None:
        self.rig.upgrade(held.owner[0], held.number, timeout_ms)
        outcome = self.model.upgrade(held, held.number + UPGRADE, may_wait=timeout_ms != 0)
        self._check(outcome, held.owner[0], held.number, held.number + UPGRADE, timeout_ms)

    def release(self, held: Wish) -> None:
        self.rig.release(held.owner[0], held.number)
        self._check_granted(self.model.release(held))

    def downgrade(self, held: Wish) -> None:
        self.rig.do(c.Downgrade(held.owner[0], held.number, 1))
        held.parts = [Part(held.parts[0].lock, SHARED, 1)]
        self._check_granted(self.model.advance())

    def cancel(self, wish: Wish) -> None:
        number = wish.number if wish.upgrades is None else wish.upgrades.number
        self.rig.do(c.Cancel(wish.owner[0], number))
        if wish in self.model.held:
            self._check_granted(self.model.release(wish))
            return
        refused = self.rig.refused()
        assert isinstance(refused.error, Cancelled)
        assert (refused.session, refused.request) == (wish.owner[0], number)
        self.model.leave(wish)
        self._check_granted(self.model.advance())

    def end(self, session: int) -> None:
        self.sessions.remove(session)
        self.rig.end(session, EndReason.SESSION_DIED)
        self._check_granted(self.model.end(session), but=session)

    def wait(self, after_ms: int) -> None:
        """Let time pass."""
        self.rig.at(after_ms)
        granted: set[int] = set()
        over = sorted((at, number) for number, at in self.deadlines.items() if at <= self.rig.now_ns)
        expected: set[int] = set()
        for _, number in over:
            wish = next((each for each in self.model.waiting() if each.number == number), None)
            if wish is not None:
                expected.add(number % UPGRADE)
                self.model.leave(wish)
                granted |= self.model.advance()
        told = {each.request for each in self.rig.effects if isinstance(each, e.Refused)}
        assert all(
            isinstance(each.error, Timeout) for each in self.rig.effects if isinstance(each, e.Refused)
        )
        assert told == expected
        self._check_granted(granted)

    # ---- checks --------------------------------------------------------------------------------------------

    def _check(self, outcome: Outcome, session: int, number: int, wish: int, timeout_ms: int) -> None:
        effects = self.rig.effects
        refused = [each for each in effects if isinstance(each, e.Refused)]
        if outcome.is_deadlock or outcome.is_held:
            (only,) = effects
            assert isinstance(only, e.Refused), (outcome, effects)
            assert (only.session, only.request) == (session, number)
            assert isinstance(only.error, Deadlock if outcome.is_deadlock else LockHeld), (outcome, only)
            self.deadlocks += outcome.is_deadlock
            if only.cycle:
                self._check_cycle(only)
            self._check_granted(set())
            return
        assert not refused, (outcome, refused)
        self.deadlines.pop(wish, None)  # of an earlier upgrade
        if outcome.is_waiting and timeout_ms > 0:
            self.deadlines[wish] = self.rig.now_ns + timeout_ms * 1_000_000
        if outcome.is_reordered:
            self.reordered += 1
            granted = {number for _, number in self.rig.granted()}
            self._adopt(granted)
            assert not self.model.stuck(in_order=True), "what was put forward did not help"
            outcome.granted = self.model.advance()
        assert e.Waiting(session, number) in effects or wish in outcome.granted, (outcome, effects)
        self._check_granted(outcome.granted)

    def _check_cycle(self, refused: e.Refused) -> None:
        """Each of a circle waits for what the next one holds."""
        cycle = refused.cycle
        assert (cycle[0].session, cycle[0].request) == (refused.session, refused.request)
        for member, behind in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            assert member.waits_for == behind.holds.lock
            holder = (behind.session, behind.owner)
            held = [part.lock for wish in self.model.held_by(holder) for part in wish.parts]
            assert behind.holds.lock in held
            if member is not cycle[0]:
                waits = self.model.wish_of((member.session, member.owner))
                assert waits is not None
                assert member.waits_for in [part.lock for part in waits.parts]

    def _adopt(self, granted: set[int]) -> None:
        """Take over the machine's queues, with those that were just granted at their heads."""
        stuck = self.model.stuck(in_order=True)
        queues: dict[str, list[int]] = {}
        for name, queue in self.model.queues.items():
            lock = self.rig.machine.table.locks.get(name)
            rest = [_number(claim) for claim in (lock.queue or ())] if lock is not None else []
            gone = [wish.number for wish in queue if wish.number not in rest]
            assert {number % UPGRADE for number in gone} <= granted
            queues[name] = [*gone, *rest]
            places = {number: place for place, number in enumerate(rest)}
            left = [wish for wish in queue if wish.number in places]
            for at, wish in enumerate(left):
                for behind in left[at + 1 :]:
                    if places[behind.number] < places[wish.number]:
                        assert wish.owner in stuck, "it was passed by although it was not stuck"
        self.model.adopt(queues)

    def _check_granted(self, expected: set[int], but: int = 0) -> None:
        told = {number for session, number in self.rig.granted() if session != but}
        assert told == {number % UPGRADE for number in expected}, (told, expected, self.rig.effects)
        for effect in self.rig.effects:
            if isinstance(effect, e.Granted):
                for grant in effect.grants:
                    self._check_token(effect, grant)
        self.check()

    def _check_token(self, effect: e.Granted, grant: e.Grant) -> None:
        """Tokens only grow; but who counts on a grant that it has is told that one's."""
        wish = self.model.find(effect.request)
        if wish is not None and wish.shares is None:
            assert grant.token > self.newest_token
            self.newest_token = grant.token

    def check(self) -> None:
        """What must be so between commands, whatever has happened."""
        table = self.rig.machine.table
        assert {name for name, queue in self.model.queues.items() if queue} == {
            name for name, lock in table.locks.items() if lock.queue
        }
        for name, lock in table.locks.items():
            queue = self.model.queues.get(name, [])
            assert [_number(claim) for claim in lock.queue or ()] == [wish.number for wish in queue], name
            holders = [(claim.owner.session.id, claim.owner.number, claim.mode) for claim in lock.holders]
            assert sorted(holders) == sorted(
                (*wish.owner, part.mode)
                for wish in self.model.held
                if wish.shares is None
                for part in wish.parts
                if part.lock == name
            )
            assert_exclusive(name, list(lock.holders), self.capacities.get(name, 0))
        assert not self.model.stuck(in_order=True), "somebody waits for ever"

    def check_replay(self) -> None:
        """The journal alone leads to the same state, and a snapshot to one that goes on alike."""
        machine = LockMachine()
        for record in self.rig.journal:
            machine.apply(*codec.decode_command(record))
        state = snapshot.encode(self.rig.machine)
        assert snapshot.encode(machine) == _at(state, machine)
        restored = LockMachine()
        snapshot.restore(restored, state)
        assert snapshot.encode(restored) == state
        assert tallies(restored) == tallies(machine) == tallies(self.rig.machine)


def _at(state: bytes, machine: LockMachine) -> bytes:
    """A refused command may have been the last to move the clock."""
    probe = LockMachine()
    snapshot.restore(probe, state)
    probe.table.now_ns = machine.table.now_ns
    return snapshot.encode(probe)


def _number(claim: Claim) -> int:
    request = claim.request
    return request.number + (UPGRADE if request.upgrades is not None else 0)


def assert_exclusive(name: str, holders: list[Claim], capacity: int) -> None:
    """What is held can be held together."""
    if capacity:
        assert sum(claim.weight for claim in holders) <= capacity, name
    elif any(claim.mode == EXCLUSIVE for claim in holders):
        assert len(holders) == 1, name


__all__ = ["PERMITS", "Compared", "LockEffect", "assert_exclusive"]
