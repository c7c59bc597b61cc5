"""``sub`` of a pattern, and of a channel that drops."""

from __future__ import annotations

import json
import signal

import towpath as library
from tests.cli.shell import Start, output, subscribed, towpath
from tests.support.deadlines import DEADLINE_S


def test_a_pattern_prints_which_channel(
    client: library.Client, channel: str, env: dict[str, str], start: Start
) -> None:
    names = [f"{channel}.a.temp", f"{channel}.b.temp"]
    for name in names:
        client.declare(name)
    readers = [start("sub", f"{channel}.*.temp", form, "--count", "2") for form in ("--meta", "--json")]
    for name in names:
        subscribed(client, name, 2)
        assert towpath("pub", name, "x", env=env).returncode == 0
    (code, lines, _), (json_code, documents, _) = map(output, readers)
    assert (code, json_code) == (0, 0)
    assert sorted(line.split(b"\t")[3:] for line in lines.splitlines()) == [
        [name.encode(), b"x"] for name in names
    ]
    assert sorted(json.loads(line)["channel"] for line in documents.splitlines()) == names


def test_what_was_lost_is_told_at_the_end(client: library.Client, channel: str, start: Start) -> None:
    name = f"{channel}.drop"
    client.declare(name, overflow="drop", ring_bytes=4096)
    subscriber = start("sub", name, "--count", "1")
    subscribed(client, name)
    subscriber.send_signal(signal.SIGSTOP)
    with client.publisher(name) as publisher:
        publisher.publish_many([b"%d" % number for number in range(1_000)], timeout=DEADLINE_S)
    subscriber.send_signal(signal.SIGCONT)
    code, printed, told = output(subscriber)
    assert code == 0
    assert told == b"towpath: not read in time, and lost: %d messages\n" % int(printed)


def test_declare_tells_its_options(channel: str, env: dict[str, str]) -> None:
    options = ("--overflow", "drop", "--history", "10", "--stall-ms-max", "250", "--order", "source")
    told = towpath("declare", f"{channel}.options", *options, env=env)
    assert told.stdout == (
        b"%s.options: topic, overflow drop, ring 1 MiB, history 10, stall 250 ms\n" % channel.encode()
    )
