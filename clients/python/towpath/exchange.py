"""Calls and streams of one session over one connection after another, sans-I/O.

Theory of operation
    What is to be said is queued and taken by whoever has the socket (:meth:`Exchange.take_outgoing`); what
    comes back is told to the handler of the call that asked. A call belongs to one connection: when that
    breaks, its handler gets ConnectionLost, and whoever made it decides whether to ask again. A stream that
    is *kept* (``asking.KeptStream``) is asked for anew on each connection.

    The first call of each connection is the hello. Only when it is answered by a welcome is the connection
    ready, and with it come the first ids that the session may give to what it makes.

Invariants
    A handler is called once, and of a stream until its end; after :meth:`Exchange.cancel` never.
    Numbers of calls are not used twice, over all connections: a late answer cannot meet another call.
    Nothing here blocks, reads a clock or touches a socket; callers serialize their calls.

Not here: what a call means (``calls``), notices and what a session has besides calls (``protocol``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from towpath import asking, calls, convert, wire
from towpath.errors import ConnectionLost, ProtocolViolation, TowpathError, VersionMismatch
from towpath.v1 import frame_pb2
from towpath.v1.frame_pb2 import Frame

T = TypeVar("T")

Handler = Callable[[Frame | TowpathError], None]
"""Gets the answer of a call: its frame, or why there is none."""

Outgoing = tuple[Frame, tuple[wire.Descriptor, ...]]

SENDING: Final = -1
UNCERTAIN: Final = -2
"""How many frames were sent, while some are, and after it was ended in the midst."""


class Exchange:
    """The calls and streams of one session. See the module's docstring.

    Args:
        name, software: said in the hello; for people.
        doorbell: the sending end of this session's doorbell, said in the hello; None when there is none.
        takes_doorbells: said in the hello.

    Attributes:
        welcome: of the connection that there is; None while there is none that is ready.
        said: how many frames were sent on it, where whoever sends them counts; or SENDING, UNCERTAIN.
        kept: the streams that live on from one connection to the next.
    """

    def __init__(
        self, *, name: str, software: str, doorbell: wire.Descriptor | None, takes_doorbells: bool
    ) -> None:
        self._name = name
        self._software = software
        self._doorbell = doorbell
        self._takes_doorbells = takes_doorbells
        self._pending: dict[int, Handler] = {}
        self._streams: set[int] = set()
        self._outgoing: list[Outgoing] = []
        self._next_call = 1
        self._next_id = 0
        self._ids_left = 0
        self._came_with: list[wire.Descriptor] = []  # with the answer that is being handled
        self._generation_table: wire.Descriptor | None = None
        self.kept: set[asking.KeptStream[Any]] = set()
        self.welcome: frame_pb2.Welcome | None = None
        self.said = 0

    # ---- connections ----

    @property
    def is_ready(self) -> bool:
        """Whether the connection is up and has been welcomed."""
        return self.welcome is not None

    def connection_made(self) -> None:
        """Say hello on a new connection."""
        self.said = 0
        frame = Frame(
            id=self._take_call(),
            hello=frame_pb2.Hello(
                version_min=wire.VERSION,
                version_max=wire.VERSION,
                software=self._software,
                name=self._name,
                takes_doorbells=self._takes_doorbells,
            ),
        )
        descriptors = (self._doorbell,) if self._doorbell is not None else ()
        self._pending[frame.id] = self._welcomed
        self._outgoing.append((frame, descriptors))

    def connection_lost(self, error: TowpathError | None = None) -> None:
        """Everything that waits for an answer gets ConnectionLost, which says why."""
        self.welcome = None
        self._ids_left = 0  # they were the connection's session's
        self._outgoing.clear()
        self._streams.clear()
        pending, self._pending = self._pending, {}
        if error is None:
            error = ConnectionLost("the connection to the daemon was lost")
        elif not isinstance(error, ConnectionLost):
            error = ConnectionLost(f"the connection to the daemon ended: {error.message}", hint=error.hint)
        for handler in pending.values():
            handler(error)

    @property
    def has_outgoing(self) -> bool:
        """Whether there is something to send."""
        return bool(self._outgoing)

    def take_outgoing(self) -> list[Outgoing]:
        """What to send now, in order."""
        outgoing, self._outgoing = self._outgoing, []
        return outgoing

    def take_answer(self, frame: Frame, descriptors: list[wire.Descriptor]) -> None:
        """Tell whoever asked; the answer to a call that was cancelled is left unheard.

        Args:
            frame: its id is not 0.
            descriptors: what came with it.

        Raises:
            TowpathError: the hello was refused, or answered by nonsense.
        """
        handler = self._pending.get(frame.id)
        if handler is None:
            return
        if frame.id not in self._streams or frame.WhichOneof("body") in ("error", "end"):
            del self._pending[frame.id]
            self._streams.discard(frame.id)
        self._came_with = descriptors
        handler(frame)
        self._came_with = []

    def _welcomed(self, answer: Frame | TowpathError) -> None:
        if isinstance(answer, TowpathError):
            return  # the connection is gone; the client tries again
        match answer.WhichOneof("body"):
            case "welcome":
                if answer.welcome.version != wire.VERSION:
                    raise VersionMismatch(f"the daemon speaks version {answer.welcome.version}")
                self._generation_table = self._came_with[0] if self._came_with else None
                self.welcome = answer.welcome
                self._next_id, self._ids_left = answer.welcome.first_id, answer.welcome.id_count
            case "error":
                raise convert.error_from_proto(answer.error)
            case other:
                raise ProtocolViolation(f"hello was answered by {other}")

    def reopen_streams(self) -> None:
        """Ask for what is kept on the connection that has just been welcomed."""
        for stream in list(self.kept):
            stream.open()

    def end_streams(self, why: TowpathError) -> None:
        """There will be no connection any more: end what is followed from one to the next."""
        for stream in list(self.kept):
            stream.end(why)

    def abandon_calls(self) -> None:
        """In a forked child: nothing is said to anybody any more, and nobody is told anything."""
        self.welcome = None
        self.kept = set()
        self._pending = {}
        self._outgoing = []

    # ---- calls ----

    def call(
        self, call: calls.Call[Any], handler: Handler, descriptors: tuple[wire.Descriptor, ...] = ()
    ) -> int:
        """Queue a call; ``handler`` gets its answer, unless it is one-way. Returns the call's id."""
        call_id = self._take_call()
        frame = call.frame(call_id)
        if call.is_one_way:
            frame.is_one_way = True
        else:
            self._pending[call_id] = handler
        self._outgoing.append((frame, descriptors))
        return call_id

    def call_and_forget(self, call: calls.Call[Any]) -> None:
        """Queue a call whose answer does not matter; dropped while there is no connection."""
        if self.is_ready:
            self.call(call, lambda _: None)

    def watch(self, handler: Handler, after_revision: int | None = None) -> int:
        """Queue a watch of the registry; ``handler`` gets each item, and at the end an error.

        Raises:
            InvalidArgument: the revision is no number of 64 bits.
        """
        return self.open_stream(Frame(watch_request=calls.watch_request(after_revision)), handler)

    def open_stream(self, frame: Frame, handler: Handler) -> int:
        """Queue a request that has any number of answers; ``handler`` gets each, and at the end an error.

        Args:
            frame: the request; its id is set here.
        """
        frame.id = self._take_call()
        self._pending[frame.id] = handler
        self._streams.add(frame.id)
        self._outgoing.append((frame, ()))
        return frame.id

    def keep_stream(
        self, make: Callable[[], calls.Call[T]], listener: asking.Listener[T]
    ) -> asking.KeptStream[T]:
        """Follow a stream on this connection and those that come after it; see :class:`asking.Asking`."""
        stream = asking.KeptStream(self, make, listener)
        if self.is_ready:
            stream.open()
        self.kept.add(stream)
        return stream

    def add_to_stream(self, call_id: int, frame: Frame) -> None:
        """Queue one more request of a stream; nothing happens when it has ended."""
        if call_id in self._streams:
            frame.id = call_id
            self._outgoing.append((frame, ()))

    def cancel(self, call_id: int) -> None:
        """Forget a call, and tell the other side."""
        self._streams.discard(call_id)
        if self._pending.pop(call_id, None) is not None and self.is_ready:
            frame = Frame(id=call_id)
            frame.cancel.SetInParent()
            self._outgoing.append((frame, ()))

    def finish(self, call_id: int) -> None:
        """A stream has been answered for the last time, though the answer did not say so."""
        self._streams.discard(call_id)
        self._pending.pop(call_id, None)

    def withdraw(self, call_id: int) -> None:
        """Ask that a call be given up; its answer, which says what became of it, is still waited for."""
        if call_id in self._pending and self.is_ready:
            frame = Frame(id=call_id)
            frame.cancel.SetInParent()
            self._outgoing.append((frame, ()))

    def _take_call(self) -> int:
        self._next_call += 1
        return self._next_call - 1

    # ---- ids ----

    @property
    def needs_ids(self) -> bool:
        """Whether ``allocate_ids`` must be called before the next source or reader."""
        return self._ids_left == 0

    def add_ids(self, first_id: int, count: int) -> None:
        """Take the block of ids that was asked for: ``count`` from ``first_id`` on."""
        self._next_id, self._ids_left = first_id, count

    def _take_id(self) -> int:
        assert self._ids_left > 0
        self._ids_left -= 1
        self._next_id += 1
        return self._next_id - 1
