"""The core's reader of a channel's publishers: who is read, who is away, and who has left for good.

Theory of operation
    The machine says who publishes. But a publisher whose session has ended need not be gone: its connection
    broke, or the core was started again and it has not come back yet. What it publishes meanwhile lies in its
    ring, so the core reads on. Such a publisher is *away*. It is back when the machine says so; it is gone
    when it has closed its ring, or when its time is over, which is short unless its doorbell says that it is
    there (``bells``). That it has none proves nothing: it may have been lost with the connection. Whoever is
    gone is read to the end, and then its slot is given back. So each message is taken in exactly once,
    whatever happens to connections and to the core.

Invariants
    A source that is away has a timer; one that is attached has none.
    A source is told to ``left`` when it is let go of, and only then.
    At most ``AWAY_MAX`` are away; beyond it, who has been for longest is taken for gone.

Not here: moving messages (own_channel), doorbells, memory that outlives the process (mediator).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from towpath import _ring
from towpath_broker.core.ids import ReaderId, SourceId
from towpath_broker.log import log

AWAY_S: Final = 30.0
"""How long a publisher may be away whose doorbell says that it is there; then it is taken for gone."""
GRACE_S: Final = 3.0
"""The same without a doorbell; as for clients (``RESUME_GRACE_NS``)."""
AWAY_MAX: Final = 64
"""Publishers of one channel that may be away at a time."""

Start = Literal["tail", "start", "history"]


@dataclass(frozen=True, slots=True)
class Sources:
    """What an intake must know of its sources, and whom it tells.

    Attributes:
        is_there: whether a source's doorbell says that its publisher is there.
        left: nothing more is read of a source.
        broken: its ring breaks the rules; ``left`` follows.
        failed: a source cannot be read, or no further; and why. Its publisher must not take for read what was
            not.
        changed: there may be something to read.
    """

    is_there: Callable[[SourceId], bool]
    left: Callable[[SourceId], object]
    broken: Callable[[SourceId], object]
    failed: Callable[[SourceId, str], object]
    changed: Callable[[], object]


class Intake:
    """The core as the one reader of a channel's publishers.

    Args:
        reader: its control page; closed with this object.
        channel: its name.
        sources: see there.
    """

    def __init__(self, reader: _ring.Reader, channel: str, sources: Sources) -> None:
        self.reader = reader
        self._channel = channel
        self._sources = sources
        self._loop = asyncio.get_running_loop()
        self._away: dict[SourceId, asyncio.TimerHandle] = {}

    @property
    def id(self) -> ReaderId:
        """The reader's."""
        return ReaderId(self.reader.reader)

    def is_reading(self, source: SourceId) -> bool:
        """Whether a source's ring is read; also when it is away, until it has been read to its end."""
        return source in self.reader.sources()

    # ---- they come -----------------------------------------------------------------------------------------

    def add(
        self,
        source: SourceId,
        slot: int,
        ring: int,
        start: Start,
        doorbell: int,
        unread_from: int | None = None,
    ) -> None:
        """Read a publisher's ring, or go on with it: the machine says that it is attached.

        Args:
            start: where to begin, if this page does not say where it was read up to.
            ring, doorbell: descriptors that stay the caller's; -1: it has no doorbell.
            unread_from: where this page says nothing of it: the position up to which another one had read it.
        """
        timer = self._away.pop(source, None)
        if timer is not None:
            timer.cancel()
        try:
            if self.is_reading(source):
                self.reader.revive(source)
                self.reader.set_doorbell(source, doorbell)
            elif start == "start" or not self._add_at_cursor(source, slot, ring, doorbell):
                if start != "start" and unread_from is not None:
                    self._add_at(unread_from, source, slot, ring, doorbell)
                else:
                    self.reader.add(ring, slot, source, self._channel, start, doorbell)
                    if start != "start":  # it was there before, and this page knows nothing of it
                        log("core.source_from_now_on", level="warning", channel=self._channel, source=source)
        except _ring.RingError as error:  # its own fault: it is not heard
            self._fail("core.source_not_read", source, str(error))
        self._sources.changed()

    def _fail(self, event: str, source: SourceId, why: str) -> None:
        log(event, level="warning", channel=self._channel, source=source, why=why)
        self._sources.failed(source, why)

    def recover(self, source: SourceId, slot: int, ring: int) -> None:
        """Go on with a publisher of an earlier core, which is away until the machine says that it is back."""
        self._add_at_cursor(source, slot, ring, -1)
        self._await_return(source)

    def _add_at(self, position: int, source: SourceId, slot: int, ring: int, doorbell: int) -> None:
        """Go on where another page had read up to.

        Raises:
            RingError: that cannot be.
        """
        _ring.seed(self.reader, slot, source, position)
        self.reader.add(ring, slot, source, self._channel, "cursor", doorbell)

    def _add_at_cursor(self, source: SourceId, slot: int, ring: int, doorbell: int) -> bool:
        """Go on where this page says that the source was read up to; False when it does not, or the ring
        cannot be read.
        """
        try:
            self.reader.add(ring, slot, source, self._channel, "cursor", doorbell)
        except _ring.RingError:
            return False
        return True

    # ---- they go -------------------------------------------------------------------------------------------

    def detached(self, source: SourceId) -> None:
        """The machine has let a publisher go: it is away, or gone."""
        if self.is_reading(source):
            self._await_return(source)
        else:
            self._leave(source)

    def bell_ended(self, source: SourceId) -> None:
        """A publisher has let go of its doorbell, or the doorbell never reached it."""
        if source in self._away:
            self._await_return(source)

    def _await_return(self, source: SourceId) -> None:
        timer = self._away.pop(source, None)
        if timer is not None:
            timer.cancel()
        if len(self._away) >= AWAY_MAX:
            self._finish(next(iter(self._away)))
        seconds = AWAY_S if self._sources.is_there(source) else GRACE_S
        self._away[source] = self._loop.call_later(seconds, self._finish, source)

    def _finish(self, source: SourceId) -> None:
        """A publisher is gone: read its ring to the end."""
        timer = self._away.pop(source, None)
        if timer is not None:
            timer.cancel()
        if self.is_reading(source):
            self.reader.finish(source)
            self._sources.changed()
        else:
            self._leave(source)

    def _leave(self, source: SourceId) -> None:
        timer = self._away.pop(source, None)
        if timer is not None:
            timer.cancel()
        self.reader.remove(source)
        self._sources.left(source)

    def tend(self) -> None:
        """Let go of sources that were read to their end, or can be read no more."""
        for source, why in self.reader.take_violations():
            self._fail("core.source_left", SourceId(source), why)
            self._sources.broken(SourceId(source))
            self._leave(SourceId(source))
        for source in self.reader.take_detached():
            self._fail("core.source_left", SourceId(source), "overtaken")
            self._leave(SourceId(source))
        for source in self.reader.take_drained():
            self._leave(SourceId(source))

    # ---- the end -------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of all publishers; they wait for the core no more."""
        for timer in self._away.values():
            timer.cancel()
        self._away.clear()
        self.reader.close()
