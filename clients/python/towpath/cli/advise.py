"""``towpath advise``: which mechanism suits, measured on this machine.

Theory of operation
    Options become requirements, every mechanism is measured with them (``towpath.advise``), and what the
    rules say is printed, with the figures and the commands. Nothing of the user's is touched, and no daemon
    need run: what goes through Towpath is measured with one of its own. On a terminal a line says what is
    being measured. With ``--plot`` other sizes are measured too, for the picture.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from textwrap import wrap
from typing import Final

from towpath.advise.measuring import QUICK_S, ROUNDS, RUN_S, TOTAL_S, Measurer
from towpath.advise.model import FAN_OUT_MAX, MECHANISMS, SIZE_BYTES_MAX, Measurement, Requirements
from towpath.advise.recipes import Line, recipe
from towpath.advise.rules import Candidate, rank, reason
from towpath.advise.site import Site
from towpath.cli import advise_plot as plot
from towpath.cli import streams
from towpath.cli.grammar import UsageError
from towpath.cli.report import to_json
from towpath.cli.text import Style, byte_size, table
from towpath.wording import plural

EXIT_NONE: Final = 1
WIDTH: Final = 100
PLOT_TOTAL_S: Final = 240.0
SIZES: Final = (64, 1 << 10, 16 << 10, 256 << 10, 1 << 20)
QUICK_SIZES: Final = (64, 4 << 10, 256 << 10)
_ROLES: Final = {"daemon": "the daemon", "once": "once", "receiver": "each receiver", "sender": "the sender"}
_ERASE: Final = "\r\x1b[K"


def run(arguments: Namespace) -> int:
    """Measure, advise, and draw if asked to; return 1 where nothing will do."""
    required = _requirements(arguments)
    if arguments.plot is not None:
        plot.check_file(Path(arguments.plot))
    progress = _Progress(is_shown=streams.is_terminal(streams.STDERR) and not arguments.no_progress)
    sizes = () if arguments.plot is None else QUICK_SIZES if arguments.quick else SIZES
    with Site(has_gateways=required.is_durable) as site:
        measurer = Measurer(
            site,
            run_s=QUICK_S if arguments.quick else RUN_S,
            rounds=1 if arguments.quick else ROUNDS,
            total_s=TOTAL_S if arguments.plot is None else PLOT_TOTAL_S,
        )
        progress.total = len(MECHANISMS) * (1 + len(set(sizes) - {required.size_bytes}))
        measured = _measure(measurer, required, progress)
        curves: dict[str, list[Measurement]] = {name: [] for name in MECHANISMS}
        for size_bytes in sorted({*sizes, required.size_bytes} if sizes else ()):
            at_size = (
                measured
                if size_bytes == required.size_bytes
                else _measure(measurer, replace(required, size_bytes=size_bytes), progress)
            )
            for name in MECHANISMS:
                curves[name].append(at_size[name])
    progress.erase()
    ranked = rank(required, measured)
    fit = [candidate for candidate in ranked if not candidate.refusals]
    if arguments.plot is not None:
        advised = fit[0].mechanism.name if fit else ""
        title = f"What carries how much on this machine: {_circumstances(required)}"
        if advised:
            title += f" (thick: advised for {byte_size(required.size_bytes)})"
        plot.draw(curves, advised, title, Path(arguments.plot))
    streams.emit(_document(required, ranked) if arguments.json else _text(required, ranked, arguments.plot))
    return 0 if fit else EXIT_NONE


def _requirements(arguments: Namespace) -> Requirements:
    """Make requirements of the options.

    Raises:
        UsageError: one is out of range.
    """
    if arguments.size > SIZE_BYTES_MAX:
        raise UsageError(
            f"--size is at most {byte_size(SIZE_BYTES_MAX)}",
            "larger messages: cut them, or pass a file's name",
        )
    if arguments.fan_out > FAN_OUT_MAX:
        raise UsageError(
            f"--fan-out is at most {FAN_OUT_MAX}: each receiver is a process",
            "more receivers behave as so many do, with as much less for each",
        )
    return Requirements(
        size_bytes=arguments.size,
        rate=arguments.rate,
        fan_out=arguments.fan_out,
        is_sync=arguments.sync,
        is_durable=arguments.durable,
        reach=arguments.reach,
    )


class _Progress:
    """One line that says what is being measured."""

    def __init__(self, *, is_shown: bool) -> None:
        self._is_shown = is_shown
        self.total = self._done = 0

    def advance(self, what: str) -> None:
        self._done += 1
        if self._is_shown:
            line = f"measuring {self._done} of {self.total}: {what}"
            streams.show(_ERASE + line[: streams.columns(streams.STDERR) - 1])

    def erase(self) -> None:
        if self._is_shown:
            streams.show(_ERASE)


def _measure(measurer: Measurer, required: Requirements, progress: _Progress) -> dict[str, Measurement]:
    measured = {}
    for name, mechanism in MECHANISMS.items():
        progress.advance(f"{mechanism.title}, {byte_size(required.size_bytes)}")
        measured[name] = measurer.measure(name, required)
    return measured


# ---- what is printed


def _circumstances(required: Requirements) -> str:
    """What is asked for, but the size."""
    words = [] if required.rate is None else [f"{required.rate:,.15g} a second"]
    words.append(plural(required.fan_out, "receiver"))
    for asked, word in (
        (required.is_sync, "each answered"),
        (required.is_durable, "kept on disk"),
        (required.reach == "network", "to another host"),
    ):
        words += [word] if asked else []
    return ", ".join(words)


def _document(required: Requirements, ranked: Sequence[Candidate]) -> str:
    fit = [candidate for candidate in ranked if not candidate.refusals]
    advice: Mapping[str, object] | None = None
    if fit:
        advice = {
            "mechanism": fit[0].mechanism.name,
            "reason": reason(list(ranked), required),
            "commands": [asdict(line) for line in recipe(fit[0].mechanism.name, required)],
        }
    candidates = [
        {
            "mechanism": each.mechanism.name,
            "rate": each.measurement.rate,
            "p50_us": each.measurement.p50_us,
            "p99_us": each.measurement.p99_us,
            "refusals": each.refusals,
            "extras": each.extras,
            "remarks": each.remarks,
        }
        for each in ranked
    ]
    return to_json({"requirements": asdict(required), "advice": advice, "candidates": candidates})


def _text(required: Requirements, ranked: list[Candidate], picture: str | None) -> str:
    style = Style(streams.is_terminal(streams.STDOUT) and not os.environ.get("NO_COLOR"))
    rows = [
        [each.mechanism.title, f"{each.measurement.rate:,.0f}", *_trip(each.measurement)]
        for each in ranked
        if each.measurement.rate
    ]
    asked = f"Messages of {byte_size(required.size_bytes)}, {_circumstances(required)}."
    lines = [asked, "Measured here, from Python to Python:", ""]
    lines += table(["MECHANISM", ">MESSAGES/S", ">ROUND TRIP P50", ">P99"], rows, style, indent="  ")
    fit = [candidate for candidate in ranked if not candidate.refusals]
    if fit:
        best = fit[0]
        lines += ["", style(f"Advice: {best.mechanism.title}.", "bold")]
        lines += wrap(reason(ranked, required), WIDTH, initial_indent="  ", subsequent_indent="  ")
        lines += [f"  - {note}" for note in (*best.extras, *best.remarks)]
        lines += ["", "To set it up (`orders` is a name of your choice, and the programs are yours):", ""]
        lines += _commands(recipe(best.mechanism.name, required), is_asked=required.is_sync)
    else:
        lines += ["", style("None of these will do.", "bold")]
    notes = [f"  {each.mechanism.title}: {'; '.join(each.refusals)}" for each in ranked if each.refusals]
    notes += [f"  {each.mechanism.title}: {'; '.join(each.extras)}" for each in fit[1:] if each.extras]
    if notes:
        lines += ["", "Why not", *notes]
    if picture is not None:
        lines += ["", f"The picture: {picture}"]
    return "\n".join([*lines, ""])


def _trip(measured: Measurement) -> list[str]:
    return [
        f"{each:,.1f} µs" if each < 1e4 else f"{each / 1e3:,.1f} ms"
        for each in (measured.p50_us, measured.p99_us)
    ]


def _commands(lines: Sequence[Line], *, is_asked: bool) -> list[str]:
    """The commands, each kind below a comment that says who runs it."""
    roles = {**_ROLES, "receiver": "who answers", "sender": "who asks"} if is_asked else _ROLES
    printed: list[str] = []
    before = ""
    for line in lines:
        if line.role != before:
            printed.append(f"  # {roles[line.role]}")
            before = line.role
        printed.append(f"  {line.command}")
    return printed
