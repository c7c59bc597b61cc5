"""What is too large for a gateway is refused where it is said; nobody's connection ends of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

import towpath
from tests.support.daemon import DaemonHandle, running_daemon
from tests.support.deadlines import DEADLINE_S

GATEWAYS = {"grpc": 4 << 20, "zeromq": 16 << 20}
"""Each, and a size that its channel takes and it does not."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon")) as running:
        yield running


def _url(daemon: DaemonHandle, gateway: str) -> str:
    if gateway == "grpc":
        return f"grpc://{daemon.endpoint('grpc', 'listen')}"
    return f"zmq://{daemon.endpoint('zeromq', 'rpc').removeprefix('tcp://')}"


@contextmanager
def _answering(url: str, name: str) -> Iterator[None]:
    """A server that replies with as many bytes as the request says."""
    with towpath.connect(url) as client, client.serve(name) as server:

        def work() -> None:
            with suppress(towpath.ConnectionLost):  # it was closed
                server.run(lambda request: bytes(int(request.payload)))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            server.close()
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_a_reply_too_large_is_the_callers_error_and_the_server_goes_on(
    daemon: DaemonHandle, gateway: str
) -> None:
    name = f"{gateway}.replies"
    with towpath.connect(str(daemon.socket)) as client:
        client.declare(name, kind="service", ring_bytes=128 << 20)
        with _answering(_url(daemon, gateway), name):
            for _ in range(2):
                with pytest.raises(towpath.MessageTooLarge, match="go through the gateway"):
                    client.call(name, b"%d" % GATEWAYS[gateway], timeout=DEADLINE_S)
            assert client.call(name, b"3", timeout=DEADLINE_S).payload == bytes(3)


@pytest.mark.parametrize("gateway", GATEWAYS)
def test_a_request_too_large_is_refused_here_and_the_connection_stays(
    daemon: DaemonHandle, gateway: str
) -> None:
    name = f"{gateway}.requests"
    with towpath.connect(str(daemon.socket)) as client:
        client.declare(name, kind="service", ring_bytes=128 << 20)
    with _answering(str(daemon.socket), name), towpath.connect(_url(daemon, gateway)) as client:
        with pytest.raises(towpath.MessageTooLarge, match="go through the gateway"):
            client.call(name, b"3".rjust(GATEWAYS[gateway]), timeout=DEADLINE_S)
        assert client.call(name, b"3", timeout=DEADLINE_S).payload == bytes(3)
