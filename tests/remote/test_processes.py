"""Programs that use a remote client and leave, in every way in which programs leave."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import towpath
import towpath.aio
from tests.support.daemon import DaemonHandle, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath.remote import grpc

PROGRAM = Path(__file__).parent / "programs" / "leave.py"


@pytest.fixture
def url(carrier: str, daemon: DaemonHandle, sockets: Path) -> str:
    return f"{ {'grpc': 'grpc+unix', 'zmq': 'zmq+ipc'}[carrier] }://{sockets}/{carrier}"


def start(how: str, url: str, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), how, url, name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the program's end; return what it said. Complaints of any kind are none of it."""
    output, complaints = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, complaints) == (0, "")
    return output


@pytest.mark.parametrize("how", ["unclosed", "unclosed-aio"])
def test_a_program_that_closes_nothing_ends_quietly_and_leaves_its_channels(
    how: str, url: str, local: towpath.Client, name: str
) -> None:
    assert finish(start(how, url, name)) == "x\n"
    wait_until(lambda: local.channel_info(name).subscribers == 0)


def test_a_forked_child_cannot_use_the_parents_handles(url: str, name: str) -> None:
    assert finish(start("fork", url, name)) == 3 * "ConnectionLost\n" + "x\n"


def test_an_interrupt_ends_a_wait(url: str, local: towpath.Client, name: str) -> None:
    process = start("interrupted", url, name)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    assert finish(process) == "interrupted\n"


def test_clients_on_several_event_loops_of_one_process(url: str, local: towpath.Client, name: str) -> None:
    assert finish(start("loops", url, name)) == "done\n"


def test_clients_one_after_the_other_whose_handles_are_kept(url: str, name: str) -> None:
    assert finish(start("sequence", url, name)) == "done\n"


def test_a_program_that_is_killed_leaves_its_channels(url: str, local: towpath.Client, name: str) -> None:
    process = start("interrupted", url, name)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    assert local.channel_info(name).subscribers == 1
    process.kill()
    process.communicate()
    wait_until(lambda: local.channel_info(name).subscribers == 0)


def test_a_stream_that_was_left_does_not_keep_its_call(
    daemon: DaemonHandle, sockets: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep gRPC's channel open, and closing the client would wait for that in vain."""
    monkeypatch.setattr(grpc, "SHUTDOWN_S", DEADLINE_S)

    async def main() -> None:
        client: Any = await towpath.aio.connect(f"grpc+unix://{sockets}/grpc")
        await client.declare(f"{name}.queue", kind="queue")
        consumer = await client.consume(f"{name}.queue")
        await consumer.close()
        watching = client._session.connection._watching
        await client.close()
        assert watching.done() and not watching.cancelled()
        del consumer

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S / 2))
