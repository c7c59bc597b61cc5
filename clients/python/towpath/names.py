"""Channel names and patterns: what is well formed, and which names a pattern stands for. Pure; shared by the
client library and the core.

A name is one or more levels joined by dots, ``plant.line1.temp``. A level has letters, digits, ``_`` and
``-``. The letters are ASCII so that a name means the same to a shell, a file system, a ZeroMQ prefix and a
person. Names that begin with ``_towpath.`` are kept for Towpath itself.

A pattern looks like a name, but a level may be ``*``, which stands for exactly one level, and the last may be
``>``, which stands for one level or more: ``plant.*.temp``, ``plant.>``, ``>``. A wildcard is a level of its
own: ``line*`` is neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from towpath.errors import InvalidName

NAME_CHARS_MAX: Final = 255
"""Of a pattern, too."""
RESERVED_PREFIX: Final = "_towpath."
PATTERN_HINT: Final = (
    "in a pattern a level may be *, which stands for one level, and the last may be >, for one or more:"
    " plant.*.temp, plant.>"
)

_LEVEL: Final = "[A-Za-z0-9_-]+"
_NAME = re.compile(rf"{_LEVEL}(?:\.{_LEVEL})*\Z")
_PATTERN = re.compile(rf"(?:(?:{_LEVEL}|\*)\.)*(?:{_LEVEL}|\*|>)\Z")


def check_name(name: str, what: str = "a channel's name") -> str:
    """Return the name if it is well formed.

    Args:
        name: 1 to 255 characters.
        what: it is to be; for the error. Locks are named as channels are.

    Returns:
        The same name.

    Raises:
        InvalidName: it is empty, too long, reserved, or has a character or an empty level that names
        cannot have.
    """
    _check_length(what, name)
    if not _NAME.match(name):
        if is_pattern(name):
            raise InvalidName(f"{name!r} is a pattern, not {what}", hint="patterns are for subscribing")
        raise InvalidName(f"{name!r} is not {what}")
    return _check_not_reserved(name)


def is_pattern(text: str) -> bool:
    """Whether it has a wildcard, well formed or not: no channel's name has."""
    return "*" in text or ">" in text


def check_pattern(pattern: str) -> str:
    """Return the pattern if it is well formed; a name is a pattern that stands for itself.

    Args:
        pattern: 1 to 255 characters.

    Returns:
        The same pattern.

    Raises:
        InvalidName: it is neither a name nor a pattern.
    """
    if not is_pattern(pattern):
        return check_name(pattern)
    _check_length("a pattern", pattern)
    if not _PATTERN.match(pattern):
        raise InvalidName(f"{pattern!r} is not a pattern", hint=PATTERN_HINT)
    return _check_not_reserved(pattern)


def matcher(pattern: str) -> Callable[[str], bool]:
    """Return a function that says whether a name is one that the pattern stands for. O(characters).

    Args:
        pattern: as :func:`check_pattern` lets it through.
    """
    if pattern == ">":
        return bool
    *levels, last = pattern.split(".")
    parts = [r"[^.]+" if level == "*" else re.escape(level) for level in levels]
    parts.append(".+" if last == ">" else r"[^.]+" if last == "*" else re.escape(last))
    found = re.compile(r"\.".join(parts)).fullmatch
    return lambda name: found(name) is not None


def matches(pattern: str, name: str) -> bool:
    """Whether a name is one that the pattern stands for. Of many names, ask :func:`matcher`'s function.

    Args:
        pattern: as :func:`check_pattern` lets it through.
        name: as :func:`check_name` lets it through.
    """
    return matcher(pattern)(name)


def _check_length(what: str, text: str) -> None:
    if not text:
        raise InvalidName(f"{what} is empty")
    if len(text) > NAME_CHARS_MAX:
        raise InvalidName(f"{what} has {len(text)} characters; {NAME_CHARS_MAX} are allowed")


def _check_not_reserved(text: str) -> str:
    if text.startswith(RESERVED_PREFIX):
        raise InvalidName(f"{text!r} begins with {RESERVED_PREFIX!r}, which is kept for Towpath itself")
    return text
