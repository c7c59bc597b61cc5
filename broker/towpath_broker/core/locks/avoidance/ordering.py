"""Resource ordering: whoever takes locks by rising rank is in no circle of waits.

The ranks of a lock space are declared, lock by lock; or they are the names themselves, level by level, so
that ``a`` comes before ``a.b``, and that before ``b``. An owner may acquire what ranks above everything that
it holds in the space. Locks that are taken at one moment may have any ranks among them.

An upgrade takes nothing of a higher rank: while others read, it does not wait but is refused. Who may want to
write acquires exclusively.
"""

from __future__ import annotations

from towpath.errors import InvalidArgument, LockOrder
from towpath_broker.core.locks.grants import Claim, Lock, Owner

Rank = tuple[int, tuple[str, ...]]


def rank_of(lock: Lock) -> Rank:
    """Return where a lock comes in its space.

    Raises:
        InvalidArgument: the space has ranks, and none for this one.
    """
    ranks = lock.space.ranks
    if not ranks:
        return (0, tuple(lock.name.split(".")))
    rank = ranks.get(lock.name)
    if rank is None:
        raise InvalidArgument(
            f"{lock.name!r} has no rank in the lock space {lock.space.prefix!r}", hint="declare one for it"
        )
    return (rank, ())


def check(owner: Owner, lock: Lock) -> tuple[LockOrder, Claim] | None:
    """Return what speaks against acquiring a lock: the error, and the grant that comes too early. O(grants of
    the owner).

    Raises:
        InvalidArgument: the lock has no rank.
    """
    rank = rank_of(lock)
    for held in owner.grants:
        if held.lock.space is lock.space and held.lock is not lock and rank_of(held.lock) >= rank:
            error = LockOrder(f"{lock.name!r} comes before {held.lock.name!r}, which the owner holds already")
            return error, held
    return None


def no_upgrade(lock: Lock) -> LockOrder:
    """Return what speaks against waiting for an upgrade."""
    return LockOrder(
        f"others hold {lock.name!r}, and waiting to upgrade it would be out of order",
        hint="acquire it exclusively from the beginning, or release it first",
    )
