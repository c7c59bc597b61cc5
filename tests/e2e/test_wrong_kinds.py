"""The wrong kind of call on each kind of channel: one error, with one text and a hint, on every carrier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import pytest

import towpath
from tests.support.daemon import DaemonHandle, running_daemon

CHANNELS: Final = {
    "topic": {},
    "total": {"order": "total"},
    "stored.topic": {"durable": True},
    "queue": {"kind": "queue"},
    "stored.queue": {"kind": "queue", "durable": True},
    "state": {"kind": "state"},
    "stored.state": {"kind": "state", "durable": True},
    "service": {"kind": "service"},
}
TOPICS: Final = {"topic", "total", "stored.topic"}
QUEUES: Final = {"queue", "stored.queue"}
STATES: Final = {"state", "stored.state"}


def _in_transaction(client: towpath.Client, gather: Callable[[towpath.Transaction], None]) -> None:
    with client.transaction() as transaction:
        gather(transaction)


CALLS: Final[dict[str, tuple[set[str], Callable[[towpath.Client, str], object]]]] = {
    "publish": (TOPICS | QUEUES, lambda client, name: client.channel(name).publish(b"x", timeout=5)),
    "subscribe": (TOPICS, lambda client, name: client.subscribe(name).close()),
    "subscribe from the start": ({"stored.topic"}, lambda c, name: c.subscribe(name, start="all").close()),
    "subscribe by name": ({"stored.topic"}, lambda c, name: c.subscribe(name, place="me").close()),
    "places": ({"stored.topic"}, lambda client, name: client.places(name)),
    "consume": (QUEUES, lambda client, name: client.consume(name).receive(timeout=5)),
    "get": (STATES, lambda client, name: client.state(name).get()),
    "set": (STATES, lambda client, name: client.state(name).set(b"x")),
    "delete": (STATES, lambda client, name: client.state(name).delete()),
    "watch": (STATES, lambda client, name: client.state(name).watch(after_version=0).receive(timeout=5)),
    "serve": ({"service"}, lambda client, name: client.serve(name).close()),
    "call": (set(), lambda client, name: client.call(name, b"x", timeout=5)),
    "publish in a transaction": (
        {"stored.topic", "stored.queue"},
        lambda client, name: _in_transaction(client, lambda each: each.publish(name, b"x")),
    ),
    "set in a transaction": (
        {"stored.state"},
        lambda client, name: _in_transaction(client, lambda each: each.set(name, b"x")),
    ),
    "place in a transaction": (
        {"stored.topic"},
        lambda client, name: _in_transaction(client, lambda each: each.save_place(name, "me", 1)),
    ),
}
"""Each call, and the channels that take it (of a service that nobody serves: none takes a call)."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon")) as running:
        with towpath.connect(str(running.socket)) as client:
            for name, options in CHANNELS.items():
                client.declare(name, **options)  # type: ignore[arg-type]
        yield running


def _urls(daemon: DaemonHandle) -> list[str]:
    rpc = daemon.endpoint("zeromq", "rpc").removeprefix("tcp://")
    return [str(daemon.socket), f"grpc://{daemon.endpoint('grpc', 'listen')}", f"zmq://{rpc}"]


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_call_is_told_what_the_channel_is_alike_on_every_carrier(
    daemon: DaemonHandle, call: str
) -> None:
    takers, carry_out = CALLS[call]
    refusals: list[dict[str, str]] = []
    for url in _urls(daemon):
        with towpath.connect(url) as client:
            told = {}
            for name in CHANNELS:
                try:
                    carry_out(client, name)
                except towpath.TowpathError as error:
                    code = towpath.Code.NO_SERVER if (call, name) == ("call", "service") else None
                    assert error.code is (code or towpath.Code.INVALID_ARGUMENT), f"{name}: {error}"
                    assert error.hint, f"{name}: {error}"
                    told[name] = error.message
            assert set(told) == set(CHANNELS) - takers
            refusals.append(told)
    for name, message in refusals[0].items():
        kind = name.split(".")[-1].replace("total", "topic")
        assert f"channel {name!r} is " in message or (call, name) == ("call", "service")
        assert f"a {kind}" in message or "is not durable" in message or name == "service"
    assert refusals[1] == refusals[0]
    assert refusals[2] == refusals[0]


def test_a_subscription_with_a_name_too_long_to_remember_is_refused_when_it_begins(
    daemon: DaemonHandle,
) -> None:
    for url in _urls(daemon):
        with towpath.connect(url) as client:
            with pytest.raises(towpath.InvalidArgument, match="name of 129 bytes; 1 to 128") as caught:
                client.subscribe("stored.topic", place="a" * 129)
            assert caught.value.hint
            client.subscribe("stored.topic", place="a" * 128).close()
