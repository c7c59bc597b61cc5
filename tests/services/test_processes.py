"""Callers and servers as processes that die, stop and fork, and a core that is killed meanwhile."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import towpath
from tests.support.blocking import BlockingClient
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors

SERVER = """
import sys, towpath
with towpath.connect(sys.argv[1]) as client, client.serve("echo", concurrency=4) as server:
    print("ready", flush=True)
    for request in server:
        if request.payload != b"hang":
            request.reply(b"%s by %s" % (request.payload, sys.argv[2].encode()))
"""

CALLER = """
import sys, threading, towpath
client = towpath.connect(sys.argv[1])
for number in range(int(sys.argv[2])):
    threading.Thread(target=client.call, args=("echo", b"ask %d" % number), kwargs={"timeout": None}).start()
print("ready", flush=True)
"""


@pytest.fixture
def daemon(tmp_path: Any) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path, LOCAL_ONLY) as handle:
        with towpath.connect(str(handle.socket)) as client:
            client.declare("echo", kind="service")
        yield handle


@pytest.fixture
def start(daemon: DaemonHandle) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a program, and waits until it says that it is ready."""
    running: list[subprocess.Popen[bytes]] = []

    def started(program: str, *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(daemon.socket), *arguments], stdout=subprocess.PIPE
        )
        running.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        return process

    yield started
    for process in running:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_server_that_is_killed_loses_its_calls_at_once(daemon: DaemonHandle, start: Any) -> None:
    process = start(SERVER, "one")
    with towpath.connect(str(daemon.socket)) as client:
        assert client.call("echo", b"x").payload == b"x by one"
        calling = _in_background(lambda: client.call("echo", b"hang", timeout=DEADLINE_S))
        first = _in_background(lambda: client.call("echo", b"hang", timeout=DEADLINE_S))
        wait_until(lambda: _load(client) == 2)
        killed = time.monotonic()
        process.kill()
        for call in (calling, first):
            with pytest.raises(errors.ServerLost):
                call()
        assert time.monotonic() - killed < 5
        with pytest.raises(errors.NoServer):
            client.call("echo", b"x")


def test_idempotent_calls_outlive_servers_killed_one_after_the_other(
    daemon: DaemonHandle, start: Any
) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        process = start(SERVER, "0")
        done = threading.Event()
        failures: list[BaseException] = []
        replies = 0

        def call() -> None:
            nonlocal replies
            while not done.is_set():
                try:
                    reply = client.call("echo", b"x", idempotent=True, wait=True, timeout=DEADLINE_S)
                    assert reply.payload.startswith(b"x by ")
                    replies += 1
                except BaseException as error:
                    failures.append(error)
                    return

        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        for number in range(1, 5):
            seen = replies
            wait_until(lambda seen=seen: replies > seen + 20 or bool(failures))  # type: ignore[misc]
            successor = start(SERVER, str(number))
            process.kill()
            process = successor
        done.set()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert not failures


@pytest.mark.parametrize("connect", [towpath.connect, BlockingClient], ids=["sync", "aio"])
def test_a_first_call_to_a_new_core_waits_for_the_servers_of_the_old_one(
    daemon: DaemonHandle, start: Any, connect: Any
) -> None:
    process = start(SERVER, "one")
    process.send_signal(signal.SIGSTOP)  # it comes back late
    daemon.kill_core()
    with connect(str(daemon.socket)) as client:
        calling = _in_background(lambda: client.call("echo", b"x", timeout=DEADLINE_S))
        wait_until(lambda: client.status().channels[0].publishers == 1)  # the caller is there
        assert client.status().channels[0].subscribers == 0
        process.send_signal(signal.SIGCONT)
        assert calling().payload == b"x by one"
        process.kill()
        with pytest.raises(errors.NoServer):  # in the end: nobody comes back
            while True:
                with contextlib.suppress(errors.ServerLost):
                    client.call("echo", b"x", timeout=DEADLINE_S)


def test_calls_go_on_while_the_core_is_killed(daemon: DaemonHandle, start: Any) -> None:
    start(SERVER, "one")
    with towpath.connect(str(daemon.socket)) as client:
        assert client.call("echo", b"x").payload == b"x by one"
        done = threading.Event()
        slowest = 0.0
        count = 0

        def call() -> None:
            nonlocal slowest, count
            while not done.is_set():
                begun = time.monotonic()
                client.call("echo", b"x", timeout=DEADLINE_S)
                slowest = max(slowest, time.monotonic() - begun)
                count += 1

        calling = _in_background(call)
        for _ in range(3):
            daemon.kill_core()
            seen = count
            wait_until(lambda seen=seen: count > seen + 100)  # type: ignore[misc]
        wait_until(lambda: client.is_connected)
        done.set()
        calling()
        assert slowest < DEADLINE_S
        second = start(SERVER, "two")  # whoever comes afterwards is met
        wait_until(lambda: client.call("echo", b"x", timeout=DEADLINE_S).payload == b"x by two")
        second.kill()
        wait_until(lambda: _payload(client) == b"x by one")


def test_first_calls_and_first_answers_wait_for_the_core(daemon: DaemonHandle) -> None:
    with (
        towpath.connect(str(daemon.socket)) as client,
        towpath.connect(str(daemon.socket)) as another,
        towpath.connect(str(daemon.socket)) as other,
        other.serve("echo") as server,
    ):
        for caller in (client, another):
            asking = _in_background(functools.partial(caller.call, "echo", b"x", timeout=DEADLINE_S))
            request = server.receive(DEADLINE_S)
            daemon.kill_core()
            request.reply(b"at last")
            assert asking().payload == b"at last"
        killing = _in_background(daemon.kill_core)
        with towpath.connect(str(daemon.socket), timeout=DEADLINE_S) as late:
            asking = _in_background(lambda: late.call("echo", b"x", wait=True, timeout=DEADLINE_S))
            server.receive(DEADLINE_S).reply(b"late")
            assert asking().payload == b"late"
        killing()


def test_a_server_killed_while_the_core_is_away_is_missed_in_the_end(
    daemon: DaemonHandle, start: Any
) -> None:
    process = start(SERVER, "one")
    with towpath.connect(str(daemon.socket)) as client:
        client.call("echo", b"x")
        calling = _in_background(lambda: client.call("echo", b"hang", timeout=DEADLINE_S))
        wait_until(lambda: _load(client) == 1)
        mark = daemon.mark()
        os.kill(daemon.core_pid, signal.SIGKILL)
        process.kill()
        daemon.wait_log(r" core\.ready ", after=mark)
        with pytest.raises(errors.ServerLost):
            calling()


def test_a_caller_that_is_stopped_holds_up_nobody(daemon: DaemonHandle, start: Any) -> None:
    with (
        towpath.connect(str(daemon.socket)) as other,
        towpath.connect(str(daemon.socket)) as client,
        client.serve("echo", concurrency=100) as server,
    ):
        caller = start(CALLER, "40")
        requests = [server.receive(DEADLINE_S) for _ in range(40)]
        os.kill(caller.pid, signal.SIGSTOP)
        begun = time.monotonic()
        for request in requests:  # far more than its ring takes
            request.reply(bytes(200_000))
        assert time.monotonic() - begun < 10
        calling = _in_background(lambda: other.call("echo", b"x", timeout=DEADLINE_S))
        server.receive(DEADLINE_S).reply(b"served")
        assert calling().payload == b"served"
        os.kill(caller.pid, signal.SIGCONT)


def test_a_caller_that_is_killed_cancels_its_requests(daemon: DaemonHandle, start: Any) -> None:
    with towpath.connect(str(daemon.socket)) as client, client.serve("echo", concurrency=2) as server:
        caller = start(CALLER, "3")
        taken = [server.receive(DEADLINE_S) for _ in range(2)]
        caller.kill()
        wait_until(lambda: all(request.is_cancelled for request in taken))
        for request in taken:
            request.reply(b"nobody hears it")
        with pytest.raises(errors.Timeout):
            server.receive(0.2)  # the third went with it


def test_a_forked_child_cannot_call_or_serve(daemon: DaemonHandle, start: Any) -> None:
    start(SERVER, "one")
    with towpath.connect(str(daemon.socket)) as client, client.serve("echo") as server:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            outcome = []
            for attempt in (
                lambda: client.call("echo", b"x", timeout=5),
                lambda: server.receive(5),
                lambda: client.serve("echo"),
            ):
                try:
                    attempt()
                    outcome.append("done")
                except BaseException as error:
                    outcome.append(type(error).__name__)
            os.write(write, " ".join(outcome).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            assert pipe.read().split() == ["ConnectionLost"] * 3
        os.waitpid(child, 0)


def test_the_channel_goes_away_under_calls(daemon: DaemonHandle, start: Any) -> None:
    with towpath.connect(str(daemon.socket)) as client, towpath.connect(str(daemon.socket)) as owner:
        server = client.serve("echo")
        calling = _in_background(lambda: owner.call("echo", b"x", timeout=DEADLINE_S))
        server.receive(DEADLINE_S)
        owner.undeclare("echo", force=True)
        with pytest.raises(errors.ChannelUndeclared):
            calling()
        with pytest.raises(errors.ChannelUndeclared):
            server.receive(DEADLINE_S)
        with pytest.raises(errors.ChannelNotFound):
            owner.call("echo", b"x")
        owner.declare("echo", kind="service")
        start(SERVER, "new")
        assert owner.call("echo", b"x").payload == b"x by new"


# ---- helpers -----------------------------------------------------------------------------------------------


def _in_background(work: Callable[[], Any]) -> Callable[[], Any]:
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "it still waits"
        if failure:
            raise failure[0]
        return outcome[0]

    return result


def _load(client: towpath.Client) -> int:
    """What the one server tells of itself."""
    writer = client.service_caller("echo")._source.writer  # type: ignore[attr-defined]
    return sum(writer.load(reader) for reader in writer.readers())


def _payload(client: towpath.Client) -> bytes:
    try:
        return client.call("echo", b"x", timeout=DEADLINE_S).payload
    except errors.ServerLost:
        return b""
