"""What is read from the rings of callers and servers, whatever it is."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from towpath import errors, model
from towpath._message import Message
from towpath.calls import SourcePlace
from towpath.ends import ReaderState, SourceState
from towpath.services import answering, asking, envelope
from towpath.services.answering import Line
from towpath.services.asking import Calls, PendingCall
from towpath.v1 import frame_pb2

SERVER, REPLIES, CALLER, ANSWERER = 11, 12, 13, 14
INFO = model.ChannelInfo(
    name="s", kind="service", durable=False, overflow="block", ring_bytes=65536, order="source", history=0,
    stall_ms_max=30_000, owner="", publishers=0, subscribers=0, bindings=0, declared_at_ns=0,
)  # fmt: skip


def message(raw: bytes, payload: bytes = b"", source: int = CALLER) -> Message:
    return Message(payload, seq=1, source=source, time_ns=1, channel="s", headers_raw=raw)


def make_line(concurrency: int = 1) -> Line:
    state = ReaderState("s", SERVER, "", False, frame_pb2.READER_ROLE_SERVER)
    state.parties[CALLER] = REPLIES, "uid:1"
    state.following[CALLER] = "s"
    return Line(state, concurrency)


def make_calls() -> Calls:
    """A caller with one server, which it knows and which reads it from the start."""
    source = SourceState(INFO, CALLER, "", SourcePlace())
    replies = ReaderState("s", REPLIES, "", False, frame_pb2.READER_ROLE_REPLIES)
    server = ReaderState("s", SERVER, "", False, frame_pb2.READER_ROLE_SERVER)
    source.writer.attach(SERVER, server.page.fd, 0, -1, "start")
    source.early.add(SERVER)
    replies.parties[ANSWERER] = SERVER, "uid:1"
    replies.following[ANSWERER] = "s"
    return Calls(source, replies)


def begin(calls: Calls, *, is_stream: bool = False, is_idempotent: bool = False) -> PendingCall:
    call = PendingCall(deadline_ns=None, is_idempotent=is_idempotent, is_stream=is_stream)
    server = calls.choose()
    assert server == SERVER
    calls.begin(call, server)
    return call


@given(st.binary(max_size=64), st.binary(max_size=8))
def test_whatever_a_caller_writes_a_server_survives(raw: bytes, payload: bytes) -> None:
    line = make_line()
    line.take_in([message(raw, payload), message(raw, payload)])
    while (ticket := line.take()) is not None:
        line.let_go(ticket)
    assert not line.requests and line.taken == 0


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.binary(max_size=20), st.integers(13, 15))))
def test_whatever_a_server_writes_a_caller_survives(replies: list[tuple[int, int, bytes, int]]) -> None:
    calls = make_calls()
    made = [begin(calls, is_stream=number % 2 == 0) for number in range(3)]
    calls.take_in(
        [message(envelope.reply(kind, call), payload, source) for kind, call, payload, source in replies]
    )
    for call in made:
        assert call.is_over is (call.number not in calls.pending)
    assert sum(calls.outstanding.values()) == len(calls.pending)


@given(st.binary(max_size=40))
def test_whatever_is_no_reply_is_passed_over(raw: bytes) -> None:
    calls = make_calls()
    call = begin(calls)
    calls.take_in([message(raw, source=ANSWERER)])
    opened = envelope.open_reply(raw)
    if opened is None or opened[1] != call.number:
        assert not call.is_over


def test_nobody_answers_in_anothers_name() -> None:
    calls = make_calls()
    calls.replies.parties[99] = 98, "uid:2"
    call = begin(calls)
    calls.take_in([message(envelope.reply(envelope.REPLY, call.number), b"forged", source=99)])
    assert not call.has_news
    calls.take_in([message(envelope.reply(envelope.REPLY, call.number), b"true", source=ANSWERER)])
    reply = call.take()
    assert call.is_over and reply is not None and reply.payload == b"true"


def test_a_stream_that_exceeds_its_window_ends() -> None:
    calls = make_calls()
    call = begin(calls, is_stream=True)
    part = message(envelope.reply(envelope.PART, call.number), bytes(10_000), source=ANSWERER)
    calls.take_in([part] * 200)
    assert call.is_over and isinstance(call.error, errors.ProtocolViolation)
    assert len(call.replies) * 10_000 < envelope.WINDOW_BYTES * 2


def test_an_error_that_cannot_be_read() -> None:
    calls = make_calls()
    call = begin(calls)
    calls.take_in([message(envelope.reply(envelope.ERROR, call.number), b"\xff\xff", source=ANSWERER)])
    assert isinstance(call.error, errors.ProtocolViolation)


def test_the_line_is_bounded_and_tells_so() -> None:
    line = make_line(concurrency=2)
    for call in range(1, answering.LINE_MAX + 11):
        line.take_in([message(envelope.request(envelope.REQUEST, SERVER, call))])
    assert len(line.take_refused()) == 10
    assert line.take_refused() == []
    assert line.take() is not None and line.take() is not None and line.take() is None


def test_the_line_is_bounded_in_bytes() -> None:
    line = make_line()
    payload = bytes(answering.LINE_BYTES_MAX // 4)
    for call in range(1, 8):
        line.take_in([message(envelope.request(envelope.REQUEST, SERVER, call), payload)])
    assert len(line.take_refused()) == 3


def test_requests_that_nobody_waits_for_are_not_handed_out() -> None:
    line = make_line()
    past = time.monotonic_ns() - 1
    line.take_in([message(envelope.request(envelope.REQUEST, SERVER, 1, deadline_ns=past))])
    line.take_in([message(envelope.request(envelope.REQUEST, SERVER, 2))])
    line.take_in([message(envelope.request(envelope.CANCEL, SERVER, 2))])
    assert line.take() is None and not line.requests


def test_a_cancelled_request_counts_until_it_is_let_go() -> None:
    line = make_line()
    line.take_in([message(envelope.request(envelope.REQUEST, SERVER, call)) for call in (1, 2)])
    ticket = line.take()
    assert ticket is not None and line.take() is None
    assert line.take_in([message(envelope.request(envelope.CANCEL, SERVER, 1))]) == [ticket]
    assert ticket.is_cancelled and line.take() is None  # the program still works on it
    line.let_go(ticket)
    assert line.take() is not None


def test_a_caller_that_is_gone_is_forgotten() -> None:
    line = make_line()
    line.take_in([message(envelope.request(envelope.REQUEST, SERVER, call)) for call in (1, 2)])
    ticket = line.take()
    line.state.gone.add(CALLER)
    assert line.forget_callers_gone() == [ticket]
    assert ticket is not None and ticket.is_cancelled and line.take() is None


def test_calls_of_a_server_that_is_gone_are_lost() -> None:
    calls = make_calls()
    call, idempotent = begin(calls), begin(calls, is_idempotent=True)
    assert calls.find_lost() == []
    calls.source.writer.detach(SERVER)
    assert calls.find_lost() == []  # what it has written may still be read
    del calls.replies.following[ANSWERER]
    assert calls.find_lost() == [call, idempotent]
    assert isinstance(call.error, errors.ServerLost) and not call.may_try_again
    assert idempotent.may_try_again
    assert calls.choose() is None and not calls.outstanding


def test_a_server_that_closes_its_ring_has_given_us_up() -> None:
    calls = make_calls()
    call = begin(calls)
    assert calls.find_lost() == []
    del calls.replies.following[ANSWERER]
    assert calls.find_lost() == [call]
    assert calls.choose() == SERVER  # it may be asked again


def test_a_server_that_leaves_is_not_chosen() -> None:
    calls = make_calls()
    server = ReaderState("s", 21, "", False, frame_pb2.READER_ROLE_SERVER)
    calls.source.writer.attach(21, server.page.fd, 0, -1, "tail")
    assert calls.choose() == SERVER  # the other does not read yet
    server.reader.add(calls.source.ring.fd, 0, CALLER, "s", "tail")
    assert {calls.choose(), calls.choose()} == {SERVER, 21}
    server.reader.set_load(5)
    assert {calls.choose(), calls.choose()} == {SERVER}
    begin(calls)
    server.reader.set_load(0)
    assert {calls.choose(), calls.choose()} == {21}
    server.reader.set_load(envelope.LEAVING)
    assert {calls.choose(), calls.choose()} == {SERVER}
    server.reader.close()
    assert {calls.choose(), calls.choose()} == {SERVER}


def test_attempts_are_bounded() -> None:
    calls = make_calls()
    call = PendingCall(deadline_ns=None, is_idempotent=False, is_stream=False)
    for attempt in range(1, asking.ATTEMPTS_MAX + 1):
        calls.begin(call, SERVER)
        calls.take_in([message(envelope.reply(envelope.UNTOUCHED, call.number), source=ANSWERER)])
        assert call.may_try_again is (attempt < asking.ATTEMPTS_MAX)


def test_errors_are_cut_to_size() -> None:
    raw = answering.encode_error(ValueError("x" * 100_000))
    assert len(raw) < 3 * answering.ERROR_CHARS_MAX
