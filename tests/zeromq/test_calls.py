"""``rpc`` with a real daemon: calls, credit, ends. The peers are DEALER and REQ sockets that speak frames."""

from __future__ import annotations

import uuid
from contextlib import ExitStack

import pytest
import zmq

import towpath
from tests.support.daemon import DaemonHandle
from tests.zeromq.peers import Dealer, dealer, plain_socket, subscribers_of, wait_until
from towpath.errors import Code
from towpath.v1.message_pb2 import Headers, MessageBatch
from towpath_broker.core.limits import Limits


@pytest.fixture
def rpc(daemon: DaemonHandle) -> str:
    return daemon.endpoint("zeromq", "rpc")


def subscribed(peer: Dealer, channel: str, credit: int, call_id: int = 1) -> None:
    """Subscribe, and wait until that stands."""
    peer.send(call_id, "subscribe_request", channel=channel, credit=credit)
    frame = peer.receive()
    assert (frame.id, frame.subscribe_response.subscribed.channel) == (call_id, channel)


def batch_of(peer: Dealer) -> MessageBatch:
    frame = peer.receive()
    assert frame.subscribe_response.WhichOneof("event") == "batch", frame
    return frame.subscribe_response.batch


def test_hello_is_optional_and_settles_the_version(rpc: str) -> None:
    with dealer(rpc) as peer:
        welcome = peer.call("hello", version_min=1, version_max=5, software="test")
        assert (welcome.version, welcome.principal) == (1, "zeromq:anonymous")
        assert peer.call("hello", version_min=7, version_max=9).code == Code.VERSION_MISMATCH
        assert peer.call("get_status_request").version == towpath.__version__


def test_registry_calls_pass_through_with_their_errors(rpc: str, client: towpath.Client) -> None:
    with dealer(rpc) as peer:
        made = peer.call("declare_channel_request", name="rpc.made")
        assert (made.created, made.channel.name, made.channel.owner) == (True, "rpc.made", "zeromq:anonymous")
        assert not peer.call("declare_channel_request", name="rpc.made").created
        assert client.channel_info("rpc.made").owner == "zeromq:anonymous"
        assert [each.name for each in peer.call("list_channels_request", prefix="rpc.ma").channels] == [
            "rpc.made"
        ]
        assert peer.call("get_channel_request", name="rpc.none").code == Code.CHANNEL_NOT_FOUND
        invalid = peer.call("declare_channel_request", name="rpc..made")
        assert invalid.code == Code.INVALID_NAME
        assert invalid.hint
        forbidden = peer.call("create_binding_request", channel="rpc.made", url="fifo:/tmp/x", direction=1)
        assert forbidden.code == Code.PERMISSION_DENIED
        assert peer.call("attach_source_request", channel="rpc.made").code == Code.NOT_SUPPORTED
        peer.call("undeclare_channel_request", name="rpc.made")
        assert peer.call("get_channel_request", name="rpc.made").code == Code.CHANNEL_NOT_FOUND


def test_publish_answers_with_source_and_seq(rpc: str, client: towpath.Client) -> None:
    client.declare("rpc.publish")
    headers = Headers(priority=7)
    with dealer(rpc) as peer, client.subscribe("rpc.publish") as subscription:
        first = peer.call("publish_request", channel="rpc.publish", payloads=[b"a", b"b"])
        second = peer.call("publish_request", channel="rpc.publish", payloads=[b"c"], headers=[headers])
        assert (first.first_seq, first.count, second.first_seq, second.count) == (1, 2, 3, 1)
        received = [subscription.receive(20) for _ in range(3)]
        assert [(each.source, each.seq, each.payload) for each in received] == [
            (first.source, 1, b"a"),
            (first.source, 2, b"b"),
            (first.source, 3, b"c"),
        ]
        assert [each.headers.priority for each in received] == [0, 0, 7]
        assert peer.call("publish_request", channel="rpc.publish").code == Code.INVALID_ARGUMENT
        assert peer.call("publish_request", channel="rpc.no", payloads=[b"x"]).code == Code.CHANNEL_NOT_FOUND
        large = peer.call("publish_request", channel="rpc.publish", payloads=[b"x", b"y" * (2 << 20)])
        assert large.code == Code.MESSAGE_TOO_LARGE
        assert peer.call("publish_request", channel="rpc.publish", payloads=[b"d"]).first_seq == 4


def test_each_peer_has_a_source_of_its_own_until_it_leaves(rpc: str, client: towpath.Client) -> None:
    client.declare("rpc.own", ring_bytes=4096)
    with client.subscribe("rpc.own") as subscription, dealer(rpc) as one:
        with dealer(rpc, zmq.REQ) as other:
            answers = [
                peer.call("publish_request", channel="rpc.own", payloads=[b"x"]) for peer in (one, other)
            ]
            assert len({answer.source for answer in answers}) == 2
            assert [answer.first_seq for answer in answers] == [1, 1]
            assert client.channel_info("rpc.own").publishers == 2
            # One that fills its ring waits alone.
            one.send(7, "publish_request", channel="rpc.own", payloads=[bytes(900)] * 8)
            assert other.call("publish_request", channel="rpc.own", payloads=[b"y"]).first_seq == 2
        wait_until(lambda: client.channel_info("rpc.own").publishers == 1, "its source leaves with it")
        seqs: dict[int, list[int]] = {}
        for _ in range(11):
            message = subscription.receive(20)
            seqs.setdefault(message.source, []).append(message.seq)
        assert seqs == {answers[0].source: list(range(1, 10)), answers[1].source: [1, 2]}
        assert one.receive().publish_response.count == 8


def test_peers_beyond_the_channels_publishers_share_the_source_of_those_who_push(
    rpc: str, client: towpath.Client
) -> None:
    client.declare("rpc.crowded")
    with ExitStack() as stack:
        subscription = stack.enter_context(client.subscribe("rpc.crowded"))
        push = stack.enter_context(plain_socket(zmq.PUSH, rpc_to_push(client)))
        push.send_multipart([b"rpc.crowded", b"pushed"])
        shared = subscription.receive(20).source
        for _ in range(Limits().publishers_per_channel_max - 1):
            stack.enter_context(client.publisher("rpc.crowded"))
        peer = stack.enter_context(dealer(rpc))
        answer = peer.call("publish_request", channel="rpc.crowded", payloads=[b"x"])
        assert (answer.source, answer.first_seq) == (shared, 2)


def rpc_to_push(client: towpath.Client) -> str:
    gateways = {gateway.name: gateway for gateway in client.status().gateways}
    return gateways["zeromq"].endpoints["push"]


def test_a_req_socket_can_call(rpc: str) -> None:
    with dealer(rpc, zmq.REQ) as peer:
        assert peer.call("declare_channel_request", name="rpc.req").created
        assert peer.call("publish_request", channel="rpc.req", payloads=[b"x"]).count == 1
        assert peer.call("cancel") is not None


def test_credit_is_never_exceeded_and_nothing_is_lost(rpc: str, client: towpath.Client) -> None:
    count, window = 10_000, 300
    client.declare("rpc.credit")
    with dealer(rpc) as peer:
        subscribed(peer, "rpc.credit", window)
        publisher = client.publisher("rpc.credit")
        for start in range(0, count, 500):
            publisher.publish_many([b"%d" % number for number in range(start, start + 500)])
        received: list[bytes] = []
        granted = window
        while len(received) < count:
            batch = batch_of(peer)
            assert batch.first_seq == len(received) + 1
            assert len(batch.publish_times_ns) == len(batch.payloads)
            received += batch.payloads
            assert len(received) <= granted
            if len(received) == granted:
                # All that was granted is here: without more credit nothing more may come.
                if granted == window:
                    assert peer.is_silent(200)
                peer.send(1, "subscribe_request", credit=window)
                granted += window
        assert received == [b"%d" % number for number in range(count)]


def test_a_window_topped_up_early_flows_on(rpc: str, client: towpath.Client) -> None:
    count = 10_000
    client.declare("rpc.flow")
    with dealer(rpc) as peer:
        subscribed(peer, "rpc.flow", 0)  # the default window
        publisher = client.publisher("rpc.flow")
        for start in range(0, count, 500):
            publisher.publish_many([b"%d" % number for number in range(start, start + 500)])
        received: list[bytes] = []
        while len(received) < count:
            payloads = batch_of(peer).payloads
            received += payloads
            peer.send(1, "subscribe_request", credit=len(payloads))
        assert received == [b"%d" % number for number in range(count)]


def test_cancel_ends_a_subscription_and_the_id_is_free(
    rpc: str, daemon: DaemonHandle, client: towpath.Client
) -> None:
    client.declare("rpc.cancel")
    with dealer(rpc) as peer:
        for _ in range(2):
            subscribed(peer, "rpc.cancel", 5)
            assert subscribers_of(daemon, "rpc.cancel") == 1
            peer.send(1, "cancel")
            frame = peer.receive()
            assert (frame.id, frame.WhichOneof("body")) == (1, "end")
            wait_until(lambda: subscribers_of(daemon, "rpc.cancel") == 0, "it is still subscribed")
        client.channel("rpc.cancel").publish(b"to nobody")
        assert peer.is_silent(100)


def test_undeclare_ends_a_subscription_with_an_error_after_its_messages(
    rpc: str, client: towpath.Client
) -> None:
    client.declare("rpc.gone")
    with dealer(rpc) as peer:
        subscribed(peer, "rpc.gone", 5)
        client.channel("rpc.gone").publish(b"last")
        client.undeclare("rpc.gone", force=True)
        assert list(batch_of(peer).payloads) == [b"last"]
        frame = peer.receive()
        assert (frame.id, Code(frame.error.code)) == (1, Code.CHANNEL_UNDECLARED)
        peer.send(2, "subscribe_request", channel="rpc.gone", credit=1)
        assert Code(peer.receive().error.code) is Code.CHANNEL_NOT_FOUND


def test_an_idle_peer_that_vanishes_leaves_its_channels(
    rpc: str, daemon: DaemonHandle, client: towpath.Client
) -> None:
    client.declare("rpc.vanish")
    with dealer(rpc) as stays:
        subscribed(stays, "rpc.vanish", 5)
        with dealer(rpc) as goes:
            subscribed(goes, "rpc.vanish", 5)
            assert subscribers_of(daemon, "rpc.vanish") == 2
        # Nothing is published: it is the closed connection that tells.
        wait_until(lambda: subscribers_of(daemon, "rpc.vanish") == 1, "it is still subscribed")
        client.channel("rpc.vanish").publish(b"x")
        assert list(batch_of(stays).payloads) == [b"x"]


def test_an_identity_that_comes_back_is_a_new_peer(
    rpc: str, daemon: DaemonHandle, client: towpath.Client
) -> None:
    client.declare("rpc.again")
    identity = uuid.uuid4().bytes
    with zmq.Context() as context:
        for _ in range(3):
            with context.socket(zmq.DEALER) as socket:
                socket.setsockopt(zmq.LINGER, 0)
                socket.setsockopt(zmq.RCVTIMEO, 20_000)
                socket.setsockopt(zmq.IDENTITY, identity)
                socket.connect(rpc)
                peer = Dealer(socket)
                subscribed(peer, "rpc.again", 5)
                assert subscribers_of(daemon, "rpc.again") == 1
            wait_until(lambda: subscribers_of(daemon, "rpc.again") == 0, "it is still subscribed")


def test_several_subscriptions_and_calls_on_one_connection(rpc: str, client: towpath.Client) -> None:
    names = [f"rpc.multi{number}" for number in range(20)]
    for name in names:
        client.declare(name)
    with dealer(rpc) as peer:
        for number, name in enumerate(names):
            subscribed(peer, name, 10, call_id=number + 1)
        for number, name in enumerate(names):
            peer.send(100 + number, "publish_request", channel=name, payloads=[name.encode()])
        frames = [peer.receive() for _ in range(2 * len(names))]
    assert {frame.id for frame in frames} == {*range(1, 21), *range(100, 120)}
    for frame in frames:
        if frame.id <= 20:
            assert list(frame.subscribe_response.batch.payloads) == [names[frame.id - 1].encode()]


def test_bounds_of_a_peer_are_refusals_not_silence(rpc: str, client: towpath.Client) -> None:
    client.declare("rpc.bounds")
    with dealer(rpc) as peer:
        for call_id in range(1, 258):
            peer.send(call_id, "subscribe_request", channel="rpc.bounds", credit=1)
        frames = [peer.receive() for _ in range(257)]
        refused = [frame for frame in frames if frame.WhichOneof("body") == "error"]
        assert [(frame.id, Code(frame.error.code)) for frame in refused] == [(257, Code.LIMIT_EXCEEDED)]


def test_a_watch_tells_the_state_and_then_the_changes(rpc: str, client: towpath.Client) -> None:
    client.declare("rpc.watched")
    with dealer(rpc) as peer, dealer(rpc) as second:
        for watcher in (peer, second):
            watcher.send(1, "watch_request")
            state = [watcher.receive().watch_response]
            while state[-1].WhichOneof("event") != "current":
                state.append(watcher.receive().watch_response)
            assert "rpc.watched" in {each.channel_declared.name for each in state}
        client.declare("rpc.watched.new")
        client.undeclare("rpc.watched.new")
        for watcher in (peer, second):
            declared, undeclared = (watcher.receive().watch_response for _ in range(2))
            assert declared.channel_declared.name == "rpc.watched.new"
            assert undeclared.channel_undeclared.name == "rpc.watched.new"
            assert undeclared.revision == declared.revision + 1
