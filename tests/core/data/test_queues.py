"""Queues: order, sharing, settling, deadlines, dead letters, capacity."""

from __future__ import annotations

import pytest

from tests.core.data.rig import MS, Rig
from towpath.errors import (
    Cancelled,
    DeliveryLost,
    InvalidArgument,
    LimitExceeded,
    PermissionDenied,
    QueueFull,
    QuotaExceeded,
)
from towpath.v1.message_pb2 import Headers
from towpath_broker.core.commands import ChannelOptions, Kind, Overflow
from towpath_broker.core.data import commands as c
from towpath_broker.core.data import effects as e
from towpath_broker.core.data import window
from towpath_broker.core.data.letters import LETTER_BYTES_MAX
from towpath_broker.core.data.statistics import ChannelStatistics
from towpath_broker.core.ids import SessionId
from towpath_broker.core.limits import Limits


def queue(**options: object) -> ChannelOptions:
    return ChannelOptions(kind=Kind.QUEUE, **options)  # type: ignore[arg-type]


@pytest.fixture(params=[False, True], ids=["memory", "durable"])
def is_durable(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def rig(is_durable: bool, limits: Limits | None = None, **options: object) -> Rig:
    return Rig(
        {"q": queue(durable=is_durable, **options), "dead": queue(durable=is_durable)},
        is_durable=is_durable,
        limits=limits,
    )


def test_first_in_first_out_and_higher_priorities_first(is_durable: bool) -> None:
    it = rig(is_durable)
    it.publish("q", b"a", b"B", b"c", b"D", priorities=[0, 31, 0, 31])
    it.publish("q", b"E", priorities=[31])
    it.consume("q")
    assert it.payloads() == [b"B", b"D", b"E", b"a", b"c"]


def test_what_comes_back_goes_before_what_was_never_delivered(is_durable: bool) -> None:
    it = rig(is_durable)
    it.publish("q", b"a", b"b", b"c", b"d")
    consumer, _ = it.consume("q", 2)
    assert it.payloads() == [b"a", b"b"]
    it.give_back(consumer, 1)
    assert it.delivered() == [(consumer, 3, b"a", 2)]


def test_consumers_share_evenly_and_within_their_prefetch(is_durable: bool) -> None:
    it = rig(is_durable)
    consumers = {it.consume("q", 1000, session=session)[0]: 0 for session in range(1, 5)}
    for _ in range(20):
        it.publish("q", *[b"x"] * 123)
        for consumer, *_ in it.delivered():
            consumers[consumer] += 1
    assert sum(consumers.values()) == 20 * 123
    assert max(consumers.values()) - min(consumers.values()) <= 20
    it.publish("q", *[b"x"] * 5000)
    assert {each.unsettled for each in it.machine._channels["q"].consumers.values()} == {1000}  # type: ignore[union-attr]


def test_bytes_bound_what_a_consumer_has_but_one_message_it_always_gets(is_durable: bool) -> None:
    it = rig(is_durable)
    big = b"x" * (3 << 20)
    it.publish("q", big)
    it.publish("q", *[b"y" * 1_000_000] * 3)
    consumer, _ = it.consume("q")
    assert [len(payload) for payload in it.payloads()] == [len(big)]
    it.ack(consumer, 1)
    assert [len(payload) for payload in it.payloads()] == [1_000_000, 1_000_000]


def test_settling_some_of_a_parcel_and_what_is_lost_is_told(is_durable: bool) -> None:
    it = rig(is_durable)
    it.publish("q", *[b"%d" % index for index in range(10)])
    consumer, _ = it.consume("q")
    assert it.ack(consumer, 3, 5) == e.Settled(3)
    assert it.ack(consumer, 1, 10) == e.Settled(7, (c.Range(3, 5),))
    assert it.machine.channel_statistics("q") == nothing(1, 10)
    it.refused(c.Settle(it.caller(), consumer, [c.Range(11, 11)]), InvalidArgument)
    it.refused(c.Settle(it.caller(), consumer, [c.Range(2, 1)]), InvalidArgument)


def nothing(consumers: int, published: int) -> ChannelStatistics:
    """What a queue holds that is empty again."""
    return ChannelStatistics(consumers=consumers, next_seq=published + 1)


def test_nobody_settles_for_somebody_else(is_durable: bool) -> None:
    it = rig(is_durable)
    it.publish("q", b"a")
    consumer, _ = it.consume("q", session=1)
    done = [c.Range(1, 1)]
    it.refused(c.Settle(it.caller(session=2), consumer, done), PermissionDenied)
    it.refused(c.Settle(it.caller(session=1, principal="uid:8"), consumer, done), PermissionDenied)
    it.refused(c.Settle(it.caller(), 4711, done), DeliveryLost)
    assert it.ack(consumer, 1) == e.Settled(1)


def test_a_deadline_passes_is_extended_and_then_it_is_too_late(is_durable: bool) -> None:
    it = rig(is_durable, ack_ms=1000)
    it.publish("q", b"a", b"b")
    one, _ = it.consume("q", 2, session=1)
    it.consume("q", 2, session=2)
    it.advance(900)
    extended = [c.Extended(c.Range(1, 1), 1000)]
    assert it.ask(c.Settle(it.caller(), one, extended=extended), e.Settled) == e.Settled(1)
    shown = it.advance(100)
    assert [(payload, attempt) for _, _, payload, attempt in it.delivered(shown)] == [(b"b", 2)]
    assert it.payloads(it.advance(899)) == []
    assert it.payloads(it.advance(1)) == [b"a"]
    assert it.ack(one, 1) == e.Settled(0, (c.Range(1, 1),))


def test_a_consumer_whose_delivery_expired_is_dealt_nothing_until_it_speaks(is_durable: bool) -> None:
    it = rig(is_durable, ack_ms=1000, max_deliveries=3, dead_letter="dead")
    stopped, _ = it.consume("q", 10, session=1)
    it.publish("q", *[b"%d" % number for number in range(40)])
    assert len(it.payloads()) == 10
    assert it.payloads(it.advance(1000)) == []  # its credit is free, but it is silent
    healthy, _ = it.consume("q", 1, session=2)
    assert it.delivered() == [(healthy, 1, b"0", 2)]
    for number in range(1, 21):
        it.advance(900)
        it.ack(healthy, number, session=2)
        assert [(consumer, payload) for consumer, _, payload, _ in it.delivered()] == [
            (healthy, b"%d" % number)
        ]
    assert it.machine.statistics().counters == {"expired": 10}
    assert it.ack(stopped, 1, 10) == e.Settled(0, (c.Range(1, 10),))  # too late, but it is there
    assert [payload for consumer, _, payload, _ in it.delivered() if consumer == stopped] == [
        b"%d" % number for number in range(21, 31)
    ]


@pytest.mark.parametrize("how", ["extend", "refused", "transaction"])
def test_what_a_silent_consumer_says_need_not_succeed(how: str) -> None:
    it = rig(True, ack_ms=1000)
    it.publish("q", b"a")
    consumer, _ = it.consume("q", session=2)
    assert it.payloads(it.advance(1000)) == []
    late, never = c.Range(1, 1), c.Range(9, 9)
    caller = it.caller(session=2)
    command = {
        "extend": c.Settle(caller, consumer, extended=[c.Extended(late, 1000)]),
        "refused": c.Settle(caller, consumer, [never]),
        "transaction": c.CommitTransaction(caller, settlements=[c.Settle(caller, consumer, [late])]),
    }[how]
    it.run(c.Settle(it.caller(session=3), consumer, [late]))
    assert it.payloads() == []  # nobody speaks for somebody else
    it.run(command)
    assert it.delivered() == [(consumer, 2, b"a", 2)]


def test_letters_for_a_state_are_lost_and_the_warning_says_so(is_durable: bool) -> None:
    it = Rig(
        {
            "q": queue(durable=is_durable, dead_letter="s"),
            "s": ChannelOptions(kind=Kind.STATE, durable=is_durable),
        },
        is_durable=is_durable,
    )
    it.publish("q", b"a")
    consumer, _ = it.consume("q")
    it.give_back(consumer, 1, is_rejected=True)
    (warning,) = [each for each in it.shown if isinstance(each, e.Warn)]
    assert warning.message == "1 dead letter lost: channel 's' is a state, which takes none"
    assert it.machine.statistics().counters["dead_letters_lost"] == 1


def test_a_consumer_that_dies_gives_back_at_once_and_one_that_leaves_has_not_tried(is_durable: bool) -> None:
    it = rig(is_durable)
    it.publish("q", b"a", b"b")
    _, leaving = it.consume("q", session=2)
    it.run(c.CancelCall(SessionId(2), leaving.call))
    it.consume("q", session=3)
    assert [attempt for *_, attempt in it.delivered()] == [1, 1]
    it.run(c.EndSession(SessionId(3)))
    it.consume("q", session=4)
    assert [(payload, attempt) for _, _, payload, attempt in it.delivered()] == [(b"a", 2), (b"b", 2)]


def test_delays(is_durable: bool) -> None:
    it = rig(is_durable)
    it.publish("q", b"later", b"now", deliver_at_ns=[it.now_ns + 500 * MS, it.now_ns - 1])
    consumer, _ = it.consume("q")
    assert it.payloads() == [b"now"]
    it.give_back(consumer, 1, delay_ms=1000)
    assert it.payloads(it.advance(499)) == []
    assert it.payloads(it.advance(1)) == [b"later"]
    assert it.payloads(it.advance(499)) == []
    assert it.payloads(it.advance(1)) == [b"now"]
    it.refused(
        c.Settle(it.caller(), consumer, returned=[c.Returned(c.Range(1, 1), delay_ms=86_400_001)]),
        InvalidArgument,
    )


def test_dead_letters_say_why(is_durable: bool) -> None:
    it = rig(is_durable, max_deliveries=2, dead_letter="dead")
    published_ns = it.now_ns
    it.publish("q", b"poison", b"bad", headers=[Headers(key=b"k").SerializeToString(), b""])
    consumer, _ = it.consume("q")
    it.give_back(consumer, 2, is_rejected=True, reason="not JSON")
    it.give_back(consumer, 1, reason="again")
    it.give_back(consumer, 3, reason="no use")
    it.consume("dead", session=2)
    (effect,) = [each for each in it.shown if isinstance(each, e.Deliver)]
    letters = {
        payload: Headers.FromString(header)
        for piece in effect.pieces
        for payload, header in zip(piece.payloads, piece.headers, strict=True)
    }
    said = {
        payload: {name.removeprefix("towpath-dead-letter-"): value for name, value in each.user.items()}
        for payload, each in letters.items()
    }
    common = {"queue": "q", "first-time": str(published_ns)}
    assert said == {
        b"bad": {"reason": "rejected: not JSON", "attempts": "1", **common},
        b"poison": {"reason": "max_deliveries: no use", "attempts": "2", **common},
    }
    assert letters[b"poison"].key == b"k"
    assert it.machine.statistics().counters == {"dead_letters": 2}


def test_what_goes_round_in_circles_does_not_grow_without_end(is_durable: bool) -> None:
    options = {"one": "two", "two": "one"}
    it = Rig(
        {name: queue(durable=is_durable, dead_letter=other) for name, other in options.items()},
        is_durable=is_durable,
    )
    it.publish("one", b"a", headers=[Headers(key=b"k").SerializeToString()])
    consumers = {name: it.consume(name)[0] for name in options}
    sizes = []
    for turn in range(200):
        name = ("one", "two")[turn % 2]
        it.give_back(consumers[name], turn // 2 + 1, is_rejected=True, reason="r" * 100)
        (effect,) = [each for each in it.shown if isinstance(each, e.Deliver)]
        sizes.append(len(effect.pieces[0].headers[0]))
    assert max(sizes) <= LETTER_BYTES_MAX and sizes[-1] > 100


def test_dead_letters_without_a_channel_are_counted(is_durable: bool) -> None:
    it = rig(is_durable, max_deliveries=1)
    it.publish("q", b"a")
    consumer, _ = it.consume("q")
    it.give_back(consumer, 1)
    assert it.machine.statistics().counters == {"dropped": 1}
    assert it.machine.channel_statistics("q") == nothing(1, 1)


def test_a_full_queue_rejects(is_durable: bool) -> None:
    it = rig(is_durable, capacity=3, overflow=Overflow.REJECT)
    it.publish("q", b"a", b"b")
    it.refused(c.Publish(it.caller(), "q", [b"c", b"d"]), QueueFull)
    it.publish("q", b"c")
    it.refused(c.Publish(it.caller(), "q", [b"d"] * 4), LimitExceeded)


def test_a_full_queue_lets_publishers_wait_in_order(is_durable: bool) -> None:
    it = rig(is_durable, capacity=2)
    it.publish("q", b"a", b"b")
    first, second, third = (it.caller(session=session) for session in (2, 3, 4))
    it.run(c.Publish(first, "q", [b"c", b"d"]), c.Publish(second, "q", [b"e"]), c.Publish(third, "q", [b"f"]))
    assert [type(each) for each in it.shown] == [e.Waits] * 3 + [e.PresenceChanged]
    consumer, _ = it.consume("q")
    it.ack(consumer, 1)
    assert not [each for each in it.shown if isinstance(each, e.Reply) and each.session != 1]
    cancelled = it.run(c.CancelCall(second.session, second.call))  # type: ignore[arg-type]
    assert [type(each.error) for each in cancelled if isinstance(each, e.Refuse)] == [Cancelled]
    it.ack(consumer, 2)
    answered = [each.call for each in it.shown if isinstance(each, e.Reply)]
    assert first.call in answered and third.call not in answered
    assert it.payloads() == [b"c", b"d"]
    it.run(c.EndSession(SessionId(4)))
    it.ack(consumer, 3, 4)
    assert it.payloads() == []


def test_who_comes_and_goes_in_one_round_that_is_taken_back_leaves_no_trace(is_durable: bool) -> None:
    it = rig(is_durable, capacity=1)
    it.publish("q", b"a")
    comes, stays = it.caller(session=2), it.caller(session=3)
    gone = c.CancelCall(SessionId(2), comes.call)
    it.run(c.Publish(comes, "q", [b"b"]), gone, c.Publish(stays, "q", [b"c"]))
    held = it.machine.channel_statistics("q")
    assert held is not None and held.publishers == 1


def test_message_ids(is_durable: bool) -> None:
    it = rig(is_durable, dedupe_ms=1000)
    assert it.publish("q", b"a", b"b", message_ids=["1", ""]) == e.Published("q", 1, 2)
    assert it.publish("q", b"c", b"A", b"d", b"D", message_ids=["", "1", "2", "2"]) == e.Published(
        "q", 3, 2, 2
    )
    assert it.publish("q", b"A", message_ids=["1"]) == e.Published("q", 1, 0, 1)
    it.advance(1001)
    assert it.publish("q", b"A", message_ids=["1"]) == e.Published("q", 5, 1)
    if is_durable:
        it.start()
        assert it.publish("q", b"A", message_ids=["1"]) == e.Published("q", 5, 0, 1)


def test_without_dedupe_ids_are_not_looked_at(is_durable: bool) -> None:
    it = rig(is_durable, dedupe_ms=0)
    for first_seq in (1, 2):
        assert it.publish("q", b"a", message_ids=["1"]) == e.Published("q", first_seq, 1)
    assert it.store.read_ids("q", 0) == {}


def test_quotas(is_durable: bool) -> None:
    limits = Limits(
        consumers_per_principal_max=1, queue_bytes_per_principal_max=10, store_bytes_per_principal_max=10
    )
    it = rig(is_durable, limits)
    it.consume("q")
    it.refused(c.Consume(it.caller(), "q", 1), QuotaExceeded)
    it.publish("q", b"x" * 10)
    it.refused(c.Publish(it.caller(), "dead", [b"x"]), QuotaExceeded)
    it.refused(c.Consume(it.caller(principal="uid:9"), "q", 65_537), InvalidArgument)


def test_what_may_be_unsettled_is_charged_to_who_consumes(is_durable: bool) -> None:
    it = rig(is_durable, Limits(unsettled_per_principal_max=10, unsettled_max=15))
    _, caller = it.consume("q", 6)
    it.refused(c.Consume(it.caller(), "q", 5), QuotaExceeded)
    it.refused(c.Consume(it.caller(principal="uid:9"), "q", 10), LimitExceeded)
    assert caller.session is not None
    it.run(c.CancelCall(caller.session, caller.call))
    it.consume("q", 10)


def test_closing_tells_everybody(is_durable: bool) -> None:
    it = rig(is_durable, capacity=1)
    it.publish("q", b"a")
    it.consume("q")
    waiting = it.caller()
    it.run(c.Publish(waiting, "q", [b"b"]))
    it.run(c.CloseChannel("q"))
    assert [type(each) for each in it.shown] == [e.Refuse, e.StreamEnded, e.PresenceChanged]
    assert it.shown[-1] == e.PresenceChanged("q", 0, 0)
    it.run(c.OpenChannel("q", queue(durable=is_durable), "uid:0", 6))
    assert it.publish("q", b"c") == e.Published("q", 1, 1)


def test_a_durable_queue_after_a_restart_has_what_was_not_settled() -> None:
    it = rig(True)
    it.publish("q", *[b"%d" % index for index in range(6)], priorities=[0, 0, 0, 9, 0, 0])
    consumer, _ = it.consume("q", 4)
    assert it.payloads() == [b"3", b"0", b"1", b"2"]
    it.ack(consumer, 1)
    it.ack(consumer, 3)
    it.give_back(consumer, 2)  # 0 goes out again, for the second time
    it.start()
    it.consume("q")
    got = {payload: attempt for _, _, payload, attempt in it.delivered()}
    assert got == {b"0": 2, b"2": 1, b"4": 1, b"5": 1}
    assert it.machine.next_seq("q") == 7


def test_a_queue_larger_than_memory_comes_out_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "RESIDENT_BYTES_MAX", 100)
    monkeypatch.setattr(window, "LOAD_COUNT_MAX", 3)
    it = rig(True)
    expected = []
    for index in range(200):
        payload = b"%03d" % index
        it.publish("q", payload)
        expected.append(payload)
    queue_ = it.machine._channels["q"]
    assert queue_.resident_bytes <= 100  # type: ignore[union-attr]
    consumer, _ = it.consume("q", 7)
    got = it.delivered()
    while len(got) < 200:
        it.ack(consumer, got[-1][1])
        got += it.delivered()
    assert [payload for _, _, payload, _ in got] == expected
