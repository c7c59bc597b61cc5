"""Queues, states and durable channels at the door, by frames: what any client library can count on."""

from __future__ import annotations

from typing import Any

import towpath
from tests.door.raw import RawClient
from tests.support.daemon import DaemonHandle, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath.errors import Code
from towpath.v1 import channels_pb2, frame_pb2, queues_pb2, registry_pb2, store_pb2, values_pb2
from towpath.v1.frame_pb2 import Frame


def declare(client: RawClient, name: str, kind: str, *, durable: bool = False, **options: Any) -> None:
    stated = registry_pb2.ChannelOptions(
        kind=registry_pb2.Kind.Value(f"KIND_{kind.upper()}"), durable=durable, **options
    )
    answer = client.ask(
        Frame(id=2, declare_channel_request=registry_pb2.DeclareChannelRequest(name=name, options=stated))
    )
    assert answer.WhichOneof("body") == "declare_channel_response", answer


def publish(client: RawClient, channel: str, *payloads: bytes, call: int = 3) -> Frame:
    return client.ask(
        Frame(id=call, publish_request=channels_pb2.PublishRequest(channel=channel, payloads=payloads))
    )


def consume(client: RawClient, channel: str, prefetch: int, call: int = 10) -> int:
    request = queues_pb2.ConsumeRequest(channel=channel, prefetch=prefetch)
    answer = client.ask(Frame(id=call, consume_request=request))
    assert answer.consume_response.WhichOneof("event") == "consuming", answer
    return answer.consume_response.consuming.consumer


def deliveries(client: RawClient, count: int) -> list[tuple[int, bytes, int]]:
    """Receive deliveries: number, payload and attempt of each."""
    got: list[tuple[int, bytes, int]] = []
    while len(got) < count:
        batch = client.receive().consume_response.batch
        attempts = batch.attempts or [1] * len(batch.payloads)
        got += [
            (batch.first_delivery + index, payload, attempt)
            for index, (payload, attempt) in enumerate(zip(batch.payloads, attempts, strict=True))
        ]
    assert len(got) == count
    return got


def settle(client: RawClient, consumer: int, first: int, last: int, call: int = 4) -> Frame:
    request = queues_pb2.SettleRequest(consumer=consumer)
    request.acknowledged.add(first=first, last=last)
    return client.ask(Frame(id=call, settle_request=request))


def test_a_queue_delivers_settles_and_gives_back(daemon: DaemonHandle) -> None:
    with RawClient(daemon.socket) as maker, RawClient(daemon.socket) as worker:
        declare(maker, "jobs", "queue")
        assert publish(maker, "jobs", b"a", b"b", b"c").publish_response.count == 3
        consumer = consume(worker, "jobs", 2)
        assert deliveries(worker, 2) == [(1, b"a", 1), (2, b"b", 1)]
        worker.send(Frame(id=4, settle_request=queues_pb2.SettleRequest(consumer=consumer)))
        worker.sock.settimeout(DEADLINE_S)
        assert worker.receive().settle_response.settled == 0
        worker.send(
            Frame(
                id=5,
                settle_request=queues_pb2.SettleRequest(
                    consumer=consumer, acknowledged=[queues_pb2.DeliveryRange(first=1, last=1)]
                ),
            )
        )
        answers = [worker.receive(), worker.receive()]
        assert {answer.WhichOneof("body") for answer in answers} == {"settle_response", "consume_response"}
    with RawClient(daemon.socket) as other:
        consume(other, "jobs", 10)
        assert deliveries(other, 2) == [(1, b"b", 2), (2, b"c", 2)]


def test_a_durable_queue_outlives_the_core(daemon: DaemonHandle) -> None:
    with RawClient(daemon.socket) as client:
        declare(client, "kept", "queue", durable=True)
        publish(client, "kept", b"one", b"two")
        consumer = consume(client, "kept", 1)
        assert deliveries(client, 1) == [(1, b"one", 1)]
        settle_request = queues_pb2.SettleRequest(consumer=consumer)
        settle_request.acknowledged.add(first=1, last=1)
        client.send(Frame(id=4, settle_request=settle_request))
        while client.receive().WhichOneof("body") != "settle_response":
            pass
    daemon.kill_core()
    with RawClient(daemon.socket) as client:
        consume(client, "kept", 10)
        assert [payload for _, payload, _ in deliveries(client, 1)] == [b"two"]


def test_a_state_has_versions(daemon: DaemonHandle) -> None:
    with RawClient(daemon.socket) as client:
        declare(client, "mode", "state", durable=True)
        asked = client.ask(
            Frame(id=3, set_value_request=values_pb2.SetValueRequest(channel="mode", payload=b"auto"))
        )
        assert asked.set_value_response.version == 1
        refused = client.ask(
            Frame(
                id=4,
                set_value_request=values_pb2.SetValueRequest(channel="mode", payload=b"x", if_version=0),
            )
        )
        assert int(refused.error.code) == Code.VERSION_CONFLICT
    daemon.kill_core()
    with RawClient(daemon.socket) as client:
        got = client.ask(Frame(id=3, get_value_request=values_pb2.GetValueRequest(channel="mode")))
        assert (got.get_value_response.value.version, got.get_value_response.value.payload) == (1, b"auto")


def test_a_durable_topic_is_read_back(daemon: DaemonHandle) -> None:
    with RawClient(daemon.socket) as client:
        declare(client, "log", "topic", durable=True)
        assert publish(client, "log", b"a", b"b").publish_response.first_seq == 1
        read = client.ask(
            Frame(id=4, read_stored_request=store_pb2.ReadStoredRequest(channel="log", first_seq=1))
        ).read_stored_response
        assert (read.first_seq, read.next_seq, read.end_seq, len(read.parcels)) == (1, 3, 3, 1)


def test_a_transaction_is_all_or_nothing(daemon: DaemonHandle) -> None:
    with RawClient(daemon.socket) as client:
        declare(client, "out", "queue", durable=True)
        declare(client, "count", "state", durable=True)
        request = channels_pb2.CommitTransactionRequest(
            transaction="t1",
            publishes=[channels_pb2.PublishRequest(channel="out", payloads=[b"x"])],
            values=[values_pb2.SetValueRequest(channel="count", payload=b"1", if_version=1)],
        )
        refused = client.ask(Frame(id=3, commit_transaction_request=request))
        assert int(refused.error.code) == Code.VERSION_CONFLICT
        request.values[0].if_version = 0
        done = client.ask(Frame(id=4, commit_transaction_request=request)).commit_transaction_response
        assert (done.published[0].first_seq, done.values[0].version, done.is_repeated) == (1, 1, False)
        again = client.ask(Frame(id=5, commit_transaction_request=request)).commit_transaction_response
        assert (again.published[0].first_seq, again.values[0].version, again.is_repeated) == (1, 1, True)


def test_who_consumes_counts_as_using_the_channel(daemon: DaemonHandle) -> None:
    with RawClient(daemon.socket) as maker, RawClient(daemon.socket) as worker:
        declare(maker, "used", "queue", durable=True)
        consume(worker, "used", 1)
        undeclare = registry_pb2.UndeclareChannelRequest(name="used")
        refused = maker.ask(Frame(id=3, undeclare_channel_request=undeclare))
        assert int(refused.error.code) == Code.CHANNEL_IN_USE and "in use by 1" in refused.error.message
        asked = maker.ask(Frame(id=4, get_channel_request=registry_pb2.GetChannelRequest(name="used")))
        assert asked.get_channel_response.channel.subscribers == 1
        undeclare.force = True
        maker.ask(Frame(id=5, undeclare_channel_request=undeclare))
        assert int(worker.receive().error.code) == Code.CHANNEL_UNDECLARED
        declare(maker, "used", "queue")
        worker.send(Frame(id=20, cancel=frame_pb2.Cancel()))  # of nothing: no harm


def test_a_consumer_that_does_not_read_is_served_slowly_and_not_cut_off(daemon: DaemonHandle) -> None:
    count, payload = 12, b"x" * 900_000
    with RawClient(daemon.socket) as maker, RawClient(daemon.socket) as worker:
        declare(maker, "large", "queue")
        for call in range(count):
            publish(maker, "large", payload, call=call + 3)
        # More consumers than fit into the socket, and into what may wait there.
        for call in range(count):
            worker.send(
                Frame(id=100 + call, consume_request=queues_pb2.ConsumeRequest(channel="large", prefetch=1))
            )
        answer = maker.ask(Frame(id=99, get_channel_request=registry_pb2.GetChannelRequest(name="large")))
        assert answer.get_channel_response.channel.owner
        got = 0
        while got < count:
            got += len(worker.receive().consume_response.batch.payloads)


def test_publications_that_wait_do_not_keep_their_session_from_settling(daemon: DaemonHandle) -> None:
    with RawClient(daemon.socket) as client:
        declare(client, "narrow", "queue", capacity=1)
        publish(client, "narrow", b"0")
        for call in range(200):  # far more than a connection may have open
            request = channels_pb2.PublishRequest(channel="narrow", payloads=[b"%d" % (call + 1)])
            client.send(Frame(id=1000 + call, publish_request=request))
        client.send(Frame(id=10, consume_request=queues_pb2.ConsumeRequest(channel="narrow", prefetch=1)))
        consumer = 0
        got: list[bytes] = []
        while len(got) < 201:
            event = client.receive().consume_response
            if event.WhichOneof("event") == "consuming":
                consumer = event.consuming.consumer
            for number, payload in enumerate(event.batch.payloads, event.batch.first_delivery):
                got.append(payload)
                settled = queues_pb2.SettleRequest(consumer=consumer)
                settled.acknowledged.add(first=number, last=number)
                client.send(Frame(id=2000 + number, settle_request=settled))
        assert got == [b"%d" % index for index in range(201)]


def test_a_publication_that_waits_is_withdrawn(daemon: DaemonHandle) -> None:
    with RawClient(daemon.socket) as client:
        declare(client, "brimful", "queue", capacity=1)
        publish(client, "brimful", b"0")
        request = channels_pb2.PublishRequest(channel="brimful", payloads=[b"1"])
        client.send(Frame(id=7, publish_request=request))
        client.send(Frame(id=7, cancel=frame_pb2.Cancel()))
        answer = client.receive()
        assert (answer.id, int(answer.error.code)) == (7, Code.CANCELLED)


def test_dead_letters_go_to_a_topic_too(daemon: DaemonHandle) -> None:
    with RawClient(daemon.socket) as client, towpath.connect(str(daemon.socket)) as watcher:
        declare(client, "letters", "topic")
        for name, target in (("sick", "letters"), ("gone", "nowhere")):
            declare(client, name, "queue", max_deliveries=1, dead_letter=target)
            publish(client, name, b"poison")
        with watcher.subscribe("letters") as letters:
            for call, name in enumerate(("sick", "gone"), 50):
                consumer = consume(client, name, 1, call=call)
                deliveries(client, 1)
                returned = queues_pb2.ReturnedRange(reason="no")
                returned.deliveries.first = returned.deliveries.last = 1
                request = queues_pb2.SettleRequest(consumer=consumer, returned=[returned])
                client.ask(Frame(id=call + 10, settle_request=request))
            letter = letters.receive(timeout=DEADLINE_S)
            assert letter.payload == b"poison"
            assert letter.headers.user["towpath-dead-letter-queue"] == "sick"
        wait_until(lambda: any("'nowhere'" in each for each in watcher.status().warnings))
