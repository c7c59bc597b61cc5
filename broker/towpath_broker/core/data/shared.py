"""What the channels of one machine have in common: limits, quotas, who streams, and counters."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from towpath.errors import InvalidArgument, TowpathError
from towpath_broker.core.commands import Caller
from towpath_broker.core.ids import CallId, SessionId
from towpath_broker.core.limits import Limits
from towpath_broker.core.quotas import Tally

from .effects import Refuse, Reply, ReplyBody
from .round import Round
from .rows import Run
from .undo import Undo
from .usage import Usage


class Stream(Protocol):
    """A call that goes on: a consumer, a watcher, a publication that waits for room."""

    session: SessionId
    call: CallId
    principal: str

    def leave(self, round_: Round, *, is_orderly: bool) -> None:
        """End without a word to the caller, who has cancelled it or is gone.

        Args:
            is_orderly: the caller has cancelled it.
        """


class Letterbox(Protocol):
    """Takes dead letters."""

    def post(self, channel: str, run: Run, priority: int, round_: Round) -> None:
        """Publish dead letters on a channel, or count them as lost."""


class Shared:
    """Common to all channels of a machine.

    Args:
        is_durable: what happens becomes rows.
        first_consumer: the number of the first consumer; the others follow in steps of 2.
    """

    def __init__(self, limits: Limits, *, is_durable: bool, first_consumer: int) -> None:
        self.limits = limits
        self.is_durable = is_durable
        self.next_consumer = first_consumer
        self.usage = (
            Usage(
                "bytes in durable channels",
                "store_bytes_max",
                limits.store_bytes_max,
                "store_bytes_per_principal_max",
                limits.store_bytes_per_principal_max,
            )
            if is_durable
            else Usage(
                "bytes in queues",
                "queue_bytes_max",
                limits.queue_bytes_max,
                "queue_bytes_per_principal_max",
                limits.queue_bytes_per_principal_max,
            )
        )
        self.unsettled = Usage(
            "deliveries that may be unsettled",
            "unsettled_max",
            limits.unsettled_max,
            "unsettled_per_principal_max",
            limits.unsettled_per_principal_max,
        )
        self.value_bytes = Usage(
            "bytes of values",
            "values_bytes_max",
            limits.values_bytes_max,
            "values_bytes_per_principal_max",
            limits.values_bytes_per_principal_max,
        )
        self.consumers = Tally("consumers_per_principal_max", "consumers")
        self.watchers = Tally("watchers_per_principal_max", "watchers of values")
        self.counters: Counter[str] = Counter()
        self.letterbox: Letterbox
        self.consumer_queue: dict[int, str] = {}  # which queue a consumer has
        self._streams: dict[SessionId, dict[CallId, Stream]] = {}

    def count(self, what: str, more: int, undo: Undo) -> None:
        """Count what has happened."""
        undo.put(self.counters, what, self.counters[what] + more)

    # ---- streams -------------------------------------------------------------------------------------------

    def check_call(self, caller: Caller) -> SessionId:
        """Return the session of a call that is to stream.

        Raises:
            InvalidArgument: a call of the session with that number is not over.
        """
        assert caller.session is not None
        if caller.call in self._streams.get(caller.session, ()):
            raise InvalidArgument(f"call {caller.call} is not over", hint="each call has a number of its own")
        return caller.session

    def add_stream(self, stream: Stream, undo: Undo) -> None:
        """A call goes on."""
        undo.add(self._forget_stream, stream)
        self._streams.setdefault(stream.session, {})[stream.call] = stream

    def remove_stream(self, stream: Stream, undo: Undo) -> None:
        """A call is over."""
        undo.add(self._keep_stream, stream)
        self._forget_stream(stream)

    def stream(self, session: SessionId, call: CallId) -> Stream | None:
        """Return a call that goes on."""
        return self._streams.get(session, {}).get(call)

    def streams_of(self, session: SessionId) -> tuple[Stream, ...]:
        """Return what a session has that goes on."""
        return tuple(self._streams.get(session, {}).values())

    def _keep_stream(self, stream: Stream) -> None:
        self._streams.setdefault(stream.session, {})[stream.call] = stream

    def _forget_stream(self, stream: Stream) -> None:
        calls = self._streams[stream.session]
        del calls[stream.call]
        if not calls:
            del self._streams[stream.session]

    def streams_count(self) -> int:
        """Return how many calls go on. O(sessions)."""
        return sum(map(len, self._streams.values()))


def add_tally(tally: Tally, principal: str, maximum: int, undo: Undo) -> None:
    """Count one more.

    Raises:
        QuotaExceeded: the principal has as many as it may have.
    """
    tally.check(principal, maximum)
    tally.add(principal)
    undo.add(tally.remove, principal)


def remove_tally(tally: Tally, principal: str, undo: Undo) -> None:
    """Count one less."""
    tally.remove(principal)
    undo.add(tally.add, principal)


def reply(round_: Round, caller: Caller, body: ReplyBody) -> None:
    """Answer a call; the daemon's own get no answer."""
    if caller.session is not None:
        round_.effects.append(Reply(caller.session, caller.call, body))


def refuse(round_: Round, caller: Caller, error: TowpathError) -> None:
    """Refuse a call."""
    if caller.session is not None:
        round_.effects.append(Refuse(caller.session, caller.call, error))
