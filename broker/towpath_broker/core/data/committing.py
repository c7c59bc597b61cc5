"""A transaction: its parts one after the other, of which the first that is refused takes the others with it.

Not here: that nothing is left of what was refused (the round's undo, ``machine``), which transactions are
remembered (``transactions``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from towpath.errors import InvalidArgument, NotSupported
from towpath_broker.core.commands import Kind
from towpath_broker.core.roles import wrong_kind

from . import commands as c
from . import effects as e
from .holdings import Holdings
from .logs import Log
from .publishing import columns_of
from .queues import Queue
from .round import Round
from .shared import Shared, reply
from .transactions import TRANSACTION_BYTES_MAX, Transactions

PARTS_MAX: Final = 1024
"""Parts of one transaction."""


class SettleNow(Protocol):
    """Settles, or refuses."""

    def __call__(self, command: c.Settle, round_: Round, *, must_have_all: bool) -> e.Settled: ...


class Committing:
    """The transactions of one machine.

    Args:
        settle: refuses what is not all had.
        check_fences: refuses what is written on behalf of a lock that is not held.
    """

    def __init__(
        self,
        channels: Holdings,
        shared: Shared,
        settle: SettleNow,
        check_fences: Callable[[Sequence[c.Fence]], None],
    ) -> None:
        self._channels = channels
        self._shared = shared
        self._settle = settle
        self._check_fences = check_fences
        self.known = Transactions(is_loaded=True)

    def commit(self, command: c.CommitTransaction, round_: Round) -> None:
        """Carry one out; or answer it as the first time, if it is remembered.

        Raises:
            TowpathError: a part is refused, or the whole. What was done before that is to be rolled back.
        """
        self._check(command)
        principal, transaction = command.caller.principal, command.transaction
        if transaction:
            known = self.known.find(principal, transaction, round_.now_ns)
            if known is not None:
                reply(round_, command.caller, known)
                return
        for fences in _fences(command):
            self._check_fences(fences)
        # Settling first makes room for what is published.
        for settlement in command.settlements:
            self._settle(settlement, round_, must_have_all=True)
        committed = e.Committed(
            tuple(self._publish(publish, round_) for publish in command.publishes),
            tuple(self._channels.state(each.channel).set(each, round_) for each in command.values),
            tuple(self._channels.state(each.channel).delete(each, round_) for each in command.deletions),
        )
        for place in command.places:
            self._channels.log(place.channel).save_place(place, round_)
        if transaction:
            limit = self._shared.limits.transactions_remembered_max
            self.known.add(principal, transaction, committed, limit, round_)
        reply(round_, command.caller, committed)

    def _check(self, command: c.CommitTransaction) -> None:
        if not self._shared.is_durable:
            raise NotSupported(
                "a transaction is of durable channels alone", hint="declare them with durable=true"
            )
        if len(command.transaction.encode(errors="replace")) > TRANSACTION_BYTES_MAX:
            raise InvalidArgument(f"a transaction's id has at most {TRANSACTION_BYTES_MAX} bytes")
        kinds = (command.publishes, command.settlements, command.values, command.deletions, command.places)
        parts = sum(map(len, kinds))
        if not 1 <= parts <= PARTS_MAX:
            raise InvalidArgument(f"a transaction of {parts} parts; 1 to {PARTS_MAX} are allowed")

    def _publish(self, command: c.Publish, round_: Round) -> e.Published:
        channel = self._channels.require(command.channel)
        match channel:
            case Queue():  # a transaction does not wait for room
                return channel.intake.publish_now(command, columns_of(command, round_.now_ns), round_)
            case Log():
                return channel.publish(command, round_)
            case _:
                raise wrong_kind(command.channel, Kind.STATE, "and takes no publisher")


def _fences(command: c.CommitTransaction) -> Iterator[Sequence[c.Fence]]:
    """Yield those of the whole, and of each part."""
    yield command.fences
    for publish in command.publishes:
        yield publish.fences
    for value in command.values:
        yield value.fences
    for deletion in command.deletions:
        yield deletion.fences
