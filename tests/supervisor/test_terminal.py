"""On a terminal `towpath serve` greets the person who typed it, and Ctrl-C ends it; on a pipe it says
nothing."""

from __future__ import annotations

import os
import pty
import shlex
import sys
import tempfile
from pathlib import Path

from tests.support.daemon import running_daemon

LOCAL_ONLY = "zeromq = false\ngrpc = false\n"


def read_until(terminal: int, text: bytes) -> bytes:
    """Read from a terminal until it shows the text, or its program has ended."""
    shown = b""
    while text not in shown:
        try:
            shown += os.read(terminal, 4_096)
        except OSError:  # EIO: nobody has the other side open any more
            break
    return shown


def test_a_terminal_is_greeted_and_ctrl_c_stops_it(tmp_path: Path) -> None:
    (tmp_path / "towpath.toml").write_text(LOCAL_ONLY)
    with tempfile.TemporaryDirectory(prefix="towpath-test-") as runtime_dir:
        command = [
            *(sys.executable, "-m", "towpath", "serve", "--config", str(tmp_path / "towpath.toml")),
            *("--runtime-dir", runtime_dir, "--state-dir", str(tmp_path / "state")),
        ]
        # Not pty.fork: pytest has threads.
        terminal, theirs = pty.openpty()
        pid = os.posix_spawn(
            "/bin/sh",
            # setsid -c makes the terminal the controlling one, as for a person's shell, so that Ctrl-C is a
            # signal.
            ["sh", "-c", f"exec setsid -c -w {shlex.join(command)}"],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, theirs, number) for number in (0, 1, 2)],
        )
        os.close(theirs)
        shown = read_until(terminal, b"towpath status").decode()
        assert "runs in the foreground; Ctrl-C stops it." in shown
        assert f"socket   {runtime_dir}/towpath.sock" in shown
        assert "bridge   running" in shown
        assert f"export TOWPATH_SOCKET={runtime_dir}/towpath.sock" in shown
        os.write(terminal, b"\x03")
        shown = read_until(terminal, b"daemon.stopped").decode()
        assert "Traceback" not in shown
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
        assert os.waitstatus_to_exitcode(status) == 0


def test_elsewhere_only_the_log_is_written(tmp_path: Path) -> None:
    with running_daemon(tmp_path, LOCAL_ONLY) as daemon:
        pass
    assert "Ctrl-C" not in daemon.log()
    assert all(line.split(" ")[1] in ("info", "warning", "error") for line in daemon.log().splitlines())
