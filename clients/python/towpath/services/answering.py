"""What a server of a service knows: the requests that came and are not answered. Sans-I/O.

Theory of operation
    Requests wait in ``line`` until the program takes one, at most ``concurrency`` at a time; then they are
    under way until they are answered. How many wait and are under way is told to the callers in the server's
    control page. Each caller that was answered has a ring of its own, made when it is first needed.

    A request ends early when its caller withdraws it, dies, or does not wait any more by the deadline that it
    gave. One that still waits in line then is never handed out; one under way is told so (``is_cancelled``).

Invariants
    ``requests`` has the requests in line and under way, each once. ``taken`` counts those under way. The line
    has at most ``LINE_MAX`` requests; one more is refused, and its caller told.

Not here: threads, waiting (``server``, ``aio_server``).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Final

from towpath import convert, model
from towpath._message import Message
from towpath.ends import ReaderState
from towpath.errors import InvalidArgument, LimitExceeded, ServiceFailed, TowpathError

from . import envelope

LINE_MAX: Final = 4096
LINE_BYTES_MAX: Final = 64 << 20
"""Requests, and bytes of them, that wait in a server; beyond either one more is refused with
LimitExceeded.
"""
CONCURRENCY_MAX: Final = 4096
ANSWER_TIMEOUT_S: Final = 1.0
"""How long an answer waits for room in the ring of a caller that does not read; then that caller is given
up.
"""
ERROR_CHARS_MAX: Final = 4096
"""What of an error's text reaches the caller."""


class Ticket:
    """One request, as its server keeps it.

    Attributes:
        source: the caller's ring; with ``call`` unique.
        deadline_ns: on the monotonic clock of this host; None: the caller waits for ever.
        window: how many bytes of a stream may be sent now.
        is_taken: the program has it.
        is_over: it was answered, or nobody waits any more.
        is_cancelled: nobody waits any more.
    """

    __slots__ = (
        "_raw",
        "call",
        "deadline_ns",
        "is_cancelled",
        "is_idempotent",
        "is_over",
        "is_stream",
        "is_taken",
        "payload",
        "principal",
        "source",
        "window",
    )

    def __init__(self, message: Message, source: int, asked: envelope.Asked, principal: str) -> None:
        _, flags, _, self.window, _, self.call, deadline_ns = asked
        self._raw = message
        self.payload = message.payload
        self.source = source
        self.deadline_ns = deadline_ns or None
        self.is_idempotent = flags & envelope.IDEMPOTENT != 0
        self.is_stream = flags & envelope.STREAM != 0
        self.principal = principal
        self.is_taken = False
        self.is_over = False
        self.is_cancelled = False

    @property
    def message(self) -> Message:
        """The request without its envelope."""
        return self._raw.behind(envelope.REQUEST_BYTES)

    @property
    def may_send(self) -> bool:
        """Whether a stream's part may be sent, or it is no use to wait."""
        return self.window > 0 or self.is_over


class Line:
    """The requests of one server.

    Args:
        state: its control page, in which the load is told.
        concurrency: how many the program may have at a time.
    """

    def __init__(self, state: ReaderState, concurrency: int) -> None:
        self.state = state
        self.concurrency = check_concurrency(concurrency)
        self.line: deque[Ticket] = deque()
        self.requests: dict[tuple[int, int], Ticket] = {}
        self.taken = 0
        self.is_leaving = False
        self._line_bytes = 0
        self._refused: list[Ticket] = []

    @property
    def has_refused(self) -> bool:
        """Whether :meth:`take_refused` has some."""
        return bool(self._refused)

    @property
    def has_work(self) -> bool:
        """Whether :meth:`take` may have one."""
        return bool(self.line) and self.taken < self.concurrency

    # ---- what comes ----

    def take_in(self, messages: Iterable[Message]) -> list[Ticket]:
        """Take what came; return the requests under way that have news (a window, a cancellation)."""
        told: list[Ticket] = []
        has_new = False
        server = self.state.id
        for message in messages:
            asked = envelope.open_request(message.headers_raw)
            if asked is None or asked[4] != server:
                continue
            kind, source = asked[0], message.source
            key = source, asked[5]
            if kind == envelope.REQUEST:
                party = self.state.parties.get(source)
                if party is not None and key not in self.requests:
                    ticket = Ticket(message, source, asked, party[1])
                    if len(self.line) >= LINE_MAX or self._line_bytes >= LINE_BYTES_MAX:
                        self._refused.append(ticket)
                        continue
                    self.requests[key] = ticket
                    self.line.append(ticket)
                    self._line_bytes += len(ticket.payload)
                    has_new = True
            elif (known := self.requests.get(key)) is not None:
                if kind == envelope.GRANT:
                    known.window += asked[3]
                elif kind == envelope.CANCEL:
                    self.cancel(known)
                if known.is_taken:
                    told.append(known)
        if has_new:
            self.tell_load()
        return told

    def forget_callers_gone(self) -> list[Ticket]:
        """Cancel the requests of callers that are gone; return those under way. Call it when a receive gave
        nothing.

        O(requests).
        """
        following, gone = self.state.following, self.state.gone
        lost = [
            ticket
            for ticket in self.requests.values()
            if ticket.source not in following or ticket.source in gone
        ]
        for ticket in lost:
            self.cancel(ticket)
        return [ticket for ticket in lost if ticket.is_taken]

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for it any more."""
        ticket.is_cancelled = True
        self.end(ticket)

    def expire(self, ticket: Ticket) -> None:
        """Its deadline has passed."""
        if not ticket.is_over:
            self.cancel(ticket)

    # ---- what the program does ----

    def take(self) -> Ticket | None:
        """Take the next request that somebody still waits for; None where there is none, or as many as may be
        are under way.
        """
        while self.has_work:
            ticket = self.line.popleft()
            self._line_bytes -= len(ticket.payload)
            if ticket.is_over:
                continue
            if ticket.deadline_ns is not None and ticket.deadline_ns <= time.monotonic_ns():
                self.cancel(ticket)
                continue
            ticket.is_taken = True
            self.taken += 1
            return ticket
        return None

    def end(self, ticket: Ticket) -> None:
        """It is answered, or nobody waits. More than once is fine. A request that the program has and that
        was cancelled counts as under way until the program lets go of it (:meth:`let_go`).
        """
        if not ticket.is_over:
            ticket.is_over = True
            if not (ticket.is_taken and ticket.is_cancelled):
                self.let_go(ticket)

    def let_go(self, ticket: Ticket) -> None:
        """The program is done with it. More than once is fine."""
        ticket.is_over = True
        if self.requests.pop((ticket.source, ticket.call), None) is not None:
            self.taken -= ticket.is_taken
            self.tell_load()

    def tell_load(self) -> None:
        """Tell the callers how many requests there are."""
        if not self.is_leaving:
            self.state.reader.set_load(len(self.requests))

    def leave(self) -> list[Ticket]:
        """Take no more: return what waits in line, which the callers must be told of."""
        if not self.is_leaving:
            self.is_leaving = True
            self.state.reader.set_load(envelope.LEAVING)
        waiting = [ticket for ticket in self.line if not ticket.is_over]
        self.line.clear()
        return waiting

    def take_refused(self) -> list[Ticket]:
        """Take the requests that there was no room for; each must be answered so."""
        if not self._refused:
            return []
        refused, self._refused = self._refused, []
        return refused


def check_concurrency(concurrency: int) -> int:
    """Raises InvalidArgument when it is not 1 to ``CONCURRENCY_MAX``."""
    if not 1 <= concurrency <= CONCURRENCY_MAX:
        raise InvalidArgument(
            f"a server cannot work on {concurrency} requests at a time", hint=f"1 to {CONCURRENCY_MAX} it can"
        )
    return concurrency


def encode_error(error: BaseException) -> bytes:
    """What the caller is told of a failure: an error of Towpath's keeps its code; of any other it gets type
    and text.
    """
    if not isinstance(error, TowpathError):
        error = ServiceFailed(f"{type(error).__name__}: {error}")
    told = convert.error_to_proto(error)
    told.message = told.message[:ERROR_CHARS_MAX]
    told.hint = told.hint[:ERROR_CHARS_MAX]
    return told.SerializeToString()


def headers_bytes(headers: model.Headers | None) -> bytes:
    """Headers as they stand behind an envelope."""
    return b"" if headers is None else convert.encode_headers(headers)


def needs_stream() -> InvalidArgument:
    """What a server is told that sends a part to who takes one reply."""
    return InvalidArgument("the caller takes one reply", hint="it must call with call_stream to get a stream")


def unanswered() -> ServiceFailed:
    """What the caller is told of a request that the server let go of."""
    return ServiceFailed("the server took the request and did not answer it")


def full() -> LimitExceeded:
    """What the caller is told of a request that there was no room for."""
    return LimitExceeded(
        f"the server has {LINE_MAX} requests in line, or {LINE_BYTES_MAX} bytes of them",
        hint="try again later, or have more servers",
        retryable=True,
    )


def over() -> InvalidArgument:
    """What a server is told that answers twice."""
    return InvalidArgument("the request was answered already")
