"""Work for a lock engine whose journal may fail, and what must hold afterwards, whatever happened to it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from towpath_broker import lock_engine
from towpath_broker.core.locks import commands as c
from towpath_broker.core.locks.commands import LockCommand, Wanted
from towpath_broker.core.locks.effects import Failed, Granted, LockEffect, Released, SessionOpened
from towpath_broker.core.locks.limits import LockLimits
from towpath_broker.core.locks.machine import LockMachine
from towpath_broker.journal.logged import LoggedJournal
from towpath_broker.lock_engine import LockEngine
from towpath_broker.ports import WallClock

SESSIONS: Final = 3
LOCKS: Final = ("a", "b")
SNAPSHOT_EVERY_BYTES: Final = 1_000
END: Final = 1 << 40
"""The reference of the last command."""


class Told:
    """What holders were told.

    Attributes:
        held: by lock and session, the token.
        highest: the highest token told.
    """

    def __init__(self) -> None:
        self.held: dict[tuple[str, int], int] = {}
        self.highest = 0

    def heard(self, effect: LockEffect) -> None:
        """Take in an effect that was emitted."""
        if isinstance(effect, Granted):
            for grant in effect.grants:
                self.held[grant.lock, effect.session] = grant.token
                self.highest = max(self.highest, grant.token)
        elif isinstance(effect, Released):
            for grant in effect.grants:
                self.held.pop((grant.lock, effect.session), None)


def lines(effect: LockEffect) -> Iterator[str]:
    """Yield the tokens of an effect, one in a line."""
    if isinstance(effect, Granted):
        for grant in effect.grants:
            yield f"{grant.token}\n"


def commands(generator: random.Random, sessions: list[int], count: int) -> Iterator[LockCommand]:
    """Yield commands of sessions that take, wait, and give back, in rounds of some at a time."""
    has: dict[int, int] = {}
    for number in range(1, count + 1):
        session = generator.choice(sessions)
        if session in has:
            yield c.Release(session, has[session], reference=number)
            yield c.Cancel(session, has.pop(session))  # if it waits
        else:
            has[session] = number
            yield c.Acquire(session, 0, number, (Wanted(generator.choice(LOCKS)),))


async def run(path: Path, generator: random.Random, count: int, heard: Callable[[LockEffect], None]) -> None:
    """Let an engine carry out commands, one round after another.

    Raises:
        OSError, sqlite3.Error: the host failed. What was heard before counts.
        StoreFull: there is no room for the first session.
    """
    lock_engine.SNAPSHOT_EVERY_BYTES = SNAPSHOT_EVERY_BYTES  # type: ignore[misc]
    emitted: asyncio.Queue[LockEffect] = asyncio.Queue()

    def emit(effect: LockEffect) -> None:
        heard(effect)
        emitted.put_nowait(effect)

    with closing(LoggedJournal(path)) as journal:
        engine = LockEngine(LockMachine(), journal, WallClock(), emit, LockLimits())
        await engine.recover()
        running = asyncio.create_task(engine.run())
        sessions: list[int] = []
        for _ in range(SESSIONS):
            engine.submit(c.OpenSession("one", reference=1))
            opened = await _next(emitted, running)
            if isinstance(opened, Failed):
                raise opened.error
            assert isinstance(opened, SessionOpened)
            sessions.append(opened.session)
        for number, command in enumerate(commands(generator, sessions, count)):
            engine.submit(command)
            if number % 3 == 0:
                engine.submit(c.Release(0, 1, reference=END))  # refused, and so the end of a round
                while not (
                    isinstance(effect := await _next(emitted, running), Failed) and effect.reference == END
                ):
                    pass
        engine.stop()
        await running  # which ends with a snapshot


async def _next(emitted: asyncio.Queue[LockEffect], running: asyncio.Task[None]) -> LockEffect:
    """Return the next effect, or raise what the engine failed with."""
    coming = asyncio.ensure_future(emitted.get())
    await asyncio.wait((coming, running), return_when=asyncio.FIRST_COMPLETED)
    if coming.done():
        return coming.result()
    coming.cancel()
    running.result()
    raise AssertionError("the engine ended without a failure")


async def examine_after_failure(path: Path, told: Told) -> None:
    """The process ended, the host did not: who was told a grant and no release has it, with that token,
    unless he gave it back in the round that failed; and tokens grow."""
    with closing(LoggedJournal(path)) as journal:
        machine = LockMachine()
        effects: list[LockEffect] = []
        engine = LockEngine(machine, journal, WallClock(), effects.append, LockLimits())
        await engine.recover()
        for (name, session), token in told.held.items():
            lock = machine.table.locks.get(name)
            holders = [(claim.owner.session.id, claim.token) for claim in lock.holders] if lock else []
            is_there = (session, token) in holders
            assert is_there or _was_released(machine, session, name, token), (
                f"{session} held {name}: {token}, {holders}"
            )
        await _check_next_token(engine, effects, told.highest)


def _was_released(machine: LockMachine, session: int, name: str, token: int) -> bool:
    """Whether a session that was told a grant has it no more, and at most a newer one, of which it was not
    told; its release, and what it asked for then, had been on their way."""
    requests = machine.table.sessions[session].requests.values()
    claims = [claim for request in requests for claim in request.claims if claim.lock.name == name]
    return all(claim.token > token for claim in claims)


async def examine_after_power_loss(path: Path, highest: int) -> None:
    """The host ended: nobody holds anything, and tokens grow all the same."""
    with closing(LoggedJournal(path)) as journal:
        machine = LockMachine()
        effects: list[LockEffect] = []
        engine = LockEngine(machine, journal, WallClock(), effects.append, LockLimits())
        await engine.recover()
        assert not machine.table.sessions
        await _check_next_token(engine, effects, highest)


async def _check_next_token(engine: LockEngine, effects: list[LockEffect], highest: int) -> None:
    """Have a new session take a lock that nobody has."""
    running = asyncio.create_task(engine.run())
    engine.submit(c.OpenSession("next", reference=1))
    opened: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    engine.look(
        lambda _: opened.set_result(effects[0].session if isinstance(effects[0], SessionOpened) else 0)
    )
    engine.submit(c.Acquire(await opened, 0, 1, (Wanted("fresh"),)))
    engine.stop()
    await running
    (granted,) = (effect for effect in effects if isinstance(effect, Granted))
    assert granted.grants[0].token > highest, f"token {granted.grants[0].token} after {highest}"
