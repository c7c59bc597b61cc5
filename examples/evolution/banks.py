"""The two banks of the canal: a daemon on each, a queue `orders` on each, and the commands that were given.

On the left bank is the producer, on the right one the consumer. Both daemons are on this machine, in a
temporary directory; they know nothing of each other, so what crosses is what somebody binds.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import towpath

PATIENCE_S = 60
GATEWAYS = """
[zeromq]
sub = "tcp://127.0.0.1:0"
push = "tcp://127.0.0.1:0"
rpc = "tcp://127.0.0.1:0"
[grpc]
listen = "127.0.0.1:0"
"""
NO_GATEWAYS = "zeromq = false\ngrpc = false\n"
CHANNEL = "orders"


def wait_for(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for what nothing tells us of; raises TimeoutError."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {patience_s} s in vain: {what}")
        time.sleep(0.01)


@dataclass(frozen=True)
class Bank:
    """A running daemon with its queue.

    Attributes:
        environment: in which `towpath` finds it.
    """

    name: str
    socket: str
    client: towpath.Client
    environment: dict[str, str]

    def command(self, *words: str) -> None:
        """Run `towpath WORDS` here, and show it."""
        print(f"   {self.name + '$':<7}towpath {shlex.join(words)}", flush=True)
        run = subprocess.run(
            ["towpath", *words], env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S
        )
        if run.returncode != 0:
            raise RuntimeError(run.stderr)

    def endpoint(self, gateway: str, name: str) -> str:
        """Where a gateway listens, without the scheme."""
        for each in self.client.status().gateways:
            if each.name == gateway:
                return each.endpoints[name].removeprefix("tcp://")
        raise RuntimeError(f"no gateway {gateway}")

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start `towpath WORDS` here."""
        return subprocess.Popen(["towpath", *words], env=self.environment)


@contextlib.contextmanager
def bank(name: str, root: Path, *, has_gateways: bool) -> Iterator[Bank]:
    """Run a daemon, declare the queue, and end it all."""
    place = root / name
    place.mkdir()
    config, log = place / "towpath.toml", place / "daemon.log"
    config.write_text(GATEWAYS if has_gateways else NO_GATEWAYS)
    socket = place / "towpath.sock"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = {**os.environ, "PATH": path, "TOWPATH_SOCKET": str(socket)}
    where = ["--runtime-dir", str(place), "--state-dir", str(place / "state")]
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            ["towpath", "serve", "--config", str(config), *where], env=environment, stderr=output
        )
    try:
        wait_for(lambda: " daemon.ready " in log.read_text() or daemon.poll() is not None, "the daemon")
        if daemon.poll() is not None:
            raise RuntimeError(log.read_text())
        with towpath.connect(str(socket), timeout=PATIENCE_S) as client:
            client.declare(CHANNEL, kind="queue")
            yield Bank(name, str(socket), client, environment)
    finally:
        daemon.terminate()
        daemon.wait(PATIENCE_S)
