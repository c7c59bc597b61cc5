"""On a terminal `towpath serve` greets the person who typed it, and Ctrl-C ends it; on a pipe it says
nothing."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import LOCAL_ONLY, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S


def read_until(terminal: int, text: bytes) -> bytes:
    """Read from a terminal until it shows the text, or its program has ended."""
    shown = b""
    while text not in shown:
        try:
            shown += os.read(terminal, 4_096)
        except OSError:  # EIO: nobody has the other side open any more
            break
    return shown


@pytest.fixture
def runtime_dir() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="towpath-test-") as directory:
        yield directory


@pytest.fixture
def on_a_terminal(tmp_path: Path, runtime_dir: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A daemon that a person started, and its terminal: the person's side."""
    (tmp_path / "towpath.toml").write_text(LOCAL_ONLY)
    command = [
        *("setsid", "--ctty", sys.executable, "-m", "towpath", "serve"),
        *("--config", str(tmp_path / "towpath.toml")),
        *("--runtime-dir", runtime_dir, "--state-dir", str(tmp_path / "state")),
    ]
    terminal, theirs = pty.openpty()
    # setsid makes it the controlling terminal, as a person's shell has one: Ctrl-C and hanging up are
    # signals.
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        yield terminal, process
        process.wait(DEADLINE_S)
    assert process.returncode == 0


def test_a_terminal_is_greeted_and_ctrl_c_stops_it(
    on_a_terminal: tuple[int, subprocess.Popen[bytes]], runtime_dir: str
) -> None:
    terminal, process = on_a_terminal
    shown = read_until(terminal, b"towpath status").decode()
    assert "runs in the foreground; Ctrl-C stops it." in shown
    assert f"socket   {runtime_dir}/towpath.sock" in shown
    assert "bridge   running" in shown
    assert f"export TOWPATH_SOCKET={runtime_dir}/towpath.sock" in shown
    os.write(terminal, b"\x03")
    assert "Traceback" not in read_until(terminal, b"daemon.stopped").decode()
    process.wait(DEADLINE_S)
    os.close(terminal)


def test_it_ends_when_its_terminal_hangs_up(
    on_a_terminal: tuple[int, subprocess.Popen[bytes]], runtime_dir: str
) -> None:
    terminal, process = on_a_terminal
    read_until(terminal, b"towpath status")
    # By itself SIGHUP is a reload.
    process.send_signal(signal.SIGHUP)
    read_until(terminal, b"daemon.reloaded")
    os.close(terminal)
    wait_until(lambda: not Path(runtime_dir, "towpath.sock").exists())


def test_elsewhere_only_the_log_is_written(tmp_path: Path) -> None:
    with running_daemon(tmp_path, LOCAL_ONLY) as daemon:
        pass
    assert "Ctrl-C" not in daemon.log()
    assert all(line.split(" ")[1] in ("info", "warning", "error") for line in daemon.log().splitlines())
