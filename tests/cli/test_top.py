"""``top``: rates from two looks, the page to the letter, and the real thing beside a real publisher."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import towpath as library
from tests.cli.shell import Start, output, towpath
from tests.cli.test_report import CHANNEL, NOW_NS, RUNNING, STATUS, ZEROMQ
from tests.support.deadlines import DEADLINE_S
from towpath.cli.rates import Rates, rates
from towpath.cli.text import Style
from towpath.cli.top import page
from towpath.model import ChannelContents, SessionInfo, Traffic

SESSION = SessionInfo(
    id=9, name="pump", principal="uid:1000", pid=77, gateway="", publishers=1, subscribers=0,
    published=Traffic(100, 4_000), pending_bytes=0,
)  # fmt: skip
BEFORE = dataclasses.replace(STATUS, traffic={CHANNEL.name: Traffic(1_000, 50_000)}, session_list=(SESSION,))
AFTER = dataclasses.replace(
    BEFORE,
    traffic={CHANNEL.name: Traffic(3_500, 1_074_000), "b": Traffic(1, 40)},
    bindings=(
        dataclasses.replace(
            RUNNING, report=dataclasses.replace(RUNNING.report, messages_in=12_845)
        ),
    ),
    gateways=(dataclasses.replace(ZEROMQ, counters={"messages_in": 3, "messages_out": 12_003}),),
    session_list=(
        dataclasses.replace(SESSION, published=Traffic(350, 14_000)),
        dataclasses.replace(
            SESSION, id=10, name="slow", pid=0, publishers=0, subscribers=1,
            published=Traffic(), pending_bytes=3 << 20,
        ),
    ),
)  # fmt: skip

PAGE = """\
towpath 0.1.0  up 3 h 12 min, 5 sessions, 1,250 messages/s over 2.0 s

Channels
  NAME              MESSAGES/S  BYTES/S  MESSAGES  PUBLISHERS  SUBSCRIBERS
  plant.line1.temp       1,250  500 KiB     3,500           1           12
  b                        0.5     20 B         1           1            0

Bindings
  ID  CHANNEL           STATE    IN/S  OUT/S  BYTES/S  REFUSED/S  URL
  3   plant.line1.temp  running   250      0      0 B          0  pipe:vmstat 1

Gateways
  NAME    STATE    PER SECOND
  zeromq  running  messages out 1.5

Sessions
  PID  PRINCIPAL  MESSAGES/S  BYTES/S  PUB  SUB  PENDING  NAME
   77  uid:1000          125  4.9 KiB    1    0      0 B  pump
    -  uid:1000            0      0 B    0    1    3 MiB  slow"""


def test_the_page() -> None:
    seen = rates(BEFORE, AFTER, 2.0)
    assert "\n".join(page(AFTER, seen, now_ns=NOW_NS, style=Style(colour=False))) == PAGE


def test_how_deep_a_queue_is() -> None:
    jobs = dataclasses.replace(
        CHANNEL, name="jobs", kind="queue", contents=ChannelContents(7, 1024, unsettled=2, consumers=1)
    )
    after = dataclasses.replace(AFTER, channels=(*AFTER.channels, jobs))
    seen = rates(BEFORE, after, 2.0)
    channels_only = dataclasses.replace(seen, bindings=(), gateways=(), sessions=())
    heading, *rows = page(after, channels_only, now_ns=NOW_NS, style=Style(colour=False))[3:]
    assert heading.split()[-5:] == ["HELD", "HELD", "BYTES", "UNSETTLED", "CONSUMERS"]
    assert {row.split()[0]: row.split()[-4:] for row in rows}["b"] == ["-", "-", "-", "-"]
    assert rows[-1].split()[0] == "jobs" and rows[-1].split()[-5:] == ["7", "1", "KiB", "2", "1"]


def test_what_goes_through_a_queue() -> None:
    def look(contents: ChannelContents) -> library.Status:
        jobs = dataclasses.replace(CHANNEL, name="jobs", kind="queue", contents=contents)
        return dataclasses.replace(AFTER, channels=(jobs,))

    before = look(ChannelContents(messages=10, next_seq=101))
    after = look(ChannelContents(messages=4, next_seq=131))  # 30 came, and 36 are done
    [seen] = rates(before, after, 2.0).channels
    assert (seen.messages_per_s, seen.done_per_s, seen.messages) == (15.0, 18.0, 130)
    lines = page(after, rates(before, after, 2.0), now_ns=NOW_NS, style=Style(colour=False))
    assert lines[3].split()[:3] == ["NAME", "MESSAGES/S", "DONE/S"]
    assert lines[4].split()[:4] == ["jobs", "15", "18", "0"]
    assert "15 messages/s" in lines[0]
    [first] = rates(dataclasses.replace(before, channels=()), after, 2.0).channels
    assert (first.messages_per_s, first.done_per_s) == (65.0, 63.0)  # it came since


def test_what_does_not_fit_is_counted() -> None:
    seen = rates(BEFORE, AFTER, 2.0)
    lines = page(AFTER, seen, now_ns=NOW_NS, style=Style(colour=False), rows_max=1)
    assert [line for line in lines if line.startswith("  and ")] == ["  and 1 more", "  and 1 more"]


def all_rates(seen: Rates) -> list[float]:
    return [
        *(rate.messages_per_s for rate in seen.channels),
        *(rate.messages_in_per_s for rate in seen.bindings),
        *(number for gateway in seen.gateways for number in gateway.counters_per_s.values()),
        *(rate.messages_per_s for rate in seen.sessions),
    ]


def test_a_daemon_that_was_restarted_begins_with_no_rates() -> None:
    restarted = dataclasses.replace(AFTER, incarnation=AFTER.incarnation + 1)
    assert not any(all_rates(rates(BEFORE, restarted, 1.0)))


def test_figures_that_begin_anew_count_from_nothing() -> None:
    fewer = dataclasses.replace(
        BEFORE, traffic={CHANNEL.name: Traffic(10, 400)}, session_list=(
            dataclasses.replace(SESSION, published=Traffic(1, 40)),
        )
    )  # fmt: skip
    seen = rates(BEFORE, fewer, 1.0)
    assert seen.channels[0].messages_per_s == 10
    assert seen.sessions[0].messages_per_s == 0  # one of its publishers left


def test_the_real_thing(client: library.Client, channel: str, env: dict[str, str], start: Start) -> None:
    with client.subscribe(channel) as subscription, client.publisher(channel) as publisher:
        publisher.publish_many([b"x" * 100] * 50)
        top = start("top", "--json", "--interval", "0.1")
        assert top.stdout is not None
        json.loads(top.stdout.readline())
        publisher.publish_many([b"x" * 100] * 50)
        total = 0.0
        while total < 50:
            seen = json.loads(top.stdout.readline())
            [found] = [each for each in seen["channels"] if each["name"] == channel]
            total += round(found["messages_per_s"] * seen["span_s"])
        assert (total, found["messages"], found["publishers"]) == (50, 100, 1)
        [own] = [each for each in seen["sessions"] if each["pid"] == os.getpid() and each["pending_bytes"]]
        assert own["pending_bytes"] == 100 * (32 + 104)
        top.send_signal(signal.SIGINT)
        assert output(top)[0] == -signal.SIGINT
        assert len(subscription.receive_many(100, timeout=DEADLINE_S)) == 100
    status = client.status()
    assert status.traffic[channel] == Traffic(100, 100 * (32 + 104))
    assert [each.pid for each in status.session_list].count(os.getpid()) >= 1
    assert len(status.session_list) == status.sessions


def test_the_depth_of_a_queue_and_what_goes_through_it(client: library.Client, start: Start) -> None:
    client.declare("t.top.jobs", kind="queue")
    top = start("top", "--json", "--interval", "0.1")
    assert top.stdout is not None

    def look() -> tuple[dict[str, float], float]:
        assert top.stdout is not None
        seen = json.loads(top.stdout.readline())
        [found] = [each for each in seen["channels"] if each["name"] == "t.top.jobs"]
        return found, seen["span_s"]

    look()
    came = done = 0
    client.publisher("t.top.jobs").publish_many([b"x"] * 50)
    with client.consume("t.top.jobs") as consumer:
        consumer.receive(timeout=DEADLINE_S).ack()
        consumer.flush(timeout=DEADLINE_S)
        while (came, done) != (50, 1):
            found, span_s = look()
            came += round(found["messages_per_s"] * span_s)
            done += round(found["done_per_s"] * span_s)
            assert came <= 50 and done <= 1
        assert found["contents"]["messages"] == 49  # type: ignore[index]


def test_once_prints_one_page(client: library.Client, env: dict[str, str]) -> None:
    client.declare("a.first")  # among those without traffic, names go in order, and a page holds only some
    result = towpath("top", "--once", "--interval", "0.1", env=env)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.startswith(b"towpath 0.") and b"  a.first " in result.stdout
    assert b"\x1b" not in result.stdout


def test_locks_are_counted_where_there_are_any() -> None:
    counters = {"lock_sessions": 1, "locks": 2, "lock_waits": 3, "lock_deadlocks": 1}
    counted = dataclasses.replace(AFTER, counters=counters)
    shown, without = (
        page(status, rates(BEFORE, status, 2.0), now_ns=NOW_NS, style=Style(colour=False))
        for status in (counted, AFTER)
    )
    assert set(shown) - set(without) == {"locks: 2 in use by 1 session, 3 wait, 1 deadlock found"}
