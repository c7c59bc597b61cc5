"""The command line as a process, where no daemon is needed: start, help, refusals, ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.shell import bash, command, environment, towpath
from tests.support.deadlines import DEADLINE_S
from towpath.errors import TABLE, Code

ENV = environment(None)
BIND = ["bind", "a", "fifo:/x", "--direction", "in"]


def test_the_version_is_the_distributions() -> None:
    from importlib.metadata import version

    result = towpath("--version", env=ENV)
    assert (result.returncode, result.stdout) == (0, f"towpath {version('towpath')}\n".encode())


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["channels", "--names"],
        ["declare", "a"],
        ["undeclare", "a"],
        ["bind", "a", "fifo:/x", "--direction", "in"],
        ["unbind", "7"],
        ["pub", "a", "x"],
        ["pub", "a"],
        ["sub", "a"],
    ],
)
def test_without_a_daemon_every_verb_says_how_to_start_one(arguments: list[str]) -> None:
    result = towpath(*arguments, env=ENV)
    assert result.returncode == TABLE[Code.UNAVAILABLE].exit_code == 69
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("towpath: ")
    assert "/nonexistent/towpath.sock" in lines[0]
    assert lines[1] == "hint: is the daemon running? start it with: towpath serve"
    assert result.stdout == b""


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        ([], 2, "a verb is missing"),
        (["status", "--nonsense"], 2, "unrecognized arguments: --nonsense"),
        (["sub", "plant*"], 2, "'plant*' is not a pattern"),
        (["sub", "plant.>.x"], 2, "'plant.>.x' is not a pattern"),
        (["sub", "a", "--json", "--frame", "raw"], 2, "--frame cannot go with --json or --meta"),
        (["sub", "a", "--delimiter", "x"], 2, "--delimiter needs --frame"),
        (["sub", "a", "--frame", "delimiter"], 2, "framing=delimiter needs option delimiter"),
        (["unbind", "a"], 2, "'a' is not a binding's id"),
        ([*BIND, "--option", "a=1", "--option", "a=2"], 2, "--option has a key twice"),
        ([*BIND, "--option", "framing=raw", "--frame", "line"], 2, "--frame and --option framing differ"),
        (["unbind", "9" * 30], 2, f"'{'9' * 30}' is not a binding's id"),
        (["--url", "http://x", "status"], 2, "'http://x'"),
        (["pub", "a\udcff", "x"], 2, r"'a\udcff' is not UTF-8"),
        (["pub", "a", "x", "--header", "k=\udcff"], 2, r"'\udcff' is not UTF-8"),
        (["bind", "a", "fifo:/\udcff", "--direction", "in"], 2, r"'fifo:/\udcff' is not UTF-8"),
    ],
)
def test_bad_input_is_one_line_and_a_hint(arguments: list[str], exit_code: int, message: str) -> None:
    result = towpath(*arguments, env=ENV)
    lines = result.stderr.decode().splitlines()
    assert result.returncode == exit_code, lines
    assert lines[0].startswith(f"towpath: {message}")
    assert lines[1].startswith("hint: ")
    assert len(lines) == 2


SLOW = {"asyncio", "json", "shtab", "shutil", "towpath.bindings", "towpath.framing", "towpath_broker"}


@pytest.mark.parametrize(
    ("arguments", "slow"),
    [
        (["--help"], {*SLOW, "google.protobuf", "towpath.sync"}),
        (["--version"], {*SLOW, "google.protobuf", "towpath.sync"}),
        (["pub", "a", "x"], SLOW),
    ],
)
def test_what_people_wait_for_imports_nothing_slow(arguments: list[str], slow: set[str]) -> None:
    program = (
        "import sys; from towpath.cli import main; main(sys.argv[1:]); "
        f"print('imported:', *sorted({slow!r} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        env=ENV,
        timeout=DEADLINE_S,
        check=True,
    )
    assert result.stderr.decode().splitlines()[-1] == "imported:"


def test_a_reader_that_left_ends_it_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as output:
        result = subprocess.run(
            command("--help"), stdout=output, stderr=subprocess.PIPE, env=ENV, timeout=DEADLINE_S, check=False
        )
    assert result.returncode == -signal.SIGPIPE
    assert result.stderr == b""


def test_a_full_disk_is_told() -> None:
    result = bash("towpath --help > /dev/full", env=ENV)
    assert result.returncode == 74
    assert result.stderr == b"towpath: cannot write to standard output: No space left on device\n"


def test_closed_standard_streams_are_told_and_never_confused_with_the_socket() -> None:
    result = bash("towpath --help >&-", env=ENV)
    assert result.returncode == 74
    assert result.stderr == b"towpath: cannot write to standard output: Bad file descriptor\n"
    assert bash("towpath nonsense <&- >&- 2>&-", env=ENV).returncode == 2


def test_a_bug_is_told_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import towpath.cli.grammar as grammar\n"
        "def parse(arguments): raise ZeroDivisionError('none')\n"
        "grammar.parse = parse\n"
    )
    env = {**ENV, "PYTHONPATH": str(tmp_path)}
    result = towpath("status", env=env)
    assert result.returncode == 70
    assert result.stderr.decode().splitlines() == [
        "towpath: internal error: ZeroDivisionError: none",
        "hint: this is a bug in Towpath: please report it with what TOWPATH_TRACEBACK=1 shows",
    ]
    shown = towpath("status", env={**env, "TOWPATH_TRACEBACK": "1"})
    assert shown.returncode == 70
    assert b"Traceback (most recent call last)" in shown.stderr


def test_towpathd_is_towpath_serve() -> None:
    serve = bash("towpath serve --help", env=ENV)
    daemon = bash("towpathd --help", env=ENV)
    assert serve.returncode == daemon.returncode == 0
    assert serve.stdout == daemon.stdout
    assert b"--config" in serve.stdout


def test_without_the_daemon_installed_serve_says_so(tmp_path: Path) -> None:
    # A finder that hides the daemon's package, as in a client-only installation.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'towpath_broker':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    result = towpath("serve", env={**ENV, "PYTHONPATH": str(tmp_path)})
    assert result.returncode == 69
    assert result.stderr.decode().splitlines() == [
        "towpath: the daemon is not installed, only the client library",
        "hint: install it with: pip install 'towpath[broker]'",
    ]


def test_python_dash_m_is_the_same_program() -> None:
    assert command("--version")[1:3] == ["-m", "towpath"]
    assert towpath("--version", env=ENV).stdout == bash("towpath --version", env=ENV).stdout
