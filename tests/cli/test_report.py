"""What is printed of the registry and of messages: the pages to the letter, the JSON forms to the key."""

from __future__ import annotations

import base64
import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath._message import PurePythonMessage
from towpath.cli import report
from towpath.cli.text import Style
from towpath.convert import encode_headers
from towpath.errors import BindingFailed, Unavailable
from towpath.model import (
    BindingInfo,
    BindingReport,
    ChannelContents,
    ChannelInfo,
    GatewayInfo,
    Headers,
    Kind,
    Status,
)

NOW_NS = 1_763_800_000_000_000_000
S = 1_000_000_000
PLAIN = Style(colour=False)

CHANNEL = ChannelInfo(
    name="plant.line1.temp", kind="topic", durable=False, overflow="block", ring_bytes=4 << 20,
    owner="uid:1000", publishers=1, subscribers=12, bindings=2, declared_at_ns=NOW_NS - 60 * S,
)  # fmt: skip
DURABLE = dataclasses.replace(
    CHANNEL, name="b", durable=True, overflow="drop", ring_bytes=65536, subscribers=0
)
RUNNING = BindingInfo(
    id=3, channel="plant.line1.temp", url="pipe:vmstat 1", direction="in", options={"restart": "always"},
    owner="uid:1000",
    report=BindingReport(state="running", detail="pid 4711", messages_in=12345, bytes_in=1 << 20),
)  # fmt: skip
FAILED = BindingInfo(
    id=14, channel="b", url="fifo:/tmp/not\na fifo", direction="out", options={}, owner="uid:1000",
    report=BindingReport(
        state="failed", refused=2, last_error=BindingFailed("/tmp/x is a file", hint="remove it"),
        last_error_at_ns=NOW_NS - 90 * S,
    ),
)  # fmt: skip
ZEROMQ = GatewayInfo(
    name="zeromq", state="running", pid=4713, restarts=0,
    endpoints={"sub": "tcp://127.0.0.1:5556", "push": "tcp://127.0.0.1:5557"},
    counters={"messages_in": 3, "messages_out": 12000}, detail="",
)  # fmt: skip
GRPC = GatewayInfo(
    name="grpc",
    state="backing_off",
    pid=0,
    restarts=4,
    endpoints={},
    counters={},
    detail="exited with 1, again in 2 s",
)
STATUS = Status(
    version="0.1.0", pid=4710, incarnation=4, started_at_ns=NOW_NS - 11_520 * S,
    socket="/run/user/1000/towpath/towpath.sock", sessions=5, channels=(DURABLE, CHANNEL),
    bindings=(RUNNING, FAILED), gateways=(GRPC, ZEROMQ),
    counters={"frames_in": 1234, "commands": 17}, warnings=("[channels.x] could not be applied",),
)  # fmt: skip
EMPTY = dataclasses.replace(
    STATUS, sessions=1, incarnation=1, channels=(), bindings=(), gateways=(), counters={}, warnings=()
)

PAGE = """\
towpath 0.1.0  pid 4710, up 3 h 12 min, 4th start, 5 sessions
  socket /run/user/1000/towpath/towpath.sock

Warnings
  ! [channels.x] could not be applied

Gateways
  NAME    STATE         PID  RESTARTS  ENDPOINTS                  DETAIL
  grpc    backing off     -         4                             exited with 1, again in 2 s
  zeromq  running      4713         0  push tcp://127.0.0.1:5557  messages in 3, messages out 12,000
                                       sub tcp://127.0.0.1:5556

Channels
  NAME              KIND   DURABLE  OVERFLOW    RING  PUBLISHERS  SUBSCRIBERS  BINDINGS  OWNER
  b                 topic  yes      drop      64 KiB           1            0         2  uid:1000
  plant.line1.temp  topic  no       block      4 MiB           1           12         2  uid:1000

Bindings
  ID  CHANNEL           DIRECTION  URL                      STATE                IN  OUT  REFUSED  DETAIL
  3   plant.line1.temp  in         pipe:vmstat 1            running  12,345 (1 MiB)    -        0  pid 4711
  14  b                 out        fifo:/tmp/not\\x0aa fifo  failed                -    -        2
  ! binding 14, 1 min 30 s ago: /tmp/x is a file (remove it)

Counted by the core
  commands 17, frames in 1,234
"""

HELD = """\
NAME              KIND   DURABLE  OVERFLOW    RING   HELD  HELD BYTES  UNSETTLED  CONSUMERS  STORED SEQS  \
PUBLISHERS  SUBSCRIBERS  BINDINGS  OWNER
jobs              queue  no       block          -  1,200       3 MiB         30          4            -  \
         1           12         2  uid:1000
b                 topic  yes      drop      64 KiB    501       2 KiB          -          -     500-1000  \
         1            0         2  uid:1000
plant.line1.temp  topic  no       block      4 MiB      -           -          -          -            -  \
         1           12         2  uid:1000"""

EMPTY_PAGE = """\
towpath 0.1.0  pid 4710, up 3 h 12 min, 1st start, 1 session
  socket /run/user/1000/towpath/towpath.sock

Gateways
  none is configured

Channels
  none yet; declare one: towpath declare NAME

Bindings
  none yet; make one: towpath bind CHANNEL fifo:/path --direction in
"""


def message(payload: bytes, headers: Headers | None = None) -> PurePythonMessage:
    return PurePythonMessage(
        payload,
        seq=7,
        source=42,
        time_ns=NOW_NS + 123_456_789,
        channel="a.b",
        headers_raw=encode_headers(headers),
    )


def test_the_status_page() -> None:
    assert report.status_page(STATUS, now_ns=NOW_NS, style=PLAIN) == PAGE


def test_the_status_page_of_a_new_daemon_says_what_to_do_next() -> None:
    assert report.status_page(EMPTY, now_ns=NOW_NS, style=PLAIN) == EMPTY_PAGE


def test_a_hint_that_leads_to_the_status_page_is_not_on_it() -> None:
    failed = dataclasses.replace(
        FAILED, report=dataclasses.replace(FAILED.report, last_error=BindingFailed("it broke"))
    )
    page = report.status_page(dataclasses.replace(STATUS, bindings=(failed,)), now_ns=NOW_NS, style=PLAIN)
    assert "  ! binding 14, 1 min 30 s ago: it broke\n" in page


def test_colours_change_nothing_but_colours() -> None:
    coloured = report.status_page(STATUS, now_ns=NOW_NS, style=Style(colour=True))
    assert "\x1b[32mrunning\x1b[0m" in coloured
    assert "\x1b[31mfailed\x1b[0m" in coloured
    plain = re.sub(r"\x1b\[\d+m", "", coloured)
    assert plain == PAGE


def test_sentences() -> None:
    assert report.channel_line(CHANNEL) == "plant.line1.temp: topic, overflow block, ring 4 MiB"
    assert report.channel_line(DURABLE) == "b: topic, durable, overflow drop, ring 64 KiB"
    rare = dataclasses.replace(CHANNEL, name="c", order="total", history=1_000, stall_ms_max=0)
    assert report.channel_line(rare) == (
        "c: topic, overflow block, ring 4 MiB, order total, history 1,000, stall never"
    )


def test_columns_that_say_the_same_of_all_are_left_out() -> None:
    quick = dataclasses.replace(CHANNEL, name="quick", stall_ms_max=250)
    heading, first, second = report.channels_lines([CHANNEL, quick], PLAIN)
    assert "STALL" in heading and "HISTORY" not in heading
    assert " - " in first and " 250 ms " in second
    assert not any("STALL" in line for line in report.channels_lines([CHANNEL], PLAIN))
    assert (
        report.binding_line(RUNNING) == "binding 3: pipe:vmstat 1 into plant.line1.temp, running (pid 4711)"
    )
    assert report.binding_line(FAILED) == r"binding 14: fifo:/tmp/not\x0aa fifo out of b, failed"


def test_what_channels_hold() -> None:
    queue = dataclasses.replace(
        CHANNEL, name="jobs", kind="queue",
        contents=ChannelContents(1_200, 3 << 20, unsettled=30, consumers=4, waiting=0),
    )  # fmt: skip
    log = dataclasses.replace(DURABLE, contents=ChannelContents(501, 2048, oldest_seq=500, next_seq=1001))
    assert "\n".join(report.channels_lines([queue, log, CHANNEL], PLAIN)) == HELD
    assert report.channel_document(queue)["contents"] == {
        "messages": 1_200, "content_bytes": 3 << 20, "unsettled": 30, "consumers": 4, "waiting": 0,
        "oldest_seq": 0, "next_seq": 0,
    }  # fmt: skip
    assert report.channel_document(CHANNEL)["contents"] is None


@pytest.mark.parametrize("kind", ["queue", "state"])
def test_what_has_no_rings_has_no_size_of_them(kind: Kind) -> None:
    channel = dataclasses.replace(CHANNEL, kind=kind)
    assert report.channel_line(channel) == f"plant.line1.temp: {kind}, overflow block"
    heading, line = report.channels_lines([channel], PLAIN)
    assert line[: heading.index("RING") + 4].endswith("   -")


def test_the_status_document_has_every_field_of_every_value() -> None:
    document = json.loads(report.to_json(report.status_document(STATUS)))
    assert list(document) == [field.name for field in dataclasses.fields(Status)]
    assert document["channels"][1] == dataclasses.asdict(CHANNEL)
    assert document["gateways"][1]["endpoints"] == {
        "sub": "tcp://127.0.0.1:5556",
        "push": "tcp://127.0.0.1:5557",
    }
    assert list(document["gateways"][0]) == [field.name for field in dataclasses.fields(GatewayInfo)]
    assert list(document["bindings"][0]) == [field.name for field in dataclasses.fields(BindingInfo)]
    assert document["bindings"][0]["options"] == {"restart": "always"}
    assert list(document["bindings"][0]["report"]) == [
        field.name for field in dataclasses.fields(BindingReport)
    ]
    assert document["bindings"][0]["report"]["last_error"] is None
    assert document["bindings"][1]["report"]["last_error"] == {
        "code": 60,
        "name": "BINDING_FAILED",
        "message": "/tmp/x is a file",
        "hint": "remove it",
        "retryable": False,
    }
    assert document["warnings"] == ["[channels.x] could not be applied"]


def test_an_error_document_has_the_hint_of_the_table() -> None:
    assert (
        report.error_document(Unavailable("no daemon"))["hint"]
        == "is the daemon running? start it with: towpath serve"
    )


def test_a_text_message_as_json() -> None:
    line = report.message_json_line(
        message("21.5 °C\n".encode(), Headers(content_type="text/plain", priority=3))
    )
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "channel": "a.b",
        "seq": 7,
        "source": 42,
        "time_ns": NOW_NS + 123_456_789,
        "payload": "21.5 °C\n",
        "encoding": "utf-8",
        "headers": {"content_type": "text/plain", "priority": 3},
    }


def test_headers_as_json() -> None:
    everything = Headers(
        content_type="a",
        key=b"\xff",
        priority=1,
        reply_to="b",
        origin="c",
        traceparent="d",
        tracestate="e",
        user={"f": "g"},
    )
    assert report.message_document(message(b"", everything))["headers"] == {
        "content_type": "a",
        "key": "/w==",
        "key_encoding": "base64",
        "priority": 1,
        "reply_to": "b",
        "origin": "c",
        "traceparent": "d",
        "tracestate": "e",
        "user": {"f": "g"},
    }
    assert report.message_document(message(b"", Headers(key=b"k")))["headers"] == {
        "key": "k",
        "key_encoding": "utf-8",
    }


@given(st.binary())
def test_every_payload_comes_back_from_json(payload: bytes) -> None:
    document = json.loads(report.message_json_line(message(payload)))
    text = document["payload"]
    assert payload == (base64.b64decode(text) if document["encoding"] == "base64" else text.encode("utf-8"))


def test_what_precedes_a_payload() -> None:
    assert report.message_prefix(message(b"")) == b"2025-11-22T08:26:40.123456Z\t42\t7\t"
    told = report.message_prefix(message(b""), with_channel=True)
    assert told == b"2025-11-22T08:26:40.123456Z\t42\t7\t%s\t" % message(b"").channel.encode()


@pytest.mark.parametrize(
    ("time_ns", "text"), [(0, "1970-01-01T00:00:00.000000Z"), (999, "1970-01-01T00:00:00.000000Z")]
)
def test_timestamps_are_never_in_the_future_of_what_they_tell(time_ns: int, text: str) -> None:
    assert report.timestamp(time_ns) == text
