"""The picture of ``towpath advise``: size against throughput, and against the round trip.

Needs matplotlib (extra ``plot``), which is imported when there is something to draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from towpath.advise.model import MECHANISMS, Measurement
from towpath.cli.text import byte_size
from towpath.errors import InvalidArgument, NotSupported

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS: Final = (".png", ".svg", ".pdf")
_LOOKS: Final = {
    "pipe": ("#4c78a8", "o"),
    "fifo": ("#72b7b2", "s"),
    "unix": ("#9d9da1", "D"),
    "mq": ("#b279a2", "^"),
    "ring": ("#0b6e4f", "o"),
    "loan": ("#86bc25", "*"),
    "zmq-ipc": ("#f0a43a", "v"),
    "zmq-tcp": ("#e45756", "P"),
    "grpc": ("#6b4c3b", "X"),
}


def check_file(file: Path) -> None:
    """Make sure, before anything is measured, that the picture can be written.

    Raises:
        InvalidArgument: not by this name.
        NotSupported: matplotlib is not installed.
    """
    if file.suffix not in FORMATS:
        raise InvalidArgument(
            f"{file}: a picture's name ends with {', '.join(FORMATS)}", hint="as in: --plot picture.png"
        )
    if not file.parent.is_dir():
        raise InvalidArgument(f"{file.parent} is not a directory", hint="make it first")
    if find_spec("matplotlib") is None:
        raise NotSupported("a picture needs matplotlib", hint="pip install 'towpath[plot]'")


def rate_text(rate: float) -> str:
    """A rate, shortly: 500, 20 k, 3 M."""
    for scale, unit in ((1e6, " M"), (1e3, " k")):
        if rate >= scale:
            return f"{rate / scale:g}{unit}"
    return f"{rate:g}"


def span_text(span_us: float) -> str:
    """A time, shortly: 10 µs, 1 ms."""
    for scale, unit in ((1e6, "s"), (1e3, "ms")):
        if span_us >= scale:
            return f"{span_us / scale:g} {unit}"
    return f"{span_us:g} µs"


def draw(curves: Mapping[str, Sequence[Measurement]], advised: str, title: str, file: Path) -> None:
    """Draw and write the picture.

    Args:
        curves: by mechanism, one measurement for each size; those with an obstacle are left out.
        advised: the mechanism that is drawn thicker; empty for none.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (rates, trips) = pyplot.subplots(1, 2, figsize=(13, 5.6), layout="constrained")
    for name, curve in curves.items():
        measured = [each for each in curve if not each.obstacle]
        if measured:
            sizes = [each.size_bytes for each in measured]
            _line(rates, name, sizes, [each.rate for each in measured], advised)
            _line(trips, name, sizes, [each.p50_us for each in measured], advised)
    sizes = sorted({each.size_bytes for curve in curves.values() for each in curve})
    for axes, heading, shown in (
        (rates, "Messages a second (more is better)", rate_text),
        (trips, "Round trip, median (less is better)", span_text),
    ):
        axes.set_title(heading, loc="left", fontsize=11)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [byte_size(size) for size in sizes])
        axes.yaxis.set_major_formatter(lambda value, _, shown=shown: shown(value))
        axes.minorticks_off()
        axes.set_xlabel("size of a message")
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.legend(*rates.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _line(axes: Axes, name: str, sizes: list[int], values: list[float], advised: str) -> None:
    colour, marker = _LOOKS[name]
    width = 3.0 if name == advised else 1.4
    label = MECHANISMS[name].title
    axes.plot(sizes, values, color=colour, marker=marker, markersize=5, linewidth=width, label=label)
