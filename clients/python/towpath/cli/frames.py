"""``--frame`` and its companions, as ``pub`` and ``sub`` have them, and an account of refusals."""

from __future__ import annotations

from argparse import Namespace

from towpath.bindings import parse_framing
from towpath.cli import streams
from towpath.errors import TowpathError
from towpath.framing import FRAME_BYTES_MAX_LIMIT, FramingOptions


def framing_options(arguments: Namespace, *, bytes_max: int = FRAME_BYTES_MAX_LIMIT) -> FramingOptions:
    """Read the framing out of the command line.

    Args:
        arguments: with ``frame`` (None: line), ``delimiter``, ``frame_bytes`` and ``frame_bytes_max``.
        bytes_max: the longest frame, unless a lower limit was asked for.

    Raises:
        InvalidArgument: an option is missing, out of range or at odds with another.
    """
    limit = min(arguments.frame_bytes_max or bytes_max, bytes_max, FRAME_BYTES_MAX_LIMIT)
    stated = {"framing": arguments.frame or "line", "frame_bytes_max": str(limit)}
    if arguments.delimiter is not None:
        stated["delimiter"] = arguments.delimiter
    if arguments.frame_bytes is not None:
        stated["frame_bytes"] = str(arguments.frame_bytes)
    if arguments.frame == "fixed" and arguments.frame_bytes_max is None:
        del stated["frame_bytes_max"]
    return parse_framing(stated)


class Refusals:
    """Tells of frames that were left out: the first at once, the number at the end, and the exit code.

    Args:
        what: what was not done with them: ``not published``.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._refused = 0
        self._error: TowpathError | None = None

    def note(self, refused: int, error: TowpathError | None) -> bool:
        """Take a coder's account; True when this was the first that was refused, and has been told."""
        is_first = self._refused == 0 and refused > 0
        self._refused = refused
        self._error = error
        if is_first and error is not None:
            streams.warn(f"{self._what}: {error.message}")
        return is_first

    def conclude(self) -> int:
        """Tell how many there were; return the exit code, 0 if there were none."""
        if self._error is None:
            return 0
        streams.warn(f"{self._what}, in all: {self._refused:,}")
        if self._error.hint:
            streams.note(f"hint: {self._error.hint}")
        return self._error.row.exit_code
