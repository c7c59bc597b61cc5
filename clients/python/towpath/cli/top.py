"""``towpath top``: live rates of channels, bindings, gateways and sessions.

Theory of operation: asks for the daemon's status at each interval, and shows the difference to the one
before (``rates``). On a terminal the page is drawn over itself with plain ANSI; elsewhere each page follows
the last. Nothing is counted anywhere for the sake of it: with nobody looking it costs nothing. A daemon that
does not answer is asked again at the next interval, since watching it come back is part of the purpose.
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Sequence, Set
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from towpath.cli import streams
from towpath.cli.connection import connect
from towpath.cli.rates import Rates, rates
from towpath.cli.report import CONTENTS, contents_cells, to_json_line
from towpath.cli.text import Style, byte_size, duration, one_line, table
from towpath.errors import TowpathError
from towpath.wording import plural

if TYPE_CHECKING:
    import towpath

_HOME: Final = "\x1b[H"
_CLEAR: Final = "\x1b[2J"
_ERASE_LINE: Final = "\x1b[2K"
_ERASE_BELOW: Final = "\x1b[J"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_LINES_BESIDE_ROWS: Final = 18
"""Lines of a page that are no rows of its tables, and one that stays free."""
ROWS_MIN: Final = 3
"""Rows that each table has on a terminal, however low that is."""
ROWS_MAX: Final = 50


def run(arguments: Namespace) -> int:
    """Show rates until somebody stops it, or once."""
    is_drawn = streams.is_terminal(streams.STDOUT) and not (arguments.once or arguments.json)
    if is_drawn:
        streams.emit(_CLEAR)
    with connect(arguments) as client:
        before, before_s = client.status(), time.monotonic()
        streams.leave_when_output_closes()
        while True:
            time.sleep(arguments.interval)
            try:
                after, after_s = client.status(), time.monotonic()
            except TowpathError as error:
                if arguments.once or not error.retryable:
                    raise
                _say(one_line(error.message), is_drawn)
                continue
            _show(arguments, after, rates(before, after, after_s - before_s), is_drawn)
            if arguments.once:
                return 0
            before, before_s = after, after_s


def _show(arguments: Namespace, status: towpath.Status, seen: Rates, is_drawn: bool) -> None:
    if arguments.json:
        streams.emit(to_json_line(asdict(seen)))
        return
    style = Style(streams.is_terminal(streams.STDOUT) and not os.environ.get("NO_COLOR"))
    rows_max = _rows_max() if is_drawn else ROWS_MAX
    lines = page(status, seen, now_ns=time.time_ns(), style=style, rows_max=rows_max)
    streams.emit(_drawn(lines) if is_drawn else "\n".join(lines) + "\n\n")


def _say(text: str, is_drawn: bool) -> None:
    if is_drawn:
        streams.emit(_drawn([f"{text}; asking again"]))
    else:
        streams.warn(text)


def _drawn(lines: Sequence[str]) -> str:
    """A page that covers the one before; what is too long for the terminal's lines is not wrapped."""
    return "".join([_HOME, _NO_WRAP, *(f"{_ERASE_LINE}{line}\n" for line in lines), _ERASE_BELOW, _WRAP])


def _rows_max() -> int:
    """Rows of each of the four tables that together fill the terminal."""
    try:
        lines = os.get_terminal_size(streams.STDOUT).lines
    except OSError:
        lines = 24
    return min(max((lines - _LINES_BESIDE_ROWS) // 4, ROWS_MIN), ROWS_MAX)


def page(
    status: towpath.Status, seen: Rates, *, now_ns: int, style: Style, rows_max: int = ROWS_MAX
) -> list[str]:
    """Write the page.

    Args:
        status: the later look.
        now_ns: nanoseconds since the epoch, from which ages are told.
        rows_max: of each table; how many more there are is said.

    Returns:
        Lines.
    """
    queues = {channel.name for channel in status.channels if channel.kind == "queue"}
    sections = (
        ("Channels", *_channels(seen, queues)),
        ("Bindings", *_bindings(seen)),
        ("Gateways", *_gateways(seen)),
        ("Sessions", *_sessions(seen)),
    )
    lines = _head(status, seen, now_ns, style)
    for title, headings, rows in sections:
        lines += _section(title, headings, rows, style, rows_max)
    return lines


Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Headings, and rows."""


def _head(status: towpath.Status, seen: Rates, now_ns: int, style: Style) -> list[str]:
    up = duration((now_ns - status.started_at_ns) / 1e9)
    total = sum(channel.messages_per_s for channel in seen.channels)
    lines = [
        style(f"towpath {one_line(status.version)}", "bold")
        + f"  up {up}, {plural(status.sessions, 'session')}, {_rate(total)} messages/s"
        + f" over {seen.span_s:.1f} s"
    ]
    if lock_sessions := status.counters.get("lock_sessions", 0):
        names = ("locks", "lock_waits", "lock_deadlocks")
        used, waiting, deadlocks = (status.counters.get(name, 0) for name in names)
        lines.append(
            f"locks: {used:,} in use by {plural(lock_sessions, 'session')}, {waiting:,} wait, "
            f"{plural(deadlocks, 'deadlock')} found"
        )
    return lines


def _channels(seen: Rates, queues: Set[str]) -> Table:
    contents = [contents_cells(channel.contents) for channel in seen.channels]
    holding = [index for index in range(len(CONTENTS)) if any(held[index] for held in contents)]
    headings = (
        *("NAME", ">MESSAGES/S", *([">DONE/S"] if queues else [])),
        *(">BYTES/S", ">MESSAGES", ">PUBLISHERS", ">SUBSCRIBERS"),
        *(CONTENTS[index] for index in holding),
    )
    return headings, [
        (
            channel.name,
            _rate(channel.messages_per_s),
            *([_rate(channel.done_per_s) if channel.name in queues else "-"] if queues else []),
            _bytes(channel.ring_bytes_per_s),
            f"{channel.messages:,}",
            str(channel.publishers),
            str(channel.subscribers),
            *(held[index] or "-" for index in holding),
        )
        for channel, held in zip(seen.channels, contents, strict=True)
    ]


def _bindings(seen: Rates) -> Table:
    return ("ID", "CHANNEL", "STATE", ">IN/S", ">OUT/S", ">BYTES/S", ">REFUSED/S", "URL"), [
        (
            str(binding.id),
            binding.channel,
            binding.state,
            _rate(binding.messages_in_per_s),
            _rate(binding.messages_out_per_s),
            _bytes(binding.bytes_in_per_s + binding.bytes_out_per_s),
            _rate(binding.refused_per_s),
            binding.url,
        )
        for binding in seen.bindings
    ]


def _gateways(seen: Rates) -> Table:
    return ("NAME", "STATE", "PER SECOND"), [
        (
            gateway.name,
            gateway.state.replace("_", " "),
            ", ".join(
                f"{name.replace('_', ' ')} {_rate(rate)}" for name, rate in gateway.counters_per_s.items()
            ),
        )
        for gateway in seen.gateways
    ]


def _sessions(seen: Rates) -> Table:
    return (">PID", "PRINCIPAL", ">MESSAGES/S", ">BYTES/S", ">PUB", ">SUB", ">PENDING", "NAME"), [
        (
            str(session.pid or "-"),
            session.principal,
            _rate(session.messages_per_s),
            _bytes(session.ring_bytes_per_s),
            str(session.publishers),
            str(session.subscribers),
            byte_size(session.pending_bytes),
            session.name,
        )
        for session in seen.sessions
    ]


def _section(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], style: Style, rows_max: int
) -> list[str]:
    """A table below its title; nothing where it has no rows."""
    if not rows:
        return []
    lines = ["", style(title, "bold"), *table(headings, rows[:rows_max], style, indent="  ")]
    if len(rows) > rows_max:
        lines.append(f"  and {len(rows) - rows_max:,} more")
    return lines


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 10 or per_s == 0 else f"{per_s:.1f}"


def _bytes(per_s: float) -> str:
    return byte_size(round(per_s))
