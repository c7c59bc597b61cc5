"""Judges what processes told of locks: is there an order of events in which the lock service was right?

Theory of operation
    A grant happened at some moment between the call and its return, and lasts at least until its holder began
    to give it back, was killed, or was stopped. (Stopped for long enough it may lose its session without
    knowing; what it wrote under its token afterwards shows that it had not.) That is its *certain* span:
    spans that exclude each other must not overlap.

    Tokens tell in which order grants happened, so one pass suffices, lock by lock (:func:`check_locks`): take
    the grants by token, and give each the earliest moment that is possible, after its call, after the grant
    before, and after the certain spans that it excludes. If that is later than its return, there is no such
    order. What is not known (the grant that a killed process did not come to tell) is not in the way.

    Fencing (:func:`check_writes`): a write under a token must not land once a later token of that lock was
    given to somebody, and the versions of what landed grow with the tokens.

Not here: how events come about (``worker``, ``nemesis``).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from .records import FOREVER

Mode = Literal["exclusive", "shared", "permits"]
STOPS: Final = ("stopped", "killed")


@dataclass(eq=False)
class Hold:
    """One grant, as far as it is known.

    Attributes:
        call_ns, got_ns: when it was asked for, and when it had been given.
        end_ns: until when it certainly lasted.
    """

    worker: str
    lock: str
    mode: Mode
    weight: int
    token: int
    call_ns: int
    got_ns: int
    end_ns: int = FOREVER

    def __str__(self) -> str:
        return f"{self.worker} held {self.lock} {self.mode} token {self.token} [{self.got_ns}, {self.end_ns}]"


@dataclass(eq=False)
class Write:
    """One write under a token. ``version``: what it made; 0: it was refused, or it is not known."""

    worker: str
    lock: str
    token: int
    call_ns: int
    version: int = 0

    def __str__(self) -> str:
        return f"{self.worker} wrote under token {self.token} of {self.lock} at {self.call_ns}"


@dataclass
class History:
    """What all processes together did."""

    holds: list[Hold] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, worker: str, told: Iterable[Mapping[str, Any]], fates: Iterable[Mapping[str, Any]]) -> None:
        """Take in one process.

        Args:
            told: by itself.
            fates: what was done to it, by others.
        """
        told = list(told)
        stops = sorted(event["at_ns"] for event in (*told, *fates) if event["kind"] in STOPS)
        calls: dict[int, Mapping[str, Any]] = {}
        open_: dict[int, list[Hold]] = {}
        all_: list[list[Hold]] = []
        writes: dict[int, tuple[Write, list[Hold]]] = {}
        confirmed: dict[int, int] = {}
        for event in told:
            number = event["number"]
            match event["kind"]:
                case "call":
                    calls[number] = event
                case "got":
                    call = calls[number]
                    open_[number] = [
                        Hold(worker, lock, call["mode"], call["weight"], token, call["at_ns"], event["at_ns"])
                        for lock, token in event["tokens"].items()
                    ]
                    all_.append(open_[number])
                case "end":
                    for hold in open_.pop(number):
                        hold.end_ns = event["at_ns"] if event["is_valid"] else hold.got_ns
                case "write":
                    write = Write(worker, event["lock"], event["token"], event["at_ns"])
                    writes[number] = (write, open_[event["hold"]])
                    self.writes.append(write)
                case "wrote":
                    write, holds = writes[number]
                    write.version = event["version"]
                    confirmed.update((hold.token, write.call_ns) for hold in holds)
                case "refused":
                    self.codes[event["code"]] += 1
        for hold in (hold for holds in all_ for hold in holds):
            for at_ns in stops:
                if hold.got_ns <= at_ns < hold.end_ns:
                    hold.end_ns = max(at_ns, confirmed.get(hold.token, 0))
                    break
            self.holds.append(hold)


def check(history: History, permits: Mapping[str, int]) -> list[str]:
    """Say all that is wrong with a history; nothing: it is as it must be.

    Args:
        permits: of the semaphores.
    """
    found = check_writes(history)
    by_lock: dict[str, list[Hold]] = defaultdict(list)
    for hold in history.holds:
        by_lock[hold.lock].append(hold)
    for lock, holds in by_lock.items():
        found += check_lock(holds, permits.get(lock, 0))
    return found


def check_lock(holds: Iterable[Hold], permits: int) -> list[str]:
    """The same for one lock's grants."""
    found: list[str] = []
    active: list[Hold] = []
    moment_ns, before = 0, 0
    for hold in sorted(holds, key=lambda hold: hold.token):
        if hold.token == before:
            found.append(f"the token was given twice: {hold}")
        before = hold.token
        earliest_ns = max(moment_ns, hold.call_ns)
        if earliest_ns > hold.got_ns:
            found.append(f"an earlier token was given out after a later one had been: {hold}")
            continue
        active = [other for other in active if other.end_ns > earliest_ns]
        moment_ns = _free_at(hold, active, permits, earliest_ns)
        if moment_ns > hold.got_ns:
            others = [str(other) for other in active if other.end_ns > hold.got_ns]
            found.append(f"there was no room: {hold}, while " + " and ".join(others))
            moment_ns = earliest_ns
        active.append(hold)
    return found


def _free_at(hold: Hold, active: list[Hold], permits: int, earliest_ns: int) -> int:
    """Return the first moment at which there is room for a grant."""
    if hold.mode != "permits":
        ends = [other.end_ns for other in active if "exclusive" in (hold.mode, other.mode)]
        return max([earliest_ns, *ends])
    used = sum(other.weight for other in active)
    for other in sorted(active, key=lambda other: other.end_ns):
        if used + hold.weight <= permits:
            break
        used -= other.weight
        earliest_ns = max(earliest_ns, other.end_ns)
    return earliest_ns


def check_writes(history: History) -> list[str]:
    """Say which writes landed that must not have."""
    found: list[str] = []
    newest: dict[str, list[Hold]] = defaultdict(list)
    for hold in history.holds:
        if hold.mode == "exclusive":
            newest[hold.lock].append(hold)
    by_lock: dict[str, list[Write]] = defaultdict(list)
    for write in history.writes:
        if write.version:
            by_lock[write.lock].append(write)
    for lock, writes in by_lock.items():
        writes.sort(key=lambda write: write.version)
        for earlier, later in itertools.pairwise(writes):
            if later.token < earlier.token:
                found.append(f"it overwrote what came later: {later}, after {earlier}")
        given = sorted(newest[lock], key=lambda hold: hold.got_ns)
        at, highest = 0, 0
        for write in sorted(writes, key=lambda write: write.call_ns):
            while at < len(given) and given[at].got_ns < write.call_ns:
                highest = max(highest, given[at].token)
                at += 1
            if write.token < highest:
                found.append(f"it landed although token {highest} had been given: {write}")
    return found
