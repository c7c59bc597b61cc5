"""Locks from afar: which peer keeps which lock session, and what is passed on for it.

Theory of operation
    What is asked about locks goes to the core as it came (``_forwarding``), and so do the answers. But the
    core sees one connection, the gateway's, and one principal, for all peers. So the gateway itself looks
    that a peer acts for no session but those that it keeps: a session is its stream's (:class:`KeptSession`),
    and only calls that come by the connection of that stream may name it.

    A peer that withdraws a request, and one whose connection breaks, look alike: their calls are cancelled.
    The first wants the request gone, the second must keep its place, and the lock if it gets one meanwhile,
    for as long as its session may be taken up. The core goes by the session's stream: a wait that is
    cancelled when nobody keeps the session goes on. So a wait whose peer is gone is not given up before its
    session's stream is.

    How a peer's end is told apart is the carrier's to know (``is_cut``).

Invariants
    A call that waits is answered once, and then over. One that its peer has withdrawn holds nothing, be it
    that it was granted meanwhile, unless that had been sent: who has read it may end the call at once, and
    who withdraws without having read it releases the request. What waits for a peer that does not read is
    bounded.

Not here: who may do what (the core), leases (``local.lock_calls``): each ``alive`` of a peer is passed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from dataclasses import replace
from typing import Any, Final

from towpath.aio.kinds import AsyncKinds
from towpath.asking import Following
from towpath.errors import InvalidArgument, LimitExceeded, ProtocolViolation, TowpathError, Unavailable
from towpath.locks import requests
from towpath.v1 import locks_pb2
from towpath_broker.gateways import _forwarding

KEEP: Final = "keep_lock_session"
WATCH: Final = "watch_locks"
WAITS: Final = ("acquire", "upgrade_lock", "wait_condition", "arrive_barrier")
"""Answered at most once that they wait, then for the last time."""
CALLS: Final = ("downgrade_lock", "release", "write_guarded", "notify_condition", "declare_claims")
"""Answered once, and for a session."""
PLAIN: Final = ("force_release", "define_lock_space", "list_lock_spaces", "list_locks", "explain_locks")
"""Answered once, and for no session: passed on as they come."""
NOTICES_MAX: Final = 4_096
"""Of a session, that its peer has not read: who sends ``alive`` and does not read loses its stream."""
CHANGES_MAX: Final = 4_096
"""Of a watch, that its peer has not read: beyond they are left out, and it begins anew."""

Send = Callable[[Any], Awaitable[None]]


class KeptSession:
    """A lock session's stream, of one peer.

    Attributes:
        peer: the connection that it came by.
        left: set when the core has been told that nobody keeps the session.
    """

    def __init__(self, peer: Hashable, is_cut: Callable[[], Awaitable[bool]]) -> None:
        self.peer = peer
        self.is_cut = is_cut
        self.left = asyncio.Event()
        self._answers = _forwarding.Answers()
        self._following: Following | None = None

    async def run(self, asker: AsyncKinds, opening: Any, opened: Callable[[int], None], send: Send) -> None:
        """Keep the session until it ends, or this is cancelled; returns when its end was sent.

        Args:
            opening: the stream's first request.
            opened: is told the session's number.

        Raises:
            TowpathError: why it cannot be kept any more.
        """
        call = replace(_forwarding.call_of(KEEP, opening), is_last=_is_last_notice)
        self._following = asker._follow(lambda: call, self._answers)
        try:
            while True:
                notice = await self._answers.get()
                if notice.HasField("opened"):
                    opened(notice.opened.session)
                await send(notice)
                if _is_last_notice(notice):
                    return
        finally:
            self._following.leave()
            self.left.set()

    def take(self, request: Any) -> None:
        """Pass on what the peer sent after its first request.

        Raises:
            ProtocolViolation, LimitExceeded: it may not be sent; the stream must end.
        """
        if request.WhichOneof("event") not in ("alive", "close"):
            raise ProtocolViolation("a lock session's stream opens it once; then come alive and close")
        if len(self._answers) >= NOTICES_MAX:
            raise LimitExceeded(f"{NOTICES_MAX} notices of the lock session were not read")
        if self._following is not None:
            self._following.send(request)


class LockPeers:
    """The lock sessions of a gateway's peers.

    Args:
        asker: asks for the principal of the gateway's peers.
    """

    def __init__(self, asker: AsyncKinds) -> None:
        self._asker = asker
        self._sessions: dict[int, KeptSession] = {}

    async def keep(self, session: KeptSession, opening: Any, place: str, send: Send) -> None:
        """Keep a session for a peer; see :meth:`KeptSession.run`.

        Args:
            place: the peer's address, for people.
        """
        if opening.WhichOneof("event") != "open":
            raise InvalidArgument("the first message of a lock session's stream opens it")
        opening.open.place = place
        number = 0

        def opened(given: int) -> None:
            nonlocal number
            number = given
            self._sessions[number] = session

        try:
            await session.run(self._asker, opening, opened, send)
        finally:
            if self._sessions.get(number) is session:
                del self._sessions[number]

    async def wait(self, name: str, body: Any, peer: Hashable, send: Send) -> None:
        """Carry out a call that waits; returns when its last answer was sent. Cancelled, it withdraws the
        request, unless the peer is gone, or may have read the last answer: then it has what it was granted.

        Raises:
            Unavailable: the peer does not keep the session.
            TowpathError: what the core refused with.
        """
        kept = self._check(name, body, peer)
        answers = _forwarding.Answers()
        call = replace(_forwarding.call_of(name, body), is_last=_is_over)
        following = self._asker._follow(lambda: call, answers)
        is_told = may_be_told = False
        try:
            while not is_told:
                answer = await answers.get()
                may_be_told = _is_over(answer)
                await send(answer)
                is_told = may_be_told
        except TowpathError:
            is_told = True
            raise
        finally:
            if not is_told:
                if await kept.is_cut():
                    await kept.left.wait()
                elif name == "acquire" and not may_be_told:
                    following.leave()
                    self._give_back(body)
            following.leave()

    def _give_back(self, body: Any) -> None:
        """Release what a request was granted perhaps, just before it was withdrawn."""
        self._asker._post(requests.release(body.owner.session, body.request), lambda _: None)

    async def ask(self, name: str, body: Any, peer: Hashable, timeout_s: float | None) -> Any:
        """Pass on a call for a session; returns its answer.

        Raises:
            Unavailable: the peer does not keep the session.
            TowpathError: what the core refused with.
        """
        self._check(name, body, peer)
        return await self._asker.pass_on(_forwarding.call_of(name, body), timeout=timeout_s)

    async def watch(self, body: Any) -> AsyncGenerator[Any, None]:
        """Follow locks; yields what is to be sent. Close it when done.

        Raises:
            TowpathError: why there is no more.
        """
        call = _forwarding.call_of(WATCH, body)
        while True:
            changes = _Changes()
            following = self._asker._follow(lambda: call, changes)
            try:
                while not changes.missed:
                    yield await changes.get()
            finally:
                following.leave()
            yield locks_pb2.WatchLocksResponse(missed=changes.missed)

    def _check(self, name: str, body: Any, peer: Hashable) -> KeptSession:
        owned = name in ("acquire", "arrive_barrier", "declare_claims")
        number = body.owner.session if owned else body.session
        kept = self._sessions.get(number)
        if kept is None or kept.peer != peer:
            raise Unavailable(
                f"lock session {number} is not kept by this connection",
                hint="KeepLockSession opens one, or takes up your own",
            )
        return kept


class _Changes(_forwarding.Answers):
    """A watch's changes; when too many were not taken, those that were left out are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.missed = 0

    def came(self, item: Any) -> None:
        if self.missed or len(self) >= CHANGES_MAX:
            self.missed += 1 if self.missed else len(self) + 1
        else:
            super().came(item)


def _is_last_notice(notice: locks_pb2.KeepLockSessionResponse) -> bool:
    return notice.HasField("lost")


def _is_over(answer: Any) -> bool:
    return not answer.HasField("waiting")
