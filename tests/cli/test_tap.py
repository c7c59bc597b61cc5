"""``tap`` and ``replay`` against a real daemon: what is seen, what is recorded, what comes back; and that a
tap holds nobody up.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

import towpath as library
from tests.cli.shell import Start, output, subscribed, towpath, until
from tests.support.deadlines import DEADLINE_S
from towpath._message import PurePythonMessage
from towpath.cli.preview import preview, preview_line
from towpath.convert import encode_headers
from towpath.errors import TABLE, Code
from towpath.model import Headers
from towpath.recording import Recording

NS_PER_S = 1_000_000_000


def received(subscription: library.Subscription, count: int) -> list[library.Message]:
    messages: list[library.Message] = []
    while len(messages) < count:
        batch = subscription.receive_many(count - len(messages), timeout=DEADLINE_S)
        assert batch, f"{len(messages)} of {count} messages came"
        messages += batch
    return messages


def test_a_tap_shows_a_line_for_each_message(client: library.Client, channel: str, start: Start) -> None:
    tap = start("tap", channel, "--count", "3")
    subscribed(client, channel)
    publisher = client.publisher(channel)
    publisher.publish(b"21.5", headers=Headers(content_type="text/plain", user={"line": "1"}))
    publisher.publish(b"\x00\x1b[2J")
    publisher.publish("grün\x1b[2J".encode())
    code, out, errors = output(tap)
    lines = out.decode().splitlines()
    assert code == 0 and re.fullmatch(r"3 messages, 18 B in \d+ s\n", errors.decode())
    start_of_line = rf"\d\d:\d\d:\d\d\.\d{{6}} {re.escape(channel)} {publisher.source}#"
    assert re.fullmatch(start_of_line + r"1 \S+s 4 B \[type=text/plain line=1\] 21\.5", lines[0])
    assert re.fullmatch(start_of_line + r"2 \S+s 5 B 00 1b 5b 32 4a", lines[1])
    assert lines[2].endswith(r" 9 B grün\x1b[2J")


def test_a_pattern_follows_channels_that_come_later(
    client: library.Client, channel: str, start: Start, tmp_path: Path
) -> None:
    tap = start("tap", f"{channel}.>", "--record", str(tmp_path / "file"), "--count", "2")
    until((tmp_path / "file").exists, "it has subscribed")
    for level in ("a", "b.c"):
        client.declare(f"{channel}.{level}")
        client.channel(f"{channel}.{level}").publish(level.encode())
    assert output(tap)[0] == 0
    with open(tmp_path / "file", "rb") as file:
        batches = {batch.channel: list(batch.payloads) for batch in Recording(file)}
    assert batches == {f"{channel}.a": [b"a"], f"{channel}.b.c": [b"b.c"]}


def test_json_has_the_whole_message(client: library.Client, channel: str, start: Start) -> None:
    tap = start("tap", channel, "--count", "1", "--json", "--quiet")
    subscribed(client, channel)
    client.channel(channel).publish(b"x" * 500)
    code, out, errors = output(tap)
    assert (code, errors, json.loads(out)["payload"]) == (0, b"", "x" * 500)


def test_duration_ends_a_tap(channel: str, env: dict[str, str]) -> None:
    result = towpath("tap", channel, "--duration", "0.1", env=env)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"0 messages, 0 B in 0 s\n")


def test_a_tap_whose_output_nobody_reads_holds_nobody_up(
    client: library.Client, channel: str, start: Start
) -> None:
    # Far more than its pipe, what may be pending, and the ring hold together; stdout is read only at the end.
    count, size = 4_000, 4096
    tap = start("tap", channel, "--count", str(count), "--width", "4000")
    subscribed(client, channel)
    with client.publisher(channel) as publisher:
        for _ in range(count):
            publisher.publish(b"x" * size, timeout=DEADLINE_S)
        assert publisher.wait_drained(20)
    code, _, errors = output(tap)
    assert code == 0
    assert re.match(r"4,000 messages, 15\.6 MiB in \d+ s, [\d,]+ not shown\n", errors.decode())


def test_block_shows_everything(client: library.Client, channel: str, start: Start) -> None:
    tap = start("tap", channel, "--count", "20000", "--block", "--format", "none", "--quiet")
    subscribed(client, channel)
    with client.publisher(channel) as publisher:
        publisher.publish_many([b"%d" % number for number in range(20_000)])
        code, out, _ = output(tap)
    assert code == 0
    assert [int(line.split()[2].partition(b"#")[2]) for line in out.splitlines()] == [*range(1, 20_001)]


def record(
    client: library.Client, channel: str, start: Start, path: Path, *, count: int
) -> subprocess.Popen[bytes]:
    tap = start("tap", channel, "--record", str(path), "--count", str(count))
    subscribed(client, channel)
    return tap


def test_what_is_recorded_comes_back(
    client: library.Client, channel: str, start: Start, tmp_path: Path
) -> None:
    tap = record(client, channel, start, tmp_path / "file", count=3002)
    headers = Headers(content_type="a/b", key=b"\xff", traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    with client.publisher(channel) as one, client.publisher(channel) as other:
        one.publish_many([b"%d" % number for number in range(3000)])
        other.publish(bytes(range(256)) * 100, headers=headers)
        other.publish(b"")
    code, out, errors = output(tap)
    assert (code, out) == (0, b"")
    assert re.match(r"3,002 messages, .* recorded in ", errors.decode())
    with client.subscribe(channel) as subscription:
        replay = start("replay", str(tmp_path / "file"), "--speed", "max")
        messages = received(subscription, 3002)
        assert output(replay) == (0, b"", b"3,002 messages replayed\n")
    payloads = sorted([message.payload for message in messages], key=len)
    assert [message.payload for message in messages if len(message.payload) in range(1, 5)] == [
        b"%d" % number for number in range(3000)
    ]
    assert payloads[0] == b"" and payloads[-1] == bytes(range(256)) * 100
    assert [message.headers for message in messages if message.headers_raw] == [headers]


def test_a_recording_keeps_its_timing_and_its_channels(
    client: library.Client, channel: str, start: Start, tmp_path: Path
) -> None:
    tap = record(client, channel, start, tmp_path / "file", count=3)
    with client.publisher(channel) as publisher:
        publisher.publish(b"first")
        publisher.publish(b"at once")
        due_ns = time.time_ns() + 0.4 * NS_PER_S
        until(lambda: time.time_ns() > due_ns, "time passes")
        publisher.publish(b"later")
    assert output(tap)[0] == 0
    elsewhere = f"{channel}_elsewhere"
    client.declare(elsewhere)
    with client.subscribe(channel) as same, client.subscribe(elsewhere) as other:
        replay = start("replay", str(tmp_path / "file"))
        again = received(same, 3)
        assert output(replay)[0] == 0
        assert again[2].time_ns - again[0].time_ns >= 0.4 * NS_PER_S
        replay = start("replay", str(tmp_path / "file"), "--speed", "1000", "--channel", elsewhere)
        quick = received(other, 3)
        assert output(replay)[0] == 0
    assert [message.payload for message in quick] == [b"first", b"at once", b"later"]
    assert quick[2].time_ns - quick[0].time_ns >= 0.0004 * NS_PER_S


def _batches(data: bytes) -> int:
    """How many batches a recording has."""
    return len(list(Recording(io.BytesIO(data)))) if data else 0


def _recorded(path: Path) -> int:
    """The same of a file that the recorder may not have made yet."""
    return _batches(path.read_bytes()) if path.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_recorder_what_it_wrote_is_usable(
    client: library.Client, channel: str, start: Start, tmp_path: Path, number: int
) -> None:
    path = tmp_path / "file"
    tap = record(client, channel, start, path, count=10**9)
    with client.publisher(channel) as publisher:
        publisher.publish(b"kept")
        until(lambda: _recorded(path) == 1, "the message is in the file")
        tap.send_signal(number)
        assert output(tap)[0] == -number
    with open(path, "ab") as file:
        file.write(b"\x10\x00\x00\x00cut")
    with client.subscribe(channel) as subscription:
        replay = start("replay", str(path), "--speed", "max")
        assert received(subscription, 1)[0].payload == b"kept"
        code, _, errors = output(replay)
    assert code == 0 and b" was cut short: its last 7 bytes are no whole record" in errors


def test_a_loop_goes_on_until_it_is_stopped(
    client: library.Client, channel: str, start: Start, tmp_path: Path
) -> None:
    tap = record(client, channel, start, tmp_path / "file", count=1)
    client.channel(channel).publish(b"again")
    assert output(tap)[0] == 0
    with client.subscribe(channel) as subscription:
        replay = start("replay", str(tmp_path / "file"), "--loop", "--speed", "max")
        assert {message.payload for message in received(subscription, 100)} == {b"again"}
        replay.send_signal(signal.SIGINT)
        assert output(replay)[0] == -signal.SIGINT


def test_a_full_disk_ends_a_recording(client: library.Client, channel: str, start: Start) -> None:
    tap = start("tap", channel, "--record", "/dev/full", "--force")
    code, _, errors = output(tap)
    assert code == 74
    assert errors.decode().endswith("towpath: cannot write to /dev/full: No space left on device\n")


def test_a_file_too_slow_ends_a_recording_and_the_publisher_goes_on(
    client: library.Client, channel: str, start: Start, tmp_path: Path
) -> None:
    fifo = tmp_path / "slow"
    os.mkfifo(fifo)
    client.undeclare(channel)
    client.declare(channel, ring_bytes=16 << 20)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with open(reader, "rb") as file:
        tap = start("tap", channel, "--record", str(fifo), "--force", "--quiet")
        subscribed(client, channel)
        with client.publisher(channel) as publisher:
            for _ in range(40):  # more than the tap's buffer and the ring hold together
                publisher.publish(bytes(2 << 20), timeout=DEADLINE_S)
            assert publisher.wait_drained(20)
        os.set_blocking(reader, True)
        read = file.read()
    code, _, errors = output(tap)
    assert code == TABLE[Code.SLOW_CONSUMER].exit_code
    assert b"cannot be written as fast as messages come; the recording ends here" in errors
    assert 20 <= _batches(read) < 40


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["tap", "t.none"], 66, "no channel"),
        (["tap", "t.none", "--force"], 2, "--force is for --record"),
        (["tap", "t.none", "--record", "x", "--json"], 2, "--json cannot go with --record"),
        (["replay", "/nonexistent"], 74, "No such file"),
        (["replay", __file__], 65, f"{__file__}: this is not a recording"),
        (["replay", "/x", "--speed", "0"], 2, "is not a speed"),
        (["top", "--interval", "0"], 2, "is not an interval"),
    ],
)
def test_bad_input_is_told(arguments: list[str], code: int, text: str, env: dict[str, str]) -> None:
    result = towpath(*arguments, env=env)
    assert text in result.stderr.decode(), result.stderr
    assert result.returncode == code


def test_a_file_that_is_there_is_not_overwritten(channel: str, env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    result = towpath("tap", channel, "--record", str(tmp_path / "file"), env=env)
    assert result.returncode == 74 and b"File exists" in result.stderr
    assert (tmp_path / "file").read_text() == "precious"


# ---- previews ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "width", "form", "text"),
    [
        (b"", 10, "auto", ""),
        (b"hello", 5, "auto", "hello"),
        (b"hello!", 5, "auto", "hell…"),
        ("日本語".encode(), 5, "auto", "日本…"),
        ("日本語".encode(), 6, "auto", "日本語"),
        ("ü".encode() * 1000, 10, "auto", "ü" * 9 + "…"),
        (("a" + "ü" * 1000).encode(), 10, "auto", "a" + "ü" * 8 + "…"),
        (b"\xff\x00", 10, "auto", "ff 00"),
        (b"a\0b", 10, "auto", "61 00 62"),
        (b"a\0b", 10, "text", r"a\x00b"),
        (b"abc", 10, "hex", "61 62 63"),
        (b"a\nb", 10, "auto", r"a\x0ab"),
    ],
)
def test_a_preview_is_what_it_is_and_no_wider(payload: bytes, width: int, form: str, text: str) -> None:
    assert preview(payload, width, form) == text


def test_headers_that_cannot_be_read_are_told() -> None:
    message = PurePythonMessage(b"x", seq=1, source=2, time_ns=0, channel="a", headers_raw=b"\xff")
    line = preview_line(message, 1_500_000_000, width=80, form="auto")
    assert line == b"00:00:00.000000 a 2#1 1.5s 1 B [headers that cannot be read] x\n"
    raw = encode_headers(Headers(key=b"\x1b[2J", priority=3))
    message = PurePythonMessage(b"x", seq=1, source=2, time_ns=1500, channel="a", headers_raw=raw)
    assert preview_line(message, 0, width=80, form="none").endswith(b"-1.5us 1 B [key=\\x1b[2J priority=3]\n")
