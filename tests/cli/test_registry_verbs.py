"""The verbs on the registry, against a real daemon and its bridge."""

from __future__ import annotations

import json
from pathlib import Path

import towpath as library
from tests.cli.shell import Start, bash, output, subscribed, towpath
from tests.support.deadlines import DEADLINE_S


def test_declaring_listing_undeclaring(env: dict[str, str]) -> None:
    declared = towpath("declare", "t.listed.a", "--ring-bytes", "64K", "--json", env=env)
    assert declared.returncode == 0
    document = json.loads(declared.stdout)
    assert (document["name"], document["kind"], document["ring_bytes"]) == ("t.listed.a", "topic", 65536)
    again = towpath("declare", "t.listed.a", env=env)
    assert (again.returncode, again.stdout) == (0, b"t.listed.a: topic, overflow block, ring 64 KiB\n")
    conflict = towpath("declare", "t.listed.a", "--ring-bytes", "8M", env=env)
    assert conflict.returncode == 73
    assert towpath("declare", "t.listed.b", env=env).returncode == 0
    assert towpath("channels", "t.listed.", "--names", env=env).stdout == b"t.listed.a\nt.listed.b\n"
    assert json.loads(towpath("channels", "t.listed.a", "--json", env=env).stdout) == [document]
    assert (
        towpath("channels", "t.listed.", env=env).stdout.splitlines()[1].startswith(b"t.listed.a  topic  no ")
    )
    for name in ("t.listed.a", "t.listed.b"):
        assert towpath("undeclare", name, env=env).returncode == 0
    empty = towpath("channels", "t.listed.", env=env)
    assert empty.stdout == b"no channels that begin with t.listed.\n"
    assert json.loads(towpath("channels", "t.listed.", "--json", env=env).stdout) == []


def test_how_deep_a_queue_is(client: library.Client, env: dict[str, str]) -> None:
    declared = towpath("declare", "t.depth", "--kind", "queue", env=env)
    assert declared.stdout == b"t.depth: queue, overflow block\n"
    client.publisher("t.depth").publish_many([b"12345"] * 3)
    with client.consume("t.depth", prefetch=2) as consumer:
        while len(consumer.receive_many(1, timeout=DEADLINE_S)) != 1:
            pass
        (document,) = json.loads(towpath("channels", "t.depth", "--json", env=env).stdout)
        assert document["contents"] == {
            "messages": 3, "content_bytes": 15, "unsettled": 2, "consumers": 1, "waiting": 0,
            "oldest_seq": 0, "next_seq": 4,
        }  # fmt: skip
        heading, row = towpath("channels", "t.depth", env=env).stdout.decode().splitlines()
        assert "HELD  HELD BYTES  UNSETTLED  CONSUMERS" in heading
        assert row.split()[4:10] == ["-", "3", "15", "B", "2", "1"]
        top = json.loads(towpath("top", "--once", "--json", "--interval", "0.1", env=env).stdout)
        (shown,) = [channel for channel in top["channels"] if channel["name"] == "t.depth"]
        assert shown["contents"] == document["contents"]
    client.undeclare("t.depth", force=True)


def test_a_fifo_is_bound_seen_in_the_status_and_unbound(
    client: library.Client, channel: str, env: dict[str, str], start: Start, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    bound = towpath("bind", channel, f"fifo:{fifo}", "--direction", "in", "--json", env=env)
    assert bound.returncode == 0, bound.stderr
    binding = json.loads(bound.stdout)
    assert binding["url"] == f"fifo:{fifo}"
    subscriber = start("sub", channel, "--count", "2")
    subscribed(client, channel)
    assert bash(f"echo one > {fifo}; echo two > {fifo}", env=env).returncode == 0
    assert output(subscriber) == (0, b"one\ntwo\n", b"")
    page = towpath("status", env=env).stdout.decode()
    assert f"fifo:{fifo}" in page
    status = json.loads(towpath("status", "--json", env=env).stdout)
    assert [entry["id"] for entry in status["bindings"] if entry["channel"] == channel] == [binding["id"]]
    assert {gateway["name"] for gateway in status["gateways"]} >= {"bridge"}
    unbound = towpath("unbind", channel, f"fifo:{fifo}", env=env)
    assert unbound.returncode == 0
    assert unbound.stdout.startswith(f"binding {binding['id']}: fifo:{fifo} into {channel}".encode())
    assert towpath("unbind", str(binding["id"]), env=env).returncode == 66


def test_a_binding_that_cannot_come_up_is_taken_away_unless_kept(
    channel: str, env: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    refused = towpath("bind", channel, f"fifo:{file}", "--direction", "in", env=env)
    assert refused.returncode == 74
    assert refused.stderr.count(b"\n") == 2
    assert file.read_text() == "precious"
    bindings = json.loads(towpath("status", "--json", env=env).stdout)["bindings"]
    assert channel not in [entry["channel"] for entry in bindings]
    kept = towpath(
        "bind", channel, f"fifo:{file}", "--direction", "in", "--keep", "--frame", "length", env=env
    )
    assert kept.returncode == 0
    assert b", failed (" in kept.stdout
    bindings = json.loads(towpath("status", "--json", env=env).stdout)["bindings"]
    (binding,) = [entry for entry in bindings if entry["channel"] == channel]
    assert (binding["report"]["state"], binding["options"]["framing"]) == ("failed", "length")
    assert towpath("unbind", str(binding["id"]), env=env).returncode == 0


def test_channels_are_offered_by_the_completion(channel: str, env: dict[str, str]) -> None:
    from tests.cli.test_completion import offered

    assert offered("sub", channel[:-2], env=env) == {channel}
    assert channel in offered("undeclare", "t.", env=env)
