"""Parting a publisher from a subscriber that does not move, said by hand; and the doorbells of publishers."""

from __future__ import annotations

import itertools
import os
import threading

import pytest

import towpath
import towpath.aio
from tests.door.raw import RawClient
from tests.support.blocking import BlockingClient
from tests.support.daemon import DaemonHandle, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import _ring
from towpath.errors import ChannelUndeclared, Code
from towpath.v1 import frame_pb2, registry_pb2
from towpath.v1.frame_pb2 import Frame

RING_BYTES = 4096
_numbers = itertools.count(1)


@pytest.fixture
def name(daemon: DaemonHandle) -> str:
    made = f"stalled{next(_numbers)}"
    with towpath.connect(str(daemon.socket)) as client:
        client.declare(made, ring_bytes=RING_BYTES, stall_ms_max=50)
    return made


def attach_source(client: RawClient, channel: str, writer: _ring.Writer | None = None) -> int:
    """Become a publisher, by hand; return the source's id."""
    source = client.welcome.first_id
    writer = writer or _ring.Writer(source, RING_BYTES)
    request = frame_pb2.AttachSourceRequest(channel=channel, source=source)
    answer = client.ask(Frame(id=2, attach_source_request=request), writer.share())
    assert answer.WhichOneof("body") == "attach_source_response"
    return source


def attach_reader(client: RawClient, channel: str) -> int:
    """Become a subscriber, by hand; return the reader's id. What the daemon answers stays unread."""
    reader = client.welcome.first_id
    page = _ring.Reader(reader, 8)
    request = frame_pb2.AttachReaderRequest(channel=channel, reader=reader, slots=8)
    client.send(Frame(id=2, attach_reader_request=request), page.share())
    return reader


def code(answer: Frame) -> Code:
    assert answer.WhichOneof("body") == "error"
    return Code(answer.error.code)


def part(client: RawClient, source: int, reader: int) -> list[Frame]:
    """Ask for the two to be parted; return everything up to the answer."""
    request = frame_pb2.DetachStalledRequest(source=source, reader=reader)
    client.send(Frame(id=9, detach_stalled_request=request))
    frames = [client.receive()]
    while frames[-1].id != 9:
        frames.append(client.receive())
    return frames


def test_both_are_told_and_the_connections_stay(daemon: DaemonHandle, name: str) -> None:
    with RawClient(daemon.socket) as subscriber, RawClient(daemon.socket) as publisher:
        reader = attach_reader(subscriber, name)
        assert subscriber.receive().WhichOneof("body") == "attach_reader_response"
        source = attach_source(publisher, name)
        added = subscriber.receive().source_added
        assert (added.source, added.channel, added.from_start) == (source, name, True)
        gone, answer = part(publisher, source, reader)
        assert (gone.reader_gone.source, gone.reader_gone.reader) == (source, reader)
        assert answer.WhichOneof("body") == "detach_stalled_response"
        told = subscriber.receive().source_detached
        assert (told.reader, told.source) == (reader, source)
        assert Code(told.error.code) is Code.SLOW_CONSUMER and "50 ms" in told.error.message
        (again,) = part(publisher, source, reader)
        assert code(again) is Code.SUBSCRIPTION_NOT_FOUND
        status = subscriber.ask(
            Frame(id=3, get_channel_request=registry_pb2.GetChannelRequest(name=name))
        ).get_channel_response
        assert (status.channel.publishers, status.channel.subscribers) == (1, 1)


def test_only_its_own_publisher_may_ask_and_only_where_there_is_a_bound(
    daemon: DaemonHandle, name: str
) -> None:
    patient = f"{name}.patient"
    with towpath.connect(str(daemon.socket)) as client:
        client.declare(patient, ring_bytes=RING_BYTES, stall_ms_max=0)
    with RawClient(daemon.socket) as subscriber, RawClient(daemon.socket) as publisher:
        reader = attach_reader(subscriber, name)
        assert subscriber.receive().WhichOneof("body") == "attach_reader_response"
        source = attach_source(publisher, name)
        with RawClient(daemon.socket) as stranger:
            for other_source, other_reader in ((source, reader), (reader, source), (0, 0)):
                (refused,) = part(stranger, other_source, other_reader)
                assert code(refused) is Code.SOURCE_NOT_FOUND
        (refused,) = part(publisher, source, 4711)
        assert code(refused) is Code.SUBSCRIPTION_NOT_FOUND
        with RawClient(daemon.socket) as waiting:
            forever = attach_source(waiting, patient)
            (refused,) = part(waiting, forever, reader)
            assert code(refused) is Code.PERMISSION_DENIED


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_a_publisher_in_an_event_loop_has_its_doorbell_told(
    daemon: DaemonHandle, name: str, kind: str
) -> None:
    connect = towpath.connect if kind == "sync" else BlockingClient
    with connect(str(daemon.socket)) as client, RawClient(daemon.socket) as subscriber:
        publisher = client.publisher(name)
        attach_reader(subscriber, name)
        frame, descriptors = subscriber.receive_all()
        assert frame.source_added.source == publisher.source
        assert not (frame.source_added.from_start or frame.source_added.from_history)
        assert len(descriptors) == (2 if kind == "aio" else 1)
        assert all(os.readlink(f"/proc/self/fd/{each.fd}").startswith("socket:") for each in descriptors[1:])


def test_a_subscriber_that_was_parted_cannot_stall_its_publisher_again(
    daemon: DaemonHandle, name: str
) -> None:
    with RawClient(daemon.socket) as subscriber, towpath.connect(str(daemon.socket)) as client:
        publisher = client.publisher(name)
        attach_reader(subscriber, name)  # and never reads, nor hears what it is told
        wait_until(lambda: client.channel_info(name).subscribers == 1)
        publisher.publish_many([b"x" * 500] * 20, timeout=DEADLINE_S)
        for _ in range(50):
            publisher.publish_many([b"x" * 500] * 20, timeout=0)


def test_a_publisher_whose_channel_went_is_not_read_any_more(daemon: DaemonHandle, name: str) -> None:
    with RawClient(daemon.socket) as hostile, towpath.connect(str(daemon.socket)) as client:
        writer = _ring.Writer(hostile.welcome.first_id, RING_BYTES)
        attach_source(hostile, name, writer)
        with client.subscribe(name) as subscription:
            stop = threading.Event()

            def write_on() -> None:
                while not stop.is_set():
                    # It does not wait for anybody: it has attached no reader.
                    writer.try_publish_many([b"x" * 100] * 20)

            thread = threading.Thread(target=write_on)
            thread.start()
            try:
                client.undeclare(name, force=True)
                with pytest.raises(ChannelUndeclared):
                    while True:
                        subscription.receive(timeout=DEADLINE_S)
            finally:
                stop.set()
                thread.join()
