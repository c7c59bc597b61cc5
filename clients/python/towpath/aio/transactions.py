"""Transactions, waiting on an event loop."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Self

from towpath.errors import TowpathError
from towpath.result import attempt_async
from towpath.transactions import ATTEMPT_S, NOT_KNOWN, TIMEOUT_S, Committed, TransactionBase
from towpath.waiting import Pauses, deadline_ns, remaining_ns, sooner_ns

if TYPE_CHECKING:
    from towpath.aio.kinds import AsyncKinds


class AsyncTransaction(TransactionBase):
    """Publishes, acknowledgements, values and places together: an asynchronous context manager that commits
    at its end; see :class:`towpath.Transaction`.
    """

    def __init__(self, client: AsyncKinds, timeout: float | None = TIMEOUT_S) -> None:
        super().__init__(timeout)
        self._client = client

    async def commit(self) -> Committed:
        """Carry it out; see :meth:`towpath.Transaction.commit`."""
        call = self._begin_commit()
        if call is None:
            return self._committed(None)
        deadline = deadline_ns(self._timeout)
        pauses = Pauses()
        while True:
            try:
                response = await self._client._call(call, sooner_ns(deadline, ATTEMPT_S))
                return self._committed(response)
            except NOT_KNOWN as error:
                if remaining_ns(deadline) == 0 or self._client._is_over:
                    raise self._not_known(error) from None
            except TowpathError as error:
                raise self._refused(error) from None
            await asyncio.sleep(pauses.next_s())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abort()
        elif not self._is_over:
            await self.commit()

    try_commit = attempt_async(commit)
