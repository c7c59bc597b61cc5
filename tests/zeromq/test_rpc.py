"""The rules of ``rpc``, without a socket: what each frame of a peer leads to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath.errors import Code
from towpath.v1.frame_pb2 import Frame
from towpath.v1.registry_pb2 import GetStatusRequest
from towpath_broker.gateways.zeromq.rpc import (
    BODIES,
    FRAMES_PER_MESSAGE_MAX,
    Action,
    Begin,
    Call,
    Credited,
    More,
    Role,
    RpcProtocol,
    Send,
    Stop,
)
from towpath_broker.gateways.zeromq.settings import ZeroMQSettings

SETTINGS = ZeroMQSettings(
    rpc_calls_per_peer_max=2, rpc_streams_per_peer_max=3, rpc_calls_max=6, rpc_window=10
)


def protocol() -> RpcProtocol:
    return RpcProtocol(SETTINGS, "test")


def frame(call_id: int, body: str, **fields: object) -> bytes:
    made = Frame(id=call_id)
    target = getattr(made, body)
    target.SetInParent()
    for name, value in fields.items():
        setattr(target, name, value)
    return made.SerializeToString()


def subscribe(call_id: int, channel: str = "a", credit: int = 0) -> bytes:
    return frame(call_id, "subscribe_request", channel=channel, credit=credit)


def call_of(actions: list[Action]) -> Call:
    (action,) = actions
    assert isinstance(action, Begin)
    return action.call


def error_of(action: Action) -> tuple[int, Code]:
    assert isinstance(action, Send)
    assert action.frame.WhichOneof("body") == "error"
    return action.frame.id, Code(action.frame.error.code)


def test_every_body_of_the_contract_has_a_role() -> None:
    contract = {field.name for field in Frame.DESCRIPTOR.oneofs_by_name["body"].fields}
    assert set(BODIES) == contract


@pytest.mark.parametrize("body", sorted(BODIES))
def test_what_each_body_leads_to(body: str) -> None:
    rules = protocol()
    raw = subscribe(5) if body == "subscribe_request" else frame(5, body)
    if body == "hello":
        raw = frame(5, "hello", version_min=1, version_max=9)
    (action,) = rules.receive([b"peer", raw])
    match BODIES[body]:
        case Role.HELLO:
            assert isinstance(action, Send)
            assert (action.frame.id, action.frame.welcome.version) == (5, 1)
        case Role.UNARY | Role.STREAM | Role.WAIT:
            assert isinstance(action, Begin)
            assert (action.call.peer, action.call.id, action.call.body) == (b"peer", 5, body)
            assert rules.finished(action.call)
        case Role.CANCEL:
            assert isinstance(action, Send)
            assert (action.frame.id, action.frame.WhichOneof("body")) == (5, "end")
        case Role.DOOR_ONLY:
            assert error_of(action) == (5, Code.NOT_SUPPORTED)
        case Role.ANSWER:
            assert error_of(action) == (5, Code.PROTOCOL_VIOLATION)
    assert (rules.peers, rules.open_calls) == (0, 0)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\xff" * 8, Code.PROTOCOL_VIOLATION),
        (Frame(id=1).SerializeToString(), Code.PROTOCOL_VIOLATION),
        (frame(0, "get_status_request"), Code.PROTOCOL_VIOLATION),
        (
            Frame(id=1, descriptors=1, get_status_request=GetStatusRequest()).SerializeToString(),
            Code.PROTOCOL_VIOLATION,
        ),
        (
            Frame(id=1, principal="uid:0", get_status_request=GetStatusRequest()).SerializeToString(),
            Code.PERMISSION_DENIED,
        ),
        (frame(1, "hello", version_min=2, version_max=3), Code.VERSION_MISMATCH),
        (subscribe(1, channel=""), Code.INVALID_NAME),
        (subscribe(1, channel="a..b"), Code.INVALID_NAME),
    ],
)
def test_what_is_refused_leaves_nothing_behind(raw: bytes, code: Code) -> None:
    rules = protocol()
    (action,) = rules.receive([b"peer", raw])
    assert error_of(action)[1] is code
    assert (rules.peers, rules.open_calls) == (0, 0)


def test_a_req_peer_is_answered_in_kind() -> None:
    rules = protocol()
    (plain,) = rules.receive([b"dealer", frame(1, "cancel")])
    (delimited,) = rules.receive([b"req", b"", frame(1, "cancel")])
    assert isinstance(plain, Send) and isinstance(delimited, Send)
    assert plain.address == (b"dealer",)
    assert delimited.address == (b"req", b"")
    assert call_of(rules.receive([b"req", b"", frame(2, "get_status_request")])).address == (b"req", b"")


def test_several_frames_in_one_message_and_too_many() -> None:
    rules = protocol()
    actions = rules.receive([b"peer", frame(1, "get_status_request"), subscribe(2)])
    assert [type(action) for action in actions] == [Begin, Begin]
    for parts in ([b"peer"], [b"peer", b""], [b"peer", *[frame(9, "cancel")] * (FRAMES_PER_MESSAGE_MAX + 1)]):
        (action,) = rules.receive(parts)
        assert error_of(action) == (0, Code.PROTOCOL_VIOLATION)
    assert rules.violations == 3


def test_credit_begins_with_what_is_stated_or_the_default_and_grows() -> None:
    rules = protocol()
    stated = call_of(rules.receive([b"peer", subscribe(1, credit=4)]))
    default = call_of(rules.receive([b"peer", subscribe(2)]))
    assert (stated.credit, default.credit) == (4, SETTINGS.rpc_window)
    stated.spend(4)
    (action,) = rules.receive([b"peer", subscribe(1, channel="", credit=7)])
    assert action == Credited(stated)
    assert stated.credit == 7
    rules.receive([b"peer", subscribe(1, channel="a", credit=1)])
    assert stated.credit == 8
    with pytest.raises(AssertionError):
        stated.spend(9)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (subscribe(1, channel="b", credit=1), Code.INVALID_ARGUMENT),
        (frame(1, "get_status_request"), Code.PROTOCOL_VIOLATION),
        (frame(1, "attach_reader_request"), Code.NOT_SUPPORTED),
    ],
)
def test_misusing_an_open_call_ends_it_with_an_error(raw: bytes, code: Code) -> None:
    rules = protocol()
    call = call_of(rules.receive([b"peer", subscribe(1)]))
    stop, refusal = rules.receive([b"peer", raw])
    assert stop == Stop(call, is_cut=False)
    assert error_of(refusal) == (1, code)
    assert rules.open_calls == 0


def test_bounds_per_peer_and_over_all() -> None:
    rules = protocol()
    for number in (1, 2):
        rules.receive([b"peer", frame(number, "get_status_request")])
    (action,) = rules.receive([b"peer", frame(3, "get_status_request")])
    assert error_of(action) == (3, Code.LIMIT_EXCEEDED)
    streams = [call_of(rules.receive([b"peer", subscribe(number)])) for number in (4, 5, 6)]
    (action,) = rules.receive([b"peer", frame(7, "watch_request")])
    assert error_of(action) == (7, Code.LIMIT_EXCEEDED)
    call_of(rules.receive([b"other", subscribe(1)]))
    (action,) = rules.receive([b"third", subscribe(1)])
    assert error_of(action) == (1, Code.LIMIT_EXCEEDED)
    # A place that is free again can be taken.
    assert rules.finished(streams[0])
    call_of(rules.receive([b"third", subscribe(1)]))
    assert (rules.open_calls, rules.peers) == (6, 3)


def test_cancel_ends_the_call_and_confirms() -> None:
    rules = protocol()
    call = call_of(rules.receive([b"peer", subscribe(1)]))
    stop, end = rules.receive([b"peer", frame(1, "cancel")])
    assert stop == Stop(call, is_cut=False)
    assert isinstance(end, Send)
    assert (end.frame.id, end.frame.WhichOneof("body")) == (1, "end")
    assert not rules.finished(call)
    # Only the peer's own calls.
    mine = call_of(rules.receive([b"peer", subscribe(1)]))
    rules.receive([b"other", frame(1, "cancel")])
    assert rules.finished(mine)


def test_a_peer_that_vanishes_takes_its_calls_along() -> None:
    rules = protocol()
    mine = [call_of(rules.receive([b"peer", subscribe(number)], 30)) for number in (1, 2)]
    other = call_of(rules.receive([b"other", subscribe(1)], 31))
    assert rules.disconnected(30) == [Stop(call, is_cut=True) for call in mine]
    assert rules.disconnected(30) == []
    assert rules.vanished(b"other") == [Stop(other, is_cut=True)]
    assert (rules.peers, rules.open_calls) == (0, 0)


def test_the_same_identity_on_a_new_connection_is_a_new_peer() -> None:
    rules = protocol()
    old = call_of(rules.receive([b"peer", subscribe(1)], 30))
    stop, begin = rules.receive([b"peer", subscribe(1)], 31)
    assert stop == Stop(old, is_cut=True)
    assert isinstance(begin, Begin)
    assert rules.disconnected(30) == []
    assert rules.stop_all() == [Stop(begin.call, is_cut=True)]


PARTS = st.one_of(
    st.binary(max_size=40),
    st.builds(
        frame, st.integers(0, 3), st.sampled_from([body for body in sorted(BODIES) if body != "hello"])
    ),
    st.builds(subscribe, st.integers(0, 3), st.sampled_from(["", "a", "b", "?"]), st.integers(0, 2**32 - 1)),
)


@given(
    st.lists(
        st.tuples(st.sampled_from([b"x", b"y"]), st.lists(PARTS, max_size=4), st.integers(1, 2)), max_size=30
    )
)
def test_whatever_peers_send_the_books_are_right(messages: list[tuple[bytes, list[bytes], int]]) -> None:
    rules = protocol()
    open_calls: set[Call] = set()
    for peer, parts, connection in messages:
        for action in rules.receive([peer, *parts], connection):
            if isinstance(action, Begin):
                open_calls.add(action.call)
            elif isinstance(action, Stop):
                open_calls.remove(action.call)
            elif isinstance(action, Credited | More):
                assert action.call in open_calls
            else:
                assert action.address[0] == peer
        assert rules.open_calls == len(open_calls) <= SETTINGS.rpc_calls_max
        assert rules.peers == len({call.peer for call in open_calls})
    assert {action.call for action in rules.stop_all() if isinstance(action, Stop)} == open_calls
    assert rules.open_calls == 0
