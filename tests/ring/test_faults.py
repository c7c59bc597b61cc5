"""A test of the tests: each fault that can be seeded in the ring (TOWPATH_RING_FAULTS) is found by one.

The C tests are built once with all faults in them, asleep; the environment chooses one.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.ring.ring_sources import HEADERS
from tests.support.deadlines import PROGRAM_S

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STORE_BUFFER = ("-DWITH_STORE_BUFFER",)
LIMIT_S = "1"  # a lost wake-up shows as a wait that does not end

FOUND_BY: dict[str, tuple[str, tuple[str, ...]]] = {
    "NO_FENCE_PUBLISH": ("duel_test", STORE_BUFFER),
    "NO_FENCE_SLEEP": ("duel_test", STORE_BUFFER),
    "NO_FENCE_COMMIT": ("duel_test", STORE_BUFFER),
    "NO_FENCE_ROOM": ("duel_test", STORE_BUFFER),
    "NO_FENCE_HOLD": ("loan_test", STORE_BUFFER),
    "NO_FENCE_REUSE": ("loan_test", STORE_BUFFER),
    "NO_FENCE_LOANS": ("loan_test", STORE_BUFFER),
    "NO_FENCE_RELEASE": ("loan_test", STORE_BUFFER),
    "HOLDS_IGNORED": ("loan_test", ()),
    "REUSE_BEFORE_CURSOR": ("loan_test", ()),
    "TAIL_BEFORE_RECORD": ("kill_test", ()),
    "OLDEST_AFTER_RECORD": ("kill_test", ()),
    "NO_OVERRUN_CHECK": ("lap_test", ()),
    "COMMIT_BEFORE_COPY": ("lap_test", ()),
    "NO_PIN": ("unit_test", ()),
    "NO_NEWS_CHECK": ("unit_test", ()),
    "RESUME_NOT_COUNTED": ("lap_test", ()),
    "RUNG_ONCE": ("lap_test", ()),
    "NO_END": ("ends_test", ()),
    "NO_PADDING": ("unit_test", ()),
    "CURSOR_BEFORE_BATCH": ("pump_test", ()),
    "CURSOR_LEFT_BEHIND": ("pump_test", ()),
    "TAKEN_TWICE": ("pump_test", ()),
}


def run_with(program: Path, fault: str, limit_s: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RING_FAULT": fault, "RING_LIMIT_S": limit_s}
    return subprocess.run(
        [str(program)], capture_output=True, text=True, check=False, timeout=PROGRAM_S, env=environment
    )


def test_every_fault_is_tried() -> None:
    [steps] = [path.read_text() for path in HEADERS if path.name == "towpath_ring_steps.h"]
    listing = steps[steps.index("#define TOWPATH_RING_FAULTS(X)") :].split("\n\n", 1)[0]
    listed = re.findall(r"^\s+X\((\w+)\)", listing, re.MULTILINE)
    assert listed == ["NONE", *FOUND_BY]
    text = "".join(path.read_text() for path in HEADERS)
    seeded = re.findall(r"TPR_FAULT_\(([A-Z_]+)\)", text)
    fenced = [f"NO_FENCE_{name}" for name in re.findall(r"TPR_FENCE\(([A-Z]+)\)", text)]
    assert {*seeded, *fenced} == set(FOUND_BY)


@pytest.mark.parametrize("fault", FOUND_BY)
def test_it_is_found(c_program: Callable[..., Path], fault: str) -> None:
    name, flags = FOUND_BY[fault]
    ran = run_with(c_program(name, ("-DWITH_FAULTS", *flags)), fault, LIMIT_S)
    assert ran.returncode != 0, f"{name} does not notice {fault}"
    assert "ok\n" not in ran.stdout


@pytest.mark.parametrize("test", sorted(set(FOUND_BY.values())), ids=lambda test: test[0])
def test_without_a_fault_there_is_nothing_to_find(
    c_program: Callable[..., Path], test: tuple[str, tuple[str, ...]]
) -> None:
    name, flags = test
    ran = run_with(c_program(name, ("-DWITH_FAULTS", *flags)), "NONE", "200")
    assert (ran.returncode, ran.stderr) == (0, "")
