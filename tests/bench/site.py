"""Where measurements happen: a directory, a placement, and the servers that some mechanisms need.

Theory of operation
    A site belongs to one placement. The harness puts itself there first (``sched_setaffinity``), so that all
    that is started from it, servers and forked processes alike, is there too. A server is started when the
    first mechanism asks for it and runs, idle, until the site is closed.

Invariants
    Loopback and UNIX sockets only; no fixed port. No server outlives the site.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

from tests.project.project_files import ROOT

Placement = Literal["free", "one core", "two cores"]
PLACEMENTS: Final[tuple[Placement, ...]] = ("free", "one core", "two cores")
"""Where the scheduler likes; everything on one core; the ends of a round trip on a core each (no other
pattern), because a free pair is often put on one core, and waking across is another thing."""
PROGRAMS_VARIABLE: Final = "TOWPATH_BENCH_PROGRAMS"
"""Where the peers' packages have put programs; set by the harness when it moves to its environment."""
READY_S: Final = 30.0
DAEMON_TOML: Final = """\
[zeromq]
sub = "tcp://127.0.0.1:0"
push = "tcp://127.0.0.1:0"
rpc = "tcp://127.0.0.1:0"
[grpc]
listen = "127.0.0.1:0"
"""


def free_port() -> int:
    """A TCP port of the loopback that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait for what nothing tells us of.

    Raises:
        RuntimeError: it did not come in time.
    """
    deadline = time.monotonic() + READY_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} did not come up in {READY_S:.0f} s")
        time.sleep(0.02)


def accepts(port: int) -> bool:
    """Whether somebody listens on the loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def program(name: str) -> str | None:
    """Where a program is: beside the peers' packages, or on the path."""
    return shutil.which(
        name, path=f"{os.environ.get(PROGRAMS_VARIABLE, '')}:{os.environ.get('PATH', os.defpath)}"
    )


class Daemon:
    """``towpath serve`` with its gateways, in directories and on ports of its own."""

    def __init__(self, directory: Path, config: str = DAEMON_TOML) -> None:
        # The path of a socket is short, and a temporary directory's may not be.
        self._runtime_dir = Path(tempfile.mkdtemp(prefix="towpath-bench-"))
        self.socket = str(self._runtime_dir / "towpath.sock")
        file = directory / "towpath.toml"
        file.write_text(config)
        self.log = directory / "daemon.log"
        command = [sys.executable, "-m", "towpath", "serve", "--config", str(file)]
        command += ["--runtime-dir", str(self._runtime_dir), "--state-dir", str(directory / "state")]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_for(lambda: " daemon.ready " in self.log.read_text(), f"the daemon (see {self.log})")

    def status(self) -> dict[str, Any]:
        """``towpath status --json``."""
        command = [sys.executable, "-m", "towpath", "status", "--json", "--socket", self.socket]
        answer: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        return answer

    def close(self) -> None:
        """End it, and all that it started."""
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self._runtime_dir, ignore_errors=True)


class Site:
    """One placement's directory and servers; a context manager."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self._before = os.sched_getaffinity(0)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._daemon: Daemon | None = None

    def pin(self, end: int) -> None:
        """Put this process, which is one end of a round trip, where the placement wants it."""
        if self.placement == "two cores":
            os.sched_setaffinity(0, {self.core(end)})

    def core(self, end: int) -> int:
        """The core of one end (0 or 1) where each has its own; -1 elsewhere."""
        return sorted(self._before)[-1 - end % 2] if self.placement == "two cores" else -1

    def __enter__(self) -> Site:
        self.directory = Path(tempfile.mkdtemp(prefix="towpath-bench-"))
        if self.placement == "one core":
            os.sched_setaffinity(0, {max(self._before)})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._daemon is not None:
            self._daemon.close()
        for process in self._processes:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        os.sched_setaffinity(0, self._before)
        shutil.rmtree(self.directory, ignore_errors=True)

    # ---- Towpath ----

    @property
    def daemon(self) -> Daemon:
        """The daemon, started when first asked for."""
        if self._daemon is None:
            self._daemon = Daemon(self.directory)
        return self._daemon

    @property
    def socket(self) -> str:
        """The daemon's one door."""
        return self.daemon.socket

    @cached_property
    def endpoints(self) -> dict[str, dict[str, str]]:
        """Where the gateways listen: gateway, then endpoint."""
        gateways = self.daemon.status()["gateways"]
        return {gateway["name"]: gateway["endpoints"] for gateway in gateways}

    # ---- peers' servers ----

    def run(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a program that runs until the site is closed."""
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._processes.append(process)
        return process

    @cached_property
    def futex_program(self) -> str:
        """The compiled futex ping-pong."""
        return self._compiled("futex_ping")

    @cached_property
    def ring_program(self) -> str:
        """The compiled ping-pong over the ring."""
        return self._compiled("ring_ping", f"-I{ROOT / 'clients' / 'c'}", "-pthread")

    def _compiled(self, name: str, *flags: str) -> str:
        binary = str(self.directory / name)
        source = str(Path(__file__).parent / "mechanisms" / f"{name}.c")
        command = ["gcc", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", *flags, "-o", binary, source]
        subprocess.run(command, check=True)
        return binary

    @cached_property
    def nats_port(self) -> int:
        """A nats-server's."""
        port = free_port()
        server = program("nats-server")
        assert server
        self.run(server, "-a", "127.0.0.1", "-p", str(port))
        wait_for(lambda: accepts(port), "nats-server")
        return port

    @cached_property
    def redis_port(self) -> int:
        """A redis-server's, which keeps nothing on disk."""
        port = free_port()
        server = program("redis-server")
        assert server
        self.run(
            server, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(self.directory)
        )
        wait_for(lambda: accepts(port), "redis-server")
        return port

    @cached_property
    def etcd_port(self) -> int:
        """That of an etcd of one server, with its log on disk."""
        server, port, peers = program("etcd"), free_port(), f"http://127.0.0.1:{free_port()}"
        assert server
        clients = f"http://127.0.0.1:{port}"
        self.run(
            *(server, "--data-dir", str(self.directory / "etcd"), "--log-level", "error"),
            *("--listen-client-urls", clients, "--advertise-client-urls", clients),
            *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
            *("--initial-cluster", f"default={peers}"),
        )
        wait_for(lambda: accepts(port), "etcd")
        return port

    @cached_property
    def proxy_ports(self) -> tuple[int, int]:
        """A ``zmq.proxy``: where publishers connect, and where subscribers do."""
        ports = free_port(), free_port()
        self.run(sys.executable, "-m", "tests.bench.mechanisms.zeromq_proxy", *map(str, ports))
        for port in ports:
            wait_for(lambda port=port: accepts(port), "the proxy")  # type: ignore[misc]
        return ports
