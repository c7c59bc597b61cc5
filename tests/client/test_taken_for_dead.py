"""After a reconnection: a publisher that the daemon is late to tell of again, or that was stopped, is
followed on. And what an earlier core said is not taken for a word of this one's.
"""

from __future__ import annotations

import os

import pytest

from towpath import model, wire
from towpath._ring import GenerationTable, Reader, Writer
from towpath.ends import ReaderState
from towpath.protocol import RESUME_GRACE_NS, ClientProtocol
from towpath.v1.frame_pb2 import Frame

SOURCE = 77


def tell(protocol: ClientProtocol, state: ReaderState, writer: Writer, *, is_stored: bool = True) -> None:
    """The core's notice of a source."""
    notice = Frame()
    notice.source_added.reader = state.id
    notice.source_added.source = SOURCE
    notice.source_added.channel = "c"
    notice.source_added.from_start = not state.following
    notice.source_added.is_stored = is_stored
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


def test_what_a_publisher_that_was_only_stopped_published_before_it_came_back_is_missed() -> None:
    protocol = ClientProtocol(name="test", software="test")
    protocol.add_ids(1, 8)
    state = protocol.new_reader("c", "", lambda _: None, wants_doorbell=False)
    writer = Writer(SOURCE, 4096)
    tell(protocol, state, writer, is_stored=False)
    writer.try_publish(b"1")
    assert [each.payload for each in state.reader.receive(9, 999, 0)] == [b"1"]
    state.unconfirmed.add(SOURCE)
    protocol.deadline_ns = RESUME_GRACE_NS
    protocol.expire(RESUME_GRACE_NS)
    assert state.reader.receive(9, 999, 0) == []
    protocol.tend(state)
    assert not state.following
    writer.try_publish_many([b"2", b"3"], 0, None)  # it goes on where it was stopped, and nobody reads
    notice = Frame()
    notice.source_added.reader, notice.source_added.source = state.id, SOURCE
    protocol.receive(notice, [wire.Descriptor(writer.share())], 0)
    writer.try_publish(b"4")
    assert [(each.seq, each.missed) for each in state.reader.receive(9, 999, 0)] == [(4, 2)]
    assert state.reader.lost == 2
    writer.try_publish(b"5")
    assert [(each.seq, each.missed) for each in state.reader.receive(9, 999, 0)] == [(5, 0)]
    writer.close()
    state.reader.close()


def answer_last(protocol: ClientProtocol, answer: Frame, *descriptors: wire.Descriptor) -> None:
    """What the core says to the last call."""
    (call, _) = protocol.take_outgoing()[-1]
    answer.id = call.id
    protocol.receive(answer, list(descriptors), 0)


def connect(protocol: ClientProtocol, table: GenerationTable) -> None:
    """A core with a table of its own welcomes the session."""
    protocol.connection_made()
    welcome = Frame()
    welcome.welcome.version, welcome.welcome.first_id, welcome.welcome.id_count = wire.VERSION, 1, 8
    answer_last(protocol, welcome, wire.Descriptor(table.share()))


def attached(generation: int) -> Frame:
    answer = Frame()
    answer.attach_source_response.generation = generation
    return answer


def test_readers_that_an_earlier_core_told_are_not_taken_for_those_of_this_one() -> None:
    """The number is installed as it comes; by the time that whoever asked has it, it may mean others."""
    protocol = ClientProtocol(name="test", software="test")
    earlier, later = GenerationTable(1), GenerationTable(1)
    connect(protocol, earlier)
    info = model.ChannelInfo("c", "topic", False, "block", 4096, "uid:0", 0, 0, 0, 0)
    source = protocol.new_source(info, "", lambda _: None)
    answer_last(protocol, attached(0))
    earlier.bump(0)
    assert source.writer.try_publish(b"asks first") == -1
    heard: list[object] = []
    protocol.fetch_readers(source, heard.append)
    told = Frame()
    told.fetch_readers_response.generation = 1
    answer_last(protocol, told)
    assert len(heard) == 1 and source.writer.try_publish(b"1") == 1
    protocol.connection_lost()
    connect(protocol, later)  # which takes the publisher up again, by the last call
    answer_last(protocol, attached(0))
    later.bump(0)
    assert source.writer.try_publish(b"asks first") == -1
    protocol.fetch_readers(source, heard.append)
    protocol.connection_lost()
    assert len(heard) == 2 and source.writer.try_publish(b"asks first") == -1
    source.close()


def test_nobody_is_late_before_the_core_has_answered() -> None:
    """A core that is slow to come to a publisher may be its reader; who goes on without it, goes past it."""
    protocol = ClientProtocol(name="test", software="test")
    table = GenerationTable(1)
    connect(protocol, table)
    info = model.ChannelInfo("c", "topic", False, "block", 4096, "uid:0", 0, 0, 0, 0)
    source = protocol.new_source(info, "", lambda _: None)
    answer_last(protocol, attached(0))
    reader = Reader(5)
    page = reader.share()
    source.writer.attach(5, page, 0, -1, "tail")
    os.close(page)
    protocol.connection_lost()
    connect(protocol, table)
    assert protocol.deadline_ns == RESUME_GRACE_NS
    protocol.expire(RESUME_GRACE_NS)
    assert list(source.writer.readers()) == [5] and protocol.deadline_ns == 2 * RESUME_GRACE_NS
    answer_last(protocol, attached(0))
    protocol.expire(2 * RESUME_GRACE_NS)
    assert list(source.writer.readers()) == [] and protocol.deadline_ns is None
    source.close()
    reader.close()
