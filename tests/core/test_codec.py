"""Records and snapshots: what was written is read back, and what was written once is read for ever."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath.errors import InvalidConfiguration
from towpath_broker.core import commands as c
from towpath_broker.core.codec import (
    MACHINE_VERSION,
    DurableState,
    decode_command,
    decode_state,
    encode_command,
    encode_state,
)
from towpath_broker.core.commands import (
    Caller,
    ChannelOptions,
    Command,
    Direction,
    Kind,
    Order,
    Overflow,
    StatedOptions,
)
from towpath_broker.core.ids import BindingId, CallId, SessionId
from towpath_broker.core.limits import Limits
from towpath_broker.core.registry import BindingDefinition, ChannelDefinition

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
CALLERS = st.builds(Caller, TEXT, st.booleans())
MAPPINGS = st.dictionaries(TEXT, TEXT, max_size=3)
OPTIONS = st.builds(
    ChannelOptions,
    st.sampled_from(Kind),
    st.booleans(),
    st.sampled_from(Overflow),
    st.integers(0, 1 << 40),
    st.sampled_from(Order),
    st.integers(0, 1 << 32),
    st.integers(0, 1 << 32),
)
STATED = st.builds(
    StatedOptions,
    st.none() | st.sampled_from(Kind),
    st.none() | st.booleans(),
    st.none() | st.sampled_from(Overflow),
    st.none() | st.integers(0, 1 << 40),
    st.none() | st.sampled_from(Order),
    st.none() | st.integers(0, 1 << 32),
    st.none() | st.integers(0, 1 << 32),
)
LIMITS = st.builds(Limits, sessions_max=st.integers(1, 65_536), ring_bytes_max=st.integers(4096, 1 << 30))
IDS = st.integers(1, 1 << 63).map(BindingId)
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.builds(c.Start, LIMITS, OPTIONS),
    st.builds(c.DeclareChannel, CALLERS, TEXT, STATED, st.booleans()),
    st.builds(c.UndeclareChannel, CALLERS, TEXT, st.booleans()),
    st.builds(c.CreateBinding, CALLERS, TEXT, TEXT, st.sampled_from(Direction), MAPPINGS),
    st.builds(c.DeleteBinding, CALLERS, IDS, TEXT, TEXT),
)
TIMES = st.integers(0, 1 << 63)
STATES = st.builds(
    DurableState,
    TIMES,
    st.integers(0, 1 << 24),
    st.integers(1, 1 << 40),
    st.integers(0, 1 << 40),
    LIMITS,
    OPTIONS,
    st.lists(st.builds(ChannelDefinition, TEXT, OPTIONS, TEXT, TIMES), max_size=3).map(tuple),
    st.lists(
        st.builds(BindingDefinition, IDS, TEXT, TEXT, st.sampled_from(Direction), MAPPINGS, TEXT), max_size=3
    ).map(tuple),
)


@given(COMMANDS, TIMES)
def test_record_is_read_back(command: Command, now_ns: int) -> None:
    record = encode_command(command, now_ns)
    assert decode_command(record) == (command, now_ns)
    assert b"\n" not in record


@given(STATES)
def test_snapshot_is_read_back(state: DurableState) -> None:
    assert decode_state(encode_state(state)) == state


def test_every_durable_command_has_a_record() -> None:
    durable = {value for value in vars(c).values() if getattr(value, "DURABLE", False) is True}
    caller = Caller("uid:1")
    made = [
        c.Start(),
        c.DeclareChannel(caller, "a"),
        c.UndeclareChannel(caller, "a"),
        c.CreateBinding(caller, "a", "fifo:/x", Direction.IN),
        c.DeleteBinding(caller, BindingId(1)),
    ]
    assert {type(command) for command in made} == durable
    for command in made:
        assert decode_command(encode_command(command, 1))[0] == command


def test_session_and_call_are_not_kept() -> None:
    caller = Caller("uid:1", True, SessionId(5), CallId(6))
    command, _ = decode_command(encode_command(c.UndeclareChannel(caller, "a"), 1))
    assert command == c.UndeclareChannel(Caller("uid:1", True), "a")


# Records as version 1 wrote them. They never change: journals out there have them.
VERSION_1 = [
    (
        (
            '{"v":1,"now_ns":7,"command":"declare_channel","principal":"uid:1","is_admin":false,"name":"a.b",'
            '"options":{"kind":"topic","durable":false,"overflow":"block","ring_bytes":4096},"replace":true}'
        ),
        c.DeclareChannel(
            Caller("uid:1"), "a.b", StatedOptions(Kind.TOPIC, False, Overflow.BLOCK, 4096), replace=True
        ),
    ),
    (
        (
            '{"v":1,"now_ns":7,"command":"declare_channel","principal":"uid:1","is_admin":true,"name":"a","options":{},'
            '"replace":false}'
        ),
        c.DeclareChannel(Caller("uid:1", is_admin=True), "a"),
    ),
    (
        (
            '{"v":1,"now_ns":7,"command":"undeclare_channel","principal":"uid:1","is_admin":false,"name":"a",'
            '"force":true}'
        ),
        c.UndeclareChannel(Caller("uid:1"), "a", force=True),
    ),
    (
        (
            '{"v":1,"now_ns":7,"command":"create_binding","principal":"uid:0","is_admin":true,"channel":"a",'
            '"url":"fifo:/x","direction":"out","options":{"mode":"0640"}}'
        ),
        c.CreateBinding(Caller("uid:0", is_admin=True), "a", "fifo:/x", Direction.OUT, {"mode": "0640"}),
    ),
    (
        (
            '{"v":1,"now_ns":7,"command":"delete_binding","principal":"uid:0","is_admin":true,"binding":3,'
            '"channel":"","url":""}'
        ),
        c.DeleteBinding(Caller("uid:0", is_admin=True), BindingId(3)),
    ),
    (
        (
            '{"v":1,"now_ns":7,"command":"start","limits":{"sessions_max":4096,"sessions_per_principal_max":1024,'
            '"channels_max":65536,"channels_per_principal_max":16384,"bindings_max":4096,'
            '"sources_per_principal_max":16384,"readers_per_principal_max":16384,"publishers_per_channel_max":255,'
            '"subscribers_per_channel_max":1024,"ring_bytes_max":1073741824,"waits_per_session_max":64,'
            '"watches_per_session_max":4},"defaults":{"kind":"topic","durable":false,"overflow":"block",'
            '"ring_bytes":1048576}}'
        ),
        c.Start(
            Limits(),
            ChannelOptions(Kind.TOPIC, False, Overflow.BLOCK, 1 << 20, Order.SOURCE, 0, stall_ms_max=0),
        ),
    ),
]
VERSION_2 = [
    (
        (
            '{"v":2,"now_ns":7,"command":"declare_channel","principal":"uid:1","is_admin":false,"name":"a.b",'
            '"options":{"kind":"topic","durable":false,"overflow":"drop","ring_bytes":4096,"order":"total",'
            '"history":10,"stall_ms_max":0},"replace":true}'
        ),
        c.DeclareChannel(
            Caller("uid:1"),
            "a.b",
            StatedOptions(Kind.TOPIC, False, Overflow.DROP, 4096, Order.TOTAL, 10, 0),
            replace=True,
        ),
    ),
    (
        (
            '{"v":2,"now_ns":7,"command":"start","limits":{"sessions_max":4096,"sessions_per_principal_max":1024,'
            '"channels_max":65536,"channels_per_principal_max":16384,"bindings_max":4096,'
            '"sources_per_principal_max":16384,"readers_per_principal_max":16384,"publishers_per_channel_max":255,'
            '"subscribers_per_channel_max":1024,"patterns_max":1024,"patterns_per_principal_max":256,'
            '"own_sources_max":1024,"ring_bytes_max":1073741824,"waits_per_session_max":64,'
            '"watches_per_session_max":4},'
            '"defaults":{"kind":"topic","durable":false,"overflow":"block","ring_bytes":1048576,"order":"source",'
            '"history":0,"stall_ms_max":30000}}'
        ),
        c.Start(Limits(), ChannelOptions()),
    ),
]

VERSION_3 = [
    (
        (
            '{"v":3,"now_ns":7,"command":"declare_channel","principal":"uid:1","is_admin":false,"name":"a.b",'
            '"options":{"kind":"queue","durable":true,"overflow":"reject","ring_bytes":4096,"order":"total",'
            '"history":10,"stall_ms_max":0,"capacity":5,"capacity_bytes":6,"ack_ms":70,"max_deliveries":8,'
            '"dead_letter":"c","retain_bytes":9,"retain_ms":10,"retain_messages":11,"dedupe_ms":12},'
            '"replace":true}'
        ),
        c.DeclareChannel(
            Caller("uid:1"),
            "a.b",
            StatedOptions(
                kind=Kind.QUEUE,
                durable=True,
                overflow=Overflow.REJECT,
                ring_bytes=4096,
                order=Order.TOTAL,
                history=10,
                stall_ms_max=0,
                capacity=5,
                capacity_bytes=6,
                ack_ms=70,
                max_deliveries=8,
                dead_letter="c",
                retain_bytes=9,
                retain_ms=10,
                retain_messages=11,
                dedupe_ms=12,
            ),
            replace=True,
        ),
    ),
]


@pytest.mark.parametrize(("record", "command"), VERSION_1)
def test_records_of_version_1(record: str, command: Command) -> None:
    assert decode_command(record.encode()) == (command, 7)


@pytest.mark.parametrize(("record", "command"), VERSION_2)
def test_records_of_version_2(record: str, command: Command) -> None:
    assert decode_command(record.encode()) == (command, 7)


@pytest.mark.parametrize(("record", "command"), VERSION_3)
def test_records_of_version_3(record: str, command: Command) -> None:
    assert decode_command(record.encode()) == (command, 7)
    assert MACHINE_VERSION == 3
    assert encode_command(command, 7).decode() == record


def test_snapshot_of_version_1() -> None:
    options = '{"kind":"topic","durable":false,"overflow":"block","ring_bytes":4096}'
    state = decode_state(
        (
            f'{{"v":1,"now_ns":7,"incarnation":3,"next_binding":2,"limits":{{"sessions_max":9}},"defaults":{options},'
            f'"channels":[{{"name":"a","options":{options},"owner":"uid:1","declared_at_ns":5}}],"bindings":[]}}'
        ).encode()
    )
    as_it_was = ChannelOptions(ring_bytes=4096, history=0, stall_ms_max=0)
    assert state.defaults == state.channels[0].options == as_it_was
    assert (state.limits, state.revision) == (Limits(sessions_max=9), 0)


def test_what_this_version_must_say_is_missed() -> None:
    data = json.loads(encode_command(c.Start(), 1))
    del data["defaults"]["stall_ms_max"]
    with pytest.raises(InvalidConfiguration, match="damaged"):
        decode_command(json.dumps(data).encode())


@pytest.mark.parametrize(
    "damage",
    [
        {"command": "explode"},
        {"command": None},
        {"options": None},
        {"options": {"kind": "tropic"}},
        {"now_ns": "soon"},
        {"name": ...},
        {"principal": ...},
    ],
)
def test_damaged_record(damage: dict[str, object]) -> None:
    data = json.loads(encode_command(c.DeclareChannel(Caller("uid:1"), "a"), 1))
    for field, value in damage.items():
        if value is ...:
            del data[field]
        else:
            data[field] = value
    with pytest.raises(InvalidConfiguration, match="a record of the journal is damaged"):
        decode_command(json.dumps(data).encode())


@given(st.binary(max_size=50))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for decode in (decode_command, decode_state):
        with pytest.raises(InvalidConfiguration):
            decode(data)


def test_record_of_a_later_version() -> None:
    with pytest.raises(InvalidConfiguration) as caught:
        decode_command(b'{"v":4,"command":"declare_channel"}')
    assert "machine version 4" in str(caught.value) and "a later one" in caught.value.hint
