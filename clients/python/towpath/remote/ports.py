"""What a carrier offers: the port between ``towpath.remote`` and its carriers.

Theory of operation
    A :class:`Carrier` opens a :class:`Connection`. When that breaks, everything that came from it raises
    ConnectionLost, and it is of no further use; the session opens another.

Invariants
    All methods are called from one event loop. Whatever a carrier raises is a TowpathError. A stream that was
    closed is not used any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from towpath.calls import Call
from towpath.errors import Cancelled, TowpathError
from towpath.v1.channels_pb2 import Subscribed, SubscribeRequest
from towpath.v1.message_pb2 import Headers, MessageBatch
from towpath.v1.registry_pb2 import WatchResponse

T = TypeVar("T")


T_co = TypeVar("T_co", covariant=True)


class Ended(Cancelled):
    """A call that has any number of answers ended well: there are no more."""


class Answers(Protocol[T_co]):
    """A call that has any number of answers, on one connection."""

    async def receive(self) -> T_co:
        """Wait for the next answer.

        Raises:
            Ended: there are no more.
            TowpathError: there will be none.
        """

    def more(self, body: Any) -> None:
        """Say that more may come, where the carrier has no flow control of its own."""

    def close(self) -> None:
        """Leave."""


class Exchange(Answers[T_co], Protocol):
    """A call that has any number of requests and of answers, on one connection."""

    async def send(self, body: Any) -> None:
        """Send one more request.

        Raises:
            TowpathError: the call has ended.
        """


class Batches(Protocol):
    """A subscription on one connection.

    Attributes:
        subscribed: the first response.
    """

    @property
    def subscribed(self) -> Subscribed: ...

    async def receive(self) -> MessageBatch:
        """Wait for the next batch.

        Raises:
            TowpathError: the subscription has ended.
        """

    def holding(self, count: int) -> None:
        """Say how many messages are held for the program at this moment. To be said once when the
        subscription begins, and whenever they are fewer than those that came account for: when the program
        has taken some, or some were dropped.
        """

    async def close(self) -> None:
        """Leave. Returns, as far as that can be known, when the gateway has left the channel too."""


class Changes(Protocol):
    """A watch on one connection."""

    async def receive(self) -> WatchResponse:
        """Wait for the next change.

        Raises:
            TowpathError: the watch has ended.
        """

    def close(self) -> None:
        """Leave."""


class Acknowledgement(Protocol):
    """What is told of a batch that is published; ``PublishResponse``, for one."""

    @property
    def source(self) -> int: ...

    @property
    def first_seq(self) -> int: ...

    @property
    def count(self) -> int: ...

    @property
    def duplicates(self) -> int: ...


class Publication(Protocol):
    """A place from which batches are published on one channel, one after the other."""

    async def publish(self, payloads: Sequence[bytes], headers: Sequence[Headers] | None) -> Acknowledgement:
        """Publish a batch and wait for its acknowledgement.

        Args:
            payloads: at least one, together within ``Carrier.batch_bytes_max`` unless it is one alone.
            headers: None, or one for each.

        Returns:
            The source, the first new message's seq (the others follow contiguously), and how many are new and
            how many are not.

        Raises:
            ConnectionLost: it is not known whether any of it was published.
            TowpathError: why it was not; the publication is of no further use.
        """

    async def close(self) -> None:
        """Leave the channel."""


class Connection(Protocol):
    """A connection to a gateway.

    Attributes:
        principal: for whom the gateway acts, as far as it says so.
        is_lost: whether it has broken.
    """

    @property
    def principal(self) -> str: ...

    @property
    def is_lost(self) -> bool: ...

    async def ask(self, call: Call[T], timeout_s: float | None) -> T:
        """Carry out a call that has one answer.

        Raises:
            Timeout: no answer came in time.
            ConnectionLost: it is not known whether the call was carried out.
            TowpathError: what the daemon refused with.
        """

    async def subscribe(self, request: SubscribeRequest, held: int) -> Batches:
        """Subscribe; nothing published after this returned is missed.

        Args:
            request: without ``credit``, which is set here where the carrier needs it.
            held: messages of it that the program has not taken yet. Those that it takes meanwhile are
                accounted for by the first :meth:`Batches.holding`.
        """

    def publication(self, channel: str) -> Publication:
        """Make a place to publish from; asks nobody until it is used."""

    async def open_stream(self, call: Call[T]) -> Answers[T]:
        """Begin a call that has any number of answers."""

    async def open_exchange(self, call: Call[T]) -> Exchange[T]:
        """Begin a call that has any number of requests, of which ``call`` has the first."""

    async def watch(self) -> Changes:
        """Follow the registry: its state, ``current``, then the changes."""

    async def wait_lost(self) -> TowpathError:
        """Wait until the connection has broken; return why."""

    async def close(self) -> None:
        """Close it; whatever came from it ends with ConnectionLost."""


class Carrier(Protocol):
    """A way to reach a gateway.

    Attributes:
        message_bytes_max: payload and headers of the largest message that can be published this way.
    """

    @property
    def message_bytes_max(self) -> int: ...

    async def open(self, timeout_s: float | None) -> Connection:
        """Connect, once.

        Raises:
            Unavailable: nobody answers there; the message says why.
            TowpathError: who answers refuses.
        """
