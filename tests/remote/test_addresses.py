"""What the URLs of gateways mean."""

from __future__ import annotations

from typing import Any

import pytest

import towpath
from tests.support.blocking import BlockingClient
from towpath import errors
from towpath.addresses import parse_remote


@pytest.mark.parametrize(
    "url, carrier, target",
    [
        ("grpc://host:50551", "grpc", "host:50551"),
        ("grpc://127.0.0.1", "grpc", "127.0.0.1:50551"),
        ("grpc://[::1]:7/", "grpc", "[::1]:7"),
        ("grpc+unix:///run/x", "grpc", "unix:/run/x"),
        ("zmq://host:1", "zmq", "tcp://host:1"),
        ("zmq://a.b.example", "zmq", "tcp://a.b.example:5558"),
        ("zmq+ipc:///run/x", "zmq", "ipc:///run/x"),
    ],
)
def test_addresses(url: str, carrier: str, target: str) -> None:
    address = parse_remote(url)
    assert address is not None
    assert (address.carrier, address.target, address.url) == (carrier, target, url)


@pytest.mark.parametrize("url", [None, "unix:/run/x", "/run/x", "grpcs", "x/grpc://y"])
def test_what_is_not_remote(url: str | None) -> None:
    assert parse_remote(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "grpc://",
        "grpc:host",
        "grpc://host:0",
        "grpc://host:65536",
        "grpc://host:port",
        "grpc://host/path",
        "grpc://user@host",
        "grpc+unix://relative",
        "grpc+unix:///",
        "grpc+ssl://host",
        "zmq://*:5558",
        "zmq:tcp://host:1",
        "zmq://::1:5558",
    ],
)
@pytest.mark.parametrize("connect", [towpath.connect, BlockingClient], ids=["sync", "aio"])
def test_addresses_that_are_none(connect: Any, url: str) -> None:
    with pytest.raises(errors.InvalidArgument, match=r"not an address.*zmq://HOST"):
        connect(url)
