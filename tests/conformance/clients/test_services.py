"""Calling and serving, over each carrier and with both clients; the other side is on the daemon's host."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import towpath
from tests.support.blocking import BlockingClient
from tests.support.daemon import DaemonHandle, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.result import Err, Ok

Handle = Callable[[Any], None]


@contextlib.contextmanager
def serving(client: Any, name: str, handle: Handle, *, concurrency: int = 1) -> Iterator[Any]:
    """A server that answers in a thread."""
    server = client.serve(name, concurrency=concurrency)

    def work() -> None:
        for request in server:
            handle(request)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    try:
        yield server
    finally:
        server.close()
        for thread in threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


@pytest.fixture
def other(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    """The other side."""
    with towpath.connect(str(daemon.socket)) as client:
        yield client


@pytest.fixture
def service(other: towpath.Client, name: str) -> str:
    other.declare(name, kind="service")
    return name


def upper(request: Any) -> None:
    request.reply(request.payload.upper())


def numbers(count: int, size: int = 0) -> Handle:
    def handle(request: Any) -> None:
        for number in range(count):
            if not request.send(b"%d".ljust(size) % number):
                return
        request.end()

    return handle


# ---- as a caller -------------------------------------------------------------------------------------------


def test_a_call_gets_its_reply(client: Any, other: towpath.Client, service: str) -> None:
    with serving(other, service, upper):
        reply = client.call(service, b"hello")
        assert (reply.payload, reply.channel) == (b"HELLO", service)
        assert client.call(service).payload == b""
        assert [client.call(service, b"n%d" % n).payload for n in range(20)] == [
            b"N%d" % n for n in range(20)
        ]


def test_large_payloads_and_headers_travel_both_ways(
    client: Any, other: towpath.Client, service: str
) -> None:
    def handle(request: Any) -> None:
        assert request.headers.content_type == "text/plain"
        request.reply(request.payload * 2, headers=towpath.Headers(user={"said": "twice"}))

    payload = bytes(range(256)) * 400
    with serving(other, service, handle):
        reply = client.call(service, payload, headers=towpath.Headers(content_type="text/plain"))
    assert reply.payload == payload * 2
    assert dict(reply.headers.user) == {"said": "twice"}


def test_nobody_serves(client: Any, service: str) -> None:
    with pytest.raises(errors.NoServer, match=service) as caught:
        client.call(service, b"x")
    assert caught.value.retryable
    with pytest.raises(errors.NoServer):
        list(client.call_stream(service, b"x"))
    assert isinstance(client.try_call(service), Err)


def test_a_call_may_wait_for_a_server(client: Any, other: towpath.Client, service: str) -> None:
    with pytest.raises(errors.Timeout):
        client.call(service, b"x", wait=True, timeout=0.05)
    replies: list[bytes] = []
    waiting = threading.Thread(
        target=lambda: replies.append(client.call(service, b"x", wait=True, timeout=DEADLINE_S).payload)
    )
    waiting.start()
    with serving(other, service, upper):
        waiting.join(DEADLINE_S)
    assert replies == [b"X"]


def test_channels_of_other_kinds_are_not_called_or_served(client: Any, name: str) -> None:
    client.declare(name)
    with pytest.raises(errors.InvalidArgument, match="topic"):
        client.call(name, b"x")
    with pytest.raises(errors.InvalidArgument, match="topic"):
        client.serve(name)
    with pytest.raises(errors.ChannelNotFound):
        client.call("test.of.no.such.service", b"x")
    with pytest.raises(errors.ChannelNotFound):
        client.serve("test.of.no.such.service")
    with pytest.raises(errors.InvalidName):
        client.call("no name", b"x")


def test_services_are_not_published_on(client: Any, service: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="service"):
        client.channel(service).publish(b"x")
    with pytest.raises(errors.InvalidArgument, match="service"):
        client.subscribe(service)


def test_failures_of_the_server_are_typed(client: Any, other: towpath.Client, service: str) -> None:
    def handle(request: Any) -> None:
        if request.payload == b"towpath":
            request.fail(errors.QueueFull("no room for it", hint="come back", retryable=True))
        else:
            request.fail(ValueError("an odd number"))

    with serving(other, service, handle):
        with pytest.raises(errors.ServiceFailed, match="ValueError: an odd number"):
            client.call(service, b"x")
        with pytest.raises(errors.QueueFull, match="no room for it") as caught:
            client.call(service, b"towpath")
        assert (caught.value.hint, caught.value.retryable) == ("come back", True)
        match client.try_call(service, b"towpath"):
            case Err(error):
                assert error.code == errors.Code.QUEUE_FULL
            case Ok(_):
                pytest.fail("it was refused")


def test_the_deadline_passes_and_the_server_is_told(client: Any, other: towpath.Client, service: str) -> None:
    with other.serve(service) as server:
        with pytest.raises(errors.Timeout, match=service):
            client.call(service, b"x", timeout=0.2)
        wait_until(lambda: _waiting(server) == 0)
        assert isinstance(server.try_receive(0), Err)  # nobody waits for it: it is not handed out
        calling = _in_background(client.call, service, b"y", timeout=0.4)
        request = server.receive(DEADLINE_S)
        left = request.time_left
        assert left is not None and 0 < left <= 0.4
        with pytest.raises(errors.Timeout):
            calling()
        wait_until(lambda: request.is_cancelled)
        request.reply(b"too late")  # nothing happens
        _in_background(client.call, service, b"z")
        assert server.receive(DEADLINE_S).payload == b"z"


def test_a_stream_of_replies(client: Any, other: towpath.Client, service: str) -> None:
    with serving(other, service, numbers(1500)):
        got = [int(reply.payload) for reply in client.call_stream(service, b"x")]
    assert got == list(range(1500))


def test_a_single_reply_is_a_stream_of_one(client: Any, other: towpath.Client, service: str) -> None:
    with serving(other, service, upper):
        assert [reply.payload for reply in client.call_stream(service, b"one")] == [b"ONE"]


def test_a_stream_that_ends_in_an_error(client: Any, other: towpath.Client, service: str) -> None:
    def handle(request: Any) -> None:
        request.send(b"first")
        request.fail(RuntimeError("then nothing"))

    with serving(other, service, handle):
        replies = client.call_stream(service, b"x")
        assert next(replies).payload == b"first"
        with pytest.raises(errors.ServiceFailed, match="then nothing"):
            next(replies)


def test_who_wants_one_reply_gets_no_stream(client: Any, other: towpath.Client, service: str) -> None:
    def handle(request: Any) -> None:
        assert not request.is_stream
        with pytest.raises(errors.InvalidArgument, match="call_stream"):
            request.send(b"part")
        request.reply(b"whole")

    with serving(other, service, handle):
        assert client.call(service, b"x").payload == b"whole"


def test_a_stream_goes_ahead_by_a_bounded_number_of_bytes(
    client: Any, other: towpath.Client, service: str
) -> None:
    sent = itertools.count()
    sending = threading.Event()

    def handle(request: Any) -> None:
        while request.send(b"x" * 10_000):
            next(sent)
            sending.set()

    with serving(other, service, handle):
        replies = client.call_stream(service, b"x")
        next(replies)
        assert sending.wait(DEADLINE_S)
        seen = -1
        while (now := _value(sent)) != seen:  # until it is held up
            seen = now
            threading.Event().wait(0.1)
        assert seen * 10_000 < 6 << 20
        replies.close()  # the server's send says that nobody waits: `serving` ends


def test_closing_a_stream_cancels_the_call(client: Any, other: towpath.Client, service: str) -> None:
    with other.serve(service) as server:
        replies = client.call_stream(service, b"x")
        asking = _in_background(lambda: next(replies).payload)
        request = server.receive(DEADLINE_S)
        request.send(b"part")
        assert asking() == b"part"
        replies.close()
        wait_until(lambda: request.is_cancelled)
        assert request.send(b"more") is False


def test_a_server_that_dies_with_a_call(
    client: Any, connect: Any, daemon: DaemonHandle, service: str
) -> None:
    doomed = towpath.connect(str(daemon.socket))
    server = doomed.serve(service)
    calling = _in_background(client.call, service, b"x", timeout=DEADLINE_S)
    server.receive(DEADLINE_S)
    doomed.close()
    with pytest.raises(errors.ServerLost, match=service):
        calling()


def test_an_idempotent_call_is_tried_on_another_server(
    client: Any, other: towpath.Client, daemon: DaemonHandle, service: str
) -> None:
    doomed = towpath.connect(str(daemon.socket))
    server = doomed.serve(service)
    calling = _in_background(client.call, service, b"x", timeout=DEADLINE_S, idempotent=True)
    assert server.receive(DEADLINE_S).is_idempotent
    with serving(other, service, upper):
        doomed.close()
        assert calling().payload == b"X"


def test_a_server_that_leaves_gives_back_what_it_has_not_begun(
    client: Any, connect: Any, other: towpath.Client, daemon: DaemonHandle, service: str
) -> None:
    with towpath.connect(str(daemon.socket)) as leaving:
        server = leaving.serve(service)
        calls = [_in_background(client.call, service, b"%d" % n, timeout=DEADLINE_S) for n in range(3)]
        taken = server.receive(DEADLINE_S)
        wait_until(lambda: _waiting(server) == 3)
        with serving(other, service, upper):
            taken.reply(b"mine")
            server.close()
            assert sorted(call().payload for call in calls) == sorted(
                [b"mine", *({b"0", b"1", b"2"} - {taken.payload})]
            )


def test_calls_are_spread_by_how_busy_servers_are(
    client: Any, other: towpath.Client, daemon: DaemonHandle, service: str
) -> None:
    with other.serve(service, concurrency=8) as one, other.serve(service, concurrency=8) as two:
        calls = [_in_background(client.call, service, b"%d" % n, timeout=DEADLINE_S) for n in range(8)]
        wait_until(lambda: _waiting(one) + _waiting(two) == 8)
        assert _waiting(one) == _waiting(two) == 4
        for server in (one, two):
            for _ in range(4):
                server.receive(DEADLINE_S).reply(b"done")
        assert {call().payload for call in calls} == {b"done"}


def test_many_calls_at_once_get_their_own_replies(client: Any, other: towpath.Client, service: str) -> None:
    with serving(other, service, upper, concurrency=4):
        calls = [_in_background(client.call, service, b"call %d" % n, timeout=DEADLINE_S) for n in range(50)]
        assert [call().payload for call in calls] == [b"CALL %d" % n for n in range(50)]


# ---- as a server -------------------------------------------------------------------------------------------


def test_serving(client: Any, other: towpath.Client, service: str) -> None:
    def handle(request: Any) -> None:
        assert request.channel == service
        assert request.principal.startswith("uid:")
        assert request.headers.content_type == "text/plain"
        request.reply(request.payload[::-1], headers=towpath.Headers(user={"by": "me"}))

    with serving(client, service, handle):
        reply = other.call(service, b"abc", headers=towpath.Headers(content_type="text/plain"))
        assert reply.payload == b"cba"
        assert dict(reply.headers.user) == {"by": "me"}
    wait_until(lambda: _is_unserved(other, service))


def test_serving_a_stream(client: Any, other: towpath.Client, service: str) -> None:
    with serving(client, service, numbers(300, size=8000)):
        got = [int(reply.payload) for reply in other.call_stream(service, b"x")]
    assert got == list(range(300))


def test_serving_failures(client: Any, other: towpath.Client, service: str) -> None:
    with (
        serving(client, service, lambda request: request.fail(ValueError("no"))),
        pytest.raises(errors.ServiceFailed, match="ValueError: no"),
    ):
        other.call(service, b"x")


def test_a_request_is_answered_once(client: Any, other: towpath.Client, service: str) -> None:
    with client.serve(service) as server:
        calling = _in_background(other.call, service, b"x")
        request = server.receive(DEADLINE_S)
        assert not request.is_answered
        request.reply(b"first")
        assert request.is_answered
        with pytest.raises(errors.InvalidArgument, match="already"):
            request.reply(b"second")
        assert calling().payload == b"first"


def test_a_server_takes_as_many_requests_as_it_said(client: Any, other: towpath.Client, service: str) -> None:
    with client.serve(service, concurrency=2) as server:
        calls = [_in_background(other.call, service, b"%d" % n, timeout=DEADLINE_S) for n in range(3)]
        first, second = server.receive(DEADLINE_S), server.receive(DEADLINE_S)
        with pytest.raises(errors.Timeout):
            server.receive(0.1)
        first.reply(b"done")
        third = server.receive(DEADLINE_S)
        for request in (second, third):
            request.reply(b"done")
        assert [call().payload for call in calls] == [b"done"] * 3
    with pytest.raises(errors.InvalidArgument, match="4096"):
        client.serve(service, concurrency=5000)


def test_a_server_hears_of_a_caller_that_left(client: Any, daemon: DaemonHandle, service: str) -> None:
    with client.serve(service) as server:
        leaving = towpath.connect(str(daemon.socket))
        calling = _in_background(leaving.call, service, b"x", timeout=DEADLINE_S)
        request = server.receive(DEADLINE_S)
        assert not request.is_cancelled
        leaving.close()
        with pytest.raises(errors.ConnectionLost):
            calling()
        wait_until(lambda: request.is_cancelled)
        request.reply(b"nobody hears it")


def test_run_answers_by_what_a_function_returns(client: Any, other: towpath.Client, service: str) -> None:
    server = client.serve(service, concurrency=2)
    is_sync = not isinstance(client, BlockingClient)
    running = _in_background(server.run, _sync_handler if is_sync else _async_handler)
    assert other.call(service, b"text").payload == b"TEXT"
    assert other.call(service, b"").payload == b""
    with pytest.raises(errors.ServiceFailed, match="KeyError"):
        other.call(service, b"fail")
    assert [part.payload for part in other.call_stream(service, b"parts")] == [b"1", b"2", b"3"]
    with pytest.raises(errors.InvalidArgument, match="call_stream"):
        other.call(service, b"parts")
    server.close()
    running()


def _sync_handler(request: Any) -> Any:
    match request.payload:
        case b"fail":
            raise KeyError("fail")
        case b"":
            return None
        case b"parts":
            return (b"%d" % number for number in (1, 2, 3))
    return request.payload.upper()


def _async_handler(request: Any) -> Any:
    async def reply() -> Any:
        return _sync_handler(request)

    async def parts() -> Any:
        for part in _sync_handler(request):
            yield part

    return parts() if request.payload == b"parts" else reply()


# ---- helpers -----------------------------------------------------------------------------------------------


def _in_background(work: Callable[..., Any], *arguments: Any, **options: Any) -> Callable[[], Any]:
    """Do it in a thread; what is returned waits for its result."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work(*arguments, **options))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "it still waits"
        if failure:
            raise failure[0]
        return outcome[0]

    return result


def _waiting(server: Any) -> int:
    """How many requests a server on this host has; looks into its rings first."""
    server._relay.look()
    return len(server._line.requests)


def _is_unserved(client: towpath.Client, service: str) -> bool:
    """Whether it is known that nobody serves; a server on its way out may still be asked, and lost."""
    match client.try_call(service, b"x", timeout=DEADLINE_S):
        case Err(errors.NoServer()):
            return True
        case Err(errors.ServerLost()):
            return False
        case other:
            pytest.fail(f"somebody serves: {other}")


def _value(counter: Any) -> int:
    return int(repr(counter)[6:-1])
