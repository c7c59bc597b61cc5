"""A publisher whose ring breaks the rules: who reads it leaves it, and operators learn of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import towpath
from tests.door.raw import RawClient
from tests.ring.ring_helpers import Forged, shared
from tests.support.daemon import DaemonHandle
from tests.support.deadlines import DEADLINE_S
from towpath._ring import Writer
from towpath.errors import Code
from towpath.v1 import frame_pb2
from towpath.v1.frame_pb2 import Frame

RING_BYTES = 4096
TAIL_AT = 128
IMPOSSIBLE = 2**63


@contextmanager
def forger(daemon: DaemonHandle, channel: str) -> Iterator[tuple[int, Forged]]:
    """A publisher who can write into its ring what it likes: its source, and the ring."""
    with RawClient(daemon.socket) as client:
        source = client.welcome.first_id
        with shared(Writer(source, RING_BYTES)) as fd:
            forged = Forged(fd)
        body = frame_pb2.AttachSourceRequest(channel=channel, source=source)
        answer = client.ask(Frame(id=2, attach_source_request=body), forged.fd)
        assert answer.WhichOneof("body") == "attach_source_response", answer
        yield source, forged
        forged.close()


def broken(client: towpath.Client, channel: str) -> tuple[int, list[str]]:
    """What the status says of such sources: of all channels how many, and of one channel in words."""
    status = client.status()
    return status.counters.get("sources_broken", 0), [
        each for each in status.warnings if f"of '{channel}'" in each and "breaks its ring" in each
    ]


@pytest.mark.parametrize("order", ["source", "total"])
def test_operators_learn_of_a_ring_that_breaks_the_rules(daemon: DaemonHandle, order: towpath.Order) -> None:
    name = f"broken.{order}"
    with towpath.connect(str(daemon.socket)) as client:
        client.declare(name, ring_bytes=RING_BYTES, order=order)
        with (
            forger(daemon, name) as (source, forged),
            client.subscribe(name) as first,
            client.subscribe(name) as second,
            client.publisher(name) as honest,
        ):
            before, warnings = broken(client, name)
            assert warnings == []
            forged.put(TAIL_AT, "<Q", IMPOSSIBLE)
            for number in range(3):
                honest.publish(b"%d" % number)
                for subscription in (first, second):
                    assert subscription.receive(timeout=DEADLINE_S).payload == b"%d" % number
                    with pytest.raises(towpath.Timeout):  # when there is nothing left, it looks what is wrong
                        subscription.receive(timeout=0)
            count, [warning] = broken(client, name)  # once, however many readers left it
            assert count == before + 1
            assert f"publisher {source} of '{name}' (uid:" in warning


def test_only_who_reads_a_source_says_so(daemon: DaemonHandle) -> None:
    with towpath.connect(str(daemon.socket)) as client, RawClient(daemon.socket) as stranger:
        client.declare("honest", ring_bytes=RING_BYTES)
        before, _ = broken(client, "honest")
        with client.subscribe("honest"), client.publisher("honest") as publisher:
            publisher.publish(b"x")
            body = frame_pb2.ReportBrokenSourceRequest(
                reader=stranger.welcome.first_id, source=publisher.source
            )
            answer = stranger.ask(Frame(id=2, report_broken_source_request=body))
            assert Code(answer.error.code) == Code.SUBSCRIPTION_NOT_FOUND
            assert broken(client, "honest") == (before, [])
