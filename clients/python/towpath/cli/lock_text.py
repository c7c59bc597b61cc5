"""How locks, sessions and who waits for whom are told to people: text of what ``towpath locks`` shows. Pure
but for the clock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from towpath.locks.model import BankerState, Grant, LockInfo, Mode, Owner, Session, Wait
from towpath.locks.spaces import LockSpace
from towpath.locks.watching import LockEvent

Sessions = Mapping[int, Session]


def lock_lines(lock: LockInfo, sessions: Sessions) -> Iterator[str]:
    """Who holds a lock, and who waits."""
    kind = f"semaphore, {lock.held} of {lock.capacity} permits taken" if lock.capacity else "lock"
    state = "" if lock.holders else ", free"
    poisoned = ", poisoned" if lock.is_poisoned else ""
    yield f"{lock.name}  ({kind}{state}{poisoned})"
    for grant in lock.holders:
        yield f"  held     {_grant(grant, sessions)}"
    for wait in lock.waiters:
        yield f"  waits    {_wait(wait, sessions)}"


def banker_lines(state: BankerState, sessions: Sessions) -> Iterator[str]:
    """How a lock space with the banker's algorithm stands, whom it lets wait, and what would change that."""

    def units(row: tuple[int, ...]) -> str:
        return ", ".join(f"{name} {count}" for name, count in zip(state.resources, row, strict=True))

    yield f"{state.space}  (lock space, banker's algorithm)"
    yield f"  in all   {units(state.total)}"
    yield f"  free     {units(state.available)}"
    for each in state.processes:
        has = f"{units(each.allocation)}, of at most {units(each.maximum)}"
        yield f"  has      {has}: {who(each.owner, sessions)}"
    order = ", then ".join(_short(owner) for owner in state.safe_sequence)
    yield f"  safe     everybody can finish in this order: {order}"
    for refusal in state.refusals:
        yield f"  unsafe   {who(refusal.owner, sessions)} waits although there is enough:"
        stuck = ", ".join(map(_short, refusal.stuck))
        yield f"           with it, these could not be sure to finish: {stuck}"
        remedies = " or ".join(map(_short, refusal.remedies)) or "more than one of them"
        yield f"           it would be safe when all is released by {remedies}"


def space_lines(space: LockSpace) -> Iterator[str]:
    """A lock space."""
    detail = f", victim {space.victim}" if space.policy == "detect" else ""
    yield f"{space.name or '(all others)'}  ({space.policy}{detail})"
    for name, rank in sorted(space.ranks.items(), key=lambda each: (each[1], each[0])):
        yield f"  rank {rank}  {name}"
    for name, count in sorted(space.units.items()):
        yield f"  {count} of {name}"


def event_line(event: LockEvent) -> str:
    """Something that happened to a lock."""
    grant, wait = event.grant, event.wait
    if wait is not None:
        return f"waiting  {wait.lock}  {_how(wait.mode, wait.weight)}, {_short(wait.owner)}"
    if grant is None:
        count = f", {event.missed} events" if event.missed else ""
        return f"(some was missed{count}; what is held follows)"
    why = f" ({event.reason.replace('_', ' ')})" if event.reason not in ("", "released") else ""
    how = _how(grant.mode, grant.weight)
    return f"{event.kind:8} {grant.lock}  {how}, token {grant.token}, {_short(grant.owner)}{why}"


def who(owner: Owner, sessions: Sessions) -> str:
    """An owner, with all that is known of where it runs."""
    session = sessions.get(owner.session)
    if session is None:
        return _short(owner)
    pid = f", pid {session.pid}" if session.pid else ""
    away = "" if session.is_connected else ", not connected"
    place = f", {session.place}" if session.place else ""
    return f"{_short(owner)} ({session.principal}{pid}{place}{away})"


def _short(owner: Owner) -> str:
    thread = f"/{owner.number}" if owner.number > 1 else ""
    return f"session {owner.session}{thread}"


def _grant(grant: Grant, sessions: Sessions) -> str:
    how = _how(grant.mode, grant.weight)
    note = f": {grant.note}" if grant.note else ""
    return f"{how} for {_age(grant.since_ns)}, token {grant.token}, by {who(grant.owner, sessions)}{note}"


def _wait(wait: Wait, sessions: Sessions) -> str:
    how = _how(wait.mode, wait.weight)
    note = f": {wait.note}" if wait.note else ""
    return f"{how} for {_age(wait.since_ns)}, {wait.reason}, {who(wait.owner, sessions)}{note}"


def _how(mode: Mode, weight: int) -> str:
    if mode is Mode.PERMITS:
        return f"{weight} permit{'' if weight == 1 else 's'}"
    return mode.name.lower()


def _age(since_ns: int) -> str:
    seconds = max(0.0, (time.time_ns() - since_ns) / 1e9)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
