"""Structured log lines, shared by every process of the daemon: one line per event, to stderr.

Theory of operation
    A line is logfmt: ``2026-11-22T14:00:00.000Z info gateway.listening gateway=zeromq
    sub=tcp://127.0.0.1:5556``. Under journald, which keeps time and level itself (``JOURNAL_STREAM`` names
    our stderr), the line begins with its level as ``<6>`` instead, see sd-daemon(3). The event's name is
    constant, so that it can be searched for; what varies is in the fields. Each line is one ``write(2)``, so
    that lines of several processes do not mix.

Invariants
    Never a payload in a field. A field's value is cut at ``VALUE_CHARS_MAX``; it cannot contain a line break.
    A log that cannot be written is dropped: it neither stops the process nor raises.

Not here: loggers, handlers, files, rotation. A supervisor of services does that better. Imports nothing of
Towpath.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import Final, Literal

Level = Literal["debug", "info", "warning", "error"]

LEVELS: Final[dict[str, int]] = {"debug": 7, "info": 6, "warning": 4, "error": 3}
"""Names of levels and their syslog priorities."""
LEVEL_ENVIRONMENT: Final = "TOWPATH_LOG_LEVEL"
VALUE_CHARS_MAX: Final = 1_000

_BARE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/@+,%*[]")


def _is_journal(descriptor: int) -> bool:
    """Whether a descriptor is the stream that systemd connected to the journal; see systemd.exec(5),
    JOURNAL_STREAM."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        stat = os.fstat(descriptor)
        return (int(device), int(inode)) == (stat.st_dev, stat.st_ino)
    except (OSError, ValueError):
        return False


_to_journal = _is_journal(2)
_threshold = LEVELS.get(os.environ.get(LEVEL_ENVIRONMENT, "info"), LEVELS["info"])


def set_level(level: Level) -> None:
    """Log only events of this level and above, here and in processes started from now on."""
    global _threshold
    _threshold = LEVELS[level]
    os.environ[LEVEL_ENVIRONMENT] = level


def format_value(value: object) -> str:
    """Return a field's value as one word: bare if it can be, else as a JSON string."""
    text = value if isinstance(value, str) else str(value)
    if len(text) > VALUE_CHARS_MAX:
        text = text[: VALUE_CHARS_MAX - 3] + "..."
    return text if text and _BARE.issuperset(text) else json.dumps(text)


def log(event: str, *, level: Level = "info", **fields: object) -> None:
    """Write one event to stderr.

    Args:
        event: a constant, dotted name: ``gateway.listening``.
        level: dropped when below the process's level.
        fields: what varies; None and empty strings are left out. Never a payload.
    """
    priority = LEVELS[level]
    if priority > _threshold:
        return
    words = [
        event,
        *(
            f"{name}={format_value(value)}"
            for name, value in fields.items()
            if value is not None and value != ""
        ),
    ]
    if _to_journal:
        prefix = f"<{priority}>"
    else:
        now_ns = time.time_ns()
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_ns // 1_000_000_000))
        prefix = f"{at}.{now_ns // 1_000_000 % 1_000:03}Z {level} "
    with contextlib.suppress(OSError):
        os.write(2, (prefix + " ".join(words) + "\n").encode(errors="replace"))
