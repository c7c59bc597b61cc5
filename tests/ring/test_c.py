"""The C tests of the ring, plain and under sanitizers; and that its headers are fit for others' programs."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.ring.ring_sources import HEADERS, STEP_USE, steps_listed
from tests.support.deadlines import DEADLINE_S

if TYPE_CHECKING:
    from collections.abc import Callable

ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
THREAD = ("-fsanitize=thread",)
NO_WAITV = ("-DTOWPATH_RING_NO_WAITV",)
STORE_BUFFER = ("-DWITH_STORE_BUFFER",)
LAPPING = ("-DWITH_LAPPING",)
# Where memory goes wrong shows in one process, too; what is between threads, to the thread sanitizer.
OF_THREADS = pytest.mark.parametrize(
    "flags",
    [(), pytest.param(ADDRESS, marks=pytest.mark.long), THREAD],
    ids=["plain", "address", "thread"],
)


@pytest.mark.parametrize(
    "flags", [pytest.param((), marks=pytest.mark.long), ADDRESS], ids=["plain", "address"]
)
@pytest.mark.parametrize("name", ["unit_test", "lap_test", "wait_test", "ends_test"])
def test_one_process(c_test: Callable[..., str], name: str, flags: tuple[str, ...]) -> None:
    assert c_test(name, flags) == "ok\n"


@pytest.mark.parametrize(
    "flags",
    [pytest.param((), marks=pytest.mark.long), ADDRESS, STORE_BUFFER],
    ids=["plain", "address", "store_buffer"],
)
def test_loans(c_test: Callable[..., str], flags: tuple[str, ...]) -> None:
    assert c_test("loan_test", flags) == "ok\n"


@pytest.mark.parametrize("lapping", [(), LAPPING], ids=["block", "drop"])
@OF_THREADS
def test_threads_that_loan(
    c_test: Callable[..., str], flags: tuple[str, ...], lapping: tuple[str, ...]
) -> None:
    assert c_test("threads_test", (*flags, *lapping, "-DWITH_LOANS"), "20000") == "ok\n"


@pytest.mark.parametrize("messages", [20_000, pytest.param(2_000_000, marks=pytest.mark.long)])
@pytest.mark.parametrize("lapping", [(), LAPPING], ids=["block", "drop"])
@OF_THREADS
def test_threads(
    c_test: Callable[..., str], flags: tuple[str, ...], lapping: tuple[str, ...], messages: int
) -> None:
    assert c_test("threads_test", (*flags, *lapping), str(messages)) == "ok\n"


@pytest.mark.parametrize(
    "flags",
    [pytest.param((), marks=pytest.mark.long), ADDRESS, NO_WAITV, STORE_BUFFER, ("-O2",)],
    ids=["plain", "address", "no_waitv", "store_buffer", "optimized"],
)
def test_processes(c_test: Callable[..., str], flags: tuple[str, ...]) -> None:
    assert c_test("process_test", flags) == "ok\n"


@pytest.mark.parametrize(
    "flags", [NO_WAITV, STORE_BUFFER, ("-O2",)], ids=["no_waitv", "store_buffer", "optimized"]
)
def test_no_wake_up_is_lost(c_test: Callable[..., str], flags: tuple[str, ...]) -> None:
    assert c_test("duel_test", flags) == "ok\n"


@pytest.mark.parametrize(
    ("flags", "hits"),
    [((), "4"), pytest.param(ADDRESS, "1", marks=pytest.mark.long)],
    ids=["plain", "address"],
)
def test_each_message_goes_through_a_killed_core_once(
    c_test: Callable[..., str], flags: tuple[str, ...], hits: str
) -> None:
    assert c_test("pump_test", flags, hits).endswith("killed\nok\n")


def test_kill_at_every_step(c_test: Callable[..., str]) -> None:
    """SIGKILL around every store; the program itself fails when a step is never reached."""
    lines = c_test("kill_test").splitlines()
    assert lines[:-2] == steps_listed()
    assert lines[-1] == "ok"


def test_stop_at_every_step(c_test: Callable[..., str]) -> None:
    """SIGSTOP around every store: the others go on, and so does the victim when it is continued."""
    lines = c_test("stop_test").splitlines()
    assert lines[:-2] == steps_listed()
    assert lines[-1] == "ok"


def test_no_store_goes_past_the_steps(c_test: Callable[..., str]) -> None:
    """With every page unwritable but during a step, a store that has none is a SIGSEGV."""
    assert c_test("kill_test", (), "guard") == "ok\n"


def test_every_step_has_a_store() -> None:
    text = "".join(path.read_text() for path in HEADERS)
    assert sorted(set(STEP_USE.findall(text)) - {"step"}) == sorted(steps_listed())


def test_every_store_has_a_step() -> None:
    """No atomic store or read-modify-write but through the macros, and on private words, which say so."""
    for path in HEADERS:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(r"__atomic_(store|exchange|fetch|add|sub|and|or|compare|clear|test)", line):
                is_macro = path.name == "towpath_ring_steps.h" and "#define TOWPATH_RING_STORE" in line
                assert is_macro or "/* private */" in line, f"{path.name}:{number}: {line.strip()}"


ALL_HEADERS = [path for path in HEADERS if path.name == "towpath_ring.h"]
C11 = ["gcc", "-std=c11", "-Wpedantic", "-Wshadow", "-Wconversion"]


@pytest.mark.parametrize(
    ("command", "header"),
    [
        *((C11, header) for header in HEADERS),
        *((["gcc", "-std=gnu17", "-O3"], header) for header in ALL_HEADERS),
        *((["g++", "-std=c++17"], header) for header in ALL_HEADERS),
    ],
    ids=lambda value: value[1] if isinstance(value, list) else value.name,
)
def test_headers_stand_alone(command: list[str], header: object) -> None:
    """Each header compiles as the only include, without a warning; all together in other languages too."""
    language = "c++" if command[0] == "g++" else "c"
    checked = subprocess.run(
        [*command, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", language, "-"],
        input=f'#include "{header}"\n',
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert checked.returncode == 0, checked.stderr
