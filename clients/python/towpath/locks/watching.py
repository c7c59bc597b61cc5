"""Following what happens to locks: what one watch knows, over the connections that it sees; and
waiting for it in the caller's thread.

Theory of operation
    A watch begins with what is held (``held``), then is told each grant, each end of one, and
    each request that has to wait. Where something
    is left out, it is told (``reset``), and what is held follows anew: because the daemon could not send all
    (``missed`` says how many), because the connection was made anew, or because the program let more than
    ``EVENTS_MAX`` wait.

Invariants
    Events come in the order in which they happened; a gap is told.

Not here: which locks the daemon tells of (``towpath_broker.local.lock_watches``).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from towpath.errors import ConnectionLost, Timeout, TowpathError
from towpath.handles import Handle
from towpath.locks import model, requests
from towpath.result import attempt
from towpath.v1 import locks_pb2
from towpath.waiting import FOREVER, deadline_ns, remaining_ns

if TYPE_CHECKING:
    from towpath.sync.kinds import Kinds

EVENTS_MAX: Final = 65_536
"""Events that wait for the program."""


@dataclass(frozen=True, slots=True)
class LockEvent:
    """Something that happened to a lock.

    Attributes:
        kind: ``held`` (as it is when the watch begins, or begins anew), ``granted``, ``released``,
            ``waiting``; ``reset``: something was left out, and what is held follows.
        grant: None with ``waiting`` and ``reset``.
        reason: of ``released``: ``released``, ``session_closed``, ``session_died``, ``lease_expired``,
            ``forced``, ``condition``, ``reboot``.
        missed: of ``reset``: how many events; 0: it is not known.
        wait: of ``waiting``: a request that waits from now on.
    """

    kind: Literal["held", "granted", "released", "waiting", "reset"]
    grant: model.Grant | None = None
    reason: str = ""
    missed: int = 0
    wait: model.Wait | None = None


def _events(response: locks_pb2.WatchLocksResponse) -> list[LockEvent]:
    match response.WhichOneof("event"):
        case "current":
            page = model.page_from_proto(response.current)
            return [LockEvent("held", grant) for lock in page.locks for grant in lock.holders]
        case "granted":
            return [LockEvent("granted", model.grant_from_proto(response.granted))]
        case "released":
            told = response.released
            known = told.reason in locks_pb2.ReleaseReason.values()
            reason = locks_pb2.ReleaseReason.Name(told.reason) if known else ""
            reason = reason.removeprefix("RELEASE_REASON_").lower()
            return [LockEvent("released", model.grant_from_proto(told.grant), reason)]
        case "waiting":
            return [LockEvent("waiting", wait=model.wait_from_proto(response.waiting))]
        case "missed":
            return [LockEvent("reset", missed=response.missed)]
        case _:
            return []


def may_be_written(event: LockEvent) -> bool:
    """Whether what a lock owns may be another value now: somebody had it exclusively."""
    grant = event.grant
    is_written = event.kind == "released" and grant is not None and grant.mode is model.Mode.EXCLUSIVE
    return is_written or event.kind == "reset"


class WatchedLocks:
    """What one watch has heard, until the program takes it (``towpath.asking.Listener``).

    Args:
        wake: called when there is news.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._events: deque[LockEvent] = deque()
        self._left_out = 0
        self.why_ended: TowpathError | None = None

    def take(self) -> LockEvent | None:
        """The next event, if there is one."""
        try:
            return self._events.popleft()
        except IndexError:
            return None

    def take_left_out(self) -> int:
        """How many events were not kept, of a program that is too slow: the watch must be begun anew."""
        count, self._left_out = self._left_out, 0
        return count

    def came(self, response: locks_pb2.WatchLocksResponse) -> None:
        """The daemon tells."""
        found = _events(response)
        if self._left_out or len(self._events) + len(found) > EVENTS_MAX:
            self._left_out += max(len(found), 1)
        else:
            self._events.extend(found)
        self._wake()

    def broke(self, error: TowpathError) -> None:
        """The stream is asked for again on the next connection, and begins with what is held."""
        if not self._left_out:
            self._events.append(LockEvent("reset"))
            self._wake()

    def ended(self, error: TowpathError) -> None:
        """Nothing more will come."""
        if self.why_ended is None:
            self.why_ended = error
        self._wake()


class LockWatch(Handle):
    """What happens to locks, as an iterator; survives reconnections, and tells of gaps."""

    def __init__(self, client: Kinds, prefix: str) -> None:
        self._changed = threading.Condition()
        self._client = client
        self._request = partial(requests.watch_locks, prefix)
        self._request()  # a prefix that is none is refused here
        self._heard = WatchedLocks(self._wake)
        self._closed = False
        self._leave = client._follow(self._request, self._heard)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def receive(self, timeout: float | None = None) -> LockEvent:
        """Return the next event.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            Timeout: nothing happened.
            ConnectionLost: the watch, or the client, was closed.
        """
        deadline = deadline_ns(timeout)
        with self._changed:
            while (event := self._heard.take()) is None:
                if self._heard.why_ended is not None:
                    raise self._heard.why_ended.again()
                if left_out := self._heard.take_left_out():
                    event = LockEvent("reset", missed=left_out)
                    break
                self._client._check_not_forked()
                left = remaining_ns(deadline)
                if left == 0:
                    raise Timeout(f"nothing happened to the locks in {timeout} s", hint="")
                self._changed.wait(None if left == FOREVER else left / 1e9)
            else:
                return event
        self._leave()
        self._leave = self._client._follow(self._request, self._heard)
        return event

    def __iter__(self) -> Iterator[LockEvent]:
        """Yield events until the watch is closed."""
        while not self._closed:
            try:
                event = self.receive()
            except ConnectionLost:
                return
            yield event

    def close(self) -> None:
        """Stop watching; an iteration ends. More than once is fine."""
        if not self._closed:
            self._closed = True
            self._leave()
            self._heard.ended(ConnectionLost("the watch was closed", hint=""))

    try_receive = attempt(receive)
