"""Whoever is seen to subscribe gets what is published from then on, also before it has come to read."""

from __future__ import annotations

import pytest

import towpath
from tests.door.raw import RawClient
from tests.support.daemon import DaemonHandle, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import _ring
from towpath.v1 import frame_pb2
from towpath.v1.frame_pb2 import Frame

RING_BYTES = 4096


@pytest.mark.parametrize("name", ["seen.by.name", "seen.*.pattern"])
@pytest.mark.parametrize("order", ["source", "total"])
def test_a_subscriber_that_is_listed_and_has_not_come_to_read_yet(
    daemon: DaemonHandle, name: str, order: str
) -> None:
    channel = f"{name.replace('*', 'by')}.{order}"
    with towpath.connect(str(daemon.socket)) as client, RawClient(daemon.socket) as subscriber:
        client.declare(channel, ring_bytes=RING_BYTES, order=order)  # type: ignore[arg-type]
        publisher = client.publisher(channel)
        with client.subscribe(channel) as other:
            publisher.publish(b"before")
            assert other.receive(DEADLINE_S).payload == b"before"
        page = _ring.Reader(subscriber.welcome.first_id, 8)
        request = frame_pb2.AttachReaderRequest(
            channel=f"{name}.{order}", reader=subscriber.welcome.first_id, slots=8
        )
        subscriber.send(Frame(id=2, attach_reader_request=request), page.share())
        wait_until(lambda: client.channel_info(channel).subscribers == 1)
        publisher.publish(b"after")

        frame, descriptors = subscriber.receive_all()
        added = frame.source_added
        ring, announced = descriptors[0].fd, added.tail if added.HasField("tail") else None
        page.add(ring, added.slot, added.source, channel, "tail", -1, announced)
        (message,) = page.receive(10, 1000, int(DEADLINE_S * 1e9))
        assert message.payload == b"after"
