"""``signal:NAME`` and ``signal:NAME@TARGET``: signals. What its URL and options may say."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from towpath.bindings.fifo import WhenAbsent
from towpath.bindings.grammar import Option, Scheme, check_path, path_key, shown, utf8_bytes
from towpath.errors import InvalidArgument

_EXAMPLE: Final = "signal:RTMIN+3"
_TARGET_EXAMPLE: Final = "signal:USR1@/run/app.pid"
_REALTIME = re.compile(r"(RTMIN|RTMAX)(?:([+-])([0-9]{1,2}))?\Z")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}\Z")
_PID = re.compile(r"[1-9][0-9]{0,9}\Z")
PID_MAX: Final = 1 << 22  # PID_MAX_LIMIT of Linux


class TargetKind(StrEnum):
    """Whom an outward binding signals."""

    PID = "pid"
    PID_FILE = "pid file"
    DIRECTORY = "directory"  # of pid files, one per process that subscribed
    UNIT = "unit"
    USER_UNIT = "user-unit"


class SignalFormat(StrEnum):
    """How a signal and its value lie in a payload."""

    JSON = "json"
    TEXT = "text"
    BINARY = "binary"


@dataclass(frozen=True, slots=True)
class SignalPlace:
    """A ``signal:`` binding's place.

    Attributes:
        number: the signal's.
        kind: None where no target is named.
        target: a pid, a path, or a unit's name.
    """

    number: int
    kind: TargetKind | None = None
    target: str = ""


@dataclass(frozen=True, slots=True)
class SignalOptions:
    """A ``signal:`` binding's options, with every default filled in.

    Attributes:
        format: None for ``json`` inward and ``binary`` outward.
        pid_file: empty for the one in the daemon's runtime directory.
    """

    format: SignalFormat | None = None
    when_absent: WhenAbsent = WhenAbsent.DROP
    pid_file: str = ""


def signal_name(number: int) -> str:
    """Return a signal's name as URLs have it: ``USR1``, ``RTMIN+3``."""
    if number >= signal.SIGRTMIN:
        above = number - signal.SIGRTMIN
        return f"RTMIN+{above}" if above else "RTMIN"
    return signal.Signals(number).name.removeprefix("SIG")


def _parse_signal(url: str, name: str) -> int:
    match = _REALTIME.match(name.removeprefix("SIG"))
    if match:
        above = int(match[3] or 0) * (-1 if match[2] == "-" else 1)
        number = int(signal.SIGRTMIN if match[1] == "RTMIN" else signal.SIGRTMAX) + above
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return number
        most = int(signal.SIGRTMAX - signal.SIGRTMIN)
        raise InvalidArgument(
            f"{shown(url)}: there is no such realtime signal", hint=f"RTMIN to RTMIN+{most}"
        )
    try:
        return int(signal.Signals[f"SIG{name.removeprefix('SIG')}"])
    except KeyError:
        raise InvalidArgument(
            f"{shown(url)} names no signal", hint=f"as in {_EXAMPLE} and {_TARGET_EXAMPLE}; see signal(7)"
        ) from None


def parse_signal(url: str, place: str) -> SignalPlace:
    """Take a ``signal:`` binding's place apart.

    Args:
        url: for the message.
        place: a signal's name (``USR1``, ``RTMIN+3``), outward followed by ``@`` and whom it goes to: a
            process id; the absolute path of a pid file, or of a directory of pid files when it ends with
            ``/``; ``unit:`` or ``user-unit:`` and the name of a systemd unit.

    Raises:
        InvalidArgument: there is no such signal, or the target cannot be.
    """
    utf8_bytes(place, "a signal: binding")
    name, at, target = place.partition("@")
    number = _parse_signal(url, name)
    if not at:
        return SignalPlace(number)
    if target.startswith("/"):
        if target.endswith("/") and target.strip("/"):
            check_path(url, target.rstrip("/"), example=_TARGET_EXAMPLE)
            return SignalPlace(number, TargetKind.DIRECTORY, target)
        check_path(url, target, example=_TARGET_EXAMPLE)
        return SignalPlace(number, TargetKind.PID_FILE, target)
    for kind in (TargetKind.UNIT, TargetKind.USER_UNIT):
        unit = target.removeprefix(f"{kind.value}:")
        if unit != target and _UNIT.match(unit) and not unit.startswith("-"):
            return SignalPlace(number, kind, unit)
    if _PID.match(target) and int(target) <= PID_MAX:
        return SignalPlace(number, TargetKind.PID, target)
    raise InvalidArgument(
        f"{shown(url)}: {shown(target)} is nobody who could be signalled",
        hint="after @ stands a process id, a pid file's path, a directory of pid files and a /, or unit:NAME",
    )


def _check_place(url: str, place: str) -> None:
    parse_signal(url, place)


def _key_of(place: str) -> tuple[str, ...]:
    parsed = parse_signal("", place)
    target = path_key(parsed.target) if parsed.target.startswith("/") else (parsed.target,)
    return (str(parsed.number), parsed.kind.value if parsed.kind else "", *target)


def _check_together(checked: Mapping[str, str], direction: str) -> None:
    path = checked.get("pid_file")
    if path is not None:
        check_path(f"pid_file={path}", path, example="pid_file=/run/app/towpath.pid")
    if direction == "out" and path is not None:
        raise InvalidArgument("option pid_file is for direction in: it names the process that receives")
    if direction == "in" and "when_absent" in checked:
        raise InvalidArgument("option when_absent is for direction out")


def _read(value: Mapping[str, str]) -> SignalOptions:
    return SignalOptions(
        format=SignalFormat(value["format"]) if "format" in value else None,
        when_absent=WhenAbsent(value["when_absent"]),
        pid_file=value.get("pid_file", ""),
    )


SIGNAL: Final = Scheme(
    name="signal",
    example=_EXAMPLE,
    options=(
        Option(
            "format", "choice", None,
            "What a payload is: JSON, the value in decimal, or its 8 bytes; json inward, binary outward.",
            choices=tuple(choice.value for choice in SignalFormat),
        ),
        Option(
            "when_absent", "choice", "drop",
            "Outward, while there is nobody to signal: drop and count, or block the publishers.",
            choices=tuple(choice.value for choice in WhenAbsent),
        ),
        Option(
            "pid_file", "text", None,
            "Inward: where the receiving process writes its id; signal-NAME.pid beside the daemon's socket.",
            minimum=1, maximum=4095,
        ),
    ),
    check_place=_check_place,
    key_of=_key_of,
    read=_read,
    directions=("in", "out"),
    direction_hint=(
        "a signal: binding carries one way",
        f"bind two: {_EXAMPLE} in, and {_TARGET_EXAMPLE} out",
    ),
    check_together=_check_together,
)  # fmt: skip
