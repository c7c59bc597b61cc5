"""On a terminal: progress, notes, colours, and payloads that must not drive it."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
from collections.abc import Callable, Iterator

import towpath as library
from tests.cli.shell import Start, output, subscribed, towpath, until
from tests.support.deadlines import DEADLINE_S


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, Callable[[], bytes]]]:
    """A terminal: the descriptor for the program's side, and what reads all that has been shown so far."""
    leader, follower = pty.openpty()
    shown = bytearray()

    def read() -> bytes:
        while select.select([leader], [], [], 0)[0]:
            shown.extend(os.read(leader, 65536))
        return bytes(shown)

    try:
        yield follower, read
    finally:
        os.close(follower)
        os.close(leader)


def test_a_terminal_is_not_driven_by_what_others_publish(
    client: library.Client, channel: str, start: Start
) -> None:
    with terminal() as (side, shown):
        subscriber = start("sub", channel, "--count", "1", stdout=side)
        subscribed(client, channel)
        client.channel(channel).publish("\x1b]0;owned\x07 21.5 °C".encode())
        assert output(subscriber)[0] == 0
        assert shown() == "\\x1b]0;owned\\x07 21.5 °C\r\n".encode()


def test_progress_is_shown_on_a_terminal_and_notes_that_nobody_listens(channel: str, start: Start) -> None:
    with terminal() as (side, shown):
        publisher = start("pub", channel, stdin=subprocess.PIPE, stderr=side)
        assert publisher.stdin is not None
        feed = publisher.stdin

        def has_progress() -> bool:
            feed.write(b"line\n")
            feed.flush()
            return b"messages, " in shown()

        until(has_progress, "progress is shown")
        feed.close()
        assert publisher.wait(DEADLINE_S) == 0
        text = shown().decode()
    assert text.startswith(f"note: nobody subscribes to {channel} at the moment\r\n")
    assert text.endswith(" s\r\n")
    assert "/s in " in text


def test_quiet_is_quiet_on_a_terminal(channel: str, start: Start) -> None:
    with terminal() as (side, shown):
        publisher = start("pub", channel, "x", "--quiet", stderr=side)
        assert publisher.wait(DEADLINE_S) == 0
        assert shown() == b""


def test_no_colours_unless_on_a_terminal_that_wants_them(env: dict[str, str], start: Start) -> None:
    assert b"\x1b[" not in towpath("status", env=env).stdout
    with terminal() as (side, shown):
        status = start("status", stdout=side)
        # Read all the while: a terminal holds a few KiB only, and the page of a busy daemon is longer.
        until(lambda: b"\x1b[1mGateways\x1b[0m" in shown() and status.poll() is not None, "all is shown")
        assert status.returncode == 0
