"""The lock page by itself: a model in every order of events, the C code killed at every step, sanitizers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.lockpage.model import protocol
from tests.lockpage.model.atomics import Model, compile_program
from tests.ring.model.machine import Program, Wrong

HERE = Path(__file__).parent
HEADERS = HERE.parents[1] / "clients" / "c"
FLAGS = ["-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
LIMIT_S = 200


def explored(
    count: int,
    *,
    rounds: int = 1,
    gives_up: int = 0,
    is_recalled: bool = False,
    kills: int = 0,
    without: str = "",
    is_at_once: bool = True,
) -> Wrong | None:
    """Everything that ``count`` members and the core can come to."""

    def compiled(name: str, text: str) -> Program:
        has_it = any(line.partition("#")[2].strip() == without for line in text.splitlines())
        return compile_program(name, text, without=without if without and has_it else "")

    programs = [
        compiled(
            "ABC"[member - 1],
            protocol.client(
                member,
                count=count,
                rounds=rounds if member == 1 else 1,
                gives_up=gives_up,
                is_at_once=is_at_once,
            ),
        )
        for member in range(1, count + 1)
    ]
    programs.append(compiled("core", protocol.core(count=count)))
    if is_recalled:
        programs.append(compiled("recaller", protocol.RECALLER))
    mortal = {place: place + 1 for place in range(count)}
    _states, wrong = Model(programs, protocol.MEMORY, mortal=mortal, kills=kills).explore()
    return wrong


def explain(wrong: Wrong | None) -> str:
    return "" if wrong is None else "\n".join([wrong.what, *wrong.trace])


class TestModel:
    def test_two_take_turns(self) -> None:
        assert explained(count=2, rounds=2, is_at_once=False) == ""

    def test_one_gives_up(self) -> None:
        assert explained(count=2, rounds=2, gives_up=2, is_at_once=False) == ""

    def test_one_is_killed_anywhere(self) -> None:
        assert explained(count=2, kills=1, is_at_once=False) == ""

    @pytest.mark.long
    def test_the_core_takes_it_back_at_any_time(self) -> None:
        assert explained(count=2, is_recalled=True) == ""

    @pytest.mark.long
    @pytest.mark.parametrize("gives_up", [0, 2])
    def test_the_core_takes_it_back_and_one_is_killed(self, gives_up: int) -> None:
        assert explained(count=2, gives_up=gives_up, is_recalled=True, kills=1) == ""

    @pytest.mark.long
    def test_three_take_turns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tests.ring.model.machine.STATES_MAX", 5_000_000)
        assert explained(count=3) == ""

    @pytest.mark.parametrize(
        ("without", "how"),
        [
            ("WAITERS", {"rounds": 2}),
            ("WAKE", {"rounds": 2}),
            ("ROUSE", {"rounds": 2}),
            ("LEFT", {"rounds": 2, "gives_up": 2}),
            ("WAKEALL", {"kills": 1}),
        ],
    )
    def test_what_is_left_out_is_missed(self, without: str, how: dict[str, int]) -> None:
        assert explored(2, without=without, **how) is not None  # type: ignore[arg-type]


def explained(**how: int) -> str:
    return explain(explored(how.pop("count"), **how))  # type: ignore[arg-type]


# ---- the C code --------------------------------------------------------------------------------------------


def run(folder: Path, *flags: str) -> list[str]:
    """Compile the program with flags and run it; a warning, or a word on stderr, is a failure."""
    program = folder / "page_test"
    source = HERE / "c" / "page_test.c"
    command = ["gcc", *FLAGS, *flags, f"-I{HEADERS}", str(source), "-o", str(program)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert compiled.returncode == 0, compiled.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert (ran.returncode, ran.stderr) == (0, ""), f"{ran.stdout}\n{ran.stderr}"
    return ran.stdout.splitlines()


def steps_listed() -> list[str]:
    text = (HEADERS / "towpath_lock_steps.h").read_text()
    listing = text[text.index("#define TOWPATH_LOCK_STEPS(X)") :].split("\n\n", 1)[0]
    return re.findall(r"^\s+X\((\w+)\)", listing, re.MULTILINE)


def test_kill_at_every_step(tmp_path: Path) -> None:
    """SIGKILL around every change of the page; the program fails when a step is never reached."""
    lines = run(tmp_path)
    assert lines[-1] == "ok"
    assert lines[:-2] == [step for step in steps_listed() if step != "PAGE_HEADER"]


@pytest.mark.parametrize(
    "flags",
    [("-fsanitize=thread",), ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"), ("-O2",)],
    ids=["thread", "address", "optimized"],
)
def test_threads(tmp_path: Path, flags: tuple[str, ...]) -> None:
    assert run(tmp_path, "-DWITH_THREADS", *flags) == ["ok"]


def test_every_change_has_a_step() -> None:
    """No atomic store or read-modify-write of the page but through the macros."""
    text = (HEADERS / "towpath_lock.h").read_text()
    assert not re.search(r"__atomic_(store|exchange|fetch|add|sub|and|or|compare|clear|test)", text)
    used = set(re.findall(r"TPL_(?:STORE|NOTE|CAS|FETCH)\((\w+),", text))
    assert used == set(steps_listed())


@pytest.mark.parametrize("command", [["gcc", "-std=c11", "-Wpedantic", "-Wshadow", "-Wconversion"]])
@pytest.mark.parametrize("header", ["towpath_lock.h", "towpath_lock_steps.h"])
def test_headers_stand_alone(command: list[str], header: str) -> None:
    checked = subprocess.run(
        [*command, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c", "-"],
        input=f'#include "{HEADERS / header}"\n',
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert checked.returncode == 0, checked.stderr
