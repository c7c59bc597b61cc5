"""Sessions and the ids they own.

Theory of operation
    A session is one connection that has said hello. It is given a block of ids for its sources and readers
    and may ask for more; an id is used once. A client that comes back after a restart or a broken
    connection *resumes* the ids it had, because its rings and control pages have them written inside. So an
    id is taken in one of two ways: from a block of the session's own, where it must be unused; or resumed,
    where it must have been given out in the past and be nobody's now.

Invariants
    Numbers are given out in increasing order, each at most once per host.
    No two sessions own the same id.
    ``Session.sources`` and ``Session.readers`` list what is live of it.

Not here: the proof that whoever resumes an id is the one who had it, which the door asks for before a
command comes here (``local.tokens``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from towpath.errors import InvalidArgument, LimitExceeded, PermissionDenied

from .commands import OpenSession
from .ids import BindingId, CallId, ConnectionId, ReaderId, SessionId, SourceId, end_id, first_id
from .limits import ID_BLOCKS_PER_SESSION_MAX, IDS_PER_ALLOCATION_MAX, IDS_PER_SESSION, Limits
from .quotas import Tally


@dataclass(slots=True, eq=False)
class Block:
    """Ids first .. first + count - 1; bit i of ``unused`` is set while first + i is unused."""

    session: SessionId
    first: int
    count: int
    unused: int


@dataclass(slots=True, eq=False)
class Session:
    """One connection that has said hello. The dictionaries without values are sets that keep their order.

    ``is_own`` is true of the core's own session alone, which has no connection.
    """

    id: SessionId
    connection: ConnectionId
    principal: str
    is_admin: bool
    gateway: str
    pid: int
    name: str
    is_own: bool = False
    blocks: deque[Block] = field(default_factory=deque)
    sources: dict[SourceId, None] = field(default_factory=dict)
    readers: dict[ReaderId, None] = field(default_factory=dict)
    watches: dict[CallId, None] = field(default_factory=dict)
    waits: dict[CallId, BindingId] = field(default_factory=dict)


class Sessions:
    """All sessions of one incarnation, and the sequence of ids."""

    def __init__(self) -> None:
        self._by_id: dict[SessionId, Session] = {}
        self._tally = Tally("sessions_per_principal_max", "sessions")
        self._starts: list[int] = []  # of the blocks below, in increasing order
        self._blocks: dict[int, Block] = {}
        self._next = 0
        self._end = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Session]:
        """The sessions, the oldest first."""
        return iter(self._by_id.values())

    def start(self, incarnation: int) -> None:
        """Begin the sequence of an incarnation."""
        assert not self._by_id and not self._blocks, "a run begins with nobody connected"
        self._next = first_id(incarnation)
        self._end = end_id(incarnation)

    def get(self, identifier: SessionId | None) -> Session | None:
        """Return an open session."""
        return None if identifier is None else self._by_id.get(identifier)

    def open(self, command: OpenSession, limits: Limits) -> tuple[Session, Block]:
        """Make a session and give it its first block of ids.

        Raises:
            LimitExceeded, QuotaExceeded: there are as many sessions as there may be.
        """
        if len(self._by_id) >= limits.sessions_max:
            raise LimitExceeded(
                f"there are {len(self._by_id)} sessions: sessions_max is {limits.sessions_max}"
            )
        self._tally.check(command.principal, limits.sessions_per_principal_max)
        self._check_left(1 + IDS_PER_SESSION)
        session = Session(
            id=SessionId(self._next),
            connection=command.connection,
            principal=command.principal,
            is_admin=command.is_admin,
            gateway=command.gateway,
            pid=command.pid,
            name=command.name,
        )
        self._next += 1
        self._by_id[session.id] = session
        self._tally.add(session.principal)
        return session, self._give(session, IDS_PER_SESSION)

    def make_own(self, principal: str) -> Session:
        """Make the core's own session: it is not listed, counts for no quota, and lasts for the run."""
        identifier = SessionId(self.take_own_id())
        return Session(identifier, ConnectionId(0), principal, False, "", 0, principal, is_own=True)

    def take_own_id(self) -> int:
        """Return an id for the core's own use.

        Raises:
            LimitExceeded: this incarnation has no ids left.
        """
        self._check_left(1)
        self._next += 1
        return self._next - 1

    def was_given(self, identifier: int) -> bool:
        """Whether an id was given out in this run or an earlier one. O(1)."""
        return 1 <= identifier < self._next

    def allocate(self, session: Session, count: int) -> Block:
        """Give a session one more block of ids; what is unused of its oldest may lapse.

        Args:
            count: 1 to 4096.

        Raises:
            InvalidArgument: the count is out of range.
            LimitExceeded: this incarnation has no ids left (after 2**40).
        """
        if not 1 <= count <= IDS_PER_ALLOCATION_MAX:
            raise InvalidArgument(
                f"{count} ids cannot be allocated",
                hint=f"1 to {IDS_PER_ALLOCATION_MAX} can, as often as needed",
            )
        self._check_left(count)
        if len(session.blocks) >= ID_BLOCKS_PER_SESSION_MAX:
            self._forget(session.blocks.popleft())
        return self._give(session, count)

    def check_free(self, session: Session, identifier: int, *, is_resumed: bool) -> None:
        """Refuse an id that the session may not use; the caller has made sure that it is not live.

        Raises:
            InvalidArgument: it is not an unused id of the session, or was never given out.
            PermissionDenied: it belongs to another session.
        """
        block = self._block_of(identifier)
        if not is_resumed:
            if block is None or block.session != session.id:
                raise InvalidArgument(
                    f"id {identifier} is not of a block of this session's", hint="allocate ids and use those"
                )
            if not block.unused >> (identifier - block.first) & 1:
                raise InvalidArgument(f"id {identifier} was used before", hint="each id is used once")
            return
        if not 1 <= identifier < self._next:
            raise InvalidArgument(f"id {identifier} cannot be resumed: it was never given out")
        if block is not None:
            raise PermissionDenied(
                f"id {identifier} cannot be resumed: it belongs to a session that is open",
                hint="resume it when the connection that had it is closed",
            )

    def use(self, identifier: int) -> None:
        """Mark an id that :meth:`check_free` let through as used."""
        block = self._block_of(identifier)
        if block is not None:
            block.unused &= ~(1 << (identifier - block.first))

    def close(self, session: Session) -> None:
        """Forget a session, whose sources, readers, watches and waits are gone already."""
        assert not session.sources and not session.readers and not session.watches and not session.waits
        for block in session.blocks:
            self._forget(block)
        session.blocks.clear()
        self._tally.remove(session.principal)
        del self._by_id[session.id]

    def _check_left(self, count: int) -> None:
        if self._next + count > self._end:
            raise LimitExceeded("this run of the daemon has given out all its ids", hint="restart the daemon")

    def _give(self, session: Session, count: int) -> Block:
        block = Block(session.id, self._next, count, (1 << count) - 1)
        self._next += count
        session.blocks.append(block)
        self._starts.append(block.first)
        self._blocks[block.first] = block
        return block

    def _forget(self, block: Block) -> None:
        del self._starts[bisect_right(self._starts, block.first) - 1]
        del self._blocks[block.first]

    def _block_of(self, identifier: int) -> Block | None:
        index = bisect_right(self._starts, identifier) - 1
        if index < 0:
            return None
        block = self._blocks[self._starts[index]]
        return block if identifier < block.first + block.count else None

    def assert_consistent(self) -> None:
        """Assert the invariants; for tests. O(sessions)."""
        assert self._tally.total() == len(self._by_id)
        assert self._starts == sorted(self._blocks)
        owned = [block.first for session in self._by_id.values() for block in session.blocks]
        assert sorted(owned) == self._starts
        ends = [start + self._blocks[start].count for start in self._starts]
        assert all(end <= start for end, start in zip(ends, self._starts[1:], strict=False))
        assert not ends or ends[-1] <= self._next
