"""A publisher that the daemon is late to tell of again, after a reconnection, is followed on when it does."""

from __future__ import annotations

import pytest

from towpath import wire
from towpath._ring import Writer
from towpath.ends import ReaderState
from towpath.protocol import RESUME_GRACE_NS, ClientProtocol
from towpath.v1.frame_pb2 import Frame

SOURCE = 77


def tell(protocol: ClientProtocol, state: ReaderState, writer: Writer) -> None:
    """The core's notice of a source."""
    notice = Frame()
    notice.source_added.reader = state.id
    notice.source_added.source = SOURCE
    notice.source_added.channel = "c"
    notice.source_added.from_start = not state.following
    notice.source_added.is_stored = True
    protocol.receive(notice, [wire.Descriptor(writer.share())], 0)


@pytest.mark.parametrize("is_read_to_its_end", [False, True])
def test_a_source_that_was_given_up_too_early_is_read_on(is_read_to_its_end: bool) -> None:
    protocol = ClientProtocol(name="test", software="test")
    protocol.add_ids(1, 8)
    state = protocol.new_reader("c", "", lambda _: None, wants_doorbell=False)
    writer = Writer(SOURCE, 4096, overflow="drop")
    tell(protocol, state, writer)
    writer.try_publish(b"1")
    state.unconfirmed.add(SOURCE)
    protocol.deadline_ns = RESUME_GRACE_NS
    protocol.expire(RESUME_GRACE_NS)
    if is_read_to_its_end:
        assert [each.payload for each in state.reader.receive(9, 999, 0)] == [b"1"]
        assert state.reader.receive(9, 999, 0) == []
    tell(protocol, state, writer)
    writer.try_publish(b"2")
    expected = [b"2"] if is_read_to_its_end else [b"1", b"2"]
    assert [each.payload for each in state.reader.receive(9, 999, 0)] == expected
    protocol.tend(state)
    assert state.following == {SOURCE: "c"} and state.stored == {SOURCE}
    writer.close()
    state.reader.close()
