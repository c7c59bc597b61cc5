"""Every mechanism to every other and to programs afar: Node.js, npm's ``zeromq`` and ``@grpc/grpc-js``."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import towpath
from tests.bridge.matrix import ALL, COUNT, MECHANISMS, REMOTES, End, Mechanism, Run, run
from tests.bridge.test_matrix import check_published, check_received
from tests.docs.markdown import ROOT
from tests.support.daemon import DaemonHandle, running_daemon
from tests.support.deadlines import DEADLINE_S
from towpath.model import BindingReport, Direction

pytestmark = [pytest.mark.long, pytest.mark.timeout(8 * DEADLINE_S)]
SOURCES = Path(__file__).parent / "js"
INSTALLED = ROOT / "build" / "npm"


class RemoteEnd(End):
    """A program that speaks to a gateway; there is no binding."""

    def __init__(
        self, mechanism: Mechanism, direction: Direction, folder: Path, daemon: DaemonHandle
    ) -> None:
        super().__init__(mechanism, direction, folder, 0)
        which = {"in": "push", "out": "sub"}[direction] if mechanism.foreign == "zeromq" else "listen"
        self._endpoint = daemon.endpoint(mechanism.foreign, which)
        self._channel = ""

    @property
    def _argv(self) -> list[str]:
        what, *record = ["send"] if self._direction == "in" else ["receive", str(self._file)]
        program = ["node", str(INSTALLED / "remote_end.js"), what, self.mechanism.foreign]
        return [*program, self._endpoint, self._channel, str(COUNT), *record]

    def open(self, client: towpath.Client, channel: str) -> None:
        """Have the program there."""
        self._channel = channel
        self._start()

    def report(self, client: towpath.Client, channel: str) -> None:
        """Nothing is bound."""

    def received(
        self, report: Callable[[], BindingReport] | None, published: Callable[[], int]
    ) -> list[bytes]:
        """Wait until the program has received all that it will; return that."""
        assert self.process is not None and self.process.wait(DEADLINE_S) == 0
        return self._file.read_bytes().splitlines()


@pytest.fixture(scope="module")
def packages() -> None:
    """The packages, installed once below build/."""
    stated = (SOURCES / "package.json").read_text()
    INSTALLED.mkdir(parents=True, exist_ok=True)
    package = INSTALLED / "package.json"
    if not (INSTALLED / "node_modules").exists() or not package.exists() or package.read_text() != stated:
        package.write_text(stated)
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
        subprocess.run(command, cwd=INSTALLED, check=True, timeout=4 * DEADLINE_S)
    shutil.copy(SOURCES / "remote_end.js", INSTALLED)


@pytest.fixture(scope="module")
def daemon(packages: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path_factory.mktemp("daemon")) as handle:
        yield handle


@pytest.mark.parametrize("source", ALL)
def test_ten_thousand_with_programs_of_npm(daemon: DaemonHandle, source: str) -> None:
    """From one into all, at once; the programs afar among them."""
    with (
        towpath.connect(str(daemon.socket), timeout=DEADLINE_S) as client,
        tempfile.TemporaryDirectory(prefix="towpath-matrix-") as name,
    ):
        folder = Path(name)

        def end(name: str, direction: Direction) -> End:
            if name in REMOTES:
                return RemoteEnd(REMOTES[name], direction, folder, daemon)
            return End(MECHANISMS[name], direction, folder, daemon.gateway("bridge").pid)

        made: Run = run(client, end(source, "in"), [end(sink, "out") for sink in ALL])
    check_published(source, made)
    for sink in ALL:
        check_received(sink, made)
