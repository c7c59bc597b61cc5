"""Conditions: give up a lock, wait to be notified, take it again.

Theory of operation
    As a monitor's: who holds a lock exclusively finds that it cannot go on, and waits. The lock is released
    and the wait begins at one moment, so no notification falls in between. Who is notified, the longest
    waiting first, stands at the end of the lock's queue like anybody who asks for it, and is granted with a
    new token. So between the notification and the grant others may have had the lock: look again at what was
    waited for.

    When its time runs out a waiter stands in the queue likewise, and is told with the grant.

    A wait has a number of its session's choosing (``ask``). Whoever asks again with it, having lost its
    connection, was notified once: it is told that it waits for the lock, or has it, and waits no second time.

    Who comes back waits for the lock whatever its lock space says of waiting: it must, to come back at all.
    So a condition weakens what a lock space avoids; the detection is there for what comes of that.

    Nobody knows who will notify, so a wait for a condition is in no graph; the wait for the lock afterwards
    is.
"""

from __future__ import annotations

from towpath.errors import InvalidArgument, NotHeld

from . import commands as c
from . import effects as e
from .acquiring import held_request, the_claim, wait_again
from .commands import EndReason
from .grants import HELD, ON_CONDITION, WAITING, Claim, Lock, Request
from .limits import NOTE_CHARS_MAX
from .modes import EXCLUSIVE
from .queue import advance, is_grantable
from .table import Table


def begin(table: Table, command: c.WaitCondition) -> None:
    """Release a lock and wait for a condition.

    Raises:
        TowpathError: it is refused; nothing was changed, and the lock is still held.
    """
    if _has_been_asked(table, command):
        return
    request = held_request(table, command.session, command.request)
    claim = _exclusive(request)
    if request.owner.busy is not None:
        raise InvalidArgument("the owner waits already, with another request")
    if len(command.condition) > NOTE_CHARS_MAX:
        raise InvalidArgument(f"a condition's name may have {NOTE_CHARS_MAX} characters")
    if command.timeout_ms == 0:
        raise InvalidArgument("a wait for a condition that is not to wait makes no sense")
    table.check_wait(request.session)
    lock = claim.lock
    table.drop(claim)
    table.tell_released(request, (claim.told(),), EndReason.CONDITION)
    if lock.conditions is None:
        lock.conditions = {}
    lock.conditions.setdefault(command.condition, {})[request] = None
    request.place = command.condition
    request.ask = command.ask
    table.begin_wait(request, ON_CONDITION, command.timeout_ms)
    table.effects.append(e.Waiting(command.session, command.request))
    advance(table, lock)


def _has_been_asked(table: Table, command: c.WaitCondition) -> bool:
    """Tell how a wait stands, or ended, that was asked for before; return whether it was."""
    session = table.session(command.session)
    request = session.requests.get(command.request)
    if request is None:
        ended = session.end_of(command.request, command.ask)
        if ended is not None:
            table.effects.append(ended)
        return ended is not None
    if request.state != ON_CONDITION and not is_over(request, command):
        return False
    if request.state == HELD:
        grants = table.grants_of(request)
        told = e.Granted(session.id, request.number, grants, request.is_timed_out, request.owner.number)
        table.effects.append(told)
    else:
        table.effects.append(e.Waiting(session.id, request.number))
    return True


def is_over(request: Request, command: c.WaitCondition) -> bool:
    """Whether the wait that a command asks for was notified: what is waited for now, or held, is the lock."""
    return bool(command.ask) and request.ask == command.ask and request.state in (WAITING, HELD)


def notify(table: Table, command: c.NotifyCondition) -> e.Done:
    """Notify those who wait for a condition, and say how many.

    Raises:
        SessionLost, NotHeld, InvalidArgument: the request does not hold the lock exclusively.
    """
    lock = _exclusive(held_request(table, command.session, command.request)).lock
    waiters = (lock.conditions or {}).get(command.condition)
    if not waiters:
        return e.Done(0)
    chosen = tuple(waiters) if command.count <= 0 else tuple(waiters)[: command.count]
    for request in chosen:
        take_again(table, request)
    return e.Done(0, count=len(chosen))


def take_again(table: Table, request: Request, *, is_timed_out: bool = False) -> None:
    """A wait for a condition is over; now the lock is waited for, for as long as it takes."""
    (claim,) = request.claims
    leave(table, request)
    request.is_timed_out = is_timed_out
    renewed = Claim(claim.lock, claim.owner, request, EXCLUSIVE, 1)
    request.claims = [renewed]
    if is_grantable(table, request):
        table.grant(request)
        return
    told = len(table.effects)
    wait_again(table, request)
    # It was told before that it waits; now it does so for the lock.
    if len(table.effects) > told and isinstance(table.effects[told], e.Waiting):
        del table.effects[told]


def leave(table: Table, request: Request) -> None:
    """End a wait for a condition. The lock is to be looked at."""
    lock: Lock = request.claims[0].lock
    assert lock.conditions is not None
    waiters = lock.conditions[request.place]
    del waiters[request]
    if not waiters:
        del lock.conditions[request.place]
    table.end_wait(request)
    request.place = ""


def _exclusive(request: Request) -> Claim:
    claim = the_claim(request)
    if claim.mode != EXCLUSIVE or request.state != HELD:
        raise NotHeld(f"{claim.lock.name!r} is not held exclusively")
    return claim
