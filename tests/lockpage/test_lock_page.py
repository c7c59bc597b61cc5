"""The lock page by itself: a model in every order of events, the C code killed at every step, sanitizers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.lockpage.model import compiled, protocol, readers
from tests.lockpage.model.atomics import Model, compile_program
from tests.ring.model.machine import Program, Wrong

HERE = Path(__file__).parent
HEADERS = HERE.parents[1] / "clients" / "c"
FLAGS = ["-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
CHANGING = ("towpath_lock.h", "towpath_lock_page.h", "towpath_lock_readers.h")
LIMIT_S = 1500


class Way(NamedTuple):
    """What there is to be explored: so many members, of which the first takes the lock ``rounds`` times.

    Attributes:
        gives_up: the member that does not wait.
        is_recalled: the core takes the lock back, at any time.
        kills: how many members are killed, anywhere.
        victim: which alone may be; 0: any.
        is_at_once: a queue is looked through in one step.
    """

    members: int
    rounds: int = 1
    gives_up: int = 0
    is_recalled: bool = False
    kills: int = 0
    victim: int = 0
    is_at_once: bool = True


def compiled_one(name: str, text: str, without: str) -> Program:
    """A program; without what is tagged so, where it has that."""
    has_it = any(line.partition("#")[2].strip() == without for line in text.splitlines())
    return compile_program(name, text, without=without if without and has_it else "")


def programs_of(way: Way, without: str = "") -> list[Program]:
    """The members', the core's, and one that has it take the lock back."""
    programs = [
        compiled_one(
            "ABC"[member - 1],
            protocol.client(
                member,
                count=way.members,
                rounds=way.rounds if member == 1 else 1,
                gives_up=way.gives_up,
                is_at_once=way.is_at_once,
            ),
            without,
        )
        for member in range(1, way.members + 1)
    ]
    programs.append(compiled_one("core", protocol.core(count=way.members), without))
    if way.is_recalled:
        programs.append(compiled_one("recaller", protocol.RECALLER, without))
    return programs


def explored(way: Way, folder: Path, *, without: str = "", bits: int = 24) -> tuple[int, Wrong | None]:
    """Everything that they can come to: how many states, and what is wrong."""
    mortal = {place: place + 1 for place in range(way.members) if way.victim in (0, place + 1)}
    programs = programs_of(way, without)
    return compiled.explore(
        programs, protocol.MEMORY, folder, mortal=mortal, kills=way.kills, bits=bits, limit_s=LIMIT_S
    )


class Mix(NamedTuple):
    """Members that read beside such as take the lock alone.

    Attributes:
        kinds: a letter for each: ``r`` reads, ``w`` takes it alone, ``W`` does and waits in the page.
        rounds: how often the first of them does.
        recalls, reopens: how often at most the core takes the lock back unasked, and gives it out again.
        kills, victim: as of ``Way``.
    """

    kinds: str
    rounds: int = 1
    recalls: int = 0
    reopens: int = 0
    kills: int = 0
    victim: int = 0


def explored_mix(mix: Mix, folder: Path, *, without: str = "", bits: int = 24) -> tuple[int, Wrong | None]:
    """Everything that they can come to: how many states, and what is wrong."""
    count = len(mix.kinds)
    programs = []
    for member, kind in enumerate(mix.kinds, 1):
        rounds = mix.rounds if member == 1 else 1
        if kind == "r":
            text = readers.reader(member, count=count, rounds=rounds)
        else:
            text = readers.writer(member, count=count, rounds=rounds, is_waiting=kind == "W")
        programs.append(compiled_one("ABC"[member - 1], text, without))
    programs.append(compiled_one("core", readers.core(count=count, reopens=mix.reopens), without))
    programs += mix.recalls * [compiled_one("recaller", readers.RECALLER, without)]
    mortal = {place: place + 1 for place in range(count) if mix.victim in (0, place + 1)}
    return compiled.explore(
        programs, readers.MEMORY, folder, mortal=mortal, kills=mix.kills, bits=bits, limit_s=LIMIT_S
    )


def explain(wrong: Wrong | None) -> str:
    return "" if wrong is None else "\n".join([wrong.what, *wrong.trace])


class TestModel:
    @pytest.mark.parametrize(
        "way",
        [
            Way(2, rounds=2, is_at_once=False),
            Way(2, rounds=2, gives_up=2, is_at_once=False),
            Way(2, kills=1, is_at_once=False),
            Way(2, is_recalled=True),
            Way(2, is_recalled=True, kills=1),
            Way(2, is_recalled=True, kills=1, gives_up=2),
            Way(3),
            Way(3, gives_up=2),
        ],
        ids=str,
    )
    def test_nothing_goes_wrong(self, way: Way, tmp_path: Path) -> None:
        assert explain(explored(way, tmp_path)[1]) == ""

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("way", "bits"),
        [
            (Way(3, kills=1), 27),  # 37 million states
            (Way(3, is_recalled=True), 28),  # 81 million
            *((Way(3, is_recalled=True, kills=1, victim=victim), 28) for victim in (1, 2, 3)),  # 203 each
        ],
        ids=str,
    )
    def test_nothing_goes_wrong_among_three(self, way: Way, bits: int, tmp_path: Path) -> None:
        """40 s, 100 s, and three times 300 s, on two cores that have much else to do; and 2 GB of memory."""
        assert explain(explored(way, tmp_path, bits=bits)[1]) == ""

    @pytest.mark.parametrize(
        ("without", "way"),
        [
            ("WAITERS", Way(2, rounds=2)),
            ("WAKE", Way(2, rounds=2)),
            ("ROUSE", Way(2, rounds=2)),
            ("LEFT", Way(2, rounds=2, gives_up=2)),
            ("WAKEALL", Way(2, kills=1)),
        ],
    )
    def test_what_is_left_out_is_missed(self, without: str, way: Way, tmp_path: Path) -> None:
        _, wrong = explored(way, tmp_path, without=without)
        assert wrong is not None and wrong.trace

    @pytest.mark.parametrize("way", [Way(2, is_at_once=False), Way(2, gives_up=2), Way(2, rounds=2)], ids=str)
    def test_it_is_explored_as_the_other_machine_does(self, way: Way, tmp_path: Path) -> None:
        """Which is the one of the ring's models, in Python."""
        assert explored(way, tmp_path) == Model(programs_of(way), protocol.MEMORY).explore()


class TestReaders:
    @pytest.mark.parametrize(
        "mix",
        [
            Mix("rw", recalls=1, reopens=2),
            Mix("rw", recalls=1, reopens=1, kills=1),
            Mix("rw", rounds=2, reopens=1),
            Mix("Wr", recalls=1, kills=1),
            Mix("rr", recalls=1),
        ],
        ids=str,
    )
    def test_nothing_goes_wrong(self, mix: Mix, tmp_path: Path) -> None:
        assert explain(explored_mix(mix, tmp_path)[1]) == ""

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("mix", "bits"),
        [
            (Mix("Wr", recalls=1, reopens=1, kills=1), 25),  # 3 million states, 8 s
            (Mix("rr", recalls=1, reopens=1, kills=1), 25),  # 10 million, 20 s
            (Mix("rw", recalls=2, reopens=2), 25),  # 7 million, 14 s
            (Mix("rrw"), 25),  # 9 million, 15 s
            (Mix("rWW"), 25),  # 4 million, 7 s
            (Mix("rrw", kills=1, victim=1), 27),  # 18 million, 30 s
            (Mix("rWW", kills=1), 27),  # 24 million, 40 s
            (Mix("rrW", kills=1), 27),  # 41 million, 125 s
            (Mix("rrw", reopens=1), 27),  # 20 million, 60 s
            (Mix("rww", recalls=1, reopens=1), 27),  # 39 million, 105 s
            (Mix("rWW", recalls=1), 27),  # 40 million, 65 s
            (Mix("rrw", recalls=1), 27),  # 80 million, 155 s
        ],
        ids=str,
    )
    def test_nothing_goes_wrong_among_more(self, mix: Mix, bits: int, tmp_path: Path) -> None:
        """Eleven minutes together, on two cores that have much else to do; and 1 GB of memory."""
        assert explain(explored_mix(mix, tmp_path, bits=bits)[1]) == ""

    @pytest.mark.parametrize(
        ("without", "kinds"),
        [
            ("CLAIM", "rw"),  # a reader is seen before the word lets it read
            ("READERS", "rw"),  # the word says that there are readers
            ("VERIFY", "rw"),  # a reader looks whether the lock is open still
            ("VERIFY", "rr"),
            ("AGAIN", "rw"),  # and whether it is not open anew
            ("DENY", "rw"),  # the core is told of a reader that gave up when it saw that the lock was shut
            ("TELL", "rw"),  # and of one that gave it back
            ("GENERATION", "rw"),  # a word is not the same when the lock is given out anew
            ("CLEAR", "rw"),  # nor has anybody a cell of before
            ("BUSY", "rw"),  # who wants it alone sees that the core reads
        ],
    )
    def test_what_is_left_out_is_missed(self, without: str, kinds: str, tmp_path: Path) -> None:
        _, wrong = explored_mix(Mix(kinds, recalls=1, reopens=1), tmp_path, without=without)
        assert wrong is not None and wrong.trace

    def test_it_is_explored_as_the_other_machine_does(self, tmp_path: Path) -> None:
        mix = Mix("rw")
        programs = [
            compile_program("A", readers.reader(1, count=2)),
            compile_program("B", readers.writer(2, count=2)),
            compile_program("core", readers.core(count=2)),
        ]
        assert explored_mix(mix, tmp_path) == Model(programs, readers.MEMORY).explore()


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
    text = "".join((HEADERS / name).read_text() for name in CHANGING)
    assert not re.search(r"__atomic_(store|exchange|fetch|add|sub|and|or|compare|clear|test)", text)
    used = set(re.findall(r"TPL_(?:STORE|NOTE|CAS|FETCH)\((\w+),", text))
    assert used == set(steps_listed())


@pytest.mark.parametrize("command", [["gcc", "-std=c11", "-Wpedantic", "-Wshadow", "-Wconversion"]])
@pytest.mark.parametrize("header", [*CHANGING, "towpath_lock_steps.h"])
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
