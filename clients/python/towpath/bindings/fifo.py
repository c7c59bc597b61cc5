"""``fifo:PATH``: a named pipe. What its URL and options may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from towpath.bindings import framings
from towpath.bindings.grammar import Option, Scheme, check_path, path_key
from towpath.framing import FramingOptions

_EXAMPLE: Final = "fifo:/run/plant/temp"


class WhenAbsent(StrEnum):
    """What an outgoing FIFO does with messages while nobody has it open for reading."""

    DROP = "drop"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class FifoOptions:
    """A ``fifo:`` binding's options, with every default filled in."""

    framing: FramingOptions = FramingOptions()
    mode: int = 0o600
    create: bool = True
    when_absent: WhenAbsent = WhenAbsent.DROP


def _check_place(url: str, place: str) -> None:
    check_path(url, place, example=_EXAMPLE)


def _read(value: Mapping[str, str]) -> FifoOptions:
    return FifoOptions(
        framing=framings.read(value),
        mode=int(value["mode"], 8),
        create=value["create"] == "true",
        when_absent=WhenAbsent(value["when_absent"]),
    )


FIFO: Final = Scheme(
    name="fifo",
    example=_EXAMPLE,
    options=(
        *framings.OPTIONS,
        Option("mode", "octal", "0600", "Permissions of a FIFO that the bridge makes.", maximum=0o777),
        Option(
            "create", "boolean", "true",
            "Make the FIFO when the path is not there; what was made is removed with the binding.",
        ),
        Option(
            "when_absent", "choice", "drop",
            "Outward, while no program has the FIFO open: drop and count, or block the publishers.",
            choices=tuple(choice.value for choice in WhenAbsent),
        ),
    ),
    check_place=_check_place,
    key_of=path_key,
    read=_read,
    directions=("in", "out"),
    direction_hint=(
        "a FIFO carries one way: direction both would read back what it wrote",
        "bind two FIFOs, one in and one out",
    ),
    check_together=framings.check_together,
)  # fmt: skip
