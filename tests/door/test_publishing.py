"""Publishing over the socket: one request, written by the core; bounded, withdrawn, answered exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import towpath
from tests.door.raw import RawClient
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import calls, convert, errors, wire
from towpath.model import Headers
from towpath.sync.brief import BriefClient
from towpath.v1 import channels_pb2, frame_pb2, message_pb2
from towpath.v1.frame_pb2 import Frame
from towpath_broker.rings import own_channel


@pytest.fixture
def client(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    with towpath.connect(str(daemon.socket)) as connected:
        yield connected


@pytest.fixture
def channel(client: towpath.Client, request: pytest.FixtureRequest) -> str:
    name = f"t{abs(hash(request.node.name)) % 10**9}"
    client.declare(name, ring_bytes=4096)
    return name


def publish_frame(
    call: int, channel: str, payloads: list[bytes], headers: list[Headers] | None = None
) -> Frame:
    request = channels_pb2.PublishRequest(
        channel=channel, payloads=payloads, headers=[convert.headers_to_proto(each) for each in headers or []]
    )
    return Frame(id=call, publish_request=request)


def core_figure(client: towpath.Client, name: str) -> int:
    return client.status().counters[name]


def test_all_subscribers_get_it_in_one_order_with_headers(
    daemon: DaemonHandle, client: towpath.Client, channel: str
) -> None:
    subscriptions = [client.subscribe(channel) for _ in range(2)]
    with RawClient(daemon.socket) as one, RawClient(daemon.socket) as other:
        first = one.ask(publish_frame(2, channel, [b"a", b"b"], [Headers(content_type="x"), Headers()]))
        second = other.ask(publish_frame(2, channel, [b"c"]))
    answers = [first.publish_response, second.publish_response]
    assert [(answer.first_seq, answer.count) for answer in answers] == [(1, 2), (3, 1)]
    assert answers[0].source == answers[1].source
    for subscription in subscriptions:
        got = [subscription.receive(DEADLINE_S) for _ in range(3)]
        assert [(m.payload, m.seq, m.source) for m in got] == [
            (b"a", 1, answers[0].source),
            (b"b", 2, answers[0].source),
            (b"c", 3, answers[0].source),
        ]
        assert [m.headers.content_type for m in got] == ["x", "", ""]


def test_the_core_counts_for_nobody_and_does_not_keep_a_channel_in_use(
    daemon: DaemonHandle, client: towpath.Client, channel: str
) -> None:
    with BriefClient(str(daemon.socket)) as brief:
        assert brief.call(calls.publish(channel, [b"x"]), DEADLINE_S)[1:] == (1, 1)
        info = client.channel_info(channel)
        assert (info.publishers, info.subscribers) == (0, 0)
        client.undeclare(channel)
        with pytest.raises(errors.ChannelNotFound):
            brief.call(calls.publish(channel, [b"x"]), DEADLINE_S)


def test_a_subscriber_that_comes_later_and_other_publishers_are_not_disturbed(
    daemon: DaemonHandle, client: towpath.Client, channel: str
) -> None:
    with BriefClient(str(daemon.socket)) as brief:
        brief.call(calls.publish(channel, [b"before"]), DEADLINE_S)
        subscription = client.subscribe(channel)
        brief.call(calls.publish(channel, [b"after"]), DEADLINE_S)
        assert subscription.receive(DEADLINE_S).payload == b"after"
        client.channel(channel).publish(b"direct")
        assert subscription.receive(DEADLINE_S).payload == b"direct"
        subscription.close()
        brief.call(calls.publish(channel, [b"z" * 900] * 30), DEADLINE_S)  # nobody is waited for


def test_a_full_ring_lets_the_answer_wait_and_what_waits_keeps_its_order(
    daemon: DaemonHandle, client: towpath.Client, channel: str
) -> None:
    subscription = client.subscribe(channel)
    with RawClient(daemon.socket) as one, RawClient(daemon.socket) as other:
        one.send(publish_frame(2, channel, [b"%d" % n + b"." * 500 for n in range(20)]))
        wait_until(lambda: core_figure(client, "publish_bytes_waiting") > 0)
        other.send(publish_frame(2, channel, [b"last"]))
        got = [subscription.receive(DEADLINE_S) for _ in range(21)]
        assert [m.payload.partition(b".")[0] for m in got] == [*(b"%d" % n for n in range(20)), b"last"]
        assert [m.seq for m in got] == list(range(1, 22))
        assert one.receive().publish_response.first_seq == 1
        assert other.receive().publish_response.first_seq == 21
    wait_until(lambda: core_figure(client, "publish_bytes_waiting") == 0)


def test_a_timeout_withdraws_what_is_not_written_and_says_how_much_was(
    daemon: DaemonHandle, client: towpath.Client, channel: str
) -> None:
    subscription = client.subscribe(channel)
    with BriefClient(str(daemon.socket)) as brief:
        with pytest.raises(errors.Timeout, match=r"; ([1-9]) of 12 were published") as caught:
            brief.call(calls.publish(channel, [b"x" * 900] * 12), 0.05)
        written = int(caught.value.message.split(" of 12")[0].rpartition(" ")[2])
        with pytest.raises(errors.Timeout, match="no room"):
            brief.call(calls.publish(channel, [b"x" * 900]), 0.0)
        assert core_figure(client, "publish_bytes_waiting") == 0
        assert len(subscription.receive_many(100, timeout=DEADLINE_S)) == written
        assert brief.call(calls.publish(channel, [b"again"]), DEADLINE_S)[1:] == (written + 1, 1)
        assert subscription.receive(DEADLINE_S).payload == b"again"


def test_a_client_that_goes_takes_what_waits_along(
    daemon: DaemonHandle, client: towpath.Client, channel: str
) -> None:
    subscription = client.subscribe(channel)
    one = RawClient(daemon.socket)
    one.send(publish_frame(2, channel, [b"x" * 900] * 12))
    wait_until(lambda: core_figure(client, "publish_bytes_waiting") > 0)
    one.close()
    wait_until(lambda: core_figure(client, "publish_bytes_waiting") == 0)
    written = len(subscription.receive_many(100, timeout=DEADLINE_S))
    assert 0 < written < 12
    with pytest.raises(errors.Timeout):
        subscription.receive(0.05)


def test_what_waits_is_bounded_by_principal_and_the_refusal_says_so(
    daemon: DaemonHandle, client: towpath.Client, channel: str
) -> None:
    client.subscribe(channel)
    payloads = [b"x" * 900] * 1000
    with RawClient(daemon.socket) as one:
        answers: list[Frame] = []
        for call in range(2, 10):
            one.send(publish_frame(call, channel, payloads))
        while len(answers) < 4:
            answers.append(one.receive())
        assert {answer.error.code for answer in answers} == {int(errors.Code.QUOTA_EXCEEDED)}
        assert str(own_channel.WAITING_BYTES_PER_PRINCIPAL_MAX) in answers[0].error.message
        waiting = core_figure(client, "publish_bytes_waiting")
        assert 0 < waiting <= own_channel.WAITING_BYTES_PER_PRINCIPAL_MAX
    wait_until(lambda: core_figure(client, "publish_bytes_waiting") == 0)


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (channels_pb2.PublishRequest(), errors.Code.INVALID_ARGUMENT),
        (channels_pb2.PublishRequest(payloads=[b"x"] * 10_001), errors.Code.INVALID_ARGUMENT),
        (
            channels_pb2.PublishRequest(payloads=[b"x"] * 2, headers=[message_pb2.Headers()]),
            errors.Code.INVALID_ARGUMENT,
        ),
        (
            channels_pb2.PublishRequest(payloads=[b"x"], headers=[message_pb2.Headers(key=b"k" * 20_000)]),
            errors.Code.INVALID_ARGUMENT,
        ),
        (channels_pb2.PublishRequest(payloads=[b"fits", b"x" * 1000]), errors.Code.MESSAGE_TOO_LARGE),
    ],
)
def test_bad_requests_are_refused_and_nothing_is_published(
    daemon: DaemonHandle,
    client: towpath.Client,
    channel: str,
    request_: channels_pb2.PublishRequest,
    code: errors.Code,
) -> None:
    subscription = client.subscribe(channel)
    request_.channel = channel
    with RawClient(daemon.socket) as raw:
        assert raw.ask(Frame(id=2, publish_request=request_)).error.code == int(code)
        assert raw.ask(publish_frame(3, channel, [b"good"])).publish_response.first_seq == 1
    assert subscription.receive(DEADLINE_S).payload == b"good"


@pytest.mark.parametrize(("name", "error"), [("no.such", "CHANNEL_NOT_FOUND"), ("no such", "INVALID_NAME")])
def test_a_channel_that_is_not_there_is_told(daemon: DaemonHandle, name: str, error: str) -> None:
    with RawClient(daemon.socket) as raw:
        answer = raw.ask(publish_frame(2, name, [b"x"]))
    assert errors.Code(answer.error.code).name == error


def test_undeclaring_refuses_what_waits(daemon: DaemonHandle, client: towpath.Client, channel: str) -> None:
    subscription = client.subscribe(channel)
    with RawClient(daemon.socket) as raw:
        raw.send(publish_frame(2, channel, [b"x" * 900] * 12))
        wait_until(lambda: core_figure(client, "publish_bytes_waiting") > 0)
        client.undeclare(channel, force=True)
        error = raw.receive().error
    assert error.code == int(errors.Code.CHANNEL_UNDECLARED) and " of 12 were published" in error.message
    assert len(subscription.receive_many(100, timeout=DEADLINE_S)) > 0


def test_a_cancel_that_overtakes_its_publication_is_answered_once(
    daemon: DaemonHandle, client: towpath.Client, channel: str
) -> None:
    """Both arrive in one piece: the call is given up before the core comes to it, or it is answered."""
    subscription = client.subscribe(channel)
    with RawClient(daemon.socket) as raw:
        cancel = Frame(id=2, cancel=frame_pb2.Cancel())
        raw.sock.sendall(wire.encode(publish_frame(2, channel, [b"gone"])) + wire.encode(cancel))
        assert raw.receive().error.code == int(errors.Code.CANCELLED)
        assert raw.ask(publish_frame(3, channel, [b"next"])).publish_response.first_seq == 1
    assert subscription.receive(DEADLINE_S).payload == b"next"


def test_what_was_acknowledged_outlives_the_core(tmp_path: Path) -> None:
    with (
        running_daemon(tmp_path, LOCAL_ONLY) as own_daemon,
        towpath.connect(str(own_daemon.socket)) as client,
    ):
        client.declare("a")
        subscription = client.subscribe("a")
        with BriefClient(str(own_daemon.socket)) as brief:
            first = brief.call(calls.publish("a", [b"1", b"2"]), DEADLINE_S)
        own_daemon.kill_core()
        wait_until(lambda: client.is_connected)
        with BriefClient(str(own_daemon.socket)) as brief:
            second = brief.call(calls.publish("a", [b"3"]), DEADLINE_S)
        assert second[0] != first[0]
        assert sorted(subscription.receive(DEADLINE_S).payload for _ in range(3)) == [b"1", b"2", b"3"]
