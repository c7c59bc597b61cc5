"""What gateways pass on to the core as it came: the calls of queues, state, places and transactions.

Theory of operation
    The contract is the same on every carrier: what a peer asks is the body of a ``Frame``, and so is what the
    core answers. So a gateway needs no code for each call, only its name. It goes to the core for the
    principal of the gateway's peers, and what the core says goes back; what may be asked, and what is done
    then, is decided there.

    Publishes on a queue or a durable topic are passed on too, in pieces where one frame of the door would not
    hold them, and so are answered when they are on disk. On any other channel they go through a publisher of
    the gateway's own. Which it is, is asked once for each name; while it is, whoever else publishes there
    waits, so that what a peer sends without waiting for answers keeps its order. When the channel has become
    another since, either way still works.

Invariants
    Nothing larger than the door takes in a frame is sent there: it would close the gateway's connection, for
    all its peers. A stream that a peer does not take is bounded by its prefetch, or holds the newest value
    only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any, Final, TypedDict

from google.protobuf.message import Message

from towpath import convert, model, wire
from towpath.aio.api import AsyncSubscription
from towpath.aio.kinds import AsyncKinds
from towpath.aio.messages import LocalAsyncSubscription
from towpath.calls import Call
from towpath.errors import LimitExceeded, MessageTooLarge, TowpathError
from towpath.v1.channels_pb2 import PublishRequest, PublishResponse, Subscribed, SubscribeRequest

CALLS: Final = (
    "settle",
    "get_value",
    "set_value",
    "delete_value",
    "find_stored",
    "save_place",
    "delete_place",
    "list_places",
    "commit_transaction",
)
"""Passed on, and answered once: without ``_request`` and ``_response``."""
STREAMS: Final = ("consume", "watch_value")
"""Passed on, and answered any number of times."""
NEWEST_ONLY: Final = frozenset({"watch_value"})
"""Streams of which a slow peer needs no more than the newest."""
FRAME_BYTES_MAX: Final = wire.REQUEST_BYTES_MAX - 1_024
"""The body of one frame to the door."""
PIECE_BYTES_MAX: Final = 512 << 10
"""One piece of a publish that is passed on, unless a message is larger."""
NAMES_MAX: Final = 4_096
"""Channels whose kind is remembered; beyond, it is asked again."""
FOREVER_S: Final = 1e9
"""A publish on a full queue waits for as long as its peer does."""


def call_of(name: str, body: Any) -> Call[Any]:
    """Return a request as it is passed on.

    Args:
        name: ``settle``.

    Raises:
        LimitExceeded: the door would not take it.
    """
    size = body.ByteSize()
    if size > FRAME_BYTES_MAX:
        raise LimitExceeded(
            f"a {name}_request of {size} bytes; at most {FRAME_BYTES_MAX} are passed on",
            hint="make it smaller",
        )
    return Call(f"{name}_request", body, f"{name}_response", lambda response: response)


async def stream(asker: AsyncKinds, name: str, body: Message) -> AsyncGenerator[Any, None]:
    """Pass a request on that is answered any number of times; yields the answers. Close it when done.

    Raises:
        TowpathError: why there are no more; ConnectionLost when the core is started again.
    """
    call = call_of(name, body)
    answers = Answers(is_newest_only=name in NEWEST_ONLY)
    leave = asker._follow(lambda: call, answers)
    try:
        while True:
            yield await answers.get()
    finally:
        leave()


class Answers:
    """A stream's answers that its peer has not taken, and its end."""

    def __init__(self, *, is_newest_only: bool = False) -> None:
        self._is_newest_only = is_newest_only
        self._items: deque[Any] = deque()
        self._error: TowpathError | None = None
        self._changed = asyncio.Event()

    def came(self, item: Any) -> None:
        if self._is_newest_only:
            self._items.clear()
        self._items.append(item)
        self._changed.set()

    def broke(self, error: TowpathError) -> None:
        self.ended(error)

    def ended(self, error: TowpathError) -> None:
        self._error = self._error or error
        self._changed.set()

    def __len__(self) -> int:
        return len(self._items)

    async def get(self) -> Any:
        """Wait for the next.

        Raises:
            TowpathError: why there are no more.
        """
        while not self._items:
            if self._error is not None:
                raise self._error.again()
            self._changed.clear()
            await self._changed.wait()
        return self._items.popleft()


class Beginning(TypedDict):
    """How a peer's subscription begins, as ``AsyncClient.subscribe`` is told."""

    start: model.Start | None
    place: str
    take_over: bool


def beginning(request: SubscribeRequest) -> Beginning:
    """How a peer's subscription begins.

    Raises:
        InvalidArgument: that is no place to begin.
    """
    start = convert.start_from_proto(request.start) if request.HasField("start") else None
    return {"start": start, "place": request.name, "take_over": request.takes_over}


def leave_place(subscription: AsyncSubscription) -> None:
    """A peer's place is where the peer has come to, not how much was sent to it: SavePlace alone moves it."""
    assert isinstance(subscription, LocalAsyncSubscription)
    subscription.leave_place()


def subscribed_to(subscription: AsyncSubscription) -> Subscribed:
    """The first response to a peer that has subscribed."""
    return Subscribed(
        channel=subscription.name, is_stored=subscription.is_stored, next_seq=subscription.next_seq or 0
    )


class _Turn:
    """Those who ask for one channel's kind: asyncio's locks are fair."""

    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class Queues:
    """Publishes on queues and durable topics.

    Args:
        asker: for whom.
    """

    def __init__(self, asker: AsyncKinds) -> None:
        self._asker = asker
        self._is_queue: dict[str, bool] = {}
        self._turns: dict[str, _Turn] = {}

    async def has(self, channel: str) -> bool:
        """Whether a channel is a queue or a durable topic. Those who ask at once go on in their order.

        Raises:
            ChannelNotFound, InvalidName: there is no such channel.
        """
        known = self._is_queue.get(channel)
        if known is not None and channel not in self._turns:
            return known
        turn = self._turns.setdefault(channel, _Turn())
        turn.users += 1
        try:
            async with turn.lock:
                known = self._is_queue.get(channel)
                return await self._ask(channel) if known is None else known
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[channel]

    async def _ask(self, channel: str) -> bool:
        info = await self._asker.channel_info(channel)
        if len(self._is_queue) >= NAMES_MAX:
            self._is_queue.clear()
        known = self._is_queue[channel] = info.kind == "queue" or info.durable
        return known

    async def publish(self, request: PublishRequest, timeout_s: float | None) -> PublishResponse:
        """Publish a batch; returns what the core says of all of it.

        Args:
            request: checked.
            timeout_s: how long the peer waits; None for ever.

        Raises:
            MessageTooLarge: one message is larger than the door takes; those before it may be published.
            TowpathError: the queue refused; of a batch in several pieces the first may be published.
        """
        whole: PublishResponse | None = None
        for piece in _pieces(request):
            if (size := piece.ByteSize()) > FRAME_BYTES_MAX:
                raise MessageTooLarge(
                    f"a message of {size} bytes; at most {FRAME_BYTES_MAX} are stored from afar",
                    hint="keep large things elsewhere, and publish where they are",
                )
            call = call_of("publish", piece)
            response = await self._asker.pass_on(call, timeout=FOREVER_S if timeout_s is None else timeout_s)
            if whole is None:
                whole = response
            else:
                whole.count += response.count
                whole.duplicates += response.duplicates
        assert whole is not None
        return whole


def _pieces(request: PublishRequest) -> list[PublishRequest]:
    """Cut a batch into requests of about ``PIECE_BYTES_MAX``."""
    if request.ByteSize() <= PIECE_BYTES_MAX:
        return [request]
    pieces: list[PublishRequest] = []
    size = PIECE_BYTES_MAX
    for index, payload in enumerate(request.payloads):
        more = len(payload) + (request.headers[index].ByteSize() if request.headers else 0) + 16
        if size + more > PIECE_BYTES_MAX:
            fence = request.fence if request.HasField("fence") else None
            pieces.append(PublishRequest(channel=request.channel, fence=fence))
            size = 0
        pieces[-1].payloads.append(payload)
        if request.headers:
            pieces[-1].headers.append(request.headers[index])
        size += more
    return pieces
