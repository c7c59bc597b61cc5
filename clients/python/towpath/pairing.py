"""Who follows whom, as one session knows it: its readers' sources and its sources' readers, sans-I/O.

Theory of operation
    A source and a reader that follow each other are a pair, and only the core knows both. It tells each
    side by notices: ``SourceAdded`` to the reader's session, ``ReaderAdded`` to the source's, and the same
    for those that go, are overtaken or come back. Here they are carried out on the ring objects, at once.

    A reader holds a *slot* of its page for each source. It is released, to the core, when both have let go:
    the core by a notice, and the reader by having read the source's ring to its end. What ends early (a
    ring that is broken, a source that went on without us) is not read to the end, but the slot waits for
    the notice all the same.

    After the core was started again, who was there is taken for being there still, until told otherwise or
    until the time to come back is over (:meth:`Pairing.expire`).

Invariants
    A reader that the core has told a source of is attached to its writer before the generation that
    includes it is installed. A slot is released only when the reader has drained the ring of its source, or
    given it up. A notice on an end that is closed is ignored: the core learns of its closing in its own
    order.

Not here: making ends and taking them up again (``protocol``), the ends themselves (``ends``).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from towpath import calls, convert, wire
from towpath.ends import ReaderState, SourceState
from towpath.errors import LimitExceeded, SlowConsumer, host_limits
from towpath.v1 import frame_pb2
from towpath.v1.frame_pb2 import Frame

if TYPE_CHECKING:
    from towpath import _ring
else:
    try:
        from towpath import _ring
    except ImportError:
        _ring = None

_log = logging.getLogger("towpath")

Start = Literal["start", "history", "tail", "cursor"]


class Pairing:
    """The sources and readers of one session, and who is paired with them.

    Args:
        tell: says something to the core whose answer does not matter; drops it while there is no connection.
    """

    def __init__(self, tell: Callable[[calls.Call[Any]], None]) -> None:
        self._tell = tell
        self.sources: dict[int, SourceState] = {}
        self.readers: dict[int, ReaderState] = {}

    def tend(self, state: ReaderState) -> None:
        """Let go of sources that are drained, of those that broke their ring, and of those that went on
        without us.
        """
        if state.id not in self.readers:
            return
        for source, why in state.reader.take_violations():
            _log.warning("source %d of channel %s is dropped: %s", source, state.channel, why)
            self._tell(calls.report_broken_source(state.id, source))
            self._stop_following(state, source)
        for source in state.reader.take_detached():
            state.overtaken.add(source)
            state.troubles.append(
                SlowConsumer(
                    f"this subscription was too slow for publisher {source}"
                    f" of {state.following.get(source, state.channel)!r},"
                    " which went on without it",
                    hint="what was not read of that publisher is lost; subscribe again to follow it again",
                )
            )
            self._stop_following(state, source)
        for source in state.reader.take_drained():
            if source in state.late:
                state.late[source] = _ring.next_seq(state.reader, source)
            self._stop_following(state, source)

    def _stop_following(self, state: ReaderState, source: int) -> None:
        state.following.pop(source, None)
        state.reader.remove(source)
        if source in state.gone:
            self._release(state, source)

    def _release(self, state: ReaderState, source: int) -> None:
        state.gone.discard(source)
        state.unconfirmed.discard(source)
        state.overtaken.discard(source)
        state.parties.pop(source, None)
        state.stored.discard(source)
        if state.slots.pop(source, None) is not None:
            self._tell(calls.release_slot(state.id, source))

    def _let_go(self, state: ReaderState, source: int) -> None:
        """The core has let a source go, or it did not come back."""
        state.gone.add(source)
        if source in state.following:
            state.reader.finish(source)
            state.wake()
        else:
            self._release(state, source)

    def expire(self) -> None:
        """Take for dead who has not come back."""
        for source in self.sources.values():
            for reader in source.orphans:
                source.writer.part(reader)  # it may be stopped, and hold loaned messages
            if source.orphans:
                source.orphans = set()
                source.wake()
        for state in self.readers.values():
            lost, state.unconfirmed = state.unconfirmed, set()
            state.is_taken_up = False  # who comes now is new
            state.late.update(dict.fromkeys(lost & state.following.keys() - state.excluded, 0))
            while len(state.late) > state.slot_count:
                del state.late[next(iter(state.late))]
            for each in lost:
                self._let_go(state, each)

    # ---- notices ----

    def notice(self, frame: Frame, descriptors: list[wire.Descriptor]) -> None:
        """Carry out a notice; one that is not about sources or readers is ignored."""
        match frame.WhichOneof("body"):
            case "source_added":
                self._source_added(frame.source_added, descriptors)
            case "source_gone":
                self._source_gone(frame.source_gone)
            case "source_excluded":
                self._source_excluded(frame.source_excluded)
            case "source_detached":
                self._source_detached(frame.source_detached)
            case "reader_added":
                self._reader_added(frame.reader_added, descriptors)
            case "reader_gone":
                self._reader_gone(frame.reader_gone)
            case "subscription_ended":
                reader = self.readers.get(frame.subscription_ended.reader)
                if reader is not None:
                    reader.end(convert.error_from_proto(frame.subscription_ended.error))
            case "publication_held":
                source = self.sources.get(frame.publication_held.source)
                if source is not None:
                    held = frame.publication_held
                    source.hold(convert.error_from_proto(held.error) if held.HasField("error") else None)
            case "publication_ended":
                source = self.sources.get(frame.publication_ended.source)
                if source is not None:
                    source.end(convert.error_from_proto(frame.publication_ended.error))
            case _:
                pass  # a notice of a later version

    def _source_added(self, notice: frame_pb2.SourceAdded, descriptors: list[wire.Descriptor]) -> None:
        state = self.readers.get(notice.reader)
        if state is None or not descriptors:
            return
        state.unconfirmed.discard(notice.source)
        state.gone.discard(notice.source)
        state.overtaken.discard(notice.source)
        state.slots[notice.source] = notice.slot
        if notice.own_reader:
            state.parties[notice.source] = notice.own_reader, notice.principal
        if notice.source in state.following:
            if state.reader.revive(notice.source):  # it may have been taken for dead
                state.late.pop(notice.source, None)
                return
            if notice.source in state.late:
                state.late[notice.source] = _ring.next_seq(state.reader, notice.source)
            state.reader.remove(notice.source)  # and was read to its end by now
        doorbell = descriptors[1].fd if len(descriptors) > 1 else -1
        try:
            with host_limits(f"publisher {notice.source} of {notice.channel!r}, which is not followed"):
                _follow(state, notice, descriptors[0].fd, doorbell)
        except _ring.RingError as error:
            _log.warning("source %d of channel %s is not followed: %s", notice.source, notice.channel, error)
            return
        except LimitExceeded as error:
            state.troubles.append(error)
            state.wake()
            return
        state.following[notice.source] = notice.channel
        expected = state.late.pop(notice.source, 0)
        if notice.is_stored:
            state.stored.add(notice.source)
            seq = _ring.next_seq(state.reader, notice.source)
            state.begins.setdefault(notice.channel, seq)
            state.joined.append((notice.channel, notice.source, seq))
        elif expected:
            state.reader.expect(notice.source, expected)
        state.wake()

    def _source_excluded(self, notice: frame_pb2.SourceExcluded) -> None:
        state = self.readers.get(notice.reader)
        if state is not None:
            try:
                state.reader.exclude(notice.source)
                state.excluded.add(notice.source)
            except ValueError:
                _log.warning("channel %s: the echo of source %d is heard", state.channel, notice.source)

    def _source_gone(self, notice: frame_pb2.SourceGone) -> None:
        state = self.readers.get(notice.reader)
        if state is not None and notice.source in state.slots:
            state.late.pop(notice.source, None)
            self._let_go(state, notice.source)

    def _source_detached(self, notice: frame_pb2.SourceDetached) -> None:
        """We were too slow for one source. What of it is unread may be overwritten at any time now."""
        state = self.readers.get(notice.reader)
        if state is None or notice.source not in state.slots:
            return
        if notice.source not in state.overtaken:
            state.troubles.append(convert.error_from_proto(notice.error))
        state.gone.add(notice.source)
        self._stop_following(state, notice.source)
        state.wake()

    def _reader_added(self, notice: frame_pb2.ReaderAdded, descriptors: list[wire.Descriptor]) -> None:
        state = self.sources.get(notice.source)
        if state is None or not descriptors:
            return
        state.absent.pop(notice.reader, None)
        if notice.reader in state.writer.readers():
            state.orphans.discard(notice.reader)
            if len(descriptors) == 1:
                return
            # Its doorbell may be another: the core's, after it was started again.
        doorbell = descriptors[1].fd if len(descriptors) > 1 else -1
        with contextlib.suppress(_ring.RingError):  # its own fault: it will not be waited for, nor woken
            state.writer.attach(notice.reader, descriptors[0].fd, notice.slot, doorbell, _start(notice))
            if notice.from_start:
                state.early.add(notice.reader)
        if state.place.role != frame_pb2.SOURCE_ROLE_UNSPECIFIED:
            state.wake()

    def _reader_gone(self, notice: frame_pb2.ReaderGone) -> None:
        state = self.sources.get(notice.source)
        if state is not None:
            state.orphans.discard(notice.reader)
            state.early.discard(notice.reader)
            state.absent.pop(notice.reader, None)
            if notice.return_ms:
                state.await_return(notice.reader, notice.return_ms)
            elif notice.is_parted:
                state.writer.part(notice.reader)
            else:
                state.writer.detach(notice.reader)
            state.wake()


def _follow(state: ReaderState, notice: frame_pb2.SourceAdded, ring: int, doorbell: int) -> None:
    """Read a source's ring: where the notice says; but where the page was another process's, from where that
    had come to, or whole when the source is so new that it had not heard of it.

    Raises:
        RingError: the ring cannot be followed.
    """
    slot, source = notice.slot, notice.source
    earlier: list[Start] = []
    if state.is_taken_up:
        earlier.append("cursor" if source in state.known else "start")
    for start in earlier:
        with contextlib.suppress(_ring.RingError):
            state.reader.add(ring, slot, source, notice.channel, start, doorbell)
            return
    announced = notice.tail if notice.HasField("tail") else None
    state.reader.add(ring, slot, source, notice.channel, _start(notice), doorbell, announced)


def _start(notice: frame_pb2.SourceAdded | frame_pb2.ReaderAdded) -> Literal["start", "history", "tail"]:
    """Where a reader begins in a source's ring; the same for both sides."""
    if notice.from_start:
        return "start"
    return "history" if notice.from_history else "tail"
