"""``sysv:KEY``: a System V message queue. What its URL and options may say. See msgget(2), ftok(3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from towpath.bindings.grammar import Option, Scheme, check_path, path_key, shown
from towpath.errors import InvalidArgument

TYPE_MAX: Final = (1 << 31) - 1
"""Of a message type that an option names; a header may name any that the host takes."""

_EXAMPLE: Final = "sysv:0x1234"
_NUMBER = re.compile(r"(?:0[xX]([0-9a-fA-F]{1,8})|([0-9]{1,10}))\Z")
_FTOK = re.compile(r"(/.*):([0-9]{1,3}|[^0-9/:\s])\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class SysvOptions:
    """A ``sysv:`` binding's options, with every default filled in.

    Attributes:
        type: of a message without the header.
        receive_type: 0 any; otherwise only this type.
    """

    mode: int = 0o600
    create: bool = True
    type: int = 1
    receive_type: int = 0


def parse_sysv_place(place: str) -> int | tuple[str, int]:
    """Take the place apart.

    Returns:
        The key, 1 to 2**32-1; or a path and a project number 1 to 255, for ftok(3).

    Raises:
        InvalidArgument: it is neither.
    """
    number = _NUMBER.match(place)
    if number is not None:
        key = int(number[1], 16) if number[1] else int(number[2])
        if 0 < key < 1 << 32:
            return key
    ftok = _FTOK.match(place)
    if ftok is not None:
        project = int(ftok[2]) if ftok[2].isdecimal() and ftok[2].isascii() else ord(ftok[2])
        if 0 < project < 256:
            return ftok[1], project
    raise InvalidArgument(
        f"{shown(place)} is no key of a System V message queue",
        hint=f"a number from 1 to 0xffffffff, as in {_EXAMPLE}; or a path and what ftok(3) is given with it,"
        " as in sysv:/etc/app.conf:65 or sysv:/etc/app.conf:A",
    )


def _check_place(url: str, place: str) -> None:
    parsed = parse_sysv_place(place)
    if isinstance(parsed, tuple):
        check_path(url, parsed[0].rstrip("/") or "/.", example="sysv:/etc/app.conf:65")


def _key_of(place: str) -> tuple[str, ...]:
    parsed = parse_sysv_place(place)
    return (str(parsed),) if isinstance(parsed, int) else (*path_key(parsed[0]), str(parsed[1]))


def _check_together(checked: Mapping[str, str], direction: str) -> None:
    sent, received = checked.get("type", "1"), checked.get("receive_type", "0")
    if direction == "both" and received in ("0", sent):
        raise InvalidArgument(
            "direction both needs receive_type, other than type: it would read back what it wrote",
            hint=f"as in --option receive_type={2 if sent == '1' else 1}",
        )


def _read(value: Mapping[str, str]) -> SysvOptions:
    return SysvOptions(
        mode=int(value["mode"], 8),
        create=value["create"] == "true",
        type=int(value["type"]),
        receive_type=int(value["receive_type"]),
    )


SYSV: Final = Scheme(
    name="sysv",
    example=_EXAMPLE,
    options=(
        Option("mode", "octal", "0600", "Permissions of a queue that the bridge makes.", maximum=0o777),
        Option(
            "create", "boolean", "true",
            "Make the queue when there is none of the name; one that is there is taken as it is.",
        ),
        Option(
            "type", "integer", "1", "Outward, the type of a message without a header sysv.type.",
            minimum=1, maximum=TYPE_MAX,
        ),
        Option(
            "receive_type", "integer", "0", "Inward, take only messages of this type; 0 is any.",
            maximum=TYPE_MAX,
        ),
    ),
    check_place=_check_place,
    key_of=_key_of,
    read=_read,
    check_together=_check_together,
)  # fmt: skip
