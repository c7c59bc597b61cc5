"""One line on standard error that says how far a long input has come.

Theory of operation: the line is redrawn in place, at most ``UPDATES_PER_S`` times a second, and not at
all for an input that ends within ``QUIET_S``. At the end it becomes a summary. Drawing is driven by
:meth:`Progress.advance`, so a blocked publisher shows its last figures, and nothing runs while nothing
moves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from towpath.cli.text import byte_size, duration
from towpath.wording import plural

UPDATES_PER_S: Final = 5
QUIET_S: Final = 1.0
_ERASE: Final = "\r\x1b[K"


class Progress:
    """Counts messages and bytes, and shows them.

    Args:
        total_bytes: bytes that the input has, where known: then a share and the time left are shown.
        show: takes the text to be written to the terminal.
        clock: seconds, from any origin.
        columns: width of the terminal.
    """

    def __init__(
        self,
        total_bytes: int | None,
        *,
        show: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        columns: int = 80,
    ) -> None:
        self.total_bytes = total_bytes
        self._show = show
        self._clock = clock
        self._columns = columns
        self._started_s = clock()
        self._next_s = self._started_s + QUIET_S
        self._is_shown = False
        self.messages = 0
        self.read_bytes = 0

    def advance(self, messages: int, read_bytes: int) -> None:
        """Count what was carried; draws when it is time to."""
        self.messages += messages
        self.read_bytes += read_bytes
        now_s = self._clock()
        if now_s >= self._next_s:
            self._next_s = now_s + 1 / UPDATES_PER_S
            self._is_shown = True
            line = progress_line(self.messages, self.read_bytes, now_s - self._started_s, self.total_bytes)
            # Never the last column: a terminal may wrap there, and the next line would not cover this one.
            self._show(_ERASE + line[: self._columns - 1])

    def erase(self) -> None:
        """Take the line away, so that something else can be written."""
        if self._is_shown:
            self._show(_ERASE)

    def finish(self) -> None:
        """Replace the line, if there is one, by a summary."""
        if self._is_shown:
            elapsed_s = self._clock() - self._started_s
            line = progress_line(self.messages, self.read_bytes, elapsed_s, None)
            self._show(f"{_ERASE}{line} in {duration(elapsed_s)}\n")
            self._is_shown = False


def progress_line(messages: int, read_bytes: int, elapsed_s: float, total_bytes: int | None) -> str:
    """Write the line: messages, bytes, rate, and for an input of known size its share and the time left."""
    line = f"{plural(messages, 'message')}, " if messages or not read_bytes else ""
    line += byte_size(read_bytes)
    if elapsed_s > 0:
        line += f", {byte_size(round(read_bytes / elapsed_s))}/s"
    if total_bytes and read_bytes <= total_bytes:
        line += f", {100 * read_bytes // total_bytes} %"
        if read_bytes:
            line += f", {duration(elapsed_s * (total_bytes - read_bytes) / read_bytes)} left"
    return line
