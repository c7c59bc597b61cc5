"""A real daemon for a test: `towpath serve` with its core and gateways, in directories and on ports of its
own.

Theory of operation
    The daemon's log is read by a thread as it is written, so that a test waits for an event by waiting for
    its line, not for a time. The daemon is ready when it says so: the core is, and each gateway runs or has
    failed to. Whatever goes wrong in the ``with`` block carries the log with it.

Invariants
    No port is fixed and no directory shared, so daemons of tests may run side by side. At the end no process
    is left, and a daemon that did not end by itself with 0 after SIGTERM fails the test.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import towpath
from tests.support.deadlines import DEADLINE_S as DEADLINE_S  # handed on

SERVE: Final = Path(__file__).with_name("serve.py")

LOCAL_ONLY: Final = "zeromq = false\ngrpc = false\n"
"""Configuration for tests that need none of the other gateways: they take a third of its start."""

FREE_PORTS: Final = {
    "zeromq": dict.fromkeys(("sub", "push", "rpc"), "tcp://127.0.0.1:0"),
    "grpc": {"listen": "127.0.0.1:0"},
}


class DaemonHandle:
    """A running daemon.

    Attributes:
        process: the supervisor, ``towpath serve``.
        socket: where clients connect; also ``TOWPATH_SOCKET`` in ``environment``.
        environment: of the daemon, and good for programs that shall find it.
        config: the TOML file; change it and call :meth:`reload`.
    """

    def __init__(
        self, process: subprocess.Popen[str], *, socket: Path, config: Path, environment: dict[str, str]
    ) -> None:
        self.process = process
        self.socket = socket
        self.config = config
        self.environment = environment
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._has_ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self._lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._has_ended = True
            self._news.notify_all()

    # ---- the log ----

    def log(self) -> str:
        """Return all that the daemon and its children have logged."""
        with self._news:
            return "\n".join(self._lines)

    def mark(self) -> int:
        """Return the log's length in lines, for ``wait_log(..., after=)``."""
        with self._news:
            return len(self._lines)

    def wait_log(self, pattern: str, *, after: int = 0, timeout: float = DEADLINE_S) -> str:
        """Wait for a line of the log.

        Args:
            pattern: a regular expression, searched for in each line.
            after: a :meth:`mark`; lines before it do not count.

        Returns:
            The first such line.

        Raises:
            AssertionError: it did not come in time, or the daemon has ended without it.
        """
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                for line in self._lines[after:]:
                    if re.search(pattern, line):
                        return line
                after = max(after, len(self._lines))
                left = deadline - time.monotonic()
                if self._has_ended or not self._news.wait(left if left > 0 else 0):
                    raise AssertionError(f"no {pattern!r} in the daemon's log")

    # ---- what it says of itself ----

    def status(self) -> towpath.Status:
        """Return the daemon's status, over a connection of its own."""
        with towpath.connect(str(self.socket), timeout=DEADLINE_S) as client:
            return client.status()

    def gateway(self, name: str) -> towpath.GatewayInfo:
        """Return what the status says of a gateway."""
        return next(gateway for gateway in self.status().gateways if gateway.name == name)

    def endpoint(self, gateway: str, name: str) -> str:
        """Return where a gateway listens: ``endpoint("zeromq", "push")``."""
        return self.gateway(gateway).endpoints[name]

    @property
    def core_pid(self) -> int:
        """The pid of the core that was started last."""
        started = re.findall(r" core\.started pid=([0-9]+)", self.log())
        return int(started[-1])

    # ---- what is done to it ----

    def kill_core(self) -> None:
        """Kill the core as `kill -9` does, and wait until its successor is ready."""
        mark = self.mark()
        os.kill(self.core_pid, signal.SIGKILL)
        self.wait_log(r" core\.exited ", after=mark)
        self.wait_log(r" core\.ready ", after=mark)

    @contextlib.contextmanager
    def without_core(self) -> Iterator[None]:
        """Kill the core as `kill -9` does, and have none for as long as the block lasts."""
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            os.kill(self.core_pid, signal.SIGKILL)
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def kill_gateway(self, name: str) -> None:
        """Kill a gateway as `kill -9` does, and wait until its successor runs."""
        killed = self.gateway(name).pid
        os.kill(killed, signal.SIGKILL)
        self.wait_gateway(name, but_not=killed)

    def wait_gateway(self, name: str, *, but_not: int = 0) -> towpath.GatewayInfo:
        """Wait until a gateway runs, in another process than ``but_not``; return its line of the status."""

        def runs() -> bool:
            gateways = [gateway for gateway in self.status().gateways if gateway.name == name]
            return any(gateway.state == "running" and gateway.pid != but_not for gateway in gateways)

        wait_until(runs, self.log)
        return self.gateway(name)

    def reload(self) -> str:
        """Have the configuration read again; return the line that says how it went."""
        mark = self.mark()
        self.process.send_signal(signal.SIGHUP)
        return self.wait_log(r" (daemon\.reloaded|config\.refused)\b", after=mark)

    def stop(self) -> int:
        """End the daemon with SIGTERM, wait for it, and return its exit status."""
        self.process.terminate()
        return self.wait()

    def wait(self, timeout: float = DEADLINE_S) -> int:
        """Wait until the daemon has ended and all its log is read; return its exit status."""
        status = self.process.wait(timeout)
        self._reader.join(timeout)
        return status


def wait_until(condition: Callable[[], bool], describe: Callable[[], str] = str) -> None:
    """Wait for a condition that nothing tells us of.

    Raises:
        AssertionError: it did not become true in time; with what ``describe`` returns then.
    """
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen in time: {describe()}"
        time.sleep(0.01)


@contextlib.contextmanager
def running_daemon(
    tmp_path: Path,
    config: str = "",
    *,
    env: Mapping[str, str] | None = None,
    arguments: tuple[str, ...] = (),
    program: tuple[str, ...] = ("-P", str(SERVE)),
) -> Iterator[DaemonHandle]:
    """Run a daemon.

    Args:
        tmp_path: gets ``towpath.toml`` and the state directory ``state``. Two runs with one ``tmp_path``, one
            after the other, are the same daemon restarted.
        config: TOML; endpoints that it leaves out are on free ports. Which gateways run follows from it as
            always.
        env: added to the environment.
        arguments: added to the command line.
        program: what Python runs; by default the daemon as it is, but that the pauses before it starts
            core and gateways again do not grow.
    """
    file = tmp_path / "towpath.toml"
    file.write_text(config)
    # Not below tmp_path, whose name may be longer than the path of a socket can be.
    runtime_dir = Path(tempfile.mkdtemp(prefix="towpath-test-"))
    socket = runtime_dir / "towpath.sock"
    environment = {**os.environ, "TOWPATH_SOCKET": str(socket), **(env or {})}
    command = [
        *(sys.executable, *program, "serve", "--config", str(file)),
        *("--runtime-dir", str(runtime_dir), "--state-dir", str(tmp_path / "state")),
        *_free_ports(config),
        *arguments,
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
    )
    daemon = DaemonHandle(process, socket=socket, config=file, environment=environment)
    try:
        daemon.wait_log(r" daemon\.ready ")
        yield daemon
        if process.poll() is None:
            assert daemon.stop() == 0, "the daemon ended badly"
    except BaseException as failure:
        failure.add_note(f"---- the daemon's log ----\n{daemon.log()}")
        raise
    finally:
        if process.poll() is None:
            # Its children die with it.
            process.kill()
        daemon.wait()
        assert process.stderr is not None
        process.stderr.close()
        shutil.rmtree(runtime_dir)


def _free_ports(config: str) -> list[str]:
    """Return the flags that put each endpoint which the configuration leaves out on a free port."""
    document = tomllib.loads(config)
    named = [name for name in FREE_PORTS if isinstance(document.get(name), dict)]
    wanted = [name for name in named or FREE_PORTS if document.get(name) is not False]
    return [
        f"--set={gateway}.{key}={address}"
        for gateway in wanted
        for key, address in FREE_PORTS[gateway].items()
        if key not in document.get(gateway, {})
    ]


Daemon = DaemonHandle
