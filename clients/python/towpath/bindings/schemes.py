"""Which schemes there are, and the questions that are asked of a URL of any. Pure.

Theory of operation
    A scheme is one entry of ``REGISTERED``, made by a module of its own; nothing else here knows any. To add
    a mechanism: a module beside ``fifo`` with a :class:`~towpath.bindings.grammar.Scheme`, its entry here,
    and its adapter's entry in the bridge's ``making``.

Invariants
    An option's name has one type, whichever schemes have it.
    One place, one binding: :func:`place_key` is equal for two URLs of one place, however they are written.
    What :func:`check_options` returned, :func:`parse_options` accepts, and checking it again changes
    nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from towpath.bindings.fifo import FIFO
from towpath.bindings.grammar import Option, OptionType, Scheme, listed, shown
from towpath.bindings.mq import MQ
from towpath.bindings.pipe import PIPE
from towpath.bindings.shm import SHM
from towpath.bindings.signal import SIGNAL
from towpath.bindings.sysv import SYSV
from towpath.bindings.unix import UNIX
from towpath.errors import InvalidArgument

REGISTERED: Final[dict[str, Scheme[object]]] = {
    scheme.name: scheme for scheme in (FIFO, PIPE, MQ, SYSV, SIGNAL, SHM, UNIX)
}
SCHEMES: Final = tuple(REGISTERED)


def _described() -> tuple[tuple[Option, tuple[str, ...]], ...]:
    schemes_of: dict[Option, tuple[str, ...]] = {}
    for name, scheme in REGISTERED.items():
        for option in scheme.options:
            schemes_of[option] = (*schemes_of.get(option, ()), name)
    return tuple(schemes_of.items())


DESCRIBED_OPTIONS: Final = _described()
"""Every option, and which schemes have it just so; for helps and manuals."""
OPTION_TYPES: Final[dict[str, OptionType]] = {option.name: option.type for option, _ in DESCRIBED_OPTIONS}


def parse_url(url: str) -> tuple[str, str]:
    """Take a binding's URL apart.

    Args:
        url: a scheme, a colon, and a place: ``fifo:`` and an absolute path of at most 4095 bytes without
            ``..``; ``pipe:`` and a command line of at most 65,536 bytes, which is split as sh(1) splits words
            and run without a shell (for a shell, write ``pipe:sh -c '...'``); for the others see their
            modules.

    Returns:
        The scheme and the place, as written.

    Raises:
        InvalidArgument: the scheme is unknown, or the place cannot be.
    """
    name, colon, place = url.partition(":")
    if not colon or name not in REGISTERED:
        raise InvalidArgument(
            f"{shown(url)} is not a binding's URL: it begins with no known scheme",
            hint=f"known are {listed(SCHEMES, ':')}, as in {FIFO.example} and {PIPE.example}",
        )
    REGISTERED[name].check_place(url, place)
    return name, place


def place_key(url: str) -> tuple[str, ...]:
    """Return what two URLs of the same place have in common; ``//`` and ``/./`` in a path and quoting in a
    command do not count.

    Raises:
        InvalidArgument: as :func:`parse_url`.
    """
    name, place = parse_url(url)
    return (name, *REGISTERED[name].key_of(place))


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
    return REGISTERED[scheme].check_options(direction, options)


def parse_options(scheme: str, options: Mapping[str, str]) -> object:
    """Give an adapter its options, typed and with every default filled in. Where the scheme is known, its
    own ``parse_options`` says which type: ``FIFO.parse_options(...)``.

    Args:
        scheme: one of ``SCHEMES``.
        options: as stated or as :func:`check_options` returned them.

    Raises:
        InvalidArgument: as :func:`check_options`.
    """
    return REGISTERED[scheme].parse_options(options)
