"""``pipe:COMMAND``: a command on anonymous pipes. What its URL and options may say."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from towpath.bindings import framings
from towpath.bindings.grammar import Option, Scheme, shown, utf8_bytes
from towpath.errors import InvalidArgument
from towpath.framing import FramingOptions

COMMAND_BYTES_MAX: Final = 65_536


class Restart(StrEnum):
    """When a command that ended is started again."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class PipeOptions:
    """A ``pipe:`` binding's options, with every default filled in."""

    framing: FramingOptions = FramingOptions()
    restart: Restart = Restart.ALWAYS
    restart_delay_ms: int = 1000
    stop_timeout_ms: int = 5000


def parse_command(place: str) -> list[str]:
    """Split a ``pipe:`` binding's command line into an argument vector.

    Returns:
        At least one argument; the first is not empty.

    Raises:
        InvalidArgument: it is empty, too long, has a NUL, or a quote that is not closed.
    """
    if utf8_bytes(place, "a command line") > COMMAND_BYTES_MAX:
        raise InvalidArgument(f"a command line has more than {COMMAND_BYTES_MAX} bytes")
    if "\0" in place:
        raise InvalidArgument(f"the command line {shown(place)} has a NUL character")
    try:
        arguments = shlex.split(place)
    except ValueError as error:
        raise InvalidArgument(
            f"the command line {shown(place)} cannot be split into words: {error}",
            hint="quote as in sh(1); for a shell's own syntax write: pipe:sh -c '...'",
        ) from None
    if not arguments or not arguments[0]:
        raise InvalidArgument("a pipe: binding names no command", hint="as in: 'pipe:vmstat 1'")
    return arguments


def _check_place(url: str, place: str) -> None:
    parse_command(place)


def _key_of(place: str) -> tuple[str, ...]:
    return tuple(parse_command(place))


def _read(value: Mapping[str, str]) -> PipeOptions:
    return PipeOptions(
        framing=framings.read(value),
        restart=Restart(value["restart"]),
        restart_delay_ms=int(value["restart_delay_ms"]),
        stop_timeout_ms=int(value["stop_timeout_ms"]),
    )


PIPE: Final = Scheme(
    name="pipe",
    example="'pipe:vmstat 1'",
    options=(
        *framings.OPTIONS,
        Option(
            "restart", "choice", "always", "When a command that ended is started again.",
            choices=tuple(choice.value for choice in Restart),
        ),
        Option(
            "restart_delay_ms", "integer", "1000",
            "Pause before the first restart; doubles up to 30 s while the command keeps failing.",
            minimum=10, maximum=30_000,
        ),
        Option(
            "stop_timeout_ms", "integer", "5000",
            "How long a command may take to end after SIGTERM, before SIGKILL.",
            maximum=600_000,
        ),
    ),
    check_place=_check_place,
    key_of=_key_of,
    read=_read,
    check_together=framings.check_together,
)  # fmt: skip
