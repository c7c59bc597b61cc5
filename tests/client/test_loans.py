"""Loans in shared memory: subscribers look at the publisher's bytes, as long as they like; and what becomes
of them when either side stops, dies or is parted from, or the daemon does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import towpath
from tests.client.conftest import Connect
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.loans import LOAN_BYTES

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
HALF = LOAN_BYTES // 2
"""Two of these are all there is; nothing of them is touched."""


def publish(publisher: Any, payload: bytes) -> None:
    loan = publisher.loan(len(payload), timeout=DEADLINE_S)
    loan[:] = payload
    publisher.publish_loan(loan, timeout=DEADLINE_S)


def receive(subscription: Any) -> memoryview:
    payload = subscription.receive(timeout=DEADLINE_S).payload
    assert isinstance(payload, memoryview)
    return payload


@contextmanager
def holder(daemon: DaemonHandle, name: str, count: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(HERE / "programs" / "hold_loans.py"), str(daemon.socket), name, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    try:
        assert line_of(process) == "ready"
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip()


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return line_of(process)


def test_every_subscriber_looks_at_the_same_bytes(client: Any, connect: Connect, name: str) -> None:
    client.declare(name)
    subscriptions = [connect().subscribe(name), connect().subscribe("test.*")]
    publisher = client.publisher(name)
    publish(publisher, b"x" * 100_000)
    views = [receive(subscription) for subscription in subscriptions]
    assert all(view.readonly and view == b"x" * 100_000 for view in views)
    for number in range(50):  # what is held stays, what is not is used again
        publish(publisher, bytes([number]) * 100_000)
        assert [bytes(receive(each)[:1]) for each in subscriptions] == [bytes([number])] * 2
    assert all(view == b"x" * 100_000 for view in views)


def test_a_view_outlives_everything(daemon: DaemonHandle, name: str) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        client.declare(name)
        subscription, publisher = client.subscribe(name), client.publisher(name)
        publish(publisher, b"a" * 10_000)
        publish(publisher, b"b" * 10_000)
        first, second = receive(subscription), receive(subscription)
        subscription.close()
        for number in range(20):
            publish(publisher, bytes([number]) * 200_000)
        assert first == b"a" * 10_000
        publisher.close()
        assert second == b"b" * 10_000
    assert first == b"a" * 10_000
    assert second == b"b" * 10_000


def test_with_held_max_0_payloads_are_bytes(client: Any, name: str) -> None:
    client.declare(name)
    with client.subscribe(name, held_max=0) as copying, client.subscribe(name, held_max=1) as holding:
        publisher = client.publisher(name)
        publish(publisher, b"one")
        publish(publisher, b"two")
        assert [copying.receive(timeout=DEADLINE_S).payload for _ in range(2)] == [b"one", b"two"]
        assert [type(holding.receive(timeout=DEADLINE_S).payload) for _ in range(2)] in (
            [memoryview, bytes],  # both were there when it looked
            [memoryview, memoryview],
        )


def test_a_publisher_waits_for_what_is_held(client: Any, connect: Connect, name: str) -> None:
    client.declare(name, stall_ms_max=0)
    subscription, publisher = connect().subscribe(name), client.publisher(name)
    publisher.publish_loan(publisher.loan(HALF))
    publisher.publish_loan(publisher.loan(HALF))
    with pytest.raises(errors.Timeout, match="still hold"):
        publisher.loan(1, timeout=0.01)  # not read
    held = [receive(subscription), receive(subscription)]
    with pytest.raises(errors.Timeout, match="still hold"):
        publisher.loan(1, timeout=0.01)  # held
    loans: list[Any] = []
    waiter = threading.Thread(target=lambda: loans.append(publisher.loan(1, timeout=DEADLINE_S)))
    waiter.start()
    del held[0]
    waiter.join(DEADLINE_S)
    assert len(loans) == 1
    held.clear()
    wait_until(lambda: bool(publisher.loan(HALF, timeout=DEADLINE_S)))


def test_a_program_that_has_loaned_everything_is_told(client: Any, name: str) -> None:
    client.declare(name)
    publisher = client.publisher(name)
    loans = [publisher.loan(HALF), publisher.loan(HALF)]
    with pytest.raises(errors.LimitExceeded, match="nothing can be loaned") as raised:
        publisher.loan(1)
    assert "release" in raised.value.hint
    loans.pop().release()
    publisher.loan(HALF)
    with pytest.raises(errors.MessageTooLarge):
        publisher.loan(LOAN_BYTES + 1)


def test_where_overflow_is_drop_the_oldest_is_given_up(client: Any, name: str) -> None:
    client.declare(name, overflow="drop")
    subscription, publisher = client.subscribe(name), client.publisher(name)
    for _ in range(5):
        publisher.publish_loan(publisher.loan(HALF))
    message = subscription.receive(timeout=DEADLINE_S)
    assert (message.seq, message.missed) == (4, 3)
    last = subscription.receive(timeout=DEADLINE_S)
    with pytest.raises(errors.LimitExceeded):  # what is held is not given up
        publisher.loan(1)
    del message
    assert publisher.loan(1).nbytes == 1
    assert len(last.payload) == HALF


def test_a_killed_holder_holds_nothing(daemon: DaemonHandle, client: Any, name: str) -> None:
    client.declare(name)
    publisher = client.publisher(name)
    with holder(daemon, name, 2) as process:
        publisher.publish_loan(publisher.loan(HALF))
        publisher.publish_loan(publisher.loan(HALF))
        assert line_of(process)
        with pytest.raises(errors.Timeout):
            publisher.loan(1, timeout=0.01)
        loans: list[Any] = []
        waiter = threading.Thread(target=lambda: loans.append(publisher.loan(LOAN_BYTES, timeout=DEADLINE_S)))
        waiter.start()
        process.kill()
        waiter.join(DEADLINE_S)
        assert len(loans) == 1


def test_a_killed_publisher_leaves_its_bytes(daemon: DaemonHandle, name: str) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        client.declare(name)
        subscription = client.subscribe(name)
        code = (
            "import sys, time, towpath\n"
            "client = towpath.connect(sys.argv[1])\n"
            "publisher = client.publisher(sys.argv[2])\n"
            "loan = publisher.loan(100_000)\n"
            "loan[:] = b'y' * 100_000\n"
            "loan.publish()\n"
            "half_made = publisher.loan(100_000)\n"
            "half_made[:5] = b'never'\n"
            "print('published', flush=True)\n"
            "time.sleep(600)\n"
        )
        publisher = subprocess.Popen(
            [sys.executable, "-c", code, str(daemon.socket), name], stdout=subprocess.PIPE, text=True
        )
        assert line_of(publisher) == "published"
        view = receive(subscription)
        publisher.kill()
        publisher.communicate()
        wait_until(lambda: client.channel_info(name).publishers == 0)
        assert subscription.receive_many(timeout=0) == []
        assert view == b"y" * 100_000


def test_a_stopped_holder_is_parted_from_and_keeps_what_it_holds(
    daemon: DaemonHandle, client: Any, name: str
) -> None:
    client.declare(name, stall_ms_max=50)
    publisher = client.publisher(name)
    with holder(daemon, name, 1) as process:
        publish(publisher, b"held" * 1000)
        said = line_of(process)
        assert said == str(zlib.crc32(b"held" * 1000))
        process.send_signal(signal.SIGSTOP)
        for _ in range(8):  # one is unread, and it does not move: the publisher goes on without it
            loan = publisher.loan(HALF - 4096, timeout=DEADLINE_S)
            loan[:8192] = b"z" * 8192
            publisher.publish_loan(loan, timeout=DEADLINE_S)
        process.send_signal(signal.SIGCONT)
        assert ask(process) == said
        process.kill()
        process.wait(DEADLINE_S)
        assert publisher.loan(LOAN_BYTES, timeout=DEADLINE_S).nbytes == LOAN_BYTES


@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_loans_go_on_while_the_core_is_away(kind: str, tmp_path: Path) -> None:
    from tests.support.blocking import BlockingClient

    make: Any = towpath.connect if kind == "sync" else BlockingClient
    with running_daemon(tmp_path, LOCAL_ONLY) as daemon, make(str(daemon.socket)) as client:
        client.declare("a")
        subscription, publisher = client.subscribe("a"), client.publisher("a")
        publish(publisher, b"before" * 1000)
        before = receive(subscription)
        os.kill(daemon.core_pid, signal.SIGSTOP)
        publish(publisher, b"while" * 1000)
        during = receive(subscription)
        os.kill(daemon.core_pid, signal.SIGCONT)
        daemon.kill_core()
        publish(publisher, b"after" * 1000)
        after = receive(subscription)
        wait_until(lambda: client.is_connected)
        late = client.subscribe("a")
        for number in range(30):
            publish(publisher, bytes([number]) * 100_000)
            assert receive(late)[0] == receive(subscription)[0] == number
        assert [bytes(each) for each in (before, during, after)] == [
            word * 1000 for word in (b"before", b"while", b"after")
        ]


def test_late_subscribers_get_the_history(client: Any, connect: Connect, name: str) -> None:
    client.declare(name, history=3)
    publisher = client.publisher(name)
    for number in range(10):
        publish(publisher, bytes([number]) * 5000)
    with connect().subscribe(name) as late:
        assert [receive(late)[0] for _ in range(3)] == [7, 8, 9]
