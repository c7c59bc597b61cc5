"""Two real users at one service and one queue: none answers, steals, settles or stalls what is another's.

Theory of operation
    A session's user is who connected, as the kernel tells: so one process connects as either. The attacker
    speaks frames, and knows every number of the victim's; numbers are no secret. Whoever is to stop is a
    process of its own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import towpath
from tests.door.programs.attack import memory_of
from tests.door.raw import RawClient
from tests.door.test_two_users import is_stopped
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import _ring, errors
from towpath.errors import Code
from towpath.sync.client import LocalClient
from towpath.v1 import channels_pb2, frame_pb2, queues_pb2
from towpath.v1.frame_pb2 import Frame

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become two users")

STOPPER = """
import os, random, signal, sys, threading
import towpath, towpath.services.caller, towpath.sync.client, towpath.sync.consuming
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
client = towpath.connect(sys.argv[1])
consumer = client.consume("theirs.queue", prefetch=2)
held = [consumer.receive(timeout=30) for _ in range(2)]
for _ in range(4):
    call = threading.Thread(target=client.call, args=("theirs.service", b"x" * 10_000), daemon=True)
    call.start()
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def daemon() -> Iterator[DaemonHandle]:
    with tempfile.TemporaryDirectory(prefix="towpath-test-") as directory:
        config = LOCAL_ONLY + '[daemon]\nsocket_mode = "0666"\n'
        with running_daemon(Path(directory), config) as handle:
            handle.socket.parent.chmod(0o711)  # the socket's own mode shall decide
            yield handle


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Be somebody else: for the kernel, who is asked when a connection is made."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture(params=[(65533, 65534), (0, 65534)], ids=["of two users", "of root and a user"])
def users(request: pytest.FixtureRequest) -> tuple[int, int]:
    """The victim, and the attacker."""
    victim, attacker = request.param
    return victim, attacker


@pytest.fixture
def victim(daemon: DaemonHandle, users: tuple[int, int]) -> Iterator[towpath.Client]:
    with acting_as(users[0]):
        client = towpath.connect(str(daemon.socket))
    with client:
        assert client.principal == f"uid:{users[0]}"
        client.declare("theirs.service", kind="service")
        client.declare("theirs.queue", kind="queue", ack_ms=60_000)
        client.declare("theirs.kept", kind="queue", durable=True, ack_ms=60_000)
        yield client


@pytest.fixture
def attacker(daemon: DaemonHandle, users: tuple[int, int]) -> Iterator[RawClient]:
    with acting_as(users[1]):
        client = RawClient(daemon.socket)
    with client:
        assert client.welcome.principal == f"uid:{users[1]}"
        yield client


def code(frame: Frame) -> Code:
    assert frame.WhichOneof("body") == "error", frame
    return Code(frame.error.code)


def serve(client: towpath.Client) -> tuple[Any, threading.Thread]:
    """Answer until the server is closed."""
    server = client.serve("theirs.service", concurrency=8)

    def answer() -> None:
        for request in server:
            request.reply(b"mine: " + request.payload)

    thread = threading.Thread(target=answer)
    thread.start()
    return server, thread


@pytest.mark.parametrize("queue", ["theirs.queue", "theirs.kept"])
def test_nobody_settles_what_another_was_given(
    victim: towpath.Client, attacker: RawClient, queue: str
) -> None:
    is_stored = victim.channel_info(queue).durable  # only such can be in a transaction
    victim.channel(queue).publish_many([b"%d" % number for number in range(6)])
    with victim.consume(queue, prefetch=6) as consumer:
        deliveries = [consumer.receive(timeout=DEADLINE_S) for _ in range(6)]
        number = consumer._state.consumer
        assert number > 0
        for numbers in ((1, 6), (1, 1), (6, 6)):
            every = queues_pb2.DeliveryRange(first=numbers[0], last=numbers[1])
            returned = queues_pb2.ReturnedRange(deliveries=every, is_rejected=True)
            extended = queues_pb2.ExtendedRange(deliveries=every, ack_ms=1)
            for wrong in (
                queues_pb2.SettleRequest(consumer=number, acknowledged=[every]),
                queues_pb2.SettleRequest(consumer=number, returned=[returned]),
                queues_pb2.SettleRequest(consumer=number, extended=[extended]),
            ):
                assert code(attacker.ask(Frame(id=9, settle_request=wrong))) is Code.PERMISSION_DENIED
                transaction = channels_pb2.CommitTransactionRequest(transaction="steal", settlements=[wrong])
                refused = attacker.ask(Frame(id=9, commit_transaction_request=transaction))
                assert code(refused) is (Code.PERMISSION_DENIED if is_stored else Code.INVALID_ARGUMENT)
        for delivery in deliveries:
            assert delivery.attempt == 1
            delivery.ack()
        consumer.flush(DEADLINE_S)
    contents = victim.channel_info(queue).contents
    assert contents is not None and contents.messages == 0


def test_nobody_undeclares_what_another_declared(victim: towpath.Client, attacker: RawClient) -> None:
    for name in ("theirs.service", "theirs.queue", "theirs.kept"):
        request = Frame(id=9)
        request.undeclare_channel_request.name = name
        request.undeclare_channel_request.force = True
        assert code(attacker.ask(request)) is Code.PERMISSION_DENIED
        assert victim.channel_info(name).name == name


def test_nobody_answers_or_ends_anothers_calls(victim: towpath.Client, attacker: RawClient) -> None:
    server, thread = serve(victim)
    assert victim.call("theirs.service", b"1").payload == b"mine: 1"
    assert isinstance(victim, LocalClient)
    caller = victim._callers.get("theirs.service")
    serving, asking, replies = server._state.id, caller._source.source, caller._replies.id
    ring_bytes = victim.channel_info("theirs.service").ring_bytes
    refused: list[Code] = []

    def try_source(**fields: Any) -> None:
        writer = _ring.Writer(attacker.welcome.first_id, ring_bytes)
        request = frame_pb2.AttachSourceRequest(channel="theirs.service", source=writer.source, **fields)
        refused.append(code(attacker.ask(Frame(id=9, attach_source_request=request), writer.share())))
        writer.close()

    def try_reader(identifier: int, role: frame_pb2.ReaderRole.ValueType, **fields: Any) -> None:
        reader = _ring.Reader(identifier, 8)
        request = frame_pb2.AttachReaderRequest(
            channel="theirs.service", reader=identifier, slots=8, role=role, **fields
        )
        refused.append(code(attacker.ask(Frame(id=9, attach_reader_request=request), reader.share())))
        reader.close()

    answerer, calling = frame_pb2.SOURCE_ROLE_ANSWERER, frame_pb2.SOURCE_ROLE_CALLER
    try_source(role=answerer, own_reader=serving, peer=replies)  # answer in the server's name
    try_source(role=calling, own_reader=replies)  # ask, and have the answer sent to another
    for resumed in (False, True):  # be the server, or the one who waits
        try_reader(serving, frame_pb2.READER_ROLE_SERVER, resumed=resumed, resume_token=b"x" * 32)
        try_reader(replies, frame_pb2.READER_ROLE_REPLIES, resumed=resumed, resume_token=b"x" * 32)
    for gone in (serving, replies):
        request = Frame(id=9, detach_reader_request=frame_pb2.DetachReaderRequest(reader=gone))
        refused.append(code(attacker.ask(request)))
    request = Frame(id=9, detach_source_request=frame_pb2.DetachSourceRequest(source=asking))
    refused.append(code(attacker.ask(request)))
    assert len(refused) == 9
    assert set(refused) <= {
        Code.INVALID_ARGUMENT,
        Code.PERMISSION_DENIED,
        Code.SUBSCRIPTION_NOT_FOUND,
        Code.SOURCE_NOT_FOUND,
    }
    for number in range(100):
        assert victim.call("theirs.service", b"%d" % number).payload == b"mine: %d" % number
    server.close()
    thread.join(DEADLINE_S)


def test_a_caller_of_another_user_that_writes_garbage_harms_itself(
    victim: towpath.Client, attacker: RawClient
) -> None:
    server, thread = serve(victim)
    first = attacker.welcome.first_id
    page = _ring.Reader(first, 8)
    request = frame_pb2.AttachReaderRequest(
        channel="theirs.service", reader=first, slots=8, role=frame_pb2.READER_ROLE_REPLIES
    )
    assert attacker.ask(Frame(id=8, attach_reader_request=request), page.share()).id == 8
    writer = _ring.Writer(first + 1, victim.channel_info("theirs.service").ring_bytes)
    source = frame_pb2.AttachSourceRequest(
        channel="theirs.service",
        source=first + 1,
        role=frame_pb2.SOURCE_ROLE_CALLER,
        own_reader=first,
    )
    assert attacker.ask(Frame(id=9, attach_source_request=source), writer.share()).HasField(
        "attach_source_response"
    )
    ring, control = memory_of(attacker, writer), memory_of(attacker, page)
    for number in range(300):
        for payload in (b"", b"x" * number, os.urandom(40)):
            writer.try_publish(payload, os.urandom(number % 64) or None)
        assert victim.call("theirs.service", b"%d" % number).payload == b"mine: %d" % number
        if number > 100:
            at = (number * 8) % 2048
            ring[at : at + 8] = control[at : at + 8] = os.urandom(8)
    server.close()
    thread.join(DEADLINE_S)
    assert not thread.is_alive()


def test_who_stops_with_calls_and_deliveries_stalls_nobody_else(
    daemon: DaemonHandle, victim: towpath.Client, users: tuple[int, int]
) -> None:
    server, thread = serve(victim)
    queue = victim.channel("theirs.queue")
    queue.publish_many([b"%d" % number for number in range(2)])
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPER, str(daemon.socket), str(users[1])], stdin=subprocess.PIPE, cwd=ROOT
    )
    try:
        wait_until(lambda: _unsettled(victim) == 2)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        wait_until(lambda: is_stopped(process.pid))
        with victim.consume("theirs.queue", prefetch=10) as consumer:
            for number in range(200):
                queue.publish(b"for you %d" % number)
                assert victim.call("theirs.service", b"x", timeout=DEADLINE_S).payload == b"mine: x"
                delivery = consumer.receive(timeout=DEADLINE_S)
                assert delivery.payload == b"for you %d" % number
                delivery.ack()
            process.kill()
            process.wait()
            back = [consumer.receive(timeout=DEADLINE_S) for _ in range(2)]
            assert [(each.payload, each.attempt) for each in back] == [(b"0", 2), (b"1", 2)]
            for each in back:
                each.ack()
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
    with pytest.raises(errors.Timeout), victim.consume("theirs.queue") as consumer:
        consumer.receive(timeout=0)
    server.close()
    thread.join(DEADLINE_S)


def _unsettled(client: towpath.Client) -> int:
    contents = client.channel_info("theirs.queue").contents
    assert contents is not None
    return contents.unsettled
