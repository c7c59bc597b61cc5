"""Two real users: neither can write, reopen, stall or crash what is the other's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import towpath
from tests.support.blocking import BlockingClient
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import calls, wire
from towpath.sync.brief import BriefClient
from towpath_broker.local.doorbells import BELLS_MAX, Doorbells

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "programs" / "attack.py"
CHANNELS = ("theirs.direct", "theirs.total")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become two users")


@pytest.fixture
def daemon() -> Iterator[DaemonHandle]:
    with tempfile.TemporaryDirectory(prefix="towpath-test-") as directory:
        config = LOCAL_ONLY + '[daemon]\nsocket_mode = "0666"\n'
        with running_daemon(Path(directory), config) as handle:
            handle.socket.parent.chmod(0o711)  # the socket's own mode shall decide
            yield handle


def attacker(daemon: DaemonHandle, what: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.door.programs.attack", str(daemon.socket), what, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def said_until_ready(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    said: list[str] = []
    for line in process.stdout:
        if line == "ready\n":
            return said
        said.append(line.strip())
    raise AssertionError(f"it ended early: {said[-5:]}")


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def carry(daemon: DaemonHandle, client: towpath.Client, channel: str) -> None:
    """Everything that a user does goes on: by ring, by socket, to threads and to event loops."""
    loop_client = BlockingClient(str(daemon.socket))
    subscriptions = [client.subscribe(channel), loop_client.subscribe(channel)]
    with client.publisher(channel) as publisher, BriefClient(str(daemon.socket)) as brief:
        for number in range(300):
            sent = {b"%s %d" % (kind, number) for kind in (b"ring", b"socket")}
            publisher.publish(b"ring %d" % number, timeout=DEADLINE_S)
            brief.call(calls.publish(channel, [b"socket %d" % number]), DEADLINE_S)
            for subscription in subscriptions:
                got: set[bytes] = set()
                while len(got) < len(sent):
                    message = subscription.receive(DEADLINE_S)
                    if message.payload.startswith((b"ring ", b"socket ")):
                        got.add(message.payload)
                assert got == sent
    loop_client.close()


def test_no_way_leads_to_anothers_memory_and_garbage_harms_only_who_wrote_it(daemon: DaemonHandle) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        client.declare(CHANNELS[0])
        client.declare(CHANNELS[1], order="total")
        held = [client.subscribe(channel) for channel in CHANNELS]
        publishers = [client.publisher(channel) for channel in CHANNELS]
        core = daemon.core_pid
        process = attacker(daemon, "memory", str(os.getpid()), str(core), str(daemon.process.pid))
        said = said_until_ready(process)
        # Three processes' descriptors, and a ring and a control page on each channel: no attempt was let.
        assert len(said) == 3 * 11 + 4 * 12
        assert [line for line in said if not line.endswith(" refused")] == []
        for channel in CHANNELS:
            carry(daemon, client, channel)
        assert daemon.core_pid == core
        process.communicate("\n", timeout=DEADLINE_S)
        for publisher, subscription in zip(publishers, held, strict=True):
            publisher.publish(b"still here", timeout=DEADLINE_S)
            while subscription.receive(DEADLINE_S).payload != b"still here":
                pass


def test_who_stops_while_subscribed_holds_nobody_up_for_longer_than_the_channel_allows(
    daemon: DaemonHandle,
) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        client.declare(CHANNELS[0], ring_bytes=4096, stall_ms_max=300)
        client.declare(CHANNELS[1], ring_bytes=4096, stall_ms_max=300, order="total")
        process = attacker(daemon, "stop")
        try:
            said_until_ready(process)
            wait_until(lambda: is_stopped(process.pid))
            carry(daemon, client, CHANNELS[1])
        finally:
            process.send_signal(signal.SIGCONT)
            process.communicate("\n", timeout=DEADLINE_S)


def test_who_shuts_a_doorbell_down_silences_nobody_else(daemon: DaemonHandle) -> None:
    with towpath.connect(str(daemon.socket)) as client, BlockingClient(str(daemon.socket)) as victim:
        client.declare(CHANNELS[0])
        client.declare(CHANNELS[1], order="total")
        subscription, publisher = victim.subscribe(CHANNELS[0]), client.publisher(CHANNELS[0])
        process = attacker(daemon, "memory")
        said_until_ready(process)
        bells = victim._inner._bells
        wait_until(lambda: bool(bells.is_late))  # the attacker's own doorbell is gone
        assert bells.is_own_alive
        publisher.publish(b"heard", timeout=DEADLINE_S)
        while subscription.receive(DEADLINE_S).payload != b"heard":
            pass
        process.communicate("\n", timeout=DEADLINE_S)


def test_each_user_has_a_doorbell_and_those_beyond_the_bound_share_one() -> None:
    own = wire.Descriptor(os.dup(0))
    receiving: list[wire.Descriptor] = []
    bells = Doorbells(own, 1000, receiving.append)
    assert bells.for_uid(1000) is own
    first = [bells.for_uid(uid) for uid in range(BELLS_MAX)]
    assert len({bell.fd for bell in first}) == len(receiving) == BELLS_MAX
    assert [bells.for_uid(uid) for uid in range(BELLS_MAX)] == first
    shared = bells.for_uid(BELLS_MAX)
    assert shared not in (own, *first)
    assert bells.for_uid(BELLS_MAX + 1) is shared
    assert len(receiving) == BELLS_MAX + 1
    assert Doorbells(own, 1000, None).for_uid(1) is own
