"""Text for people: aligned tables, sizes, ages, colours, and bytes made safe for a terminal. Pure functions.

What arrives from elsewhere (payloads, URLs, error messages) may hold escape sequences that would drive
the reader's terminal; everything meant for one goes through :func:`one_line` or :func:`printable`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Final

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")
_SGR: Final = {"bold": "1", "red": "31", "green": "32", "yellow": "33", "dim": "2"}
_NS_PER_S: Final = 1_000_000_000


class Style:
    """Colours, or none."""

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def __call__(self, text: str, look: str) -> str:
        """Return the text in that look (``bold``, ``red``, ..., or empty); unchanged without colours."""
        return f"\x1b[{_SGR[look]}m{text}\x1b[0m" if self._colour and look and text else text


def byte_size(number: int) -> str:
    """Write a number of bytes shortly: ``512 B``, ``64 KiB``, ``1.5 MiB``."""
    value = float(number)
    for unit in _UNITS:
        if value < 1023.95 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if value == int(value) or unit == "B" else f"{value:.1f} {unit}"


def duration(span_s: float) -> str:
    """Write a time span shortly, in its two largest units: ``42 s``, ``3 min 12 s``, ``2 d 5 h``."""
    total = max(int(span_s), 0)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        number, total = divmod(total, length)
        if number or (unit == "s" and not parts):
            parts.append(f"{number} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


def ago(at_ns: int, now_ns: int) -> str:
    """Write how long ago a moment was."""
    return f"{duration((now_ns - at_ns) / _NS_PER_S)} ago"


def ordinal(number: int) -> str:
    """Write ``1st``, ``2nd``, ``11th``."""
    suffix = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def one_line(text: str) -> str:
    """Escape whatever would move a cursor: controls, line separators, direction overrides."""
    return "".join(_escape(character) if _is_unsafe(character) else character for character in text)


def clipped(text: str, width: int) -> str:
    """Cut a text to so many columns; ``…`` stands for what is cut off.

    Args:
        text: one line, without control characters.
        width: 1 or more.
    """
    if len(text) * 2 <= width or _width(text) <= width:
        return text
    used = 0
    for index, character in enumerate(text):
        used += _width(character)
        if used >= width:
            return f"{text[:index]}…"
    return text


def printable(payload: bytes) -> bytes:
    r"""Make a payload safe to show on a terminal.

    Args:
        payload: any bytes; those that are not UTF-8 become ``\xNN``.

    Returns:
        UTF-8 without control characters but tab and newline.
    """
    text = payload.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text.encode()
    safe = (
        character if character in "\t\n" or not _is_unsafe(character) else _escape(character)
        for character in text
    )
    return "".join(safe).encode()


def _is_unsafe(character: str) -> bool:
    if character.isprintable():
        return False
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escape(character: str) -> str:
    number = ord(character)
    return (
        f"\\x{number:02x}"
        if number < 0x100
        else f"\\u{number:04x}"
        if number < 0x10000
        else f"\\U{number:08x}"
    )


def _width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


class Cell(str):
    """A cell of a table with a look of its own."""

    look: str

    def __new__(cls, text: str, look: str) -> Cell:
        cell = super().__new__(cls, text)
        cell.look = look
        return cell


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], style: Style, *, indent: str = ""
) -> list[str]:
    """Lay out rows in aligned columns.

    Args:
        headings: one for each column; a heading that begins with ``>`` has its column aligned right.
        rows: cells, as many in each row as there are headings; a :class:`Cell` is shown in its look.
        indent: put before every line.

    Returns:
        Lines, the first with the headings, none with blanks at its end.
    """
    titles = [heading.lstrip(">") for heading in headings]
    safe_rows = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(titles, *safe_rows, strict=True)]

    def line(cells: Sequence[str], looks: Sequence[str]) -> str:
        parts = []
        for index, (cell, heading, width, look) in enumerate(
            zip(cells, headings, widths, looks, strict=True)
        ):
            padding = " " * (width - _width(cell))
            is_last = index == len(widths) - 1
            right = heading.startswith(">")
            parts.append(
                (padding if right else "") + style(cell, look) + ("" if right or is_last else padding)
            )
        return (indent + "  ".join(parts)).rstrip()

    looks_of_rows = [[cell.look if isinstance(cell, Cell) else "" for cell in row] for row in rows]
    return [
        line(titles, ["dim"] * len(titles)),
        *(line(cells, looks) for cells, looks in zip(safe_rows, looks_of_rows, strict=True)),
    ]
