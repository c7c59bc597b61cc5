"""``towpath locks``: who holds what, who waits for it, and why."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from towpath.cli import streams
from towpath.cli.connection import connect
from towpath.cli.grammar import UsageError
from towpath.locks.model import Explanation, Grant, LockInfo, Mode, Owner, Session, Wait


def run(arguments: Namespace) -> int:
    """List, explain or take away."""
    match arguments.what:
        case []:
            _list(arguments, "")
        case [prefix] if prefix not in ("why", "release"):
            _list(arguments, prefix)
        case ["why", name]:
            _explain(arguments, name)
        case ["release", name]:
            with connect(arguments) as client:
                grants = client.force_release(name, reason=arguments.reason)
            if arguments.json:
                _print(json.dumps([asdict(grant) for grant in grants]))
            else:
                for grant in grants:
                    _print(f"{grant.lock}: taken from session {grant.owner.session} (token {grant.token})")
        case _:
            raise UsageError(
                "locks takes a prefix, or: why NAME, why SESSION, release NAME", "towpath locks --help"
            )
    return 0


def _print(text: str) -> None:
    streams.emit(f"{text}\n")


def _list(arguments: Namespace, prefix: str) -> None:
    with connect(arguments) as client:
        if arguments.dot:
            _print(dot(client.explain_locks()))
            return
        locks, sessions = client.list_locks(prefix)
    if arguments.json:
        _print(json.dumps({"locks": list(map(asdict, locks)), "sessions": list(map(asdict, sessions))}))
    elif not locks:
        _print(f"no locks are in use{f' that begin with {prefix}' if prefix else ''}")
    else:
        by_id = {session.id: session for session in sessions}
        for lock in locks:
            for line in _lock_lines(lock, by_id):
                _print(line)


def _explain(arguments: Namespace, what: str) -> None:
    with connect(arguments) as client:
        found = client.explain_locks(session=int(what)) if what.isdigit() else client.explain_locks(what)
    if arguments.dot:
        _print(dot(found))
        return
    if arguments.json:
        _print(json.dumps(asdict(found)))
        return
    by_id = {session.id: session for session in found.sessions}
    for lock in found.locks:
        for line in _lock_lines(lock, by_id):
            _print(line)
    hard = [edge for edge in found.edges if not edge.is_soft]
    for edge in hard:
        _print(f"{_who(edge.waiter, by_id)} waits for {_who(edge.blocker, by_id)}, which holds {edge.lock}")
    if not found.edges:
        _print("nobody waits")


def _lock_lines(lock: LockInfo, sessions: Mapping[int, Session]) -> Iterable[str]:
    kind = f"semaphore, {lock.held} of {lock.capacity} permits taken" if lock.capacity else "lock"
    state = "" if lock.holders else ", free"
    poisoned = ", poisoned" if lock.is_poisoned else ""
    yield f"{lock.name}  ({kind}{state}{poisoned})"
    for grant in lock.holders:
        yield f"  held     {_grant(grant, sessions)}"
    for wait in lock.waiters:
        yield f"  waits    {_wait(wait, sessions)}"


def _grant(grant: Grant, sessions: Mapping[int, Session]) -> str:
    how = _how(grant.mode, grant.weight)
    note = f": {grant.note}" if grant.note else ""
    return f"{how} for {_age(grant.since_ns)}, token {grant.token}, by {_who(grant.owner, sessions)}{note}"


def _wait(wait: Wait, sessions: Mapping[int, Session]) -> str:
    how = _how(wait.mode, wait.weight)
    note = f": {wait.note}" if wait.note else ""
    return f"{how} for {_age(wait.since_ns)}, {wait.reason}, {_who(wait.owner, sessions)}{note}"


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


def _who(owner: Owner, sessions: Mapping[int, Session]) -> str:
    session = sessions.get(owner.session)
    if session is None:
        return f"session {owner.session}"
    thread = f"/{owner.number}" if owner.number > 1 else ""
    pid = f", pid {session.pid}" if session.pid else ""
    away = "" if session.is_connected else ", not connected"
    place = f", {session.place}" if session.place else ""
    return f"session {session.id}{thread} ({session.principal}{pid}{place}{away})"


def _node(owner: Owner) -> str:
    return f"{owner.session}.{owner.number}"


def dot(found: Explanation) -> str:
    """Return the wait-for graph: owners are nodes; a dashed edge is one that only the queue makes."""
    by_id = {session.id: session for session in found.sessions}
    owners: dict[Owner, None] = {}
    for edge in found.edges:
        owners[edge.waiter] = owners[edge.blocker] = None
    lines = ["digraph locks {", "  node [shape=box];"]
    for owner in owners:
        lines.append(f'  "{_node(owner)}" [label={json.dumps(_who(owner, by_id))}];')
    for edge in found.edges:
        style = ", style=dashed" if edge.is_soft else ""
        ends = f'"{_node(edge.waiter)}" -> "{_node(edge.blocker)}"'
        lines.append(f"  {ends} [label={json.dumps(edge.lock)}{style}];")
    return "\n".join([*lines, "}"])
