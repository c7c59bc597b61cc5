"""Transactions: publishes, acknowledgements, values and places that are carried out together, or not at all.

Theory of operation
    What a transaction shall do is gathered here and told to nobody. ``commit`` sends it as one request with
    an id of its own. The core validates all of it, carries all of it out, and puts it on disk in one commit;
    or refuses, and has done nothing. A connection that breaks meanwhile leaves open which of the two it was:
    then the same request is sent again under the same id, on the next connection, until the core says; it
    carries a transaction out once, and answers as it did before.

Invariants
    A delivery that a transaction acknowledges is settled by nothing else. When it is known that nothing was
    done, the delivery may be settled again.

Not here: waiting (``sync.transactions``, ``aio.transactions``).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from towpath import calls, convert, queues, wire
from towpath.calls import Call
from towpath.consuming import ConsumerBase
from towpath.errors import ConnectionLost, InvalidArgument, LimitExceeded, Timeout, TowpathError, Unavailable
from towpath.locks.model import Fence
from towpath.model import Headers
from towpath.names import check_name
from towpath.queues import Delivery
from towpath.remote.outbox import parsed_headers
from towpath.v1.channels_pb2 import CommitTransactionRequest, CommitTransactionResponse, PublishRequest
from towpath.v1.queues_pb2 import SettleRequest
from towpath.v1.store_pb2 import SavePlaceRequest
from towpath.v1.values_pb2 import DeleteValueRequest, SetValueRequest
from towpath.waiting import Buffer

TIMEOUT_S: Final = 30.0
"""How long a commit goes on asking what became of it, unless told otherwise."""
ATTEMPT_S: Final = 10.0
"""How long one attempt waits for its answer."""
REQUEST_BYTES_MAX: Final = wire.REQUEST_BYTES_MAX - 4_096
"""All of a transaction travels in one request."""

NOT_KNOWN: Final = (ConnectionLost, Timeout, Unavailable)
"""Errors after which the same transaction is asked for again."""


@dataclass(frozen=True, slots=True)
class Published:
    """What became of one publish of a transaction.

    Attributes:
        first_seq: the first new message's; the others follow.
        count: how many are new.
        duplicates: how many were not, by their message ids.
    """

    first_seq: int
    count: int
    duplicates: int


@dataclass(frozen=True, slots=True)
class Committed:
    """What a transaction did.

    Attributes:
        published: one for each publish, in order.
        versions: of each value that was set, in order.
        deletions: the version of each value that was deleted, in order.
        is_repeated: the core had carried it out before, and the answer had been lost.
    """

    published: tuple[Published, ...]
    versions: tuple[int, ...]
    deletions: tuple[int, ...]
    is_repeated: bool


class TransactionBase:
    """All of a transaction but the waiting.

    Attributes:
        id: of this transaction; the core knows it by that.
        result: what it did, once it is committed; else None.
    """

    def __init__(self, timeout: float | None) -> None:
        self.id = uuid.uuid4().hex
        self.result: Committed | None = None
        self._timeout = timeout
        self._request = CommitTransactionRequest(transaction=self.id)
        self._settlements: dict[int, SettleRequest] = {}
        self._deliveries: list[Delivery] = []
        self._is_over = False

    def publish(
        self,
        channel: str,
        data: Buffer,
        *,
        headers: Headers | None = None,
        headers_raw: bytes | None = None,
    ) -> None:
        """Publish a message on a durable topic or queue, when all is committed.

        Args:
            data: any bytes-like object; copied here.
            headers: what travels beside it; ``headers_raw`` the same, already serialized.

        Raises:
            InvalidName, InvalidArgument: nothing was added.
        """
        self.publish_many(channel, [data], headers=headers, headers_raw=headers_raw)

    def publish_many(
        self,
        channel: str,
        payloads: Sequence[Buffer],
        *,
        headers: Headers | Sequence[Headers | None] | None = None,
        headers_raw: bytes | Sequence[bytes] | None = None,
    ) -> None:
        """Publish a batch, in order; see :meth:`publish`. Headers are one for all, or one per payload."""
        self._check()
        if not payloads:
            return
        column = parsed_headers(calls.headers_column(len(payloads), headers, headers_raw))
        if column is not None and not isinstance(column, list):
            column = [column] * len(payloads)
        self._request.publishes.append(
            PublishRequest(
                channel=check_name(channel), payloads=[bytes(each) for each in payloads], headers=column
            )
        )

    def ack(self, deliveries: Delivery | Iterable[Delivery]) -> None:
        """Acknowledge deliveries of durable queues.

        Raises:
            DeliveryLost, InvalidArgument: as for :meth:`towpath.Consumer.ack`; none is acknowledged.
        """
        self._check()
        by_consumer: dict[ConsumerBase, list[Delivery]] = {}
        for delivery in queues.as_deliveries(deliveries):
            owner = delivery._batch.owner
            assert isinstance(owner, ConsumerBase)
            by_consumer.setdefault(owner, []).append(delivery)
        for consumer, theirs in by_consumer.items():
            claimed = consumer.claim(theirs)
            self._deliveries += theirs
            if claimed.consumer in self._settlements:
                self._settlements[claimed.consumer].MergeFrom(claimed)
            else:
                self._settlements[claimed.consumer] = claimed

    def set(
        self,
        name: str,
        payload: Buffer,
        *,
        headers: Headers | None = None,
        if_version: int | None = None,
    ) -> None:
        """Set the value of a durable state channel.

        Args:
            if_version: only if this is its version, else the whole transaction is refused with
                VersionConflict; 0: only if nothing was ever set.
        """
        self._check()
        raw = convert.headers_to_proto(headers) if headers else None
        self._request.values.append(
            SetValueRequest(
                channel=check_name(name), payload=bytes(payload), headers=raw, if_version=if_version
            )
        )

    def delete(self, name: str, *, if_version: int | None = None) -> None:
        """Delete the value of a durable state channel; ``if_version`` as for ``set``."""
        self._check()
        self._request.deletions.append(DeleteValueRequest(channel=check_name(name), if_version=if_version))

    def fence(self, fence: Fence) -> None:
        """Carry it out only if a lock is held by this token then; else it is refused with Fenced.

        Args:
            fence: ``guard.fence``; several may be given.
        """
        self._check()
        self._request.fences.add(lock=fence.lock, token=fence.token)

    def save_place(self, channel: str, name: str, seq: int) -> None:
        """Note that the named subscription of a durable topic has dealt with everything before ``seq``."""
        self._check()
        self._request.places.append(SavePlaceRequest(channel=check_name(channel), name=name, seq=seq))

    def abort(self) -> None:
        """Do nothing of it; nobody was told. What it had acknowledged may be settled otherwise."""
        if not self._is_over:
            self._is_over = True
            queues.release(self._deliveries)

    # ---- for the shells ----

    def _check(self) -> None:
        if self._is_over:
            raise InvalidArgument("the transaction is over", hint="begin another: client.transaction()")

    def _begin_commit(self) -> Call[CommitTransactionResponse] | None:
        """Return what to ask; None where there is nothing to do.

        Raises:
            LimitExceeded: it is too large for one request.
        """
        self._check()
        self._request.settlements.extend(self._settlements.values())
        size = self._request.ByteSize()
        if size > REQUEST_BYTES_MAX:
            self.abort()
            raise LimitExceeded(
                f"a transaction of {size} bytes; at most {REQUEST_BYTES_MAX} are possible",
                hint="nothing of it was done: make it smaller",
            )
        self._is_over = True
        parts = ("publishes", "settlements", "values", "deletions", "places")
        if not any(getattr(self._request, part) for part in parts):
            return None
        return Call(
            "commit_transaction_request", self._request, "commit_transaction_response", lambda body: body
        )

    def _committed(self, response: CommitTransactionResponse | None) -> Committed:
        response = response or CommitTransactionResponse()
        self.result = Committed(
            tuple(Published(each.first_seq, each.count, each.duplicates) for each in response.published),
            tuple(each.version for each in response.values),
            tuple(each.version for each in response.deletions),
            response.is_repeated,
        )
        return self.result

    def _refused(self, error: TowpathError) -> TowpathError:
        """It is known that nothing was done."""
        queues.release(self._deliveries)
        return error

    def _not_known(self, error: TowpathError) -> TowpathError:
        return ConnectionLost(
            f"it is not known whether transaction {self.id} was committed: {error.message}",
            hint="if it was not, what it acknowledged comes again",
        )
