"""What processes tell of what they did with locks: a line of JSON for each event, in a file of each process.

Theory of operation
    A line is written by one write(2) before the next thing is done, so a killed process has told all that it
    did but, perhaps, the last thing. Times are of CLOCK_MONOTONIC, which all processes of a host share. What
    begins (``call``, ``end``, ``write``) is noted before it begins, what has come about (``got``, ``wrote``)
    afterwards: so whatever is told lies between the two.

    Of what is done to a process (killed, stopped), the one who does it tells, before it does it: itself, too.

Not here: what it means (``checker``).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

Event = dict[str, Any]
FOREVER: Final = 1 << 63
"""The end of what has not ended."""


class Teller:
    """Appends events to a file.

    Args:
        path: made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def tell(self, kind: str, **fields: Any) -> None:
        """Tell an event, and when it was."""
        line = json.dumps({"kind": kind, "at_ns": time.monotonic_ns(), **fields}) + "\n"
        assert os.write(self._file, line.encode()) == len(line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read(path: Path) -> Iterator[Event]:
    """Yield a file's events, in order."""
    if path.exists():
        for line in path.read_text().splitlines():
            yield json.loads(line)
