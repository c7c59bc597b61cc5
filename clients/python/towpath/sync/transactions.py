"""Transactions, waiting in the caller's thread."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from towpath.errors import TowpathError
from towpath.result import attempt
from towpath.transactions import ATTEMPT_S, NOT_KNOWN, TIMEOUT_S, Committed, TransactionBase
from towpath.waiting import Pauses, deadline_ns, remaining_ns, sooner_ns

if TYPE_CHECKING:
    from towpath.sync.kinds import Kinds


class Transaction(TransactionBase):
    """Publishes, acknowledgements, values and places together: a context manager that commits at its end, and
    does nothing where its body raises.
    """

    def __init__(self, client: Kinds, timeout: float | None = TIMEOUT_S) -> None:
        super().__init__(timeout)
        self._client = client

    def commit(self) -> Committed:
        """Carry it out; at the end of a ``with`` that is done by itself.

        Returns:
            What it did, when that is on disk.

        Raises:
            VersionConflict, DeliveryLost, QueueFull, StoreFull, LimitExceeded, ChannelNotFound,
                InvalidArgument, NotSupported: nothing of it was done.
            ConnectionLost: it is not known whether it was, and it could not be learnt in time.
        """
        call = self._begin_commit()
        if call is None:
            return self._committed(None)
        deadline = deadline_ns(self._timeout)
        pauses = Pauses()
        while True:
            try:
                response = self._client._call(call, sooner_ns(deadline, ATTEMPT_S))
                return self._committed(response)
            except NOT_KNOWN as error:
                if remaining_ns(deadline) == 0 or self._client._is_over:
                    raise self._not_known(error) from None
            except TowpathError as error:
                raise self._refused(error) from None
            time.sleep(pauses.next_s())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abort()
        elif not self._is_over:
            self.commit()

    try_commit = attempt(commit)
