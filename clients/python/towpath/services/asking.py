"""What a caller of a service knows: its calls, and the servers that it may ask. Sans-I/O.

Theory of operation
    The caller has one ring, which all servers read, and one control page, with which it reads a ring of each
    server that has answered it. A call is sent to the server that has the fewest under way, by what each
    server tells (``Writer.load``) and by what this caller has sent to it, whichever is more.

    A call is *lost* when its server is gone and nothing more of it can come: the core has told that the
    server's reader left, and what the server had written for us is read to the end. It is lost too when the
    server has closed the ring that it answers by, which it does for a caller that does not read.

Invariants
    ``outstanding`` counts the calls that are sent and not over, per server; no call is in ``pending`` after
    it is over. A reply counts only when it comes from the server that the call was sent to.

Not here: threads, waiting (``caller``, ``aio_caller``).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Final

from google.protobuf.message import DecodeError

from towpath import convert
from towpath._message import Message
from towpath.ends import ReaderState, SourceState
from towpath.errors import NoServer, ProtocolViolation, ServerLost, Timeout, TowpathError
from towpath.v1 import error_pb2

from . import envelope

ATTEMPTS_MAX: Final = 8
"""Servers that one call is sent to, one after the other, when they go away."""


READ_COUNT: Final = 256
READ_BYTES: Final = 1 << 20
"""What one look into the rings takes along."""
BEGIN_LOOK_S: Final = 0.0005
"""How often a caller looks whether a server that has just come reads it; a moment after the server came."""
GONE: Final = -2
"""The load of a server that has left."""


class PendingCall:
    """One call.

    Attributes:
        number: the caller's number for it; another one for each attempt.
        server: whom it was sent to; 0 before.
        replies: what came and was not taken by the program yet.
        error: why it failed, when it has.
        is_over: nothing more comes.
        is_untouched: it failed, and the server said that it never began.
    """

    number = 0
    server = 0
    attempts = 0
    has_begun = False
    is_over = False
    is_untouched = False
    window = 0
    owed = 0
    error: TowpathError | None = None

    def __init__(self, *, deadline_ns: int | None, is_idempotent: bool, is_stream: bool) -> None:
        self.deadline_ns = deadline_ns
        self.is_idempotent = is_idempotent
        self.is_stream = is_stream
        self.replies: deque[Message] = deque()

    @property
    def has_news(self) -> bool:
        """Whether there is something for the program to take."""
        return self.is_over or bool(self.replies)

    @property
    def may_try_again(self) -> bool:
        """Whether it failed in a way that another server may mend."""
        if not self.is_over or self.has_begun or self.attempts >= ATTEMPTS_MAX:
            return False
        return self.is_untouched or (self.is_idempotent and isinstance(self.error, ServerLost))

    def take(self) -> Message | None:
        """Take a reply, if one is there; ``owed`` grows by what it took of the window."""
        if not self.replies:
            return None
        message = self.replies.popleft()
        self.owed += envelope.part_bytes(len(message.payload), len(message.headers_raw))
        return message


class Calls:
    """The calls of one client to one service.

    Args:
        source: the ring of requests.
        replies: the control page.
    """

    def __init__(self, source: SourceState, replies: ReaderState) -> None:
        self.source = source
        self.replies = replies
        self.pending: dict[int, PendingCall] = {}
        self.outstanding: dict[int, int] = {}
        self._answerers: dict[int, int] = {}
        self._next = 1
        self._turn = 0

    @property
    def ended(self) -> TowpathError | None:
        """Why no call can be made any more; None while one can."""
        return self.source.ended or self.replies.ended

    # ---- sending ----

    def choose(self) -> int | None:
        """Return the server to ask, or None where nobody serves. O(servers)."""
        writer = self.source.writer
        readers = writer.readers()
        best, best_load = None, envelope.LEAVING
        self._turn += 1
        for place in range(len(readers)):
            reader = readers[(place + self._turn) % len(readers)]
            load = writer.load(reader)
            if load < 0:
                if load == GONE or reader not in self.source.early:
                    continue  # it has left, or will begin to read behind what we would write now
                load = 0
            if load != envelope.LEAVING:
                load = max(load, self.outstanding.get(reader, 0))
            if load < best_load:
                best, best_load = reader, load
        return best

    @property
    def is_awaiting_server(self) -> bool:
        """Whether a server has come that does not read yet."""
        return bool(self.source.writer.readers())

    def begin(self, call: PendingCall, server: int) -> bytes:
        """Send a call (again): return its envelope."""
        call.number = self._next
        self._next += 1
        call.server = server
        call.attempts += 1
        call.is_over = call.is_untouched = False
        call.error = None
        call.window = envelope.WINDOW_BYTES if call.is_stream else 0
        self.pending[call.number] = call
        self.outstanding[server] = self.outstanding.get(server, 0) + 1
        flags = call.is_idempotent * envelope.IDEMPOTENT | call.is_stream * envelope.STREAM
        return envelope.request(
            envelope.REQUEST,
            server,
            call.number,
            flags=flags,
            window=call.window,
            deadline_ns=call.deadline_ns or 0,
        )

    def end(self, call: PendingCall, error: TowpathError | None = None) -> None:
        """A call is over. More than once is fine."""
        if self.pending.pop(call.number, None) is not None:
            left = self.outstanding[call.server] - 1
            if left:
                self.outstanding[call.server] = left
            else:
                del self.outstanding[call.server]
        if not call.is_over:
            call.is_over = True
            call.error = error

    def withdraw(self, call: PendingCall) -> bytes | None:
        """The program waits no more: return what tells the server, if it need be told."""
        if call.number not in self.pending:
            return None
        self.end(call)
        return envelope.request(envelope.CANCEL, call.server, call.number)

    def grant(self, call: PendingCall) -> bytes | None:
        """Return what opens a stream's window by what the program took, when that is worth a message."""
        if call.is_over or call.owed < envelope.WINDOW_BYTES // 2:
            return None
        call.window += call.owed
        raw = envelope.request(envelope.GRANT, call.server, call.number, window=call.owed)
        call.owed = 0
        return raw

    # ---- receiving ----

    def take_in(self, messages: Iterable[Message]) -> list[PendingCall]:
        """Take what came; return the calls that have news."""
        told: list[PendingCall] = []
        parties = self.replies.parties
        for message in messages:
            raw = message.headers_raw
            opened = envelope.open_reply(raw)
            call = None if opened is None else self.pending.get(opened[1])
            if opened is None or call is None:
                continue  # of a call that is over
            party = parties.get(message.source)
            if party is None or party[0] != call.server:
                continue  # somebody answers in another's name
            self._reply(call, opened[0], message, len(raw) - envelope.REPLY_BYTES)
            told.append(call)
        return told

    def _reply(self, call: PendingCall, kind: int, message: Message, headers_bytes: int) -> None:
        if kind == envelope.REPLY or (kind == envelope.PART and call.is_stream):
            call.has_begun = True
            call.window -= envelope.part_bytes(len(message.payload), headers_bytes)
            if kind == envelope.PART and call.window < -self.source.writer.message_bytes_max:
                self.end(call, ProtocolViolation("the server sends more than it was asked for"))
                return
            call.replies.append(message.behind(envelope.REPLY_BYTES))
            if kind == envelope.REPLY:
                self.end(call)
        elif kind == envelope.END and call.is_stream:
            call.has_begun = True
            self.end(call)
        elif kind == envelope.ERROR:
            self.end(call, _error(message.payload))
        elif kind == envelope.UNTOUCHED:
            self.end(call, lost(self.source.channel))
            call.is_untouched = True
        else:
            self.end(call, ProtocolViolation("the server's reply is of no kind that the call can have"))

    def find_lost(self) -> list[PendingCall]:
        """End the calls whose server is gone; return them. Call it when a receive gave nothing.

        O(servers + calls) when somebody has gone, else O(servers).
        """
        ended = self.ended
        if ended is not None:
            gone = list(self.pending.values())
            for call in gone:
                self.end(call, ended.again())
            return gone
        following = self.replies.following
        answerers = {
            source: party[0] for source, party in self.replies.parties.items() if source in following
        }
        closed = {server for source, server in self._answerers.items() if source not in answerers}
        self._answerers = answerers
        there = {*self.source.writer.readers(), *answerers.values()} - closed
        if all(server in there for server in self.outstanding):
            return []
        gone = [call for call in self.pending.values() if call.server not in there]
        for call in gone:
            self.end(call, lost(self.source.channel))
        return gone


def _error(raw: bytes) -> TowpathError:
    try:
        return convert.error_from_proto(error_pb2.Error.FromString(raw))
    except DecodeError:
        return ProtocolViolation("the server's error cannot be read")


def lost(service: str) -> ServerLost:
    """The server of a call is gone."""
    return ServerLost(f"the server of {service!r} that worked on the call is gone")


def no_server(service: str) -> NoServer:
    """Nobody serves."""
    return NoServer(f"nobody serves {service!r}", hint=f"start one: towpath answer {service} -- CMD")


def too_late(service: str) -> Timeout:
    """The deadline of a call has passed."""
    return Timeout(
        f"no reply from {service!r} in time",
        hint="the server is told; it may have carried it out all the same",
    )


def is_past(deadline_ns: int | None) -> bool:
    """Whether a deadline has passed."""
    return deadline_ns is not None and time.monotonic_ns() >= deadline_ns
