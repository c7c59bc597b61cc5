"""What the synchronous client looks like, wherever the daemon is: the classes that programs name.

``towpath.connect`` gives a :class:`Client` of one of two kinds. With the daemon of this host (``client``)
messages travel in shared memory; through a gateway (``towpath.remote``) over ZeroMQ or gRPC. What both do
alike is done here, on the few things that each kind does its own way.

Not here: a channel by name (``channel``), waiting, sockets, rings.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from towpath import loans, model
from towpath._message import Message
from towpath.errors import Cancelled, ConnectionLost, Timeout
from towpath.handles import Handle as Handle
from towpath.loans import HELD_MAX, Loan
from towpath.result import attempt
from towpath.services.api import Services
from towpath.sync.channel import Channel, NamedPublishers
from towpath.sync.kinds import Kinds
from towpath.waiting import RECEIVE_BYTES, RECEIVE_COUNT, Buffer

if TYPE_CHECKING:
    import io
    import socket

    from towpath import pipes
    from towpath.framing import FramingOptions


class Client(Kinds, Services, Handle):
    """A session with a daemon. Made by ``towpath.connect``; use it as a context manager, or close it."""

    _url: str | None = None

    def __init__(self) -> None:
        self._named_publishers = NamedPublishers(self)

    @property
    @abstractmethod
    def is_connected(self) -> bool:
        """Whether the daemon can be asked now."""

    @property
    @abstractmethod
    def session(self) -> int:
        """The session's id; 0 while there is no connection, and always 0 from afar."""

    @property
    @abstractmethod
    def principal(self) -> str:
        """For whom the session acts: ``uid:1000``; empty while that is not known."""

    @abstractmethod
    def watch(self, *, after_revision: int | None = None) -> Watch:
        """Follow the registry: first the state as it stands, then every change. Close it when done.

        Args:
            after_revision: the last revision that is known already: tell only what changed since. Where that
                is too long ago (and from afar always) ``reset`` comes first, and then everything.
        """

    def channel(self, name: str) -> Channel:
        """Return a handle for publishing and subscribing by name; asks nobody until it is used."""
        return Channel(self, name)

    @abstractmethod
    def publisher(self, name: str, *, origin: str = "") -> Publisher:
        """Become a publisher of a channel: a source of its own.

        Args:
            origin: what the messages' origin is, for no echo; the session's own unless given. Only on this
                host.

        Raises:
            ChannelNotFound, LimitExceeded (publishers per channel), QuotaExceeded.
        """

    @abstractmethod
    def subscribe(
        self,
        name: str,
        *,
        exclude_origin: str = "",
        start: model.Start | None = None,
        place: str = "",
        take_over: bool = False,
        held_max: int = HELD_MAX,
    ) -> Subscription:
        """Subscribe: nothing published after this returned is missed.

        Args:
            exclude_origin: sources of this origin are not wanted (no echo). Only on this host.
            start: of a durable topic: where to begin. None: with what is published from now on.
            place: of a durable topic: the name of this subscription, which the daemon remembers: it goes on
                where the one of that name had come to, or, the first time, at ``start``. Whatever was
                received counts as dealt with when the next is received (see ``save_place``). One subscription
                at a time goes by a name.
            take_over: end the one that goes by this name now, should there be one; it gets SubscriptionInUse
                behind what it has in hand (a batch), and saves its place no more. What it had not saved is
                handed out again.
            held_max: how many loaned messages (:meth:`Publisher.loan`) it may hold at a time, 0 to 65,536.
                Their payloads are read-only memoryviews of the publisher's memory, which stays as it is for
                as long as somebody has one; beyond this number, and with 0, they are ``bytes``, copied.

        Raises:
            ChannelNotFound, LimitExceeded (subscribers per channel), QuotaExceeded.
            SubscriptionInUse: another one goes by this name.
            PermissionDenied: and is another user's, so that it cannot be taken over.
            InvalidArgument: ``start`` or ``place``, and it is no durable topic, or a pattern; ``held_max``.
        """

    def open_pipe(self, name: str, mode: pipes.Mode, *, framing: FramingOptions | str = "line") -> io.FileIO:
        """Open one end of a real pipe(7) that has a channel at its other end, to hand to any program.

        A pipe is one-way: with ``w`` what is written is published, with ``r`` what is published (after this
        returned) can be read; of a queue, what is read from the pipe counts as acknowledged once it is in it.
        A process of its own carries between the two, so the pipe outlives this client, and ends when nobody
        has its end open any more. Closing it after writing loses nothing.

        Args:
            name: the channel; with ``r`` it may be a pattern.
            mode: ``r`` or ``w``.
            framing: how messages lie in the pipe: ``line`` (one each, with the newline taken off and put
                on), ``length``, ``netstring``, ``raw``, or any :class:`towpath.framing.FramingOptions`.

        Returns:
            The end, unbuffered; not inherited by subprocesses but those that it is given to (``stdin=``,
            ``stdout=``, ``pass_fds=``).

        Raises:
            ChannelNotFound, PermissionDenied, LimitExceeded, Unavailable, InvalidArgument.
        """
        from towpath import pipes  # with what starts processes, which few programs need

        return pipes.open_pipe(self._url, name, mode, framing=framing)

    def open_pair(
        self, publish: str, subscribe: str, *, framing: FramingOptions | str = "line"
    ) -> socket.socket:
        """Open a socket, the two-way sort of pipe: what is written to it goes to one channel, and what comes
        on another can be read from it. ``shutdown(SHUT_WR)`` ends the one and leaves the other.

        Args:
            publish: the channel that gets what is written.
            subscribe: the channel or pattern whose messages are read.
            framing: as for :meth:`open_pipe`; the same both ways.

        Returns:
            One end of a socketpair(2), a stream; like a pipe in everything else.

        Raises:
            As :meth:`open_pipe`.
        """
        from towpath import pipes

        return pipes.open_pair(self._url, publish, subscribe, framing=framing)

    @abstractmethod
    def close(self) -> None:
        """End the session: its publishers and subscriptions are closed, and what waits is woken. More than
        once is fine.
        """

    try_publisher = attempt(publisher)
    try_subscribe = attempt(subscribe)
    try_open_pipe = attempt(open_pipe)
    try_open_pair = attempt(open_pair)


class Publisher(Handle):
    """One source: this program's presence as a writer on one channel.

    Attributes:
        source: its id; with a message's seq unique for ever. From afar 0 until a message was acknowledged.
        channel: the channel's name.
        message_bytes_max: the largest message, headers included.
    """

    source: int
    channel: str
    message_bytes_max: int

    @property
    @abstractmethod
    def is_ended(self) -> bool:
        """Whether nothing more can be published: it was closed, or the channel is known to be gone."""

    @abstractmethod
    def publish(
        self,
        data: Buffer,
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        """Publish one message; waits while a subscriber's ring is full.

        From afar it also waits for the acknowledgement. Calls of several threads share a batch then.

        Args:
            data: any bytes-like object, 0 to ``message_bytes_max`` bytes; it is copied.
            headers: what travels beside it.
            headers_raw: the same, already serialized as ``towpath.v1.Headers``.
            timeout: seconds to wait for room, and for the confirmation; None for ever.
            confirm: return only when it is on disk, where the channel is a durable topic: ``publish`` and
                ``flush`` in one, without waiting for what others publish meanwhile. From afar, and of a
                queue, ``publish`` always returns as late as that.

        Returns:
            The message's seq.

        Raises:
            MessageTooLarge, InvalidArgument: nothing was published.
            Timeout: a subscriber does not read; nothing was published, unless the message says that it is not
                known (from afar).
            ConnectionLost: from afar: it is not known whether it was published.
            ChannelUndeclared: the channel is gone.
            Timeout, StoreFull: with ``confirm``, also as for :meth:`flush`: it was published, and is stored
                when that is possible.
        """

    @abstractmethod
    def publish_many(
        self,
        payloads: Sequence[Buffer],
        *,
        headers: model.Headers | Sequence[model.Headers | None] | None = None,
        headers_raw: bytes | Sequence[bytes] | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        """Publish a batch, in order.

        Args:
            payloads: any number of bytes-like objects.
            headers: one for all, or one per payload.
            headers_raw: the same, already serialized.
            timeout: seconds to wait for room for all of it, and for the confirmation; None for ever.
            confirm: return only when all of it is on disk; see :meth:`publish`.

        Returns:
            The last message's seq; of an empty batch, the last that there was.

        Raises:
            MessageTooLarge: one is too large; those before it were published, as the message says.
            Timeout, ConnectionLost: some of it was published, as the message says.
            ChannelUndeclared, InvalidArgument.
        """

    def loan(self, nbytes: int, *, timeout: float | None = None) -> Loan[int]:
        """Give a buffer to fill in place and publish without a copy: for large payloads.

        On a topic of this host it is shared memory, of which subscribers then get a view; elsewhere (queues,
        from afar) it is this program's own, and copied when it is published.

        Args:
            nbytes: 0 to 256 MiB; where the core takes part (durable, ``order = "total"``) or it is copied, to
                ``message_bytes_max``.
            timeout: seconds to wait while subscribers have not read, or still hold, what was published; None
                for ever. Where the channel's overflow is drop the oldest messages that nobody holds are given
                up instead.

        Returns:
            The loan. Released when it is collected unpublished.

        Raises:
            MessageTooLarge, InvalidArgument: about ``nbytes``.
            Timeout: subscribers do not read, or do not let go.
            LimitExceeded: this program itself has loaned all there is; or (drop) subscribers hold all.
            ChannelUndeclared: the channel is gone.
        """
        return loans.heap_loan(nbytes, self, self.message_bytes_max)

    def publish_loan(
        self,
        loan: Loan[int],
        *,
        headers: model.Headers | None = None,
        headers_raw: bytes | None = None,
        timeout: float | None = None,
        confirm: bool = False,
    ) -> int:
        """Publish what was loaned, as ``loan.publish()`` does. It has no bytes any more after that.

        Args, returns and raises as :meth:`publish`; and an error leaves the loan as it is.

        Raises:
            BufferError: the loan was published or released; or somebody has a buffer of it, and could write
                to what others read: let go of it first (``del array``, ``memoryview.release()``).
            InvalidArgument: it is another publisher's.
        """
        heap = loans.data_of(loan, self)
        with memoryview(heap) as data:
            seq = self.publish(
                data, headers=headers, headers_raw=headers_raw, timeout=timeout, confirm=confirm
            )
        heap.end()
        return seq

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all that was published on a durable topic so far is on disk. On other channels, and
        from afar, where ``publish`` itself waits for that, there is nothing to wait for.

        Args:
            timeout: seconds; None for ever.

        Raises:
            Timeout: it is not, or not known to be, yet.
            StoreFull: the store has no room; what was published waits in the ring, and is stored when there
                is.
            ConnectionLost, ChannelUndeclared: it is not known what became of it.
        """

    @abstractmethod
    def wait_drained(self, timeout: float | None = None) -> bool:
        """Wait until every subscriber has taken all that was published. Returns False when the time is
        over.

        Args:
            timeout: seconds to wait; None for ever, 0 not at all.

        Raises:
            NotSupported: from afar, where a publisher does not see its subscribers.
        """

    @abstractmethod
    def close(self) -> None:
        """Leave the channel. What was published stays for the subscribers to take. More than once is fine."""

    try_publish = attempt(publish)
    try_publish_many = attempt(publish_many)
    try_loan = attempt(loan)
    try_publish_loan = attempt(publish_loan)
    try_flush = attempt(flush)


class Subscription(Handle):
    """One subscription: iterate over it, or receive from it.

    Attributes:
        name: the channel's name.
    """

    name: str

    def __init__(self, name: str) -> None:
        self.name = name
        self._buffer: deque[Message] = deque()
        self._closed = False

    @property
    @abstractmethod
    def lost(self) -> int:
        """Messages that this subscription missed so far, of all sources: the sum of ``Message.missed``."""

    @property
    @abstractmethod
    def is_stored(self) -> bool:
        """Whether it is to a durable topic, as far as is known: of one that nobody published on yet it is
        not.
        """

    @property
    @abstractmethod
    def next_seq(self) -> int | None:
        """Of a durable topic: the seq of the message that is handed out next. None where that is not known:
        elsewhere, and before the first message of a subscription without ``start`` or ``place``.
        """

    @abstractmethod
    def save_place(self, timeout: float | None = None) -> None:
        """Remember that everything handed out so far was dealt with; returns when that is on disk.

        Args:
            timeout: seconds to wait for that; None: ten.

        Raises:
            InvalidArgument: the subscription has no ``place``.
            SubscriptionInUse: it was taken over, and its place with it.
            Timeout: it is not known whether it was saved.
        """

    @abstractmethod
    def _take(self, count_max: int, bytes_max: int, timeout: float | None) -> list[Message]:
        """What :meth:`receive_many` does when nothing is in hand."""

    def receive(self, timeout: float | None = None) -> Message:
        """Return the next message.

        Args:
            timeout: seconds to wait; None for ever, 0 not at all.

        Raises:
            Timeout: none came.
            ChannelUndeclared, ConnectionLost: the subscription has ended, and all before that was handed out.
        """
        if not self._buffer:
            self._buffer.extend(self._take(RECEIVE_COUNT, RECEIVE_BYTES, timeout))
            if not self._buffer:
                raise Timeout(f"no message on {self.name} in {timeout} s")
        return self._buffer.popleft()

    def receive_many(
        self, count_max: int = RECEIVE_COUNT, *, bytes_max: int = RECEIVE_BYTES, timeout: float | None = None
    ) -> list[Message]:
        """Return what there is, up to the bounds; waits for the first message.

        Args:
            count_max: 1 or more.
            bytes_max: payload bytes; one message may exceed it.
            timeout: seconds to wait; None for ever, 0 not at all.

        Returns:
            At least one message, or none when the time is over.

        Raises:
            ChannelUndeclared, ConnectionLost: as for ``receive``.
        """
        if self._buffer:
            return [self._buffer.popleft() for _ in range(min(count_max, len(self._buffer)))]
        return self._take(count_max, bytes_max, timeout)

    def __iter__(self) -> Iterator[Message]:
        """Yield messages until the subscription is closed; raises ChannelUndeclared when the channel goes."""
        while not self._closed:
            try:
                yield self.receive()
            except ConnectionLost:
                if self._closed:
                    return
                raise

    @abstractmethod
    def close(self) -> None:
        """Leave the channel; a waiting receive ends. More than once is fine."""

    try_receive = attempt(receive)
    try_receive_many = attempt(receive_many)


class Watch(Handle):
    """The registry's changes, as an iterator; survives reconnections, after which it says ``reset``."""

    @abstractmethod
    def receive(self, timeout: float | None = None) -> model.WatchEvent:
        """Return the next change.

        Args:
            timeout: seconds to wait; None for ever, 0 not at all.

        Raises:
            Timeout: nothing changed.
            Cancelled: the watch was closed.
            ConnectionLost: the client was closed.
        """

    def __iter__(self) -> Iterator[model.WatchEvent]:
        while True:
            try:
                yield self.receive()
            except (ConnectionLost, Cancelled):
                return

    @abstractmethod
    def close(self) -> None:
        """Stop watching; an iteration ends."""

    try_receive = attempt(receive)
