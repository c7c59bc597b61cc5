"""What systemd is told and hands over, without a systemd: the notify socket and systemd-socket-activate are
enough."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

import towpath
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath.errors import InvalidConfiguration, Timeout
from towpath_broker.host.systemd import NAMES_BYTES_MAX, Notifier, handed_over

HANDED_OVER = Path(__file__).parent / "programs" / "handed_over.py"


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
        assert handed_over(mine) == (None, {})
        return
    with pytest.raises(InvalidConfiguration, match=said):
        handed_over(mine)


@pytest.mark.parametrize(
    ("kind", "said"), [("file", "not a socket"), ("tcp", "not a listening UNIX stream socket")]
)
def test_what_is_not_the_right_socket_is_refused(tmp_path: Path, kind: str, said: str) -> None:
    # Descriptor 3 is the process's own; so in another process.
    script = (
        "import os, socket, sys\n"
        "from towpath_broker.host.systemd import handed_over\n"
        "from towpath.errors import InvalidConfiguration\n"
        "other = socket.socket() if sys.argv[1] == 'tcp' else open('/dev/null')\n"
        "os.dup2(other.fileno(), 3)\n"
        "try: handed_over({'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '1'})\n"
        "except InvalidConfiguration as error: print(error.message, flush=True)\n"
        "os._exit(0)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, kind], capture_output=True, text=True, check=True, timeout=30
    )
    assert said in run.stdout


# ---- the watchdog ------------------------------------------------------------------------------------------


def test_the_watchdog_is_fed_by_the_core_and_a_silent_core_is_replaced(
    tmp_path: Path, notify_socket: tuple[str, socket.socket]
) -> None:
    pytest.importorskip("systemd.daemon", reason="systemd-python is not installed; `make setup` says why")
    path, listener = notify_socket
    watched = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "10000000"}
    with running_daemon(tmp_path, LOCAL_ONLY, env=watched) as daemon:
        for _ in range(2):
            receive_until(listener, "WATCHDOG=1")
        stopped = daemon.core_pid
        os.kill(stopped, signal.SIGSTOP)
        empty(listener)
        mark = daemon.mark()
        daemon.wait_log(r" core\.wedged ", after=mark)
        # The supervisor was alive all the time, and did not say so on the core's behalf.
        assert [message for message in empty(listener) if "WATCHDOG=1" in message] == []
        daemon.wait_log(r" core\.ready ", after=mark)
        receive_until(listener, "WATCHDOG=1")
        assert daemon.core_pid != stopped
        assert [gateway.restarts for gateway in daemon.status().gateways] == [0]


def empty(listener: socket.socket) -> list[str]:
    """Return what was told up to now."""
    messages = []
    while select.select([listener], [], [], 0)[0]:
        messages.append(listener.recv(4_096).decode())
    return messages


def test_without_a_watchdog_nothing_beats(tmp_path: Path, notify_socket: tuple[str, socket.socket]) -> None:
    pytest.importorskip("systemd.daemon", reason="systemd-python is not installed; `make setup` says why")
    path, listener = notify_socket
    others = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "10000", "WATCHDOG_PID": "1"}
    with running_daemon(tmp_path, LOCAL_ONLY, env=others) as daemon:
        daemon.status()
        daemon.stop()
    assert [message for message in empty(listener) if "WATCHDOG=1" in message] == []


# ---- descriptors kept over a restart -----------------------------------------------------------------------


class Manager:
    """What systemd does with descriptors: keeps what it is told to, and hands it over at the next start."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.path = path
        self.kept: dict[str, int] = {}

    def take(self) -> None:
        """Take what was told up to now."""
        while select.select([self.socket], [], [], 0)[0]:
            data, descriptors, _, _ = socket.recv_fds(self.socket, 65_536, 4)
            told = dict(line.split("=", 1) for line in data.decode().splitlines())
            if "FDSTORE" in told:
                assert told["FDPOLL"] == "0" and len(descriptors) == 1
                assert told["FDNAME"] not in self.kept, "its predecessor must be removed first"
                self.kept[told["FDNAME"]] = descriptors.pop()
            elif "FDSTOREREMOVE" in told:
                os.close(self.kept.pop(told["FDNAME"]))
            for descriptor in descriptors:
                os.close(descriptor)

    @contextlib.contextmanager
    def starts(self, tmp_path: Path, config: str, listener: socket.socket) -> Iterator[DaemonHandle]:
        """Run the daemon once, with the activated socket and what is kept; go on taking meanwhile."""
        stopping = threading.Event()

        def take_on() -> None:
            while not stopping.is_set():
                if select.select([self.socket], [], [], 0.01)[0]:
                    self.take()

        def hand_over() -> None:
            connection, _ = door.accept()
            with connection:
                names = ":".join(["towpath.socket", *self.kept])
                socket.send_fds(connection, [names.encode()], [listener.fileno(), *self.kept.values()])

        taking = threading.Thread(target=take_on)
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(f"{self.path}-{len(os.listdir(self.path.parent))}")
            door.listen()
            handing = threading.Thread(target=hand_over)
            env = {"NOTIFY_SOCKET": str(self.path), "TOWPATH_TEST_MANAGER": door.getsockname()}
            handing.start()
            taking.start()
            try:
                with running_daemon(tmp_path, config, env=env, program=(str(HANDED_OVER),)) as daemon:
                    yield daemon
            finally:
                handing.join()
                stopping.set()
                taking.join()
                self.take()

    def close(self) -> None:
        self.socket.close()
        for descriptor in self.kept.values():
            os.close(descriptor)


@pytest.fixture
def manager() -> Iterator[Manager]:
    with tempfile.TemporaryDirectory(prefix="towpath-test-") as directory:
        running = Manager(Path(directory) / "notify")
        yield running
        running.close()


def test_what_is_kept_is_told_and_its_names_are_bounded(manager: Manager) -> None:
    pytest.importorskip("systemd.daemon", reason="systemd-python is not installed; `make setup` says why")
    notifier = Notifier({"NOTIFY_SOCKET": str(manager.path)})
    os.environ["NOTIFY_SOCKET"] = str(manager.path)
    try:
        with open("/dev/null") as file:
            for name in ("a:b", "ä", "a\nb", "x" * 250):
                assert not notifier.keep(name, file.fileno())
            assert notifier.keep("a", file.fileno())
            assert notifier.keep("a", file.fileno())
            manager.take()
            assert list(manager.kept) == ["kept/a"]
            notifier.let_go("a")
            notifier.let_go("a")
            manager.take()
            assert manager.kept == {}
            count = 0
            while notifier.keep(f"{count:0240}", file.fileno()):
                count += 1
                manager.take()
            assert count == NAMES_BYTES_MAX // 246
            notifier.let_go(f"{0:0240}")
            assert notifier.keep("b", file.fileno())
    finally:
        del os.environ["NOTIFY_SOCKET"]


def test_what_systemd_kept_is_handed_over_beside_the_socket(tmp_path: Path) -> None:
    script = (
        "import os, socket\n"
        "from towpath_broker.host.store import Store\n"
        "from towpath_broker.host.systemd import Notifier, handed_over\n"
        "listener = socket.socket(socket.AF_UNIX); listener.bind('s'); listener.listen()\n"
        "given = [listener.detach(), *map(os.memfd_create, 'abc')]\n"
        "for number in range(4): os.dup2(given[number], 100 + number)\n"
        "for number in range(4): os.dup2(100 + number, 3 + number)\n"
        "names = 'towpath.socket:kept/core/a b:kept/core/a b:kept/bridge/c'\n"
        "got = handed_over({'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': '4', 'LISTEN_FDNAMES': names})\n"
        "print(got.listener.getsockname(), sorted(got.kept))\n"
        "print([os.get_inheritable(fd) for fd in (got.listener.fileno(), *got.kept.values())])\n"
        "core = Store('core', Notifier({}), got.kept)\n"
        "print(len(core), [os.path.exists(f'/proc/self/fd/{n}') for n in (4, 5, 6)])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
        cwd=tmp_path,
    )
    lines = run.stdout.splitlines()
    assert lines[0] == "s ['bridge/c', 'core/a b']"
    assert lines[1] == "[False, False, False]"
    assert lines[2] == "1 [True, False, True]"  # the second of one name was closed


@pytest.mark.parametrize(
    ("order", "way"),
    [
        ("source", "restart"),
        ("total", "kill"),
        pytest.param("total", "restart", marks=pytest.mark.long),
        pytest.param("source", "kill", marks=pytest.mark.long),
    ],
)
def test_a_restart_and_a_kill_of_the_daemon_lose_nothing(
    tmp_path: Path, manager: Manager, order: Literal["source", "total"], way: str
) -> None:
    """Under load; all that a systemd does here is to keep descriptors.

    With a FIFO beside the publisher, unless the bridge is killed, which loses what is in its hands.
    """
    pytest.importorskip("systemd.daemon", reason="systemd-python is not installed; `make setup` says why")
    fifo = tmp_path / "fifo"
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as later:
        listener.bind(str(manager.path) + "-door")
        listener.listen()
        with manager.starts(tmp_path, LOCAL_ONLY, listener) as daemon:
            client = later.enter_context(towpath.connect(listener.getsockname()))
            client.declare("c", order=order, ring_bytes=1 << 14)
            if way == "restart":
                client.bind("c", f"fifo:{fifo}", direction="in")
            traffic = later.enter_context(Traffic(client, fifo if way == "restart" else None))
            traffic.wait_flow()
            if way == "kill":
                daemon.process.kill()
                daemon.wait()
        assert fifo.is_fifo() is (way == "restart")
        with manager.starts(tmp_path, LOCAL_ONLY, listener):
            traffic.wait_flow()
        with manager.starts(tmp_path, LOCAL_ONLY, listener):
            traffic.wait_flow()
            traffic.end()
            client.undeclare("c", force=True)
        assert manager.kept == {} and not fifo.exists()


def test_who_reads_a_fifo_does_not_notice_a_restart(tmp_path: Path, manager: Manager) -> None:
    """Nor does it miss anything that was published meanwhile."""
    pytest.importorskip("systemd.daemon", reason="systemd-python is not installed; `make setup` says why")
    fifo, stopping, sent = tmp_path / "fifo", threading.Event(), 0
    lines: list[bytes] = []

    def read() -> None:
        with open(fifo, "rb") as reader:
            lines.extend(reader)

    def publish(publisher: towpath.Publisher) -> None:
        nonlocal sent
        while not stopping.is_set():
            publisher.publish(b"%d" % sent, timeout=DEADLINE_S)
            sent += 1
            stopping.wait(0.001)  # the ring has room for what comes in a minute

    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as later:
        listener.bind(str(manager.path) + "-door")
        listener.listen()
        with manager.starts(tmp_path, LOCAL_ONLY, listener):
            client = later.enter_context(towpath.connect(listener.getsockname()))
            client.declare("c", ring_bytes=1 << 22)
            binding = client.bind("c", f"fifo:{fifo}", direction="out")
            reading = threading.Thread(target=read)
            reading.start()
            publishing = threading.Thread(target=publish, args=(client.publisher("c"),))
            publishing.start()
            later.callback(stopping.set)
            wait_until(lambda: len(lines) > 100)
        for _ in range(2):
            with manager.starts(tmp_path, LOCAL_ONLY, listener):
                enough = sent + 100
                wait_until(lambda: len(lines) > enough, lambda: f"{len(lines)} of {enough}")  # noqa: B023
        with manager.starts(tmp_path, LOCAL_ONLY, listener):
            stopping.set()
            publishing.join(DEADLINE_S)
            wait_until(lambda: len(lines) >= sent, lambda: f"{len(lines)} of {sent}")
            client.unbind(binding.id)
            reading.join(DEADLINE_S)
            assert not reading.is_alive(), "somebody has the FIFO open still"
    assert lines == [b"%d\n" % number for number in range(sent)]
    assert not fifo.exists()


class Traffic:
    """A publisher, and perhaps a writer into a FIFO, each in a thread, and what their subscriber gets."""

    def __init__(self, client: towpath.Client, fifo: Path | None) -> None:
        self.subscription = client.subscribe("c")
        self.publisher = client.publisher("c")
        self.stopping = threading.Event()
        self.sent = {b"ring": 0}
        self.threads = [threading.Thread(target=self.publish)]
        if fifo is not None:
            self.sent[b"fifo"] = 0
            self.threads.append(threading.Thread(target=self.write, args=(fifo,)))
        self.got: dict[bytes, list[int]] = {kind: [] for kind in self.sent}

    def __enter__(self) -> Traffic:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()

    def publish(self) -> None:
        while not self.stopping.is_set():
            self.publisher.publish(b"ring:%d" % self.sent[b"ring"], timeout=DEADLINE_S)
            self.sent[b"ring"] += 1

    def write(self, path: Path) -> None:
        with open(path, "wb", buffering=0) as fifo:
            while not self.stopping.is_set():
                line = b"fifo:%d\n" % self.sent[b"fifo"]
                fifo.write(line[:4])  # the daemon may end between the two
                fifo.write(line[4:])
                self.sent[b"fifo"] += 1

    def wait_flow(self) -> None:
        """Receive until something was published and written, and came, that was not before this call."""
        enough = {kind: count + 50 for kind, count in self.sent.items()}
        self.receive_until(lambda: all(len(self.got[kind]) > count for kind, count in enough.items()))

    def receive_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, {kind: len(numbers) for kind, numbers in self.got.items()}
            self.receive(DEADLINE_S)

    def receive(self, timeout: float) -> None:
        for message in self.subscription.receive_many(timeout=timeout):
            kind, _, number = message.payload.partition(b":")
            self.got[kind].append(int(number))

    def end(self) -> None:
        """Let it end, and see that everything came once and in order."""
        self.stopping.set()
        while any(thread.is_alive() for thread in self.threads):
            with contextlib.suppress(Timeout):
                self.receive(0.05)
        self.receive_until(lambda: all(len(self.got[kind]) >= self.sent[kind] for kind in self.sent))
        for kind, numbers in self.got.items():
            assert numbers == list(range(self.sent[kind]))
