"""What a binding's URL and options may say. Pure; one vocabulary for the core, the command line and the
adapters.

Theory of operation
    A URL is a scheme and a place: ``fifo:/run/x`` names a path, ``pipe:vmstat 1`` a command line.
    :func:`parse_url` takes it apart and refuses what no adapter could use. Options are strings on the wire
    and in the journal; ``OPTIONS`` is the one table that says which there are, for which schemes, with
    which default and range. :func:`check_options` brings stated options into their canonical spelling (so
    that ``mode=600`` and ``mode=0600`` are the same binding); :func:`parse_options` gives an adapter typed
    values with every default filled in.

Invariants
    One place, one binding: :func:`place_key` is equal for two URLs of one place, however they are written.
    What :func:`check_options` returned, :func:`parse_options` accepts, and checking it again changes
    nothing.
    A refusal names the option, the value and what is allowed.

Not here: whether the path can be opened or the command be found. Only the bridge can tell, and it reports
it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, overload

from towpath.errors import InvalidArgument, NotSupported
from towpath.framing import (
    DELIMITER_BYTES_MAX,
    FRAME_BYTES_MAX_DEFAULT,
    FRAME_BYTES_MAX_LIMIT,
    Framing,
    FramingOptions,
)

PATH_BYTES_MAX: Final = 4095  # PATH_MAX of Linux, less the NUL; see path_resolution(7)
NAME_BYTES_MAX: Final = 255  # NAME_MAX
COMMAND_BYTES_MAX: Final = 65_536
VALUE_CHARS_SHOWN: Final = 80

SCHEMES: Final = ("fifo", "pipe")
SCHEMES_LATER: Final = ("mq", "signal", "shm", "sysv", "unix")
DIRECTIONS: Final = ("in", "out", "both")

_ESCAPES: Final = {"n": b"\n", "r": b"\r", "t": b"\t", "0": b"\0", "\\": b"\\"}
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|(.?))", re.DOTALL)
_DECIMAL = re.compile(r"[0-9]{1,12}\Z")
_OCTAL = re.compile(r"[0-7]{1,5}\Z")


# ---- URLs --------------------------------------------------------------------------------------------------


def parse_url(url: str) -> tuple[str, str]:
    """Take a binding's URL apart.

    Args:
        url: ``fifo:`` and an absolute path of at most 4095 bytes without ``..``, or ``pipe:`` and a command
            line of at most 65,536 bytes. A command line is split as sh(1) splits words and run without a
            shell; for a shell, write ``pipe:sh -c '...'``.

    Returns:
        The scheme and the place, as written.

    Raises:
        NotSupported: the scheme is one that a later version brings.
        InvalidArgument: the scheme is unknown, or the place cannot be.
    """
    scheme, colon, place = url.partition(":")
    if not colon or scheme not in SCHEMES:
        if colon and scheme in SCHEMES_LATER:
            raise NotSupported(
                f"{scheme}: bindings come in a later version", hint=f"known now: {_listed(SCHEMES, ':')}"
            )
        raise InvalidArgument(
            f"{_shown(url)} is not a binding's URL: it begins with no known scheme",
            hint=f"known are {_listed(SCHEMES, ':')}, as in fifo:/run/plant/temp and 'pipe:vmstat 1'",
        )
    if scheme == "fifo":
        _check_path(url, place)
    else:
        parse_command(place)
    return scheme, place


def place_key(url: str) -> tuple[str, ...]:
    """Return what two URLs of the same place have in common; ``//`` and ``/./`` in a path and quoting in a
    command do not count.

    Raises:
        NotSupported, InvalidArgument: as :func:`parse_url`.
    """
    scheme, place = parse_url(url)
    if scheme == "fifo":
        return (scheme, *(level for level in place.split("/") if level not in ("", ".")))
    return (scheme, *parse_command(place))


def parse_command(place: str) -> list[str]:
    """Split a ``pipe:`` binding's command line into an argument vector.

    Returns:
        At least one argument; the first is not empty.

    Raises:
        InvalidArgument: it is empty, too long, has a NUL, or a quote that is not closed.
    """
    if _utf8_bytes(place, "a command line") > COMMAND_BYTES_MAX:
        raise InvalidArgument(f"a command line has more than {COMMAND_BYTES_MAX} bytes")
    if "\0" in place:
        raise InvalidArgument(f"the command line {_shown(place)} has a NUL character")
    try:
        arguments = shlex.split(place)
    except ValueError as error:
        raise InvalidArgument(
            f"the command line {_shown(place)} cannot be split into words: {error}",
            hint="quote as in sh(1); for a shell's own syntax write: pipe:sh -c '...'",
        ) from None
    if not arguments or not arguments[0]:
        raise InvalidArgument("a pipe: binding names no command", hint="as in: 'pipe:vmstat 1'")
    return arguments


def _check_path(url: str, path: str) -> None:
    hint = "as in fifo:/run/plant/temp"
    if not path.startswith("/"):
        raise InvalidArgument(f"{_shown(url)}: the path is not absolute", hint=hint)
    if "\0" in path:
        raise InvalidArgument(f"{_shown(url)}: the path has a NUL character", hint=hint)
    if _utf8_bytes(path, "a path") > PATH_BYTES_MAX:
        raise InvalidArgument(f"{_shown(url)}: the path has more than {PATH_BYTES_MAX} bytes", hint=hint)
    levels = path.split("/")
    if levels[-1] in ("", "."):
        raise InvalidArgument(f"{_shown(url)}: the path names a directory", hint=hint)
    for level in levels:
        if level == "..":
            raise InvalidArgument(f"{_shown(url)}: '..' is not allowed in the path", hint=hint)
        if len(level.encode()) > NAME_BYTES_MAX:
            raise InvalidArgument(
                f"{_shown(url)}: a name in the path has more than {NAME_BYTES_MAX} bytes", hint=hint
            )


def _utf8_bytes(text: str, what: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} has characters that UTF-8 does not: {_shown(text)}") from None


# ---- the table of options ----------------------------------------------------------------------------------


class Restart(StrEnum):
    """When a command that ended is started again."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


class WhenAbsent(StrEnum):
    """What an outgoing FIFO does with messages while nobody has it open for reading."""

    DROP = "drop"
    BLOCK = "block"


OptionType = Literal["choice", "integer", "octal", "boolean", "bytes"]


@dataclass(frozen=True, slots=True)
class Option:
    """One line of the table of options.

    Attributes:
        default: in canonical spelling; None where the option has no default.
        schemes: for which bindings it is known.
        choices: for a ``choice``: what it may be.
        minimum, maximum: for an ``integer`` or ``octal``: the range, both ends in it; for ``bytes``: of the
        length.
        framing: the one framing that the option belongs to, and which needs it; None for all.
    """

    name: str
    type: OptionType
    default: str | None
    schemes: tuple[str, ...]
    doc: str
    choices: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int = 0
    framing: Framing | None = None

    @property
    def allowed(self) -> str:
        """What the option may be, for people."""
        if self.type == "choice":
            return _listed(self.choices)
        if self.type == "boolean":
            return "true or false"
        if self.type == "octal":
            return f"an octal number, {self.minimum:04o} to {self.maximum:04o}"
        if self.type == "bytes":
            return rf"{self.minimum} to {self.maximum} bytes; \n \r \t \0 \\ and \xNN stand for one byte each"
        return f"a whole number, {self.minimum} to {self.maximum}"


_ALL = SCHEMES
OPTIONS: Final[dict[str, Option]] = {
    option.name: option
    for option in (
        Option(
            "framing", "choice", "line", _ALL, "How the byte stream is cut into messages.",
            choices=tuple(framing.value for framing in Framing),
        ),
        Option(
            "delimiter", "bytes", None, _ALL, "What ends each message.",
            minimum=1, maximum=DELIMITER_BYTES_MAX, framing=Framing.DELIMITER,
        ),
        Option(
            "frame_bytes", "integer", None, _ALL, "Bytes of each message.",
            minimum=1, maximum=FRAME_BYTES_MAX_LIMIT, framing=Framing.FIXED,
        ),
        Option(
            "frame_bytes_max", "integer", str(FRAME_BYTES_MAX_DEFAULT), _ALL,
            "The longest message; a longer one is skipped, counted and reported. The ring bounds it too.",
            minimum=1, maximum=FRAME_BYTES_MAX_LIMIT,
        ),
        Option(
            "mode", "octal", "0600", ("fifo",), "Permissions of a FIFO that the bridge makes.", maximum=0o777
        ),
        Option(
            "create", "boolean", "true", ("fifo",),
            "Make the FIFO when the path is not there; what was made is removed with the binding.",
        ),
        Option(
            "when_absent", "choice", "drop", ("fifo",),
            "Outward, while no program has the FIFO open: drop and count, or block the publishers.",
            choices=tuple(choice.value for choice in WhenAbsent),
        ),
        Option(
            "restart", "choice", "always", ("pipe",), "When a command that ended is started again.",
            choices=tuple(choice.value for choice in Restart),
        ),
        Option(
            "restart_delay_ms", "integer", "1000", ("pipe",),
            "Pause before the first restart; doubles up to 30 s while the command keeps failing.",
            minimum=10, maximum=30_000,
        ),
        Option(
            "stop_timeout_ms", "integer", "5000", ("pipe",),
            "How long a command may take to end after SIGTERM, before SIGKILL.",
            maximum=600_000,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FifoOptions:
    """A ``fifo:`` binding's options, with every default filled in."""

    framing: FramingOptions = FramingOptions()
    mode: int = 0o600
    create: bool = True
    when_absent: WhenAbsent = WhenAbsent.DROP


@dataclass(frozen=True, slots=True)
class PipeOptions:
    """A ``pipe:`` binding's options, with every default filled in."""

    framing: FramingOptions = FramingOptions()
    restart: Restart = Restart.ALWAYS
    restart_delay_ms: int = 1000
    stop_timeout_ms: int = 5000


# ---- checking and parsing ----------------------------------------------------------------------------------


def check_options(scheme: str, direction: str, options: Mapping[str, str]) -> dict[str, str]:
    """Check a binding's stated options and bring them into their canonical spelling.

    Args:
        scheme: one of ``SCHEMES``.
        direction: ``in``, ``out`` or ``both``.
        options: as stated; nothing is added to them.

    Returns:
        The same options, sorted by name, in canonical spelling.

    Raises:
        InvalidArgument: an option is unknown, not one of this scheme, out of range or at odds with another;
            or the scheme does not carry in this direction.
    """
    assert scheme in SCHEMES
    if direction not in DIRECTIONS:
        raise InvalidArgument(
            f"{_shown(direction)} is not a direction", hint=f"allowed are {_listed(DIRECTIONS)}"
        )
    if scheme == "fifo" and direction == "both":
        raise InvalidArgument(
            "a FIFO carries one way: direction both would read back what it wrote",
            hint="bind two FIFOs, one in and one out",
        )
    checked = {name: _canonical(_option(scheme, name), options[name]) for name in sorted(options)}
    framing = Framing(checked.get("framing", "line"))
    for option in OPTIONS.values():
        if option.framing is None:
            continue
        if option.name in checked and framing is not option.framing:
            raise InvalidArgument(
                f"option {option.name} needs framing={option.framing.value}, and framing is {framing.value}"
            )
        if option.name not in checked and framing is option.framing:
            raise InvalidArgument(
                f"framing={framing.value} needs option {option.name}",
                hint=f"{option.name} is {option.allowed}",
            )
    if framing is Framing.FIXED and "frame_bytes_max" in checked:
        raise InvalidArgument("framing=fixed takes frame_bytes, not frame_bytes_max")
    return checked


@overload
def parse_options(scheme: Literal["fifo"], options: Mapping[str, str]) -> FifoOptions: ...
@overload
def parse_options(scheme: Literal["pipe"], options: Mapping[str, str]) -> PipeOptions: ...
@overload
def parse_options(scheme: str, options: Mapping[str, str]) -> FifoOptions | PipeOptions: ...
def parse_options(scheme: str, options: Mapping[str, str]) -> FifoOptions | PipeOptions:
    """Give an adapter its options, typed and with every default filled in.

    Args:
        scheme: one of ``SCHEMES``.
        options: as stated or as :func:`check_options` returned them.

    Raises:
        InvalidArgument: as :func:`check_options`.
    """
    value = _with_defaults(check_options(scheme, "in", options), scheme)
    framing = parse_framing(options)
    if scheme == "fifo":
        return FifoOptions(
            framing=framing,
            mode=int(value["mode"], 8),
            create=value["create"] == "true",
            when_absent=WhenAbsent(value["when_absent"]),
        )
    return PipeOptions(
        framing=framing,
        restart=Restart(value["restart"]),
        restart_delay_ms=int(value["restart_delay_ms"]),
        stop_timeout_ms=int(value["stop_timeout_ms"]),
    )


def parse_framing(options: Mapping[str, str]) -> FramingOptions:
    """Take the framing out of a binding's options; also for the command line's ``--frame``.

    Args:
        options: may have options that are not about framing; those are ignored.

    Raises:
        InvalidArgument: as :func:`check_options`.
    """
    stated = {name: text for name, text in options.items() if name in FRAMING_OPTIONS}
    value = _with_defaults(check_options("pipe", "in", stated), "pipe")
    framing = Framing(value["framing"])
    frame_bytes = int(value.get("frame_bytes", "0"))
    return FramingOptions(
        framing=framing,
        delimiter=parse_bytes(value["delimiter"]) if framing is Framing.DELIMITER else b"",
        frame_bytes=frame_bytes,
        frame_bytes_max=frame_bytes or int(value["frame_bytes_max"]),
    )


FRAMING_OPTIONS: Final = ("framing", "delimiter", "frame_bytes", "frame_bytes_max")


def parse_bytes(text: str) -> bytes:
    r"""Read bytes as people write them: ``\n \r \t \0 \\`` and ``\xNN`` stand for one byte, the rest for
    its UTF-8.

    Raises:
        InvalidArgument: a backslash is followed by something else.
    """
    parts: list[bytes] = []
    end = 0
    for match in _ESCAPE.finditer(text):
        parts.append(_encoded(text[end : match.start()]))
        end = match.end()
        if match[1] is not None:
            parts.append(bytes.fromhex(match[1]))
        elif match[2] in _ESCAPES:
            parts.append(_ESCAPES[match[2]])
        else:
            raise InvalidArgument(
                f"{_shown(text)}: {match[0]!r} stands for no byte", hint=OPTIONS["delimiter"].allowed
            )
    parts.append(_encoded(text[end:]))
    return b"".join(parts)


def format_bytes(data: bytes) -> str:
    """Write bytes so that :func:`parse_bytes` gives them back, in printable ASCII."""
    names = {value: f"\\{letter}" for letter, value in _ESCAPES.items()}
    return "".join(
        names.get(byte, byte.decode("ascii") if 0x20 <= byte[0] < 0x7F else f"\\x{byte[0]:02x}")
        for byte in (data[index : index + 1] for index in range(len(data)))
    )


def _option(scheme: str, name: str) -> Option:
    option = OPTIONS.get(name)
    known = [each.name for each in OPTIONS.values() if scheme in each.schemes]
    if option is None:
        raise InvalidArgument(
            f"{_shown(name)} is no option of a binding", hint=f"{scheme}: takes {_listed(known)}"
        )
    if scheme not in option.schemes:
        raise InvalidArgument(
            f"option {name} is not one of {scheme}: bindings", hint=f"{scheme}: takes {_listed(known)}"
        )
    return option


def _canonical(option: Option, text: str) -> str:
    if option.type == "choice" and text in option.choices:
        return text
    if option.type == "boolean" and text in ("true", "false"):
        return text
    if option.type == "integer" and _DECIMAL.match(text) and option.minimum <= int(text) <= option.maximum:
        return str(int(text))
    if option.type == "octal" and _OCTAL.match(text) and option.minimum <= int(text, 8) <= option.maximum:
        return f"{int(text, 8):04o}"
    if option.type == "bytes":
        data = parse_bytes(text)
        if option.minimum <= len(data) <= option.maximum:
            return format_bytes(data)
    raise InvalidArgument(
        f"option {option.name} cannot be {_shown(text)}: it is {option.allowed}",
        hint=f"{option.name}: {option.doc}",
    )


def _with_defaults(checked: Mapping[str, str], scheme: str) -> dict[str, str]:
    defaults = {
        option.name: option.default
        for option in OPTIONS.values()
        if option.default is not None and scheme in option.schemes
    }
    return {**defaults, **checked}


def _encoded(text: str) -> bytes:
    _utf8_bytes(text, "a value")
    return text.encode()


def _shown(text: str) -> str:
    return repr(text if len(text) <= VALUE_CHARS_SHOWN else f"{text[:VALUE_CHARS_SHOWN]}...")


def _listed(words: tuple[str, ...] | list[str], suffix: str = "") -> str:
    return ", ".join(f"{word}{suffix}" for word in words)
