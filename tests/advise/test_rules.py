"""The rules by which a mechanism is advised: every one with figures that decide it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from towpath.advise.model import MECHANISMS, Measurement, Requirements
from towpath.advise.rules import HEADROOM, rank, reason

RATES = {
    "pipe": 400,
    "fifo": 390,
    "unix": 200,
    "mq": 190,
    "ring": 1000,
    "loan": 300,
    "zmq-ipc": 500,
    "zmq-tcp": 300,
    "grpc": 10,
}
TRIPS = {
    "pipe": 6,
    "fifo": 6,
    "unix": 9,
    "mq": 7,
    "ring": 14,
    "loan": 15,
    "zmq-ipc": 40,
    "zmq-tcp": 47,
    "grpc": 160,
}


def measured(**rates: float) -> dict[str, Measurement]:
    """All mechanisms, with rates in thousands a second; some otherwise."""
    return {
        name: Measurement(
            name, 1024, 1000 * rates.get(name.replace("-", "_"), rate), TRIPS[name], 2 * TRIPS[name]
        )
        for name, rate in RATES.items()
    }


def advised(required: Requirements, figures: dict[str, Measurement] | None = None) -> list[str]:
    """The names of those that will do, the best first."""
    ranked = rank(required, measured() if figures is None else figures)
    return [candidate.mechanism.name for candidate in ranked if not candidate.refusals]


def test_every_mechanism_is_ranked_once_and_the_refused_are_last() -> None:
    ranked = rank(Requirements(reach="network"), measured())
    assert sorted(candidate.mechanism.name for candidate in ranked) == sorted(MECHANISMS)
    assert [bool(candidate.refusals) for candidate in ranked] == [False] * 2 + [True] * 7


def test_the_fastest_where_no_rate_is_asked_for() -> None:
    assert advised(Requirements())[0] == "ring"
    assert reason(rank(Requirements(), measured(pipe=100, zmq_ipc=400, fifo=100)), Requirements()) == (
        "It is the fastest: it carries 1,000,000 messages a second, 2.5 times as fast as the next."
    )


def test_of_what_is_about_as_fast_the_simplest() -> None:
    assert advised(Requirements(), measured(pipe=501))[:2] == ["pipe", "ring"]
    assert advised(Requirements(), measured(pipe=499))[0] == "ring"
    assert "the simplest of the fast ones" in reason(rank(Requirements(), measured(pipe=501)), Requirements())


def test_the_simplest_that_carries_a_rate_with_room_to_spare() -> None:
    required = Requirements(rate=100_000)
    assert advised(required)[:3] == ["pipe", "fifo", "mq"] or advised(required)[:3] == [
        "pipe",
        "fifo",
        "unix",
    ]
    assert "4.0 times what is needed" in reason(rank(required, measured()), required)


def test_what_carries_a_rate_just_about_comes_after_what_has_room() -> None:
    required = Requirements(rate=250_000)
    assert advised(required) == ["ring", "zmq-ipc", "pipe", "fifo", "loan", "zmq-tcp"]
    ranked = {candidate.mechanism.name: candidate for candidate in rank(required, measured())}
    assert ranked["pipe"].extras == ("manages only 1.6 times what is needed",)
    assert ranked["unix"].refusals == ("carries 200,000 a second, 250,000 are needed",)


def test_the_headroom_is_where_it_is_said_to_be() -> None:
    rate = 1000 * RATES["pipe"] / HEADROOM
    assert advised(Requirements(rate=rate))[0] == "pipe"
    assert advised(Requirements(rate=rate + 1))[0] != "pipe"


def test_several_receivers_want_what_reaches_all_by_itself() -> None:
    required = Requirements(fan_out=3, rate=1000)
    order = advised(required)
    assert order[:5] == ["ring", "loan", "zmq-ipc", "zmq-tcp", "grpc"]
    assert order[5] == "pipe"
    assert "Of those that do all this by themselves" in reason(rank(required, measured()), required)


def test_an_answer_wants_what_knows_to_which_question_it_belongs() -> None:
    required = Requirements(is_sync=True)
    assert advised(required)[:3] == ["ring", "grpc", "pipe"]
    assert reason(rank(required, measured()), required).startswith(
        "It is the fastest: an answer takes 14.0 µs, 11"
    )


def test_answers_are_counted_one_after_the_other() -> None:
    required = Requirements(is_sync=True, rate=20_000)
    ranked = {candidate.mechanism.name: candidate for candidate in rank(required, measured())}
    assert ranked["grpc"].refusals == ("answers 6,250 a second, 20,000 are needed",)
    assert ranked["zmq-tcp"].extras[-1] == "manages only 1.1 times what is needed"
    assert advised(required)[0] == "ring"


def test_where_all_leave_something_to_the_programs_it_says_which_least() -> None:
    required = Requirements(is_sync=True, is_durable=True, rate=20_000)
    figures = {name: measured()[name] for name in ("ring", "zmq-tcp")}
    assert reason(rank(required, figures), required).startswith(
        "It leaves least to the programs, and an answer"
    )


@pytest.mark.parametrize(
    ("required", "names"),
    [
        (Requirements(reach="network"), ["zmq-tcp", "grpc"]),
        (Requirements(is_durable=True, rate=1000), ["ring", "zmq-tcp", "grpc"]),
        (Requirements(is_durable=True, reach="network", rate=1000), ["zmq-tcp", "grpc"]),
        (Requirements(is_sync=True, reach="network"), ["grpc", "zmq-tcp"]),
    ],
)
def test_what_cannot_is_refused(required: Requirements, names: list[str]) -> None:
    assert advised(required) == names


def test_what_could_not_be_measured_is_refused_with_what_was_in_the_way() -> None:
    figures = measured()
    figures["ring"] = Measurement("ring", 1024, obstacle="the C extension is not installed")
    ranked = rank(Requirements(), figures)
    assert (ranked[-1].mechanism.name, ranked[-1].refusals) == ("ring", ("the C extension is not installed",))


def test_where_nothing_will_do_there_is_no_advice() -> None:
    required = Requirements(rate=1e9)
    assert advised(required) == []
    assert reason(rank(required, measured()), required) == ""


def test_where_one_alone_will_do_it_says_so() -> None:
    required = Requirements(reach="network")
    figures = {name: each for name, each in measured().items() if name != "grpc"}
    assert reason(rank(required, figures), required) == (
        "Nothing else will do. Here it carries 300,000 messages a second."
    )


def test_streams_of_bytes_are_told_as_such() -> None:
    for candidate in rank(replace(Requirements(), size_bytes=64), measured()):
        tells = any("where a message ends" in remark for remark in candidate.remarks)
        assert tells is (candidate.mechanism.name in ("pipe", "fifo", "unix"))
