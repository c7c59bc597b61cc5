"""Locks that are joined to local ones: what is written down of them. Sans-I/O.

While a joined lock is held, the local one is held too, by the bridge; and while a program of this host has
the local one, nobody gets the lock. Which locks are joined stands in a value that the lock ``JOINED`` owns,
so it is durable, and changed by one at a time; only administrators may take that lock (``local.lock_calls``),
because the bridge opens what is written there with the daemon's rights.

Not here: the joining (``towpath_broker.gateways.bridge.joining``).
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from towpath.codecs import JSON
from towpath.errors import InvalidArgument
from towpath.names import check_name

JOINED: Final = "_towpath-joined"
"""The lock that owns the list."""
JOINS_MAX: Final = 64
PLACE_CHARS_MAX: Final = 512
SCHEMES: Final = ("flock", "fcntl", "sem")
NOTE: Final = "joined to "
"""What the bridge says of itself, before the URL, where it holds a joined lock."""
_SEMAPHORE = re.compile(r"/[^/]{1,249}\Z")


class Place(NamedTuple):
    """A local lock: ``flock`` and ``fcntl`` of a file's path, ``sem`` of a POSIX semaphore's name."""

    scheme: str
    path: str

    @property
    def url(self) -> str:
        """As it is written."""
        return f"{self.scheme}:{self.path}"


class Join(NamedTuple):
    """A joined lock.

    Attributes:
        url: the local lock.
        state: ``new``, ``joined``, or why it cannot be.
    """

    url: str
    state: str = "new"


def parse_place(url: str) -> Place:
    """Understand a local lock's URL.

    Raises:
        InvalidArgument: it is none.
    """
    scheme, colon, path = url.partition(":")
    hint = "flock:/path, fcntl:/path or sem:/name"
    if not colon or scheme not in SCHEMES:
        raise InvalidArgument(f"{url!r} is no local lock", hint=hint)
    if len(path) > PLACE_CHARS_MAX or "\0" in path or not path.startswith("/"):
        raise InvalidArgument(f"{url!r}: an absolute path of at most {PLACE_CHARS_MAX} characters", hint=hint)
    if scheme == "sem" and not _SEMAPHORE.match(path):
        raise InvalidArgument(f"{url!r}: a semaphore's name has one slash, at its beginning", hint=hint)
    return Place(scheme, path)


class JoinsCodec:
    """How the list is written (``towpath.codecs.Codec``)."""

    def encode(self, value: dict[str, Join], /) -> bytes:
        """Return the list as bytes."""
        return JSON.encode({name: list(join) for name, join in value.items()})

    def decode(self, payload: bytes, /) -> dict[str, Join]:
        """Return what bytes are a list of.

        Raises:
            InvalidArgument: they are none.
        """
        found: Any = JSON.decode(payload)
        try:
            return {str(name): Join(str(url), str(state)) for name, (url, state) in found.items()}
        except (AttributeError, TypeError, ValueError):
            raise InvalidArgument(f"the value of {JOINED} is no list of joined locks") from None


JOINS: Final = JoinsCodec()


def add(joins: dict[str, Join], name: str, url: str) -> None:
    """Join a lock.

    Raises:
        InvalidName, InvalidArgument: the lock, or the local one, is joined otherwise; or there are too many.
    """
    check_name(name, "a lock's name")
    place = parse_place(url)
    if name == JOINED:
        raise InvalidArgument(f"{JOINED} cannot be joined itself", hint="")
    if name in joins and joins[name].url != place.url:
        raise InvalidArgument(f"{name!r} is joined to {joins[name].url}", hint="unbind that first")
    for other, join in joins.items():
        if other != name and join.url == place.url:
            raise InvalidArgument(f"{place.url} is joined to {other!r} already", hint="unbind that first")
    if name not in joins and len(joins) >= JOINS_MAX:
        raise InvalidArgument(f"there are {JOINS_MAX} joined locks, as many as there may be", hint="")
    joins[name] = Join(place.url)
