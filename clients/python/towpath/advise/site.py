"""Where measurements happen: a temporary directory, and a daemon of its own for what goes through Towpath."""

from __future__ import annotations

import itertools
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Final

from towpath.errors import Unavailable

READY_S: Final = 30.0
STOP_S: Final = 10.0
_CONFIG: Final = """\
[zeromq]
sub = "tcp://127.0.0.1:0"
push = "tcp://127.0.0.1:0"
rpc = "tcp://127.0.0.1:0"
[grpc]
listen = "127.0.0.1:0"
"""


_NO_GATEWAYS: Final = "zeromq = false\ngrpc = false\n"


class Site:
    """A directory and a daemon, the latter started when something asks for it; a context manager.

    Args:
        has_gateways: messages go through the daemon's gateways too.

    Attributes:
        directory: with a short name, as the paths of sockets must be.
    """

    def __init__(self, *, has_gateways: bool = False) -> None:
        self._config = _CONFIG if has_gateways else _NO_GATEWAYS
        self.directory = Path(tempfile.mkdtemp(prefix="advise-"))
        self._numbers = itertools.count(1)
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Site:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._daemon is not None:
            self._daemon.terminate()
            try:
                self._daemon.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def word(self) -> str:
        """A name that was not used yet."""
        return f"{self.directory.name}-{next(self._numbers)}"

    @cached_property
    def socket(self) -> str:
        """The daemon's.

        Raises:
            Unavailable: it cannot be started.
        """
        config, log = self.directory / "towpath.toml", self.directory / "log"
        config.write_text(self._config)
        path = self.directory / "towpath.sock"
        command = [sys.executable, "-m", "towpath", "serve", "--config", str(config)]
        command += ["--runtime-dir", str(self.directory), "--state-dir", str(self.directory / "state")]
        with log.open("wb") as output:
            self._daemon = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        deadline_s = time.monotonic() + READY_S
        while " daemon.ready " not in log.read_text(errors="replace"):
            if self._daemon.poll() is not None or time.monotonic() > deadline_s:
                lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise Unavailable(f"no daemon could be started to measure with: {lines[-1]}", hint="")
            time.sleep(0.02)
        return str(path)

    def endpoint(self, gateway: str, name: str) -> str:
        """Where a gateway of the daemon listens.

        Raises:
            Unavailable: it does not.
        """
        import towpath

        with towpath.connect(self.socket) as client:
            for each in client.status().gateways:
                if each.name == gateway and name in each.endpoints:
                    return each.endpoints[name]
        raise Unavailable(f"the daemon's gateway {gateway} does not run", hint="is its package installed?")


def free_port() -> int:
    """A TCP port of the loopback that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
