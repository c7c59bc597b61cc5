"""Bugs to be planted: each is one that a person could write, and the comparison with the model must find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from unittest.mock import patch

from towpath_broker.core.locks import acquiring, deadlock, grants, queue, waits
from towpath_broker.core.locks.grants import Claim, Lock, Owner, Request
from towpath_broker.core.locks.modes import SHARED
from towpath_broker.core.locks.table import Table, rearrange

Bug = Callable[[], AbstractContextManager[object]]


def readers_pass_writers() -> AbstractContextManager[object]:
    """A reader that arrives does not look at who waits."""
    is_clear = queue.is_clear
    return patch.object(queue, "is_clear", lambda claim: claim.mode == SHARED or is_clear(claim))


@contextmanager
def one_permit_too_many() -> Iterator[None]:
    is_free = grants.is_free

    def generous(claim: Claim) -> bool:
        lock = claim.lock
        return is_free(claim) or (lock.capacity > 0 and lock.used + claim.weight == lock.capacity + 1)

    with patch.object(queue, "is_free", generous):
        yield


def withdrawn_and_nobody_told() -> AbstractContextManager[object]:
    """Who waits behind one that withdraws is forgotten."""

    def withdraw(table: Table, request: Request, error: Any) -> None:
        table.leave_queues(request)
        table.refuse(request, error)

    return patch.object(acquiring, "withdraw", withdraw)


def joint_grant_leaves_permits() -> AbstractContextManager[object]:
    """Who stands behind a joint request, where there are permits left, is forgotten. (We once had this
    one.)"""
    advance_queue = queue._advance_queue
    return patch.object(queue, "_advance_queue", lambda table, lock, todo: advance_queue(table, lock, []))


def no_detection() -> AbstractContextManager[object]:
    return patch.object(waits, "may_close_circle", lambda request: False)


def detection_without_joint_waiters() -> AbstractContextManager[object]:
    """Circles through one that stands in several queues are not seen. (We once had one like this.)"""
    return patch.object(waits, "_joint_before", lambda claim, reached: [])


def every_circle_is_a_deadlock() -> AbstractContextManager[object]:
    """Nobody asks whether queues could be put into another order, or permits come free."""

    class Hasty(deadlock.Reduction):
        def _finish(self, owner: Owner) -> None:
            self.stuck.setdefault(owner, None)

    return patch.object(deadlock, "Reduction", Hasty)


def nobody_is_put_forward() -> AbstractContextManager[object]:
    return patch.object(deadlock, "_untangle", lambda table, start: None)


def put_forward_too_far() -> AbstractContextManager[object]:
    """Moved to the head of the queue, whoever stands there."""

    def to_the_head(claim: Claim, stuck: object) -> bool:
        order = [claim, *(other for other in claim.lock.queue or () if other is not claim)]
        rearrange(claim.lock, order)
        return True

    return patch.object(deadlock, "_move_forward", to_the_head)


def upgrade_keeps_its_token() -> AbstractContextManager[object]:
    hold = Table.hold

    def keeps(self: Table, claim: Claim) -> None:
        hold(self, claim)
        if claim.converts is not None:
            claim.converts.token = claim.token = claim.token - 1

    return patch.object(Table, "hold", keeps)


def upgrade_stands_at_the_end() -> AbstractContextManager[object]:
    """So it waits for those who wait for it."""
    enqueue = Table.enqueue

    def last(self: Table, claim: Claim) -> None:
        converts, claim.converts = claim.converts, None
        enqueue(self, claim)
        claim.converts = converts

    return patch.object(Table, "enqueue", last)


def released_at_the_first_return() -> AbstractContextManager[object]:
    """Reentrance is not counted."""
    release = acquiring.release

    def once(table: Table, request: Request, reason: Any) -> None:
        for claim in request.claims:
            claim.count = 1
        release(table, request, reason)

    return patch.object(acquiring, "release", once)


def still_exclusive_after_release() -> AbstractContextManager[object]:
    drop = Table.drop

    def forgets(self: Table, claim: Claim) -> None:
        lock: Lock = claim.lock
        exclusive = lock.exclusive
        drop(self, claim)
        lock.exclusive = exclusive

    return patch.object(Table, "drop", forgets)


def a_wait_that_ends_is_not_journaled() -> AbstractContextManager[object]:
    """The engine is not told that something has changed."""
    end_wait = Table.end_wait

    def silent_end(self: Table, request: Request) -> None:
        before = self.revision
        end_wait(self, request)
        self.revision = before

    return patch.object(Table, "end_wait", silent_end)


BUGS: Final[dict[str, Bug]] = {
    bug.__name__: bug
    for bug in (
        readers_pass_writers,
        one_permit_too_many,
        withdrawn_and_nobody_told,
        joint_grant_leaves_permits,
        no_detection,
        detection_without_joint_waiters,
        every_circle_is_a_deadlock,
        nobody_is_put_forward,
        put_forward_too_far,
        upgrade_keeps_its_token,
        upgrade_stands_at_the_end,
        released_at_the_first_return,
        still_exclusive_after_release,
        a_wait_that_ends_is_not_journaled,
    )
}
