"""A frozen dataclass as a table of the configuration: one definition gives its keys, flags, environment
names, example and manual.

Theory of operation
    A settings class is a frozen dataclass whose fields are made by :func:`setting` (a default, a sentence of
    help, the range). From it :func:`parse_table` makes an instance out of a TOML or JSON table,
    :func:`environment_table` reads ``TOWPATH_TABLE_KEY``, :func:`add_flags` makes ``--key`` options, and the
    example and the manual's table are printed. So they cannot drift apart.

    Field types: bool, int, str, a Literal, each also with ``| None`` for a key that may be left open, and
    tuple[str, ...]. What a range cannot say (two keys that exclude each other) belongs into the class's
    ``__post_init__``, which raises :class:`InvalidConfiguration`.

Invariants
    Whatever does not fit is one :class:`InvalidConfiguration` that names place, table, key and what is
    allowed. A key that is not known is never ignored. ``parse_table(type(x), to_table(x)) == x``.

Not here: files and precedence between sources (settings.py). Imports nothing of Towpath but its errors,
because gateways use it too.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

from towpath.errors import InvalidConfiguration

T = TypeVar("T")
_TRUE: Final = frozenset(("1", "true", "yes", "on"))
_FALSE: Final = frozenset(("0", "false", "no", "off"))
# At most 19 digits: more than any range here, less than what int() would refuse or be slow with.
_WHOLE_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,19}")

_WORDS: Final[dict[type, tuple[str, str]]] = {
    bool: ("true or false", ""),
    int: ("a whole number", ""),
    str: ("a string", " characters"),
    tuple: ("a list of strings", " items"),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of one key.

    Attributes:
        kind: bool, int, str, or tuple for a list of strings.
        minimum, maximum: inclusive range of a number, or of the length of a string or list; None for no
            bound.
        choices: the only values allowed, if any.
    """

    name: str
    kind: type
    default: Any
    help: str
    minimum: int | None
    maximum: int | None
    choices: tuple[Any, ...]

    @property
    def allowed(self) -> str:
        """What may stand here, in words."""
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        words, unit = _WORDS[self.kind]
        if self.minimum is not None and self.maximum is not None:
            return f"{words}, {self.minimum} to {self.maximum}{unit}"
        if self.minimum is not None:
            return f"{words}, {self.minimum}{unit} or more"
        if self.maximum is not None:
            return f"{words}, at most {self.maximum}{unit}"
        return words

    def check(self, value: object, where: str) -> Any:
        """Return the value as the dataclass wants it, or raise InvalidConfiguration."""
        if not _has_type(value, self.kind):
            raise self._refusal(value, where)
        result: Any = self.kind(value)
        size: Any = len(result) if isinstance(result, (str, tuple)) else result
        if (
            (self.choices and result not in self.choices)
            or (self.minimum is not None and size < self.minimum)
            or (self.maximum is not None and size > self.maximum)
            or (isinstance(result, str) and "\0" in result)
        ):
            raise self._refusal(value, where)
        return result

    def from_text(self, text: str, where: str) -> Any:
        """Return what a flag or an environment variable says; lists are separated by commas."""
        value: object = text
        if self.kind is bool and text.lower() in _TRUE | _FALSE:
            value = text.lower() in _TRUE
        elif self.kind is int and _WHOLE_NUMBER.fullmatch(text):
            value = int(text)
        elif self.kind is tuple:
            value = tuple(item.strip() for item in text.split(",") if item.strip())
        return self.check(value, where)

    def _refusal(self, value: object, where: str) -> InvalidConfiguration:
        shown = repr(value)
        if len(shown) > 100:
            shown = shown[:97] + "..."
        return InvalidConfiguration(f"{where} {self.name}: {shown} is not allowed; allowed: {self.allowed}")


def _has_type(value: object, kind: type) -> bool:
    """Whether a TOML or JSON value is of a key's type; true is no number."""
    if kind is tuple:
        return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def setting(
    default: Any,
    help: str,
    *,
    minimum: int | None = None,
    maximum: int | None = None,
) -> Any:
    """Make a field of a settings class.

    Args:
        default: the default; a tuple for a list of strings.
        help: one sentence for the manual, with the unit.
        minimum, maximum: inclusive range of a number, or of the length of a string or list.
    """
    metadata = {"doc": help, "minimum": minimum, "maximum": maximum}
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(cls: type) -> Iterator[Setting]:
    """Yield the keys of a settings class in their order.

    Fields made otherwise count too, with what their metadata has of ``doc``, ``minimum`` and ``maximum``; a
    whole number without a minimum is at least 1.
    """
    hints = get_type_hints(cls)
    for item in dataclasses.fields(cls):
        kind, choices = _kind_of(hints[item.name])
        yield Setting(
            item.name,
            kind,
            item.default,
            item.metadata.get("doc", ""),
            item.metadata.get("minimum", 1 if kind is int else None),
            item.metadata.get("maximum"),
            choices,
        )


def _kind_of(hint: Any) -> tuple[type, tuple[Any, ...]]:
    """Return what a field's type says: the type of its values and, of a Literal, which there are."""
    inner = [argument for argument in get_args(hint) if argument is not NoneType]
    if get_origin(hint) is Literal:
        return type(inner[0]), tuple(inner)
    if NoneType in get_args(hint):
        return _kind_of(inner[0])
    return (hint if hint in (bool, int, str) else tuple), ()


LISTED_MAX: Final = 20


def unknown_key(where: str, key: str, known: Iterable[str]) -> InvalidConfiguration:
    """Return the error for a key that is not known, with the nearest one that is; all of them, where they are
    few."""
    names = sorted(known)
    near = difflib.get_close_matches(key, names, n=1)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    told = names[:LISTED_MAX] + ([f"{len(names) - LISTED_MAX} more"] if len(names) > LISTED_MAX else [])
    return InvalidConfiguration(f"{where} {key}: unknown key{guess}; allowed: {', '.join(told) or 'none'}")


def parse_table(cls: type[T], table: object, *, where: str) -> T:
    """Make a settings object from a table.

    Args:
        cls: a settings class.
        table: what TOML or JSON gave; keys that are not there keep their defaults.
        where: for the error: ``/etc/towpath/towpath.toml: [zeromq]``.

    Raises:
        InvalidConfiguration: not a table, an unknown key, a wrong type, a value out of range, or what the
        class refuses.
    """
    if not isinstance(table, Mapping):
        raise InvalidConfiguration(f"{where}: {table!r} is not allowed; allowed: a table")
    known = {item.name: item for item in settings_of(cls)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise unknown_key(where, str(key), known)
        values[key] = known[key].check(value, where)
    try:
        return cls(**values)
    except InvalidConfiguration as error:
        raise InvalidConfiguration(f"{where} {error.message}", hint=error.hint) from None


def to_table(settings: Any) -> dict[str, Any]:
    """Return a settings object as a table fit for JSON and TOML, the inverse of :func:`parse_table`; None is
    left out."""
    values = ((item.name, getattr(settings, item.name)) for item in dataclasses.fields(settings))
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values
        if value is not None
    }


def environment_name(table: str, key: str) -> str:
    """Return the variable that sets a key: ``TOWPATH_ZEROMQ_SUB``."""
    return f"TOWPATH_{table}_{key}".upper()


def environment_table(cls: type, table: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the keys that the environment sets.

    Raises:
        InvalidConfiguration: a variable with the table's prefix names no key, or has a value that is not
        allowed.
    """
    known = {environment_name(table, item.name): item for item in settings_of(cls)}
    values: dict[str, Any] = {}
    for name, text in environment.items():
        if not name.startswith(f"TOWPATH_{table}_".upper()):
            continue
        if name not in known:
            raise unknown_key("environment:", name, known)
        values[known[name].name] = known[name].from_text(text, f"environment: {name}: [{table}]")
    return values


def add_flags(parser: argparse._ActionsContainer, cls: type) -> None:
    """Give a parser one ``--key VALUE`` for each key; read them back with :func:`flags_table`."""
    for item in settings_of(cls):
        text = f"{item.help} ({item.allowed}; default: {format_toml(item.default)})".replace("%", "%%")
        parser.add_argument("--" + item.name.replace("_", "-"), dest=item.name, metavar="VALUE", help=text)


def flags_table(cls: type, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keys that flags set.

    Raises:
        InvalidConfiguration: a value is not allowed.
    """
    return {
        item.name: item.from_text(text, "command line:")
        for item in settings_of(cls)
        if (text := getattr(arguments, item.name)) is not None
    }


def format_toml(value: object) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(format_toml(item) for item in value) + "]"
    if isinstance(value, str):
        # JSON's strings are TOML's basic strings, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    return str(value)
