"""Transactions that were committed lately: the same again answers what the first did.

Theory of operation
    A client that lost its connection while it committed does not know what became of it. It asks again under
    the same id. Ids are each principal's own, and remembered for ``WINDOW_MS``; what was answered is kept
    beside them, as JSON, in the same commit as what the transaction did.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from towpath.errors import LimitExceeded

from .effects import Committed, Published
from .round import Round
from .rows import AddTransaction, ForgetTransactions, StoredTransaction

WINDOW_MS: Final = 600_000
"""How long a transaction is remembered."""
WINDOW_NS: Final = WINDOW_MS * 1_000_000
TRANSACTION_BYTES_MAX: Final = 128
"""Bytes of a transaction's id."""


class Transactions:
    """All that are remembered.

    Args:
        is_loaded: nothing is stored that would have to be read first.
    """

    __slots__ = ("_forgotten_ns", "_known", "is_loaded")

    def __init__(self, *, is_loaded: bool) -> None:
        self._known: dict[tuple[str, str], tuple[bytes, int]] = {}
        self._forgotten_ns = 0
        self.is_loaded = is_loaded

    def __len__(self) -> int:
        return len(self._known)

    def load(self, transactions: Sequence[StoredTransaction], round_: Round) -> None:
        """Take what the store has."""
        if not self.is_loaded:
            known = {(each.principal, each.transaction): (each.response, each.at_ns) for each in transactions}
            round_.undo.set(self, "_known", known)
            round_.undo.set(self, "is_loaded", True)

    def find(self, principal: str, transaction: str, now_ns: int) -> Committed | None:
        """Return what a transaction was answered; None: it was not committed, as far as is remembered."""
        known = self._known.get((principal, transaction))
        if known is None or known[1] < now_ns - WINDOW_NS:
            return None
        return _decoded(known[0])

    def add(self, principal: str, transaction: str, committed: Committed, limit: int, round_: Round) -> None:
        """Remember one.

        Raises:
            LimitExceeded: there are too many.
        """
        if len(self._known) >= limit:
            raise LimitExceeded(
                f"{len(self._known)} transactions are remembered: transactions_remembered_max is {limit}",
                hint=f"each is remembered for {WINDOW_MS // 60_000} minutes",
            )
        response = _encoded(committed)
        key = (principal, transaction)
        if key in self._known:  # it was over; the youngest stand last
            round_.undo.remove(self._known, key)
        round_.undo.put(self._known, key, (response, round_.now_ns))
        round_.rows.append(AddTransaction(principal, transaction, response, round_.now_ns))
        before_ns = round_.now_ns - WINDOW_NS
        if before_ns > self._forgotten_ns + WINDOW_NS // 4:
            round_.undo.set(self, "_forgotten_ns", before_ns)
            round_.rows.append(ForgetTransactions(before_ns))

    def prune(self, now_ns: int) -> None:
        """Let go of what is over; between rounds."""
        while self._known:
            oldest = next(iter(self._known))
            if self._known[oldest][1] >= now_ns - WINDOW_NS:
                break
            del self._known[oldest]


def _encoded(committed: Committed) -> bytes:
    return json.dumps(
        {
            "published": [
                [each.channel, each.first_seq, each.count, each.duplicates] for each in committed.published
            ],
            "values": list(committed.values),
            "deletions": list(committed.deletions),
        },
        separators=(",", ":"),
    ).encode()


def _decoded(response: bytes) -> Committed:
    data = json.loads(response)
    return Committed(
        tuple(Published(*each) for each in data["published"]),
        tuple(data["values"]),
        tuple(data["deletions"]),
        is_repeated=True,
    )
