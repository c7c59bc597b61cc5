"""The options of bindings that carry a byte stream: how it is cut into messages. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from towpath.bindings.grammar import Option, canonical, parse_bytes, with_defaults
from towpath.errors import InvalidArgument
from towpath.framing import (
    DELIMITER_BYTES_MAX,
    FRAME_BYTES_MAX_DEFAULT,
    FRAME_BYTES_MAX_LIMIT,
    Framing,
    FramingOptions,
)

OPTIONS: Final = (
    Option(
        "framing", "choice", "line", "How the byte stream is cut into messages.",
        choices=tuple(framing.value for framing in Framing),
    ),
    Option("delimiter", "bytes", None, "What ends each message.", minimum=1, maximum=DELIMITER_BYTES_MAX),
    Option(
        "frame_bytes", "integer", None, "Bytes of each message.", minimum=1, maximum=FRAME_BYTES_MAX_LIMIT
    ),
    Option(
        "frame_bytes_max", "integer", str(FRAME_BYTES_MAX_DEFAULT),
        "The longest message; a longer one is skipped, counted and reported. The ring bounds it too.",
        minimum=1, maximum=FRAME_BYTES_MAX_LIMIT,
    ),
)  # fmt: skip
_BY_NAME: Final = {option.name: option for option in OPTIONS}
NAMES: Final = tuple(_BY_NAME)
_NEEDS: Final = {"delimiter": Framing.DELIMITER, "frame_bytes": Framing.FIXED}
"""Which framing an option belongs to, and which needs it."""


def check_together(checked: Mapping[str, str], direction: str = "") -> None:
    """Refuse options of another framing than the one that was chosen.

    Raises:
        InvalidArgument: see there.
    """
    framing = Framing(checked.get("framing", "line"))
    for name, needed_by in _NEEDS.items():
        if name in checked and framing is not needed_by:
            raise InvalidArgument(
                f"option {name} needs framing={needed_by.value}, and framing is {framing.value}"
            )
        if name not in checked and framing is needed_by:
            raise InvalidArgument(
                f"framing={framing.value} needs option {name}", hint=f"{name} is {_BY_NAME[name].allowed}"
            )
    if framing is Framing.FIXED and "frame_bytes_max" in checked:
        raise InvalidArgument("framing=fixed takes frame_bytes, not frame_bytes_max")


def parse_framing(options: Mapping[str, str]) -> FramingOptions:
    """Take the framing out of a binding's options; also for the command line's ``--frame``.

    Args:
        options: may have options that are not about framing; those are ignored.

    Raises:
        InvalidArgument: as :func:`towpath.bindings.check_options`.
    """
    checked = {name: canonical(_BY_NAME[name], text) for name, text in options.items() if name in _BY_NAME}
    check_together(checked)
    return read(with_defaults(checked, OPTIONS))


def read(value: Mapping[str, str]) -> FramingOptions:
    """Type options that have been checked and have every default."""
    framing = Framing(value["framing"])
    frame_bytes = int(value.get("frame_bytes", "0"))
    return FramingOptions(
        framing=framing,
        delimiter=parse_bytes(value["delimiter"]) if framing is Framing.DELIMITER else b"",
        frame_bytes=frame_bytes,
        frame_bytes_max=frame_bytes or int(value["frame_bytes_max"]),
    )
