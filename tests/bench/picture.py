"""The picture of a run: rates, bandwidth and round trips by mechanism, and the curves. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.bench.cases import PAUSE_NS, SIZES, Case, mechanism_named
from tests.bench.load import Pattern
from tests.bench.report import size_text
from tests.bench.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS: Final = {"towpath": "#0b6e4f", "local": "#8d99ae", "peers": "#d1495b"}
LABELS: Final = {"towpath": "Towpath", "local": "the host's own", "peers": "peers"}


def _bars(
    axes: Axes, results: Results, title: str, figure: str, scale: float, unit: str, **load: Any
) -> None:
    """One bar for each mechanism that has this figure, the best on top."""
    found = [
        (value * scale, case)
        for case in results.rounds
        if all(getattr(case, name) == wanted for name, wanted in load.items())
        and (value := results.median(case, figure)) is not None
    ]
    found.sort(key=lambda each: each[0], reverse=figure.endswith("us"))
    axes.set_title(title, fontsize=10, loc="left")
    if not found:
        axes.set_axis_off()
        return
    values = [value for value, _ in found]
    colours = [COLOURS[mechanism_named(case.mechanism).family] for _, case in found]
    bars = axes.barh([case.mechanism for _, case in found], values, color=colours)
    axes.bar_label(bars, [f"{value:,.3g}" for value in values], padding=3, fontsize=7)
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 1.6, max(values) * 2.5)
    axes.set_xlabel(unit, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def _against_size(axes: Axes, results: Results, placement: str) -> None:
    """Bandwidth against payload size, the mechanisms of most interest."""
    lines = {
        "towpath": "-",
        "towpath, batched": "--",
        "FIFO": "-",
        "pyzmq ipc": "-",
        "iceoryx2": "-",
        "grpc.aio, batched": "--",
        "nats-py": "-",
        "zenoh": "-",
    }
    for name, style in lines.items():
        points = [
            (size, value / 1e9)
            for size in SIZES
            if (value := results.median(Case(name, placement, "one-way", size, False), "bytes_per_s"))  # type: ignore[arg-type]
        ]
        if points:
            width = 2.5 if name.startswith("towpath") else 1.2
            axes.plot(
                *zip(*points, strict=True), style, marker="o", markersize=3, linewidth=width, label=name
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(SIZES, [size_text(size) for size in SIZES])
    axes.set_title(f"Bandwidth by payload, no checksum, {placement} (GB/s)", fontsize=10, loc="left")
    if axes.lines:
        axes.legend(fontsize=7)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)


def _curve(axes: Axes, name: str, points: list[tuple[float, float]]) -> None:
    """A cost against a number, with the line that linear growth from the first point would be."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    axes.plot(xs, ys, "o-", color=COLOURS["towpath"], label="measured")
    axes.plot(xs, [ys[0] * x / xs[0] for x in xs], ":", color="grey", label="linear from the first point")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(min(ys) / 2, max(ys) * 4)
    axes.set_title(f"{name[0].upper()}{name[1:]} (ns)", fontsize=10, loc="left")
    axes.legend(fontsize=7)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)


def draw(results: Results, file: Path) -> None:
    """Write the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    count = 6 + max(0, len(results.curves) - 2) // 2  # three curves are in the first six rows
    figure, grid = pyplot.subplots(count, 2, figsize=(15, 5.33 * count), layout="constrained")
    kinds: list[tuple[str, str, float, str, Pattern, dict[str, Any]]] = [
        ("One-way, 64 B, checksummed", "rate", 1e-6, "million messages/s", "one-way", {"is_checked": True}),
        (
            "Fan-out to 4, 64 B, checksummed",
            "rate",
            1e-6,
            "million deliveries/s",
            "fan-out",
            {"is_checked": True},
        ),
        (
            "Round trip p50, 64 B, both awake",
            "p50_us",
            1,
            "microseconds (less is better)",
            "round trip",
            {"pause_ns": 0},
        ),
    ]
    for row, (title, name, scale, unit, pattern, load) in enumerate(kinds):
        for column, placement in enumerate(("free", "one core")):
            _bars(
                grid[row][column], results, f"{title}, {placement}", name, scale, unit,
                pattern=pattern, size_bytes=64, placement=placement, **load,
            )  # fmt: skip
    _bars(
        grid[3][0], results, "Round trip p50, 64 B, after both slept, free", "p50_us", 1,
        "microseconds (less is better)",
        pattern="round trip", size_bytes=64, placement="free", pause_ns=PAUSE_NS,
    )  # fmt: skip
    _against_size(grid[3][1], results, "free")
    _bars(
        grid[4][0], results, "Round trip p50, 64 B, both awake, a core each", "p50_us", 1,
        "microseconds (less is better)",
        pattern="round trip", size_bytes=64, placement="two cores", pause_ns=0,
    )  # fmt: skip
    places = (grid[4][1], *(axes for row in grid[5:] for axes in row))
    for axes, (curve, points) in zip(places, results.curves.items(), strict=False):
        _curve(axes, curve, points)
    for axes in places[len(results.curves) :]:
        axes.set_axis_off()
    figure.legend(
        handles=[Patch(color=COLOURS[family], label=LABELS[family]) for family in COLOURS],
        loc="outside upper right", ncols=3, fontsize=9,
    )  # fmt: skip
    figure.suptitle(
        f"Towpath {results.facts.get('towpath', '')} beside others: {results.facts.get('machine', '')}",
        x=0.01,
        ha="left",
    )
    figure.savefig(file, dpi=80)
    pyplot.close(figure)
