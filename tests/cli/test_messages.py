"""``pub`` and ``sub`` against a real daemon: shell pipelines, framings, headers; every message and in order.

Each test has a channel of its own on one daemon. Where a message must not come before its subscriber,
``subscribed`` waits until the daemon counts it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

import towpath as library
from tests.cli.shell import Start, bash, output, subscribed, towpath, until
from tests.support.daemon import DaemonHandle
from tests.support.deadlines import DEADLINE_S
from towpath.model import Headers


def test_a_hundred_thousand_lines_arrive_in_order(
    client: library.Client, channel: str, env: dict[str, str], start: Start, tmp_path: Path
) -> None:
    with open(tmp_path / "out", "wb") as received:
        subscriber = start("sub", channel, "--count", "100000", stdout=received.fileno())
        subscribed(client, channel)
        published = bash(f"seq 100000 | towpath pub {channel}", env=env)
        assert (published.returncode, published.stderr) == (0, b"")
        assert output(subscriber)[0] == 0
    assert (tmp_path / "out").read_bytes() == b"".join(b"%d\n" % number for number in range(1, 100_001))


def test_arguments_and_standard_input_are_the_same_messages(
    client: library.Client, channel: str, env: dict[str, str], start: Start
) -> None:
    subscriber = start("sub", channel, "--count", "5")
    subscribed(client, channel)
    script = f"towpath pub {channel} one 'two three' -- --four; printf 'five\\nsix' | towpath pub {channel}"
    assert bash(script, env=env).returncode == 0
    assert output(subscriber) == (0, b"one\ntwo three\n--four\nfive\nsix\n", b"")


def _ends_with(path: Path, text: str) -> bool:
    return path.read_text().endswith(text)


def test_a_line_is_seen_at_once_by_a_shell_that_reads(
    client: library.Client, channel: str, env: dict[str, str], tmp_path: Path
) -> None:
    script = f'towpath sub {channel} | while read -r line; do echo "got $line" >> seen; done'
    seen = tmp_path / "seen"
    seen.touch()
    with subprocess.Popen(["bash", "-c", script], env=env, cwd=tmp_path, start_new_session=True) as shell:
        try:
            subscribed(client, channel)
            for number in (1, 2, 3):
                client.channel(channel).publish(f"line {number}".encode())
                last = f"got line {number}\n"
                until(partial(_ends_with, seen, last), "the line was read")
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
    assert seen.read_text() == "got line 1\ngot line 2\ngot line 3\n"


def test_a_subscriber_goes_on_when_the_daemon_is_killed_and_comes_back(
    client: library.Client, channel: str, env: dict[str, str], start: Start, service: DaemonHandle
) -> None:
    subscriber = start("sub", channel, "--count", "2")
    subscribed(client, channel)
    assert towpath("pub", channel, "before", env=env).returncode == 0
    service.kill_core()
    subscribed(client, channel)
    assert towpath("pub", channel, "after", env=env).returncode == 0
    assert output(subscriber) == (0, b"before\nafter\n", b"")


FRAMINGS = [
    ["--frame", "line"],
    ["--frame", "length"],
    ["--frame", "netstring"],
    ["--frame", "delimiter", "--delimiter", r"\0\xff"],
    ["--frame", "fixed", "--frame-bytes", "1000"],
]


@pytest.mark.parametrize("framing", FRAMINGS, ids=lambda framing: framing[1])
def test_each_framing_carries_every_byte(
    client: library.Client,
    channel: str,
    env: dict[str, str],
    start: Start,
    tmp_path: Path,
    framing: list[str],
) -> None:
    payloads = [bytes([65 + number % 26]) * 1000 for number in range(3000)]
    if framing[1] == "line":
        stream = b"".join(payload + b"\n" for payload in payloads)
    elif framing[1] == "length":
        stream = b"".join(len(payload).to_bytes(4, "big") + payload for payload in payloads)
    elif framing[1] == "netstring":
        stream = b"".join(b"1000:" + payload + b"," for payload in payloads)
    elif framing[1] == "delimiter":
        stream = b"".join(payload + b"\0\xff" for payload in payloads)
    else:
        stream = b"".join(payloads)
    with open(tmp_path / "out", "wb") as received:
        subscriber = start("sub", channel, "--count", "3000", *framing, stdout=received.fileno())
        subscribed(client, channel)
        published = towpath("pub", channel, *framing, env=env, stdin=stream)
        assert (published.returncode, published.stderr) == (0, b"")
        assert output(subscriber)[0] == 0
    assert (tmp_path / "out").read_bytes() == stream


def test_raw_carries_bytes_in_pieces(
    client: library.Client, channel: str, start: Start, tmp_path: Path
) -> None:
    stream = random.Random(1).randbytes(1 << 20)
    (tmp_path / "in").write_bytes(stream)
    with client.subscribe(channel) as subscription, open(tmp_path / "in", "rb") as file:
        publisher = start("pub", channel, "--frame", "raw", stdin=file.fileno())
        received = b""
        while len(received) < len(stream):
            received += subscription.receive(timeout=DEADLINE_S).payload
        assert output(publisher) == (0, b"", b"")
    assert received == stream


def test_headers_travel_and_json_shows_them(
    client: library.Client, channel: str, env: dict[str, str], start: Start
) -> None:
    subscriber = start("sub", channel, "--json", "--count", "2")
    subscribed(client, channel)
    headers = ["--content-type", "text/plain", "--key", "k", "--header", "a=b=c", "--header", "d="]
    assert towpath("pub", channel, "21.5", *headers, env=env).returncode == 0
    client.channel(channel).publish(b"\xff\n", headers=Headers(priority=9))
    code, out, errors = output(subscriber)
    assert (code, errors) == (0, b"")
    first, second = map(json.loads, out.splitlines())
    assert set(first) == {"channel", "seq", "source", "time_ns", "payload", "encoding", "headers"}
    assert (first["channel"], first["seq"], first["payload"], first["encoding"]) == (
        channel,
        1,
        "21.5",
        "utf-8",
    )
    assert first["headers"] == {
        "content_type": "text/plain", "key": "k", "key_encoding": "utf-8", "user": {"a": "b=c", "d": ""}
    }  # fmt: skip
    assert abs(first["time_ns"] - time.time_ns()) < 60e9
    assert (second["payload"], second["encoding"], second["headers"]) == ("/wo=", "base64", {"priority": 9})
    assert first["source"] != second["source"]


def test_data_and_key_may_be_any_bytes(
    client: library.Client, channel: str, env: dict[str, str], start: Start
) -> None:
    with client.subscribe(channel) as subscription:
        publisher = start("pub", channel, "\udcff\udc80", "--key", "\udcfe")
        message = subscription.receive(timeout=DEADLINE_S)
        assert output(publisher) == (0, b"", b"")
    assert (message.payload, message.headers.key) == (b"\xff\x80", b"\xfe")


def test_meta_precedes_each_line(client: library.Client, channel: str, start: Start) -> None:
    subscriber = start("sub", channel, "--meta", "--count", "2")
    subscribed(client, channel)
    client.channel(channel).publish_many([b"a", b"b"])
    code, out, _ = output(subscriber)
    rows = [line.split(b"\t") for line in out.splitlines()]
    assert code == 0
    assert [(row[2], row[3]) for row in rows] == [(b"1", b"a"), (b"2", b"b")]
    assert all(row[0].endswith(b"Z") and row[1].isdigit() for row in rows)


def test_what_was_published_on_a_durable_channel_is_on_disk_when_pub_leaves(
    client: library.Client, channel: str, env: dict[str, str]
) -> None:
    kept = f"{channel}.kept"
    client.declare(kept, durable=True)
    published = 0
    for stream in (b"one\n", b"".join(b"%d\n" % number for number in range(200_000))):
        left = towpath("pub", kept, env=env, stdin=stream)
        assert (left.returncode, left.stderr) == (0, b"")
        published += stream.count(b"\n")
        contents = client.channel_info(kept).contents
        assert contents is not None and contents.next_seq == published + 1


def test_a_name_that_is_in_use_is_taken_over_when_asked_to(
    client: library.Client, channel: str, env: dict[str, str]
) -> None:
    kept = f"{channel}.named"
    client.declare(kept, durable=True)
    client.channel(kept).publish_many([b"1", b"2"], confirm=True)
    held = client.subscribe(kept, place="me", start="all")
    assert held.receive(timeout=DEADLINE_S).payload == b"1"
    arguments = ("sub", kept, "--place", "me", "--start", "all", "--count", "2")
    refused = towpath(*arguments, env=env)
    assert refused.returncode == 73 and b"--take-over" in refused.stderr
    taken = towpath(*arguments, "--take-over", env=env)
    assert (taken.returncode, taken.stdout) == (0, b"1\n2\n")
    assert held.receive(timeout=DEADLINE_S).payload == b"2"  # it was in hand
    with pytest.raises(library.SubscriptionInUse):
        held.receive(timeout=DEADLINE_S)
    wrong = towpath("sub", kept, "--take-over", env=env)
    assert wrong.returncode == 2 and b"--place" in wrong.stderr
