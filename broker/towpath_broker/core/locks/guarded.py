"""A lock that owns its data: the value is given with the grant, and written by who holds the lock.

Theory of operation
    After Rust's ``Mutex<T>``: one gets at the value only by holding the lock. It is written by the holder of
    an exclusive grant, with the release or before it; each write remembers the token of its grant. A write is
    of the request that holds, so one whose grant has ended, however little it knows of that, writes nothing.

    If an exclusive holder that asked for the value ends without a release (its session died, or it was taken
    away), the lock is *poisoned*: what it had begun may be half done. The next holder gets the last value
    that was written, is told, and may release the lock as it is; but it writes only if it says that the value
    is in order again (``is_recovered``), which ends it.

Not here: codecs. The value is bytes.
"""

from __future__ import annotations

from towpath.errors import LimitExceeded, MessageTooLarge, NotHeld, Poisoned, QuotaExceeded

from .commands import EndReason
from .grants import Claim, Request
from .modes import EXCLUSIVE
from .table import Table


def check_write(table: Table, request: Request, value: bytes, *, is_recovered: bool) -> Claim:
    """Return the grant by which a value may be written.

    Raises:
        NotHeld: the request does not hold one lock exclusively.
        Poisoned: and does not say that the value is in order.
        MessageTooLarge, LimitExceeded: the value is too large.
        QuotaExceeded: the principal gave values to as many locks as it may.
    """
    claim = _exclusive_claim(request)
    lock, limits = claim.lock, table.limits
    if len(value) > limits.guarded_bytes_max:
        raise MessageTooLarge(
            f"a value of {len(value)} bytes is too large: guarded_bytes_max is {limits.guarded_bytes_max}",
            hint="keep it in a durable state channel, written with fence=guard",
        )
    principal = request.session.principal
    if lock.data is None and table.values_by_principal.get(principal, 0) >= limits.values_per_principal_max:
        raise QuotaExceeded(f"{principal} gave values to as many locks as it may: values_per_principal_max")
    old = len(lock.data.payload) if lock.data is not None else 0
    if table.data_bytes - old + len(value) > limits.guarded_bytes_total_max:
        raise LimitExceeded("the values of all locks are as large as they may be: guarded_bytes_total_max")
    if lock.data is not None and lock.data.poisoned_by and not is_recovered:
        raise Poisoned(f"a holder of {lock.name!r} ended without releasing it")
    return claim


def write(table: Table, claim: Claim, value: bytes) -> None:
    """Write a value that ``check_write`` let through."""
    lock = claim.lock
    data = lock.data
    if data is None:
        data = table.give_value(lock, claim.request.session.principal)
    table.revision += 1
    table.data_bytes += len(value) - len(data.payload)
    data.payload = value
    data.written_by = claim.token
    data.poisoned_by = 0


def recover(table: Table, request: Request) -> None:
    """The value is in order as it is.

    Raises:
        NotHeld: the request does not hold one lock exclusively.
    """
    data = _exclusive_claim(request).lock.data
    if data is not None and data.poisoned_by:
        table.revision += 1
        data.poisoned_by = 0


def end_of_grant(table: Table, claim: Claim, reason: EndReason) -> None:
    """A grant to a request that asked for the value has ended: poison it if that was in the middle."""
    if claim.mode != EXCLUSIVE or reason in (EndReason.RELEASED, EndReason.CONDITION):
        return
    lock = claim.lock
    data = table.give_value(lock, claim.request.session.principal) if lock.data is None else lock.data
    data.poisoned_by = claim.token


def _exclusive_claim(request: Request) -> Claim:
    if len(request.claims) != 1 or request.claims[0].mode != EXCLUSIVE:
        raise NotHeld("a value is written by who holds its lock, alone and exclusively")
    return request.claims[0]
