"""The suite itself: every case runs over every carrier, and what a carrier does otherwise is written down."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tests.conformance.clients.carriers import CARRIERS, DEVIATIONS, SHELLS

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def cases() -> dict[str, set[tuple[str, str]]]:
    """The suite's cases, each with the clients and carriers that it runs with, as pytest collects them."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", str(HERE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for line in run.stdout.splitlines():
        match = re.match(r"tests/conformance/clients/(\w+\.py::\w+)(?:\[(.*)\])?$", line)
        if match is None or match[1].startswith("test_manifest.py"):
            continue
        words = (match[2] or "").split("-")
        (shell,) = [word for word in words if word in SHELLS]
        (carrier,) = [word for word in words if word in {carrier.name for carrier in CARRIERS}]
        rest = [word for word in words if word not in (shell, carrier)]
        found["-".join([match[1], *rest])].add((shell, carrier))
    return found


def test_every_case_runs_over_every_carrier_with_both_clients() -> None:
    everywhere = {(shell, carrier.name) for shell in SHELLS for carrier in CARRIERS}
    found = cases()
    assert len(found) > 60
    assert {case: runs for case, runs in found.items() if runs != everywhere} == {}


def test_every_deviation_is_asserted_by_some_case_and_no_case_knows_others() -> None:
    asked: set[str] = set()
    for path in HERE.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "deviates"
            ):
                (name,) = node.args
                assert isinstance(name, ast.Constant) and isinstance(name.value, str)
                asked.add(name.value)
    assert asked == set(DEVIATIONS)


def test_no_case_is_marked_to_be_left_out() -> None:
    """The hook in conftest.py fails what is skipped when it runs; a mark would leave it out before."""
    for path in HERE.glob("*.py"):
        marks = re.findall(r"\bmark\.(skip\w*|xfail|long)\b", path.read_text())
        assert marks == []


def test_guarantees_print_the_deviations() -> None:
    """So that nobody has to read this folder to know what is different from afar."""
    text = (ROOT / "GUARANTEES.md").read_text()
    (table,) = re.findall(r"^<!-- carriers -->\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in table.splitlines()[2:]]
    names = {"grpc": "gRPC", "zmq": "ZeroMQ"}
    assert rows == [
        [", ".join(names[carrier] for carrier in each.carriers), each.what, each.why]
        for each in DEVIATIONS.values()
    ]
