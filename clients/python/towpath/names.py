"""Channel names: what is well formed. Pure; shared by the client library and the core.

A name is one or more levels joined by dots, ``plant.line1.temp``. A level has letters, digits, ``_`` and
``-``. The letters are ASCII so that a name means the same to a shell, a file system, a ZeroMQ prefix and a
person. Names that begin with ``_towpath.`` are kept for Towpath itself.
"""

from __future__ import annotations

import re
from typing import Final

from towpath.errors import InvalidName

NAME_CHARS_MAX: Final = 255
RESERVED_PREFIX: Final = "_towpath."

_NAME = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\Z")


def check_name(name: str) -> str:
    """Return the name if it is well formed.

    Args:
        name: 1 to 255 characters.

    Returns:
        The same name.

    Raises:
        InvalidName: it is empty, too long, reserved, or has a character or an empty level that names
        cannot have.
    """
    if not name:
        raise InvalidName("a channel's name is empty")
    if len(name) > NAME_CHARS_MAX:
        raise InvalidName(f"a channel's name has {len(name)} characters; {NAME_CHARS_MAX} are allowed")
    if not _NAME.match(name):
        raise InvalidName(f"{name!r} is not a channel's name")
    if name.startswith(RESERVED_PREFIX):
        raise InvalidName(f"{name!r} begins with {RESERVED_PREFIX!r}, which is kept for Towpath itself")
    return name
