"""The lock service, naively: lists, searched from end to end, and no cleverness.

Who can be granted is asked of everybody, again and again, until nobody can. Whether there is a deadlock is
found by letting everybody who could go on go on, over the whole state. The machine under test is compared
with this after each command: what it granted and refused, and, where it put somebody forward in a queue, that
this was needed and did help.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from towpath_broker.core.locks.modes import CONFLICTS, EXCLUSIVE, PERMITS, SHARED

Owner = tuple[int, int]
"""Session and owner's number."""


class Part(NamedTuple):
    """What a request wants of one lock."""

    lock: str
    mode: int
    weight: int


@dataclass(eq=False)
class Wish:
    """A request. ``upgrades``: the one that it would make exclusive."""

    owner: Owner
    number: int
    parts: list[Part]
    upgrades: Wish | None = None
    shares: Wish | None = None
    """Another request of its owner, whose grant it counts on (reentrance)."""


@dataclass
class Outcome:
    """What a command should lead to."""

    granted: set[int] = field(default_factory=set)
    is_waiting: bool = False
    is_deadlock: bool = False
    is_held: bool = False
    is_reordered: bool = False


class Model:
    """Holders and queues as lists of requests.

    Args:
        capacities: of semaphores.
    """

    def __init__(self, capacities: dict[str, int]) -> None:
        self.capacities = capacities
        self.held: list[Wish] = []
        self.queues: dict[str, list[Wish]] = {}

    # ---- what is so ----------------------------------------------------------------------------------------

    def waiting(self) -> list[Wish]:
        found = [wish for queue in self.queues.values() for wish in queue]
        return list(dict.fromkeys(found))

    def wish_of(self, owner: Owner) -> Wish | None:
        return next((wish for wish in self.waiting() if wish.owner == owner), None)

    def held_by(self, owner: Owner) -> list[Wish]:
        return [wish for wish in self.held if wish.owner == owner]

    def find(self, number: int) -> Wish | None:
        return next((wish for wish in self.held if wish.number == number), None)

    def leaves_room(self, wish: Wish, held: list[Wish]) -> bool:
        """Whether grants leave room for all that a request wants."""
        for part in wish.parts:
            others = [
                (other, theirs)
                for other in held
                if other.shares is None and other is not wish.upgrades
                for theirs in other.parts
                if theirs.lock == part.lock
            ]
            if part.mode == PERMITS:
                used = sum(theirs.weight for _, theirs in others)
                if used + part.weight > self.capacities[part.lock]:
                    return False
            elif any(EXCLUSIVE in (part.mode, theirs.mode) for _, theirs in others):
                return False
        return True

    def is_first(self, wish: Wish, gone: set[Owner]) -> bool:
        """Whether nobody who is not gone stands in its way in any queue."""
        for part in wish.parts:
            for other in self.queues.get(part.lock, ()):
                if other is wish:
                    break
                if other.owner in gone or (wish.upgrades is not None and other.upgrades is None):
                    continue
                theirs = next(each for each in other.parts if each.lock == part.lock)
                if CONFLICTS[part.mode][theirs.mode]:
                    return False
        return True

    def stuck(self, *, in_order: bool) -> set[Owner]:
        """Return who can never go on, even if everybody who can gives back all that it has."""
        gone: set[Owner] = {wish.owner for wish in self.held} - {wish.owner for wish in self.waiting()}
        while True:
            held = [wish for wish in self.held if wish.owner not in gone]
            able = [
                wish
                for wish in self.waiting()
                if wish.owner not in gone
                and self.leaves_room(wish, held)
                and (not in_order or self.is_first(wish, gone))
            ]
            if not able:
                return {wish.owner for wish in self.waiting()} - gone
            gone.update(wish.owner for wish in able)

    # ---- what happens --------------------------------------------------------------------------------------

    def acquire(self, wish: Wish, *, may_wait: bool, is_reentrant: bool = False) -> Outcome:
        for part in wish.parts:
            for mine in self.held_by(wish.owner):
                for theirs in mine.parts:
                    if theirs.lock != part.lock or part.mode == PERMITS or mine.shares is not None:
                        continue
                    if is_reentrant and (theirs.mode == EXCLUSIVE or part.mode == SHARED):
                        wish.parts = [theirs]
                        wish.shares = mine
                        self.held.append(wish)
                        return Outcome(granted={wish.number})
                    if EXCLUSIVE in (theirs.mode, part.mode):
                        return Outcome(is_deadlock=True)
        return self._ask(wish, may_wait=may_wait)

    def upgrade(self, held: Wish, number: int, *, may_wait: bool) -> Outcome:
        part = held.parts[0]
        wish = Wish(held.owner, number, [Part(part.lock, EXCLUSIVE, 1)], upgrades=held)
        return self._ask(wish, may_wait=may_wait)

    def _ask(self, wish: Wish, *, may_wait: bool) -> Outcome:
        for part in wish.parts:
            queue = self.queues.setdefault(part.lock, [])
            place = len(queue)
            if wish.upgrades is not None:
                place = max(
                    (at for at, other in enumerate(queue, 1) if other.upgrades is not None), default=0
                )
            queue.insert(place, wish)
        granted = self.advance()
        if granted:
            assert granted == {wish.number}, "somebody could have been granted before"
            return Outcome(granted=granted)
        if not may_wait:
            self.leave(wish)
            return Outcome(is_held=True)
        if wish.owner in self.stuck(in_order=False):
            self.leave(wish)
            return Outcome(is_deadlock=True)
        return Outcome(is_waiting=True, is_reordered=bool(self.stuck(in_order=True)))

    def release(self, wish: Wish) -> set[int]:
        """Give back a request's grants; who waits for its upgrade does not any more."""
        for other in self.waiting():
            if other.upgrades is wish:
                self.leave(other)
        place = self.held.index(wish)
        self.held.remove(wish)
        for part in wish.parts:
            heirs = [other for other in self.held if other.shares is wish and other.parts == [part]]
            for other in heirs:
                other.shares = heirs[0] if other is not heirs[0] else None
            if heirs:  # it stands for a grant as old as that of the released one
                self.held.remove(heirs[0])
                self.held.insert(place, heirs[0])
        return self.advance()

    def leave(self, wish: Wish) -> None:
        for queue in self.queues.values():
            if wish in queue:
                queue.remove(wish)

    def advance(self) -> set[int]:
        """Grant whatever can be."""
        granted: set[int] = set()
        while True:
            able = [
                wish
                for wish in self.waiting()
                if self.leaves_room(wish, self.held) and self.is_first(wish, set())
            ]
            if not able:
                return granted
            wish = able[0]
            self.leave(wish)
            granted.add(wish.number)
            if wish.upgrades is not None:
                wish.upgrades.parts = wish.parts
            else:
                self.held.append(wish)

    def end(self, session: int) -> set[int]:
        """A session ends. Grants to it on the way do not count."""
        for wish in self.waiting():
            if wish.owner[0] == session:
                self.leave(wish)
        self.held = [wish for wish in self.held if wish.owner[0] != session]
        return self.advance()

    def adopt(self, queues: dict[str, list[int]]) -> None:
        """Take the order of queues as the machine has it: the same requests, after somebody was put
        forward."""
        for name, numbers in queues.items():
            ours = {wish.number: wish for wish in self.queues.get(name, [])}
            assert sorted(ours) == sorted(numbers), (name, ours, numbers)
            self.queues[name] = [ours[number] for number in numbers]


__all__ = ["EXCLUSIVE", "PERMITS", "SHARED", "Model", "Outcome", "Owner", "Part", "Wish"]
