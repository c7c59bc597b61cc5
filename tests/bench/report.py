"""The tables of a run, as text (which is Markdown too)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tests.bench.cases import Case
from tests.bench.load import Pattern
from tests.bench.results import Results
from tests.bench.targets import rows

REFERENCE: Final[dict[Pattern, str]] = {
    "one-way": "towpath",
    "fan-out": "towpath, batched",
    "round trip": "towpath",
}
"""What each table sets its mechanisms against."""
_UNITS: Final = ((1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))


def size_text(size_bytes: int) -> str:
    """``64 KiB``."""
    unit, name = next((unit, name) for unit, name in _UNITS if size_bytes >= unit)
    return f"{size_bytes // unit} {name}"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table, columns aligned: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *rest]) + " |"

    yield line(head)
    yield (
        "|"
        + "|".join(
            "-" * (width + 2) if index == 0 else "-" * (width + 1) + ":" for index, width in enumerate(widths)
        )
        + "|"
    )
    yield from map(line, body)


def title(case: Case) -> str:
    """What the cases of one table have in common."""
    words: list[str] = [case.pattern, size_text(case.size_bytes), case.placement]
    if case.pattern != "round trip":
        words.append("checksummed" if case.is_checked else "without checksum")
    elif case.pause_ns:
        words.append("after both slept")
    else:
        words.append("both awake")
    return ", ".join(words)


def figures_lines(results: Results) -> Iterator[str]:
    """A table for each load, the mechanisms in it by rank, each set against Towpath's first."""
    groups: dict[str, list[Case]] = {}
    for case in (*results.rounds, *results.skipped):
        groups.setdefault(title(case), []).append(case)
    for text, members in groups.items():
        yield from ("", f"### {text}", "")
        if members[0].pattern == "round trip":
            yield from _trips(results, members)
        else:
            yield from _rates(results, members)


def _ratio(results: Results, case: Case, base: Case | None, figure: str) -> str:
    ratio = results.ratio(case, base, figure) if base is not None else None
    return f"{ratio:.3f}" if ratio is not None else ""


def _base(members: list[Case]) -> Case | None:
    return next((case for case in members if case.mechanism == REFERENCE[case.pattern]), None)


def _rates(results: Results, members: list[Case]) -> Iterator[str]:
    base = _base(members)
    body = []
    for case in sorted(members, key=lambda case: -(results.median(case, "rate") or 0)):
        rate, size_rate = results.median(case, "rate"), results.median(case, "bytes_per_s")
        if rate is None or size_rate is None:
            body.append([case.mechanism, results.skipped.get(case, "broke"), "", ""])
        else:
            ratio = _ratio(results, case, base, "rate")
            body.append([case.mechanism, f"{rate:,.0f}", f"{size_rate / 1e9:.3f}", ratio])
    yield from table(("mechanism", "messages/s", "GB/s", f"by {base.mechanism if base else '-'}"), body)


def _trips(results: Results, members: list[Case]) -> Iterator[str]:
    base = _base(members)
    body = []
    for case in sorted(members, key=lambda case: results.median(case, "p50_us") or 1e12):
        median, worst = results.median(case, "p50_us"), results.median(case, "p99_us")
        if median is None or worst is None:
            body.append([case.mechanism, results.skipped.get(case, "broke"), "", ""])
        else:
            ratio = _ratio(results, case, base, "p50_us")
            body.append([case.mechanism, f"{median:.2f}", f"{worst:.2f}", ratio])
    yield from table(("mechanism", "p50 us", "p99 us", f"p50 by {base.mechanism if base else '-'}"), body)


def target_lines(results: Results) -> Iterator[str]:
    """The table of targets."""
    words = {True: "yes", False: "NO", None: "-"}
    body = [[row.target, row.measured, row.beside, words[row.is_reached]] for row in rows(results)]
    yield from ("", "## Targets", "")
    yield from table(("target", "measured", "other placement", "reached?"), body)


def single_lines(results: Results) -> Iterator[str]:
    """Figures that belong to no case, and the curves' points."""
    if results.singles:
        yield from ("", "## Footprint and whole processes", "")
        yield from table(
            ("figure", "value"), [[name, f"{value:,.4g}"] for name, value in results.singles.items()]
        )
    for name, points in results.curves.items():
        yield from ("", f"### {name}", "")
        yield from table(("at", "ns"), [[f"{x:,.0f}", f"{y:,.0f}"] for x, y in points])


def lines(results: Results) -> Iterator[str]:
    """The whole report."""
    yield "# Towpath's benches"
    yield ""
    yield from (f"- {name}: {value}" for name, value in results.facts.items())
    yield from target_lines(results)
    yield from single_lines(results)
    yield from ("", "## Figures", "")
    yield "Medians over the rounds; ratios are medians of the ratios within each round."
    yield from figures_lines(results)
    if results.broken:
        yield from ("", "## Broken", "", *(f"- {text}" for text in results.broken))
