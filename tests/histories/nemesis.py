"""Makes a history: real processes take locks, while they are killed and stopped, the core is killed, and the
daemon restarted.

``python -m tests.histories.nemesis --seed N --blows M`` makes the one that a test has named (as far as the
scheduler lets it be the same), and says what is wrong with it.

Theory of operation
    Blows fall one after the other, by a generator's choice (:class:`Blow`). After each, every worker must be
    given locks again: one that was lost with its holder, or a waiter that was forgotten, is found by that. At
    the end all workers stop of themselves, and nobody may hold anything any more.

    What must hit a process while it holds something is not left to luck: it is asked to, and does it to
    itself right after its next grant (``plan.Ask``).

    The daemon's runtime directory stays the same over its restarts, so that clients find it again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from enum import Enum
from pathlib import Path
from typing import Final

import towpath
from tests.histories import plan, records
from tests.histories.checker import History, check
from tests.project.project_files import ROOT
from tests.support.daemon import wait_until
from towpath.errors import TowpathError
from towpath.locks.model import Listing

WORKERS: Final = 4
STOPPED_S: Final = (0.0, 0.02, 0.2)
"""For how long a process is stopped."""
SHOWN: Final = 20
"""Of what is wrong with a history: how much is said."""
STEPS: Final = 3
"""How often a worker must have been given a lock again before the next blow falls."""
EXPECTED: Final = frozenset(
    (
        "LOCK_HELD",
        "TIMEOUT",
        "DEADLOCK",
        "SESSION_LOST",
        "LOCK_REVOKED",
        "CONNECTION_LOST",
        "UNAVAILABLE",
        "FENCED",
    )
)
"""What a worker may be refused with."""


class Blow(Enum):
    """What is done, and how often among a hundred. STOP_HOLDER: until another has been given what it held.
    KEEP_LOCK, KEEP_PERMITS: somebody keeps what it has been given for long."""

    KILL_WORKER = 35
    STOP_WORKER = 19
    STOP_HOLDER = 4
    KEEP_LOCK = 5
    KEEP_PERMITS = 2
    KILL_CORE = 20
    RESTART_DAEMON = 8
    KILL_DAEMON = 7


class LastingDaemon:
    """A daemon that can be ended in any way, and comes back to the same directories.

    Args:
        directory: for its log and state.
        bug: of the core.
    """

    def __init__(self, directory: Path, bug: str) -> None:
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOWPATH_HISTORY_BUG": bug}
        self._runtime = Path(tempfile.mkdtemp(prefix="towpath-test-"))
        self._log = directory / "daemon.log"
        config = directory / "towpath.toml"
        config.write_text("zeromq = false\ngrpc = false\n")
        self._command = [
            sys.executable,
            "-m",
            "tests.histories.programs.serve",
            "serve",
            "--runtime-dir",
            str(self._runtime),
        ]
        self._command += ["--state-dir", str(directory / "state"), "--config", str(config)]
        self.socket = self._runtime / "towpath.sock"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        with self._log.open("ab") as log:
            before = log.tell()
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stderr=log, env=self._environment
            )
        wait_until(
            lambda: " daemon.ready " in self._news(before) or self.process.poll() is not None, self.log
        )
        assert self.process.poll() is None, self.log()

    def log(self) -> str:
        """Return all that it has logged."""
        return self._news(0)

    def _news(self, since_bytes: int) -> str:
        with self._log.open("rb") as log:
            log.seek(since_bytes)
            return log.read().decode(errors="replace")

    def kill_core(self) -> None:
        """Kill the core, and wait for the next one."""
        before = self._log.stat().st_size
        os.kill(int(re.findall(r" core\.started pid=([0-9]+)", self.log())[-1]), signal.SIGKILL)
        wait_until(lambda: " core.ready " in self._news(before), self.log)

    def restart(self, how: signal.Signals) -> None:
        """End it, and start it again."""
        self.process.send_signal(how)
        self.process.wait(60)
        self.start()

    def close(self) -> None:
        """End it for good."""
        self.process.terminate()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            shutil.rmtree(self._runtime, ignore_errors=True)


class Process:
    """One worker.

    Attributes:
        steps: how often it has been given something; this and the others as of the last :meth:`look`.
        tokens: of what it was given last.
        newest: the tokens of its latest exclusive grants, by lock.
        fates: what was done to it.
    """

    def __init__(self, directory: Path, number: int, socket: Path, seed: int) -> None:
        self.name = f"worker{number}"
        self.file = directory / f"{self.name}.jsonl"
        self._read_bytes = 0
        self._mode = ""
        self.steps = 0
        self.tokens: dict[str, int] = {}
        self.newest: dict[str, int] = {}
        self.fates: list[records.Event] = []
        program = ROOT / "tests" / "histories" / "programs" / "worker.py"
        command = [
            sys.executable,
            str(program),
            str(socket),
            str(self.file),
            str(directory / "stop"),
            str(seed),
        ]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )

    def signal(self, which: signal.Signals, fate: str) -> None:
        """Send a signal, having noted it."""
        self.fates.append({"kind": fate, "at_ns": time.monotonic_ns()})
        self.process.send_signal(which)

    def stop(self) -> None:
        """Stop it."""
        self.signal(signal.SIGSTOP, "stopped")
        self.wait_stopped()

    def ask(self, what: plan.Ask) -> None:
        """Ask it for something that it does with its next grant."""
        what.of(self.file).touch()

    def wait_stopped(self) -> None:
        """Wait until it does not go on."""
        status = Path(f"/proc/{self.process.pid}/stat")
        wait_until(
            lambda: status.read_text().rpartition(")")[2].split()[0] == "T", lambda: f"{self.name} goes on"
        )

    def look(self) -> None:
        """Take in what it has told since."""
        if not self.file.exists():
            return
        with self.file.open("rb") as file:
            file.seek(self._read_bytes)
            news = file.read()
        news = news[: news.rfind(b"\n") + 1]
        self._read_bytes += len(news)
        for event in map(json.loads, news.splitlines()):
            if event["kind"] == "call":
                self._mode = event["mode"]
            elif event["kind"] == "got":
                self.steps += 1
                self.tokens = event["tokens"]
                if self._mode == "exclusive":
                    self.newest.update(self.tokens)

    def finish(self) -> str:
        """Wait for its end; return what it complained of."""
        _, complaint = self.process.communicate(timeout=60)
        return complaint


class Nemesis:
    """Runs one history.

    Args:
        directory: for all files.
        seed: of the blows, and of what the workers do.
        bug: one that the core has; see ``programs.core``.
    """

    def __init__(self, directory: Path, seed: int, bug: str = "") -> None:
        self._directory = directory
        self._random = random.Random(seed)
        self._workers: list[Process] = []
        self._gone: list[Process] = []
        self._daemon = LastingDaemon(directory, bug)
        self.blows: list[str] = []

    def run(self, blows: int | list[Blow]) -> None:
        """Let so many blows fall, or these.

        Raises:
            AssertionError: workers did not go on, ended badly, or left something behind.
        """
        with towpath.connect(str(self._daemon.socket)) as client:
            for name in plan.PLAIN:
                client.declare(f"{name}.value", kind="state", durable=True)
        for _ in range(WORKERS):
            self._start()
        self._wait_progress()
        if isinstance(blows, int):
            blows = self._random.choices(list(Blow), [kind.value for kind in Blow], k=blows)
        for kind in blows:
            self.blows.append(kind.name)
            self._strike(kind)
            self._wait_progress()
        (self._directory / "stop").touch()
        for worker in self._workers:
            complaint = worker.finish()
            assert worker.process.returncode == 0, f"{worker.name}: {complaint}"
        wait_until(self._is_idle, lambda: "locks are still held")

    def _start(self) -> None:
        number = len(self._workers) + len(self._gone)
        seed = self._random.randrange(1 << 30)
        self._workers.append(Process(self._directory, number, self._daemon.socket, seed))

    def _strike(self, kind: Blow) -> None:
        match kind:
            case Blow.KILL_WORKER:
                worker = self._workers.pop(self._random.randrange(WORKERS))
                worker.signal(signal.SIGKILL, "killed")
                worker.finish()
                self._gone.append(worker)
                self._start()
            case Blow.STOP_WORKER:
                worker = self._random.choice(self._workers)
                worker.stop()
                time.sleep(self._random.choice(STOPPED_S))  # the blow itself; nothing is waited for
                worker.signal(signal.SIGCONT, "continued")
            case Blow.STOP_HOLDER:
                self._stop_holder(self._random.choice(self._workers))
            case Blow.KEEP_LOCK:
                self._keep(self._random.choice(self._workers), plan.Ask.KEEP_LOCK)
            case Blow.KEEP_PERMITS:
                self._keep(self._random.choice(self._workers), plan.Ask.KEEP_PERMITS)
            case Blow.KILL_CORE:
                self._daemon.kill_core()
            case Blow.RESTART_DAEMON:
                self._daemon.restart(signal.SIGTERM)
            case Blow.KILL_DAEMON:
                self._daemon.restart(signal.SIGKILL)

    def _stop_holder(self, worker: Process) -> None:
        """Have one stop that is about to write, and go on when another has what it held."""
        worker.ask(plan.Ask.STOP)
        worker.wait_stopped()
        self._daemon.kill_core()  # which does not wait long for it to come back
        worker.look()

        def is_superseded() -> bool:
            for other in self._workers:
                other.look()
            return any(
                other.newest.get(lock, 0) > token
                for lock, token in worker.tokens.items()
                for other in self._workers
            )

        wait_until(is_superseded, lambda: f"nobody has what {worker.name} held; {self._locks()}")
        worker.signal(signal.SIGCONT, "continued")

    def _keep(self, worker: Process, ask: plan.Ask) -> None:
        """Have one keep what it is given, and wait until it does."""
        worker.ask(ask)
        wait_until(
            lambda: not ask.of(worker.file).exists(),
            lambda: f"{worker.name} is given nothing; {self._locks()}",
        )

    def _wait_progress(self) -> None:
        for worker in self._workers:
            worker.look()
        wanted = {worker: worker.steps + STEPS for worker in self._workers}

        def have_gone_on() -> bool:
            for worker in tuple(wanted):
                assert worker.process.poll() is None, f"{worker.name} has ended: {worker.finish()}"
                worker.look()
                if worker.steps >= wanted[worker]:
                    del wanted[worker]
            return not wanted

        wait_until(
            have_gone_on,
            lambda: f"after {self.blows[-1:]} {[each.name for each in wanted]} wait; {self._locks()}",
        )

    def _locks(self) -> Listing:
        with towpath.connect(str(self._daemon.socket)) as client:
            return client.list_locks("history.")

    def _is_idle(self) -> bool:
        try:
            locks = self._locks().locks
        except TowpathError:
            return False
        return not any(lock.holders or lock.waiters for lock in locks)

    def history(self) -> History:
        """Return what was told."""
        history = History()
        for worker in (*self._gone, *self._workers):
            history.add(worker.name, records.read(worker.file), worker.fates)
        return history

    def close(self) -> None:
        """End everything."""
        for worker in self._workers:
            worker.process.kill()
            worker.process.wait()
            if worker.process.stderr is not None:
                worker.process.stderr.close()
        self._daemon.close()


def make(directory: Path, seed: int, blows: int | list[Blow], bug: str = "") -> tuple[History, list[str]]:
    """Make a history; return it, and what is wrong with it."""
    nemesis = Nemesis(directory, seed, bug)
    try:
        nemesis.run(blows)
        history = nemesis.history()
        unexpected = sorted(set(history.codes) - EXPECTED)
        found = [f"workers were refused with {code}" for code in unexpected]
        return history, found + check(history, {plan.SEMAPHORE: plan.PERMITS})
    finally:
        nemesis.close()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.histories.nemesis", description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--blows", type=int, default=25)
    parser.add_argument("--bug", default="", help="one that the core shall have; see programs/core.py")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="towpath-history-"))
    history, found = make(directory, options.seed, options.blows, options.bug)
    print(
        f"{len(history.holds)} grants, {len(history.writes)} writes, {dict(history.codes)}; see {directory}"
    )
    print("\n".join(found[:SHOWN]) or "nothing is wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
