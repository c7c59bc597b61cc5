"""Clients that break the protocol are closed with an error, alone; nobody else notices."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

import towpath
from tests.door.raw import RawClient
from tests.support.daemon import DaemonHandle
from tests.support.deadlines import DEADLINE_S
from towpath import _ring, wire
from towpath.errors import Code
from towpath.v1 import frame_pb2, registry_pb2
from towpath.v1.frame_pb2 import Frame

GARBAGE_CLIENTS = 300


@pytest.fixture(scope="module")
def config() -> str:
    return ""  # every gateway's ports, too


@pytest.fixture
def bystander(daemon: DaemonHandle) -> Iterator[None]:
    """Somebody publishes and subscribes all the while, and nothing is lost, delayed for ever or refused."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def carry_on() -> None:
        try:
            with towpath.connect(str(daemon.socket)) as client:
                client.declare("bystander")
                with (
                    client.subscribe("bystander") as subscription,
                    client.publisher("bystander") as publisher,
                ):
                    number = 0
                    while not stop.is_set():
                        publisher.publish(b"%d" % number)
                        assert subscription.receive(timeout=DEADLINE_S).payload == b"%d" % number
                        number += 1
                        if number % 100 == 0:
                            client.channel_info("bystander")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=carry_on)
    thread.start()
    yield
    stop.set()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert failures == []


def empty(call: int, request: str, *, principal: str = "") -> Frame:
    """A request in which nothing is said."""
    frame = Frame(id=call, principal=principal)
    getattr(frame, request).SetInParent()
    return frame


def code_of(answer: Frame) -> Code | None:
    """The code of an answer that is an error."""
    return Code(answer.error.code) if answer.WhichOneof("body") == "error" else None


def last_words(client: RawClient) -> Code | None:
    """Read to the end of the connection; return the code of the last error said."""
    code = None
    try:
        while True:
            frame = client.receive()
            if frame.WhichOneof("body") == "error":
                code = Code(frame.error.code)
    except EOFError:
        return code


@pytest.mark.parametrize(
    "data, code",
    [
        (struct.pack("<I", 2**32 - 1), Code.PROTOCOL_VIOLATION),
        (struct.pack("<I", wire.REQUEST_BYTES_MAX + 1), Code.PROTOCOL_VIOLATION),
        (struct.pack("<I", 4) + b"\xff\xff\xff\xff", Code.PROTOCOL_VIOLATION),
        (b"GET / HTTP/1.1\r\n\r\n", Code.PROTOCOL_VIOLATION),
        (wire.encode(Frame()), Code.PROTOCOL_VIOLATION),
        (wire.encode(Frame(id=1)), Code.PROTOCOL_VIOLATION),
        (wire.encode(empty(1, "get_status_request")), Code.PROTOCOL_VIOLATION),
        (wire.encode(Frame(id=1, descriptors=1)), Code.BAD_DESCRIPTOR),
        (
            wire.encode(Frame(id=1, hello=frame_pb2.Hello(version_min=7, version_max=9))),
            Code.VERSION_MISMATCH,
        ),
    ],
)
def test_garbage_before_hello(daemon: DaemonHandle, bystander: None, data: bytes, code: Code) -> None:
    with RawClient(daemon.socket, hello=False) as client:
        client.sock.sendall(data)
        assert last_words(client) == code


def test_garbage_after_hello(daemon: DaemonHandle, bystander: None) -> None:
    with RawClient(daemon.socket) as client:
        client.sock.sendall(struct.pack("<I", 5) + b"\xff" * 5)
        assert last_words(client) == Code.PROTOCOL_VIOLATION
    with RawClient(daemon.socket) as client:
        client.send(Frame(id=2, hello=frame_pb2.Hello(version_min=1, version_max=1)))
        assert last_words(client) == Code.PROTOCOL_VIOLATION


def test_half_a_frame_is_waited_for_and_disturbs_nobody(daemon: DaemonHandle, bystander: None) -> None:
    whole = wire.encode(Frame(id=5, list_channels_request=registry_pb2.ListChannelsRequest()))
    with RawClient(daemon.socket) as client:
        client.sock.sendall(whole[:3])
        with towpath.connect(str(daemon.socket)) as other:
            other.status()
        client.sock.sendall(whole[3:])
        assert client.receive().id == 5


def test_a_call_id_used_twice_at_once(daemon: DaemonHandle) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        client.declare("waits")
    with RawClient(daemon.socket) as raw:
        watch = empty(2, "watch_request")
        raw.send(watch)
        raw.send(watch)
        assert last_words(raw) == Code.PROTOCOL_VIOLATION


def test_a_client_that_does_not_read_is_cut_off(daemon: DaemonHandle, bystander: None) -> None:
    with RawClient(daemon.socket) as client:
        with towpath.connect(str(daemon.socket)) as other:
            for number in range(200):
                other.declare(f"listed.{number}")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for call in range(2, 100_000):
                listing = registry_pb2.ListChannelsRequest(prefix="listed")
                client.sock.sendall(wire.encode(Frame(id=call, list_channels_request=listing)))
    daemon.wait_log(r"door\.connection_closed .*SLOW_CONSUMER")


def test_requests_that_are_refused_leave_the_connection_open(daemon: DaemonHandle) -> None:
    requests = {
        Code.NOT_SUPPORTED: empty(2, "subscribe_request"),
        Code.PERMISSION_DENIED: empty(3, "get_status_request", principal="grpc:root"),
        Code.BAD_DESCRIPTOR: empty(4, "attach_source_request"),
        Code.INVALID_ARGUMENT: empty(5, "create_binding_request"),
        Code.CHANNEL_NOT_FOUND: Frame(
            id=6, get_channel_request=registry_pb2.GetChannelRequest(name="no.such")
        ),
        Code.SOURCE_NOT_FOUND: empty(7, "detach_source_request"),
        Code.SUBSCRIPTION_NOT_FOUND: empty(8, "detach_reader_request"),
    }
    with RawClient(daemon.socket) as client:
        for code, frame in requests.items():
            assert code_of(client.ask(frame)) == code
        assert code_of(client.ask(empty(9, "report_gateway_request"))) == Code.PERMISSION_DENIED
        assert client.ask(empty(10, "get_status_request")).get_status_response.pid


def attach_source(source: int) -> Frame:
    body = frame_pb2.AttachSourceRequest(channel="rings", source=source)
    return Frame(id=2, attach_source_request=body)


def test_rings_that_cannot_be_trusted_are_refused(daemon: DaemonHandle, bystander: None) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        client.declare("rings", ring_bytes=4096)
    with RawClient(daemon.socket) as client, ExitStack() as stack:
        source = client.welcome.first_id
        plain = os.memfd_create("plain", os.MFD_ALLOW_SEALING)
        stack.callback(os.close, plain)
        os.ftruncate(plain, 8192)
        writer = _ring.Writer(source, 4096)
        stack.callback(writer.close)
        own = os.open(f"/proc/self/fd/{writer.share()}", os.O_RDONLY)
        stack.callback(os.close, own)
        for bad in (plain, 0, client.sock.fileno()):
            assert code_of(client.ask(attach_source(source), bad)) == Code.BAD_DESCRIPTOR
        assert code_of(client.ask(attach_source(source + 1), own)) == Code.BAD_DESCRIPTOR
        assert code_of(client.ask(attach_source(source), own, own)) == Code.BAD_DESCRIPTOR
        foreign = _ring.Writer(77, 4096)
        stack.callback(foreign.close)
        share = foreign.share()
        stack.callback(os.close, share)
        assert code_of(client.ask(attach_source(77), share)) == Code.INVALID_ARGUMENT
        large = _ring.Writer(source + 2, 8192)
        stack.callback(large.close)
        share = large.share()
        stack.callback(os.close, share)
        assert code_of(client.ask(attach_source(source + 2), share)) == Code.INVALID_ARGUMENT
        assert client.ask(attach_source(source), own).attach_source_response.generation_index >= 0
        again = client.ask(attach_source(source), own)
        assert code_of(again) == Code.INVALID_ARGUMENT


def test_a_refused_offer_is_not_kept(daemon: DaemonHandle) -> None:
    with RawClient(daemon.socket) as client:
        writer = _ring.Writer(client.welcome.first_id, 4096)
        share = writer.share()
        body = frame_pb2.AttachSourceRequest(channel="no.such", source=client.welcome.first_id)
        answer = client.ask(Frame(id=2, attach_source_request=body), share)
        assert code_of(answer) == Code.CHANNEL_NOT_FOUND
        status = client.ask(empty(3, "get_status_request")).get_status_response
        assert status.counters["rings_held"] == status.counters["sources"]
        os.close(share)
        writer.close()


def _garbage(rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.randbytes(rng.randint(1, 400))
    if kind == 1:
        return struct.pack("<I", rng.randint(0, 2**32 - 1)) + rng.randbytes(50)
    if kind == 2:
        return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(100)
    return b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03" + rng.randbytes(60)


def _connect(address: str) -> socket.socket:
    if address.startswith("/"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(address)
        return sock
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=DEADLINE_S)


def test_300_clients_with_garbage_at_every_port_and_the_socket_disturb_nobody(
    daemon: DaemonHandle, bystander: None
) -> None:
    rng = random.Random(300)
    addresses = [str(daemon.socket), daemon.endpoint("grpc", "listen")]
    addresses += [daemon.endpoint("zeromq", name) for name in ("sub", "push", "rpc")]
    pids = {gateway.name: gateway.pid for gateway in daemon.status().gateways}
    with ExitStack() as stack:
        for address in addresses:
            for number in range(GARBAGE_CLIENTS):
                sock = _connect(address)
                stack.callback(sock.close)
                if number % 3:
                    try:
                        sock.sendall(_garbage(rng))
                    except OSError:
                        continue  # cut off while still talking: as it should be
                if number % 5 == 0:
                    sock.close()
        # while those that were not cut off are still connected, everybody else is served
        with towpath.connect(str(daemon.socket)) as client:
            assert client.status().pid
    after = daemon.status()
    assert {gateway.name: gateway.pid for gateway in after.gateways} == pids
    assert all(gateway.state == "running" for gateway in after.gateways)
