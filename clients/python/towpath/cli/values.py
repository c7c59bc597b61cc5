"""Types of the command line's arguments: text in, a checked value or a clear error out.

Pure functions for argparse's ``type=``. Each raises :class:`argparse.ArgumentTypeError`, which argparse
reports with the name of the argument before it. Not here: what only the daemon can judge, such as whether
a ring size is a power of two.
"""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from towpath import model

SECONDS_MAX: Final = 10 * 365 * 86_400
"""Longest time that can be asked for; more would overflow the clocks beneath."""
COUNT_MAX: Final = 2**63 - 1
SPEED_MIN: Final = 0.001
"""Slowest replay; the fastest that has a number is as many times faster than the original."""
RATE_MAX: Final = 1e12

DOUBLE_DASH: Final = "\0"
"""Stands for a literal ``--`` among the positionals, which argparse would swallow; no argv holds a NUL."""

_SIZE = re.compile(r"([0-9]{1,18})\s*(?:([KMG])(?:i?B)?|B)?\Z", re.IGNORECASE)
_SHIFT = {"K": 10, "M": 20, "G": 30}


def size(text: str) -> int:
    """Read a number of bytes: ``65536``, ``64K``, ``4M``, ``1GiB``; a unit is a power of 1024."""
    match = _SIZE.match(text)
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write bytes, or K, M, G as in 4M")
    return int(match[1]) << (_SHIFT[match[2].upper()] if match[2] else 0)


def seconds(text: str) -> float:
    """Read a time in seconds, 0 or more, fractions allowed."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: write seconds, as in 2.5")
    return value


def interval(text: str) -> float:
    """Read a time between two looks: 0.1 s to a day."""
    value = seconds(text)
    if not 0.1 <= value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not an interval: write 0.1 to 86400 seconds")
    return value


def speed(text: str) -> float:
    """Read how many times as fast: ``0.5``, ``10``; ``max`` gives 0, which stands for as fast as can be."""
    if text == "max":
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not SPEED_MIN <= value <= 1 / SPEED_MIN:
        raise argparse.ArgumentTypeError(f"{text!r} is not a speed: write 0.5, 2, or max")
    return value


def rate(text: str) -> float:
    """Read how many a second: more than 0, fractions allowed."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= RATE_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate: write a number per second, as in 0.5")
    return value


def count(text: str) -> int:
    """Read a number of things, 1 or more."""
    if not (text.isascii() and text.isdigit() and 0 < int(text[:20]) <= COUNT_MAX):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def number(text: str) -> int:
    """Read a whole number, 0 or more."""
    if not (text.isascii() and text.isdigit() and int(text[:20]) <= COUNT_MAX):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return int(text)


def pair(text: str) -> tuple[str, str]:
    """Read ``key=value``; only the first ``=`` divides."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def share(text: str) -> tuple[str, int]:
    """Read ``name=number``, a number from 1 up."""
    name, amount = pair(text)
    return name, count(amount)


def data(text: str) -> str:
    """Read one message given as an argument: any text, as it is."""
    return "--" if text == DOUBLE_DASH else text


def start(text: str) -> model.Start:
    """Read where in a durable topic to begin: ``all``, ``new``, a seq, or a time (UTC unless it says)."""
    if text in ("all", "new"):
        return "all" if text == "all" else "new"
    if text.isascii() and text.isdigit() and 0 < int(text) <= COUNT_MAX:
        return int(text)
    from datetime import UTC, datetime

    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not all, new, a seq or a time like 2026-11-22T14:00Z"
        ) from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
