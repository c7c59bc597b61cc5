"""What systemd is told and hands over, without a systemd: the notify socket and systemd-socket-activate are
enough."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import towpath
from tests.support.daemon import DEADLINE_S, running_daemon
from towpath.errors import InvalidConfiguration
from towpath_broker.host.systemd import Notifier, activated_socket

LOCAL_ONLY = "zeromq = false\ngrpc = false\n"


@pytest.fixture
def notify_socket() -> Iterator[tuple[str, socket.socket]]:
    """Where systemd would listen, and its path."""
    with (
        tempfile.TemporaryDirectory(prefix="towpath-test-") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
    ):
        listener.bind(f"{directory}/notify")
        listener.settimeout(DEADLINE_S)
        yield f"{directory}/notify", listener


def receive_until(listener: socket.socket, wanted: str) -> str:
    """Return the first message that has the line; those before it are dropped."""
    while True:
        message = listener.recv(4_096).decode()
        if wanted in message.splitlines():
            return message


def test_ready_status_reload_and_stop_are_told(
    tmp_path: Path, notify_socket: tuple[str, socket.socket]
) -> None:
    pytest.importorskip("systemd.daemon", reason="systemd-python is not installed; `make setup` says why")
    path, listener = notify_socket
    with running_daemon(tmp_path, LOCAL_ONLY, env={"NOTIFY_SOCKET": path}) as daemon:
        assert f"MAINPID={daemon.process.pid}" in receive_until(listener, "READY=1")
        with towpath.connect(str(daemon.socket)) as client:
            client.declare("told")
            receive_until(listener, "STATUS=1 channels, 0 bindings, 2 sessions")
        daemon.reload()
        assert "MONOTONIC_USEC=" in receive_until(listener, "RELOADING=1")
        receive_until(listener, "READY=1")
        daemon.config.write_text("[nothing]\n")
        daemon.reload()
        receive_until(listener, "RELOADING=1")
        assert "STATUS=Configuration not reloaded: " in receive_until(listener, "READY=1")
        daemon.process.terminate()
        receive_until(listener, "STOPPING=1")
        assert daemon.wait() == 0


def test_no_child_is_told_of_systemd(tmp_path: Path, notify_socket: tuple[str, socket.socket]) -> None:
    pytest.importorskip("systemd.daemon", reason="systemd-python is not installed; `make setup` says why")
    with running_daemon(tmp_path, LOCAL_ONLY, env={"NOTIFY_SOCKET": notify_socket[0]}) as daemon:
        core = Path(f"/proc/{daemon.core_pid}/environ").read_bytes().split(b"\0")
        assert not [line for line in core if line.startswith((b"NOTIFY_SOCKET", b"LISTEN_"))]


def test_where_systemd_waits_and_its_package_is_missing_the_daemon_refuses(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['systemd'] = None\n")
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "towpath",
            "serve",
            f"--runtime-dir={tmp_path}/r",
            f"--state-dir={tmp_path}/s",
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "NOTIFY_SOCKET": "/run/systemd/notify"},
        check=False,
    )
    assert run.returncode == 78
    assert "NOTIFY_SOCKET is set, but the package systemd-python is not installed" in run.stderr
    assert "pip install 'towpath[systemd]'" in run.stderr
    assert not (tmp_path / "r").exists()


def test_without_systemd_nothing_is_told() -> None:
    notifier = Notifier({})
    notifier.ready("x")
    notifier.stopping()


@pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="there is no systemd on this machine"
)
def test_an_activated_socket_is_served_and_left_in_place(tmp_path: Path) -> None:
    (tmp_path / "towpath.toml").write_text(LOCAL_ONLY)
    with tempfile.TemporaryDirectory(prefix="towpath-test-") as directory:
        path = f"{directory}/activated.sock"
        command = [
            *("systemd-socket-activate", "--listen", path),
            *(sys.executable, "-m", "towpath", "serve", "--config", str(tmp_path / "towpath.toml")),
            *("--runtime-dir", f"{directory}/run", "--state-dir", str(tmp_path / "state")),
        ]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as activator:
            assert activator.stderr is not None
            # It says so once it listens; what comes after is the daemon's log.
            assert "Listening on" in activator.stderr.readline()
            with towpath.connect(path, timeout=DEADLINE_S) as client:
                assert client.status().socket == path
            activator.send_signal(signal.SIGTERM)
            assert "daemon.stopped status=0" in activator.stderr.read()
        assert activator.returncode == 0
        assert Path(path).is_socket()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, None),
        ({"LISTEN_PID": "us", "LISTEN_FDS": "0"}, None),
        ({"LISTEN_PID": "us", "LISTEN_FDS": "many"}, None),
        ({"LISTEN_PID": "us", "LISTEN_FDS": "2"}, "systemd handed over 2 sockets"),
    ],
)
def test_only_one_socket_that_is_meant_for_us_is_taken(environment: dict[str, str], said: str | None) -> None:
    mine = {name: str(os.getpid()) if value == "us" else value for name, value in environment.items()}
    if said is None:
        assert activated_socket(mine) is None
        return
    with pytest.raises(InvalidConfiguration, match=said):
        activated_socket(mine)


@pytest.mark.parametrize(
    ("kind", "said"), [("file", "not a socket"), ("tcp", "not a listening UNIX stream socket")]
)
def test_what_is_not_the_right_socket_is_refused(tmp_path: Path, kind: str, said: str) -> None:
    # Descriptor 3 is the process's own; so in another process.
    script = (
        "import os, socket, sys\n"
        "from towpath_broker.host.systemd import activated_socket\n"
        "from towpath.errors import InvalidConfiguration\n"
        "other = socket.socket() if sys.argv[1] == 'tcp' else open('/dev/null')\n"
        "os.dup2(other.fileno(), 3)\n"
        "try: activated_socket({'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'})\n"
        "except InvalidConfiguration as error: print(error.message, flush=True)\n"
        "os._exit(0)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, kind], capture_output=True, text=True, check=True, timeout=30
    )
    assert said in run.stdout
