"""The benches still run: every local case once, tiny, through the command line. No timing is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.bench import fifo_lines, kinds, locks, locks_core, signals, targets
from tests.bench.cases import Case
from tests.bench.results import Results
from tests.bench.site import PLACEMENTS, Site
from tests.project.project_files import ROOT
from tests.support.deadlines import PROGRAM_S

FIFO = Case("FIFO", "free", "one-way", 64, True)
TOWPATH = Case("towpath", "free", "one-way", 64, True)


def test_every_local_case_carries_all_of_its_messages(tmp_path: Path) -> None:
    """A receiver's checksum differs from its sender's when one message is lost, doubled or damaged."""
    command = [sys.executable, "-m", "tests.bench", "--here", "--only", "local", "--sizes", "64,65536"]
    command += ["--placements", "free", "--rounds", "1", "--run-ms", "2", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PROGRAM_S)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["broken"] == []
    measured = {case["mechanism"] for case in found["cases"]}
    expected = {"towpath", "towpath, batched", "towpath, asyncio", "os.pipe", "FIFO", "multiprocessing.Queue"}
    assert measured >= expected | {"towpath via zeromq to SUB", "towpath via grpc, batched"}
    assert all(figures for case in found["cases"] for figures in case["rounds"])
    assert "64 B, one call per message" in done.stdout
    assert "one-way, 64 KiB, free, without checksum" in (tmp_path / "bench.md").read_text()


def test_every_other_kind_is_carried() -> None:
    results = Results()
    with Site("free") as site:
        kinds.measure(results, site, number=1, scale=0.05)
    figures = {"queue k/s", "durable queue k/s", "durable publish /s", "durable batch k/s", "replay M/s"}
    assert set(results.singles) >= figures | {"call us", "state get us", "state get by copy"}
    assert all(figure > 0 for figure in results.singles.values())


def test_locks_are_taken_and_given_back_everywhere() -> None:
    """Circles are reported whole, the killed are followed, journals replayed: else the part breaks."""
    results = Results()
    with Site("free") as site:
        locks.measure(results, site, number=1, scale=0.02)
    locks_core.measure(results, samples=20, records=2_000)
    assert all(figure > 0 for figure in results.singles.values())
    measured = {row.target for row in targets.rows(results) if row.is_reached is not None}
    assert {name for name in measured if "etcd" in name or "10,000 wait" in name or "killed" in name}
    assert len(measured) >= 15


def test_lines_of_fifos_are_measured_both_ways() -> None:
    results = Results()
    fifo_lines.measure(results, 2_000, 1)
    assert {"lines into a channel, by cat", "lines out of a channel, by cat"} < set(results.singles)
    assert all(figure > 0 for figure in results.singles.values())


def test_signals_are_measured_in_every_placement() -> None:
    results = Results()
    signals.measure(results, 20, 1)
    ratios = {f"signal by sigqueue, {placement}" for placement in PLACEMENTS}
    assert set(results.singles) > ratios
    assert all(figure > 0 for figure in results.singles.values())


def test_a_broken_case_is_told_and_ends_the_run_with_1(tmp_path: Path) -> None:
    """Whoever reads the exit status learns of a case that could not be carried."""
    program = (
        "import sys, tests.bench.__main__ as bench\n"
        "from tests.bench.mechanisms.local import Fifo\n"
        "Fifo.receive = lambda self, role, index: sys.exit('gone')\n"
        "sys.exit(bench.run_here(bench.parse(sys.argv[1:])))\n"
    )
    arguments = ["--only", "local", "--mechanisms", "FIFO", "--sizes", "64", "--patterns", "one-way"]
    arguments += ["--placements", "free", "--rounds", "1", "--run-ms", "2", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PROGRAM_S,
    )
    assert done.returncode == 1, done.stderr
    assert "FIFO, one-way, 64 B, free, checksummed: receiver" in done.stderr


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    results = Results()
    for ours, theirs in ((20.0, 10.0), (90.0, 30.0), (8.0, 8.0)):
        results.add(TOWPATH, {"rate": ours})
        results.add(FIFO, {"rate": theirs})
    results.add(TOWPATH, None)
    results.add(FIFO, {"rate": 1.0})
    assert results.ratio(TOWPATH, FIFO, "rate") == 2.0
    (row,) = [row for row in targets.rows(results) if row.target.startswith("64 B, one call per message")]
    assert (row.measured, row.is_reached) == ("2.00", True)


def test_growth_is_the_exponent_of_the_curve() -> None:
    results = Results()
    results.curves["cost of a publish against subscribers"] = [(1, 5), (10, 500), (100, 50_000)]
    (row,) = [row for row in targets.rows(results) if row.target.startswith("cost of a publish")]
    assert (row.measured, row.is_reached) == ("2.00", False)
