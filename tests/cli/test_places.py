"""``places``: what named subscriptions have not dealt with, and forgetting one."""

from __future__ import annotations

import json

import towpath as library
from tests.cli.shell import towpath
from tests.support.deadlines import DEADLINE_S
from towpath.cli.places import lines
from towpath.cli.text import Style
from towpath.model import ChannelContents, Place

NOW_NS = 1_000_000_000_000


def test_the_table() -> None:
    contents = ChannelContents(messages=900, oldest_seq=101, next_seq=1001)
    places = [
        Place("billing", 1001, NOW_NS - 2_000_000_000),
        Place("slow", 1, NOW_NS - 180_000_000_000),
    ]
    assert lines(places, contents, now_ns=NOW_NS, style=Style(colour=False)) == [
        "PLACE    NEXT SEQ  BEHIND  GONE  SAVED",
        "billing     1,001       0     0  2 s ago",
        "slow            1   1,000   100  3 min ago",
    ]


def test_places_are_listed_and_removed(client: library.Client, env: dict[str, str]) -> None:
    client.declare("t.places", durable=True)
    assert towpath("places", "t.places", env=env).stdout == b"no subscription has a place in t.places\n"
    with client.publisher("t.places") as publisher:
        publisher.publish_many([b"%d" % number for number in range(10)])
        publisher.flush(timeout=DEADLINE_S)
    taken = towpath("sub", "t.places", "--place", "billing", "--start", "all", "--count", "4", env=env)
    assert taken.stdout == b"0\n1\n2\n3\n"
    [place] = json.loads(towpath("places", "t.places", "--json", env=env).stdout)
    assert {key: place[key] for key in ("name", "seq", "behind", "gone")} == {
        "name": "billing", "seq": 5, "behind": 6, "gone": 0,
    }  # fmt: skip
    told = towpath("places", "t.places", env=env)
    assert [line.split()[:3] for line in told.stdout.decode().splitlines()][1] == ["billing", "5", "6"]
    removed = towpath("places", "t.places", "--remove", "billing", env=env)
    assert (removed.returncode, removed.stdout, removed.stderr) == (0, b"", b"")
    assert json.loads(towpath("places", "t.places", "--json", env=env).stdout) == []


def test_what_has_no_places(client: library.Client, env: dict[str, str], channel: str) -> None:
    client.declare("t.places.none", durable=True)
    unknown = towpath("places", "t.places.none", "--remove", "nobody", env=env)
    assert unknown.returncode == library.SubscriptionNotFound("").row.exit_code
    assert b"no place of a subscription 'nobody'" in unknown.stderr
    plain = towpath("places", channel, env=env)
    assert plain.returncode == library.InvalidArgument("").row.exit_code
    assert b"is a topic that is not durable" in plain.stderr and b"--durable" in plain.stderr
