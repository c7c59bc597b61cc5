"""``make bench``: Towpath beside others, in separate processes, from an installed wheel.

Theory of operation
    Started from the checkout's environment it installs the peers, builds a wheel, and runs itself again in an
    environment that has it (``environment``); ``--here`` is that second run, and good for a quick look at the
    checkout. For each placement, round after round, every case is measured once, so that the machine's moods
    meet all alike; rounds go on until there are enough or the time is up. Then come the parts that are no
    case: whole processes, footprints, curves.

    What is written: ``bench.json``, ``bench.md`` and ``bench.png`` in the output directory, and the table of
    targets on standard output. The exit status says whether every case worked, not how fast.

Not here: the mechanisms (``mechanisms``), what is wished for (``targets``).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import importlib
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.bench import (
    environment,
    fifo_lines,
    footprint,
    kinds,
    loans,
    locks,
    locks_core,
    message_queues,
    report,
    scaling,
    signals,
    whole_process,
)
from tests.bench.cases import IMPORTS, SIZES, Case, cases, load_of, mechanism_named, obstacle
from tests.bench.crew import CaseFailed, measure
from tests.bench.load import Pattern
from tests.bench.results import Results
from tests.bench.site import PLACEMENTS, Placement, Site

FAMILIES: Final = ("local", "peers")
PARTS: Final = (*FAMILIES, "kinds", "locks", "bridge", "loans", "process", "footprint", "scaling")
PATTERNS: Final[tuple[Pattern, ...]] = ("one-way", "fan-out", "round trip")
FULL_S, QUICK_S = 17 * 60.0, 70.0
"""For the rounds of all placements together."""
OUTPUT: Final = Path("build/bench")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="two sizes, few and short rounds: under three minutes"
    )
    parser.add_argument(
        "--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}; Towpath is always there"
    )
    parser.add_argument("--patterns", default=",".join(PATTERNS), help=f"some of {','.join(PATTERNS)}")
    parser.add_argument("--sizes", help="payload sizes in bytes, with commas")
    parser.add_argument(
        "--mechanisms", default="", help="only mechanisms whose names contain one of these, with commas"
    )
    parser.add_argument("--placements", default=",".join(PLACEMENTS), help=f"some of {','.join(PLACEMENTS)}")
    parser.add_argument("--rounds", type=int, help="at most so many rounds")
    parser.add_argument("--run-ms", type=float, help="how long each measurement sends")
    parser.add_argument("--idle-s", type=float, help="how long the daemon is watched while idle")
    parser.add_argument("--out", type=Path, default=OUTPUT, help=f"directory for the results ({OUTPUT})")
    parser.add_argument(
        "--here", action="store_true", help="measure what this interpreter imports; build nothing"
    )
    options = parser.parse_args(arguments)
    quick = options.quick
    options.sizes = (
        tuple(map(int, options.sizes.split(","))) if options.sizes else (SIZES[::2] if quick else SIZES)
    )
    options.rounds = options.rounds or (2 if quick else 5)
    options.run_ms = options.run_ms or (60.0 if quick else 120.0)
    options.idle_s = options.idle_s or (10.0 if quick else 60.0)
    for name, allowed in (("only", PARTS), ("patterns", PATTERNS), ("placements", PLACEMENTS)):
        chosen = tuple(getattr(options, name).split(","))
        if unknown := set(chosen) - set(allowed):
            parser.error(f"--{name}: {', '.join(sorted(unknown))} is none of {', '.join(allowed)}")
        setattr(options, name, chosen)
    return options


def chosen_cases(options: argparse.Namespace, placement: Placement) -> Iterator[Case]:
    """The cases that the command line asks for."""
    families = (
        frozenset({"towpath", *options.only}) if set(options.only) & set(FAMILIES) else frozenset[str]()
    )
    words = options.mechanisms.split(",")
    for case in cases(placement, families, frozenset(options.patterns), options.sizes):
        if any(word in case.mechanism for word in words):
            yield case


def run_placement(options: argparse.Namespace, results: Results, placement: Placement, until: float) -> None:
    """All rounds of one placement."""
    with Site(placement) as site:
        todo = []
        for case in chosen_cases(options, placement):
            if reason := obstacle(case, site):
                results.skipped[case] = reason
            else:
                todo.append(case)
        for number in range(options.rounds):
            began = time.monotonic()
            for case in todo:
                run_case(options, results, case, site)
            took = time.monotonic() - began
            say(f"{placement}, round {number + 1}: {len(todo)} cases in {took:.0f} s")
            if time.monotonic() + took > until:
                break
        results.facts[f"rounds, {placement}"] = number + 1


def run_case(options: argparse.Namespace, results: Results, case: Case, site: Site) -> None:
    """One round of one case. One that breaks is noted, and the run goes on."""
    try:
        figures = measure(mechanism_named(case.mechanism)(site, load_of(case, int(options.run_ms * 1e6))))
    except (CaseFailed, RuntimeError, OSError) as error:
        results.add(case, None)
        results.broken.append(f"{case.mechanism}, {report.title(case)}: {error}")
        say(f"BROKEN: {results.broken[-1]}")
    else:
        results.add(case, figures)


@contextlib.contextmanager
def part(results: Results, name: str) -> Iterator[None]:
    """A part that is no case: what breaks in it is noted, and the run goes on."""
    began = time.monotonic()
    try:
        yield
    except (RuntimeError, OSError, EOFError, ValueError, subprocess.SubprocessError) as error:
        results.broken.append(f"{name}: {error!r}")
        say(f"BROKEN: {results.broken[-1]}")
    else:
        say(f"{name}: {time.monotonic() - began:.0f} s")


def run_parts(options: argparse.Namespace, results: Results) -> None:
    """Queues, services and the other kinds; the bridge; whole processes, curves, footprints."""
    with Site("free") as site:
        if "kinds" in options.only:
            with part(results, "kinds"):
                number, scale = (1, 1.0) if options.quick else (3, 5.0)
                kinds.measure(results, site, number=number, scale=scale)
        if "locks" in options.only:
            with part(results, "locks"):
                number, scale = (1, 0.3) if options.quick else (5, 1.0)
                locks.measure(results, site, number=number, scale=scale)
            with part(results, "locks in the core"):
                records = 100_000 if options.quick else 1_000_000
                locks_core.measure(results, samples=1_000, records=records)
        if "process" in options.only:
            with part(results, "whole processes"):
                whole_process.measure(results, site, 5 if options.quick else 21)
        if "scaling" in options.only:
            with part(results, "curves"):
                scaling.measure(results, site, is_quick=options.quick)
    if "bridge" in options.only:
        with part(results, "bridge"):
            message_queues.measure(results, 20_000 if options.quick else 100_000, 3 if options.quick else 9)
        with part(results, "lines"):
            fifo_lines.measure(results, 20_000 if options.quick else 100_000, 3 if options.quick else 9)
        with part(results, "signals"):
            signals.measure(results, 300 if options.quick else 1_000, 3 if options.quick else 7)
    if "loans" in options.only:
        with part(results, "loans"):
            loans.measure(results, 10_000 if options.quick else 50_000, 3 if options.quick else 9)
    if "footprint" in options.only:
        with part(results, "channels"):
            footprint.measure_channels(results)
        with part(results, "idle"):
            footprint.measure_idle(results, options.idle_s)


def describe(results: Results) -> None:
    """Note what was measured on what."""
    import towpath

    processors = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    python = f"Python {platform.python_version()}"
    results.facts |= {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} x {processors[0]}, Linux {platform.release()}, {python}",
        "load before": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "note": "the machine may be shared: read medians and ratios, not single figures",
        "towpath": f"{towpath.__version__}, {'installed wheel' if is_installed() else 'the checkout'}",
    }


def is_installed() -> bool:
    """Whether it is a wheel that is measured."""
    import towpath

    return "site-packages" in Path(towpath.__file__).parts


def say(text: str) -> None:
    """Progress, on standard error."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def import_all() -> None:
    """Import what mechanisms use, before the first fork. What is missing is told case by case."""
    for name in IMPORTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def write(options: argparse.Namespace, results: Results) -> None:
    """Write the files, and print the table of targets."""
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "bench.json").write_text(json.dumps(results.to_json(), indent=1) + "\n")
    (options.out / "bench.md").write_text("\n".join(report.lines(results)) + "\n")
    try:
        from tests.bench.picture import draw

        draw(results, options.out / "bench.png")
    except ImportError as error:
        say(f"no picture: {error}")
    print("\n".join(report.target_lines(results)))
    say(f"written: {options.out}/bench.json, bench.md, bench.png; {len(results.broken)} broken")


def run_here(options: argparse.Namespace) -> int:
    """Measure; return the exit status."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it writes to the terminal of whoever watches
    import_all()
    results = Results()
    describe(results)
    began = time.monotonic()
    total_s = QUICK_S if options.quick else FULL_S
    counts = [1 + sum(1 for _ in chosen_cases(options, placement)) for placement in options.placements]
    for placement, done in zip(options.placements, itertools.accumulate(counts), strict=True):
        run_placement(options, results, placement, began + total_s * done / sum(counts))
    run_parts(options, results)
    results.facts["load after"] = " ".join(f"{load:.2f}" for load in os.getloadavg())
    results.facts["seconds"] = round(time.monotonic() - began)
    write(options, results)
    return 1 if results.broken else 0


def main() -> int:
    """Run where the wheel is, making that place first."""
    arguments = sys.argv[1:]
    options = parse(arguments)
    if options.here:
        return run_here(options)
    for requirement, reason in environment.install_peers().items():
        say(f"without {requirement}: {reason}")
    with tempfile.TemporaryDirectory(prefix="towpath-bench-") as directory:
        say("building and installing a wheel")
        return environment.run_in(environment.make(Path(directory)), arguments)


if __name__ == "__main__":
    sys.exit(main())
