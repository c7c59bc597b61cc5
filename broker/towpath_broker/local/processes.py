"""What the host knows of a process that has a connection."""

from __future__ import annotations

import os
from typing import Final

PLACE_CHARS_MAX: Final = 512


def is_alive(pid: int) -> bool:
    """Whether there is a process of this number; maybe another one by now: that session has to wait."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def command_line(pid: int) -> str:
    """Return a process's command line, as far as it can be read; for people."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4 * PLACE_CHARS_MAX)
    except OSError:
        return ""
    text = words.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    return "".join(char if char.isprintable() else "?" for char in text)[:PLACE_CHARS_MAX]
