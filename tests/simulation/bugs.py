"""Bugs to be planted: each is one that a person could write, and the simulation must find.

Each is a context manager that plants it, and gives what makes an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from unittest.mock import patch

from towpath_broker.core.data import commands as c
from towpath_broker.core.data import consumers
from towpath_broker.core.data import effects as e
from towpath_broker.core.data.dedupe import Ids
from towpath_broker.core.data.logs import Log
from towpath_broker.core.data.machine import DataMachine, Outcome
from towpath_broker.core.data.parcels import Lane, Lease
from towpath_broker.core.data.queues import Queue
from towpath_broker.core.data.round import Round
from towpath_broker.core.data.rows import Taken
from towpath_broker.core.data.transactions import Transactions
from towpath_broker.core.data.undo import Undo
from towpath_broker.core.data.values import State
from towpath_broker.core.data.window import Window
from towpath_broker.data_engine import DataEngine

Make = Callable[..., DataEngine]
Bug = Callable[[], AbstractContextManager[Make]]


@contextmanager
def settled_before_the_commit() -> Iterator[Make]:
    """That a message is done is told before it is on disk."""
    apply = DataMachine.apply

    class Early(DataEngine):
        async def _durable_round(self, commands: Sequence[c.DataCommand]) -> None:
            machine = self._durable.machine

            def hasty(given: Sequence[c.DataCommand], now_ns: int) -> Outcome:
                outcome = apply(machine, given, now_ns)
                told = [
                    effect
                    for effect in outcome.effects
                    if isinstance(effect, e.Reply) and isinstance(effect.body, e.Settled)
                ]
                for effect in told:
                    self._carry_out(effect)
                return Outcome(outcome.rows, [effect for effect in outcome.effects if effect not in told])

            with patch.object(machine, "apply", hasty):
                await super()._durable_round(commands)

    yield Early


@contextmanager
def lost_redelivery() -> Iterator[Make]:
    """What was not settled in time does not go back."""
    give_back = Queue._give_back

    def forgets(self: Queue, *arguments: Any) -> None:
        if arguments[-1] != "not settled in time":
            give_back(self, *arguments)

    with patch.object(Queue, "_give_back", forgets):
        yield DataEngine


@contextmanager
def version_not_checked() -> Iterator[Make]:
    """Compare-and-set sets without comparing."""
    with patch.object(State, "_check_version", lambda self, expected: None):
        yield DataEngine


@contextmanager
def _deadline(factor: float) -> Iterator[Make]:
    make: Callable[..., None] = Lease.__init__

    def wrong(self: Lease, *arguments: Any) -> None:
        *others, deadline_ns = arguments
        make(self, *others, deadline_ns + int(factor * 400_000_000))

    with patch.object(Lease, "__init__", wrong):
        yield DataEngine


@contextmanager
def dedupe_forgotten() -> Iterator[Make]:
    """After a restart nobody remembers message ids."""

    def forgets(self: Ids, ids: object, round_: Round) -> None:
        self.is_loaded = True

    with patch.object(Ids, "load", forgets):
        yield DataEngine


@contextmanager
def half_a_transaction() -> Iterator[Make]:
    """A command that is refused half-way keeps what it had done."""
    with patch.object(Round, "roll_back", lambda self, mark: None):
        yield DataEngine


@contextmanager
def round_not_undone() -> Iterator[Make]:
    """When the disk is full clients are refused, and the machine goes on as if it had not been."""

    def keeps(self: DataMachine) -> None:
        assert self._round is not None
        self._round = None

    with patch.object(DataMachine, "undo", keeps):
        yield DataEngine


@contextmanager
def lease_left_behind() -> Iterator[Make]:
    """A delivery of a round that was undone still has its deadline. (We once had this one.)"""
    with patch.object(consumers, "_take_back", lambda leases, at: leases.pop(at)):
        yield DataEngine


@contextmanager
def taken_not_kept() -> Iterator[Make]:
    """How far rings were taken in is not stored."""
    take_in = Log.take_in

    def forgets(self: Log, command: c.TakeIn, round_: Round) -> None:
        take_in(self, command, round_)
        round_.rows[:] = [row for row in round_.rows if not isinstance(row, Taken)]

    with patch.object(Log, "take_in", forgets):
        yield DataEngine


@contextmanager
def transaction_forgotten() -> Iterator[Make]:
    """A transaction that is asked for again is carried out again."""
    with patch.object(Transactions, "find", lambda self, principal, transaction, now_ns: None):
        yield DataEngine


@contextmanager
def window_closed_too_soon() -> Iterator[Make]:
    """Once some parcels were read from the store, the rest are forgotten."""

    def forgets(lane: Lane, command: c.ParcelsLoaded, undo: Undo) -> None:
        undo.set(lane, "is_loading", False)
        undo.set(lane, "spill_seq", None)

    with patch.object(Window, "_move_on", staticmethod(forgets)):
        yield DataEngine


BUGS: Final[dict[str, Bug]] = {
    "settled_before_the_commit": settled_before_the_commit,
    "lost_redelivery": lost_redelivery,
    "version_not_checked": version_not_checked,
    "deadline_too_late": lambda: _deadline(20.0),
    "deadline_too_early": lambda: _deadline(-0.7),
    "dedupe_forgotten": dedupe_forgotten,
    "half_a_transaction": half_a_transaction,
    "round_not_undone": round_not_undone,
    "lease_left_behind": lease_left_behind,
    "taken_not_kept": taken_not_kept,
    "transaction_forgotten": transaction_forgotten,
    "window_closed_too_soon": window_closed_too_soon,
}
