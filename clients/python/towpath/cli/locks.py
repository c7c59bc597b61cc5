"""``towpath locks``: who holds what, who waits for it, and why; and what an operator does about it."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from towpath.cli import lock_bind, streams
from towpath.cli.connection import connect
from towpath.cli.grammar import UsageError, mapping
from towpath.cli.lock_places import foreign_lines
from towpath.cli.lock_text import banker_lines, event_line, lock_lines, space_lines, who
from towpath.locks.model import Explanation, Grant, Owner, Session, Wait

_WORDS = ("why", "release", "repair", "space", "watch")
_USAGE = (
    "locks takes a prefix, or: why NAME, why SESSION, release NAME, repair NAME, space [NAME], watch [PREFIX]"
)


def run(arguments: Namespace) -> int:
    """List, explain, take away, or lay down."""
    if arguments.plot is not None and arguments.what[:1] not in ([], ["why"]):
        raise UsageError("--plot draws all locks, or what `why` explains", "towpath locks --plot locks.png")
    match arguments.what:
        case []:
            _list(arguments, "")
        case [prefix] if prefix not in _WORDS:
            _list(arguments, prefix)
        case ["why", name]:
            _explain(arguments, name)
        case ["release", name]:
            _release(arguments, name)
        case ["repair", name]:
            return lock_bind.repair(arguments, name)
        case ["space"]:
            _list_spaces(arguments)
        case ["space", name]:
            _declare_space(arguments, name)
        case ["watch", *prefix] if len(prefix) < 2:
            _watch(arguments, "".join(prefix))
        case _:
            raise UsageError(_USAGE, "towpath locks --help")
    return 0


def _print(text: str) -> None:
    streams.emit(f"{text}\n")


def _list(arguments: Namespace, prefix: str) -> None:
    with connect(arguments) as client:
        if arguments.dot or arguments.plot:
            _draw(arguments, client.explain_locks())
            return
        locks, sessions = client.list_locks(prefix)
    if arguments.json:
        _print(json.dumps({"locks": list(map(asdict, locks)), "sessions": list(map(asdict, sessions))}))
    elif not locks:
        _print(f"no locks are in use{f' that begin with {prefix}' if prefix else ''}")
    else:
        by_id = {session.id: session for session in sessions}
        for lock in locks:
            for line in (*lock_lines(lock, by_id), *foreign_lines(lock)):
                _print(line)


def _explain(arguments: Namespace, what: str) -> None:
    with connect(arguments) as client:
        found = client.explain_locks(session=int(what)) if what.isdigit() else client.explain_locks(what)
    if arguments.dot or arguments.plot:
        _draw(arguments, found)
        return
    if arguments.json:
        _print(json.dumps(asdict(found)))
        return
    by_id = {session.id: session for session in found.sessions}
    for lock in found.locks:
        for line in (*lock_lines(lock, by_id), *foreign_lines(lock)):
            _print(line)
    hard = [edge for edge in found.edges if not edge.is_soft]
    for edge in hard:
        _print(f"{who(edge.waiter, by_id)} waits for {who(edge.blocker, by_id)}, which holds {edge.lock}")
    for state in found.bankers:
        for line in banker_lines(state, by_id):
            _print(line)
    if not found.edges and not any(lock.waiters for lock in found.locks):
        _print("nobody waits")


def _release(arguments: Namespace, name: str) -> None:
    with connect(arguments) as client:
        grants = client.force_release(name, reason=arguments.reason)
    if arguments.json:
        _print(json.dumps([asdict(grant) for grant in grants]))
        return
    for grant in grants:
        _print(f"{grant.lock}: taken from session {grant.owner.session} (token {grant.token})")


def _watch(arguments: Namespace, prefix: str) -> None:
    """Until interrupted."""
    with connect(arguments) as client, client.watch_locks(prefix) as watch:
        for event in watch:
            _print(json.dumps(asdict(event)) if arguments.json else event_line(event))


# ---- lock spaces -------------------------------------------------------------------------------------------


def _list_spaces(arguments: Namespace) -> None:
    with connect(arguments) as client:
        found = client.lock_spaces()
    if arguments.json:
        _print(json.dumps([asdict(space) for space in found]))
    elif not found:
        _print("no lock spaces are declared: deadlocks are detected, and the requester is the victim")
    for space in () if arguments.json else found:
        for line in space_lines(space):
            _print(line)


def _declare_space(arguments: Namespace, name: str) -> None:
    if not arguments.remove and arguments.policy is None:
        raise UsageError("a lock space needs a policy", "towpath locks space NAME --policy ordered")
    with connect(arguments) as client:
        if arguments.remove:
            client.remove_lock_space(name)
            return
        client.declare_lock_space(
            name,
            policy=arguments.policy,
            victim=arguments.victim,
            ranks=mapping("--rank", arguments.rank),
            units=mapping("--units", arguments.units),
        )


# ---- pictures ----------------------------------------------------------------------------------------------


def _draw(arguments: Namespace, found: Explanation) -> None:
    if arguments.dot:
        _print(dot(found))
        return
    from towpath.cli import locks_plot
    from towpath.cli.advise_plot import check_file

    file = Path(arguments.plot)
    check_file(file)
    locks_plot.draw(found, file)


def _node(owner: Owner) -> str:
    return f"{owner.session}.{owner.number}"


def dot(found: Explanation) -> str:
    """Return the wait-for graph, between owners, dashed what only the queue makes, and beside it the
    resource-allocation graph, from a lock to who has it, and from who wants it to the lock.
    """
    by_id = {session.id: session for session in found.sessions}
    clusters = [*_waits(found, by_id), *_allocation(found, by_id)]
    return "\n".join(["digraph locks {", "  node [shape=box];", *clusters, "}"])


def _waits(found: Explanation, by_id: dict[int, Session]) -> list[str]:
    owners = dict.fromkeys(owner for edge in found.edges for owner in (edge.waiter, edge.blocker))
    lines = [_labelled(_node(owner), who(owner, by_id)) for owner in owners]
    for edge in found.edges:
        lines.append(_arrow(_node(edge.waiter), _node(edge.blocker), edge.lock, is_dashed=edge.is_soft))
    return _cluster("waits", "who waits for whom", lines)


def _allocation(found: Explanation, by_id: dict[int, Session]) -> list[str]:
    lines: list[str] = []
    owners: dict[Owner, None] = {}
    for lock in found.locks:
        permits = f"\n{lock.held} of {lock.capacity}" if lock.capacity else ""
        lines.append(_labelled(f"lock {lock.name}", f"{lock.name}{permits}", ", shape=ellipse"))
        claims: list[Grant | Wait] = [*lock.holders, *lock.waiters]
        for claim in claims:
            owners[claim.owner] = None
            ends = f"lock {lock.name}", f"owner {_node(claim.owner)}"
            how = str(claim.weight) if lock.capacity else claim.mode.name.lower()
            lines.append(_arrow(*(ends if isinstance(claim, Grant) else ends[::-1]), how))
    nodes = [_labelled(f"owner {_node(owner)}", who(owner, by_id)) for owner in owners]
    return _cluster("allocation", "who has and wants which lock", nodes + lines)


def _cluster(name: str, title: str, lines: list[str]) -> list[str]:
    inner = [f"label={_quoted(title)};", *lines]
    return [f"  subgraph cluster_{name} {{", *(f"    {line}" for line in inner), "  }"]


def _labelled(node: str, label: str, more: str = "") -> str:
    return f"{_quoted(node)} [label={_quoted(label)}{more}];"


def _arrow(start: str, end: str, label: str, *, is_dashed: bool = False) -> str:
    style = ", style=dashed" if is_dashed else ""
    return f"{_quoted(start)} -> {_quoted(end)} [label={_quoted(label)}{style}];"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
