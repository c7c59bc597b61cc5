"""A program that traces finds its messages in its traces; one that does not pays nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon
from tests.support.deadlines import DEADLINE_S

PROGRAM = Path(__file__).parent / "programs" / "traced_program.py"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon"), LOCAL_ONLY) as handle:
        yield handle


def run(daemon: DaemonHandle, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments, str(daemon.socket)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def told(daemon: DaemonHandle) -> Any:
    """What the program that traces printed."""
    return json.loads(run(daemon, str(PROGRAM)))


def spans(told: Any, name: str) -> list[Any]:
    return [span for span in told["spans"] if span["name"] == name]


def traceparent(span: Any) -> str:
    return f"00-{span['trace']}-{span['span']}"


def test_a_message_carries_the_span_that_published_it(told: Any) -> None:
    [own] = spans(told, "the program's own")
    one, many, relayed, raw, failed, looped = spans(told, "publish traced")
    assert (one["kind"], one["trace"], one["parent"]) == ("PRODUCER", own["trace"], own["span"])
    assert told["headers"] == [
        ["one", traceparent(one), ""],
        ["two", traceparent(many), "text/plain"],
        ["three", traceparent(many), "text/plain"],
        ["relayed", "00-" + "ab" * 16 + "-" + "cd" * 8, ""],
        ["raw", traceparent(raw), "t"],
        ["from a loop", traceparent(looped), ""],
    ]
    assert relayed["status"] == raw["status"] == "UNSET" and failed["status"] == "ERROR"


def test_attributes_are_those_of_the_conventions(told: Any) -> None:
    one, many, *_ = spans(told, "publish traced")
    common = {
        "messaging.system": "towpath",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "traced",
    }
    assert one["attributes"] == {**common, "messaging.message.body.size": 3}
    assert many["attributes"] == {**common, "messaging.batch.message_count": 2}


def test_a_consumer_goes_on_with_the_trace(told: Any) -> None:
    one, many, *_, looped = spans(told, "publish traced")
    [around] = spans(told, "a span around")
    first, second, third, of_loop = spans(told, "process traced")
    assert (first["kind"], first["trace"], first["parent"]) == ("CONSUMER", one["trace"], one["span"])
    assert first["links"] == [one["span"]]
    assert (second["parent"], second["links"]) == (around["span"], [many["span"]])
    assert second["trace"] == around["trace"] != many["trace"]
    assert third["status"] == "ERROR"
    assert (of_loop["trace"], of_loop["parent"]) == (looped["trace"], looped["span"])


def test_who_waits_until_it_is_stored_waits_when_traced_too(told: Any) -> None:
    assert told["stored"] == [[1, 3, 503], [504, 1004]]


@pytest.mark.parametrize("before", ["", "import opentelemetry.trace; "])
def test_without_a_tracer_publishers_are_the_bare_ones(daemon: DaemonHandle, before: str) -> None:
    program = (
        f"import sys; {before}import towpath; from towpath.tracing import span_for\n"
        "client = towpath.connect(sys.argv[1]); client.declare('bare')\n"
        "subscription, publisher = client.subscribe('bare'), client.publisher('bare')\n"
        "publisher.publish(b'x'); message = subscription.receive()\n"
        "with span_for(message) as span: pass\n"
        "print(type(publisher).__name__, span, message.headers_raw, 'opentelemetry.sdk' in sys.modules,"
        " 'opentelemetry' in sys.modules)\n"
        "client.close()"
    )
    words = run(daemon, "-c", program).split()
    assert words == ["LocalPublisher", "None", "b''", "False", str(bool(before))]
