"""Which descriptor belongs to which source, reader and session: what clients gave, checked, to be handed on.

Theory of operation
    A client offers a ring or a control page together with its request to attach it. It is checked before
    anything else (sealed, read-only, of the size it says, made for this very id) and kept under its id;
    when the core refuses the request, or lets the source or reader go, it is closed. What is handed on is
    the same descriptor again, read-only: no one but its maker can ever write.

Invariants
    An id has at most one descriptor. Whoever is handed one gets it from here, checked.
"""

from __future__ import annotations

from towpath import _ring, wire
from towpath.errors import BadDescriptor, InvalidArgument
from towpath_broker.core.ids import ReaderId, SessionId, SourceId

from .traffic import RingTraffic


class Descriptors:
    """The table. Descriptors close when their entry goes and no frame that waits to be sent has them any
    more.

    Attributes:
        traffic: what the rings that are held tell of themselves.
    """

    def __init__(self) -> None:
        self.traffic = RingTraffic()
        self._rings: dict[SourceId, wire.Descriptor] = {}
        self._pages: dict[ReaderId, wire.Descriptor] = {}
        self._doorbells: dict[SessionId, wire.Descriptor] = {}
        self._unread: dict[SourceId, int] = {}

    def offer_unread(self, source: SourceId, position: int) -> None:
        """Keep what a publisher says of how far its ring was read; after ``offer_ring``."""
        self._unread[source] = position

    def take_unread(self, source: SourceId) -> int | None:
        """What it said, once."""
        return self._unread.pop(source, None)

    def offer_ring(
        self,
        source: SourceId,
        ring: wire.Descriptor,
        *,
        channel: str = "",
        is_resumed: bool = False,
        is_whole: bool = False,
    ) -> int:
        """Check a ring and keep it; return its capacity in bytes.

        Args:
            channel: where what it carries is counted.
            is_resumed: what it carried so far has been counted.
            is_whole: it carries all that the channel's other rings do.

        Raises:
            BadDescriptor: it is not a ring that can be trusted, or was made for another id.
            InvalidArgument: the id is in use.
        """
        try:
            made_for, capacity = _ring.check_ring(ring.fd)
        except _ring.RingError as error:
            raise BadDescriptor(f"the ring offered cannot be used: {error}") from None
        if made_for != source:
            raise BadDescriptor(f"the ring offered was made for source {made_for}, not {source}")
        if source in self._rings:
            raise InvalidArgument(f"source {source} is attached already")
        self._rings[source] = ring
        self.traffic.begin(source, channel, ring, is_resumed=is_resumed, is_whole=is_whole)
        return capacity

    def offer_page(self, reader: ReaderId, slots: int, page: wire.Descriptor) -> None:
        """Check a control page and keep it.

        Raises:
            BadDescriptor: it is not a control page that can be trusted, or was made for another id or
            number of slots.
            InvalidArgument: the id is in use.
        """
        try:
            made_for, has = _ring.check_control(page.fd)
        except _ring.RingError as error:
            raise BadDescriptor(f"the control page offered cannot be used: {error}") from None
        if made_for != reader or has != slots:
            raise BadDescriptor(
                f"the control page offered was made for reader {made_for} with {has} slots,"
                f" not {reader} with {slots}"
            )
        if reader in self._pages:
            raise InvalidArgument(f"reader {reader} is attached already")
        self._pages[reader] = page
        self.traffic.begin_reader(reader, page)

    def keep_doorbell(self, session: SessionId, doorbell: wire.Descriptor) -> None:
        """Keep the sending end of a session's doorbell."""
        self._doorbells[session] = doorbell

    def ring(self, source: SourceId) -> wire.Descriptor:
        """The ring of a source that is attached."""
        return self._rings[source]

    def page(self, reader: ReaderId) -> wire.Descriptor:
        """The control page of a reader that is attached."""
        return self._pages[reader]

    def doorbell(self, session: SessionId) -> wire.Descriptor | None:
        """A session's doorbell; None when it gave none."""
        return self._doorbells.get(session)

    def withdraw_ring(self, source: SourceId) -> None:
        """The source that was offered with it is refused: it was never there."""
        self.traffic.withdraw(source)
        self._rings.pop(source, None)
        self._unread.pop(source, None)

    def drop_source(self, source: SourceId) -> None:
        self.traffic.end(source)
        self._rings.pop(source, None)
        self._unread.pop(source, None)

    def drop_reader(self, reader: ReaderId) -> None:
        self.traffic.end_reader(reader)
        self._pages.pop(reader, None)

    def drop_session(self, session: SessionId) -> None:
        self._doorbells.pop(session, None)

    def counts(self) -> tuple[int, int, int]:
        """How many rings, control pages and doorbells are held."""
        return len(self._rings), len(self._pages), len(self._doorbells)
