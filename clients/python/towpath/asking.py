"""What every client offers to the kinds that travel as frames: queues, state, places, transactions.

Theory of operation
    These kinds are written once, for both clients and every carrier, against the port :class:`Asking`:
    ``_call`` (each client's own way of waiting), ``_post``, which does not wait, and ``_follow``, a stream
    of answers that lives on when the connection is made anew. What comes back is told in the client's own
    thread, or on its loop: with the daemon of this host while the client's lock is held. So whoever
    is told takes it in and returns; it may post, but must not wait.

Invariants
    ``then`` is called at most once. A listener hears ``broke`` whenever a connection ended with the stream on
    it, and everything afterwards comes from the next; after ``ended`` it hears nothing more. After a fork
    nobody is told anything: whoever waits in the child must have asked ``_check_not_forked`` first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from towpath.calls import Call
from towpath.errors import Cancelled, TowpathError
from towpath.v1.frame_pb2 import Frame

if TYPE_CHECKING:
    from towpath.exchange import Exchange, Handler

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Listener(Protocol[T_contra]):
    """Who follows a stream."""

    def came(self, item: T_contra, /) -> None:
        """One answer."""

    def broke(self, error: TowpathError, /) -> None:
        """The connection ended; the stream is asked for again on the next."""

    def ended(self, error: TowpathError, /) -> None:
        """Nothing more will come, and why."""


@dataclass(slots=True)
class Following:
    """A stream that is followed.

    Attributes:
        leave: nothing more is told; more than once is fine. So does calling the object.
        send: one more request of the stream. Nothing happens while there is no connection.
        call_id: of the call that it is, on the connection that there is; 0 where that is of no use.
    """

    leave: Callable[[], object]
    send: Callable[[Any], object]
    call_id: Callable[[], int] = int

    def __call__(self) -> object:
        return self.leave()


class Asking(Protocol):
    """A client, as these kinds see it."""

    def _post(self, call: Call[T], then: Callable[[T | TowpathError], None]) -> Callable[[], object] | None:
        """Ask, and have ``then`` told the answer; of a one-way call it may be told nothing.

        Returns:
            Withdraws the call. It is answered all the same: with ``Cancelled``, unless it was carried out.
            None: there is no connection now; nothing was asked, and nothing is told.
        """

    def _follow(self, make: Callable[[], Call[T]], listener: Listener[T]) -> Following:
        """Ask for a stream, now and again with each new connection.

        Args:
            make: the request as it is then.
            listener: is told what comes.
        """

    def _every(self, tick: Callable[[], float]) -> Callable[[], object]:
        """Have something called now and again, where streams are heard; from afar only.

        Args:
            tick: says after how many seconds it is to be called again; must not wait.

        Returns:
            Ends that.

        Raises:
            NotSupported: the daemon is on this host, where the kernel tells who is alive.
        """

    def _check_not_forked(self) -> None:
        """Raises ConnectionLost in a child of the process that the client belongs to."""


def answered(call: Call[T], then: Callable[[T | TowpathError], None]) -> Handler:
    """Return what takes a call's answer as a frame, and tells what it means."""

    def handle(answer: Frame | TowpathError) -> None:
        outcome: T | TowpathError
        try:
            outcome = answer if isinstance(answer, TowpathError) else call.result(answer)
        except TowpathError as error:
            outcome = error
        then(outcome)

    return handle


class KeptStream(Generic[T]):
    """A stream over one session's connections; see :meth:`Asking._follow`.

    Args:
        exchange: the session's; ``Exchange.kept`` has all of its streams.
    """

    def __init__(self, exchange: Exchange, make: Callable[[], Call[T]], listener: Listener[T]) -> None:
        self._exchange = exchange
        self._make = make
        self._listener = listener
        self._call: Call[T] | None = None
        self._call_id = 0

    def open(self) -> None:
        """Ask on the connection that there is."""
        self._call = self._make()
        self._call_id = self._exchange.open_stream(self._call.frame(0), self._handle)

    def send(self, body: Any) -> None:
        """Send one more request; nothing happens while there is no connection."""
        if self._call is not None and self in self._exchange.kept:
            self._exchange.add_to_stream(self._call_id, replace(self._call, body=body).frame(self._call_id))

    def call_id(self) -> int:
        """Of the call that it is on the connection that there is, or was."""
        return self._call_id

    def leave(self) -> None:
        """Follow no more."""
        if self in self._exchange.kept:
            self._exchange.kept.discard(self)
            self._exchange.cancel(self._call_id)

    def end(self, why: TowpathError) -> None:
        """The client ends, or there will be no connection any more."""
        if self in self._exchange.kept:
            self.leave()
            self._listener.ended(why)

    def _handle(self, answer: Frame | TowpathError) -> None:
        if self not in self._exchange.kept:
            return
        if isinstance(answer, TowpathError):
            self._listener.broke(answer)
            return
        call = self._call
        assert call is not None
        try:
            item = _item(call, answer)
        except TowpathError as error:
            self._finish()
            self._listener.ended(error)
        else:
            if call.is_last is not None and call.is_last(item):
                self._finish()
            self._listener.came(item)

    def _finish(self) -> None:
        """It was answered for the last time."""
        self._exchange.kept.discard(self)
        self._exchange.finish(self._call_id)


def _item(call: Call[Any], answer: Frame) -> Any:
    if answer.WhichOneof("body") == "end":
        raise Cancelled("the stream was ended")
    return call.result(answer)
