"""The grammar that all bindings share: what an option is, how values are read, shown and refused. Pure.

Theory of operation
    Options are strings on the wire and in the journal. An :class:`Option` says what one may be;
    :func:`canonical` brings a stated value into its one spelling (so that ``mode=600`` and ``mode=0600`` are
    the same binding) or refuses it, naming the option, the value and what is allowed. A :class:`Scheme` is
    everything about one mechanism: its places, directions and options.

Not here: the schemes themselves (one module each), and which there are (``schemes``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Literal, TypeVar

from towpath.errors import InvalidArgument

PATH_BYTES_MAX: Final = 4095  # PATH_MAX of Linux, less the NUL; see path_resolution(7)
NAME_BYTES_MAX: Final = 255  # NAME_MAX
VALUE_CHARS_SHOWN: Final = 80

DIRECTIONS: Final = ("in", "out", "both")

_ESCAPES: Final = {"n": b"\n", "r": b"\r", "t": b"\t", "0": b"\0", "\\": b"\\"}
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|(.?))", re.DOTALL)
_DECIMAL = re.compile(r"[0-9]{1,12}\Z")
_OCTAL = re.compile(r"[0-7]{1,5}\Z")
BYTES_HINT: Final = r"\n \r \t \0 \\ and \xNN stand for one byte each"

OptionType = Literal["choice", "integer", "octal", "boolean", "bytes", "text"]
O_co = TypeVar("O_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Option:
    """One option of one or more schemes.

    Attributes:
        default: in canonical spelling; None where the option has no default.
        choices: for a ``choice``: what it may be.
        minimum, maximum: for an ``integer`` or ``octal``: the range, both ends in it; for ``bytes`` and
            ``text``: of the length in bytes.
    """

    name: str
    type: OptionType
    default: str | None
    doc: str
    choices: tuple[str, ...] = ()
    minimum: int = 0
    maximum: int = 0

    @property
    def allowed(self) -> str:
        """What the option may be, for people."""
        if self.type == "choice":
            return listed(self.choices)
        if self.type == "boolean":
            return "true or false"
        if self.type == "octal":
            return f"an octal number, {self.minimum:04o} to {self.maximum:04o}"
        if self.type == "bytes":
            return f"{self.minimum} to {self.maximum} bytes; {BYTES_HINT}"
        if self.type == "text":
            return f"{self.minimum} to {self.maximum} bytes of text"
        return f"a whole number, {self.minimum} to {self.maximum}"


def _nothing_together(checked: Mapping[str, str], direction: str) -> None:
    """Options that may stand in any company."""


@dataclass(frozen=True, slots=True)
class Scheme(Generic[O_co]):
    """One mechanism's part of the vocabulary.

    Attributes:
        name: what stands before the colon.
        example: a URL, for hints and helps.
        options: what it takes, in the order of the help.
        check_place: refuses a place that cannot be; takes the URL, for the message, and the place.
        key_of: what two spellings of one place have in common; the place has been checked.
        read: makes an adapter's options of a mapping that has been checked and has every default.
        directions: the ways in which it carries.
        direction_hint: why it does not carry in the others, and what to do instead.
        check_together: refuses options, in canonical spelling, that are at odds with one another or with the
            direction.
    """

    name: str
    example: str
    options: tuple[Option, ...]
    check_place: Callable[[str, str], None]
    key_of: Callable[[str], tuple[str, ...]]
    read: Callable[[Mapping[str, str]], O_co]
    directions: tuple[str, ...] = DIRECTIONS
    direction_hint: tuple[str, str] = ("", "")
    check_together: Callable[[Mapping[str, str], str], None] = _nothing_together

    def check_options(self, direction: str, options: Mapping[str, str]) -> dict[str, str]:
        """As :func:`towpath.bindings.check_options`."""
        if direction not in DIRECTIONS:
            raise InvalidArgument(
                f"{shown(direction)} is not a direction", hint=f"allowed are {listed(DIRECTIONS)}"
            )
        if direction not in self.directions:
            message, hint = self.direction_hint
            raise InvalidArgument(message, hint=hint)
        checked = {name: canonical(self.option(name), options[name]) for name in sorted(options)}
        self.check_together(checked, direction)
        return checked

    def parse_options(self, options: Mapping[str, str]) -> O_co:
        """As :func:`towpath.bindings.parse_options`."""
        checked = {name: canonical(self.option(name), options[name]) for name in sorted(options)}
        self.check_together(checked, "")
        return self.read(with_defaults(checked, self.options))

    def option(self, name: str) -> Option:
        """Return one of the options.

        Raises:
            InvalidArgument: it is none of this scheme's.
        """
        for option in self.options:
            if option.name == name:
                return option
        known = listed([option.name for option in self.options])
        raise InvalidArgument(
            f"{shown(name)} is no option of a {self.name}: binding", hint=f"{self.name}: takes {known}"
        )


def canonical(option: Option, text: str) -> str:
    """Bring a stated value into the option's one spelling.

    Raises:
        InvalidArgument: the option cannot be that.
    """
    if option.type == "choice" and text in option.choices:
        return text
    if option.type == "boolean" and text in ("true", "false"):
        return text
    if option.type == "integer" and _DECIMAL.match(text) and option.minimum <= int(text) <= option.maximum:
        return str(int(text))
    if option.type == "octal" and _OCTAL.match(text) and option.minimum <= int(text, 8) <= option.maximum:
        return f"{int(text, 8):04o}"
    if option.type == "text" and "\0" not in text:
        if option.minimum <= utf8_bytes(text, f"option {option.name}") <= option.maximum:
            return text
    elif option.type == "bytes":
        data = parse_bytes(text)
        if option.minimum <= len(data) <= option.maximum:
            return format_bytes(data)
    raise InvalidArgument(
        f"option {option.name} cannot be {shown(text)}: it is {option.allowed}",
        hint=f"{option.name}: {option.doc}",
    )


def with_defaults(checked: Mapping[str, str], options: Sequence[Option]) -> dict[str, str]:
    """Add every default that was not overridden."""
    defaults = {option.name: option.default for option in options if option.default is not None}
    return {**defaults, **checked}


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
            raise InvalidArgument(f"{shown(text)}: {match[0]!r} stands for no byte", hint=BYTES_HINT)
    parts.append(_encoded(text[end:]))
    return b"".join(parts)


def format_bytes(data: bytes) -> str:
    """Write bytes so that :func:`parse_bytes` gives them back, in printable ASCII."""
    names = {value: f"\\{letter}" for letter, value in _ESCAPES.items()}
    return "".join(
        names.get(byte, byte.decode("ascii") if 0x20 <= byte[0] < 0x7F else f"\\x{byte[0]:02x}")
        for byte in (data[index : index + 1] for index in range(len(data)))
    )


def check_path(url: str, path: str, *, example: str) -> None:
    """Refuse a path that no mechanism could use: see :func:`towpath.bindings.parse_url`.

    Raises:
        InvalidArgument: it is not absolute, has ``..`` or NUL, names a directory, or is too long.
    """
    hint = f"as in {example}"
    if not path.startswith("/"):
        raise InvalidArgument(f"{shown(url)}: the path is not absolute", hint=hint)
    if "\0" in path:
        raise InvalidArgument(f"{shown(url)}: the path has a NUL character", hint=hint)
    if utf8_bytes(path, "a path") > PATH_BYTES_MAX:
        raise InvalidArgument(f"{shown(url)}: the path has more than {PATH_BYTES_MAX} bytes", hint=hint)
    levels = path.split("/")
    if levels[-1] in ("", "."):
        raise InvalidArgument(f"{shown(url)}: the path names a directory", hint=hint)
    for level in levels:
        if level == "..":
            raise InvalidArgument(f"{shown(url)}: '..' is not allowed in the path", hint=hint)
        if len(level.encode()) > NAME_BYTES_MAX:
            raise InvalidArgument(
                f"{shown(url)}: a name in the path has more than {NAME_BYTES_MAX} bytes", hint=hint
            )


def path_key(place: str) -> tuple[str, ...]:
    """What two spellings of one path have in common: ``//`` and ``/./`` do not count."""
    return tuple(level for level in place.split("/") if level not in ("", "."))


def utf8_bytes(text: str, what: str) -> int:
    """Return a text's length in bytes.

    Raises:
        InvalidArgument: it has a lone surrogate.
    """
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} has characters that UTF-8 does not: {shown(text)}") from None


def _encoded(text: str) -> bytes:
    utf8_bytes(text, "a value")
    return text.encode()


def shown(text: str) -> str:
    """Return a value as a message shows it: quoted, and not endless."""
    return repr(text if len(text) <= VALUE_CHARS_SHOWN else f"{text[:VALUE_CHARS_SHOWN]}...")


def listed(words: Sequence[str], suffix: str = "") -> str:
    """Return words as a message lists them."""
    return ", ".join(f"{word}{suffix}" for word in words)
