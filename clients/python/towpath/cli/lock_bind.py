"""``towpath lock bind`` and ``unbind``, ``towpath locks repair``: locks that are joined to local ones.

Which locks are joined stands in a guarded value (``towpath.locks.joined``); the bridge does what it says, and
writes down how that went, which is waited for here.
"""

from __future__ import annotations

import time
from argparse import Namespace
from typing import Final

from towpath.cli import streams
from towpath.cli.connection import connect
from towpath.cli.lock_places import semaphore_of, why_not_abandoned
from towpath.errors import BindingFailed, InvalidArgument, Timeout
from towpath.locks.joined import JOINED, JOINS, Join, add
from towpath.locks.semaphores import Semaphore
from towpath.locks.watching import LockWatch, may_be_written
from towpath.sync.api import Client

ANSWER_S: Final = 20.0
"""How long the bridge may take: the lock may be in use when it is joined."""


def bind(arguments: Namespace, name: str, url: str) -> int:
    """Join a lock to a local one, and wait until it is."""
    with connect(arguments) as client, client.watch_locks(JOINED) as watch:
        guarded = client.guarded(JOINED, JOINS, initial={}, durable=True)
        with guarded.write() as guard:
            joins = guard.recover()
            add(joins, name, url)
        state = _wait_state(client, watch, name, url)
        if state != "joined":
            _remove(client, name)
            raise BindingFailed(state, hint="the lock is not joined")
    streams.emit(f"{name}: joined to {url}\n")
    return 0


def unbind(arguments: Namespace, name: str, url: str) -> int:
    """Join it no more."""
    with connect(arguments) as client:
        joins = _joins(client)
        if name not in joins or joins[name].url != url:
            raise InvalidArgument(
                f"{name!r} is not joined to {url}", hint="towpath locks lists those that are"
            )
        _remove(client, name)
    return 0


def repair(arguments: Namespace, name: str) -> int:
    """Give back the semaphore of a lock whose holder has died."""
    with connect(arguments) as client:
        joins = _joins(client)
    if name not in joins:
        raise InvalidArgument(f"{name!r} is joined to nothing", hint="towpath lock bind NAME sem:/name")
    path = semaphore_of(joins[name].url)
    if path is None:
        raise InvalidArgument(
            f"{joins[name].url} needs no repair: the kernel frees it when its holder dies", hint=""
        )
    semaphore = Semaphore(path)
    try:
        why_not = why_not_abandoned(path, semaphore.value, is_forced=arguments.force)
        if why_not:
            raise InvalidArgument(
                f"{joins[name].url} is not to be repaired: {why_not}",
                hint="--force repairs it where not all processes can be looked at",
            )
        semaphore.post()
    finally:
        semaphore.close()
    streams.emit(f"{name}: {joins[name].url} is free again\n")
    return 0


def _wait_state(client: Client, watch: LockWatch, name: str, url: str) -> str:
    """Wait until the bridge has written how it went."""
    deadline = time.monotonic() + ANSWER_S
    while (state := _state(client, name)) == "new":
        while True:
            try:
                event = watch.receive(max(0.0, deadline - time.monotonic()))
            except Timeout:
                raise Timeout(
                    f"the bridge has not joined {name!r} to {url} in {ANSWER_S:.0f} s; it goes on trying",
                    hint="is the bridge running (towpath status), or does somebody hold the lock?",
                ) from None
            if may_be_written(event):
                break
    return state


def _joins(client: Client) -> dict[str, Join]:
    with client.guarded(JOINED, JOINS, initial={}).read() as guard:
        return guard.committed


def _state(client: Client, name: str) -> str:
    join = _joins(client).get(name)
    return "it was unbound meanwhile" if join is None else join.state


def _remove(client: Client, name: str) -> None:
    with client.guarded(JOINED, JOINS, initial={}, durable=True).write() as guard:
        guard.recover().pop(name, None)
