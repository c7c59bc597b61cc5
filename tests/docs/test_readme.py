"""The README's commands and programs, run as they stand there, and what it says they print.

What is changed before a block is run: the ports, because those of the README may be in use, and /tmp, so that
runs do not meet. ``.venv`` and ``clients`` are there by links.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

import towpath
from tests.docs.markdown import ROOT, Block, blocks, code_spans, links, matches
from tests.support.daemon import DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S, PROGRAM_S

README: Final = list(blocks("README.md"))
PORTS: Final = {
    "127.0.0.1:5556": ("zeromq", "sub"),
    "127.0.0.1:5557": ("zeromq", "push"),
    "127.0.0.1:50551": ("grpc", "listen"),
}
FREE_PORTS: Final = {
    "TOWPATH_ZEROMQ_SUB": "tcp://127.0.0.1:0",
    "TOWPATH_ZEROMQ_PUSH": "tcp://127.0.0.1:0",
    "TOWPATH_ZEROMQ_RPC": "tcp://127.0.0.1:0",
    "TOWPATH_GRPC_LISTEN": "127.0.0.1:0",
}


def in_section(name: str) -> list[Block]:
    """The blocks below a heading and the headings below that one."""
    text = (ROOT / "README.md").read_text()
    depth = re.search(rf"^(#+) {re.escape(name)}$", text, re.MULTILINE)
    assert depth, name
    start = depth.end()
    end = re.search(rf"^#{{1,{len(depth[1])}}} ", text[start:], re.MULTILINE)
    last = start + end.start() if end else len(text)
    first_line, last_line = text[:start].count("\n") + 1, text[:last].count("\n") + 1
    return [block for block in README if first_line < block.line < last_line]


class Reader:
    """Carries out blocks as somebody would who reads the README with three terminals open."""

    def __init__(self, daemon: DaemonHandle, directory: Path) -> None:
        self._daemon = daemon
        self._directory = directory
        (directory / "tmp").mkdir()
        (directory / ".venv").symlink_to(sys.prefix)
        (directory / "clients").symlink_to(ROOT / "clients")
        self._client = towpath.connect(str(daemon.socket))
        self._output = ""
        self._beside: Beside | None = None

    def close(self) -> None:
        if self._beside is not None:
            self._beside.end()
        self._client.close()

    def carry_out(self, block: Block) -> None:
        """Do what the comment above a block says.

        Raises:
            AssertionError: it did not go as the README says.
        """
        task, _, what = block.task.partition(": ")
        match task.split(" ", 1):
            case ["run"]:
                self._output = self._run(block)
            case ["run", "beside"]:
                assert self._beside is None, "what runs beside must say what it prints"
                self._beside = Beside(self._start(block), self._condition(what))
            case ["prints"]:
                assert matches(block.text, self._output), self._output
            case ["beside", "prints"]:
                assert self._beside is not None
                self._beside.wait_output(self._adapted(block.text))
                self._beside.end()
                self._beside = None
            case ["write", name]:
                (self._directory / name).write_text(block.text)
            case unknown:
                raise AssertionError(f"no such task: {unknown}")

    def _adapted(self, text: str) -> str:
        for port, (gateway, endpoint) in PORTS.items():
            if port in text:
                text = text.replace(port, self._daemon.endpoint(gateway, endpoint).removeprefix("tcp://"))
        return text.replace("/tmp/", f"{self._directory}/tmp/")

    def _start(self, block: Block) -> subprocess.Popen[str]:
        text = self._adapted(block.text)
        command = {"sh": ["bash", "-euc", text], "python": [sys.executable, "-u", "-c", text]}
        return subprocess.Popen(
            command[block.language],
            cwd=self._directory,
            env=self._daemon.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def _run(self, block: Block) -> str:
        process = self._start(block)
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0, (block.text, output)
        return output

    def _condition(self, what: str) -> Callable[[], bool]:
        """What is true from when a program that runs beside has come until it has left."""
        kind, _, name = what.rpartition(" ")
        if kind == "subscribes to":
            before = self._client.channel_info(name).subscribers
            return lambda: self._client.channel_info(name).subscribers > before
        assert kind == "reads", what
        url = self._adapted(name)

        def is_read() -> bool:
            return any(each.url == url and each.report.state == "running" for each in self._client.bindings())

        return is_read


class Beside:
    """A program that runs beside others."""

    def __init__(self, process: subprocess.Popen[str], has_come: Callable[[], bool]) -> None:
        self._process = process
        self._has_come = has_come
        self._output: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_until(has_come, self.output)

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._output.extend(iter(self._process.stdout.readline, ""))

    def output(self) -> str:
        return "".join(self._output)

    def wait_output(self, pattern: str) -> None:
        """Wait until it has printed what the README says, and nothing else.

        Raises:
            AssertionError: it did not in time.
        """
        wait_until(lambda: matches(pattern, self.output()), self.output)

    def end(self) -> None:
        """End it, and wait until the daemon knows."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        wait_until(lambda: not self._has_come())


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonHandle]:
    with running_daemon(tmp_path) as running:
        yield running


def test_first_steps(daemon: DaemonHandle, tmp_path: Path) -> None:
    directory = tmp_path / "reader"
    directory.mkdir()
    reader = Reader(daemon, directory)
    try:
        for block in in_section("First steps"):
            if block.task == "serve":
                continue
            try:
                reader.carry_out(block)
            except BaseException as failure:
                failure.add_note(f"README.md:{block.line}, {block.section}: {block.task}\n{block.text}")
                raise
    finally:
        reader.close()


def test_the_daemon_starts_as_written(tmp_path: Path) -> None:
    (block,) = (block for block in README if block.task == "serve")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    places = {"XDG_RUNTIME_DIR": "run", "XDG_STATE_HOME": "state", "HOME": "home"}
    environment = {
        **os.environ,
        **FREE_PORTS,
        **{name: str(tmp_path / place) for name, place in places.items()},
    }
    (tmp_path / "run").mkdir()
    process = subprocess.Popen(
        ["bash", "-euc", f"exec {block.text}"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if " daemon.ready " in line:
                break
        else:
            raise AssertionError("it ended")
        assert (tmp_path / "run" / "towpath" / "towpath.sock").is_socket()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_the_configuration_is_fine_and_carried_out(tmp_path: Path) -> None:
    config, check, said = in_section("Configuration")
    adapted = config.text.replace("127.0.0.1:5556", "127.0.0.1:0").replace("127.0.0.1:50551", "127.0.0.1:0")
    with running_daemon(tmp_path, adapted.replace("/tmp/", f"{tmp_path}/")) as daemon:
        directory = tmp_path / "reader"
        directory.mkdir()
        reader = Reader(daemon, directory)
        try:
            for block in (config, check, said):
                reader.carry_out(block)
        finally:
            reader.close()
        status = daemon.status()
        assert [(channel.name, channel.ring_bytes) for channel in status.channels] == [
            ("plant.line1.temp", 65536)
        ]
        assert [binding.url for binding in status.bindings] == [f"fifo:{tmp_path}/temp.fifo"]


def test_the_demo_prints_what_the_readme_shows() -> None:
    commands, output = in_section("Two commands")
    demo = next(line for line in commands.text.splitlines() if line.startswith("make demo"))
    environment = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    run = subprocess.run(
        ["bash", "-euc", demo], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PROGRAM_S
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert matches(f"...\n{output.text}\n...", run.stdout), run.stdout


def test_every_verb_of_make_that_is_named_is_there() -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = [*code_spans("README.md"), *(block.text for block in README)]
    named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(code)))
    assert {"demo", "test", "setup", "help"} <= named <= verbs


def test_every_block_of_commands_is_run_by_a_test() -> None:
    """Only those of `make` stand without a comment, and the test above looks at them."""
    loose = [block for block in README if not block.task]
    assert [block.section for block in loose] == ["Two commands"]


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "GUARANTEES.md"])
def test_links_lead_somewhere(name: str) -> None:
    for target in links(name):
        path, _, anchor = target.partition("#")
        document = ROOT / path if path else ROOT / name
        assert document.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
            assert anchor in slugs, target
