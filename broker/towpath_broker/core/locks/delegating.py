"""Locks that are given out to a lock page in shared memory, and taken back.

Theory of operation
    While a lock is given out, the machine knows only that: to whose page, and which tokens are given there.
    Whatever is to be judged about it has it taken back first (the engine sees to that), and ``Recall`` says
    how it stood: who had it, alone or shared, who waited in which order, how many tokens were used. That
    becomes ordinary grants and an ordinary queue, and is in the journal; so the same log leads to the same
    state, although it does not have what happened in the page.

    A grant from the page is a request with a number that follows from its token (:func:`page_request`), so
    the session that has it and the core call it the same without ever having talked about it.

    If the core has granted the lock, or has a queue for it, when it is given out, that comes first: the page
    begins when the last of them is through. For them tokens are kept below those of the page. Where the core
    has granted it only shared, others may have it shared in the page meanwhile.

Invariants
    Tokens of a lock grow, over the page and back. What is found in a page is not trusted: what cannot be is
    as if it had not been there.

Not here: the page (``towpath_broker.local.lock_pages``, ``clients/c/towpath_lock.h``).
"""

from __future__ import annotations

from typing import Final

from towpath.errors import LockConflict, LockInUse

from . import acquiring
from . import commands as c
from . import effects as e
from .commands import Policy
from .grants import HELD, Claim, Delegation, Lock, Owner, Request, Session
from .modes import EXCLUSIVE, SHARED
from .queue import advance
from .table import Table

TOKENS: Final = 1 << 24
"""In the range of one delegation."""
_PAGE: Final = 1 << 62


def page_request(token: int) -> int:
    """Return the number of the request that a grant of a page is."""
    return _PAGE | token


def is_page_request(number: int) -> bool:
    """Whether a request's number is that of a grant which was made in a page."""
    return number & _PAGE != 0


def delegate(table: Table, command: c.Delegate) -> None:
    """Give a lock out to the page of a session's principal.

    Raises:
        SessionLost, InvalidName, LimitExceeded: it cannot be.
        LockConflict: the lock is of a kind that the core keeps.
        LockInUse: it is given out already, or who has it took it in a page, or nothing is granted yet.
    """
    session = table.session(command.session)
    lock = table.locks.get(command.name)
    if lock is None:
        lock = table.lock(command.name)
    if lock.space.policy is not Policy.DETECT or lock.capacity or lock.data is not None or lock.conditions:
        raise LockConflict(f"{lock.name!r} is of a kind that is not given out")
    # Who took it in a page looks there for whether it still has it, until it has given it back.
    is_adopted = any(is_page_request(claim.request.number) for claim in lock.holders)
    if lock.page is not None or table.settled_at_ns or is_adopted:
        raise LockInUse(f"{lock.name!r} cannot be given out now")
    table.revision += 1
    first = table.next_token
    waiting = len(lock.queue or ())
    base = first + waiting
    table.next_token = base + TOKENS
    assert table.next_token <= table.tokens_end, "the engine has not applied LockMachine.reservation()"
    table.locks[lock.name] = lock
    lock.page = Delegation(session.principal, command.slot, base, first, is_drained=not lock.is_used)
    is_shared = lock.is_used and not lock.queue and lock.exclusive is None
    table.effects.append(
        e.Delegated(command.reference, lock.name, command.slot, base, lock.is_used, is_shared)
    )


def recall(table: Table, command: c.Recall) -> None:
    """Take a lock back, as it was found in the page."""
    lock = table.locks.get(command.name)
    if lock is None or lock.page is None:
        return
    table.revision += 1
    page, lock.page = lock.page, None
    token = page.base + max(0, min(command.used, TOKENS - 1))
    newest = max(lock.token, token)
    holder = command.holder
    if holder is not None and not lock.holders and token > page.base:
        _adopt(table, lock, page, holder, token, EXCLUSIVE)
    last = page.base
    for reader in command.readers:
        its = page.base + reader.used
        if lock.exclusive is None and last < its <= token:
            _adopt(table, lock, page, reader, its, SHARED)
            last = its
    lock.token = newest
    for waiter in command.waiters:
        _take_over(table, lock, page, waiter)
    advance(table, lock)


def forget(table: Table, lock: Lock) -> None:
    """The page of a lock is gone, and all that was in it."""
    if lock.page is not None:
        lock.token = max(lock.token, lock.page.base + TOKENS - 1)
        lock.page = None
        table.tidy(lock)


def _adopt(
    table: Table, lock: Lock, page: Delegation, holder: c.PageHolder | c.PageReader, token: int, mode: int
) -> None:
    """A grant that was made in the page."""
    found = _owner_of(table, page, holder.session, holder.owner)
    number = page_request(token)
    if found is None or number in found[0].requests:
        return
    session, owner = found
    request = Request(session, owner, number)
    since_ns = min(table.now_ns, max(0, holder.since_ns))
    request.since_ns = since_ns
    request.state = HELD
    claim = Claim(lock, owner, request, mode, 1)
    request.claims.append(claim)
    table.keep(request)
    table.hold_by(claim, token, since_ns)
    grants = table.grants_of(request)
    table.effects.append(e.Granted(session.id, number, grants, owner=owner.number, is_found=True))


def _take_over(table: Table, lock: Lock, page: Delegation, waiter: c.PageWaiter) -> None:
    """Somebody who waited in the page."""
    found = _owner_of(table, page, waiter.session, waiter.owner)
    if found is None or waiter.request in found[0].requests:
        return
    # Who waits in a page has nothing and asks for nothing. If it seems to here, what it has said since is on
    # its way, by a slower road than the page; its request comes after that.
    if not 0 < waiter.request < _PAGE or found[1].busy is not None or found[1].grants:
        return
    request = Request(*found, waiter.request)
    request.claims.append(Claim(lock, found[1], request, EXCLUSIVE, 1))
    request.since_ns = table.now_ns
    table.keep(request)
    acquiring.wait_again(table, request, waiter.timeout_ms)


def _owner_of(table: Table, page: Delegation, session: int, owner: int) -> tuple[Session, Owner] | None:
    found = table.sessions.get(session)
    if found is None or found.principal != page.principal or not 0 <= owner < _PAGE:
        return None
    return found, table.owner(found, owner)
