"""Fencing: is this the grant that counts?

A token is good while its grant lasts: its session is there, nobody took the lock away, and it was not
released. It is looked up in the lock's present holders, so a holder that was stopped, lost its session
meanwhile and goes on as if nothing had happened is refused, whether or not somebody else has the lock by now.

Whoever orders what is written (the data plane, before it commits) asks here, in the same turn of the event
loop, with nothing awaited in between: then no command of the lock machine comes between question and write.
"""

from __future__ import annotations

from towpath.errors import Fenced

from .table import Table


def check_fence(table: Table, name: str, token: int) -> None:
    """Refuse a token that is not of a grant which counts now.

    Args:
        name: the lock's.
        token: from 1.

    Raises:
        Fenced: it is not. O(holders of the lock).
    """
    lock = table.locks.get(name)
    if lock is not None:
        if lock.exclusive is not None:
            if lock.exclusive.token == token:
                return
        elif any(claim.token == token for claim in lock.holders):
            return
    newest = lock.token if lock is not None else 0
    if newest > token:
        raise Fenced(f"token {token} of {name!r} does not count any more: there has been {newest} since")
    raise Fenced(f"token {token} of {name!r} does not count: nobody holds it by that")
