"""Wait-die and wound-wait: of two owners that want the same, age decides which may wait.

The age of an owner is that of its session, and it keeps it when it begins anew; so everybody becomes the
oldest at some time, and none starves that does.

*Wait-die*: who is older than all that are in its way waits; a younger one is refused, and begins anew. All
waits lead from older to younger. *Wound-wait*: whoever is in the way of an older one is *wounded*: its wait,
if it waits, is refused, and it gets nothing more in that lock space until it has released what it has there.
The older one waits for that. Nothing is taken from a holder; it is told, and should hurry. Waits that last
lead from younger to older, or to somebody wounded, who does not wait. So in neither are there circles.

Source: D. J. Rosenkrantz, R. E. Stearns, P. M. Lewis, "System Level Concurrency Control for Distributed
Database Systems", ACM TODS 3 (2), 1978.
"""

from __future__ import annotations

from collections.abc import Iterable

from towpath_broker.core.locks.grants import Claim, Owner


def older_blocker(owner: Owner, in_the_way: Iterable[Claim]) -> Claim | None:
    """Return one that is in an owner's way and older; None: it may wait (wait-die)."""
    return next((claim for claim in in_the_way if claim.owner.age < owner.age), None)


def younger_blockers(owner: Owner, in_the_way: Iterable[Claim]) -> list[Claim]:
    """Return those that are in an owner's way and younger: it wounds them (wound-wait)."""
    return [claim for claim in in_the_way if claim.owner.age > owner.age]
