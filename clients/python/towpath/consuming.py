"""What the two consumers have in common: all but the waiting.

Theory of operation
    :class:`towpath.queues.ConsumerState` knows what to say and when; here it is said, through the client's
    port (``asking``). The client tells what comes in a thread of its own, so everything is done under
    ``_lock``, which the asyncio consumer does not need and leaves empty. Nothing is asked while the lock is
    held: the client has a lock too, and tells us things under it.

Invariants
    One settlement is on its way at a time, and whoever had it answered sends the next.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

from towpath import outcomes, queues
from towpath.asking import Asking
from towpath.errors import ConnectionLost, TowpathError
from towpath.queues import Delivery
from towpath.v1.queues_pb2 import ConsumeResponse, SettleRequest, SettleResponse


class ConsumerBase:
    """A consumer of a queue.

    Attributes:
        name: the queue's.
        prefetch: how many deliveries it may have unsettled.
    """

    def __init__(self, asking: Asking, name: str, prefetch: int, lock: AbstractContextManager[Any]) -> None:
        self.name = name
        self.prefetch = prefetch
        self._asking = asking
        self._lock = lock
        self._state = queues.ConsumerState(self, name, prefetch)
        self._state.request()  # what is wrong with it is told now
        self._closed = False

    @property
    def lost(self) -> int:
        """Deliveries that were not settled in time, or of which that is not known, so far. They are not lost
        in the queue: others get them.
        """
        return self._state.lost

    @property
    def ack_ms(self) -> int:
        """How long a delivery may stay unsettled before it goes back."""
        return self._state.ack_ms

    @abstractmethod
    def _wake(self) -> None:
        """Something has changed; the lock is held."""

    # ---- settling ----

    def ack(self, deliveries: Delivery | Iterable[Delivery]) -> None:
        """They are done, and leave the queue. Said in the background, and together with others where there
        are many: ``flush`` waits until it is confirmed.

        Raises:
            DeliveryLost: the connection broke since one of them came, so that it went back into the queue;
                none is acknowledged.
            InvalidArgument: one of them is another consumer's, or was settled before.
        """
        self._check()
        with self._lock:
            self._state.acknowledge(queues.as_deliveries(deliveries))
        self._push()

    def nack(
        self,
        deliveries: Delivery | Iterable[Delivery],
        *,
        delay: float = 0.0,
        reject: bool = False,
        reason: str = "",
    ) -> None:
        """They are not done, and go back into the queue, to whoever is next.

        Args:
            delay: seconds until then, at most a day.
            reject: do not try again: to the dead-letter channel at once, or away where there is none.
            reason: for people, at most 1,024 bytes; a dead letter carries it.

        Raises:
            DeliveryLost, InvalidArgument: as for ``ack``.
        """
        self._check()
        with self._lock:
            self._state.give_back(
                queues.as_deliveries(deliveries), queues.span_ms(delay), reason, is_rejected=reject
            )
        self._push()

    def extend(self, deliveries: Delivery | Iterable[Delivery], seconds: float | None = None) -> None:
        """They take longer: their deadline is set anew.

        Args:
            seconds: from now on, at most a day; None for the queue's own ``ack_ms``.

        Raises:
            DeliveryLost, InvalidArgument: as for ``ack``.
        """
        self._check()
        with self._lock:
            span_ms = 0 if seconds is None else max(queues.span_ms(seconds), 1)
            self._state.extend(queues.as_deliveries(deliveries), span_ms)
        self._push()

    def claim(self, deliveries: Iterable[Delivery]) -> SettleRequest:
        """Settle deliveries for a transaction that acknowledges them; nobody is told.

        Raises:
            DeliveryLost, InvalidArgument: as for ``ack``.
        """
        self._check()
        with self._lock:
            return self._state.claim_for_transaction(deliveries)

    def _check(self) -> None:
        self._asking._check_not_forked()
        if self._closed:
            raise ConnectionLost(
                "the consumer is closed", hint="what was not settled went back into the queue"
            )

    def _push(self, *, is_retry: bool = False) -> None:
        """Say what is to be said, unless something is on its way."""
        with self._lock:
            request = self._state.next_settlement(is_retry=is_retry)
        if request is not None:
            self._post(request)

    def _post(self, request: SettleRequest) -> None:
        if self._asking._post(queues.settle(request), self._answered) is None:
            self._answered(outcomes.not_connected())

    def _answered(self, outcome: SettleResponse | TowpathError) -> None:
        with self._lock:
            self._state.answered(outcome)
            request = self._state.next_settlement()
            self._wake()
        if request is not None:
            self._post(request)

    # ---- what the stream tells ----

    def came(self, item: ConsumeResponse) -> None:
        """As :meth:`towpath.asking.Listener.came`."""
        with self._lock:
            self._state.came(item)
            self._wake()

    def broke(self, error: TowpathError) -> None:
        """As :meth:`towpath.asking.Listener.broke`."""
        with self._lock:
            self._state.broke(error)
            self._wake()

    def ended(self, error: TowpathError) -> None:
        """As :meth:`towpath.asking.Listener.ended`."""
        with self._lock:
            self._state.end(error)
            self._wake()

    def _raise_trouble(self) -> None:
        """Raise what went wrong with settling since it was last asked; the lock is held."""
        trouble = self._state.take_trouble()
        if trouble is not None:
            raise trouble
