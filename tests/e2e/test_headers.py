"""What travels beside a payload, over every route: from each way into a channel to each way out of it.

``CARRIED`` says what each mechanism carries, as GUARANTEES.md does; the routes follow from it.
"""

from __future__ import annotations

import base64
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
import zmq

import towpath
from tests.docs.markdown import ROOT
from tests.support.daemon import DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath.convert import decode_headers, headers_to_proto
from towpath.model import NO_HEADERS, Headers
from towpath.v1 import channels_pb2, channels_pb2_grpc

ALL: Final = frozenset(field.name for field in fields(Headers)) - {"origin"}
OPTIONS: Final = frozenset({"content_type", "key", "user"})
NONE: Final[frozenset[str]] = frozenset()
CARRIED: Final = {
    "Python, on this host": (ALL, ALL),
    "Python, `grpc://`": (ALL, ALL),
    "Python, `zmq://`": (ALL, ALL),
    "gRPC": (ALL, ALL),
    "ZeroMQ `PUSH` and `SUB`": (ALL, ALL),
    "`towpath pub` and `towpath sub --json`": (OPTIONS, ALL),
    "`fifo:`": (NONE, NONE),
    "`pipe:`": (NONE, NONE),
}
HEADERS: Final = Headers(
    content_type="application/json",
    key=b"\x00pump\xff",
    priority=31,
    reply_to="plant.answers",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    tracestate="vendor=1",
    user={"line": "1", "näme": "wert"},
)
PAYLOAD: Final = b"21.5"
Take = Callable[[], tuple[bytes, Headers]]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon")) as handle:
        yield handle


class Routes:
    """One channel, and every way into it and out of it."""

    def __init__(self, daemon: DaemonHandle, channel: str, directory: Path, stack: ExitStack) -> None:
        self.channel = channel
        self._daemon = daemon
        self.directory = directory
        self._stack = stack
        self.local = stack.enter_context(towpath.connect(str(daemon.socket)))
        self.local.declare(channel)
        self._urls = {
            "Python, on this host": str(daemon.socket),
            "Python, `grpc://`": f"grpc://{daemon.endpoint('grpc', 'listen')}",
            "Python, `zmq://`": f"zmq://{daemon.endpoint('zeromq', 'rpc').removeprefix('tcp://')}",
        }

    def into(self, mechanism: str, headers: Headers) -> None:
        """Publish one message by a mechanism."""
        match mechanism:
            case "gRPC":
                with grpc.insecure_channel(self._daemon.endpoint("grpc", "listen")) as connection:
                    channels_pb2_grpc.ChannelsStub(connection).Publish(
                        channels_pb2.PublishRequest(
                            channel=self.channel, payloads=[PAYLOAD], headers=[headers_to_proto(headers)]
                        ),
                        timeout=DEADLINE_S,
                    )
            case "ZeroMQ `PUSH` and `SUB`":
                with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
                    socket.connect(self._daemon.endpoint("zeromq", "push"))
                    raw = headers_to_proto(headers).SerializeToString()
                    socket.send_multipart([self.channel.encode(), PAYLOAD, raw])
            case "`towpath pub` and `towpath sub --json`":
                user = [f"--header={name}={value}" for name, value in headers.user.items()]
                key = headers.key.replace(b"\0", b"")  # which no argument can hold
                options = [b"--content-type", headers.content_type.encode(), b"--key", key]
                arguments = [self.channel.encode(), PAYLOAD, *options, *map(os.fsencode, user)]
                self._towpath("pub", *arguments).check_returncode()
            case "`fifo:`":
                path = self.directory / "in"
                self.local.bind(self.channel, f"fifo:{path}", direction="in")
                path.write_bytes(PAYLOAD + b"\n")
            case "`pipe:`":
                url = f"pipe:echo {PAYLOAD.decode()}"
                self.local.bind(self.channel, url, direction="in", options={"restart": "never"})
            case _:
                client = self._stack.enter_context(towpath.connect(self._urls[mechanism]))
                publisher = self._stack.enter_context(client.publisher(self.channel))
                publisher.publish(PAYLOAD, headers=headers, timeout=DEADLINE_S)

    def _towpath(self, *arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
        command: list[str | bytes] = [sys.executable, "-m", "towpath", *arguments]
        return subprocess.run(command, env=self._daemon.environment, capture_output=True, timeout=DEADLINE_S)

    def out_of(self, mechanism: str) -> Take:
        """Subscribe by a mechanism; what is returned waits for one message."""
        match mechanism:
            case "gRPC":
                return self._out_of_grpc()
            case "ZeroMQ `PUSH` and `SUB`":
                return self._out_of_zeromq()
            case "`towpath pub` and `towpath sub --json`":
                return self._out_of_cli()
            case "`fifo:`" | "`pipe:`":
                return self._out_of_stream(mechanism)
            case _:
                client = self._stack.enter_context(towpath.connect(self._urls[mechanism]))
                subscription = self._stack.enter_context(client.subscribe(self.channel))

                def take() -> tuple[bytes, Headers]:
                    message = subscription.receive(timeout=DEADLINE_S)
                    return message.payload, message.headers

                return take

    def _out_of_grpc(self) -> Take:
        connection = self._stack.enter_context(grpc.insecure_channel(self._daemon.endpoint("grpc", "listen")))
        stub = channels_pb2_grpc.ChannelsStub(connection)
        responses: Any = stub.Subscribe(
            iter([channels_pb2.SubscribeRequest(channel=self.channel)]), timeout=2 * DEADLINE_S
        )
        self._stack.callback(responses.cancel)
        assert next(responses).WhichOneof("event") == "subscribed"

        def take() -> tuple[bytes, Headers]:
            batch = next(responses).batch
            raw = batch.headers[0].SerializeToString() if batch.headers else b""
            return batch.payloads[0], decode_headers(raw)

        return take

    def _out_of_zeromq(self) -> Take:
        context = self._stack.enter_context(zmq.Context())
        socket = self._stack.enter_context(context.socket(zmq.SUB))
        socket.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1e3))
        socket.connect(self._daemon.endpoint("zeromq", "sub"))
        socket.subscribe(self.channel)
        ready = f"_towpath.ready.{self.channel}"
        socket.subscribe(ready)
        while socket.recv_multipart()[0] != ready.encode():
            pass

        def take() -> tuple[bytes, Headers]:
            _, payload, meta = socket.recv_multipart()
            assert struct.unpack_from("<QQ", meta)[1] == 1
            return payload, decode_headers(meta[24:])

        return take

    def _subscribers(self) -> int:
        return self.local.channel_info(self.channel).subscribers

    def _out_of_cli(self) -> Take:
        before = self._subscribers()
        command = [sys.executable, "-m", "towpath", "sub", self.channel, "--count", "1", "--json"]
        process = subprocess.Popen(command, env=self._daemon.environment, stdout=subprocess.PIPE)
        self._stack.enter_context(process)
        self._stack.callback(process.kill)
        wait_until(lambda: self._subscribers() > before)

        def take() -> tuple[bytes, Headers]:
            document = json.loads(process.communicate(timeout=DEADLINE_S)[0])
            headers = document["headers"]
            if "key" in headers:
                assert headers.pop("key_encoding") == "base64"
                headers["key"] = base64.b64decode(headers["key"])
            return document["payload"].encode(), Headers(**headers)

        return take

    def _out_of_stream(self, mechanism: str) -> Take:
        path = self.directory / "out"
        if mechanism == "`fifo:`":
            os.mkfifo(path)
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            url = f"fifo:{path}"
        else:
            path.touch()
            reader = os.open(path, os.O_RDONLY)
            url = f"pipe:tee {path}"
        self._stack.callback(os.close, reader)
        before = self._subscribers()
        self.local.bind(self.channel, url, direction="out")
        wait_until(lambda: self._subscribers() > before)

        def take() -> tuple[bytes, Headers]:
            read = bytearray()

            def is_there() -> bool:
                try:
                    read.extend(os.read(reader, 4096))
                except BlockingIOError:
                    return False
                return read.endswith(b"\n")

            wait_until(is_there)
            return bytes(read).removesuffix(b"\n"), NO_HEADERS

        return take


@contextmanager
def routes(daemon: DaemonHandle, channel: str, directory: Path) -> Iterator[Routes]:
    with ExitStack() as stack:
        made = Routes(daemon, channel, directory, stack)
        yield made
    with towpath.connect(str(daemon.socket)) as client:
        client.undeclare(channel, force=True)


def only(headers: Headers, names: frozenset[str]) -> Headers:
    """What is left of headers where only some are carried."""
    blank = {field.name: getattr(NO_HEADERS, field.name) for field in fields(Headers)}
    return replace(headers, **{name: value for name, value in blank.items() if name not in names})


@pytest.mark.parametrize("number", range(len(CARRIED)), ids=[name.strip("`") for name in CARRIED])
def test_every_way_in_reaches_every_way_out(daemon: DaemonHandle, tmp_path: Path, number: int) -> None:
    way_in = list(CARRIED)[number]
    brought = CARRIED[way_in][0]
    headers = only(HEADERS, brought)
    if brought == OPTIONS:
        headers = replace(headers, key=headers.key.replace(b"\0", b""))
    with routes(daemon, f"headers.way{number}", tmp_path) as channel:
        ways_out = {}
        for index, mechanism in enumerate(CARRIED):
            directory = tmp_path / str(index)
            directory.mkdir()
            channel.directory = directory
            ways_out[mechanism] = channel.out_of(mechanism)
        channel.into(way_in, headers)
        for mechanism, take in ways_out.items():
            payload, arrived = take()
            expected = only(headers, CARRIED[mechanism][1])
            assert (payload, replace(arrived, origin="")) == (PAYLOAD, expected), mechanism


def test_the_table_says_the_same() -> None:
    words = {ALL: "all", OPTIONS: "content type, key, your own", NONE: "none"}
    rows = [f"| {name} | {words[into]} | {words[out]} |" for name, (into, out) in CARRIED.items()]
    assert "\n".join(rows) in (ROOT / "GUARANTEES.md").read_text()
